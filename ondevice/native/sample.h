/* Choosing a token from logits: the same token on every device. */
#ifndef OD_SAMPLE_H
#define OD_SAMPLE_H

#include <stdint.h>

/* The lowest index of the largest logit, or -1 where a logit is NaN or the largest is infinite. */
int32_t od_argmax(const float *logits, int32_t count);

/* A draw from softmax(logits / temperature); temperature 0 is od_argmax. Draw number `draw` of a
 * seed depends on nothing else. `weights` is work space for `count` doubles. */
int32_t od_sample(const float *logits, int32_t count, float temperature, uint64_t seed,
                  uint64_t draw, double *weights);

/* Uniform in [0, 1), 53 bits; splitmix64 as a counter-based generator. */
double od_uniform(uint64_t seed, uint64_t draw);

#endif
