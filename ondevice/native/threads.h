/* Workers that walk a list of work together. They know nothing of models. */
#ifndef OD_THREADS_H
#define OD_THREADS_H

#include "model.h"
#include "platform.h"
#include "profile.h"

#define OD_MAX_THREADS 128
#define OD_MAX_CHAINED 7
#define OD_MAX_BUFFERS 32

/* Tasks [0, tasks) of one kernel, claimed in multiples of `chunk`.
 *
 * The `chained` works behind it are claimed with it: who claims tasks runs these of all of them, one
 * work after the other. Work that is `each` is run whole by every worker on its way and writes to
 * the worker's scratch: where bit i of `own` is set, buffers[i] is an offset in it. A worker that
 * comes late may read what is already overwritten, but then nothing is left for it to claim, up to
 * the next barrier, and nobody sees what it makes of that. */
typedef struct od_work {
    int32_t tasks;
    int32_t chunk;
    int32_t launch; /* as profiles call it */
    bool barrier;   /* all earlier work must have finished */
    bool each;
    uint8_t chained;
    uint8_t buffer_count;
    uint32_t own;
    od_kernel kernel;
    void *const *buffers;
    const int32_t *scalars;
    int64_t place; /* of its weights; negative: it has none */
    /* Filled in by od_threads_prepare. Each worker has `share` chunks, and `extra` of them, from
     * number `first_extra` on, one more. */
    uint32_t chunks_before; /* of all earlier work */
    uint32_t share;
    uint32_t extra;
    uint32_t first_extra;
} od_work;

typedef struct od_threads od_threads;

/* `count` workers of which the caller of od_threads_run is one; NULL where the system refuses. */
od_threads *od_threads_open(int32_t count, int64_t scratch_bytes);
void od_threads_close(od_threads *threads);

/* The calling thread, which will call od_threads_run, gets a core of its own like all workers where
 * there are as many cores. Workers that are where the system likes them end up on one core, side by
 * side, when somebody else is busy on the other. */
void od_threads_enter(od_threads *threads);

/* Where the first worker is in the weights is written to *place from now on. */
void od_threads_watch(od_threads *threads, _Atomic int64_t *place);

/* Count what lists of work take from now on; NULL: do not. Nothing runs meanwhile. */
void od_threads_profile(od_threads *threads, od_profile *profile);

/* Wait until no worker looks at a list that has run: before one is changed. */
void od_threads_settle(od_threads *threads);

/* Divide a list of work among the workers; once, for as many runs as there are. */
void od_threads_prepare(const od_threads *threads, od_work *work, int32_t count);

/* Run a prepared list of less than 65536 to the end. Workers may look at it for longer. */
void od_threads_run(od_threads *threads, const od_work *work, int32_t count);

#endif
