/* Normalizers: text before a text, and text in place of text. Composition has its own file. */
#include "tokenizer.h"

static od_text prepend(od_encoder *encoder, od_text text, od_text added, od_buffer *buffer) {
    if (text.bytes == 0) return text;
    if (!od_buffer_reserve(buffer, added.bytes + text.bytes)) {
        encoder->failed = true;
        return (od_text){NULL, 0};
    }
    uint8_t *to = buffer->data;
    memcpy(to, added.data, added.bytes);
    memcpy(to + added.bytes, text.data, text.bytes);
    return (od_text){to, added.bytes + text.bytes};
}

/* The place of `old` in `text` from `from` on; the end if it is not there. */
static size_t find(od_text text, od_text old, size_t from) {
    for (; from + old.bytes <= text.bytes; from++)
        if (text.data[from] == old.data[0] &&
            memcmp(text.data + from, old.data, old.bytes) == 0) return from;
    return text.bytes;
}

od_text od_replace(od_encoder *encoder, od_text text, od_text old, od_text new, od_buffer *buffer) {
    size_t times = 0;
    for (size_t at = find(text, old, 0); at < text.bytes; at = find(text, old, at + old.bytes))
        times++;
    if (times == 0) return text;
    size_t bytes = text.bytes - times * old.bytes + times * new.bytes;
    if (!od_buffer_reserve(buffer, bytes + 1)) {
        encoder->failed = true;
        return (od_text){NULL, 0};
    }
    uint8_t *to = buffer->data;
    for (size_t from = 0; from < text.bytes;) {
        size_t at = find(text, old, from);
        memcpy(to, text.data + from, at - from);
        to += at - from;
        from = at;
        if (at == text.bytes) break;
        memcpy(to, new.data, new.bytes);
        to += new.bytes;
        from += old.bytes;
    }
    return (od_text){buffer->data, bytes};
}

od_text od_normalize(od_encoder *encoder, od_text text) {
    const od_tables *t = encoder->tables;
    uint64_t count = od_section_count(t, OD_SECTION_NORMALIZERS);
    for (uint64_t i = 0; i < count && !encoder->failed; i++) {
        const od_normalizer *step = &t->normalizers[i];
        od_text old = od_table_text(t, step->old, step->old_bytes);
        od_text new = od_table_text(t, step->new, step->new_bytes);
        /* The buffer that the text does not lie in. */
        bool in_first = text.data != NULL && text.data == encoder->scratch->normalized[0].data;
        od_buffer *buffer = &encoder->scratch->normalized[in_first ? 1 : 0];
        if (step->kind == OD_NORMALIZE_PREPEND) text = prepend(encoder, text, old, buffer);
        else if (step->kind == OD_NORMALIZE_REPLACE)
            text = od_replace(encoder, text, old, new, buffer);
        else text = od_compose(encoder, text, buffer);
    }
    return text;
}
