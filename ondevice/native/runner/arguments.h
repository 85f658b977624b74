/* What ondevice-run was asked for. */
#ifndef OD_RUNNER_ARGUMENTS_H
#define OD_RUNNER_ARGUMENTS_H

#include "ondevice.h"
#include "platform.h"

typedef struct od_arguments {
    const char *bundle;
    const char *logits; /* file, or NULL */
    const char *prompt; /* text, or NULL: tokens */
    int32_t *tokens;
    int32_t token_count;
    int32_t stop_tokens[OD_STOP_TOKENS];
    od_stop_string stop_strings[OD_STOP_STRINGS];
    od_sampling sampling;
    od_options options;
} od_arguments;

extern const char od_usage[];

/* Fill `to`; on failure *wrong is the argument that cannot be read, or NULL where one is missing. */
bool od_parse(int argc, char *const *argv, od_arguments *to, const char **wrong);

/* Numbers separated by commas and white space, up to the end of the text or `end`; how many, or -1
 * where there is anything else or no room. */
int32_t od_parse_list(const char *text, char end, int32_t *values, int32_t capacity);

size_t od_length(const char *text);

#endif
