/* Numbers outside, pointers inside. A slot counts the calls inside it, without a lock: tokenizers
 * have no threads, so a process made by fork may go on using those of its parent. */
#include "tokenizer_handles.h"

#include "message.h"

enum { SLOTS = 255, SLOT_BITS = 8, OPEN = 1 << 15, CALLS = OPEN - 1, NUMBER_SHIFT = 16 };

/* state: calls inside (bits 0..14), open (15), how often the slot has been used (16..). */
static struct {
    _Atomic(od_tokenizer_core *) core;
    _Atomic uint64_t state;
} slots[SLOTS];

static od_tokenizer handle_of(int32_t slot, uint64_t number) {
    return number << SLOT_BITS | (uint64_t)(slot + 1);
}

/* The slot that a handle was made for, or -1. */
static int32_t slot_of(od_tokenizer handle) {
    int32_t slot = (int32_t)(handle & ((1 << SLOT_BITS) - 1)) - 1;
    return slot >= 0 && slot < SLOTS ? slot : -1;
}

static bool is_current(od_tokenizer handle, uint64_t state) {
    return (state & OPEN) && state >> NUMBER_SHIFT == handle >> SLOT_BITS;
}

static void refuse(od_error *error) { od_fail(error, OD_CLOSED, "the tokenizer has been closed"); }

od_status od_tokenizer_handle_new(od_tokenizer_core *core, od_tokenizer *handle, od_error *error) {
    for (int32_t slot = 0; slot < SLOTS; slot++) {
        od_tokenizer_core *none = NULL;
        if (!atomic_compare_exchange_strong(&slots[slot].core, &none, core)) continue;
        uint64_t number = (atomic_load(&slots[slot].state) >> NUMBER_SHIFT) + 1;
        atomic_store(&slots[slot].state, number << NUMBER_SHIFT | OPEN);
        *handle = handle_of(slot, number);
        return OD_OK;
    }
    return od_fail(error, OD_MEMORY, "%d tokenizers are open, the most possible", SLOTS);
}

/* Nobody is inside and nobody can enter: free the tokenizer, then the slot. */
static void free_slot(int32_t slot) {
    od_tokenizer_free(atomic_load(&slots[slot].core));
    atomic_store(&slots[slot].core, NULL);
}

od_status od_tokenizer_handle_close(od_tokenizer handle, od_error *error) {
    int32_t slot = slot_of(handle);
    uint64_t state = slot < 0 ? 0 : atomic_load(&slots[slot].state);
    do {
        if (slot < 0 || !is_current(handle, state)) {
            refuse(error);
            return OD_CLOSED;
        }
    } while (!atomic_compare_exchange_weak(&slots[slot].state, &state, state & ~(uint64_t)OPEN));
    if ((state & CALLS) == 0) free_slot(slot);
    return OD_OK;
}

od_tokenizer_core *od_tokenizer_enter(od_tokenizer handle, od_error *error) {
    int32_t slot = slot_of(handle);
    uint64_t state = slot < 0 ? 0 : atomic_load(&slots[slot].state);
    do {
        if (slot < 0 || !is_current(handle, state) || (state & CALLS) == CALLS) {
            refuse(error);
            return NULL;
        }
    } while (!atomic_compare_exchange_weak(&slots[slot].state, &state, state + 1));
    return atomic_load(&slots[slot].core);
}

void od_tokenizer_leave(od_tokenizer handle) {
    int32_t slot = slot_of(handle);
    uint64_t before = atomic_fetch_sub(&slots[slot].state, 1);
    if (!(before & OPEN) && (before & CALLS) == 1) free_slot(slot);
}
