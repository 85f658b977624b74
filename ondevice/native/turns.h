/* Giving way in time. Where other programs use a worker's core too, the system takes it away in the
 * middle of a kernel, and all others wait for that piece. A worker that this happens to learns how
 * long it may run, and sleeps for a moment before that is over and while it holds nothing. */
#ifndef OD_TURNS_H
#define OD_TURNS_H

#include "platform.h"

typedef struct od_turns { /* of one worker; times by od_ticks */
    int64_t budget;  /* how long it runs at a time; 0: the core is its own */
    int64_t resumed; /* when it last got the core back */
    int64_t unit;    /* ticks of a tenth of a millisecond */
    int64_t opened;
    int64_t opened_ns;
    int32_t used;   /* naps that others have used */
    int32_t unused; /* those in a row that nobody used */
} od_turns;

void od_turns_open(od_turns *turns);

/* What it began at `began` was finished late, and others had to wait for it. */
void od_turns_lost(od_turns *turns, int64_t began);

/* Sleep for a moment. */
void od_turns_give_way(od_turns *turns);

/* Whether it is time to; asked where the worker holds nothing. */
static inline bool od_turns_due(const od_turns *turns) {
    return turns->budget != 0 && od_ticks() - turns->resumed > turns->budget;
}

/* Whether somebody else has used the core for a while; true once. */
bool od_turns_established(od_turns *turns);


#endif
