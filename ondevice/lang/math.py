"""Elementary functions written in the kernel language, for f32 scalars and vectors alike.

They are made of exactly rounded operations only, so they give the same bits on every target, and
kernels never call a C library.
"""

# mypy: ignore-errors

from __future__ import annotations

from ondevice.lang import bitcast, f32, fma, i32, inline, select


@inline
def exp(x):
    """e**x, relative error below 2e-7; overflows to inf, underflows through subnormals to 0.

    x = n ln 2 + r with |r| <= ln 2 / 2; e**r by the Cephes polynomial. Adding 1.5 * 2**23 rounds to
    the integer n and leaves n in the low bits: no float is cast, so inf and nan stay defined.
    """
    y = min(89.0, max(-104.0, x))
    shifted = fma(y, 1.4426950408889634, 12582912.0)
    n = shifted - 12582912.0
    r = fma(n, -0.693145751953125, y)
    r1 = fma(n, -1.428606765330187e-06, r)
    p = fma(1.9875691500e-4, r1, 1.3981999507e-3)
    p1 = fma(p, r1, 8.3334519073e-3)
    p2 = fma(p1, r1, 4.1665795894e-2)
    p3 = fma(p2, r1, 1.6666665459e-1)
    p4 = fma(p3, r1, 5.0000001201e-1)
    e = fma(p4, r1 * r1, r1) + 1.0
    # 2**n in two factors: n reaches 129 and -150, an exponent field only 127 and -126.
    whole = bitcast(i32, shifted) - 1262485504
    half = whole >> 1
    rest = whole - half
    return e * bitcast(f32, (half + 127) << 23) * bitcast(f32, (rest + 127) << 23)


@inline
def exp_below(x):
    """e**x for x <= 0, relative error below 4e-7; 0 below x = -86, so half the work of `exp`.

    x = n ln 2 + r as there; e**r by a polynomial of least relative error (1.1e-7) with 1 + r fixed,
    so that exp_below(0) is 1.
    """
    shifted = fma(x, 1.4426950408889634, 12582912.0)
    r = fma(shifted - 12582912.0, -0.6931471805599453, x)
    p = fma(0.008312501243481287, r, 0.04189033150487148)
    p1 = fma(p, r, 0.16667115389150802)
    p2 = fma(p1, r, 0.49999230309733267)
    e = fma(fma(p2, r, 1.0), r, 1.0)
    # The low bits of `shifted` are n; what stands above them leaves the word.
    scaled = bitcast(f32, bitcast(i32, e) + (bitcast(i32, shifted) << 23))
    return select(x < -86.0, 0.0, scaled)


@inline
def sigmoid(x):
    """1 / (1 + e**-x)."""
    return 1.0 / (1.0 + exp(-x))


@inline
def silu(x):
    """x * sigmoid(x)."""
    return x / (1.0 + exp(-x))


@inline
def tanh(x):
    """Hyperbolic tangent: an odd polynomial (Cephes) near 0, 1 - 2 / (e**2|x| + 1) elsewhere."""
    z = x * x
    p = fma(-5.70498872745e-3, z, 2.06390887954e-2)
    p1 = fma(p, z, -5.37397155531e-2)
    p2 = fma(p1, z, 1.33314422036e-1)
    p3 = fma(p2, z, -3.33332819422e-1)
    near = fma(p3 * z, x, x)
    magnitude = 1.0 - 2.0 / (exp(2.0 * abs(x)) + 1.0)
    far = select(x < 0.0, -magnitude, magnitude)
    return select(abs(x) < 0.625, near, far)


@inline
def gelu_tanh(x):
    """GELU in its tanh form: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x**3)))."""
    inner = 0.7978845608028654 * fma(0.044715 * x, x * x, x)
    return 0.5 * x * (1.0 + tanh(inner))
