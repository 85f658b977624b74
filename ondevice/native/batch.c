/* One step: rows of all active conversations side by side. */
#include "engine.h"

#include "rope.h"
#include "sample.h"

enum { PROMPT_PART = 8 };

static int32_t *step_ints(od_core *engine, od_step_buffer buffer) {
    return engine->program.step[buffer].data;
}

static float *step_logits(od_core *engine, int32_t row) {
    float *logits = engine->program.step[OD_STEP_LOGITS].data;
    return logits + (size_t)row * (size_t)engine->model->vocab_size;
}

static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

/* Keep what the answer says before a stop string, and no more. */
static void cut_answer(od_core *engine, od_state *state) {
    od_answer *answer = state->answer;
    int32_t kept = answer->text.kept.tokens, most = engine->model->context_tokens - kept;
    int32_t rest = od_answer_rest(answer, state->tokens + kept, most);
    state->length = kept + rest;
    od_draft_forget(&state->index, kept);
    if (state->computed > kept) state->computed = kept;
    od_answer_forget_logprobs(answer, kept + 1, state->length);
}

void od_finish(od_core *engine, od_state *state, od_status status) {
    if (od_answer_finish(state->answer) == OD_STOP) {
        cut_answer(engine, state);
        if (status > OD_OK) status = OD_STOP;
    }
    state->active = false;
    state->ending = status;
    od_kv_shrink(&engine->kv, &state->table, od_kv_blocks_for(state->computed));
    atomic_fetch_add(&engine->progress.value, 1);
}

void od_reuse(od_core *engine, od_state *state) {
    int32_t first = state->computed / OD_KV_BLOCK_TOKENS;
    int32_t end = state->needed_from / OD_KV_BLOCK_TOKENS;
    od_kv_found found = od_kv_find(&engine->kv, &state->table, state->tokens, first, end);
    if (found.count == 0) return;
    od_kv_adopt(&engine->kv, &state->table, state->tokens, first, found.count);
    int32_t skipped = (first + found.count) * OD_KV_BLOCK_TOKENS - state->computed;
    state->computed += skipped;
    state->stats.shared_tokens += skipped;
    state->stats.total_reused_tokens += skipped;
}

/* ---- assemble ---- */

/* Rows the conversation gets in this step; the last `logit_rows` of them want logits. */
static od_share share_for(const od_core *engine, od_state *state) {
    int32_t pending = state->length - state->computed;
    int32_t rows = least(pending, engine->step_most - engine->step_rows);
    int32_t room = engine->model->logit_rows - engine->step_logits;
    int32_t logit_rows = 0;
    if (state->logits != NULL) {
        int32_t silent = state->needed_from - state->computed;
        if (silent < 0) silent = 0;
        rows = least(rows, silent + room);
        logit_rows = rows > silent ? rows - silent : 0;
    } else if (rows == pending && state->answer->sampling.max_tokens > 0) {
        logit_rows = least(room, 1);
        rows -= 1 - logit_rows; /* the last row waits for a step with room for its logits */
    }
    return (od_share){state, rows, engine->step_logits, logit_rows, {0, 0}, {0}, 0};
}

/* Rows that a guess may add: everybody else must still get a row and a block. */
static int32_t draft_room(const od_core *engine, const od_state *state) {
    const od_model *model = engine->model;
    int32_t rows = least(model->logit_rows, model->prefill_chunk_tokens);
    int32_t room = rows - engine->step_generating - engine->draft_rows;
    room = least(room, state->answer->sampling.max_tokens - state->generated - 1);
    room = least(room, model->context_tokens - state->length);
    int32_t held = state->table.count * OD_KV_BLOCK_TOKENS - state->length;
    if (od_kv_available(&engine->kv) <= engine->step_generating) room = least(room, held);
    return least(room, OD_DRAFT_MOST);
}

/* Guess what a generating conversation says next, and add as much of it as pays. */
static void add_draft(od_core *engine, od_share *share) {
    od_state *state = share->state;
    if (engine->draft_tokens < 0 || share->logit_rows != 1 || state->logits != NULL) return;
    int32_t room = draft_room(engine, state);
    if (engine->draft_tokens > 0) room = least(room, engine->draft_tokens);
    if (room <= 0) return;
    share->draft = od_draft_find(&state->index, state->tokens, state->length, room);
    if (engine->draft_tokens == 0) {
        int32_t rows = engine->step_generating + engine->draft_rows;
        int32_t worth = od_draft_worth(&state->record, &engine->costs, share->draft, rows);
        if (worth == 0)
            od_draft_set_aside(&state->record, share->draft, state->tokens + state->length);
        share->draft.count = worth;
    }
    engine->draft_rows += share->draft.count;
    share->rows += share->draft.count;
    share->logit_rows += share->draft.count;
}

static void add_share(od_core *engine, od_state *state, bool prompt) {
    od_reuse(engine, state); /* others may have computed the same since the last step */
    od_share share = share_for(engine, state);
    if (share.rows == 0) return;
    if (!prompt) add_draft(engine, &share);
    int32_t blocks = od_kv_blocks_for(state->computed + share.rows);
    if (!od_kv_grow(&engine->kv, &state->table, blocks)) {
        od_finish(engine, state, OD_KV_FULL);
        return;
    }
    for (int32_t i = 0; i < share.rows; i++) {
        int32_t row = engine->step_rows + i;
        step_ints(engine, OD_STEP_TOKENS)[row] = state->tokens[state->computed + i];
        step_ints(engine, OD_STEP_POSITIONS)[row] = state->computed + i;
        step_ints(engine, OD_STEP_SEQUENCE)[row] = engine->share_count;
    }
    engine->step_rows += share.rows;
    for (int32_t i = 0; i < share.logit_rows; i++)
        step_ints(engine, OD_STEP_LOGIT_ROWS)[engine->step_logits++] =
            engine->step_rows - share.logit_rows + i;
    size_t width = (size_t)engine->model->block_table_width;
    memcpy(step_ints(engine, OD_STEP_BLOCK_TABLE) + (size_t)engine->share_count * width,
           state->table.blocks, (size_t)state->table.count * sizeof(int32_t));
    engine->shares[engine->share_count++] = share;
}

static bool is_prompt(const od_state *state) { return state->length - state->computed > 1; }

/* Rows that the step may have so far. Who generates waits for the whole step, so beside them prompts
 * get one part of a chunk. */
static int32_t most_rows(const od_core *engine, bool prompts) {
    int32_t chunk = engine->model->prefill_chunk_tokens;
    if (!prompts || engine->share_count == 0) return chunk;
    return least(chunk, engine->step_rows + chunk / PROMPT_PART + 1);
}

/* Conversations that generate come first, each a row; prompts share what is left. Both go round
 * from step to step, so nobody waits behind the same neighbour twice. */
bool od_batch_assemble(od_core *engine) {
    int64_t now_ns = od_now_ns();
    engine->share_count = engine->step_rows = engine->step_logits = 0;
    engine->step_generating = engine->draft_rows = 0;
    for (int32_t i = 0; i < engine->capacity; i++)
        engine->step_generating += engine->states[i].active && !is_prompt(&engine->states[i]);
    for (int prompts = 0; prompts < 2; prompts++) {
        engine->step_most = most_rows(engine, prompts);
        for (int32_t i = 0; i < engine->capacity; i++) {
            od_state *state = &engine->states[(engine->turn + i) % engine->capacity];
            if (!state->active || is_prompt(state) != prompts) continue;
            if (state->cancelled)
                od_finish(engine, state, OD_CANCELLED);
            else if (state->deadline_ns >= 0 && now_ns >= state->deadline_ns)
                od_finish(engine, state, OD_EXPIRED);
            else
                add_share(engine, state, prompts);
        }
    }
    engine->turn = (engine->turn + 1) % engine->capacity;
    return engine->share_count > 0;
}

bool od_batch_generates(const od_core *engine) {
    return engine->step_rows == engine->step_generating + engine->draft_rows;
}

/* ---- run ---- */

static void take_logits(od_core *engine, const od_share *share) {
    const od_state *state = share->state;
    size_t vocab = (size_t)engine->model->vocab_size;
    int32_t first = state->computed + share->rows - share->logit_rows - state->needed_from;
    memcpy(state->logits + (size_t)first * vocab, step_logits(engine, share->first_logit),
           (size_t)share->logit_rows * vocab * sizeof(float));
}

/* A token for each row, as long as it is the one that the next row was computed for. Each is chosen
 * from its own logits, what was said before it and its own draw: as one row at a time would. */
static void choose_tokens(od_core *engine, od_share *share, void *work) {
    const od_state *state = share->state;
    const od_answer *answer = state->answer;
    int32_t vocab = engine->model->vocab_size, token, *count = &share->token_count;
    do {
        const float *logits = step_logits(engine, share->first_logit + *count);
        od_said said = {state->tokens, state->length + *count, state->generated + *count};
        token = od_sample(logits, vocab, &answer->sampling, &said, work);
        od_logprob *logprobs = od_answer_logprobs(answer, said.generated);
        if (logprobs != NULL && token >= 0)
            od_logprobs(logits, vocab, token, answer->sampling.logprobs - 1, logprobs, work);
        share->tokens[(*count)++] = token;
    } while (*count <= share->draft.count && token == state->tokens[state->length + *count - 1]);
}

/* A kernel over the shares of the step: all threads choose tokens. */
static void finish_shares(void *const *buffers, const int32_t *scalars, int32_t begin, int32_t end,
                          void *scratch) {
    od_core *engine = buffers[0];
    (void)scalars;
    for (int32_t i = begin; i < end; i++) {
        od_share *share = &engine->shares[i];
        if (share->logit_rows == 0) continue;
        if (share->state->logits != NULL) take_logits(engine, share);
        else choose_tokens(engine, share, scratch);
    }
}

/* The list of that one kernel. */
static const od_work *plan_finish(od_core *engine) {
    od_work *work = &engine->finish;
    if (work->tasks == engine->share_count) return work;
    od_threads_settle(engine->threads);
    engine->finish_buffers[0] = engine;
    *work = (od_work){.tasks = engine->share_count, .chunk = 1,
                      .launch = engine->model->launch_count, .kernel = finish_shares,
                      .buffers = engine->finish_buffers};
    od_threads_prepare(engine->threads, work, 1);
    return work;
}

void od_batch_run(od_core *engine) {
    const od_model *model = engine->model;
    int64_t started_ns = od_now_ns();
    od_streaming_begin(&engine->streaming);
    for (int32_t i = 0; i < model->rope_count; i++) {
        const od_rope *rope = &model->ropes[i];
        od_rope_rows(rope, model->inv_freq + rope->first_inv_freq,
                     step_ints(engine, OD_STEP_POSITIONS), engine->step_rows,
                     engine->program.step[OD_STEP_ROPE + i].data);
    }
    od_program_run(&engine->program, engine->threads, engine->step_rows, engine->step_logits,
                   engine->share_count);
    od_streaming_end(&engine->streaming);
    if (engine->step_logits > 0) od_threads_run(engine->threads, plan_finish(engine), 1);
    if (od_batch_generates(engine))
        od_step_measured(&engine->costs, engine->step_rows, od_now_ns() - started_ns);
}

/* ---- deliver ---- */

static bool is_stop(const od_state *state, int32_t token) {
    const od_sampling *sampling = &state->answer->sampling;
    for (int32_t i = 0; i < sampling->stop_token_count; i++)
        if (sampling->stop_tokens[i] == token) return true;
    return false;
}

static void count_token(od_state *state, int64_t now_ns) {
    if (state->generated++ == 0) state->first_token_ns = now_ns;
    state->last_token_ns = now_ns;
}

/* How a token that is no stop token ends the answer; OD_OK: not at all. */
static od_status append_token(od_core *engine, od_state *state, int32_t token, int64_t now_ns) {
    if (state->length == engine->model->context_tokens) return OD_CONTEXT_FULL;
    state->tokens[state->length++] = token;
    count_token(state, now_ns);
    od_status status = od_answer_add(state->answer, token, state->length);
    if (status != OD_OK) return status;
    if (state->generated == state->answer->sampling.max_tokens) return OD_LENGTH;
    return state->length == engine->model->context_tokens ? OD_CONTEXT_FULL : OD_OK;
}

static void deliver_token(od_core *engine, od_state *state, int32_t token, int64_t now_ns) {
    od_status status = OD_OK;
    if (token < 0) status = OD_NUMERIC;
    else if (is_stop(state, token)) status = OD_STOP;
    else status = append_token(engine, state, token, now_ns);
    if (status != OD_OK) od_finish(engine, state, status);
}

/* `rows` more tokens are in the KV cache; blocks that they fill can be found from now on. */
static void count_computed(od_core *engine, od_state *state, int32_t rows) {
    od_stats *stats = &state->stats;
    int32_t place = state->computed / OD_KV_BLOCK_TOKENS;
    stats->total_computed_tokens += rows;
    if (state->computed < stats->prompt_tokens) stats->computed_tokens += rows;
    state->computed += rows;
    for (; place < state->computed / OD_KV_BLOCK_TOKENS; place++)
        od_kv_publish(&engine->kv, &state->table, state->tokens, place);
}

/* The rows up to the first wrong guess, and what was sampled from them. */
static void append_tokens(od_core *engine, const od_share *share, int64_t now_ns) {
    od_state *state = share->state;
    int32_t rows = share->rows - share->draft.count, right = share->token_count - 1;
    for (int32_t i = 0; i < share->token_count && state->active; i++, rows = 1) {
        count_computed(engine, state, rows);
        deliver_token(engine, state, share->tokens[i], now_ns);
        od_draft_compare(&state->record, share->tokens[i]);
    }
    if (share->draft.count == 0) return;
    od_draft_note(&state->record, share->draft.kind, share->draft.count, right);
    state->stats.drafted_tokens += share->draft.count;
    state->stats.accepted_tokens += right;
}

void od_batch_deliver(od_core *engine) {
    int64_t now_ns = od_now_ns();
    for (int32_t i = 0; i < engine->share_count; i++) {
        const od_share *share = &engine->shares[i];
        od_state *state = share->state;
        bool last = state->computed + share->rows - share->draft.count == state->length;
        if (!last)
            count_computed(engine, state, share->rows);
        else if (state->logits != NULL || state->answer->sampling.max_tokens == 0) {
            count_computed(engine, state, share->rows);
            od_finish(engine, state, OD_LENGTH);
        } else {
            append_tokens(engine, share, now_ns);
        }
    }
    atomic_fetch_add(&engine->progress.value, 1);
}
