#include "elementary.h"

#include <stdint.h>

typedef union bits {
    double value;
    uint64_t bits;
} bits;

/* 1.5 * 2^52: adding it leaves no bits for a fraction, so the sum is rounded to an integer, which
 * stands in its lowest bits. */
static const double BIG = 6755399441055744.0;

static double nearest(double x) {
    double sum = x + BIG;
    return sum - BIG;
}

/* Without a branch, so that a loop of it becomes vector code. */
static inline double exponential(double x) {
    /* x = n ln2 + r with ln2 in two pieces, |r| <= 0.35; then a Taylor series. */
    const double inverse_ln2 = 1.4426950408889634074;
    const double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
    bits sum = {x * inverse_ln2 + BIG};
    double n = sum.value - BIG;
    double r = (x - n * ln2_high) - n * ln2_low;
    double p = 1.0 / 6227020800.0; /* 1 / 13! */
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    bits scale = {.bits = (sum.bits + 1023) << 52}; /* 2^n */
    return x < -708.0 ? 0.0 : p * scale.value;
}

double od_exp(double x) { return exponential(x); }

void od_exp_row(double *values, int32_t count) {
    for (int32_t i = 0; i < count; i++) values[i] = exponential(values[i]);
}

double od_log(double x) {
    /* x = 2^n m with m within sqrt(1/2)..sqrt(2); log m = 2 atanh(s), s = (m - 1) / (m + 1): a
     * series in s, |s| <= 0.172. */
    const double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
    bits whole = {x};
    int64_t n = (int64_t)(whole.bits >> 52) - 1023;
    bits m = {.bits = (whole.bits & 0xfffffffffffffU) | UINT64_C(1023) << 52};
    if (m.value > 1.41421356237309504880) {
        m.value *= 0.5;
        n++;
    }
    double s = (m.value - 1.0) / (m.value + 1.0), z = s * s, series = 0.0;
    for (int i = 21; i >= 3; i -= 2) series = series * z + 1.0 / i;
    return (double)n * ln2_high + (2.0 * (s + s * (z * series)) + (double)n * ln2_low);
}

/* sin and cos on [-pi/4, pi/4] of r + low: minimax polynomials in r*r (FreeBSD msun). */
static double sin_kernel(double r, double low) {
    double z = r * r;
    double p = 8.33333333332248946124e-03 +
               z * (-1.98412698298579493134e-04 +
                    z * (2.75573137070700676789e-06 +
                         z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)));
    double v = z * r;
    return r - ((z * (0.5 * low - v * p) - low) - v * -1.66666666666666324348e-01);
}

static double cos_kernel(double r, double low) {
    double z = r * r;
    double p = z * (4.16666666666666019037e-02 +
                    z * (-1.38888888888741095749e-03 +
                         z * (2.48015872894767294178e-05 +
                              z * (-2.75573143513906633035e-07 +
                                   z * (2.08757232129817482790e-09 +
                                        z * -1.13596475577881948265e-11)))));
    double half = 0.5 * z;
    double w = 1.0 - half;
    return w + (((1.0 - w) - half) + (z * p - r * low));
}

void od_cos_sin(double x, double *cos, double *sin) {
    /* Cody and Waite: pi/2 in three pieces; the first two have 33 bits, so their products with
     * n < 2^20 are exact. */
    const double two_over_pi = 6.36619772367581382433e-01;
    const double high = 1.57079632673412561417e+00, middle = 6.07710050630396597660e-11,
                 low = 2.02226624879595063154e-21;
    double n = nearest(x * two_over_pi);
    double a = x - n * high;
    double b = n * middle;
    double t = a - b;
    double rest = (a - t) - b - n * low;
    double r = t + rest;
    double tail = (t - r) + rest;
    double s = sin_kernel(r, tail), c = cos_kernel(r, tail);
    switch ((int64_t)n & 3) {
        case 0: *cos = c, *sin = s; break;
        case 1: *cos = -s, *sin = c; break;
        case 2: *cos = -c, *sin = -s; break;
        default: *cos = s, *sin = -c; break;
    }
}
