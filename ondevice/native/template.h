/* Inside chat templates: the table, and the prompt that is being written. */
#ifndef OD_TEMPLATE_H
#define OD_TEMPLATE_H

#include "template_format.h"
#include "tokenizer_handles.h"

typedef struct od_template {
    od_template_header header;
    const uint8_t *rows, *endings, *conflicts, *text;
} od_template;

/* Bytes beyond the capacity are only counted. */
typedef struct od_prompt {
    char *text;
    int64_t capacity;
    int64_t bytes;
    int64_t local_time;  /* seconds since 1970 on the local clock */
    od_range *contents;  /* [messages] where each content lies, or NULL */
} od_prompt;

od_status od_template_write(const void *data, int64_t bytes, const od_message *messages, int32_t n,
                            uint32_t flags, od_prompt *prompt, od_error *error);

/* template_date.c: what strftime writes for `form` in the C locale. */
void od_write_date(od_prompt *prompt, const uint8_t *form, size_t bytes);

#endif
