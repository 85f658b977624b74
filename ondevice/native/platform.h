/* All that the runtime asks of the operating system and of libc.
 *
 * Nothing here needs a libc header, errno, stdio or thread-local storage, so one compiler builds
 * the runtime for every target without its SDK. A new system is a new platform_<system>.c. */
#ifndef OD_PLATFORM_H
#define OD_PLATFORM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);

/* Memory: zeroed, paged in when first touched, aligned to 64 bytes. Inaccessible pages lie on both
 * sides, the upper one right behind the end, so an overrun is a fault and not a wrong answer. */
void *od_reserve(size_t bytes);
void od_release(void *memory, size_t bytes);

/* Map `length` bytes at `offset` of a file, read-only, between guards as above; the offset need not
 * be a multiple of the page. */
const void *od_map_file(int fd, int64_t offset, int64_t length);
void od_unmap_file(const void *data, int64_t offset, int64_t length);
int64_t od_file_bytes(int fd); /* negative: not a file */
/* Put a private copy of a file's bytes in the place of memory of od_reserve, read when touched;
 * false, with nothing changed, unless everything lies on whole pages. */
bool od_map_over(void *memory, int fd, int64_t offset, int64_t bytes);
/* Advice on mapped memory; the system may do otherwise. `data` is rounded to whole pages. */
void od_read_ahead(const uint8_t *data, size_t bytes);
void od_give_back(const uint8_t *data, size_t bytes);
#define OD_LARGEST_PAGE 65536
bool od_is_resident(const uint8_t *data); /* the page at `data` */
int64_t od_bytes_read(void);              /* from storage, by this process so far */
/* Write all of it; false where the system takes no more. */
bool od_write(int fd, const void *data, size_t bytes);

int64_t od_now_ns(void); /* monotonic */
int64_t od_ticks(void);  /* of the counter that all cores share; cheaper than a system call */
int32_t od_process_id(void);
int32_t od_core_count(void);      /* cores that this thread may use */
int32_t od_core_at(int32_t place); /* the system's number of one of them; negative: there is none */
void od_keep_to_core(int32_t core); /* the calling thread, where the system permits it */
uint64_t od_cpu_features(void);   /* mask of OD_CPU_* */
bool od_cpu_permit(uint64_t features); /* ask the system for registers it gives on request only */

/* Threads. They block all signals, which stay with the threads of the application. */
typedef struct od_thread {
    unsigned long handle;
} od_thread;
bool od_thread_start(od_thread *thread, void (*entry)(void *), void *argument);
void od_thread_join(od_thread thread);

/* Sleep while *word == expected; may return early. Negative timeout: for ever. */
void od_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns);
void od_futex_wake_all(_Atomic uint32_t *word);

/* ---- built on the above, the same on every system (sync.c) ---- */

typedef struct od_lock {
    _Atomic uint32_t state; /* 0 free, 1 held, 2 held and somebody waits */
} od_lock;
void od_lock_acquire(od_lock *lock);
void od_lock_release(od_lock *lock);

void od_pause(void); /* what a spinning thread does between two looks */

/* A number that threads wait on. Waiting spins first: a sleep costs more than most waits. */
typedef struct od_event {
    _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
} od_event;
/* Return when value != seen, or at the deadline (od_now_ns; negative: none), or for no reason. */
void od_event_wait(od_event *event, uint32_t seen, int32_t spins, int64_t deadline_ns);
void od_event_wake(od_event *event);      /* after a change of value */
void od_event_advance(od_event *event);   /* change the value and wake */

#endif
