/* Rotary embedding: the cos and sin rows of a step. */
#ifndef OD_ROPE_H
#define OD_ROPE_H

#include "model.h"

/* out[rows][2 * half_dim]: cos of half_dim angles, then sin. The angle is the float product
 * position * inv_freq[i], as transformers computes it; cos and sin are correctly rounded but for
 * rare ties. */
void od_rope_rows(const od_rope *rope, const float *inv_freq, const int32_t *positions,
                  int32_t rows, float *out);

#endif
