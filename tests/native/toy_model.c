/* A hand-written model, so that the runtime can be tested without the compiler.
 *
 * x[s] = embedding[token]; kv[position] = x; y[s] = sum over t <= position of kv[t] / age, times
 * the rope row; logits[v] = y . embedding[v]. Every row depends on the whole history. */
#include "model.h"

enum { VOCAB = 97, D = 8, CONTEXT = 200, CHUNK = 48, LOGIT_ROWS = 6, WIDTH = 7, HALF = 4 };

#define EXPORT __attribute__((visibility("default")))
#define PARAMETERS                                                                                 \
    void *const *buffers, const int32_t *scalars, int32_t begin, int32_t end, void *scratch
#define KERNEL(name)                                                                               \
    void toy_##name(PARAMETERS);                                                                   \
    void toy_##name(PARAMETERS)

KERNEL(embed) { /* x[S, D], tokens[S], embedding[VOCAB, D] */
    float *x = buffers[0];
    const int32_t *tokens = buffers[1];
    const float *embedding = buffers[2];
    (void)scalars, (void)scratch;
    for (int32_t s = begin; s < end; s++)
        for (int32_t d = 0; d < D; d++) x[s * D + d] = embedding[tokens[s] * D + d];
}

KERNEL(write_kv) { /* kv[P, 32, D], x[S, D], positions[S], sequence[S], block_table[B, WIDTH] */
    float *kv = buffers[0];
    const float *x = buffers[1];
    const int32_t *positions = buffers[2], *sequence = buffers[3], *table = buffers[4];
    (void)scratch;
    for (int32_t s = begin; s < end; s++) {
        int32_t block = table[sequence[s] * WIDTH + positions[s] / OD_KV_BLOCK_TOKENS];
        if (block >= scalars[0]) __builtin_trap(); /* P */
        float *to = kv + (block * OD_KV_BLOCK_TOKENS + positions[s] % OD_KV_BLOCK_TOKENS) * D;
        for (int32_t d = 0; d < D; d++) to[d] = x[s * D + d];
    }
}

KERNEL(attend) { /* y[S, D], kv, positions, sequence, block_table, rope[S, 2 * HALF] */
    float *y = buffers[0];
    const float *kv = buffers[1];
    const int32_t *positions = buffers[2], *sequence = buffers[3], *table = buffers[4];
    const float *rope = buffers[5];
    float *sum = scratch;
    (void)scalars;
    for (int32_t s = begin; s < end; s++) {
        const int32_t *blocks = table + sequence[s] * WIDTH;
        for (int32_t d = 0; d < D; d++) sum[d] = 0.0F;
        for (int32_t t = 0; t <= positions[s]; t++) {
            int32_t row = blocks[t / OD_KV_BLOCK_TOKENS] * OD_KV_BLOCK_TOKENS;
            const float *from = kv + (row + t % OD_KV_BLOCK_TOKENS) * D;
            float age = (float)(1 + positions[s] - t);
            for (int32_t d = 0; d < D; d++) sum[d] += from[d] / age;
        }
        for (int32_t d = 0; d < D; d++) y[s * D + d] = sum[d] * rope[s * 2 * HALF + d];
    }
}

KERNEL(project) { /* logits[L, VOCAB], y[S, D], logit_rows[L], embedding; one task a logit */
    float *logits = buffers[0];
    const float *y = buffers[1];
    const int32_t *rows = buffers[2];
    const float *embedding = buffers[3];
    (void)scalars, (void)scratch;
    for (int32_t task = begin; task < end; task++) {
        const float *row = y + rows[task / VOCAB] * D;
        float sum = 0.0F;
        for (int32_t d = 0; d < D; d++) sum += row[d] * embedding[task % VOCAB * D + d];
        logits[task] = sum;
    }
}

static const od_kernel kernels[] = {toy_embed, toy_write_kv, toy_attend, toy_project};

static const od_variant variants[] = {
    {UINT64_C(1) << 63, "impossible", kernels},
    {0, "fast", kernels},
    {0, "plain", kernels},
};

#define CONST(n) {0, 0, 0, 0, 0, n, 1, 1}
#define ROWS(n) {n, 0, 0, 0, 0, 0, 1, 1}
#define EVER 1 << 30
#define STEP(buffer) {OD_SPACE_STEP, OD_STEP_##buffer, 0}

static const od_argument arguments[] = {
    {OD_SPACE_ARENA, 0, 0}, STEP(TOKENS), {OD_SPACE_WEIGHTS, 0, 0},
    {OD_SPACE_KV, 0, 0}, {OD_SPACE_ARENA, 0, 0}, STEP(POSITIONS), STEP(SEQUENCE), STEP(BLOCK_TABLE),
    {OD_SPACE_ARENA, 1, 0}, {OD_SPACE_KV, 0, 0}, STEP(POSITIONS), STEP(SEQUENCE), STEP(BLOCK_TABLE),
    STEP(ROPE),
    STEP(LOGITS), {OD_SPACE_ARENA, 1, 0}, STEP(LOGIT_ROWS), {OD_SPACE_WEIGHTS, 0, 0},
};

/* The pool's blocks (a kernel's scalar), query tokens, logits, rows of logits. */
static const od_extent extents[] = {
    {0, 0, 0, 1, 0, 0, 1, 1}, ROWS(1), {0, VOCAB, 0, 0, 0, 0, 1, 1}, {0, 1, 0, 0, 0, 0, 1, 1},
};
static const od_extent slots[] = {ROWS(D * 4), ROWS(D * 4)};

/* The second embed never runs, nor do those of depths that no step has: a step of this model sees
 * one span. */
static const od_launch launches[] = {
    {0, 0, 3, 0, 0, 5, 1, EVER, 0, EVER, 0, 1, 1, 0, 0},
    {0, 0, 3, 0, 0, 1, EVER, EVER, 0, EVER, 1, 1, 1, 0, 0},
    {1, 3, 5, 0, 1, 3, 1, EVER, 1, 1, 1, 1, 1, 0, 0},
    {1, 3, 5, 0, 1, 3, 1, EVER, 2, EVER, 0, 1, 1, 0, 0},
    {0, 0, 3, 0, 0, 1, 1, EVER, 0, 0, 0, 1, 1, 0, 0},
    {2, 8, 6, 1, 0, 2, 1, EVER, 0, EVER, 1, 1, 1, 0, 0},
    {3, 14, 4, 1, 0, 16, 1, EVER, 0, EVER, 1, 2, 3, 0, 0},
};

static const od_rope ropes[] = {{HALF, 0, 1.0F}};
static const float inv_freq[HALF] = {1.0F, 0.1F, 0.01F, 0.001F};

EXPORT extern const od_model od_model_toy;
const od_model od_model_toy = {
    .format_version = OD_FORMAT_VERSION,
    .struct_bytes = sizeof(od_model),
    .abi_hash = {0x70, 0x0e},
    .name = "toy",
    .vocab_size = VOCAB,
    .context_tokens = CONTEXT,
    .prefill_chunk_tokens = CHUNK,
    .logit_rows = LOGIT_ROWS,
    .block_table_width = WIDTH,
    .kernel_count = 4,
    .variant_count = 3,
    .launch_count = 7,
    .argument_count = 18,
    .extent_count = 4,
    .slot_count = 2,
    .rope_count = 1,
    .kv_block_bytes = OD_KV_BLOCK_TOKENS * D * 4,
    .scratch_bytes = D * 4,
    .weights_bytes = VOCAB * D * 4,
    .variants = variants,
    .launches = launches,
    .arguments = arguments,
    .extents = extents,
    .slots = slots,
    .ropes = ropes,
    .inv_freq = inv_freq,
};
