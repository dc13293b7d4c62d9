"""exp, tanh, sigmoid, log and fma as the compiled kernels compute them, in NumPy.

The twin of ``csrc/elementary_tmpl.h``: the same operations in the same order (labels E, S, T, L),
hence the same bits, in float32 and float64. ``docs/arithmetic.md`` has accuracy and limits.

Only operations occur that IEEE 754 rounds correctly, so NumPy gives the same bits on every machine.
Two things are missing from NumPy and are built here: the fused multiply-add (`fma`), and arithmetic
with denormals flushed to zero (`flushed`), in which the kernels run unless told otherwise. Each
function follows the array that it is given: plain arrays underflow gradually, flushed ones flush.
"""

import numpy as np

# ---- denormals ----------------------------------------------------------------------------------

# Ufuncs that round, or whose results are arithmetic: operands and results are flushed. A sum or a
# square root cannot be tiny and inexact, so for those the result alone tells whether it is tiny.
_ARITHMETIC = {np.add, np.subtract, np.sqrt, np.square, np.rint, np.maximum, np.minimum}
_SCALED = {np.multiply, np.true_divide, np.square}
_COMPARE = {np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal, np.sign}
# Bit moves and questions: denormals pass.
_EXACT = {np.negative, np.positive, np.absolute, np.copysign, np.isnan, np.isinf, np.isfinite,
          np.signbit, np.logical_and, np.logical_or, np.logical_not}


class Flushed(np.ndarray):
    """An array whose arithmetic flushes denormals, as x86 does with FTZ and DAZ set.

    Operands below the smallest normal number count as zeros of their sign, and so do results
    that are below it after rounding to the full precision. Negation, `abs`, `copysign` and
    indexing move bits and let denormals pass. A ufunc or reduction whose flushed result would not
    be certain is refused (TypeError).
    """

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        plain = [np.asarray(x) if isinstance(x, np.ndarray) else x for x in inputs]
        reduces = method == "reduce" and ufunc in {np.maximum, np.minimum, *_EXACT}
        known = ufunc in _ARITHMETIC or ufunc in _SCALED or ufunc in _COMPARE or ufunc in _EXACT
        if not known or not (reduces or (method == "__call__" and not kwargs)):
            return NotImplemented
        with np.errstate(all="ignore"):
            if ufunc not in _EXACT:
                plain = [_daz(x) for x in plain]
            result = getattr(ufunc, method)(*plain, **kwargs)
            if ufunc in _SCALED:
                result = _flush_scaled(ufunc, plain, result)
            elif ufunc in _ARITHMETIC:
                result = _daz(result)
        if out is not None:
            out[0][...] = result
            return out[0]
        return flushed(result) if result.dtype.kind == "f" else result


def flushed(x):
    """View of `x` whose arithmetic flushes denormals to zero.

    Parameters
    ----------
    x : ndarray of float32 or float64, any shape

    Returns
    -------
    Flushed
        Same shape, dtype and memory.

    Examples
    --------
    >>> import numpy as np
    >>> tiny = np.array([1e-30, 1e-40], dtype=np.float32)
    >>> np.asarray(flushed(tiny) * np.float32(1))
    array([1.e-30, 0.e+00], dtype=float32)
    """
    return np.asarray(x).view(Flushed)


def _daz(x):
    """x with zeros of the same sign in place of denormals; Python scalars as they are."""
    if not isinstance(x, np.ndarray | np.floating) or x.dtype.kind != "f":
        return x
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def _flush_scaled(ufunc, operands, result):
    """Flush a product or quotient that is tiny after rounding to full precision.

    Gradual underflow rounds some of those up to the smallest normal number, so the operation is
    repeated 2^48 times larger. (Where that overflows the result is not tiny.)
    """
    big = result.dtype.type(2.0**48)
    first, *rest = operands
    if ufunc is np.square:
        scaled = first * big * first
    elif ufunc is np.multiply:
        # the smaller factor is the one that has room
        swap = np.abs(first) > np.abs(rest[0])
        low, high = np.where(swap, rest[0], first), np.where(swap, first, rest[0])
        scaled = low.astype(result.dtype) * big * high.astype(result.dtype)
    else:
        scaled = np.asarray(first, result.dtype) * big / np.asarray(rest[0], result.dtype)
    tiny = np.abs(scaled) < np.finfo(result.dtype).tiny * big
    return np.where(tiny, np.copysign(result.dtype.type(0), result), result)


def _like(result, *operands):
    """`result` as a flushed array if one of the operands is one."""
    return flushed(result) if any(isinstance(x, Flushed) for x in operands) else result


# ---- the verbs of csrc/simd that NumPy lacks -----------------------------------------------------


def vmax(a, b):
    """(a > b) ? a : b, so a NaN on either side gives b, as x86 does; np.maximum returns the NaN."""
    chosen = np.where(a > b, a, b)
    return flushed(_daz(chosen)) if isinstance(a, Flushed) or isinstance(b, Flushed) else chosen


def vmin(a, b):
    """(a < b) ? a : b; see `vmax`."""
    chosen = np.where(a < b, a, b)
    return flushed(_daz(chosen)) if isinstance(a, Flushed) or isinstance(b, Flushed) else chosen


def _two_sum(a, b):
    """(s, e) with s = a + b rounded and s + e = a + b exactly (Knuth)."""
    s = a + b
    bb = s - a
    return s, (a - (s - bb)) + (b - bb)


def _add_odd(a, b):
    """a + b in float64, rounded to odd: where inexact, to the neighbour whose last bit is 1."""
    s, e = _two_sum(a, b)
    bits = s.view(np.int64)
    step = ((e < 0) | (e > 0)) & (bits & 1 == 0)
    # the other neighbour is nearer to zero where the error has the other sign
    shrink = (e < 0) != (bits < 0)
    return np.where(step, bits + np.where(shrink, -1, 1), bits).view(np.float64)


def _two_product(a, b):
    """(p, e) with p = a b rounded and p + e = a b exactly (Dekker; Veltkamp's splitting)."""
    p = a * b
    ah, bh = ((134217729.0 * x) - (134217729.0 * x - x) for x in (a, b))
    al, bl = a - ah, b - bh
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def fma(a, b, c):
    """a * b + c, rounded once.

    Boldo & Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using
    rounding to odd", IEEE Trans. Computers 57(4), 2008. float32 goes through float64; float64
    through error-free sums and products of significands, with the exponents kept apart so that
    nothing overflows or underflows on the way.

    Parameters
    ----------
    a, b, c : array_like of one dtype, float32 or float64, broadcastable

    Returns
    -------
    ndarray
        `Flushed` if an argument is.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.float64(1 + 2**-30)
    >>> float(fma(x, x, -x * x)) == 2.0**-60    # what the product x * x lost
    True
    """
    dtype = np.asarray(a).dtype
    if dtype != np.asarray(b).dtype or dtype != np.asarray(c).dtype:
        raise TypeError("fma: a, b and c must have one dtype")
    flush = any(isinstance(x, Flushed) for x in (a, b, c))
    a, b, c = np.broadcast_arrays(np.asarray(a), np.asarray(b), np.asarray(c))
    with np.errstate(all="ignore"):
        if flush:
            a, b, c = _daz(a), _daz(b), _daz(c)
        result = (_fma32 if dtype == np.float32 else _fma64)(a, b, c, flush)
    return flushed(result) if flush else result


def _fma32(a, b, c, flush):
    s = _add_odd(np.asarray(a.astype(np.float64) * b), c.astype(np.float64))
    result = s.astype(np.float32)
    if flush:
        # tiny after rounding: rounded 2^64 times larger, where no exponent limit interferes
        tiny = np.abs((s * 2.0**64).astype(np.float32)) < np.float32(2.0 ** (64 - 126))
        result = np.where(tiny, np.copysign(np.float32(0), result), result)
    return result


def _fma64(a, b, c, flush):
    # Zeros and non-finite operands: plain arithmetic rounds at most once. A finite product must
    # not meet an infinite c as an infinity, nor a zero c as an underflowed zero.
    special = (a == 0) | (b == 0) | ~np.isfinite(a) | ~np.isfinite(b)
    product = np.asarray(flushed(a) * b) if flush else a * b
    plain = np.where(special, product + c, np.where(c == 0, product, c))
    simple = special | (c == 0) | ~np.isfinite(c)
    a, b, c = (np.where(simple, 1.0, x) for x in (a, b, c))

    # Significands in [1/2, 1); the result is (ma mb + mc 2^d) 2^e. Beyond |d| = 120 the smaller
    # term only says on which side of the larger one the sum lies (and e follows c).
    (ma, ea), (mb, eb), (mc, ec) = np.frexp(a), np.frexp(b), np.frexp(c)
    e = np.maximum(ea + eb, ec - 120)
    mc = np.ldexp(mc, np.maximum(ec - e, -120))
    uh, ul = _two_product(ma, mb)
    th, tl = _two_sum(mc, ul)
    vh, vl = _two_sum(uh, th)
    z = _add_odd(tl, vl)
    s = vh + z  # correctly rounded, with an unbounded exponent
    tiny = (np.frexp(s)[1] + e <= -1022) & (s != 0)
    if flush:
        underflow = 0.0
    else:
        # One rounding to a multiple of 2^q = 2^(-1074-e): add 2^(q+52), which is larger than |s|,
        # with the sign of s, and take it away.
        magic = np.copysign(np.ldexp(1.0, np.minimum(-1074 - e, 200) + 52), s)
        mh, ml = _two_sum(magic, vh)
        underflow = np.ldexp((mh + _add_odd(ml, z)) - magic, e)
    result = np.where(tiny, np.copysign(underflow, s), np.ldexp(s, e))
    return np.where(simple, plain, result)


# ---- constants -----------------------------------------------------------------------------------


class _Constants:
    """The constants of one dtype, as written in csrc/elementary_tmpl.h."""

    def __init__(self, dtype, bits, exp_bounds, sigmoid_bound, sqrt2, log2e, ln2, exp, tanh, log):
        def parse(text):
            return [dtype(float.fromhex(word)) for word in text.split()]

        info = np.finfo(dtype)
        self.dtype, self.bits, self.mantissa = dtype, bits, info.nmant
        self.bias = 1 - int(info.minexp)
        self.magic = dtype(1.5 * 2.0**info.nmant + self.bias)
        self.exp_low, self.exp_high = map(dtype, exp_bounds)
        self.sigmoid_bound = dtype(sigmoid_bound)
        (self.sqrt2,), (self.log2e,), (self.ln2_hi, self.ln2_lo) = map(parse, (sqrt2, log2e, ln2))
        self.exp, self.tanh, self.log = map(parse, (exp, tanh, log))


_F32 = _Constants(
    np.float32,
    np.uint32,
    exp_bounds=(-105, 90),
    sigmoid_bound=88,
    sqrt2="0x1.6a09e6p+0",
    log2e="0x1.715476p+0",
    ln2="0x1.62e430p-1 -0x1.05c610p-29",
    exp="0x1.fffffcp-2 0x1.55548cp-3 0x1.555858p-5 0x1.123d86p-7 0x1.6abe02p-10",
    tanh="-0x1.555452p-2 0x1.10cefcp-3 -0x1.af7d38p-5 0x1.0d5182p-6",
    log="0x1.555502p-1 0x1.99d1ccp-2 0x1.1ec03cp-2 0x1.1eca3ep-2",
)
_F64 = _Constants(
    np.float64,
    np.uint64,
    exp_bounds=(-746, 710),
    sigmoid_bound=709,
    sqrt2="0x1.6a09e667f3bcdp+0",
    log2e="0x1.71547652b82fep+0",
    ln2="0x1.62e42fefa39efp-1 0x1.abc9e3b39803fp-56",
    exp="""0x1.000000000000ap-1 0x1.5555555555503p-3 0x1.5555555550607p-5 0x1.1111111124d4fp-7
           0x1.6c16c184b535dp-10 0x1.a01a013d6b6a4p-13 0x1.a0199865e36f0p-16 0x1.71deea9a79f84p-19
           0x1.28af18d2c86e2p-22 0x1.adfb1d7992c7ep-26""",
    tanh="""-0x1.555555555549ep-2 0x1.11111111029b0p-3 -0x1.ba1ba1ad73698p-5 0x1.664f45c3217ebp-6
           -0x1.226ddd4e132bcp-7 0x1.d6c61e56ece0cp-9 -0x1.7cf3c2f9be0cdp-10 0x1.2fa2a47ed2a8ap-11
           -0x1.b90a553113e50p-13 0x1.ac027be90d197p-15""",
    log="""0x1.5555555555535p-1 0x1.99999999a074ep-2 0x1.249249208c76ep-2 0x1.c71c741c605aap-3
           0x1.745cb40340190p-3 0x1.3b1de237729dcp-3 0x1.106682d1fa6b6p-3 0x1.f00382230fb1ap-4
           0x1.546d5c9a3da0ap-4 0x1.5e3952ee323a0p-3""",
)


def _constants(x):
    if x.dtype == np.float32:
        return _F32
    if x.dtype == np.float64:
        return _F64
    raise TypeError(f"float32 or float64 wanted, got {x.dtype}")


def _pow2(t, k):
    """2^n for t = n + k.magic: the biased exponent stands in the low bits of t."""
    bits = np.asarray(t).view(k.bits) << k.bits(k.mantissa)
    return _like(bits.view(k.dtype), t)


def _exp_poly(r, r2, m, s, k):
    """m P(s r), P(r) = (e^r - 1 - r) / r^2, for powers of two m, |s|; pairs, then Horner in r2."""
    c = [k.dtype(m * s**i) * ci for i, ci in enumerate(k.exp)]
    if len(c) % 2:
        p = _like(np.full(r.shape, c.pop()), r)
    else:
        c1, c0 = c.pop(), c.pop()
        p = fma(c1, r, c0)
    while c:
        c1, c0 = c.pop(), c.pop()
        p = fma(p, r2, fma(c1, r, c0))
    return p


def _horner(c, x):
    """c_0 + c_1 x + c_2 x^2 + ..."""
    q = c[-1]
    for ci in c[-2::-1]:
        q = fma(q, x, ci)
    return q


# ---- the functions -------------------------------------------------------------------------------


def exp(x):
    """e^x.

    Parameters
    ----------
    x : ndarray of float32 or float64, any shape

    Returns
    -------
    ndarray
        Same shape and dtype; at most 1 ULP off. Overflow gives inf, NaN stays NaN.

    Examples
    --------
    >>> import numpy as np
    >>> exp(np.array([-np.inf, 0.0, 1.0]))
    array([0.        , 1.        , 2.71828183])
    """
    x = np.asanyarray(x)
    k = _constants(x)
    with np.errstate(all="ignore"):
        # E1: the range in which anything happens
        a = vmin(k.exp_high, vmax(k.exp_low, x))
        # E2: n = rint(x / ln2)
        n = fma(a, k.log2e, k.magic) - k.magic
        # E3: r = x - n ln2
        r = fma(-n, k.ln2_hi, a)
        r = fma(-n, k.ln2_lo, r)
        # E4: y = e^r - 1
        r2 = r * r
        y = fma(r2, _exp_poly(r, r2, 1, 1, k), r)
        # E5: 2^n (1 + y), the power in two steps
        t = fma(n, k.dtype(0.5), k.magic)
        first = t - k.magic
        return (k.dtype(1) + y) * _pow2(t, k) * _pow2(n - first + k.magic, k)


def sigmoid(x):
    """1 / (1 + e^-x) = 2^n / (2^n + e^-r) with x = n ln2 + r.

    Parameters
    ----------
    x : ndarray of float32 or float64, any shape

    Returns
    -------
    ndarray
        Same shape and dtype, in [0, 1]; NaN stays NaN.

    Examples
    --------
    >>> import numpy as np
    >>> sigmoid(np.array([-np.inf, 0.0, 2.0]))
    array([0.        , 0.5       , 0.88079708])
    """
    x = np.asanyarray(x)
    k = _constants(x)
    with np.errstate(all="ignore"):
        # S1: the range in which anything happens
        a = vmin(k.sigmoid_bound, vmax(-k.sigmoid_bound, x))
        # S2: n = rint(x / ln2), 2^n
        t = fma(a, k.log2e, k.magic)
        n, scale = t - k.magic, _pow2(t, k)
        # S3: r = x - n ln2
        r = fma(-n, k.ln2_hi, a)
        r = fma(-n, k.ln2_lo, r)
        # S4: y = e^-r - 1
        r2 = r * r
        y = fma(r2, _exp_poly(r, r2, 1, -1, k), -r)
        # S5
        return scale / ((k.dtype(1) + scale) + y)


def tanh(x):
    """Hyperbolic tangent: an odd polynomial for |x| < 0.55, else 1 - 2 / (1 + e^2|x|).

    Parameters
    ----------
    x : ndarray of float32 or float64, any shape

    Returns
    -------
    ndarray
        Same shape and dtype, in [-1, 1]; tanh(-x) = -tanh(x); NaN stays NaN.

    Examples
    --------
    >>> import numpy as np
    >>> tanh(np.array([-np.inf, -0.5, 0.5]))
    array([-1.        , -0.46211716,  0.46211716])
    """
    x = np.asanyarray(x)
    k = _constants(x)
    half, one = k.dtype(0.5), k.dtype(1)
    with np.errstate(all="ignore"):
        # T1: tanh is odd, and 1 from the bound on
        a = np.abs(x)
        b = vmin(k.dtype(20), a)
        # T2: n = rint(2 a / ln2), 2^n
        t = fma(b, 2 * k.log2e, k.magic)
        n, scale = t - k.magic, _pow2(t, k)
        # T3: r = a - n ln2 / 2
        r = fma(-n, half * k.ln2_hi, b)
        r = fma(-n, half * k.ln2_lo, r)
        # T4: h = (e^2r - 1) / 2
        r2 = r * r
        h = fma(r2, _exp_poly(r, r2, 2, 2, k), r)
        # T5: 1 - 1 / ((1 + e^2a) / 2)
        large = one - one / fma(scale, h, fma(half, scale, half))
        # T6: a + a^3 Q(a^2)
        a2 = a * a
        small = fma(a * a2, _horner(k.tanh, a2), a)
        # T7
        return _like(np.copysign(np.where(a < k.dtype(0.55), small, large), np.asarray(x)), x)


def _log1p_tail(f, k):
    """log(1 + f) - f for sqrt(1/2) - 1 <= f <= 1."""
    # L1: s = f / (2 + f), R(z) = 2 atanh(s) / s - 2
    s = f / (k.dtype(2) + f)
    z = s * s
    q = _horner(k.log, z)
    # L2: s (f^2/2 + R) - f^2/2
    half_f2 = (k.dtype(0.5) * f) * f
    return fma(s, fma(q, z, half_f2), -half_f2)


def log1p(e):
    """log(1 + e) for 0 <= e <= 1.

    Parameters
    ----------
    e : ndarray of float32 or float64, any shape, values in [0, 1]

    Returns
    -------
    ndarray
        Same shape and dtype; NaN stays NaN.

    Examples
    --------
    >>> import numpy as np
    >>> log1p(np.array([0.0, 1e-20, 1.0]))
    array([0.00000000e+00, 1.00000000e-20, 6.93147181e-01])
    """
    e = np.asanyarray(e)
    with np.errstate(all="ignore"):
        return e + _log1p_tail(e, _constants(e))


def log_pos(x):
    """log(x) for x >= 1, as the log-sum-exp of softmax needs it.

    Parameters
    ----------
    x : ndarray of float32 or float64, any shape, values >= 1

    Returns
    -------
    ndarray
        Same shape and dtype; inf stays inf, NaN stays NaN.

    Examples
    --------
    >>> import numpy as np
    >>> log_pos(np.array([1.0, 10.0, np.inf]))
    array([0.        , 2.30258509,        inf])
    """
    x = np.asanyarray(x)
    k = _constants(x)
    with np.errstate(all="ignore"):
        # L3: x = 2^n m, sqrt(1/2) <= m < sqrt(2)
        bits = np.asarray(x).view(k.bits)
        fraction = k.bits((1 << k.mantissa) - 1)
        n = ((bits >> k.bits(k.mantissa)).astype(np.int64) - k.bias).astype(k.dtype)
        m = ((bits & fraction) | np.asarray(k.dtype(1)).view(k.bits)).view(k.dtype)
        high = ~(m < k.sqrt2)
        n = np.where(high, n + k.dtype(1), n)
        m = np.where(high, k.dtype(0.5) * m, m)
        # L4: n ln2 + log m, the small terms first
        f = _like(m - k.dtype(1), x)
        tail = fma(n, k.ln2_lo, _log1p_tail(f, k))
        log = fma(n, k.ln2_hi, f + tail)
        # L5: infinity and NaN are their own logarithms
        return _like(np.where(x < k.dtype(np.inf), log, x), x)
