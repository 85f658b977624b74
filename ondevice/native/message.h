/* Error messages: one sentence with the numbers that matter. */
#ifndef OD_MESSAGE_H
#define OD_MESSAGE_H

#include "ondevice.h"

/* Write a message (%d, %lld and %s only) where `error` is not NULL, and return `status`. */
__attribute__((format(printf, 3, 4))) od_status od_fail(od_error *error, od_status status,
                                                        const char *format, ...);

#endif
