/* The calls of conversations. Each enters (handle checked, lock held), does its work, leaves. */
#include "engine.h"
#include "sampling.h"

od_status od_take_slot(od_core *engine, int32_t *slot, od_error *error) {
    for (*slot = 0; *slot < engine->capacity; ++*slot) {
        od_state *state = &engine->states[*slot];
        if (state->open) continue;
        *state = (od_state){.open = true,
                            .number = state->number + 1,
                            .tokens = state->tokens,
                            .table = state->table,
                            .answer = state->answer,
                            .index = {state->index.heads, state->index.before, 0},
                            .ending = OD_INVALID};
        return OD_OK;
    }
    return od_fail(error, OD_MEMORY, "%d conversations are open, all that the engine was opened "
                   "for", engine->capacity);
}

od_status od_conversation_open(od_engine handle, od_conversation *conversation, od_error *error) {
    od_core *engine = NULL;
    int32_t slot = 0;
    od_status status = od_enter_engine(handle, &engine, error);
    if (status != OD_OK) return status;
    status = od_take_slot(engine, &slot, error);
    if (status == OD_OK)
        *conversation = od_handle_conversation(handle, slot, engine->states[slot].number);
    return od_leave(engine, status);
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
        od_answer_close(state->answer);
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

od_status od_conversation_stats(od_conversation handle, od_stats *stats, od_error *error) {
    od_core *engine = NULL;
    od_state *state = NULL;
    od_status status = od_enter(handle, &engine, &state, error);
    if (status != OD_OK) return status;
    *stats = state->stats;
    stats->generated_tokens = state->generated;
    if (state->generated > 0)
        stats->first_token_ms = (double)(state->first_token_ns - state->submitted_ns) / 1e6;
    int64_t generating_ns = state->last_token_ns - state->first_token_ns;
    if (state->generated > 1 && generating_ns > 0)
        stats->tokens_per_second = (state->generated - 1) * 1e9 / (double)generating_ns;
    return od_leave(engine, OD_OK);
}

static od_status refuse_busy(od_error *error) {
    return od_fail(error, OD_BUSY, "the conversation is generating: read to the end or cancel");
}

od_status od_fork(od_conversation handle, od_conversation *fork, od_error *error) {
    od_core *engine = NULL;
    od_state *from = NULL;
    int32_t slot = 0;
    od_status status = od_enter(handle, &engine, &from, error);
    if (status != OD_OK) return status;
    status = from->active ? refuse_busy(error) : od_take_slot(engine, &slot, error);
    if (status != OD_OK) return od_leave(engine, status);
    od_state *to = &engine->states[slot];
    memcpy(to->tokens, from->tokens, (size_t)from->length * sizeof(int32_t));
    to->length = to->unread = from->length;
    to->computed = from->computed;
    od_kv_fork(&engine->kv, &from->table, &to->table, from->table.count);
    *fork = od_handle_conversation(handle & UINT32_MAX, slot, to->number);
    return od_leave(engine, OD_OK);
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
    od_answer_drop(state->answer);
    if (state->computed > tokens) state->computed = tokens;
    od_draft_forget(&state->index, tokens);
    od_kv_shrink(&engine->kv, &state->table, od_kv_blocks_for(state->computed));
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
                       "of the context of %d; submit at most %d, or rewind it", n, state->length,
                       model->context_tokens, model->context_tokens - state->length);
    return OD_OK;
}

/* Blocks that must be available so that the tokens from `from` up to `length` can be computed. */
static int32_t blocks_needed(const od_core *engine, const od_state *state, int32_t from,
                             int32_t length) {
    int32_t first = from / OD_KV_BLOCK_TOKENS, end = state->needed_from / OD_KV_BLOCK_TOKENS;
    const od_kv_table *table = &state->table;
    od_kv_found found = od_kv_find(&engine->kv, table, state->tokens, first, end);
    int32_t held = first + found.count;
    if (held < table->count) held = table->count;
    int32_t needed = od_kv_blocks_for(length) - held + found.cost;
    if (found.count == 0 && first < table->count) /* a block will be written to: a copy, if shared */
        needed += engine->kv.references[table->blocks[first]] > 1;
    return needed;
}

/* Append tokens that have been checked, with blocks for all of them. Computing starts at
 * `needed_from` or before. */
static od_status append(od_core *engine, od_state *state, const int32_t *tokens, int32_t n,
                        int32_t needed_from, od_error *error) {
    od_kv_pool *pool = &engine->kv;
    int32_t length = state->length + n;
    int32_t from = state->computed < needed_from ? state->computed : needed_from;
    if (n > 0) memcpy(state->tokens + state->length, tokens, (size_t)n * sizeof(int32_t));
    state->needed_from = needed_from;
    int32_t needed = blocks_needed(engine, state, from, length);
    int32_t available = od_kv_available(pool);
    if (needed > available)
        return od_fail(error, OD_KV_FULL, "%d tokens need %d more KV blocks of %d tokens, %d of %d "
                       "are free; close or rewind a conversation and submit again, or open the "
                       "engine with more kv_blocks", n, needed, OD_KV_BLOCK_TOKENS, available,
                       pool->block_count);
    state->stats = (od_stats){
        .prompt_tokens = length,
        .own_tokens = from,
        .total_reused_tokens = state->stats.total_reused_tokens + from,
        .total_computed_tokens = state->stats.total_computed_tokens,
    };
    state->length = state->unread = length;
    state->computed = from;
    od_reuse(engine, state);
    od_kv_grow(pool, &state->table, od_kv_blocks_for(length));
    od_kv_own(pool, &state->table, state->computed / OD_KV_BLOCK_TOKENS);
    return OD_OK;
}

static void start(od_core *engine, od_state *state, int32_t timeout_ms) {
    state->submitted_ns = od_now_ns();
    state->deadline_ns =
        timeout_ms == 0 ? -1 : state->submitted_ns + (int64_t)timeout_ms * 1000000;
    state->generated = 0;
    state->cancelled = false;
    state->active = true;
    od_event_advance(&engine->work);
}

/* What the request asks for is checked and reserved first, so that one that is refused has changed
 * nothing. */
static od_status submit(od_core *engine, od_state *state, const int32_t *tokens, int32_t n,
                        const od_sampling *asked, od_error *error) {
    const od_model *model = engine->model;
    od_tokenizer_info tokenizer;
    od_sampling sampling = *asked;
    if (sampling.logprobs > 1 + model->vocab_size) sampling.logprobs = 1 + model->vocab_size;
    od_status status = od_sampling_check(&sampling, model, &tokenizer, error);
    if (status == OD_OK) status = check_tokens(engine, state, tokens, n, error);
    if (status != OD_OK) return status;
    int32_t length = state->length + n, rows = model->context_tokens - length;
    if (rows > sampling.max_tokens) rows = sampling.max_tokens;
    od_logprob *logprobs = NULL;
    status = od_answer_reserve(&sampling, rows, &logprobs, error);
    /* The last token is computed in any case, also to continue: its logits are needed. */
    if (status == OD_OK) status = append(engine, state, tokens, n, length - 1, error);
    if (status != OD_OK) {
        od_answer_release(&sampling, rows, logprobs);
        return status;
    }
    state->logits = NULL;
    od_answer_open(state->answer, &sampling, &tokenizer, length, rows, logprobs);
    start(engine, state, sampling.timeout_ms);
    return OD_OK;
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
    if (status == OD_OK) status = submit(engine, state, tokens, n, sampling, error);
    return od_leave(engine, status);
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
    if (status == OD_OK) status = append(engine, state, tokens, n, state->length, error);
    if (status != OD_OK) return od_leave(engine, status);
    od_answer_close(state->answer);
    state->logits = logits;
    start(engine, state, 0);
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
                           "is %d; rewind it to go on", state->length,
                           engine->model->context_tokens);
        case OD_KV_FULL:
            return od_fail(error, OD_KV_FULL, "the conversation holds %d tokens in %d KV blocks "
                           "and needs another, %d of %d are free; close or rewind a conversation, "
                           "then submit again", state->length, state->table.count,
                           od_kv_available(&engine->kv), engine->kv.block_count);
        case OD_NUMERIC:
            return od_fail(error, OD_NUMERIC, "the logits after token %d of the conversation are "
                           "not finite numbers", state->computed - 1);
        case OD_CLOSED:
            return od_fail(error, OD_CLOSED, "the %s was closed before the answer had ended",
                           engine->closing ? "engine" : "tokenizer");
        case OD_MEMORY:
            return od_fail(error, OD_MEMORY, "no memory for the text of the answer");
        default:
            return od_fail(error, state->ending, "%s after %d tokens",
                           od_status_name(state->ending), state->generated);
    }
}

/* Tokens that may be read: while strings may end the answer, those before what is held back. */
static int32_t readable(const od_state *state) {
    const od_answer_text *text = &state->answer->text;
    return state->active && text->stops.count > 0 ? text->kept.tokens : state->length;
}

/* Where a call puts what it reads. */
typedef struct reader {
    int64_t (*take)(od_state *state, const struct reader *to); /* how much it was */
    void *to;
    int64_t capacity;
} reader;

static int64_t take_tokens(od_state *state, const reader *to) {
    int32_t *tokens = to->to;
    int64_t count = 0;
    for (int32_t end = readable(state); count < to->capacity && state->unread < end; count++)
        tokens[count] = state->tokens[state->unread++];
    return count;
}

static int64_t take_logprobs(od_state *state, const reader *to) {
    od_token_logprobs *tokens = to->to;
    int64_t count = 0;
    for (int32_t end = readable(state); count < to->capacity && state->unread < end; count++) {
        int32_t place = state->unread++;
        od_answer_show_logprobs(state->answer, place, state->tokens[place], &tokens[count]);
    }
    return count;
}

static int64_t take_text(od_state *state, const reader *to) {
    return od_answer_take(state->answer, to->to, to->capacity);
}

static od_status check_reader(const od_state *state, const reader *to, od_error *error) {
    const od_sampling *sampling = &state->answer->sampling;
    if (!state->active && state->ending == OD_INVALID) return OD_OK; /* which says more */
    if (to->take == take_text && sampling->tokenizer == 0)
        return od_fail(error, OD_INVALID, "the answer has no text: od_submit was given no "
                       "tokenizer");
    if (to->take == take_logprobs && sampling->logprobs == 0)
        return od_fail(error, OD_INVALID, "od_submit was not asked for logprobs");
    return OD_OK;
}

static od_status read_some(od_conversation handle, const reader *to, int32_t timeout_ms,
                           int64_t *count, od_error *error) {
    int64_t deadline_ns = timeout_ms < 0 ? -1 : od_now_ns() + (int64_t)timeout_ms * 1000000;
    od_core *engine = NULL;
    od_state *state = NULL;
    *count = 0;
    od_status status = od_enter(handle, &engine, &state, error);
    if (status != OD_OK) return status;
    status = check_reader(state, to, error);
    if (status != OD_OK) return od_leave(engine, status);
    uint32_t number = state->number;
    for (;;) {
        *count = to->take(state, to);
        if (*count > 0) return od_leave(engine, OD_OK);
        if (!state->active) return od_leave(engine, explain_ending(engine, state, error));
        if (deadline_ns >= 0 && od_now_ns() >= deadline_ns) return od_leave(engine, OD_TIMEOUT);
        wait_progress(engine, deadline_ns);
        if (!still(state, number))
            return od_leave(engine, od_fail(error, OD_CLOSED, "the conversation was closed"));
    }
}

od_status od_read(od_conversation handle, int32_t *tokens, int32_t capacity, int32_t timeout_ms,
                  int32_t *count, od_error *error) {
    const reader to = {take_tokens, tokens, capacity};
    int64_t taken = 0;
    *count = 0;
    if (capacity <= 0) return od_fail(error, OD_INVALID, "capacity = %d tokens", capacity);
    od_status status = read_some(handle, &to, timeout_ms, &taken, error);
    *count = (int32_t)taken;
    return status;
}

od_status od_read_logprobs(od_conversation handle, od_token_logprobs *tokens, int32_t capacity,
                           int32_t timeout_ms, int32_t *count, od_error *error) {
    const reader to = {take_logprobs, tokens, capacity};
    int64_t taken = 0;
    *count = 0;
    if (capacity <= 0) return od_fail(error, OD_INVALID, "capacity = %d tokens", capacity);
    od_status status = read_some(handle, &to, timeout_ms, &taken, error);
    *count = (int32_t)taken;
    return status;
}

od_status od_read_text(od_conversation handle, char *text, int64_t capacity, int32_t timeout_ms,
                       int64_t *bytes, od_error *error) {
    const reader to = {take_text, text, capacity};
    *bytes = 0;
    if (capacity < 4)
        return od_fail(error, OD_INVALID, "capacity = %lld bytes: a character may have 4",
                       (long long)capacity);
    return read_some(handle, &to, timeout_ms, bytes, error);
}

od_status od_cancel(od_conversation handle, od_error *error) {
    od_core *engine = NULL;
    od_state *state = NULL;
    od_status status = od_enter(handle, &engine, &state, error);
    if (status != OD_OK) return status;
    if (state->active) cancel(engine, state);
    return od_leave(engine, OD_OK);
}
