/* The tokenizer's functions of ondevice.h. */
#include "message.h"
#include "tokenizer_decode.h"
#include "tokenizer_handles.h"

/* ---- open and close ---- */

static od_status fill(od_tokenizer_core *core, const void *data, int64_t bytes, od_error *error) {
    if ((uintptr_t)data % 8 != 0) {
        core->copy = od_reserve((size_t)bytes);
        if (core->copy == NULL)
            return od_fail(error, OD_MEMORY, "no memory for a tokenizer of %lld bytes",
                           (long long)bytes);
        core->copy_bytes = (size_t)bytes;
        memcpy(core->copy, data, (size_t)bytes);
        data = core->copy;
    }
    return od_tables_open(data, bytes, &core->tables, error);
}

od_status od_tokenizer_open(const void *data, int64_t bytes, od_tokenizer *tokenizer,
                            od_error *error) {
    if (data == NULL || bytes <= 0 || tokenizer == NULL)
        return od_fail(error, OD_INVALID, "no tokenizer to open");
    od_tokenizer_core *core = od_reserve(sizeof *core);
    if (core == NULL) return od_fail(error, OD_MEMORY, "no memory for a tokenizer");
    od_status status = fill(core, data, bytes, error);
    if (status == OD_OK) {
        core->piece_bytes = od_longest_piece(&core->tables);
        status = od_tokenizer_handle_new(core, tokenizer, error);
    }
    if (status != OD_OK) od_tokenizer_free(core);
    return status;
}

void od_tokenizer_free(od_tokenizer_core *core) {
    od_scratch_release(&core->scratch);
    if (core->copy != NULL) od_release(core->copy, core->copy_bytes);
    od_release(core, sizeof *core);
}

od_status od_tokenizer_close(od_tokenizer tokenizer, od_error *error) {
    return od_tokenizer_handle_close(tokenizer, error);
}

od_status od_tokenizer_describe(od_tokenizer tokenizer, od_tokenizer_info *info, od_error *error) {
    od_tokenizer_core *core = od_tokenizer_enter(tokenizer, error);
    if (core == NULL) return OD_CLOSED;
    *info = (od_tokenizer_info){core->tables.header->vocab_size, core->piece_bytes};
    od_tokenizer_leave(tokenizer);
    return OD_OK;
}

/* ---- encode ---- */

static void encode(od_encoder *encoder, od_text text, uint32_t flags) {
    const od_tables *t = encoder->tables;
    uint64_t before = od_section_count(t, OD_SECTION_PREFIX);
    uint64_t after = od_section_count(t, OD_SECTION_SUFFIX);
    if (!(flags & OD_ENCODE_SPECIAL)) before = after = 0;
    for (uint64_t i = 0; i < before; i++) od_emit(encoder, t->prefix[i]);
    od_encode_text(encoder, text);
    for (uint64_t i = 0; i < after; i++) od_emit(encoder, t->suffix[i]);
}

od_status od_encode_contents(od_tokenizer tokenizer, od_text text, const od_range *contents,
                             size_t content_count, uint32_t flags, int32_t *tokens,
                             int64_t capacity, int64_t *count, od_error *error) {
    od_tokenizer_core *core = od_tokenizer_enter(tokenizer, error);
    if (core == NULL) return OD_CLOSED;
    od_scratch own = {0};
    bool taken = atomic_exchange(&core->scratch_taken, 1) != 0;
    od_encoder encoder = {.tables = &core->tables, .scratch = taken ? &own : &core->scratch,
                          .contents = contents, .content_count = content_count};
    encode(&encoder, text, flags);
    if (!encoder.failed) {
        *count = (int64_t)encoder.token_count;
        size_t moved = *count < capacity ? encoder.token_count : (size_t)capacity;
        if (moved > 0) memcpy(tokens, encoder.scratch->tokens.data, moved * sizeof *tokens);
    }
    /* A long text's memory is not kept. */
    if (taken || text.bytes > 1 << 20) od_scratch_release(encoder.scratch);
    if (!taken) atomic_store(&core->scratch_taken, 0);
    od_tokenizer_leave(tokenizer);
    if (encoder.failed)
        return od_fail(error, OD_MEMORY, "no memory for the tokens of %lld bytes of text",
                       (long long)text.bytes);
    return OD_OK;
}

od_status od_encode(od_tokenizer tokenizer, const char *text, int64_t bytes, uint32_t flags,
                    int32_t *tokens, int64_t capacity, int64_t *count, od_error *error) {
    if ((text == NULL && bytes != 0) || bytes < 0 || capacity < 0 || count == NULL ||
        (tokens == NULL && capacity > 0))
        return od_fail(error, OD_INVALID, "no text to encode, or no room for its tokens");
    if (bytes > INT32_MAX / 4)
        return od_fail(error, OD_INVALID, "a text of %lld bytes; the most possible is %d",
                       (long long)bytes, INT32_MAX / 4);
    int64_t invalid = od_find_invalid((const uint8_t *)text, bytes);
    if (invalid >= 0)
        return od_fail(error, OD_INVALID, "the text is no UTF-8: its byte %lld is part of no "
                       "character", (long long)invalid);
    od_range all = {0, bytes};
    size_t contents = flags & OD_ENCODE_CONTENT ? 1 : 0;
    od_text whole = {(const uint8_t *)text, (size_t)bytes};
    return od_encode_contents(tokenizer, whole, &all, contents, flags, tokens, capacity, count,
                              error);
}

/* ---- decode ---- */

static od_status check_token(const od_tokenizer_core *core, int32_t token, od_error *error) {
    if (token >= 0 && token < core->tables.header->vocab_size) return OD_OK;
    return od_fail(error, OD_INVALID, "token %d; this tokenizer has tokens 0 to %d", token,
                   core->tables.header->vocab_size - 1);
}

od_status od_decode(od_tokenizer tokenizer, const int32_t *tokens, int64_t n, uint32_t flags,
                    char *text, int64_t capacity, int64_t *bytes, od_error *error) {
    if ((tokens == NULL && n != 0) || n < 0 || capacity < 0 || bytes == NULL ||
        (text == NULL && capacity > 0))
        return od_fail(error, OD_INVALID, "no tokens to decode, or no room for their text");
    od_tokenizer_core *core = od_tokenizer_enter(tokenizer, error);
    if (core == NULL) return OD_CLOSED;
    od_status status = OD_OK;
    for (int64_t i = 0; i < n && status == OD_OK; i++) status = check_token(core, tokens[i], error);
    if (status == OD_OK) {
        od_text_stream stream;
        od_sink sink = {text, capacity, 0};
        od_decode_begin(&core->tables, flags, &stream);
        for (int64_t i = 0; i < n; i++) od_decode_token(&core->tables, &stream, tokens[i], &sink);
        od_decode_end(&core->tables, &stream, &sink);
        *bytes = sink.bytes;
    }
    od_tokenizer_leave(tokenizer);
    return status;
}

od_status od_text_stream_open(od_tokenizer tokenizer, uint32_t flags, od_text_stream *stream,
                              od_error *error) {
    od_tokenizer_core *core = od_tokenizer_enter(tokenizer, error);
    if (core == NULL) return OD_CLOSED;
    od_decode_begin(&core->tables, flags, stream);
    stream->tokenizer = tokenizer;
    od_tokenizer_leave(tokenizer);
    return OD_OK;
}

/* Add a token, or end the text where `token` is NULL. */
static od_status advance(od_text_stream *stream, const int32_t *token, char *text,
                         int64_t capacity, int64_t *bytes, od_error *error) {
    if (stream->held >= sizeof stream->bytes || text == NULL || bytes == NULL)
        return od_fail(error, OD_INVALID, "not a stream that od_text_stream_open has opened");
    od_tokenizer_core *core = od_tokenizer_enter(stream->tokenizer, error);
    if (core == NULL) return OD_CLOSED;
    od_status status = token == NULL ? OD_OK : check_token(core, *token, error);
    if (status == OD_OK && capacity < core->piece_bytes)
        status = od_fail(error, OD_INVALID, "room for %lld bytes; a piece may have %d",
                         (long long)capacity, core->piece_bytes);
    if (status == OD_OK) {
        od_sink sink = {text, capacity, 0};
        if (token != NULL) od_decode_token(&core->tables, stream, *token, &sink);
        else od_decode_end(&core->tables, stream, &sink);
        *bytes = sink.bytes;
    }
    od_tokenizer_leave(stream->tokenizer);
    return status;
}

od_status od_text_stream_add(od_text_stream *stream, int32_t token, char *text, int64_t capacity,
                             int64_t *bytes, od_error *error) {
    return advance(stream, &token, text, capacity, bytes, error);
}

od_status od_text_stream_finish(od_text_stream *stream, char *text, int64_t capacity,
                                int64_t *bytes, od_error *error) {
    return advance(stream, NULL, text, capacity, bytes, error);
}
