/* Inside the tokenizer: checked tables, scratch memory, and the stages of encoding.
 *
 *     text -> added tokens -> normalizers -> added tokens -> pre-tokenizer -> merges -> tokens
 */
#ifndef OD_TOKENIZER_H
#define OD_TOKENIZER_H

#include "ondevice.h"
#include "platform.h"
#include "tokenizer_format.h"

/* A file whose every index and offset has been checked. */
typedef struct od_tables {
    const od_tokenizer_header *header;
    const uint8_t *text;
    const od_token_record *tokens;
    const od_merge *merges;
    const od_word *words;
    const int32_t *byte_tokens;
    const od_added *added;
    const od_trie *tries;
    const od_trie_node *nodes;
    const od_trie_edge *edges;
    const od_normalizer *normalizers;
    const od_step *steps;
    const od_automaton *automata;
    const uint16_t *transitions;
    const od_page_map *maps;
    const od_page *pages;
    const int32_t *prefix, *suffix;
    const od_decomposition *decompositions;
    const od_composition *compositions;
    const uint32_t *code_points;
    bool trie_used[2];
    uint32_t merge_shift, word_shift, composition_shift; /* hash >> shift is a slot */
} od_tables;

/* Point `tables` into `data`, aligned to 8, or say what is wrong with it (tokenizer_tables.c). */
od_status od_tables_open(const void *data, int64_t bytes, od_tables *tables, od_error *error);

static inline uint64_t od_section_count(const od_tables *tables, int32_t section) {
    return tables->header->sections[section].count;
}

/* Memory that grows and is kept for the next call. */
typedef struct od_buffer {
    void *data;
    size_t bytes;
} od_buffer;

/* Make room for `bytes`, keeping what is there; false: the system refused. */
bool od_buffer_reserve(od_buffer *buffer, size_t bytes);
void od_buffer_release(od_buffer *buffer);

#define OD_STEPS 12 /* of a pre-tokenizer, at most */

typedef struct od_scratch {
    od_buffer tokens;         /* int32_t */
    od_buffer normalized[2];
    od_buffer pieces[OD_STEPS];
    od_buffer symbols, heap;
    od_buffer points, sorted; /* uint32_t */
} od_scratch;

void od_scratch_release(od_scratch *scratch);

/* Bytes of a text, from `begin` up to before `end`. */
typedef struct od_range {
    int64_t begin, end;
} od_range;

/* A text under way to tokens. */
typedef struct od_encoder {
    const od_tables *tables;
    od_scratch *scratch;
    size_t token_count;
    const od_range *contents; /* parts of the text that hold no control tokens, in order */
    size_t content_count;
    bool failed; /* out of memory */
} od_encoder;

typedef struct od_text {
    const uint8_t *data;
    size_t bytes;
} od_text;

static inline od_text od_table_text(const od_tables *tables, uint32_t offset, uint32_t bytes) {
    return (od_text){tables->text + offset, bytes};
}

void od_emit(od_encoder *encoder, int32_t token);

/* tokenizer_encode.c: a valid UTF-8 text, without what post-processing adds. */
void od_encode_text(od_encoder *encoder, od_text text);

/* tokenizer_normalize.c: the normalized text, in scratch memory or unchanged. */
od_text od_normalize(od_encoder *encoder, od_text text);
/* `text` with every `old` replaced, in `buffer`; unchanged where there is none. */
od_text od_replace(od_encoder *encoder, od_text text, od_text old, od_text new, od_buffer *buffer);

/* tokenizer_compose.c: normalization form C. */
od_text od_compose(od_encoder *encoder, od_text text, od_buffer *buffer);

/* tokenizer_split.c: pre-tokenize and encode; `first`: the text starts the whole. */
void od_split(od_encoder *encoder, od_text text, bool first);

/* tokenizer_merge.c: the tokens of one word. */
void od_merge_word(od_encoder *encoder, od_text word);

/* ---- characters ---- */

/* The character at `at` < `end`; *bytes is its length. What is no UTF-8 counts as U+FFFD. */
static inline uint32_t od_character(const uint8_t *at, const uint8_t *end, uint32_t *bytes) {
    uint32_t first = at[0];
    uint32_t length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    if (length == 1 || (size_t)(end - at) < length) {
        *bytes = 1;
        return length == 1 ? first : 0xfffd;
    }
    *bytes = length;
    if (length == 2) return (first & 0x1f) << 6 | (at[1] & 0x3fu);
    uint32_t code = (at[1] & 0x3fu) << 6 | (at[2] & 0x3fu);
    if (length == 3) return (first & 0xf) << 12 | code;
    code = (first & 7) << 18 | code << 6 | (at[3] & 0x3fu);
    return code < 0x110000 ? code : 0xfffd;
}

/* The value of a character in a page map. */
static inline uint8_t od_property(const od_tables *tables, int32_t map, uint32_t code) {
    return tables->pages[tables->maps[map].pages[code >> 8]].values[code & 255];
}

/* Write a character, at most 4 bytes; returns its length. */
uint32_t od_put_character(uint8_t *to, uint32_t code);
/* The place of the first byte that is no UTF-8, or -1. */
int64_t od_find_invalid(const uint8_t *text, int64_t bytes);

/* ---- hashes, as layout.py computes them ---- */

static inline uint64_t od_hash_pair(uint32_t left, uint32_t right) {
    uint64_t mixed = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    return (mixed ^ mixed >> 32) * 0x9e3779b97f4a7c15u;
}

#endif
