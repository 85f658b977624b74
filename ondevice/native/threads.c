/* Every worker walks the whole list and has a share of each work that it claims bit by bit. Who has
 * to wait takes from the shares of others, so a slow core does less; what a barrier waits for is
 * finished chunks, not arriving workers, so a worker that the system has put aside delays nobody
 * unless it is inside a kernel. It may even sleep through the end of a list: claims carry the list's
 * number, so it finds nothing to do in a later one before it has entered that.
 *
 * While all keep pace nobody writes to a line that others write to: a claim is an atomic operation
 * on a line of the worker's own, and what it has finished is told by a plain store. */
#include "threads.h"

#include "turns.h"

enum {
    LINE_BYTES = 128,       /* lines are fetched in pairs */
    SPINS = 4000,           /* before a sleep, which costs more than most waits */
    PATIENCE = 16,          /* spins before looking for others' work: a bit late is not slow */
    PARTS = 8,              /* a claim takes at most this part of what is left */
    LONGEST_SLEEP_NS = 500000,
    LATE_NS = 1000000,      /* a core that lets others wait for so long is not the worker's own */
};

typedef struct worker {
    _Alignas(LINE_BYTES) _Atomic uint64_t cursor; /* what is left of its shares: see claim */
    _Alignas(LINE_BYTES) _Atomic uint32_t finished; /* chunks that it has run, from any share */
    _Alignas(LINE_BYTES) od_threads *threads;
    int32_t number;
    int32_t core; /* that it should keep to, and the one that it keeps to */
    int32_t kept;
    od_thread thread;
    void *scratch;
    od_turns turns;
} worker;

/* The gate tells workers of a list to walk: how many are inside, whether it is open, its number. */
#define GATE_INSIDE 0xffU
#define GATE_OPEN 0x100U
#define GATE_NUMBER 0x200U

/* What workers inside read: changed only where none is, and so seldom that it costs nothing. The
 * model's list and that of choosing tokens take turns. */
typedef struct list {
    const od_work *work;
    int32_t count;
    uint32_t chunks;
} list;

struct od_threads {
    _Alignas(LINE_BYTES) od_event gate;
    _Alignas(LINE_BYTES) _Atomic uint32_t asleep; /* whether somebody may sleep at a barrier */
    _Atomic uint32_t woken;                       /* how often they were woken */
    _Atomic int64_t asleep_ns;                    /* since when they wait */
    _Alignas(LINE_BYTES) _Atomic bool closing;
    list lists[2]; /* that of number n at n % 2 */
    int32_t count;
    int32_t spins;
    bool own_cores; /* each worker keeps to one */
    od_profile *profile;
    _Atomic int64_t *place; /* in the weights, of the first worker; NULL: nobody asked */
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

/* A worker on its way through a list. */
typedef struct walker {
    od_threads *threads;
    worker *self;
    uint32_t number; /* of the list */
    list list;
} walker;

/* Claim some of what is left of a worker's shares in the works before `end`. The cursor has the
 * number of the list (16 bits), that of a work (16), and how much of its share is taken (32). */
static bool claim(const walker *by, worker *owner, int32_t end, piece *claimed) {
    uint64_t cursor = atomic_load_explicit(&owner->cursor, memory_order_relaxed), next;
    do {
        if (cursor >> 48 != (by->number & UINT16_MAX)) return false;
        int32_t i = (int32_t)(cursor >> 32 & UINT16_MAX);
        uint32_t taken = (uint32_t)cursor;
        for (;; i++, taken = 0) {
            if (i >= end) return false;
            *claimed = share_of(by->threads, &by->list.work[i], owner->number);
            if (taken < claimed->count) break;
        }
        uint32_t left = claimed->count - taken;
        claimed->first += taken;
        claimed->count = left < PARTS ? 1 : left / PARTS;
        next = cursor >> 48 << 48 | (uint64_t)i << 32 | (taken + claimed->count);
    } while (!atomic_compare_exchange_weak_explicit(&owner->cursor, &cursor, next,
                                                    memory_order_relaxed, memory_order_relaxed));
    return true;
}

static bool claim_from_others(const walker *by, int32_t end, piece *claimed) {
    od_threads *threads = by->threads;
    for (int32_t i = 1; i < threads->count; i++) {
        int32_t other = by->self->number + i;
        if (other >= threads->count) other -= threads->count;
        if (claim(by, &threads->workers[other], end, claimed)) return true;
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

/* What began at `began` has finished. */
static void tell_sleepers(od_threads *threads, worker *self, int64_t began) {
    if (atomic_load_explicit(&threads->asleep, memory_order_relaxed) == 0) return;
    int64_t waited_ns = od_now_ns() - atomic_load(&threads->asleep_ns);
    atomic_store(&threads->asleep, 0);
    atomic_fetch_add(&threads->woken, 1);
    od_futex_wake_all(&threads->woken);
    if (waited_ns > LATE_NS) od_turns_lost(&self->turns, began);
}

/* `ticks` grows by what each work of the chain takes; NULL: do not count. */
static void run_piece(od_threads *threads, worker *self, const piece *claimed, int64_t *ticks) {
    const od_work *work = claimed->work;
    int64_t begin = (int64_t)claimed->first * work->chunk;
    int64_t end = begin + (int64_t)claimed->count * work->chunk;
    int64_t began = ticks == NULL && self->turns.budget == 0 ? 0 : od_ticks(), then = began;
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
    tell_sleepers(threads, self, began);
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
    uint32_t seen = atomic_load(&threads->woken);
    atomic_store(&threads->asleep, 1);
    if (count_finished(threads) < chunks) od_futex_wait(&threads->woken, seen, LONGEST_SLEEP_NS);
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

static bool is_over(const walker *by) {
    uint32_t gate = atomic_load_explicit(&by->threads->gate.value, memory_order_relaxed);
    return (gate & GATE_OPEN) == 0 || gate / GATE_NUMBER != by->number;
}

/* Run what another had not begun; returns the ticks that it took. */
static int64_t run_stolen(const walker *by, const piece *claimed) {
    bool measured = by->threads->profile != NULL;
    int64_t begin = od_ticks(), ticks[OD_MAX_CHAINED + 1] = {0};
    run_piece(by->threads, by->self, claimed, measured ? ticks : NULL);
    od_run run = {.worker = by->self->number, .stolen = true, .chunks = claimed->count,
                  .arrived = begin, .begin = begin, .end = od_ticks()};
    if (measured) add_runs(by->threads, claimed->work, run, ticks);
    return run.end - begin;
}

/* Wait for `chunks`, which are those of the works before `end`, and do what others have not begun of
 * them; false where the whole list is over. The ticks that others' work took are added to *stolen. */
static bool wait_until_finished(const walker *by, uint32_t chunks, int32_t end, int64_t *stolen) {
    od_threads *threads = by->threads;
    piece found;
    for (int32_t spins = 1; count_finished(threads) < chunks; spins++) {
        if (is_over(by)) return false;
        if ((spins % PATIENCE == 0 || spins > threads->spins) &&
            claim_from_others(by, end, &found)) {
            *stolen += run_stolen(by, &found);
            spins = 0;
        } else if (spins <= threads->spins) {
            od_pause();
        } else {
            if (spins == threads->spins + 1) atomic_store(&threads->asleep_ns, od_now_ns());
            sleep_at_barrier(threads, chunks);
        }
    }
    return true;
}

/* ---- walking ---- */

/* The worker's way through one work and what is chained to it; false where the list is over. */
static bool pass(const walker *by, int32_t i, int64_t *now) {
    od_threads *threads = by->threads;
    worker *self = by->self;
    const od_work *work = &by->list.work[i];
    bool measured = threads->profile != NULL;
    int64_t ticks[OD_MAX_CHAINED + 1] = {0};
    od_run run = {.worker = self->number, .arrived = *now, .begin = *now};
    if (self->number == 0 && threads->place != NULL && work->place >= 0)
        atomic_store_explicit(threads->place, work->place, memory_order_relaxed);
    if (work->barrier) {
        if (!wait_until_finished(by, work->chunks_before, i, &run.arrived)) return false;
        if (measured) run.begin = od_ticks();
    }
    if (work->each) run_tasks(work, 0, work->tasks, self->scratch);
    for (piece own; claim(by, self, i + 1, &own); run.chunks += own.count) {
        run_piece(threads, self, &own, measured ? ticks : NULL);
        if (od_turns_due(&self->turns)) od_turns_give_way(&self->turns);
    }
    if (!measured) return true;
    *now = run.end = od_ticks();
    add_runs(threads, work, run, ticks);
    return true;
}

static void walk(od_threads *threads, worker *self, uint32_t number) {
    const walker by = {threads, self, number, threads->lists[number % 2]};
    int64_t now = threads->profile == NULL ? 0 : od_ticks(), unused = 0;
    for (int32_t i = 0; i < by.list.count; i += 1 + by.list.work[i].chained)
        if (!pass(&by, i, &now)) return;
    wait_until_finished(&by, by.list.chunks, by.list.count, &unused);
}

static void keep_to_core(worker *self) {
    if (!self->threads->own_cores || self->kept == self->core) return;
    self->kept = self->core;
    od_keep_to_core(self->core);
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
            keep_to_core(self);
            walk(threads, self, number);
            uint32_t before = atomic_fetch_sub(&threads->gate.value, 1);
            if ((before & (GATE_OPEN | GATE_INSIDE)) == 1) od_event_wake(&threads->gate);
        }
    }
}

void od_threads_settle(od_threads *threads) {
    uint32_t gate;
    while (((gate = atomic_load(&threads->gate.value)) & GATE_INSIDE) != 0)
        od_event_wait(&threads->gate, gate, threads->spins, -1);
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

/* Between lists only the first worker works, so a core that others use as well costs most where it
 * is the first one's: then it changes with a worker that has its core to itself. */
static void change_cores(od_threads *threads) {
    worker *first = &threads->workers[0];
    if (!threads->own_cores || !od_turns_established(&first->turns)) return;
    od_threads_settle(threads);
    for (int32_t i = 1; i < threads->count; i++) {
        worker *other = &threads->workers[i];
        if (other->turns.budget != 0) continue;
        int32_t core = first->core;
        od_turns turns = first->turns;
        first->core = other->core;
        first->turns = other->turns;
        other->core = core;
        other->turns = turns;
        keep_to_core(first);
        return;
    }
}

/* Put the list where workers find that of `number`. */
static void show(od_threads *threads, uint32_t number, const list *all) {
    list *shown = &threads->lists[number % 2];
    if (shown->work != all->work || shown->count != all->count || shown->chunks != all->chunks) {
        od_threads_settle(threads);
        *shown = *all;
    }
    uint64_t cursor = (uint64_t)(number & UINT16_MAX) << 48;
    for (int32_t i = 0; i < threads->count; i++) {
        atomic_store_explicit(&threads->workers[i].cursor, cursor, memory_order_relaxed);
        atomic_store_explicit(&threads->workers[i].finished, 0, memory_order_relaxed);
    }
}

void od_threads_run(od_threads *threads, const od_work *work, int32_t count) {
    if (count == 0) return;
    const od_work *last = &work[count - 1];
    uint32_t chunks = last->chunks_before + last->share * (uint32_t)threads->count + last->extra;
    const list all = {work, count, chunks};
    uint32_t open = chunks > 1 ? GATE_OPEN : 0; /* nobody else is needed for one */
    change_cores(threads);
    show(threads, (atomic_load(&threads->gate.value) + GATE_NUMBER) / GATE_NUMBER, &all);
    uint32_t gate = atomic_fetch_add(&threads->gate.value, GATE_NUMBER | open) + GATE_NUMBER;
    if (open != 0) od_event_wake(&threads->gate);
    walk(threads, &threads->workers[0], gate / GATE_NUMBER);
    if (open != 0) atomic_fetch_and(&threads->gate.value, ~GATE_OPEN);
}

od_threads *od_threads_open(int32_t count, int64_t scratch_bytes) {
    od_threads *threads = od_reserve(sizeof *threads);
    if (threads == NULL) return NULL;
    threads->own_cores = count > 1 && count == od_core_count();
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
        od_turns_open(&next->turns);
        next->core = od_core_at(threads->count);
        next->kept = -1;
        ok = threads->count == 0 || od_thread_start(&next->thread, worker_main, next);
        if (ok) threads->count++;
    }
    if (ok) return threads;
    od_threads_close(threads);
    return NULL;
}

void od_threads_enter(od_threads *threads) {
    keep_to_core(&threads->workers[0]);
}

void od_threads_watch(od_threads *threads, _Atomic int64_t *place) { threads->place = place; }

void od_threads_profile(od_threads *threads, od_profile *profile) {
    od_threads_settle(threads);
    threads->profile = profile;
}

void od_threads_close(od_threads *threads) {
    if (threads == NULL) return;
    atomic_store(&threads->closing, true);
    atomic_fetch_add(&threads->gate.value, GATE_NUMBER);
    od_event_wake(&threads->gate);
    for (int32_t i = 1; i < threads->count; i++) od_thread_join(threads->workers[i].thread);
    od_release(threads->scratch, threads->scratch_bytes);
    od_release(threads, sizeof *threads);
}
