/* Every worker walks the whole list and has a share of each work that it claims bit by bit. Who has
 * to wait takes from the shares of others, so a slow core does less; what a barrier waits for is
 * finished chunks, not arriving workers, so a worker that the system has put aside delays nobody
 * unless it is inside a kernel.
 *
 * While all keep pace nobody writes to a line that others write to: a claim is an atomic operation
 * on a line of the worker's own, and what it has finished is told by a plain store. */
#include "threads.h"

enum {
    LINE_BYTES = 128,       /* lines are fetched in pairs */
    SPINS = 4000,           /* before a sleep, which costs more than most waits */
    PATIENCE = 16,          /* spins before looking for others' work: a bit late is not slow */
    PARTS = 8,              /* a claim takes at most this part of what is left */
    LONGEST_SLEEP_NS = 500000,
};

typedef struct worker {
    _Alignas(LINE_BYTES) _Atomic uint64_t cursor; /* what is left of its shares: see claim */
    _Alignas(LINE_BYTES) _Atomic uint32_t finished; /* chunks that it has run, from any share */
    _Alignas(LINE_BYTES) od_threads *threads;
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
    _Alignas(LINE_BYTES) od_event done; /* advanced for those that sleep at a barrier */
    _Alignas(LINE_BYTES) _Atomic bool closing;
    const od_work *work;
    int32_t work_count;
    uint32_t chunks; /* of the whole list */
    int32_t count;
    int32_t spins;
    od_profile *profile;
    size_t scratch_bytes;
    uint8_t *scratch;
    worker workers[OD_MAX_THREADS];
};

/* ---- claims ---- */

/* Chunks of one work that one worker runs. */
typedef struct piece {
    const od_work *work;
    uint32_t first;
    uint32_t count;
} piece;

/* The share of worker `number`. */
static piece share_of(const od_threads *threads, const od_work *work, int32_t number) {
    uint32_t place = (uint32_t)number, workers = (uint32_t)threads->count;
    place = place >= work->first_extra ? place - work->first_extra
                                       : place + workers - work->first_extra;
    uint32_t extra = place < work->extra ? place : work->extra;
    return (piece){work, place * work->share + extra, work->share + (place < work->extra)};
}

/* Claim some of what is left of a worker's shares in the works before `end`. The cursor has the
 * number of a work in its upper half, and how much of that share is taken in the lower. */
static bool claim(const od_threads *threads, worker *owner, int32_t end, piece *claimed) {
    uint64_t cursor = atomic_load_explicit(&owner->cursor, memory_order_relaxed), next;
    do {
        int32_t i = (int32_t)(cursor >> 32);
        uint32_t taken = (uint32_t)cursor;
        for (;; i++, taken = 0) {
            if (i >= end) return false;
            *claimed = share_of(threads, &threads->work[i], owner->number);
            if (taken < claimed->count) break;
        }
        uint32_t left = claimed->count - taken;
        claimed->first += taken;
        claimed->count = left < PARTS ? 1 : left / PARTS;
        next = (uint64_t)i << 32 | (taken + claimed->count);
    } while (!atomic_compare_exchange_weak_explicit(&owner->cursor, &cursor, next,
                                                    memory_order_relaxed, memory_order_relaxed));
    return true;
}

static bool claim_from_others(od_threads *threads, const worker *self, int32_t end,
                              piece *claimed) {
    for (int32_t i = 1; i < threads->count; i++) {
        int32_t other = self->number + i;
        if (other >= threads->count) other -= threads->count;
        if (claim(threads, &threads->workers[other], end, claimed)) return true;
    }
    return false;
}

/* Those of the tasks [begin, end) that there are. */
static void run_tasks(const od_work *work, int64_t begin, int64_t end, uint8_t *scratch) {
    void *const *buffers = work->buffers;
    void *own[OD_MAX_BUFFERS];
    if (work->own != 0) {
        for (int32_t i = 0; i < work->buffer_count; i++)
            own[i] = (work->own >> i & 1) ? scratch + (uintptr_t)buffers[i] : buffers[i];
        buffers = own;
    }
    if (end > work->tasks) end = work->tasks;
    if (begin < end)
        work->kernel(buffers, work->scalars, (int32_t)begin, (int32_t)end, scratch);
}

/* `ticks` grows by what each work of the chain takes; NULL: do not count. */
static void run_piece(od_threads *threads, worker *self, const piece *claimed, int64_t *ticks) {
    const od_work *work = claimed->work;
    int64_t begin = (int64_t)claimed->first * work->chunk;
    int64_t end = begin + (int64_t)claimed->count * work->chunk;
    int64_t then = ticks == NULL ? 0 : od_ticks();
    for (int32_t i = 0; i <= work->chained; i++) {
        run_tasks(&work[i], begin, end, self->scratch);
        if (ticks == NULL) continue;
        int64_t now = od_ticks();
        ticks[i] += now - then;
        then = now;
    }
    uint32_t finished = atomic_load_explicit(&self->finished, memory_order_relaxed);
    finished += claimed->count;
    atomic_store_explicit(&self->finished, finished, memory_order_release);
    if (atomic_load_explicit(&threads->done.sleepers, memory_order_relaxed) != 0)
        od_event_advance(&threads->done);
}

/* ---- barriers ---- */

static uint32_t count_finished(const od_threads *threads) {
    uint32_t sum = 0;
    for (int32_t i = 0; i < threads->count; i++)
        sum += atomic_load_explicit(&threads->workers[i].finished, memory_order_acquire);
    return sum;
}

/* Who finishes a chunk looks for sleepers without a fence between the two, which every barrier
 * would pay for. So it may miss one that is just falling asleep, and no sleep is long. */
static void sleep_at_barrier(od_threads *threads, uint32_t chunks) {
    uint32_t seen = atomic_load(&threads->done.value);
    atomic_fetch_add(&threads->done.sleepers, 1);
    if (count_finished(threads) < chunks)
        od_futex_wait(&threads->done.value, seen, LONGEST_SLEEP_NS);
    atomic_fetch_sub(&threads->done.sleepers, 1);
}

/* One run of the work and one of each that is chained to it, as if they came one by one. */
static void add_runs(od_threads *threads, const od_work *work, od_run run, const int64_t *ticks) {
    int64_t end = run.end;
    for (int32_t i = 0; i <= work->chained; i++) {
        run.launch = work[i].launch;
        run.end = i == work->chained ? end : run.begin + ticks[i];
        od_profile_add(threads->profile, &run);
        run.arrived = run.begin = run.end;
    }
}

/* Run what another had not begun; returns the ticks that it took. */
static int64_t run_stolen(od_threads *threads, worker *self, const piece *claimed) {
    int64_t begin = od_ticks(), ticks[OD_MAX_CHAINED + 1] = {0};
    run_piece(threads, self, claimed, threads->profile == NULL ? NULL : ticks);
    od_run run = {.worker = self->number, .stolen = true, .chunks = claimed->count,
                  .arrived = begin, .begin = begin, .end = od_ticks()};
    if (threads->profile != NULL) add_runs(threads, claimed->work, run, ticks);
    return run.end - begin;
}

/* Return when `chunks` have finished, which are those of the works before `end`. Until then do what
 * others have not begun; returns the ticks that this took. */
static int64_t wait_until_finished(od_threads *threads, worker *self, uint32_t chunks,
                                   int32_t end) {
    int64_t stolen_ticks = 0;
    piece found;
    for (int32_t spins = 1; count_finished(threads) < chunks; spins++) {
        if ((spins % PATIENCE == 0 || spins > threads->spins) &&
            claim_from_others(threads, self, end, &found)) {
            stolen_ticks += run_stolen(threads, self, &found);
            spins = 0;
        } else if (spins <= threads->spins) {
            od_pause();
        } else {
            sleep_at_barrier(threads, chunks);
        }
    }
    return stolen_ticks;
}

/* ---- walking ---- */

static void walk(od_threads *threads, worker *self) {
    od_profile *profile = threads->profile;
    int64_t now = profile == NULL ? 0 : od_ticks();
    for (int32_t i = 0; i < threads->work_count; i += 1 + threads->work[i].chained) {
        const od_work *work = &threads->work[i];
        int64_t ticks[OD_MAX_CHAINED + 1] = {0};
        od_run run = {.worker = self->number, .arrived = now, .begin = now};
        if (work->barrier) {
            run.arrived += wait_until_finished(threads, self, work->chunks_before, i);
            if (profile != NULL) run.begin = od_ticks();
        }
        if (work->each) run_tasks(work, 0, work->tasks, self->scratch);
        for (piece own; claim(threads, self, i + 1, &own); run.chunks += own.count)
            run_piece(threads, self, &own, profile == NULL ? NULL : ticks);
        if (profile == NULL) continue;
        now = run.end = od_ticks();
        add_runs(threads, work, run, ticks);
    }
    wait_until_finished(threads, self, threads->chunks, threads->work_count);
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

/* The most tasks of the work and of all that is chained to it. */
static int32_t chain_tasks(const od_work *work) {
    int32_t most = 0;
    for (int32_t i = 0; i <= work->chained; i++)
        if (work[i].tasks > most) most = work[i].tasks;
    return most;
}

void od_threads_prepare(const od_threads *threads, od_work *work, int32_t count) {
    uint32_t total = 0, first_extra = 0, workers = (uint32_t)threads->count;
    int32_t chained = 0; /* of the next works */
    for (int32_t i = 0; i < count; i++) {
        int32_t tasks = work[i].each || chained > 0 ? 0 : chain_tasks(&work[i]);
        chained = chained > 0 ? chained - 1 : work[i].chained;
        uint32_t chunks = tasks <= 0 ? 0 : (uint32_t)((tasks - 1) / work[i].chunk + 1);
        if (work[i].barrier) first_extra = 0; /* a lone chunk stays where the last one was */
        work[i].chunks_before = total;
        work[i].share = chunks / workers;
        work[i].extra = chunks % workers;
        work[i].first_extra = first_extra;
        first_extra = (first_extra + work[i].extra) % workers;
        total += chunks;
    }
}

void od_threads_run(od_threads *threads, const od_work *work, int32_t count) {
    if (count == 0) return;
    const od_work *last = &work[count - 1];
    threads->work = work;
    threads->work_count = count;
    threads->chunks = last->chunks_before + last->share * (uint32_t)threads->count + last->extra;
    for (int32_t i = 0; i < threads->count; i++) {
        atomic_store_explicit(&threads->workers[i].cursor, 0, memory_order_relaxed);
        atomic_store_explicit(&threads->workers[i].finished, 0, memory_order_relaxed);
    }
    if (threads->count == 1 || threads->chunks == 1) { /* nobody else is needed */
        walk(threads, &threads->workers[0]);
        return;
    }
    /* Nobody is inside a closed gate, so this may simply be stored over. */
    uint32_t number = atomic_load(&threads->gate.value) / GATE_NUMBER + 1;
    atomic_store(&threads->gate.value, number * GATE_NUMBER | GATE_OPEN);
    od_event_wake(&threads->gate);
    walk(threads, &threads->workers[0]);
    atomic_fetch_and(&threads->gate.value, ~GATE_OPEN);
    uint32_t gate;
    while (((gate = atomic_load(&threads->gate.value)) & GATE_INSIDE) != 0)
        od_event_wait(&threads->gate, gate, threads->spins, -1);
}

od_threads *od_threads_open(int32_t count, int64_t scratch_bytes) {
    od_threads *threads = od_reserve(sizeof *threads);
    if (threads == NULL) return NULL;
    /* With more threads than cores, who spins keeps a core from who has the work. */
    threads->spins = count <= od_core_count() ? SPINS : 0;
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
