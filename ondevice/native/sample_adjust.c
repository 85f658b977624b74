/* Logits as od_sampling wants them, and as the API reports them. */
#include "elementary.h"
#include "platform.h"
#include "sample.h"

/* ---- bias and penalties ---- */

static void divide_repeated(float *logits, float penalty, const int32_t *tokens, int32_t count,
                            int32_t *counts) {
    for (int32_t i = 0; i < count; i++) {
        float *logit = &logits[tokens[i]];
        if (counts[tokens[i]]++ > 0) continue;
        *logit = *logit > 0.0F ? *logit / penalty : *logit * penalty;
    }
    for (int32_t i = 0; i < count; i++) counts[tokens[i]] = 0;
}

static void subtract_repeated(float *logits, const od_sampling *sampling, const int32_t *tokens,
                              int32_t count, int32_t *counts) {
    for (int32_t i = 0; i < count; i++) counts[tokens[i]]++;
    for (int32_t i = 0; i < count; i++) {
        int32_t times = counts[tokens[i]];
        if (times == 0) continue;
        double penalty = (double)sampling->presence_penalty +
                         (double)times * (double)sampling->frequency_penalty;
        logits[tokens[i]] = (float)((double)logits[tokens[i]] - penalty);
        counts[tokens[i]] = 0;
    }
}

static bool subtracts(const od_sampling *sampling) {
    return sampling->presence_penalty != 0.0F || sampling->frequency_penalty != 0.0F;
}

bool od_adjusts_logits(const od_sampling *sampling) {
    return sampling->logit_bias_count > 0 || sampling->repetition_penalty != 1.0F ||
           subtracts(sampling);
}

void od_adjust_logits(float *logits, int32_t vocab_size, const od_sampling *sampling,
                      const od_said *said, int32_t *counts) {
    for (int32_t i = 0; i < sampling->logit_bias_count; i++)
        logits[sampling->logit_bias[i].token] += sampling->logit_bias[i].bias;
    memset(counts, 0, (size_t)vocab_size * sizeof *counts);
    int32_t seen = said->count, generated = said->generated;
    if (sampling->penalty_tokens > 0 && seen > sampling->penalty_tokens)
        seen = sampling->penalty_tokens;
    if (generated > seen) generated = seen;
    const int32_t *end = said->tokens + said->count;
    if (sampling->repetition_penalty != 1.0F)
        divide_repeated(logits, sampling->repetition_penalty, end - seen, seen, counts);
    if (subtracts(sampling)) subtract_repeated(logits, sampling, end - generated, generated, counts);
}

/* ---- logprobs ---- */

/* The largest logits in order, of equals the lowest tokens. */
static void take_largest(const float *logits, int32_t vocab_size, int32_t top_count,
                         od_logprob *top) {
    int32_t held = 0;
    for (int32_t i = 0; i < vocab_size; i++) {
        if (held == top_count && !(logits[i] > top[held - 1].logprob)) continue;
        int32_t place = held < top_count ? held++ : held - 1;
        for (; place > 0 && logits[i] > top[place - 1].logprob; place--) top[place] = top[place - 1];
        top[place] = (od_logprob){i, logits[i]};
    }
}

void od_logprobs(const float *logits, int32_t vocab_size, int32_t chosen, int32_t top_count,
                 od_logprob *logprobs, double *work) {
    int32_t best = od_argmax(logits, vocab_size);
    for (int32_t i = 0; i < vocab_size; i++) work[i] = (double)logits[i] - (double)logits[best];
    od_exp_row(work, vocab_size);
    double norm = (double)logits[best] + od_log(od_sum(work, vocab_size));
    logprobs[0] = (od_logprob){chosen, logits[chosen]};
    if (top_count > 0) take_largest(logits, vocab_size, top_count, logprobs + 1);
    for (int32_t i = 0; i < 1 + top_count; i++)
        logprobs[i].logprob = (float)((double)logprobs[i].logprob - norm);
}
