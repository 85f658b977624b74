/* Handles are numbers: slot and how often the slot has been used. A stale one is recognized.
 *
 *     bits 0..7   slot of the engine + 1      bits 32..47  slot of the conversation + 1
 *     bits 8..31  its number                  bits 48..63  its number */
#include "engine.h"

#define ENGINE_SLOTS 255
#define ENGINE_NUMBERS 0xffffffU
#define CONVERSATION_NUMBERS 0xffffU

/* The only mutable global of the runtime. */
static struct {
    od_lock lock;
    _Atomic int32_t process; /* whose engines these are */
    od_core *engines[ENGINE_SLOTS];
    uint32_t numbers[ENGINE_SLOTS];
} table;

/* The child of a fork has a copy of the table but none of the threads: it starts over. */
static void claim_table(void) {
    int32_t here = od_process_id();
    int32_t owner = atomic_load(&table.process);
    if (owner == here || !atomic_compare_exchange_strong(&table.process, &owner, here)) return;
    if (owner == 0) return;
    atomic_store(&table.lock.state, 0);
    for (int32_t i = 0; i < ENGINE_SLOTS; i++) {
        table.engines[i] = NULL;
        table.numbers[i]++;
    }
}

od_status od_handle_new(od_core *engine, od_engine *handle, od_error *error) {
    claim_table();
    od_lock_acquire(&table.lock);
    int32_t slot = 0;
    while (slot < ENGINE_SLOTS && table.engines[slot] != NULL) slot++;
    if (slot < ENGINE_SLOTS) {
        table.engines[slot] = engine;
        *handle = (uint64_t)(table.numbers[slot] & ENGINE_NUMBERS) << 8 | (uint64_t)(slot + 1);
    }
    od_lock_release(&table.lock);
    if (slot == ENGINE_SLOTS)
        return od_fail(error, OD_MEMORY, "%d engines are open, the most possible", ENGINE_SLOTS);
    return OD_OK;
}

/* The slot of an open engine, or -1; the table is locked. */
static int32_t find(od_engine handle) {
    int32_t slot = (int32_t)(handle & 0xff) - 1;
    if (slot < 0 || table.engines[slot] == NULL) return -1;
    uint32_t number = (uint32_t)(handle >> 8) & ENGINE_NUMBERS;
    return number == (table.numbers[slot] & ENGINE_NUMBERS) ? slot : -1;
}

static od_status check_process(od_error *error) {
    int32_t owner = atomic_load(&table.process), here = od_process_id();
    if (owner == here || owner == 0) return OD_OK;
    return od_fail(error, OD_FORKED, "the engine belongs to process %d; process %d must open its "
                   "own", owner, here);
}

static od_status refuse_closed(od_error *error, const char *what) {
    return od_fail(error, OD_CLOSED, "the %s has been closed", what);
}

od_status od_handle_remove(od_engine handle, od_core **engine, od_error *error) {
    od_status status = check_process(error);
    if (status != OD_OK) return status;
    od_lock_acquire(&table.lock);
    int32_t slot = handle >> 32 == 0 ? find(handle) : -1;
    if (slot >= 0) {
        *engine = table.engines[slot];
        table.engines[slot] = NULL;
        table.numbers[slot]++;
    }
    od_lock_release(&table.lock);
    return slot >= 0 ? OD_OK : refuse_closed(error, "engine");
}

od_conversation od_handle_conversation(od_engine engine, int32_t slot, uint32_t number) {
    return engine | (uint64_t)(slot + 1) << 32 | (uint64_t)(number & CONVERSATION_NUMBERS) << 48;
}

od_status od_enter_engine(od_engine handle, od_core **engine, od_error *error) {
    od_status status = check_process(error);
    if (status != OD_OK) return status;
    od_lock_acquire(&table.lock);
    int32_t slot = find(handle);
    if (slot >= 0) {
        *engine = table.engines[slot];
        atomic_fetch_add(&(*engine)->callers.value, 1);
    }
    od_lock_release(&table.lock);
    if (slot < 0) return refuse_closed(error, "engine");
    od_lock_acquire(&(*engine)->lock);
    return (*engine)->closing ? od_leave(*engine, refuse_closed(error, "engine")) : OD_OK;
}

od_status od_enter(od_conversation handle, od_core **engine, od_state **state, od_error *error) {
    od_status status = od_enter_engine(handle & UINT32_MAX, engine, error);
    if (status != OD_OK) return status;
    int32_t slot = (int32_t)(handle >> 32 & 0xffff) - 1;
    if (slot >= 0 && slot < (*engine)->capacity) {
        *state = &(*engine)->states[slot];
        if ((*state)->open && ((*state)->number & CONVERSATION_NUMBERS) == handle >> 48)
            return OD_OK;
    }
    return od_leave(*engine, refuse_closed(error, "conversation"));
}

od_status od_leave(od_core *engine, od_status status) {
    od_lock_release(&engine->lock);
    /* Under the table's lock: od_engine_close takes it before it frees the engine. */
    od_lock_acquire(&table.lock);
    atomic_fetch_sub(&engine->callers.value, 1);
    od_event_wake(&engine->callers);
    od_lock_release(&table.lock);
    return status;
}

void od_handle_wait_callers(od_core *engine) {
    for (;;) {
        od_lock_acquire(&table.lock);
        uint32_t callers = atomic_load(&engine->callers.value);
        od_lock_release(&table.lock);
        if (callers == 0) return;
        od_event_wait(&engine->callers, callers, 0, -1);
    }
}
