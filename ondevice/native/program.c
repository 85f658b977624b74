#include "program.h"

int64_t od_extent_evaluate(const od_extent *e, const od_sizes *sizes) {
    int64_t sum = e->constant + (int64_t)e->s * sizes->s + (int64_t)e->l * sizes->l +
                  (int64_t)e->b * sizes->b + (int64_t)e->p * sizes->p +
                  (int64_t)e->t * sizes->t;
    int64_t quotient = sum / e->div + (sum % e->div > 0); /* rounds towards +infinity */
    return e->mul * quotient;
}

/* ---- choosing a variant ---- */

static bool same_text(const char *a, const char *b) {
    while (*a != '\0' && *a == *b) a++, b++;
    return *a == *b;
}

od_status od_program_choose(const od_model *model, const char *name, const od_variant **variant,
                            od_error *error) {
    uint64_t features = od_cpu_features();
    for (int32_t i = 0; i < model->variant_count; i++) {
        const od_variant *candidate = &model->variants[i];
        if (name != NULL && !same_text(candidate->name, name)) continue;
        if ((candidate->features & ~features) == 0 && od_cpu_permit(candidate->features)) {
            *variant = candidate;
            return OD_OK;
        }
        if (name != NULL)
            return od_fail(error, OD_CPU, "this CPU cannot run variant %s of %s", name,
                           model->name);
    }
    if (name != NULL)
        return od_fail(error, OD_INVALID, "%s has no CPU variant called %s", model->name, name);
    return od_fail(error, OD_CPU, "this CPU can run none of the %d variants of %s; the least it "
                   "needs is %s", model->variant_count, model->name,
                   model->variants[model->variant_count - 1].name);
}

/* ---- checking ---- */

static bool argument_valid(const od_model *model, const od_argument *a) {
    switch (a->space) {
        case OD_SPACE_WEIGHTS: return a->offset >= 0 && a->offset <= model->weights_bytes;
        case OD_SPACE_ARENA: return a->index >= 0 && a->index < model->slot_count;
        case OD_SPACE_STEP: return a->index >= 0 && a->index < OD_STEP_ROPE + model->rope_count;
        case OD_SPACE_KV: return true;
        case OD_SPACE_WORKER: return a->offset >= 0 && a->offset < model->scratch_bytes;
        default: return false;
    }
}

/* Whether rows [first, first + count) lie in a table of `length` rows. */
static bool inside(int32_t first, int32_t count, int32_t length) {
    return first >= 0 && count >= 0 && first <= length && count <= length - first;
}

static bool launch_valid(const od_model *model, const od_launch *launch) {
    bool ok = inside(launch->kernel, 1, model->kernel_count) && launch->chunk > 0 &&
              launch->argument_count <= OD_MAX_BUFFERS &&
              inside(launch->first_argument, launch->argument_count, model->argument_count) &&
              inside(launch->first_scalar, launch->scalar_count, model->extent_count) &&
              inside(launch->tasks, 1, model->extent_count) &&
              inside(launch->rows, 1, model->extent_count);
    for (int32_t i = 0; ok && i < launch->argument_count; i++)
        ok = argument_valid(model, &model->arguments[launch->first_argument + i]);
    return ok;
}

static od_status check_model(const od_model *model, od_error *error) {
    if (model->prefill_chunk_tokens < 1 || model->logit_rows < 1 || model->context_tokens < 1 ||
        model->vocab_size < 1 || model->block_table_width < 1 || model->variant_count < 1 ||
        model->launch_count > UINT16_MAX)
        return od_fail(error, OD_MODEL, "the sizes of %s are damaged", model->name);
    for (int32_t i = 0; i < model->launch_count; i++)
        if (!launch_valid(model, &model->launches[i]))
            return od_fail(error, OD_MODEL, "launch %d of %s is damaged", i, model->name);
    for (int32_t i = 0; i < model->extent_count; i++)
        if (model->extents[i].div <= 0)
            return od_fail(error, OD_MODEL, "extent %d of %s is damaged", i, model->name);
    for (int32_t i = 0; i < model->slot_count; i++)
        if (model->slots[i].div <= 0)
            return od_fail(error, OD_MODEL, "arena slot %d of %s is damaged", i, model->name);
    return OD_OK;
}

/* ---- reserving ---- */

static int32_t spans_for(int32_t positions) {
    return positions / OD_KV_SPAN_TOKENS + (positions % OD_KV_SPAN_TOKENS != 0);
}

/* Offsets of the slots at `sizes`; returns the bytes of the arena. */
static int64_t place_slots(const od_model *model, const od_sizes *sizes, int64_t *offsets) {
    int64_t total = 0;
    for (int32_t i = 0; i < model->slot_count; i++) {
        offsets[i] = total;
        int64_t bytes = od_extent_evaluate(&model->slots[i], sizes);
        total += (bytes + OD_ALIGN_BYTES - 1) / OD_ALIGN_BYTES * OD_ALIGN_BYTES;
    }
    return total;
}

static bool reserve_region(od_region *region, int64_t bytes) {
    region->bytes = (size_t)bytes;
    region->data = od_reserve(region->bytes);
    return region->data != NULL;
}

/* Lays arrays out one behind the other; without a start it only counts. */
typedef struct layout {
    uint8_t *start;
    size_t bytes;
} layout;

static void *take(layout *place, int32_t count, size_t element_bytes) {
    void *taken = place->start == NULL ? NULL : place->start + place->bytes;
    place->bytes += ((size_t)count * element_bytes + 63) / 64 * 64;
    return taken;
}

static size_t place_tables(od_program *program, uint8_t *start) {
    const od_model *model = program->model;
    layout tables = {start, 0};
    program->work = take(&tables, model->launch_count, sizeof(od_work));
    program->buffers = take(&tables, model->argument_count, sizeof(void *));
    program->scalars = take(&tables, model->extent_count, sizeof(int32_t));
    program->slots = take(&tables, model->slot_count, sizeof(int64_t));
    program->step = take(&tables, OD_STEP_ROPE + model->rope_count, sizeof(od_region));
    return tables.bytes;
}

static bool reserve_step_buffers(od_program *program) {
    const od_model *model = program->model;
    const int64_t rows = program->largest.s;
    const int64_t counts[OD_STEP_ROPE] = {
        [OD_STEP_TOKENS] = rows,
        [OD_STEP_POSITIONS] = rows,
        [OD_STEP_SEQUENCE] = rows,
        [OD_STEP_BLOCK_TABLE] = (int64_t)program->largest.b * model->block_table_width,
        [OD_STEP_LOGIT_ROWS] = program->largest.l,
        [OD_STEP_LOGITS] = (int64_t)program->largest.l * model->vocab_size,
    };
    bool ok = true;
    for (int32_t i = 0; ok && i < OD_STEP_ROPE; i++)
        ok = reserve_region(&program->step[i], counts[i] * 4);
    for (int32_t i = 0; ok && i < model->rope_count; i++)
        ok = reserve_region(&program->step[OD_STEP_ROPE + i],
                            rows * 2 * model->ropes[i].half_dim * 4);
    return ok;
}

od_status od_program_open(od_program *program, const od_model *model, const od_variant *variant,
                          const uint8_t *weights, uint8_t *kv, int32_t kv_blocks,
                          int32_t sequences, od_error *error) {
    *program = (od_program){.model = model, .variant = variant, .weights = weights, .kv = kv};
    program->largest = (od_sizes){model->prefill_chunk_tokens, model->logit_rows, sequences,
                                  kv_blocks, spans_for(model->context_tokens)};
    od_status status = check_model(model, error);
    if (status != OD_OK) return status;
    size_t bytes = place_tables(program, NULL);
    if (!reserve_region(&program->tables, (int64_t)bytes))
        return od_fail(error, OD_MEMORY, "cannot reserve %lld bytes of tables", (long long)bytes);
    place_tables(program, program->tables.data);
    if (!reserve_step_buffers(program))
        return od_fail(error, OD_MEMORY, "cannot reserve the buffers of a step of %d tokens",
                       program->largest.s);
    int64_t arena_bytes = place_slots(model, &program->largest, program->slots);
    if (!reserve_region(&program->arena, arena_bytes))
        return od_fail(error, OD_MEMORY, "cannot reserve an arena of %lld bytes",
                       (long long)arena_bytes);
    return OD_OK;
}

void od_program_close(od_program *program) {
    if (program->step != NULL)
        for (int32_t i = 0; i < OD_STEP_ROPE + program->model->rope_count; i++)
            od_release(program->step[i].data, program->step[i].bytes);
    od_release(program->arena.data, program->arena.bytes);
    od_release(program->tables.data, program->tables.bytes);
}

/* ---- running ---- */

static void *resolve(const od_program *program, const od_argument *a) {
    switch (a->space) {
        case OD_SPACE_WEIGHTS: /* kernels take all buffers as void *; these are mapped read-only */
            return (void *)(uintptr_t)(program->weights + a->offset);
        case OD_SPACE_ARENA:
            return (uint8_t *)program->arena.data + program->slots[a->index] + a->offset;
        case OD_SPACE_STEP: return (uint8_t *)program->step[a->index].data + a->offset;
        case OD_SPACE_WORKER: return (void *)(uintptr_t)a->offset; /* see od_work */
        default: return program->kv;
    }
}

/* Returns a mask of the buffers that are the worker's own. */
static uint32_t plan_buffers(od_program *program, const od_launch *launch) {
    uint32_t own = 0;
    for (int32_t i = 0; i < launch->argument_count; i++) {
        int32_t at = launch->first_argument + i;
        const od_argument *argument = &program->model->arguments[at];
        program->buffers[at] = resolve(program, argument);
        if (argument->space == OD_SPACE_WORKER) own |= UINT32_C(1) << i;
    }
    return own;
}

static od_work *plan_launch(od_program *program, const od_launch *launch, int32_t tasks) {
    const od_model *model = program->model;
    for (int32_t i = 0; i < launch->scalar_count; i++) {
        int32_t at = launch->first_scalar + i;
        program->scalars[at] =
            (int32_t)od_extent_evaluate(&model->extents[at], &program->planned);
    }
    od_work *work = &program->work[program->work_count++];
    work->own = plan_buffers(program, launch);
    work->buffer_count = (uint8_t)launch->argument_count;
    work->each = launch->each != 0;
    work->chained = 0;
    work->tasks = tasks;
    work->chunk = launch->chunk;
    work->barrier = launch->barrier != 0;
    work->launch = (int32_t)(launch - model->launches);
    work->kernel = program->variant->kernels[launch->kernel];
    work->buffers = program->buffers + launch->first_argument;
    work->scalars = program->scalars + launch->first_scalar;
    work->place = -1;
    for (int32_t i = launch->argument_count - 1; i >= 0; i--) {
        const od_argument *a = &model->arguments[launch->first_argument + i];
        if (a->space == OD_SPACE_WEIGHTS) work->place = a->offset;
    }
    return work;
}

/* Sizes change from step to step while a prompt is read and hardly ever while tokens are
 * generated, so the plan is kept until they do. */
static void plan(od_program *program, od_threads *threads, const od_sizes *sizes) {
    const od_model *model = program->model;
    if (memcmp(&program->planned, sizes, sizeof *sizes) == 0) return;
    od_threads_settle(threads);
    program->planned = *sizes;
    program->work_count = 0;
    place_slots(model, sizes, program->slots);
    od_work *head = NULL; /* what later launches may be chained to */
    for (int32_t i = 0; i < model->launch_count; i++) {
        const od_launch *launch = &model->launches[i];
        int64_t rows = od_extent_evaluate(&model->extents[launch->rows], sizes);
        int64_t tasks = od_extent_evaluate(&model->extents[launch->tasks], sizes);
        if (rows < launch->min_rows || rows > launch->max_rows || tasks <= 0) continue;
        if (sizes->t < launch->min_spans || sizes->t > launch->max_spans) continue;
        od_work *work = plan_launch(program, launch, (int32_t)tasks);
        if (launch->chained && head != NULL && head->chained < OD_MAX_CHAINED) {
            head->chained++;
        } else {
            work->barrier |= launch->chained != 0;
            head = work;
        }
    }
    od_threads_prepare(threads, program->work, program->work_count);
}

void od_program_run(od_program *program, od_threads *threads, int32_t s, int32_t l, int32_t b) {
    const int32_t *positions = program->step[OD_STEP_POSITIONS].data;
    int32_t deepest = 0;
    for (int32_t i = 0; i < s; i++)
        if (positions[i] > deepest) deepest = positions[i];
    od_sizes sizes = {s, l, b, program->largest.p, spans_for(deepest + 1)};
    plan(program, threads, &sizes);
    od_threads_run(threads, program->work, program->work_count);
}
