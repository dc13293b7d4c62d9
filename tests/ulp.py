"""Exact values to judge floating-point results by: mpmath for functions, fractions for one fma."""

from fractions import Fraction

import mpmath
import numpy as np

EXACT = {
    "exp": mpmath.exp,
    "tanh": mpmath.tanh,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "log1p": mpmath.log1p,
    "log_pos": mpmath.log,
}


def ulp_error(name, x, y):
    """|y - f(x)| in units of the last place of f(x), element by element, for finite x.

    A unit is the distance of neighbouring numbers in the binade of the exact value, and below the
    smallest normal number the distance of denormals. Overflow: the first power of two that is too
    large stands for infinity, as in rounding.
    """
    info = np.finfo(x.dtype)
    errors = np.zeros(x.size)
    # Precise enough for tanh of a denormal, and for 1 + e^-745.
    with mpmath.workprec(1200 if name == "sigmoid" and x.dtype == np.float64 else 300):
        for i, (xi, yi) in enumerate(zip(x.ravel().tolist(), y.ravel().tolist(), strict=True)):
            exact = EXACT[name](mpmath.mpf(xi))
            exponent = max(mpmath.frexp(exact)[1] - 1, int(info.minexp))
            limit = mpmath.ldexp(1, int(info.maxexp))
            got = mpmath.mpf(yi) if np.isfinite(yi) else mpmath.sign(yi) * limit
            if abs(exact) >= limit:  # beyond, infinity is as good as it gets
                exact, exponent = mpmath.sign(exact) * limit, int(info.maxexp) - 1
            errors[i] = abs(got - exact) / mpmath.ldexp(1, exponent - info.nmant)
    return errors


def round_fraction(q, zero_sign, dtype, flush):
    """The float of `dtype` nearest to the rational q, ties to even.

    flush: results that are tiny after rounding with an unbounded exponent become zero (x86).
    zero_sign: the sign that an exact zero gets, -1 or 1.
    """
    info = np.finfo(dtype)
    sign = zero_sign if q == 0 else (1 if q > 0 else -1)
    q = abs(q)
    if q == 0:
        return dtype(sign * 0.0)

    def to_multiple(exponent):
        """Nearest multiple of 2^exponent, as a rational."""
        return round(q / Fraction(2) ** exponent) * Fraction(2) ** exponent

    top = q.numerator.bit_length() - q.denominator.bit_length()
    if Fraction(2) ** top > q:
        top -= 1
    full = to_multiple(top - info.nmant)
    smallest = Fraction(2) ** int(info.minexp)
    if full < smallest:
        full = Fraction(0) if flush else to_multiple(int(info.minexp) - info.nmant)
    if full >= Fraction(2) ** int(info.maxexp):
        return dtype(sign * np.inf)
    return dtype(sign * float(full))


def fma_exact(a, b, c, flush):
    """a * b + c rounded once, for finite scalars of one dtype; flush: operands, too."""
    dtype = type(a)
    tiny = np.finfo(dtype).tiny
    if flush:
        a, b, c = (np.copysign(dtype(0), v) if abs(v) < tiny else v for v in (a, b, c))
    fa, fb, fc = (Fraction(float(v)) for v in (a, b, c))
    product_sign = -1 if np.signbit(a) != np.signbit(b) else 1
    c_sign = -1 if np.signbit(c) else 1
    # An exact zero is negative only if both terms are negative zeros.
    both = product_sign == c_sign and fa * fb == 0 and fc == 0
    return round_fraction(fa * fb + fc, product_sign if both else 1, dtype, flush)
