/* Stop strings in text that comes byte by byte, however it is cut into tokens (Knuth, Morris and
 * Pratt 1977). */
#ifndef OD_STOPS_H
#define OD_STOPS_H

#include <stdint.h>

#include "ondevice.h"

typedef struct od_stop {
    int32_t bytes;
    int32_t matched; /* of them, at the end of the text so far */
    uint16_t fallback[OD_STOP_STRING_BYTES]; /* what stays matched where the next byte differs */
    char text[OD_STOP_STRING_BYTES];
} od_stop;

typedef struct od_stops {
    int32_t count;
    od_stop stops[OD_STOP_STRINGS];
} od_stops;

void od_stops_open(od_stops *stops, const od_stop_string *strings, int32_t count);
/* The length of the longest stop string that ends with this byte of the text; 0: none does. */
int32_t od_stops_add(od_stops *stops, char byte);
/* How many bytes at the end of the text may be the start of a stop string. */
int32_t od_stops_held(const od_stops *stops);

#endif
