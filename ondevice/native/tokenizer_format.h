/* The file of a compiled tokenizer, as ondevice/tokenizer/layout.py writes it: a header, then
 * sections of fixed records, little-endian, at multiples of 8. */
#ifndef OD_TOKENIZER_FORMAT_H
#define OD_TOKENIZER_FORMAT_H

#include <stdint.h>

#define OD_TOKENIZER_MAGIC "ODTOKENS"
#define OD_TOKENIZER_VERSION 1

enum { /* sections, in the order of the header */
    OD_SECTION_TEXT,
    OD_SECTION_TOKENS,
    OD_SECTION_MERGES,
    OD_SECTION_WORDS,
    OD_SECTION_BYTE_TOKENS,
    OD_SECTION_ADDED,
    OD_SECTION_TRIES,
    OD_SECTION_TRIE_NODES,
    OD_SECTION_TRIE_EDGES,
    OD_SECTION_NORMALIZERS,
    OD_SECTION_STEPS,
    OD_SECTION_AUTOMATA,
    OD_SECTION_TRANSITIONS,
    OD_SECTION_PAGE_INDEX,
    OD_SECTION_PAGES,
    OD_SECTION_PREFIX,
    OD_SECTION_SUFFIX,
    OD_SECTION_DECOMPOSITIONS,
    OD_SECTION_COMPOSITIONS,
    OD_SECTION_CODE_POINTS,
    OD_SECTIONS
};

enum { /* flags of the tokenizer */
    OD_BYTE_LEVEL = 1,     /* words are bytes, not characters */
    OD_BYTE_FALLBACK = 2,  /* characters without a token become the tokens of their bytes */
    OD_FUSE_UNKNOWN = 4,
    OD_WHOLE_WORDS = 8,    /* a word that is a token is that token, whatever the merges say */
    OD_DECODE_BYTES = 16   /* tokens decode to bytes, else to characters and single bytes */
};

enum { OD_TOKEN_EXISTS = 1, OD_TOKEN_SPECIAL = 2, OD_TOKEN_BYTE = 4 };
enum { OD_ADDED_SINGLE_WORD = 1, OD_ADDED_LSTRIP = 2, OD_ADDED_RSTRIP = 4, OD_ADDED_SPECIAL = 8,
       OD_ADDED_CONTROL = 16 };
enum { OD_NORMALIZE_PREPEND, OD_NORMALIZE_REPLACE, OD_NORMALIZE_COMPOSE };
enum { OD_STEP_SPLIT, OD_STEP_PREFIX, OD_STEP_REPLACE };
enum { OD_REMOVED, OD_ISOLATED, OD_MERGED_WITH_PREVIOUS, OD_MERGED_WITH_NEXT, OD_CONTIGUOUS };
enum { OD_SPLIT_INVERT = 256 }; /* with one of the above */

/* Of characters under composition, and under the flags of added tokens. */
enum { OD_ORDER = 0x3f, OD_DECOMPOSES = 0x40, OD_UNSTABLE = 0x80 };
enum { OD_SPACE = 1, OD_WORD = 2 };

typedef struct od_section {
    uint64_t offset; /* from the start of the file */
    uint64_t count;  /* of records */
} od_section;

typedef struct od_tokenizer_header {
    char magic[8];
    uint32_t version;
    uint32_t flags;
    uint64_t bytes; /* of the file */
    int32_t vocab_size;
    int32_t unknown;              /* token, or -1: what has no token is left out */
    uint32_t strip, strip_count;  /* decoding removes this character so often from the start */
    uint32_t mark, mark_bytes;    /* text that starts a word; none: words must not be cut */
    uint32_t merge_probes, word_probes, composition_probes; /* slots that a search looks at */
    uint32_t word_bytes;          /* the longest of WORDS */
    int32_t composition_map, flag_map; /* page maps of characters, or -1 */
    od_section sections[OD_SECTIONS];
} od_tokenizer_header;

/* Text is (offset, bytes) in the TEXT section. */
typedef struct od_token_record {
    uint32_t word;  /* text that it matches */
    uint32_t piece; /* text that it decodes to */
    uint16_t word_bytes, piece_bytes;
    uint16_t flags;
    uint16_t byte; /* with OD_TOKEN_BYTE */
} od_token_record;

/* Slots of a hash table by (left, right); empty: left < 0. */
typedef struct od_merge {
    int32_t left, right;
    int32_t rank;
    int32_t joined;
} od_merge;

/* Slots of a hash table of words that are one token; empty: token < 0. */
typedef struct od_word {
    uint32_t hash; /* lower half */
    int32_t token;
} od_word;

typedef struct od_added {
    int32_t token;
    uint32_t flags;
} od_added;

typedef struct od_trie { /* [0] over raw text, [1] over normalized text */
    int32_t first[256];  /* node after one byte, or -1 */
} od_trie;

typedef struct od_trie_node {
    int32_t added; /* that ends here, or -1 */
    uint32_t edge, edges;
} od_trie_node;

typedef struct od_trie_edge {
    uint32_t byte;
    int32_t node;
} od_trie_edge;

typedef struct od_normalizer {
    uint32_t kind;
    uint32_t old, old_bytes; /* PREPEND: what is prepended */
    uint32_t new, new_bytes;
} od_normalizer;

typedef struct od_step {
    uint32_t kind;
    uint32_t options; /* SPLIT: behavior and OD_SPLIT_INVERT; PREFIX: 1 for the first text only */
    uint32_t old, old_bytes; /* SPLIT: automaton, 0 */
    uint32_t new, new_bytes;
} od_step;

/* transitions[state][class], class `classes` being the end of the text. */
typedef struct od_automaton {
    uint32_t states, classes;
    uint32_t transition; /* the first */
    int32_t map;         /* classes of characters */
    uint32_t bytes_mode; /* the text is bytes; their classes are all there is */
    uint8_t byte_classes[256]; /* of single bytes: ASCII, or all in bytes mode */
    uint32_t reserved;
} od_automaton;

enum { OD_MATCH = 0x8000, OD_DEAD = 0, OD_START = 1 }; /* of transitions */

typedef struct od_page_map {
    uint16_t pages[4352]; /* page of each 256 code points */
} od_page_map;

typedef struct od_page {
    uint8_t values[256];
} od_page;

typedef struct od_decomposition { /* sorted by code */
    uint32_t code;
    uint32_t first, count; /* in CODE_POINTS */
} od_decomposition;

typedef struct od_composition { /* slots of a hash table; empty: composed == 0 */
    uint32_t first, second, composed;
} od_composition;

#endif
