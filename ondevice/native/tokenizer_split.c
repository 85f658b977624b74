/* Pre-tokenizers: each cuts the pieces of the one before; the last hands words to the merges. */
#include "tokenizer.h"

static void run(od_encoder *encoder, size_t step, od_text piece, bool first);

/* Pieces on their way from one step to the next. */
typedef struct cutter {
    od_encoder *encoder;
    size_t next; /* step */
    od_text text;
    bool first;
    uint32_t behavior;
    bool invert;
    bool waiting;       /* a piece that may yet grow: */
    size_t begin, end;
    bool is_match;
} cutter;

static void pass(const cutter *cut, size_t begin, size_t end) {
    od_text piece = {cut->text.data + begin, end - begin};
    if (end > begin) run(cut->encoder, cut->next, piece, cut->first && begin == 0);
}

static void flush(cutter *cut) {
    if (cut->waiting) pass(cut, cut->begin, cut->end);
    cut->waiting = false;
}

/* The next stretch of the text, which is a match or lies between matches. */
static void feed(cutter *cut, size_t begin, size_t end, bool is_match) {
    is_match = is_match != cut->invert;
    bool grows = false;
    switch (cut->behavior) {
        case OD_ISOLATED: pass(cut, begin, end); return;
        case OD_REMOVED:
            if (!is_match) pass(cut, begin, end);
            return;
        case OD_CONTIGUOUS: grows = is_match == cut->is_match; break;
        case OD_MERGED_WITH_PREVIOUS: grows = is_match && !cut->is_match; break;
        default: grows = !is_match && cut->is_match; break;
    }
    if (!cut->waiting || !grows) {
        flush(cut);
        cut->begin = begin;
    }
    cut->waiting = true;
    cut->end = end;
    cut->is_match = is_match;
}

/* The end of the match at `at`, or 0. */
static size_t match(const od_tables *t, const od_automaton *automaton, od_text text, size_t at) {
    const uint16_t *transitions = t->transitions + automaton->transition;
    size_t columns = automaton->classes + 1, found = 0;
    const uint8_t *end = text.data + text.bytes;
    uint32_t state = OD_START;
    for (;;) {
        uint32_t bytes = 1, class = automaton->classes;
        if (at < text.bytes) {
            uint8_t byte = text.data[at];
            class = automaton->byte_classes[byte];
            if (byte >= 0x80 && !automaton->bytes_mode)
                class = od_property(t, automaton->map, od_character(text.data + at, end, &bytes));
        }
        uint32_t step = transitions[state * columns + class];
        if (step & OD_MATCH) found = at;
        state = step & (OD_MATCH - 1);
        if (state == OD_DEAD || at >= text.bytes) return found;
        at += bytes;
    }
}

static void split(cutter *cut, const od_automaton *automaton) {
    const od_tables *t = cut->encoder->tables;
    od_text text = cut->text;
    size_t at = 0, done = 0;
    while (at < text.bytes && !cut->encoder->failed) {
        size_t end = match(t, automaton, text, at);
        if (end == 0) {
            const uint8_t *here = text.data + at;
            uint32_t bytes = 1;
            if (!automaton->bytes_mode) od_character(here, text.data + text.bytes, &bytes);
            at += bytes;
            continue;
        }
        if (done < at) feed(cut, done, at, false);
        feed(cut, at, end, true);
        at = done = end;
    }
    if (done < text.bytes) feed(cut, done, text.bytes, false);
    flush(cut);
}

static bool starts_with(od_text text, od_text start) {
    return text.bytes >= start.bytes && memcmp(text.data, start.data, start.bytes) == 0;
}

/* `piece` with `prefix` before it, in the step's own memory. */
static od_text prefixed(od_encoder *encoder, od_text piece, od_text prefix, od_buffer *buffer) {
    if (!od_buffer_reserve(buffer, prefix.bytes + piece.bytes)) {
        encoder->failed = true;
        return (od_text){NULL, 0};
    }
    uint8_t *to = buffer->data;
    memcpy(to, prefix.data, prefix.bytes);
    memcpy(to + prefix.bytes, piece.data, piece.bytes);
    return (od_text){to, prefix.bytes + piece.bytes};
}

/* Do step number `number` and all that follow. At most OD_STEPS deep. */
static void run(od_encoder *encoder, size_t number, od_text piece, bool first) {
    const od_tables *t = encoder->tables;
    if (number == od_section_count(t, OD_SECTION_STEPS)) {
        od_merge_word(encoder, piece);
        return;
    }
    const od_step *step = &t->steps[number];
    if (step->kind == OD_STEP_SPLIT) {
        cutter cut = {.encoder = encoder, .next = number + 1, .text = piece, .first = first};
        cut.behavior = step->options & ~(uint32_t)OD_SPLIT_INVERT;
        cut.invert = (step->options & OD_SPLIT_INVERT) != 0;
        split(&cut, &t->automata[step->old]);
        return;
    }
    od_text old = od_table_text(t, step->old, step->old_bytes);
    od_text new = od_table_text(t, step->new, step->new_bytes);
    od_buffer *buffer = &encoder->scratch->pieces[number];
    if (step->kind == OD_STEP_REPLACE)
        piece = od_replace(encoder, piece, old, new, buffer);
    else if (!starts_with(piece, old) && (first || step->options == 0))
        piece = prefixed(encoder, piece, old, buffer);
    if (!encoder->failed) run(encoder, number + 1, piece, first);
}

void od_split(od_encoder *encoder, od_text text, bool first) {
    if (text.bytes > 0 && !encoder->failed) run(encoder, 0, text, first);
}
