/* Every worker walks the whole list. Chunks are claimed from a counter of each work, so a slow core
 * takes fewer; what a barrier waits for is finished chunks, not arriving workers, so a worker that
 * the system has put aside delays nobody unless it holds a chunk. */
#include "threads.h"

typedef struct worker {
    od_threads *threads;
    int32_t number;
    od_thread thread;
    void *scratch;
} worker;

/* The gate tells workers of a list to walk: how many are inside, whether it is open, its number. */
#define GATE_INSIDE 0xffU
#define GATE_OPEN 0x100U
#define GATE_NUMBER 0x200U

struct od_threads {
    od_event gate;
    od_event done; /* chunks finished of the current list */
    _Atomic bool closing;
    od_work *work;
    int32_t work_count;
    int32_t count;
    int32_t spins;
    od_profile *profile;
    size_t scratch_bytes;
    uint8_t *scratch;
    worker workers[OD_MAX_THREADS];
};

static void wait_until_done(od_threads *threads, uint32_t chunks) {
    uint32_t done;
    while ((done = atomic_load_explicit(&threads->done.value, memory_order_acquire)) < chunks)
        od_event_wait(&threads->done, done, threads->spins, -1);
}

/* Returns how many this worker has run. */
static int64_t run_chunks(od_threads *threads, od_work *work, void *scratch) {
    uint32_t claimed;
    int64_t count = 0;
    while ((claimed = atomic_fetch_add_explicit(&work->next, 1, memory_order_relaxed)) <
           work->chunks) {
        int32_t begin = (int32_t)claimed * work->chunk;
        int32_t left = work->tasks - begin;
        int32_t end = begin + (left < work->chunk ? left : work->chunk);
        work->kernel(work->buffers, work->scalars, begin, end, scratch);
        if (atomic_fetch_add(&threads->done.value, 1) + 1 == work->chunks_until)
            od_event_wake(&threads->done);
        count++;
    }
    return count;
}

static void walk_measured(od_threads *threads, const worker *self) {
    int64_t now = od_ticks();
    for (int32_t i = 0; i < threads->work_count; i++) {
        od_work *work = &threads->work[i];
        od_run run = {.launch = work->launch, .worker = self->number,
                      .arrived = now, .begin = now};
        if (work->barrier) {
            wait_until_done(threads, work->chunks_before);
            run.begin = od_ticks();
        }
        run.chunks = run_chunks(threads, work, self->scratch);
        now = run.end = od_ticks();
        od_profile_add(threads->profile, &run);
    }
}

static void walk(od_threads *threads, const worker *self) {
    if (threads->profile != NULL) {
        walk_measured(threads, self);
        return;
    }
    for (int32_t i = 0; i < threads->work_count; i++) {
        od_work *work = &threads->work[i];
        if (work->barrier) wait_until_done(threads, work->chunks_before);
        run_chunks(threads, work, self->scratch);
    }
}

static void worker_main(void *argument) {
    worker *self = argument;
    od_threads *threads = self->threads;
    uint32_t walked = 0; /* number of the last list */
    for (;;) {
        uint32_t gate = atomic_load(&threads->gate.value);
        if (atomic_load(&threads->closing)) return;
        uint32_t number = gate / GATE_NUMBER;
        if ((gate & GATE_OPEN) == 0 || number == walked) {
            od_event_wait(&threads->gate, gate, threads->spins, -1);
        } else if (atomic_compare_exchange_weak(&threads->gate.value, &gate, gate + 1)) {
            walked = number;
            walk(threads, self);
            uint32_t before = atomic_fetch_sub(&threads->gate.value, 1);
            if ((before & (GATE_OPEN | GATE_INSIDE)) == 1) od_event_wake(&threads->gate);
        }
    }
}

/* Count chunks up to every barrier. */
static uint32_t prepare(od_work *work, int32_t count) {
    uint32_t total = 0;
    int32_t group = 0;
    for (int32_t i = 0; i < count; i++) {
        work[i].chunks = (uint32_t)((work[i].tasks - 1) / work[i].chunk + 1);
        if (work[i].tasks <= 0) work[i].chunks = 0;
        atomic_store_explicit(&work[i].next, 0, memory_order_relaxed);
        if (work[i].barrier)
            for (; group < i; group++) work[group].chunks_until = total;
        work[i].chunks_before = total;
        total += work[i].chunks;
    }
    for (; group < count; group++) work[group].chunks_until = total;
    return total;
}

void od_threads_run(od_threads *threads, od_work *work, int32_t count) {
    uint32_t total = prepare(work, count);
    threads->work = work;
    threads->work_count = count;
    atomic_store(&threads->done.value, 0);
    /* Nobody is inside a closed gate, so this may simply be stored over. */
    uint32_t number = atomic_load(&threads->gate.value) / GATE_NUMBER + 1;
    atomic_store(&threads->gate.value, number * GATE_NUMBER | GATE_OPEN);
    od_event_wake(&threads->gate);
    walk(threads, &threads->workers[0]);
    wait_until_done(threads, total);
    atomic_fetch_and(&threads->gate.value, ~GATE_OPEN);
    uint32_t gate;
    while (((gate = atomic_load(&threads->gate.value)) & GATE_INSIDE) != 0)
        od_event_wait(&threads->gate, gate, threads->spins, -1);
}

od_threads *od_threads_open(int32_t count, int64_t scratch_bytes) {
    od_threads *threads = od_reserve(sizeof *threads);
    if (threads == NULL) return NULL;
    /* With more threads than cores, who spins keeps a core from who has the work. */
    threads->spins = count <= od_core_count() ? 2000 : 0;
    size_t stride = ((size_t)scratch_bytes + 4095) / 4096 * 4096 + 64;
    threads->scratch_bytes = stride * (size_t)count;
    threads->scratch = od_reserve(threads->scratch_bytes);
    bool ok = threads->scratch != NULL;
    while (ok && threads->count < count) {
        worker *next = &threads->workers[threads->count];
        next->threads = threads;
        next->number = threads->count;
        next->scratch = threads->scratch + stride * (size_t)threads->count;
        ok = threads->count == 0 || od_thread_start(&next->thread, worker_main, next);
        if (ok) threads->count++;
    }
    if (ok) return threads;
    od_threads_close(threads);
    return NULL;
}

void od_threads_profile(od_threads *threads, od_profile *profile) { threads->profile = profile; }

void od_threads_close(od_threads *threads) {
    if (threads == NULL) return;
    atomic_store(&threads->closing, true);
    atomic_fetch_add(&threads->gate.value, GATE_NUMBER);
    od_event_wake(&threads->gate);
    for (int32_t i = 1; i < threads->count; i++) od_thread_join(threads->workers[i].thread);
    od_release(threads->scratch, threads->scratch_bytes);
    od_release(threads, sizeof *threads);
}
