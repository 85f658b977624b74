#include "rope.h"

#include <stddef.h>

#include "elementary.h"

void od_rope_rows(const od_rope *rope, const float *inv_freq, const int32_t *positions,
                  int32_t rows, float *out) {
    for (int32_t row = 0; row < rows; row++) {
        float *cos = out + (size_t)row * 2 * (size_t)rope->half_dim;
        float *sin = cos + rope->half_dim;
        for (int32_t i = 0; i < rope->half_dim; i++) {
            float angle = (float)positions[row] * inv_freq[i];
            double c, s;
            od_cos_sin(angle, &c, &s);
            cos[i] = (float)c * rope->scale;
            sin[i] = (float)s * rope->scale;
        }
    }
}
