#include "message.h"

#include <stdarg.h>
#include <stddef.h>

typedef struct writer {
    char *next;
    char *end;
} writer;

static void put_text(writer *out, const char *text) {
    while (*text != '\0' && out->next < out->end) *out->next++ = *text++;
}

static void put_number(writer *out, long long value) {
    char digits[24];
    char *first = digits + sizeof digits - 1;
    unsigned long long rest = value < 0 ? 0 - (unsigned long long)value : (unsigned long long)value;
    *first = '\0';
    do {
        *--first = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest != 0);
    if (value < 0) *--first = '-';
    put_text(out, first);
}

static void put_formatted(writer *out, const char *format, va_list values) {
    for (; *format != '\0'; format++) {
        const char one[2] = {*format, '\0'};
        if (*format != '%') {
            put_text(out, one);
        } else if (*++format == 's') {
            put_text(out, va_arg(values, const char *));
        } else if (*format == 'd') {
            put_number(out, va_arg(values, int));
        } else {
            format += 2; /* lld */
            put_number(out, va_arg(values, long long));
        }
    }
}

od_status od_fail(od_error *error, od_status status, const char *format, ...) {
    if (error == NULL) return status;
    writer out = {error->text, error->text + sizeof error->text - 1};
    va_list values;
    va_start(values, format);
    put_formatted(&out, format, values);
    va_end(values);
    *out.next = '\0';
    return status;
}

const char *od_status_name(od_status status) {
    switch (status) {
        case OD_OK: return "ok";
        case OD_TIMEOUT: return "timeout";
        case OD_STOP: return "stopped";
        case OD_LENGTH: return "max_tokens reached";
        case OD_CANCELLED: return "cancelled";
        case OD_CONTEXT_FULL: return "context full";
        case OD_KV_FULL: return "KV cache full";
        case OD_EXPIRED: return "time is over";
        case OD_INVALID: return "invalid argument";
        case OD_BUSY: return "busy";
        case OD_CLOSED: return "closed";
        case OD_FORKED: return "used after fork";
        case OD_MEMORY: return "out of memory";
        case OD_MODEL: return "model refused";
        case OD_WEIGHTS: return "weights refused";
        case OD_CPU: return "CPU not supported";
        case OD_NUMERIC: return "not a number";
        case OD_FILE: return "saved conversation refused";
        default: return "unknown status";
    }
}

uint32_t od_version(void) { return OD_API_VERSION; }
