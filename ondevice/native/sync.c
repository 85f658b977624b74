/* Locks and events over the futex of the platform. */
#include "platform.h"

void od_lock_acquire(od_lock *lock) {
    uint32_t free = 0;
    if (atomic_compare_exchange_strong(&lock->state, &free, 1)) return;
    while (atomic_exchange(&lock->state, 2) != 0) od_futex_wait(&lock->state, 2, -1);
}

void od_lock_release(od_lock *lock) {
    if (atomic_exchange(&lock->state, 0) == 2) od_futex_wake_all(&lock->state);
}

void od_pause(void) {
#if defined(__x86_64__)
    __asm__ volatile("pause");
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* `yield` returns at once on most cores */
#endif
}

void od_event_wait(od_event *event, uint32_t seen, int32_t spins, int64_t deadline_ns) {
    for (; spins > 0; spins--) {
        if (atomic_load_explicit(&event->value, memory_order_acquire) != seen) return;
        od_pause();
    }
    int64_t left_ns = -1;
    if (deadline_ns >= 0) {
        left_ns = deadline_ns - od_now_ns();
        if (left_ns <= 0) return;
    }
    /* The sleeper announces itself before the futex compares the value; who changes the value
     * looks for sleepers afterwards. Both are sequentially consistent, so no wake-up is lost. */
    atomic_fetch_add(&event->sleepers, 1);
    od_futex_wait(&event->value, seen, left_ns);
    atomic_fetch_sub(&event->sleepers, 1);
}

void od_event_wake(od_event *event) {
    if (atomic_load(&event->sleepers) != 0) od_futex_wake_all(&event->value);
}

void od_event_advance(od_event *event) {
    atomic_fetch_add(&event->value, 1);
    od_event_wake(event);
}
