/* Linux and Android, x86-64 and arm64: raw system calls; of libc only pthread_create and
 * pthread_join (threads need its set-up), on arm64 getauxval. */
#include "model.h"
#include "platform.h"
#include "system_call_linux.h"

#if defined(__x86_64__)
enum { SYS_WRITE = 1, SYS_FSTAT = 5, SYS_MMAP = 9, SYS_MPROTECT = 10, SYS_MUNMAP = 11,
       SYS_SIGPROCMASK = 14, SYS_MINCORE = 27, SYS_MADVISE = 28, SYS_GETPID = 39,
       SYS_GETRUSAGE = 98, SYS_ARCH_PRCTL = 158, SYS_FUTEX = 202,
       SYS_SETAFFINITY = 203, SYS_GETAFFINITY = 204, SYS_CLOCK_GETTIME = 228 };
#else
enum { SYS_WRITE = 64, SYS_FSTAT = 80, SYS_FUTEX = 98, SYS_CLOCK_GETTIME = 113, SYS_SETAFFINITY = 122,
       SYS_GETAFFINITY = 123, SYS_SIGPROCMASK = 135, SYS_GETRUSAGE = 165, SYS_GETPID = 172,
       SYS_MUNMAP = 215, SYS_MMAP = 222, SYS_MPROTECT = 226, SYS_MINCORE = 232,
       SYS_MADVISE = 233 };
#endif

enum { PROT_NONE = 0, PROT_READ = 1, PROT_READ_WRITE = 3 };
enum { MAP_PRIVATE = 2, MAP_FIXED = 0x10, MAP_ANONYMOUS = 0x20, MAP_NORESERVE = 0x4000 };

/* A multiple of every page size in use (4, 16 and 64 KiB), so nobody has to ask for it. */
#define PAGE_BYTES OD_LARGEST_PAGE

static long address(const void *pointer) { return (long)(uintptr_t)pointer; }

static long map(void *at, size_t bytes, int protection, int flags, int fd, int64_t offset) {
    return system_call(SYS_MMAP, address(at), (long)bytes, protection, flags, fd, offset);
}

/* ---- memory ---- */

static size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

/* Address space of `bytes` (a multiple of PAGE_BYTES) between two guards, all inaccessible. */
static uint8_t *map_guarded(size_t bytes) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    long base = map(NULL, bytes + 2 * PAGE_BYTES, PROT_NONE, flags, -1, 0);
    /* Errors are -4095..-1; the kernel never maps there. */
    return (unsigned long)base > -4096UL ? NULL : (uint8_t *)(uintptr_t)base + PAGE_BYTES;
}

static void unmap_guarded(const uint8_t *start, size_t bytes) {
    long length = (long)(bytes + 2 * PAGE_BYTES);
    system_call(SYS_MUNMAP, address(start - PAGE_BYTES), length, 0, 0, 0, 0);
}

/* Pages that one thread gives back may be the next that another gets. The kernel orders the two;
 * a thread sanitizer, which does not see these system calls, is told by a counter. */
#if defined(__SANITIZE_THREAD__)
static _Atomic uint32_t releases;
#define RELEASED() atomic_fetch_add(&releases, 1)
#define RESERVED() (void)atomic_load(&releases)
#else
#define RELEASED() (void)0
#define RESERVED() (void)0
#endif

void *od_reserve(size_t bytes) {
    size_t data = round_up(bytes, PAGE_BYTES);
    if (data < bytes || data > SIZE_MAX / 4) return NULL;
    uint8_t *start = map_guarded(data);
    if (start == NULL) return NULL;
    if (system_call(SYS_MPROTECT, address(start), (long)data, PROT_READ_WRITE, 0, 0, 0) != 0) {
        unmap_guarded(start, data);
        return NULL;
    }
    RESERVED();
    return start + (data - round_up(bytes, 64)); /* its end touches the upper guard */
}

void od_release(void *memory, size_t bytes) {
    if (memory == NULL) return;
    size_t data = round_up(bytes, PAGE_BYTES);
    RELEASED();
    unmap_guarded((uint8_t *)memory - (data - round_up(bytes, 64)), data);
}

const void *od_map_file(int fd, int64_t offset, int64_t length) {
    int64_t inside = offset % PAGE_BYTES;
    size_t bytes = (size_t)(length + inside);
    uint8_t *start = map_guarded(round_up(bytes, PAGE_BYTES));
    if (start == NULL) return NULL;
    if (map(start, bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, offset - inside) < 0) {
        unmap_guarded(start, round_up(bytes, PAGE_BYTES));
        return NULL;
    }
    return start + inside;
}

void od_unmap_file(const void *data, int64_t offset, int64_t length) {
    if (data == NULL) return;
    int64_t inside = offset % PAGE_BYTES;
    size_t bytes = round_up((size_t)(length + inside), PAGE_BYTES);
    unmap_guarded((const uint8_t *)data - inside, bytes);
}

int64_t od_file_bytes(int fd) {
    int64_t stat[32]; /* struct stat: st_size is at byte 48 on both architectures */
    long result = system_call(SYS_FSTAT, fd, address(stat), 0, 0, 0, 0);
    return result < 0 ? result : stat[6];
}

bool od_map_over(void *memory, int fd, int64_t offset, int64_t bytes) {
    enum { LEAST_PAGE_BYTES = 4096 }; /* the system refuses what is no multiple of its own */
    if ((address(memory) | offset | bytes) % LEAST_PAGE_BYTES != 0) return false;
    return map(memory, (size_t)bytes, PROT_READ_WRITE, MAP_PRIVATE | MAP_FIXED, fd, offset) >= 0;
}

static void advise(const uint8_t *data, size_t bytes, int advice) {
    long inside = address(data) % PAGE_BYTES;
    system_call(SYS_MADVISE, address(data) - inside, (long)bytes + inside, advice, 0, 0, 0);
}

void od_read_ahead(const uint8_t *data, size_t bytes) {
    enum { WILL_NEED = 3 };
    advise(data, bytes, WILL_NEED);
}

void od_give_back(const uint8_t *data, size_t bytes) {
    enum { PAGE_OUT = 21 };
    advise(data, bytes, PAGE_OUT);
}

bool od_is_resident(const uint8_t *data) {
    uint8_t pages[16] = {0}; /* of 4 KiB, or fewer */
    system_call(SYS_MINCORE, address(data) - address(data) % PAGE_BYTES, PAGE_BYTES,
                address(pages), 0, 0, 0);
    return (pages[0] & 1) != 0;
}

int64_t od_bytes_read(void) {
    enum { THIS_PROCESS = 0, BLOCKS_READ = 11, BLOCK_BYTES = 512 };
    int64_t usage[18] = {0};
    system_call(SYS_GETRUSAGE, THIS_PROCESS, address(usage), 0, 0, 0, 0);
    return usage[BLOCKS_READ] * BLOCK_BYTES;
}

bool od_write(int fd, const void *data, size_t bytes) {
    const long interrupted = -4;
    const uint8_t *next = data;
    while (bytes > 0) {
        long taken = system_call(SYS_WRITE, fd, address(next), (long)bytes, 0, 0, 0);
        if (taken == interrupted) continue;
        if (taken <= 0) return false;
        next += taken;
        bytes -= (size_t)taken;
    }
    return true;
}

/* ---- time, process, processors ---- */

typedef struct timespec64 {
    int64_t seconds;
    int64_t nanoseconds;
} timespec64;

int64_t od_now_ns(void) {
    timespec64 now = {0, 0};
    enum { CLOCK_MONOTONIC = 1 };
    system_call(SYS_CLOCK_GETTIME, CLOCK_MONOTONIC, address(&now), 0, 0, 0, 0);
    return now.seconds * 1000000000 + now.nanoseconds;
}

bool od_cpu_permit(uint64_t features) {
#if defined(__x86_64__)
    /* The tile registers make a thread's saved state larger by 8 KiB, so a process has to ask. */
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
    if ((features & OD_CPU_AMX_TILE) != 0)
        return system_call(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, TILE_DATA, 0, 0, 0, 0) == 0;
#endif
    (void)features;
    return true;
}

int32_t od_process_id(void) { return (int32_t)system_call(SYS_GETPID, 0, 0, 0, 0, 0, 0); }

typedef struct core_mask {
    uint64_t bits[16];
    long words; /* that the system knows; negative where it does not say */
} core_mask;

static core_mask cores_of_thread(void) {
    core_mask mask = {{0}, 0};
    mask.words = system_call(SYS_GETAFFINITY, 0, sizeof mask.bits, address(mask.bits), 0, 0, 0) / 8;
    return mask;
}

int32_t od_core_count(void) {
    core_mask mask = cores_of_thread();
    int32_t count = 0;
    for (long i = 0; i < mask.words; i++) count += __builtin_popcountll(mask.bits[i]);
    return count > 0 ? count : 1;
}

int32_t od_core_at(int32_t place) {
    core_mask mask = cores_of_thread();
    for (int32_t core = 0; core < 64 * mask.words; core++)
        if ((mask.bits[core / 64] >> core % 64 & 1) != 0 && place-- == 0) return core;
    return -1;
}

void od_keep_to_core(int32_t core) {
    core_mask mask = {{0}, 0};
    if (core < 0) return;
    mask.bits[core / 64] = UINT64_C(1) << core % 64;
    system_call(SYS_SETAFFINITY, 0, sizeof mask.bits, address(mask.bits), 0, 0, 0);
}

/* ---- waiting ---- */

enum { FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129 };

void od_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns) {
    timespec64 timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    long limit = timeout_ns < 0 ? 0 : address(&timeout);
    system_call(SYS_FUTEX, (long)(uintptr_t)word, FUTEX_WAIT_PRIVATE, (long)expected, limit, 0, 0);
}

void od_futex_wake_all(_Atomic uint32_t *word) {
    system_call(SYS_FUTEX, (long)(uintptr_t)word, FUTEX_WAKE_PRIVATE, INT32_MAX, 0, 0, 0);
}

/* ---- threads ---- */

int pthread_create(unsigned long *thread, const void *attributes, void *(*entry)(void *),
                   void *argument);
int pthread_join(unsigned long thread, void **result);

typedef struct thread_start {
    void (*entry)(void *);
    void *argument;
    _Atomic uint32_t taken;
} thread_start;

static void *enter_thread(void *argument) {
    thread_start *start = argument;
    void (*entry)(void *) = start->entry;
    void *entry_argument = start->argument;
    atomic_store(&start->taken, 1); /* `start` may be gone from here on; its address wakes only */
    od_futex_wake_all(&start->taken);
    entry(entry_argument);
    return NULL;
}

bool od_thread_start(od_thread *thread, void (*entry)(void *), void *argument) {
    enum { SIG_SETMASK = 2, SIGSET_BYTES = 8 };
    /* Signals 1..31 but the faults (ILL TRAP BUS FPE SEGV); libc keeps 32 and up for itself. */
    const uint64_t faults = 1U << 3 | 1U << 4 | 1U << 6 | 1U << 7 | 1U << 10;
    uint64_t blocked = 0x7fffffff & ~faults;
    uint64_t before = 0;
    thread_start start = {.entry = entry, .argument = argument};
    system_call(SYS_SIGPROCMASK, SIG_SETMASK, address(&blocked), address(&before), SIGSET_BYTES, 0,
                0);
    bool started = pthread_create(&thread->handle, NULL, enter_thread, &start) == 0;
    system_call(SYS_SIGPROCMASK, SIG_SETMASK, address(&before), 0, SIGSET_BYTES, 0, 0);
    while (started && atomic_load(&start.taken) == 0) od_futex_wait(&start.taken, 0, -1);
    return started;
}

void od_thread_join(od_thread thread) { pthread_join(thread.handle, NULL); }
