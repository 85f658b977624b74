/* Where the time of steps goes. Each worker counts for itself, so counting delays nobody. */
#ifndef OD_PROFILE_H
#define OD_PROFILE_H

#include "ondevice.h"
#include "platform.h"

typedef struct od_profile od_profile;

/* What one worker does for one launch in one step; times by od_ticks. */
typedef struct od_run {
    int32_t launch;
    int32_t worker;
    bool stolen; /* of another's share, while this worker waited at a later launch */
    int64_t chunks;
    int64_t arrived;
    int64_t begin;
    int64_t end;
} od_run;

/* All zero; NULL where the system refuses the memory. */
od_profile *od_profile_open(int32_t workers, int32_t launches, int32_t events);
void od_profile_close(od_profile *profile);

/* Count one run, and keep it while there is room: the oldest make way. */
void od_profile_add(od_profile *profile, const od_run *run);

#endif
