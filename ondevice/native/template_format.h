/* The file of a compiled chat template, as ondevice/tokenizer/template_file.py writes it: a header,
 * rows, endings, conflicts, then the text that they refer to as (offset, bytes). Little-endian. */
#ifndef OD_TEMPLATE_FORMAT_H
#define OD_TEMPLATE_FORMAT_H

#include <stdint.h>

#define OD_TEMPLATE_MAGIC "ODCHATTP"
#define OD_TEMPLATE_VERSION 1

enum { OD_ROLES = 4, OD_NO_ROLE = OD_ROLES }; /* system, user, assistant, tool; before the first */
enum { OD_LAST = 1, OD_USER_BEFORE = 2, OD_USER_AFTER = 4, OD_CONTEXTS = 8 };
enum { OD_ROWS = (OD_ROLES + 1) * OD_ROLES * OD_CONTEXTS, OD_ENDINGS = OD_ROLES * 4 };
enum { OD_PRESENT = 1, OD_NO_BLANK = 2, OD_REFUSE_MARKER = 4 };
enum { OD_STRIP_LEFT = 1, OD_STRIP_RIGHT = 2, OD_STRIP_NEWLINES = 4 };
enum { OD_DATE = 0xff }; /* in text, around a strftime format */

typedef struct od_template_header {
    char magic[8];
    uint32_t version;
    uint32_t bytes;     /* of the file */
    uint32_t modes;     /* 2 where answers without thinking have rows of their own, else 1 */
    uint32_t conflicts;
    uint32_t text_bytes;
    uint32_t reserved;
} od_template_header;

/* [mode][previous role][role][context]: the text before a message, and what becomes of it. */
typedef struct od_row {
    uint32_t before, before_bytes;
    uint32_t marker, marker_bytes; /* only what follows the last one is kept */
    uint16_t flags;
    uint16_t strip;        /* of the content */
    uint16_t strip_marked; /* of what follows the marker, before that */
    uint16_t reserved;
} od_row;

/* [mode][last role][a user has spoken][generate] */
typedef struct od_ending {
    uint32_t text, text_bytes;
    uint32_t present;
} od_ending;

/* Contents of one group that have no place in one conversation when all of them occur. */
typedef struct od_conflict {
    uint32_t text, text_bytes;
    uint32_t role;
    uint32_t group;
} od_conflict;

#endif
