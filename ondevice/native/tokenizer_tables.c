/* Check a tokenizer's file before anything in it is followed. */
#include "message.h"
#include "tokenizer.h"

#define MOST_PROBES 1024 /* a hash table with longer searches was not made by the compiler */

typedef struct checker {
    const uint8_t *data;
    const od_tokenizer_header *header;
    od_tables *tables;
    const char *fault; /* the first thing found wrong, or NULL */
} checker;

static uint64_t count(const checker *check, int32_t section) {
    return check->header->sections[section].count;
}

static void require(checker *check, bool holds, const char *fault) {
    if (!holds && check->fault == NULL) check->fault = fault;
}

/* Where a section of records of `size` bytes lies, if it lies inside the file. */
static const void *section(checker *check, int32_t number, size_t size) {
    const od_section *found = &check->header->sections[number];
    bool inside = found->offset % 8 == 0 && found->offset <= check->header->bytes &&
                  found->count <= (check->header->bytes - found->offset) / size;
    require(check, inside && found->count <= INT32_MAX, "a section outside the file");
    return inside ? check->data + found->offset : check->data;
}

static void open_sections(checker *check) {
    od_tables *t = check->tables;
    t->text = section(check, OD_SECTION_TEXT, 1);
    t->tokens = section(check, OD_SECTION_TOKENS, sizeof *t->tokens);
    t->merges = section(check, OD_SECTION_MERGES, sizeof *t->merges);
    t->words = section(check, OD_SECTION_WORDS, sizeof *t->words);
    t->byte_tokens = section(check, OD_SECTION_BYTE_TOKENS, sizeof *t->byte_tokens);
    t->added = section(check, OD_SECTION_ADDED, sizeof *t->added);
    t->tries = section(check, OD_SECTION_TRIES, sizeof *t->tries);
    t->nodes = section(check, OD_SECTION_TRIE_NODES, sizeof *t->nodes);
    t->edges = section(check, OD_SECTION_TRIE_EDGES, sizeof *t->edges);
    t->normalizers = section(check, OD_SECTION_NORMALIZERS, sizeof *t->normalizers);
    t->steps = section(check, OD_SECTION_STEPS, sizeof *t->steps);
    t->automata = section(check, OD_SECTION_AUTOMATA, sizeof *t->automata);
    t->transitions = section(check, OD_SECTION_TRANSITIONS, sizeof *t->transitions);
    t->maps = section(check, OD_SECTION_PAGE_INDEX, sizeof *t->maps);
    t->pages = section(check, OD_SECTION_PAGES, sizeof *t->pages);
    t->prefix = section(check, OD_SECTION_PREFIX, sizeof *t->prefix);
    t->suffix = section(check, OD_SECTION_SUFFIX, sizeof *t->suffix);
    t->decompositions = section(check, OD_SECTION_DECOMPOSITIONS, sizeof *t->decompositions);
    t->compositions = section(check, OD_SECTION_COMPOSITIONS, sizeof *t->compositions);
    t->code_points = section(check, OD_SECTION_CODE_POINTS, sizeof *t->code_points);
}

static bool is_text(const checker *check, uint32_t offset, uint32_t bytes) {
    uint64_t all = count(check, OD_SECTION_TEXT);
    return offset <= all && bytes <= all - offset;
}

static bool is_token(const checker *check, int32_t token) {
    return token >= 0 && token < check->header->vocab_size;
}

static bool is_token_or_none(const checker *check, int32_t token) {
    return token == -1 || is_token(check, token);
}

static bool is_map(const checker *check, int32_t map) {
    return map >= 0 && (uint64_t)map < count(check, OD_SECTION_PAGE_INDEX);
}

static void check_tokens(checker *check) {
    const od_tables *t = check->tables;
    const od_tokenizer_header *h = check->header;
    require(check, h->vocab_size > 0 && (uint64_t)h->vocab_size == count(check, OD_SECTION_TOKENS),
            "another number of tokens than it says");
    for (uint64_t i = 0; i < count(check, OD_SECTION_TOKENS); i++)
        require(check, is_text(check, t->tokens[i].word, t->tokens[i].word_bytes) &&
                is_text(check, t->tokens[i].piece, t->tokens[i].piece_bytes) &&
                t->tokens[i].byte < 256, "a token whose text is outside");
    for (uint64_t i = 0; i < count(check, OD_SECTION_MERGES); i++) {
        const od_merge *merge = &t->merges[i];
        bool is_ranked = merge->rank >= 0 && merge->rank < INT32_MAX;
        require(check, merge->left < 0 || (is_ranked && is_token(check, merge->joined)),
                "a merge into no token");
    }
    for (uint64_t i = 0; i < count(check, OD_SECTION_WORDS); i++)
        require(check, is_token_or_none(check, t->words[i].token), "a word that is no token");
    require(check, count(check, OD_SECTION_BYTE_TOKENS) == 256, "no tokens of bytes");
    for (int32_t i = 0; i < 256 && check->fault == NULL; i++)
        require(check, is_token_or_none(check, t->byte_tokens[i]), "a byte that is no token");
    for (uint64_t i = 0; i < count(check, OD_SECTION_PREFIX); i++)
        require(check, is_token(check, t->prefix[i]), "a prefix that is no token");
    for (uint64_t i = 0; i < count(check, OD_SECTION_SUFFIX); i++)
        require(check, is_token(check, t->suffix[i]), "a suffix that is no token");
    require(check, is_token_or_none(check, h->unknown), "an unknown token that is none");
    require(check, is_text(check, h->mark, h->mark_bytes), "a mark outside its text");
    require(check, h->merge_probes <= MOST_PROBES && h->word_probes <= MOST_PROBES &&
            h->composition_probes <= MOST_PROBES, "a hash table that is no better than a list");
}

static void check_added(checker *check) {
    const od_tables *t = check->tables;
    uint64_t nodes = count(check, OD_SECTION_TRIE_NODES);
    uint64_t edges = count(check, OD_SECTION_TRIE_EDGES);
    const uint32_t looks = OD_ADDED_SINGLE_WORD | OD_ADDED_LSTRIP | OD_ADDED_RSTRIP;
    for (uint64_t i = 0; i < count(check, OD_SECTION_ADDED); i++) {
        require(check, is_token(check, t->added[i].token), "an added token that is none");
        require(check, (t->added[i].flags & looks) == 0 || is_map(check, check->header->flag_map),
                "no characters for the flags of added tokens");
    }
    require(check, count(check, OD_SECTION_TRIES) == 2, "another number of tries than 2");
    for (uint64_t i = 0; i < 512 && check->fault == NULL; i++) {
        int32_t node = t->tries[i / 256].first[i % 256];
        require(check, node >= -1 && node < (int64_t)nodes, "a trie that leads outside");
    }
    for (uint64_t i = 0; i < nodes; i++)
        require(check, t->nodes[i].added >= -1 &&
                t->nodes[i].added < (int64_t)count(check, OD_SECTION_ADDED) &&
                t->nodes[i].edge <= edges && t->nodes[i].edges <= edges - t->nodes[i].edge,
                "a node of a trie that leads outside");
    for (uint64_t i = 0; i < edges; i++)
        require(check, t->edges[i].node >= 0 && (uint64_t)t->edges[i].node < nodes,
                "an edge of a trie that leads outside");
}

static void check_automaton(checker *check, const od_automaton *automaton) {
    const od_tables *t = check->tables;
    uint64_t columns = (uint64_t)automaton->classes + 1;
    uint64_t all = count(check, OD_SECTION_TRANSITIONS);
    require(check, automaton->states >= 2 && automaton->states < OD_MATCH &&
            automaton->classes < 256 && automaton->transition <= all &&
            automaton->states * columns <= all - automaton->transition &&
            is_map(check, automaton->map), "an automaton outside its tables");
    if (check->fault != NULL) return;
    for (uint64_t i = 0; i < automaton->states * columns; i++)
        require(check, (t->transitions[automaton->transition + i] & ~OD_MATCH) <
                (int32_t)automaton->states, "an automaton that leads outside");
    /* A start that already matches would match the empty text for ever. */
    for (uint64_t i = columns; i < 2 * columns; i++)
        require(check, (t->transitions[automaton->transition + i] & OD_MATCH) == 0,
                "an automaton that matches nothing");
    for (int32_t i = 0; i < 256; i++)
        require(check, automaton->byte_classes[i] < automaton->classes, "a byte without a class");
    for (int32_t i = 0; i < 4352 && check->fault == NULL; i++) {
        const od_page *page = &t->pages[t->maps[automaton->map].pages[i]];
        for (int32_t j = 0; j < 256; j++)
            require(check, page->values[j] < automaton->classes, "a character without a class");
    }
}

static void check_steps(checker *check) {
    const od_tables *t = check->tables;
    uint64_t pages = count(check, OD_SECTION_PAGES);
    for (uint64_t i = 0; i < count(check, OD_SECTION_PAGE_INDEX); i++)
        for (int32_t j = 0; j < 4352; j++)
            require(check, t->maps[i].pages[j] < pages, "a page of characters that is missing");
    for (uint64_t i = 0; i < count(check, OD_SECTION_NORMALIZERS); i++) {
        const od_normalizer *n = &t->normalizers[i];
        require(check, is_text(check, n->old, n->old_bytes) &&
                is_text(check, n->new, n->new_bytes), "a normalizer whose text is outside");
        require(check, n->kind <= OD_NORMALIZE_COMPOSE &&
                (n->kind == OD_NORMALIZE_COMPOSE || n->old_bytes > 0), "an unknown normalizer");
        require(check, n->kind != OD_NORMALIZE_COMPOSE ||
                is_map(check, check->header->composition_map), "no characters to compose");
    }
    require(check, count(check, OD_SECTION_STEPS) <= OD_STEPS, "too many pre-tokenizers");
    for (uint64_t i = 0; i < count(check, OD_SECTION_STEPS); i++) {
        const od_step *s = &t->steps[i];
        require(check, s->kind <= OD_STEP_REPLACE, "an unknown pre-tokenizer");
        if (s->kind == OD_STEP_SPLIT)
            require(check, s->old < count(check, OD_SECTION_AUTOMATA) &&
                    (s->options & ~(uint32_t)OD_SPLIT_INVERT) <= OD_CONTIGUOUS,
                    "a pre-tokenizer without its automaton");
        else
            require(check, is_text(check, s->old, s->old_bytes) && s->old_bytes > 0 &&
                    is_text(check, s->new, s->new_bytes), "a pre-tokenizer whose text is outside");
    }
    for (uint64_t i = 0; i < count(check, OD_SECTION_AUTOMATA) && check->fault == NULL; i++)
        check_automaton(check, &t->automata[i]);
}

static void check_composition(checker *check) {
    const od_tables *t = check->tables;
    uint64_t points = count(check, OD_SECTION_CODE_POINTS);
    for (uint64_t i = 0; i < points; i++)
        require(check, t->code_points[i] < 0x110000, "a decomposition into no character");
    for (uint64_t i = 0; i < count(check, OD_SECTION_DECOMPOSITIONS); i++)
        require(check, t->decompositions[i].first <= points && t->decompositions[i].count <= 4 &&
                t->decompositions[i].count <= points - t->decompositions[i].first,
                "a decomposition outside its table");
    for (uint64_t i = 0; i < count(check, OD_SECTION_COMPOSITIONS); i++)
        require(check, t->compositions[i].composed < 0x110000, "a composition into no character");
}

/* The shift that makes a hash a slot of a table of `slots`, a power of two; 64: the table is empty
 * and never searched. */
static uint32_t shift_of(checker *check, int32_t number) {
    uint64_t slots = count(check, number);
    uint32_t shift = 64;
    if (slots > 1U << 30) return shift; /* more than INT32_MAX bytes: refused already */
    for (uint64_t size = 1; size < slots; size *= 2) shift--;
    require(check, slots == 0 || (slots > 1 && (slots & (slots - 1)) == 0),
            "a hash table whose size is no power of two");
    return shift;
}

od_status od_tables_open(const void *data, int64_t bytes, od_tables *tables, od_error *error) {
    const od_tokenizer_header *header = data;
    if (bytes < (int64_t)sizeof *header ||
        memcmp(header->magic, OD_TOKENIZER_MAGIC, sizeof header->magic) != 0)
        return od_fail(error, OD_MODEL, "not a compiled tokenizer: it does not start with %s",
                       OD_TOKENIZER_MAGIC);
    if (header->version != OD_TOKENIZER_VERSION)
        return od_fail(error, OD_MODEL, "tokenizer of version %lld, this runtime reads %d",
                       (long long)header->version, OD_TOKENIZER_VERSION);
    if (header->bytes != (uint64_t)bytes)
        return od_fail(error, OD_MODEL, "tokenizer of %lld bytes in a file of %lld",
                       (long long)header->bytes, (long long)bytes);
    *tables = (od_tables){.header = header};
    checker check = {data, header, tables, NULL};
    open_sections(&check);
    void (*const checks[])(checker *) = {check_tokens, check_added, check_steps, check_composition};
    for (size_t i = 0; i < sizeof checks / sizeof *checks && check.fault == NULL; i++)
        checks[i](&check);
    for (int32_t i = 0; i < 256 && check.fault == NULL; i++)
        for (int32_t trie = 0; trie < 2; trie++)
            if (tables->tries[trie].first[i] >= 0) tables->trie_used[trie] = true;
    tables->merge_shift = shift_of(&check, OD_SECTION_MERGES);
    tables->word_shift = shift_of(&check, OD_SECTION_WORDS);
    tables->composition_shift = shift_of(&check, OD_SECTION_COMPOSITIONS);
    if (check.fault != NULL)
        return od_fail(error, OD_MODEL, "the tokenizer's file is damaged: %s", check.fault);
    return OD_OK;
}
