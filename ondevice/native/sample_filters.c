/* Filters keep the first candidates of an order, until they are so many or so probable. Nothing is
 * sorted: the key of the last one is found digit by digit, from histograms. */
#include "platform.h"
#include "sample.h"

enum { DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS };

typedef union word {
    float value;
    uint32_t bits;
} word;

/* Ascending with the value; the two zeros are one. */
static uint32_t ascending(float value) {
    word w = {value + 0.0F};
    return w.bits & 0x80000000U ? ~w.bits : w.bits | 0x80000000U;
}

/* The smallest key at which the amounts (NULL: each 1) reach `limit`; *before is the amount of all
 * smaller keys. Where rounding keeps them below it, the largest key. */
static uint32_t find_border(const uint32_t *keys, const double *amounts, int32_t count,
                            double limit, double *before) {
    uint32_t border = 0;
    *before = 0.0;
    for (int32_t shift = 2 * DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        double sums[DIGITS] = {0.0};
        for (int32_t i = 0; i < count; i++)
            if ((uint64_t)(keys[i] ^ border) >> (shift + DIGIT_BITS) == 0)
                sums[keys[i] >> shift & (DIGITS - 1)] += amounts == NULL ? 1.0 : amounts[i];
        uint32_t last = 0;
        double reached = *before;
        for (uint32_t digit = 0; digit < DIGITS && reached < limit; digit++) {
            if (sums[digit] == 0.0) continue;
            last = digit;
            *before = reached;
            reached += sums[digit];
        }
        border |= last << shift;
    }
    return border;
}

/* Keep the candidates with the smallest keys, the fewest whose weights reach `limit`. */
static void keep_until(od_candidates *from, double limit) {
    double reached;
    uint32_t border = find_border(from->keys, from->weights, from->count, limit, &reached);
    int32_t kept = 0;
    for (int32_t i = 0; i < from->count; i++) {
        if (from->keys[i] > border) continue;
        if (from->keys[i] == border) {
            if (reached >= limit) continue;
            reached += from->weights[i];
        }
        from->tokens[kept] = from->tokens[i];
        from->weights[kept++] = from->weights[i];
    }
    from->count = kept;
}

static void keep_weights_from(od_candidates *from, double least) {
    int32_t kept = 0;
    for (int32_t i = 0; i < from->count; i++) {
        from->tokens[kept] = from->tokens[i];
        from->weights[kept] = from->weights[i];
        kept += from->weights[i] >= least;
    }
    from->count = kept;
}

void od_take_top_k(od_candidates *from, int32_t vocab_size, int32_t k) {
    from->count = 0;
    if (k == 0 || k >= vocab_size) {
        for (; from->count < vocab_size; from->count++) from->tokens[from->count] = from->count;
        return;
    }
    for (int32_t i = 0; i < vocab_size; i++) from->keys[i] = ~ascending(from->logits[i]);
    double before;
    uint32_t border = find_border(from->keys, NULL, vocab_size, (double)k, &before);
    int32_t equal = k - (int32_t)before;
    for (int32_t i = 0; i < vocab_size; i++) {
        if (from->keys[i] > border || (from->keys[i] == border && equal-- <= 0)) continue;
        from->tokens[from->count++] = i;
    }
}

void od_keep_top_p(od_candidates *from, double p) {
    double sum = od_sum(from->weights, from->count);
    /* All that are less likely than an equal share of 1 - p together make less than 1 - p. */
    keep_weights_from(from, (1.0 - p) * sum / from->count);
    for (int32_t i = 0; i < from->count; i++)
        from->keys[i] = ~ascending(from->logits[from->tokens[i]]);
    keep_until(from, p * sum);
}

void od_keep_min_p(od_candidates *from, double p) { keep_weights_from(from, p); }

void od_keep_typical_p(od_candidates *from, double p) {
    /* The information of a token less the entropy is, but for the temperature, how far its logit is
     * below the expected logit. */
    double sum = od_sum(from->weights, from->count), expected = 0.0;
    for (int32_t i = 0; i < from->count; i++)
        if (from->weights[i] > 0.0)
            expected += from->weights[i] * (double)from->logits[from->tokens[i]];
    expected /= sum;
    for (int32_t i = 0; i < from->count; i++) {
        double distance = (double)from->logits[from->tokens[i]] - expected;
        from->keys[i] = ascending((float)(distance < 0.0 ? -distance : distance));
    }
    keep_until(from, p * sum);
}
