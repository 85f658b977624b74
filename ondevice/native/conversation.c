/* The calls of conversations. Each enters (handle checked, lock held), does its work, leaves. */
#include "engine.h"

od_status od_conversation_open(od_engine handle, od_conversation *conversation, od_error *error) {
    od_core *engine = NULL;
    od_status status = od_enter_engine(handle, &engine, error);
    if (status != OD_OK) return status;
    int32_t slot = 0;
    while (slot < engine->capacity && engine->states[slot].open) slot++;
    if (slot == engine->capacity)
        return od_leave(engine, od_fail(error, OD_MEMORY, "%d conversations are open, all that "
                                        "the engine was opened for", engine->capacity));
    od_state *state = &engine->states[slot];
    *state = (od_state){.open = true,
                        .number = state->number + 1,
                        .tokens = state->tokens,
                        .table = state->table,
                        .ending = OD_INVALID};
    *conversation = od_handle_conversation(handle, slot, state->number);
    return od_leave(engine, OD_OK);
}

/* Wait, without the lock, until something has been done or the deadline is over. */
static void wait_progress(od_core *engine, int64_t deadline_ns) {
    uint32_t seen = atomic_load(&engine->progress.value);
    od_lock_release(&engine->lock);
    od_event_wait(&engine->progress, seen, 0, deadline_ns);
    od_lock_acquire(&engine->lock);
}

/* Whether this is still the conversation it was before somebody waited. */
static bool still(const od_state *state, uint32_t number) {
    return state->open && state->number == number;
}

static void cancel(od_core *engine, od_state *state) {
    state->cancelled = true;
    od_event_advance(&engine->work);
}

od_status od_conversation_close(od_conversation handle, od_error *error) {
    od_core *engine = NULL;
    od_state *state = NULL;
    od_status status = od_enter(handle, &engine, &state, error);
    if (status != OD_OK) return status;
    uint32_t number = state->number;
    if (state->active) cancel(engine, state);
    while (still(state, number) && state->active) wait_progress(engine, -1);
    if (still(state, number)) {
        od_kv_shrink(&engine->kv, &state->table, 0);
        state->open = false;
        od_event_advance(&engine->progress);
    }
    return od_leave(engine, OD_OK);
}

od_status od_conversation_tokens(od_conversation handle, int32_t *tokens, od_error *error) {
    od_core *engine = NULL;
    od_state *state = NULL;
    od_status status = od_enter(handle, &engine, &state, error);
    if (status != OD_OK) return status;
    *tokens = state->length;
    return od_leave(engine, OD_OK);
}

static od_status refuse_busy(od_error *error) {
    return od_fail(error, OD_BUSY, "the conversation is generating: read to the end or cancel");
}

od_status od_rewind(od_conversation handle, int32_t tokens, od_error *error) {
    od_core *engine = NULL;
    od_state *state = NULL;
    od_status status = od_enter(handle, &engine, &state, error);
    if (status != OD_OK) return status;
    if (state->active) return od_leave(engine, refuse_busy(error));
    if (tokens < 0 || tokens > state->length)
        return od_leave(engine, od_fail(error, OD_INVALID, "cannot rewind to %d tokens: the "
                                        "conversation holds %d", tokens, state->length));
    state->length = state->unread = tokens;
    if (state->computed > tokens) state->computed = tokens;
    od_kv_shrink(&engine->kv, &state->table, od_kv_blocks_for(tokens));
    return od_leave(engine, OD_OK);
}

/* ---- submit ---- */

static od_status check_tokens(const od_core *engine, const od_state *state, const int32_t *tokens,
                              int32_t n, od_error *error) {
    const od_model *model = engine->model;
    for (int32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= model->vocab_size)
            return od_fail(error, OD_INVALID, "token %d is %d, the vocabulary is 0..%d", i,
                           tokens[i], model->vocab_size - 1);
    if (n > model->context_tokens - state->length)
        return od_fail(error, OD_CONTEXT_FULL, "%d tokens do not fit: the conversation holds %d "
                       "of the context of %d", n, state->length, model->context_tokens);
    return OD_OK;
}

static od_status check_sampling(const od_sampling *sampling, od_error *error) {
    if (sampling->max_tokens < 0)
        return od_fail(error, OD_INVALID, "max_tokens = %d is negative", sampling->max_tokens);
    if (!(sampling->temperature >= 0.0F) || sampling->temperature > 1e6F)
        return od_fail(error, OD_INVALID, "temperature is not a number within 0..1000000");
    if (sampling->stop_token_count < 0 || sampling->stop_token_count > OD_STOP_TOKENS)
        return od_fail(error, OD_INVALID, "%d stop tokens, at most %d are possible",
                       sampling->stop_token_count, OD_STOP_TOKENS);
    return OD_OK;
}

/* Append tokens that have been checked, with blocks for all of them. */
static od_status append(od_core *engine, od_state *state, const int32_t *tokens, int32_t n,
                        od_error *error) {
    int32_t blocks = od_kv_blocks_for(state->length + n);
    if (!od_kv_grow(&engine->kv, &state->table, blocks))
        return od_fail(error, OD_KV_FULL, "%d tokens need %d more KV blocks, %d of %d are free; "
                       "close a conversation", n, blocks - state->table.count,
                       engine->kv.free_count, engine->kv.block_count);
    for (int32_t i = 0; i < n; i++) state->tokens[state->length + i] = tokens[i];
    state->length += n;
    state->unread = state->length;
    return OD_OK;
}

static void start(od_core *engine, od_state *state, const od_sampling *sampling) {
    state->sampling = *sampling;
    for (int32_t i = 0; i < sampling->stop_token_count; i++)
        state->stop_tokens[i] = sampling->stop_tokens[i];
    state->sampling.stop_tokens = NULL; /* the caller's */
    state->generated = 0;
    state->cancelled = false;
    state->active = true;
    od_event_advance(&engine->work);
}

od_status od_submit(od_conversation handle, const int32_t *tokens, int32_t n,
                    const od_sampling *sampling, od_error *error) {
    od_core *engine = NULL;
    od_state *state = NULL;
    od_status status = od_enter(handle, &engine, &state, error);
    if (status != OD_OK) return status;
    if (state->active)
        status = refuse_busy(error);
    else if (n < 0)
        status = od_fail(error, OD_INVALID, "n = %d tokens", n);
    else if (state->length + n == 0)
        status = od_fail(error, OD_INVALID, "n = 0 tokens for an empty conversation");
    if (status == OD_OK) status = check_sampling(sampling, error);
    if (status == OD_OK) status = check_tokens(engine, state, tokens, n, error);
    if (status == OD_OK) status = append(engine, state, tokens, n, error);
    if (status != OD_OK) return od_leave(engine, status);
    /* To continue, the last token is computed again: its KV is the same, its logits are needed. */
    if (state->computed == state->length) state->computed--;
    state->logits = NULL;
    start(engine, state, sampling);
    return od_leave(engine, OD_OK);
}

od_status od_logits(od_conversation handle, const int32_t *tokens, int32_t n, float *logits,
                    od_error *error) {
    od_core *engine = NULL;
    od_state *state = NULL;
    od_status status = od_enter(handle, &engine, &state, error);
    if (status != OD_OK) return status;
    if (state->active)
        status = refuse_busy(error);
    else if (n <= 0)
        status = od_fail(error, OD_INVALID, "n = %d tokens", n);
    if (status == OD_OK) status = check_tokens(engine, state, tokens, n, error);
    int32_t from = state->length;
    if (status == OD_OK) status = append(engine, state, tokens, n, error);
    if (status != OD_OK) return od_leave(engine, status);
    const od_sampling nothing = {.max_tokens = 0};
    state->logits = logits;
    state->logits_from = from;
    start(engine, state, &nothing);
    uint32_t number = state->number;
    while (still(state, number) && state->active) wait_progress(engine, -1);
    status = still(state, number) ? state->ending : OD_CLOSED;
    if (status == OD_LENGTH) return od_leave(engine, OD_OK);
    return od_leave(engine, od_fail(error, status, "the logits of %d tokens were not finished: %s",
                                    n, od_status_name(status)));
}

/* ---- read ---- */

static od_status explain_ending(const od_core *engine, const od_state *state, od_error *error) {
    switch (state->ending) {
        case OD_INVALID:
            return od_fail(error, OD_INVALID, "nothing has been submitted to the conversation");
        case OD_CONTEXT_FULL:
            return od_fail(error, OD_CONTEXT_FULL, "the conversation holds %d tokens, the context "
                           "is %d", state->length, engine->model->context_tokens);
        case OD_KV_FULL:
            return od_fail(error, OD_KV_FULL, "the conversation holds %d tokens in %d KV blocks "
                           "and needs another, %d of %d are free; close a conversation, then "
                           "submit again", state->length, state->table.count,
                           engine->kv.free_count, engine->kv.block_count);
        case OD_NUMERIC:
            return od_fail(error, OD_NUMERIC, "the logits after token %d of the conversation are "
                           "not finite numbers", state->computed - 1);
        default:
            return od_fail(error, state->ending, "%s after %d tokens",
                           od_status_name(state->ending), state->generated);
    }
}

static int32_t take_unread(od_state *state, int32_t *tokens, int32_t capacity) {
    int32_t count = 0;
    while (count < capacity && state->unread < state->length)
        tokens[count++] = state->tokens[state->unread++];
    return count;
}

od_status od_read(od_conversation handle, int32_t *tokens, int32_t capacity, int32_t timeout_ms,
                  int32_t *count, od_error *error) {
    int64_t deadline_ns = timeout_ms < 0 ? -1 : od_now_ns() + (int64_t)timeout_ms * 1000000;
    od_core *engine = NULL;
    od_state *state = NULL;
    *count = 0;
    if (capacity <= 0) return od_fail(error, OD_INVALID, "capacity = %d tokens", capacity);
    od_status status = od_enter(handle, &engine, &state, error);
    if (status != OD_OK) return status;
    uint32_t number = state->number;
    for (;;) {
        *count = take_unread(state, tokens, capacity);
        if (*count > 0) return od_leave(engine, OD_OK);
        if (!state->active) return od_leave(engine, explain_ending(engine, state, error));
        if (deadline_ns >= 0 && od_now_ns() >= deadline_ns) return od_leave(engine, OD_TIMEOUT);
        wait_progress(engine, deadline_ns);
        if (!still(state, number))
            return od_leave(engine, od_fail(error, OD_CLOSED, "the conversation was closed"));
    }
}

od_status od_cancel(od_conversation handle, od_error *error) {
    od_core *engine = NULL;
    od_state *state = NULL;
    od_status status = od_enter(handle, &engine, &state, error);
    if (status != OD_OK) return status;
    if (state->active) cancel(engine, state);
    return od_leave(engine, OD_OK);
}
