/* Added tokens are found first, in the raw and in the normalized text; what lies between them is
 * pre-tokenized and merged. */
#include "tokenizer.h"

bool od_buffer_reserve(od_buffer *buffer, size_t bytes) {
    if (bytes <= buffer->bytes) return true;
    size_t size = buffer->bytes * 2 > bytes ? buffer->bytes * 2 : bytes + 4096;
    void *data = od_reserve(size);
    if (data == NULL) return false;
    if (buffer->data != NULL) memcpy(data, buffer->data, buffer->bytes);
    od_buffer_release(buffer);
    *buffer = (od_buffer){data, size};
    return true;
}

void od_buffer_release(od_buffer *buffer) {
    if (buffer->data != NULL) od_release(buffer->data, buffer->bytes);
    *buffer = (od_buffer){NULL, 0};
}

void od_scratch_release(od_scratch *scratch) {
    od_buffer_release(&scratch->tokens);
    od_buffer_release(&scratch->normalized[0]);
    od_buffer_release(&scratch->normalized[1]);
    for (int32_t i = 0; i < OD_STEPS; i++) od_buffer_release(&scratch->pieces[i]);
    od_buffer_release(&scratch->symbols);
    od_buffer_release(&scratch->heap);
    od_buffer_release(&scratch->points);
    od_buffer_release(&scratch->sorted);
}

void od_emit(od_encoder *encoder, int32_t token) {
    od_buffer *tokens = &encoder->scratch->tokens;
    size_t needed = (encoder->token_count + 1) * sizeof token;
    if (needed > tokens->bytes && !od_buffer_reserve(tokens, needed)) {
        encoder->failed = true;
        return;
    }
    ((int32_t *)tokens->data)[encoder->token_count++] = token;
}

/* ---- characters ---- */

uint32_t od_put_character(uint8_t *to, uint32_t code) {
    if (code < 0x80) {
        to[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800) {
        to[0] = (uint8_t)(0xc0 | code >> 6);
        to[1] = (uint8_t)(0x80 | (code & 63));
        return 2;
    }
    if (code < 0x10000) {
        to[0] = (uint8_t)(0xe0 | code >> 12);
        to[1] = (uint8_t)(0x80 | (code >> 6 & 63));
        to[2] = (uint8_t)(0x80 | (code & 63));
        return 3;
    }
    to[0] = (uint8_t)(0xf0 | code >> 18);
    to[1] = (uint8_t)(0x80 | (code >> 12 & 63));
    to[2] = (uint8_t)(0x80 | (code >> 6 & 63));
    to[3] = (uint8_t)(0x80 | (code & 63));
    return 4;
}

/* ---- added tokens ---- */

/* A stretch of text that is searched: where it lies in the whole, if its bytes are the whole's. */
typedef struct area {
    od_text text;
    const od_trie *trie;
    int64_t offset; /* in the whole text; -1: the bytes have changed */
    bool typed;     /* with offset -1: some of it is content */
    bool first;     /* the whole text begins here */
} area;

typedef struct found {
    size_t begin, end;
    const od_added *added;
} found;

/* The longest added token at the first place from `from` where there is one. */
static bool find_added(const od_tables *t, const area *where, size_t from, found *match) {
    const uint8_t *text = where->text.data;
    for (size_t begin = from; begin < where->text.bytes; begin++) {
        int32_t node = where->trie->first[text[begin]];
        if (node < 0) continue;
        match->added = NULL;
        for (size_t end = begin + 1; node >= 0; end++) {
            const od_trie_node *here = &t->nodes[node];
            if (here->added >= 0)
                *match = (found){begin, end, &t->added[here->added]};
            node = -1;
            const od_trie_edge *edges = t->edges + here->edge;
            for (uint32_t i = 0; i < here->edges && end < where->text.bytes; i++)
                if (edges[i].byte == text[end]) node = edges[i].node;
        }
        if (match->added != NULL) return true;
    }
    return false;
}

typedef enum overlap { NONE, INSIDE, CROSSING } overlap;

/* How begin..end of the whole text lies to what users have typed. */
static overlap typed(const od_encoder *encoder, int64_t begin, int64_t end) {
    size_t low = 0, high = encoder->content_count;
    while (low < high) { /* the first content that ends behind `begin` */
        size_t middle = (low + high) / 2;
        if (encoder->contents[middle].end > begin) high = middle;
        else low = middle + 1;
    }
    if (low == encoder->content_count || encoder->contents[low].begin >= end) return NONE;
    bool inside = encoder->contents[low].begin <= begin && end <= encoder->contents[low].end;
    return inside ? INSIDE : CROSSING;
}

static overlap overlap_of(const od_encoder *encoder, const area *where, const found *match) {
    if ((match->added->flags & OD_ADDED_CONTROL) == 0) return NONE;
    if (where->offset < 0) return where->typed ? INSIDE : NONE;
    return typed(encoder, where->offset + (int64_t)match->begin,
                 where->offset + (int64_t)match->end);
}

static uint8_t flags_at(const od_tables *t, od_text text, size_t at) {
    uint32_t bytes;
    uint32_t code = od_character(text.data + at, text.data + text.bytes, &bytes);
    return od_property(t, t->header->flag_map, code);
}

/* The start of the character that ends before `at`. */
static size_t before(od_text text, size_t at) {
    do at--;
    while (at > 0 && (text.data[at] & 0xc0) == 0x80);
    return at;
}

static bool stands_alone(const od_tables *t, od_text text, const found *match) {
    if (match->begin > 0 && (flags_at(t, text, before(text, match->begin)) & OD_WORD)) return false;
    return match->end >= text.bytes || !(flags_at(t, text, match->end) & OD_WORD);
}

static size_t strip_left(const od_tables *t, od_text text, size_t at) {
    while (at > 0 && (flags_at(t, text, before(text, at)) & OD_SPACE)) at = before(text, at);
    return at;
}

static size_t strip_right(const od_tables *t, od_text text, size_t at) {
    while (at < text.bytes && (flags_at(t, text, at) & OD_SPACE)) {
        uint32_t bytes;
        od_character(text.data + at, text.data + text.bytes, &bytes);
        at += bytes;
    }
    return at;
}

typedef void (*gap)(od_encoder *, const area *, size_t begin, size_t end);

/* Emit the added tokens of an area, and hand what lies between them to `between`. */
static void scan(od_encoder *encoder, const area *where, gap between) {
    const od_tables *t = encoder->tables;
    od_text text = where->text;
    size_t done = 0, from = 0;
    found match;
    while (find_added(t, where, from, &match)) {
        overlap lies = overlap_of(encoder, where, &match);
        /* A match that reaches out of typed text must not swallow a token of the template. */
        from = lies == CROSSING ? match.begin + 1 : match.end;
        if (lies != NONE) continue;
        uint32_t flags = match.added->flags;
        if ((flags & OD_ADDED_SINGLE_WORD) && !stands_alone(t, text, &match)) continue;
        size_t begin = match.begin, end = match.end;
        if (flags & OD_ADDED_LSTRIP) begin = strip_left(t, text, begin);
        if (begin < done && (flags & OD_ADDED_LSTRIP)) begin = done;
        if (flags & OD_ADDED_RSTRIP) end = strip_right(t, text, end);
        if (done < begin) between(encoder, where, done, begin);
        od_emit(encoder, match.added->token);
        done = end;
    }
    if (done < text.bytes) between(encoder, where, done, text.bytes);
}

static od_text part(od_text text, size_t begin, size_t end) {
    return (od_text){text.data + begin, end - begin};
}

static void split_gap(od_encoder *encoder, const area *where, size_t begin, size_t end) {
    od_split(encoder, part(where->text, begin, end), where->first && begin == 0);
}

/* Between the added tokens of the raw text. */
static void normalize_gap(od_encoder *encoder, const area *where, size_t begin, size_t end) {
    const od_tables *t = encoder->tables;
    od_text raw = part(where->text, begin, end);
    od_text text = od_normalize(encoder, raw);
    if (!t->trie_used[1]) {
        od_split(encoder, text, begin == 0);
        return;
    }
    int64_t offset = text.data == raw.data ? (int64_t)begin : -1;
    bool some_typed = typed(encoder, (int64_t)begin, (int64_t)end) != NONE;
    area inner = {text, &t->tries[1], offset, some_typed, begin == 0};
    scan(encoder, &inner, split_gap);
}

void od_encode_text(od_encoder *encoder, od_text text) {
    area whole = {text, &encoder->tables->tries[0], 0, false, true};
    scan(encoder, &whole, normalize_gap);
}
