#include "streaming.h"

#define MIB (INT64_C(1) << 20)
#define SEGMENT (2 * MIB) /* read or given back at once */
#define AHEAD (32 * MIB)  /* read before the step gets there */
#define MARGIN (3 * AHEAD) /* of what memory seems to have room for, not used */
#define GROWTH (8 * MIB)

enum { SHORT_STEPS = 3, SHORT_STEPS_STREAMING = 8, CALM_STEPS = 32 };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- the thread ---- */

/* How far the thread is in the part that is streamed, in one step. */
typedef struct progress {
    uint32_t step;
    int64_t asked; /* all before has been read ahead */
    int64_t given; /* all before has been given back */
} progress;

static void give_back(const od_streaming *s, progress *now, int64_t end) {
    for (; now->given + SEGMENT <= end; now->given += SEGMENT)
        od_give_back(s->weights + now->given, (size_t)SEGMENT);
}

static void follow(const od_streaming *s, progress *now, uint32_t step) {
    int64_t first = atomic_load(&s->first), place = atomic_load(&s->place);
    if (step != now->step) {
        give_back(s, now, now->asked);
        *now = (progress){step, first, first};
    }
    int64_t end = least(s->bytes, (place > first ? place : first) + AHEAD);
    for (; now->asked < end; now->asked += SEGMENT)
        od_read_ahead(s->weights + now->asked, (size_t)least(SEGMENT, s->bytes - now->asked));
    give_back(s, now, place - SEGMENT); /* another worker may be a little behind */
}

static void stream(void *argument) {
    const int64_t look_ns = 1000000;
    od_streaming *s = argument;
    _Atomic uint32_t never = 0;
    progress now = {0, s->bytes, s->bytes};
    while (!atomic_load(&s->closing)) {
        uint32_t step = atomic_load(&s->steps.value);
        follow(s, &now, step);
        if (atomic_load(&s->running)) od_futex_wait(&never, 0, look_ns);
        else od_event_wait(&s->steps, step, 0, -1);
    }
}

/* ---- how much ---- */

void od_streaming_open(od_streaming *s, const uint8_t *weights, int64_t bytes) {
    *s = (od_streaming){.weights = weights, .bytes = bytes, .first = bytes, .most = bytes};
    s->read_bytes = od_bytes_read();
}

void od_streaming_close(od_streaming *s) {
    if (!s->started) return;
    atomic_store(&s->closing, true);
    od_event_advance(&s->steps);
    od_thread_join(s->thread);
}

/* Bytes of the weights that are in memory, from a sample. */
static int64_t count_resident(const od_streaming *s) {
    int64_t count = 0;
    for (int64_t at = 0; at < s->bytes; at += OD_LARGEST_PAGE)
        count += od_is_resident(s->weights + at);
    return count * OD_LARGEST_PAGE;
}

static void keep(od_streaming *s, int64_t first) {
    if (first < 0) first = 0;
    atomic_store(&s->first, least(first / SEGMENT * SEGMENT, s->bytes));
}

/* A step has read `missing` bytes more than it should, as some before it did. */
static void keep_less(od_streaming *s, int64_t missing) {
    s->most = atomic_load(&s->first);
    if (s->started) {
        keep(s, s->most - missing / 2);
    } else {
        s->started = od_thread_start(&s->thread, stream, s);
        if (s->started) keep(s, s->bytes - (missing - count_resident(s) + MARGIN));
    }
}

void od_streaming_begin(od_streaming *s) {
    if (!s->started) return;
    atomic_store(&s->place, 0);
    atomic_store(&s->running, true);
    od_event_advance(&s->steps);
}

void od_streaming_end(od_streaming *s) {
    int64_t first = atomic_load(&s->first), read_before = s->read_bytes;
    atomic_store(&s->running, false);
    s->read_bytes = od_bytes_read();
    int64_t missing = s->read_bytes - read_before - (s->bytes - first);
    bool is_short = missing > s->bytes / 32;
    s->short_steps = is_short ? s->short_steps + 1 : 0;
    s->calm_steps = is_short ? 0 : s->calm_steps + 1;
    if (s->short_steps == (s->started ? SHORT_STEPS_STREAMING : SHORT_STEPS)) {
        s->short_steps = 0;
        keep_less(s, missing);
    } else if (s->calm_steps == CALM_STEPS) {
        s->calm_steps = 0;
        if (first + GROWTH < s->most) keep(s, first + GROWTH);
    }
}
