#include "sample.h"

#include "elementary.h"
#include "platform.h"

static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

double od_uniform(uint64_t seed, uint64_t draw) {
    /* The seed is mixed first, so that seeds 1 and 2 are not one stream shifted by a step. */
    uint64_t bits = mix(mix(seed) + (draw + 1) * UINT64_C(0x9e3779b97f4a7c15));
    return (double)(bits >> 11) * 0x1p-53;
}

/* ---- the likeliest ---- */

enum { LANES = 8, BLOCK = 1024 };

/* The largest of a block, in lanes so that it becomes vector code; *nan is set where one is NaN. */
static float largest(const float *values, int32_t *nan) {
    float best[LANES];
    int32_t bad[LANES] = {0};
    for (int32_t j = 0; j < LANES; j++) best[j] = values[j];
    for (int32_t i = 0; i < BLOCK; i += LANES)
        for (int32_t j = 0; j < LANES; j++) {
            best[j] = values[i + j] > best[j] ? values[i + j] : best[j];
            bad[j] |= values[i + j] != values[i + j];
        }
    for (int32_t j = 0; j < LANES; j++) {
        best[0] = best[j] > best[0] ? best[j] : best[0];
        *nan |= bad[j];
    }
    return best[0];
}

int32_t od_argmax(const float *logits, int32_t count) {
    int32_t first = 0, nan = 0, i = 0; /* the largest is at `first` or soon after */
    float best = logits[0];
    for (; count - i >= BLOCK; i += BLOCK) {
        float here = largest(logits + i, &nan);
        if (here > best) best = here, first = i;
    }
    for (; i < count; i++) {
        nan |= logits[i] != logits[i];
        if (logits[i] > best) best = logits[i], first = i;
    }
    if (nan || best - best != 0.0F) return -1;
    while (logits[first] != best) first++;
    return first;
}

/* ---- draw ---- */

double od_sum(const double *values, int32_t count) {
    double sums[4] = {0.0, 0.0, 0.0, 0.0};
    int32_t i = 0;
    for (; count - i >= 4; i += 4)
        for (int32_t j = 0; j < 4; j++) sums[j] += values[i + j];
    for (; i < count; i++) sums[0] += values[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* The candidate at `share` of all weights, 0 <= share < 1. Whole blocks are skipped first. */
static int32_t draw(const od_candidates *from, double share) {
    double left = share * od_sum(from->weights, from->count);
    int32_t i = 0;
    for (; from->count - i > BLOCK; i += BLOCK) {
        double block = od_sum(from->weights + i, BLOCK);
        if (left < block) break;
        left -= block;
    }
    for (; i < from->count; i++) {
        left -= from->weights[i];
        if (left < 0.0) return from->tokens[i];
    }
    while (from->weights[--i] == 0.0) {} /* rounding left a crumb */
    return from->tokens[i];
}

/* ---- all steps ---- */

static size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

size_t od_sample_bytes(int32_t vocab_size) {
    size_t n = (size_t)vocab_size;
    return rounded(n * sizeof(double)) + 3 * rounded(n * sizeof(int32_t));
}

typedef struct work_space {
    double *weights;
    int32_t *tokens;
    uint32_t *keys;
    float *logits;
} work_space;

static work_space divide(void *work, int32_t vocab_size) {
    size_t n = (size_t)vocab_size, words = rounded(n * sizeof(int32_t));
    uint8_t *next = (uint8_t *)work + rounded(n * sizeof(double));
    return (work_space){work, (int32_t *)(void *)next, (uint32_t *)(void *)(next + words),
                        (float *)(void *)(next + 2 * words)};
}

static void weigh(od_candidates *of, int32_t best, float temperature) {
    double most = (double)of->logits[best];
    for (int32_t i = 0; i < of->count; i++)
        of->weights[i] = ((double)of->logits[of->tokens[i]] - most) / (double)temperature;
    od_exp_row(of->weights, of->count);
}

int32_t od_sample(const float *logits, int32_t vocab_size, const od_sampling *sampling,
                  const od_said *said, void *work) {
    work_space space = divide(work, vocab_size);
    if (od_adjusts_logits(sampling)) {
        memcpy(space.logits, logits, (size_t)vocab_size * sizeof *logits);
        od_adjust_logits(space.logits, vocab_size, sampling, said, space.tokens);
        logits = space.logits;
    }
    int32_t best = od_argmax(logits, vocab_size);
    if (best < 0 || sampling->temperature == 0.0F || sampling->top_k == 1) return best;
    od_candidates from = {logits, 0, space.tokens, space.weights, space.keys};
    od_take_top_k(&from, vocab_size, sampling->top_k);
    weigh(&from, best, sampling->temperature);
    if (sampling->top_p < 1.0F) od_keep_top_p(&from, (double)sampling->top_p);
    if (sampling->min_p > 0.0F) od_keep_min_p(&from, (double)sampling->min_p);
    if (sampling->typical_p < 1.0F) od_keep_typical_p(&from, (double)sampling->typical_p);
    return draw(&from, od_uniform(sampling->seed, (uint64_t)said->generated));
}
