/* An open tokenizer, and how calls enter and leave it. */
#ifndef OD_TOKENIZER_HANDLES_H
#define OD_TOKENIZER_HANDLES_H

#include "tokenizer.h"

typedef struct od_tokenizer_core {
    od_tables tables;
    void *copy; /* of data that was not aligned, or NULL */
    size_t copy_bytes;
    int32_t piece_bytes;
    _Atomic uint32_t scratch_taken;
    od_scratch scratch; /* kept for the next call; a second call at the same time brings its own */
} od_tokenizer_core;

od_status od_tokenizer_handle_new(od_tokenizer_core *core, od_tokenizer *handle, od_error *error);
/* Refuse new calls; the last one inside frees the tokenizer. */
od_status od_tokenizer_handle_close(od_tokenizer handle, od_error *error);
/* The tokenizer, until od_tokenizer_leave; NULL and a message where it is closed. */
od_tokenizer_core *od_tokenizer_enter(od_tokenizer handle, od_error *error);
void od_tokenizer_leave(od_tokenizer handle);

/* tokenizer.c */
void od_tokenizer_free(od_tokenizer_core *core);

/* Encode the text with these contents (in order, not overlapping) as user's text. The tokens are
 * moved to `tokens`, as od_encode does. */
od_status od_encode_contents(od_tokenizer tokenizer, od_text text, const od_range *contents,
                             size_t content_count, uint32_t flags, int32_t *tokens,
                             int64_t capacity, int64_t *count, od_error *error);

#endif
