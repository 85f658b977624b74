/* Byte-pair encoding: of all neighbours that may merge, the pair of the lowest rank does, the
 * leftmost among equals, until none may. */
#include "tokenizer.h"

enum { SMALL = 40, NO_RANK = INT32_MAX };

/* ---- tables ---- */

static uint64_t load(const uint8_t *from) {
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static uint64_t load_short(const uint8_t *from, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = bytes; i > 0; i--) value = value << 8 | from[i - 1];
    return value;
}

static uint64_t mix(uint64_t value, uint64_t chunk) {
    value = (value ^ chunk) * 0x9e3779b97f4a7c15u;
    return value ^ value >> 32;
}

static uint64_t hash_text(const uint8_t *text, size_t bytes) {
    uint64_t value = bytes * 0x9e3779b97f4a7c15u;
    if (bytes < 8) {
        if (bytes > 0) value = mix(value, load_short(text, bytes));
    } else {
        for (size_t at = 0; at + 8 <= bytes; at += 8) value = mix(value, load(text + at));
        value = mix(value, load(text + bytes - 8));
    }
    return value * 0x9e3779b97f4a7c15u;
}

static bool equal(const uint8_t *a, const uint8_t *b, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (a[i] != b[i]) return false;
    return true;
}

/* The token that this text encodes to by itself, or -1: it is more than one, or none. */
static int32_t find_word(const od_tables *t, const uint8_t *text, size_t bytes) {
    uint64_t slots = od_section_count(t, OD_SECTION_WORDS);
    if (bytes > t->header->word_bytes || slots == 0) return -1;
    uint64_t hash = hash_text(text, bytes), slot = hash >> t->word_shift;
    for (uint32_t i = 0; i < t->header->word_probes; i++, slot = (slot + 1) & (slots - 1)) {
        const od_word *word = &t->words[slot];
        if (word->token < 0) return -1;
        const od_token_record *token = &t->tokens[word->token];
        if (word->hash == (uint32_t)hash && token->word_bytes == bytes &&
            equal(t->text + token->word, text, bytes)) return word->token;
    }
    return -1;
}

/* The merge of two tokens, or NULL. */
static const od_merge *find_merge(const od_tables *t, int32_t left, int32_t right) {
    uint64_t slots = od_section_count(t, OD_SECTION_MERGES);
    if (slots == 0) return NULL;
    uint64_t slot = od_hash_pair((uint32_t)left, (uint32_t)right) >> t->merge_shift;
    for (uint32_t i = 0; i < t->header->merge_probes; i++, slot = (slot + 1) & (slots - 1)) {
        const od_merge *merge = &t->merges[slot];
        if (merge->left < 0) return NULL;
        if (merge->left == left && merge->right == right) return merge;
    }
    return NULL;
}

/* ---- the smallest pieces of a word ---- */

/* The tokens of the bytes of one character into `to`, or 0 where a byte has none. */
static size_t fall_back(const od_tables *t, const uint8_t *text, uint32_t bytes, int32_t *to) {
    for (uint32_t i = 0; i < bytes; i++)
        if ((to[i] = t->byte_tokens[text[i]]) < 0) return 0;
    return bytes;
}

/* One token per character (or byte) of the word into `to`, which has room for one per byte. An
 * unknown one is written when the next known character comes, as the original does it. */
static size_t pieces(const od_tables *t, od_text word, int32_t *to) {
    const uint8_t *end = word.data + word.bytes;
    uint32_t flags = t->header->flags, bytes = 1;
    size_t n = 0, unknown = 0;
    for (const uint8_t *at = word.data; at < end; at += bytes) {
        int32_t token;
        if (flags & OD_BYTE_LEVEL) {
            token = t->byte_tokens[*at];
        } else {
            od_character(at, end, &bytes);
            token = find_word(t, at, bytes);
        }
        if (token >= 0) {
            for (; unknown > 0; unknown--) to[n++] = t->header->unknown;
            to[n++] = token;
            continue;
        }
        size_t fallen = flags & OD_BYTE_FALLBACK ? fall_back(t, at, bytes, to + n) : 0;
        n += fallen;
        if (fallen == 0 && t->header->unknown >= 0) {
            if (unknown == 0 || (flags & OD_FUSE_UNKNOWN)) {
                unknown = 1;
            } else {
                to[n++] = t->header->unknown;
            }
        }
    }
    if (unknown > 0) to[n++] = t->header->unknown;
    return n;
}

/* ---- short words: look at all pairs ---- */

static void rank_pair(const od_tables *t, const int32_t *ids, size_t n, size_t at, int32_t *ranks,
                      int32_t *joined) {
    const od_merge *merge = at + 1 < n ? find_merge(t, ids[at], ids[at + 1]) : NULL;
    ranks[at] = merge == NULL ? NO_RANK : merge->rank;
    joined[at] = merge == NULL ? -1 : merge->joined;
}

static size_t merge_short(const od_tables *t, int32_t *ids, size_t n) {
    int32_t ranks[SMALL], joined[SMALL];
    for (size_t i = 0; i < n; i++) rank_pair(t, ids, n, i, ranks, joined);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i < n; i++)
            if (ranks[i] < ranks[best]) best = i;
        if (ranks[best] == NO_RANK) break;
        ids[best] = joined[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            ranks[i] = ranks[i + 1];
            joined[i] = joined[i + 1];
        }
        rank_pair(t, ids, n, best, ranks, joined);
        if (best > 0) rank_pair(t, ids, n, best - 1, ranks, joined);
    }
    return n;
}

/* ---- long words: a heap of pairs, n log n ---- */

typedef struct symbol {
    int32_t token;  /* -1: merged into the one before */
    int32_t before, after;
    int32_t rank;   /* of the pair with the one after; entries of the heap with another are stale */
    int32_t joined;
} symbol;

typedef struct heap {
    uint64_t *entries; /* rank << 32 | place, so the least is the leftmost of the lowest rank */
    size_t count;
} heap;

static void sink(heap *h, size_t at) {
    uint64_t entry = h->entries[at];
    for (size_t child; (child = 2 * at + 1) < h->count; at = child) {
        if (child + 1 < h->count && h->entries[child + 1] < h->entries[child]) child++;
        if (h->entries[child] >= entry) break;
        h->entries[at] = h->entries[child];
    }
    h->entries[at] = entry;
}

static void push(heap *h, uint64_t entry) {
    size_t at = h->count++;
    for (; at > 0 && h->entries[(at - 1) / 2] > entry; at = (at - 1) / 2)
        h->entries[at] = h->entries[(at - 1) / 2];
    h->entries[at] = entry;
}

static uint64_t pop(heap *h) {
    uint64_t least = h->entries[0];
    h->entries[0] = h->entries[--h->count];
    if (h->count > 0) sink(h, 0);
    return least;
}

/* Look up the pair at `place`; true if it may merge. */
static bool rank_symbol(const od_tables *t, symbol *symbols, int32_t place) {
    symbol *here = &symbols[place];
    const od_merge *merge =
        here->after < 0 ? NULL : find_merge(t, here->token, symbols[here->after].token);
    here->rank = merge == NULL ? NO_RANK : merge->rank;
    here->joined = merge == NULL ? -1 : merge->joined;
    return merge != NULL;
}

static uint64_t entry_of(const symbol *symbols, int32_t place) {
    return (uint64_t)symbols[place].rank << 32 | (uint32_t)place;
}

static void merge_pair(const od_tables *t, symbol *symbols, heap *h, int32_t place) {
    symbol *here = &symbols[place], *gone = &symbols[here->after];
    here->token = here->joined;
    here->after = gone->after;
    gone->token = -1;
    gone->rank = NO_RANK;
    if (here->after >= 0) symbols[here->after].before = place;
    if (rank_symbol(t, symbols, place)) push(h, entry_of(symbols, place));
    if (here->before >= 0 && rank_symbol(t, symbols, here->before))
        push(h, entry_of(symbols, here->before));
}

static void merge_long(od_encoder *encoder, const int32_t *ids, size_t n) {
    const od_tables *t = encoder->tables;
    od_scratch *scratch = encoder->scratch;
    /* A merge takes at least one entry and adds at most two, and there are fewer than n merges. */
    if (!od_buffer_reserve(&scratch->symbols, n * sizeof(symbol)) ||
        !od_buffer_reserve(&scratch->heap, 2 * n * sizeof(uint64_t))) {
        encoder->failed = true;
        return;
    }
    symbol *symbols = scratch->symbols.data;
    heap h = {scratch->heap.data, 0};
    for (size_t i = 0; i < n; i++) {
        int32_t place = (int32_t)i;
        symbols[i] = (symbol){ids[i], place - 1, i + 1 < n ? place + 1 : -1, NO_RANK, -1};
    }
    for (int32_t i = 0; i < (int32_t)n; i++)
        if (rank_symbol(t, symbols, i)) h.entries[h.count++] = entry_of(symbols, i);
    for (size_t i = h.count / 2; i > 0; i--) sink(&h, i - 1);
    while (h.count > 0) {
        uint64_t entry = pop(&h);
        int32_t place = (int32_t)(uint32_t)entry;
        if (symbols[place].rank == (int32_t)(entry >> 32)) merge_pair(t, symbols, &h, place);
    }
    for (int32_t i = 0; i >= 0; i = symbols[i].after) od_emit(encoder, symbols[i].token);
}

/* ---- words ---- */

static void merge_whole(od_encoder *encoder, od_text word) {
    const od_tables *t = encoder->tables;
    int32_t known = find_word(t, word.data, word.bytes);
    if (known >= 0) {
        od_emit(encoder, known);
        return;
    }
    if (word.bytes <= SMALL) {
        int32_t ids[SMALL];
        size_t n = merge_short(t, ids, pieces(t, word, ids));
        for (size_t i = 0; i < n; i++) od_emit(encoder, ids[i]);
        return;
    }
    if (word.bytes > INT32_MAX / 2 ||
        !od_buffer_reserve(&encoder->scratch->points, (word.bytes + 1) * sizeof(int32_t))) {
        encoder->failed = true;
        return;
    }
    int32_t *ids = encoder->scratch->points.data;
    size_t n = pieces(t, word, ids);
    if (n > 0) merge_long(encoder, ids, n);
}

/* Whether a word starts at `at`: a mark that follows something else. */
static bool starts_word(od_text text, od_text mark, size_t at) {
    if (text.data[at] != mark.data[0] || at + mark.bytes > text.bytes ||
        memcmp(text.data + at, mark.data, mark.bytes) != 0) return false;
    return at < mark.bytes || memcmp(text.data + at - mark.bytes, mark.data, mark.bytes) != 0;
}

void od_merge_word(od_encoder *encoder, od_text word) {
    const od_tables *t = encoder->tables;
    od_text mark = od_table_text(t, t->header->mark, t->header->mark_bytes);
    size_t begin = 0;
    for (size_t at = 1; mark.bytes > 0 && at < word.bytes && !encoder->failed; at++) {
        if (!starts_word(word, mark, at)) continue;
        merge_whole(encoder, (od_text){word.data + begin, at - begin});
        begin = at;
    }
    merge_whole(encoder, (od_text){word.data + begin, word.bytes - begin});
}
