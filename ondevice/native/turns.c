#include "turns.h"

enum { /* in tenths of a millisecond */
    FIRST_BUDGET = 20,
    LEAST_BUDGET = 5,
    OTHERS_RAN = 4, /* a nap that took longer was used by somebody */
    UNUSED_NAPS = 16,
};

void od_turns_open(od_turns *turns) {
    turns->opened = od_ticks();
    turns->opened_ns = od_now_ns();
}

static int64_t ticks_of_unit(const od_turns *turns) {
    double ticks = (double)(od_ticks() - turns->opened);
    return 1 + (int64_t)(ticks * 1e5 / (double)(1 + od_now_ns() - turns->opened_ns));
}

void od_turns_lost(od_turns *turns, int64_t began) {
    int64_t ran = began - turns->resumed;
    if (turns->budget == 0) {
        turns->unit = ticks_of_unit(turns);
        turns->budget = FIRST_BUDGET * turns->unit;
    } else if (ran < turns->budget) {
        int64_t least = LEAST_BUDGET * turns->unit;
        turns->budget = ran / 4 * 3 > least ? ran / 4 * 3 : least;
    }
    turns->resumed = od_ticks();
}

void od_turns_give_way(od_turns *turns) {
    const int64_t nap_ns = 50000;
    _Atomic uint32_t never = 0;
    int64_t began = od_ticks();
    od_futex_wait(&never, 0, nap_ns);
    turns->resumed = od_ticks();
    if (turns->resumed - began > OTHERS_RAN * turns->unit) {
        turns->budget += turns->budget / 32;
        turns->used++;
        turns->unused = 0;
    } else if (++turns->unused == UNUSED_NAPS) {
        turns->budget = turns->used = turns->unused = 0; /* nobody else wants the core */
    }
}

bool od_turns_established(od_turns *turns) {
    enum { A_WHILE = 8 };
    if (turns->budget == 0 || turns->used != A_WHILE) return false;
    turns->used++;
    return true;
}
