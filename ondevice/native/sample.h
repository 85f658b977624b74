/* Choosing a token from logits: the same token on every device. Sums are of doubles, in an order
 * that depends on nothing but the vocabulary. */
#ifndef OD_SAMPLE_H
#define OD_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ondevice.h"

/* The lowest index of the largest logit, or -1 where a logit is NaN or the largest is infinite. */
int32_t od_argmax(const float *logits, int32_t count);

/* Uniform in [0, 1), 53 bits; splitmix64 as a counter-based generator. */
double od_uniform(uint64_t seed, uint64_t draw);

/* What has been said before a token is chosen. */
typedef struct od_said {
    const int32_t *tokens; /* of the conversation */
    int32_t count;
    int32_t generated; /* of them the last so many since od_submit, which is the number of the draw */
} od_said;

/* Bytes of work space for the functions below, for rows of `vocab_size`. */
size_t od_sample_bytes(int32_t vocab_size);

/* A token by all the steps of od_sampling (whose zeros have been replaced by the defaults), or -1
 * as od_argmax. */
int32_t od_sample(const float *logits, int32_t vocab_size, const od_sampling *sampling,
                  const od_said *said, void *work);

/* Log softmax of the logits of a token, and of the `top_count` largest: logprobs[1 + top_count].
 * The logits are numbers. */
void od_logprobs(const float *logits, int32_t vocab_size, int32_t chosen, int32_t top_count,
                 od_logprob *logprobs, double *work);

/* ---- inside ---- */

/* Whether there is bias or a penalty; apply them. `counts` is work space for `vocab_size`. */
bool od_adjusts_logits(const od_sampling *sampling);
void od_adjust_logits(float *logits, int32_t vocab_size, const od_sampling *sampling,
                      const od_said *said, int32_t *counts);

/* Tokens that may be chosen, by number, never none. */
typedef struct od_candidates {
    const float *logits; /* of the whole vocabulary */
    int32_t count;
    int32_t *tokens;
    double *weights; /* probabilities before they are brought to sum 1; the likeliest has 1 */
    uint32_t *keys;  /* work space */
} od_candidates;

/* Fill `tokens` with those of the k largest logits; k = 0: all. */
void od_take_top_k(od_candidates *from, int32_t vocab_size, int32_t k);
void od_keep_top_p(od_candidates *from, double p);
/* While the likeliest has weight 1. */
void od_keep_min_p(od_candidates *from, double p);
void od_keep_typical_p(od_candidates *from, double p);

/* The sum of values, four at a time. */
double od_sum(const double *values, int32_t count);

#endif
