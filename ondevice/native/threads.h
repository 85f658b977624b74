/* Workers that walk a list of work together. They know nothing of models. */
#ifndef OD_THREADS_H
#define OD_THREADS_H

#include "model.h"
#include "platform.h"
#include "profile.h"

#define OD_MAX_THREADS 128

/* Tasks [0, tasks) of one kernel, claimed `chunk` at a time. A line of its own, for `next`. */
typedef struct od_work {
    _Alignas(64) _Atomic uint32_t next; /* the next chunk to claim */
    uint32_t chunks;
    uint32_t chunks_before; /* of all earlier work */
    uint32_t chunks_until;  /* of all work up to the next barrier */
    int32_t tasks;
    int32_t chunk;
    int32_t launch; /* as profiles call it */
    bool barrier;   /* all earlier work must have finished */
    od_kernel kernel;
    void *const *buffers;
    const int32_t *scalars;
} od_work;

typedef struct od_threads od_threads;

/* `count` workers of which the caller of od_threads_run is one; NULL where the system refuses. */
od_threads *od_threads_open(int32_t count, int64_t scratch_bytes);
void od_threads_close(od_threads *threads);

/* Count what lists of work take from now on; NULL: do not. Nothing runs meanwhile. */
void od_threads_profile(od_threads *threads, od_profile *profile);

/* Run `work` (next, chunks, chunks_before and chunks_until are filled in here) to the end. */
void od_threads_run(od_threads *threads, od_work *work, int32_t count);

#endif
