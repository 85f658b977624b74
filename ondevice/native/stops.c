#include "stops.h"

#include "platform.h"

/* The length of the longest start of `stop` that ends with `byte`, `matched` bytes before it. */
static int32_t advance(const od_stop *stop, int32_t matched, char byte) {
    while (matched > 0 && stop->text[matched] != byte) matched = stop->fallback[matched - 1];
    return matched + (stop->text[matched] == byte);
}

static void open_stop(od_stop *stop, const od_stop_string *string) {
    stop->bytes = string->bytes;
    stop->matched = 0;
    memcpy(stop->text, string->text, (size_t)string->bytes);
    stop->fallback[0] = 0;
    for (int32_t i = 1; i < stop->bytes; i++)
        stop->fallback[i] = (uint16_t)advance(stop, stop->fallback[i - 1], stop->text[i]);
}

void od_stops_open(od_stops *stops, const od_stop_string *strings, int32_t count) {
    stops->count = count;
    for (int32_t i = 0; i < count; i++) open_stop(&stops->stops[i], &strings[i]);
}

int32_t od_stops_add(od_stops *stops, char byte) {
    int32_t longest = 0;
    for (int32_t i = 0; i < stops->count; i++) {
        od_stop *stop = &stops->stops[i];
        stop->matched = advance(stop, stop->matched, byte);
        if (stop->matched == stop->bytes && stop->bytes > longest) longest = stop->bytes;
    }
    return longest;
}

int32_t od_stops_held(const od_stops *stops) {
    int32_t held = 0;
    for (int32_t i = 0; i < stops->count; i++)
        if (stops->stops[i].matched > held) held = stops->stops[i].matched;
    return held;
}
