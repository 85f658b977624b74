#include "sample.h"

#include "elementary.h"

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

int32_t od_argmax(const float *logits, int32_t count) {
    int32_t best = 0;
    for (int32_t i = 0; i < count; i++) {
        if (logits[i] != logits[i]) return -1;
        if (logits[i] > logits[best]) best = i;
    }
    return logits[best] - logits[best] == 0.0F ? best : -1;
}

int32_t od_sample(const float *logits, int32_t count, float temperature, uint64_t seed,
                  uint64_t draw, double *weights) {
    int32_t best = od_argmax(logits, count);
    if (best < 0 || temperature == 0.0F) return best;
    double sum = 0.0;
    for (int32_t i = 0; i < count; i++) {
        weights[i] = od_exp(((double)logits[i] - (double)logits[best]) / (double)temperature);
        sum += weights[i];
    }
    double left = od_uniform(seed, draw) * sum;
    for (int32_t i = 0; i < count; i++) {
        left -= weights[i];
        if (left < 0.0) return i;
    }
    return best; /* rounding left a crumb */
}
