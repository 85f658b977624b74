/* Unicode normalization form C: decompose, order the marks behind each letter, compose.
 * (Unicode Standard Annex 15; Hangul by arithmetic.) */
#include "tokenizer.h"

enum { HANGUL = 0xac00, LEADING = 0x1100, VOWEL = 0x1161, TRAILING = 0x11a7,
       LEADINGS = 19, VOWELS = 21, TRAILINGS = 28, SYLLABLES = LEADINGS * VOWELS * TRAILINGS };
enum { ORDERS = 64, SHORT_RUN = 16 };

static uint8_t property(const od_tables *t, uint32_t code) {
    return od_property(t, t->header->composition_map, code);
}

/* Whether no character of the text could change or join another. */
static bool is_stable(const od_tables *t, od_text text) {
    const uint8_t *end = text.data + text.bytes;
    uint32_t bytes;
    for (const uint8_t *at = text.data; at < end; at += bytes) {
        bytes = 1;
        if (*at < 0x80) continue; /* ASCII has no such character */
        if (property(t, od_character(at, end, &bytes)) & OD_UNSTABLE) return false;
    }
    return true;
}

/* Write the full decomposition of a character, at most 4; returns how many. */
static uint32_t decompose(const od_tables *t, uint32_t code, uint32_t *to) {
    uint32_t syllable = code - HANGUL;
    if (syllable < SYLLABLES) {
        to[0] = LEADING + syllable / (VOWELS * TRAILINGS);
        to[1] = VOWEL + syllable / TRAILINGS % VOWELS;
        to[2] = TRAILING + syllable % TRAILINGS;
        return to[2] == TRAILING ? 2 : 3;
    }
    to[0] = code;
    if (!(property(t, code) & OD_DECOMPOSES)) return 1;
    size_t low = 0, high = od_section_count(t, OD_SECTION_DECOMPOSITIONS);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (t->decompositions[middle].code < code) low = middle + 1;
        else high = middle;
    }
    if (low == od_section_count(t, OD_SECTION_DECOMPOSITIONS)) return 1;
    const od_decomposition *found = &t->decompositions[low];
    if (found->code != code) return 1;
    for (uint32_t i = 0; i < found->count; i++) to[i] = t->code_points[found->first + i];
    return found->count;
}

/* Sort marks by their order; equal ones stay as they come. Never quadratic: a run may be long. */
static void sort_marks(const od_tables *t, uint32_t *marks, size_t n, uint32_t *spare) {
    if (n <= SHORT_RUN) {
        for (size_t i = 1; i < n; i++) {
            uint32_t mark = marks[i];
            uint8_t order = property(t, mark) & OD_ORDER;
            size_t at = i;
            for (; at > 0 && (property(t, marks[at - 1]) & OD_ORDER) > order; at--)
                marks[at] = marks[at - 1];
            marks[at] = mark;
        }
        return;
    }
    size_t starts[ORDERS + 1] = {0};
    for (size_t i = 0; i < n; i++) starts[(property(t, marks[i]) & OD_ORDER) + 1]++;
    for (size_t i = 1; i <= ORDERS; i++) starts[i] += starts[i - 1];
    for (size_t i = 0; i < n; i++) spare[starts[property(t, marks[i]) & OD_ORDER]++] = marks[i];
    memcpy(marks, spare, n * sizeof *marks);
}

/* What two characters compose to, or 0. */
static uint32_t compose(const od_tables *t, uint32_t first, uint32_t second) {
    uint32_t leading = first - LEADING, vowel = second - VOWEL;
    if (leading < LEADINGS && vowel < VOWELS)
        return HANGUL + (leading * VOWELS + vowel) * TRAILINGS;
    uint32_t syllable = first - HANGUL, trailing = second - TRAILING;
    if (syllable < SYLLABLES && syllable % TRAILINGS == 0 && trailing > 0 && trailing < TRAILINGS)
        return first + trailing;
    uint64_t slots = od_section_count(t, OD_SECTION_COMPOSITIONS);
    if (slots == 0) return 0;
    uint64_t slot = od_hash_pair(first, second) >> t->composition_shift;
    for (uint32_t i = 0; i < t->header->composition_probes; i++, slot = (slot + 1) & (slots - 1)) {
        const od_composition *here = &t->compositions[slot];
        if (here->composed == 0) return 0;
        if (here->first == first && here->second == second) return here->composed;
    }
    return 0;
}

/* Compose in place; returns how many characters are left. */
static size_t compose_all(const od_tables *t, uint32_t *points, size_t n) {
    size_t kept = 0, starter = n; /* n: none yet */
    uint8_t last = 0;             /* order of the last kept mark behind the starter */
    for (size_t i = 0; i < n; i++) {
        uint8_t order = property(t, points[i]) & OD_ORDER;
        bool adjacent = starter != n && kept == starter + 1;
        if (starter != n && (adjacent || last < order)) {
            uint32_t composed = compose(t, points[starter], points[i]);
            if (composed != 0) {
                points[starter] = composed;
                continue;
            }
        }
        if (order == 0) starter = kept;
        last = order;
        points[kept++] = points[i];
    }
    return kept;
}

/* Decompose the text and order its marks; returns the number of characters. */
static size_t decompose_all(const od_tables *t, od_text text, uint32_t *points, uint32_t *spare) {
    const uint8_t *end = text.data + text.bytes;
    size_t n = 0, run = 0; /* marks at the end */
    uint32_t bytes;
    for (const uint8_t *at = text.data; at < end; at += bytes) {
        uint32_t parts[4];
        uint32_t count = decompose(t, od_character(at, end, &bytes), parts);
        for (uint32_t i = 0; i < count; i++) {
            if ((property(t, parts[i]) & OD_ORDER) == 0) {
                sort_marks(t, points + n - run, run, spare);
                run = 0;
            } else {
                run++;
            }
            points[n++] = parts[i];
        }
    }
    sort_marks(t, points + n - run, run, spare);
    return n;
}

od_text od_compose(od_encoder *encoder, od_text text, od_buffer *buffer) {
    const od_tables *t = encoder->tables;
    if (is_stable(t, text)) return text;
    od_scratch *scratch = encoder->scratch;
    size_t most = text.bytes * 4; /* characters, and bytes of each */
    if (!od_buffer_reserve(&scratch->points, most * sizeof(uint32_t)) ||
        !od_buffer_reserve(&scratch->sorted, most * sizeof(uint32_t)) ||
        !od_buffer_reserve(buffer, most * 4)) {
        encoder->failed = true;
        return (od_text){NULL, 0};
    }
    uint32_t *points = scratch->points.data;
    size_t n = decompose_all(t, text, points, scratch->sorted.data);
    n = compose_all(t, points, n);
    uint8_t *to = buffer->data;
    for (size_t i = 0; i < n; i++) to += od_put_character(to, points[i]);
    return (od_text){buffer->data, (size_t)(to - (uint8_t *)buffer->data)};
}
