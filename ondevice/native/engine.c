/* Opening, closing and the engine's own thread. */
#include "engine.h"
#include "sample.h"

/* ---- the engine's thread ---- */

/* Waking a thread may take as long as a step of a small model. Where such steps follow each other,
 * readers are woken once in a while; no token waits longer for it than this time and one step. */
static void wake_readers(od_core *engine, bool soon_again) {
    const int64_t longest_ns = 1000000;
    int64_t now_ns = od_now_ns();
    if (soon_again && now_ns - engine->readers_woken_ns < longest_ns) return;
    engine->readers_woken_ns = now_ns;
    od_event_wake(&engine->progress);
}

static void engine_main(void *argument) {
    od_core *engine = argument;
    od_threads_enter(engine->threads);
    od_threads_watch(engine->threads, &engine->streaming.place);
    od_lock_acquire(&engine->lock);
    while (!engine->closing) {
        bool any = od_batch_assemble(engine);
        uint32_t seen = atomic_load(&engine->work.value);
        od_lock_release(&engine->lock);
        wake_readers(engine, any && od_batch_generates(engine)); /* now: they want the lock */
        if (any) od_batch_run(engine);
        else od_event_wait(&engine->work, seen, 0, -1);
        od_lock_acquire(&engine->lock);
        if (any) od_batch_deliver(engine);
    }
    for (int32_t i = 0; i < engine->capacity; i++)
        if (engine->states[i].active) od_finish(engine, &engine->states[i], OD_CLOSED);
    od_lock_release(&engine->lock);
    od_event_wake(&engine->progress);
}

/* ---- open ---- */

static od_status check_options(const od_options *options, od_error *error) {
    if (options->threads < 0 || options->threads > OD_MAX_THREADS)
        return od_fail(error, OD_INVALID, "threads = %d is not within 0..%d", options->threads,
                       OD_MAX_THREADS);
    if (options->conversations < 0 || options->conversations > OD_MAX_CONVERSATIONS)
        return od_fail(error, OD_INVALID, "conversations = %d is not within 0..%d",
                       options->conversations, OD_MAX_CONVERSATIONS);
    if (options->kv_blocks < 0)
        return od_fail(error, OD_INVALID, "kv_blocks = %d is negative", options->kv_blocks);
    if (options->draft_tokens < -1 || options->draft_tokens > OD_DRAFT_MOST)
        return od_fail(error, OD_INVALID, "draft_tokens = %d is not within -1..%d",
                       options->draft_tokens, OD_DRAFT_MOST);
    return OD_OK;
}

static od_status check_version(const od_model *model, od_error *error) {
    if (model == NULL) return od_fail(error, OD_INVALID, "no model was given");
    if (model->format_version != OD_FORMAT_VERSION)
        return od_fail(error, OD_MODEL, "the model is of format %lld, this runtime runs %d",
                       (long long)model->format_version, OD_FORMAT_VERSION);
    if (model->struct_bytes != sizeof *model)
        return od_fail(error, OD_MODEL, "the model's descriptor has %lld bytes, not %lld",
                       (long long)model->struct_bytes, (long long)sizeof *model);
    return OD_OK;
}

static bool reserve_states(od_core *engine) {
    const od_model *model = engine->model;
    size_t context = (size_t)model->context_tokens, width = (size_t)model->block_table_width;
    size_t each = 2 * context + width + OD_DRAFT_HEADS;
    size_t count = (size_t)engine->capacity;
    engine->lists_bytes = each * count * sizeof(int32_t);
    engine->lists = od_reserve(engine->lists_bytes);
    engine->states = od_reserve(count * sizeof(od_state));
    engine->shares = od_reserve(count * sizeof(od_share));
    engine->answers = od_reserve(count * sizeof(od_answer));
    if (engine->lists == NULL || engine->states == NULL || engine->shares == NULL ||
        engine->answers == NULL)
        return false;
    for (size_t i = 0; i < count; i++) {
        od_state *state = &engine->states[i];
        state->tokens = engine->lists + i * each;
        state->table.blocks = state->tokens + context;
        state->index.before = state->table.blocks + width;
        state->index.heads = state->index.before + context;
        state->answer = &engine->answers[i];
    }
    return true;
}

static od_status reserve_all(od_core *engine, const od_options *options, od_error *error) {
    const od_model *model = engine->model;
    int32_t blocks = options->kv_blocks > 0 ? options->kv_blocks : 4 * model->block_table_width;
    const od_variant *variant = NULL;
    od_status status = od_program_choose(model, options->variant, &variant, error);
    if (status != OD_OK) return status;
    if (!od_kv_open(&engine->kv, blocks, model->kv_block_bytes))
        return od_fail(error, OD_MEMORY, "cannot reserve %d KV blocks of %lld bytes", blocks,
                       (long long)model->kv_block_bytes);
    status = od_program_open(&engine->program, model, variant, engine->weights.data,
                             engine->kv.data, blocks, engine->capacity, error);
    if (status != OD_OK) return status;
    if (!reserve_states(engine))
        return od_fail(error, OD_MEMORY, "cannot reserve %d conversations of %d tokens",
                       engine->capacity, model->context_tokens);
    int64_t scratch_bytes = (int64_t)od_sample_bytes(model->vocab_size);
    if (scratch_bytes < model->scratch_bytes) scratch_bytes = model->scratch_bytes;
    engine->threads = od_threads_open(engine->thread_count, scratch_bytes);
    if (engine->threads == NULL)
        return od_fail(error, OD_MEMORY, "cannot start %d threads", engine->thread_count);
    return OD_OK;
}

static void free_engine(od_core *engine) {
    size_t count = (size_t)engine->capacity;
    od_streaming_close(&engine->streaming);
    od_threads_close(engine->threads);
    od_profile_close(engine->profile);
    od_program_close(&engine->program);
    od_kv_close(&engine->kv);
    od_weights_close(&engine->weights);
    od_release(engine->lists, engine->lists_bytes);
    od_release(engine->states, count * sizeof(od_state));
    od_release(engine->shares, count * sizeof(od_share));
    for (size_t i = 0; engine->answers != NULL && i < count; i++)
        od_answer_close(&engine->answers[i]);
    od_release(engine->answers, count * sizeof(od_answer));
    od_release(engine, sizeof *engine);
}

static void stop_engine(od_core *engine) {
    od_lock_acquire(&engine->lock);
    engine->closing = true;
    od_lock_release(&engine->lock);
    od_event_advance(&engine->work);
    od_thread_join(engine->thread);
}

static int32_t threads_wanted(int32_t asked) {
    if (asked > 0) return asked;
    int32_t cores = od_core_count();
    return cores < OD_MAX_THREADS ? cores : OD_MAX_THREADS;
}

od_status od_engine_open(const od_model *model, int fd, int64_t offset, int64_t length,
                         const od_options *options, od_engine *handle, od_error *error) {
    const od_options defaults = {.threads = 0};
    if (options == NULL) options = &defaults;
    od_status status = check_options(options, error);
    if (status == OD_OK) status = check_version(model, error);
    if (status != OD_OK) return status;
    od_core *engine = od_reserve(sizeof *engine);
    if (engine == NULL) return od_fail(error, OD_MEMORY, "cannot reserve an engine");
    engine->model = model;
    engine->capacity = options->conversations > 0 ? options->conversations : 16;
    engine->draft_tokens = options->draft_tokens;
    engine->thread_count = threads_wanted(options->threads);
    status = od_weights_open(&engine->weights, model, fd, offset, length, error);
    if (status == OD_OK)
        od_streaming_open(&engine->streaming, engine->weights.data, model->weights_bytes);
    if (status == OD_OK) status = reserve_all(engine, options, error);
    if (status == OD_OK && !od_thread_start(&engine->thread, engine_main, engine))
        status = od_fail(error, OD_MEMORY, "cannot start the engine's thread");
    else if (status == OD_OK) {
        status = od_handle_new(engine, handle, error);
        if (status != OD_OK) stop_engine(engine);
    }
    if (status != OD_OK) free_engine(engine);
    return status;
}

od_status od_engine_close(od_engine handle, od_error *error) {
    od_core *engine = NULL;
    od_status status = od_handle_remove(handle, &engine, error);
    if (status != OD_OK) return status;
    stop_engine(engine);
    od_handle_wait_callers(engine);
    free_engine(engine);
    return OD_OK;
}

od_status od_engine_describe(od_engine handle, od_engine_info *info, od_error *error) {
    od_core *engine = NULL;
    od_status status = od_enter_engine(handle, &engine, error);
    if (status != OD_OK) return status;
    const od_model *model = engine->model;
    *info = (od_engine_info){
        .vocab_size = model->vocab_size,
        .context_tokens = model->context_tokens,
        .prefill_chunk_tokens = model->prefill_chunk_tokens,
        .logit_rows = model->logit_rows,
        .threads = engine->thread_count,
        .kv_blocks = engine->kv.block_count,
        .kv_blocks_free = od_kv_available(&engine->kv),
        .kv_blocks_cached = engine->kv.index.idle_count,
        .model = model->name,
        .variant = engine->program.variant->name,
    };
    for (int32_t i = 0; i < engine->capacity; i++) info->conversations += engine->states[i].open;
    return od_leave(engine, OD_OK);
}
