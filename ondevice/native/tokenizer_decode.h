/* Inside the decoder: tokens to text, one at a time. */
#ifndef OD_TOKENIZER_DECODE_H
#define OD_TOKENIZER_DECODE_H

#include "tokenizer.h"

/* Where text goes; bytes beyond the capacity are only counted. */
typedef struct od_sink {
    char *text;
    int64_t capacity;
    int64_t bytes;
} od_sink;

void od_decode_begin(const od_tables *tables, uint32_t flags, od_text_stream *stream);
/* `token` is one of the vocabulary. */
void od_decode_token(const od_tables *tables, od_text_stream *stream, int32_t token, od_sink *sink);
void od_decode_end(const od_tables *tables, od_text_stream *stream, od_sink *sink);
/* The most bytes that one of the above can write. */
int32_t od_longest_piece(const od_tables *tables);

#endif
