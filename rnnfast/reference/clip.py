"""Gradient clipping: twins of ``rnnfast._clip``."""

import math

import numpy as np

from rnnfast.reference import elementary
from rnnfast.reference.arithmetic import LANES, PLAIN


def norm(g, *, arithmetic=PLAIN):
    """Euclidean norm of an array in float64, summed so that no square overflows or vanishes.

    Where g holds a NaN the norm is NaN, otherwise where it holds an infinity it is inf.
    """
    ar = arithmetic
    if ar.name == "plain":
        return float(np.linalg.norm(np.asarray(g, np.float64).ravel()))
    x = np.asarray(ar.array(g) + 0).ravel()
    top = float(abs(x).max(initial=0))
    if top == 0 or not math.isfinite(top):
        return top
    alpha = math.ldexp(1.0, -max(-1000, min(1000, math.frexp(top)[1])))
    lanes = ar.array(np.zeros(LANES))
    scaled = ar.array(np.pad(x, (0, -len(x) % LANES)).astype(np.float64)) * alpha
    for block in scaled.reshape(-1, LANES):
        lanes = lanes + block * block
    half = LANES // 2
    while half:
        lanes = lanes[:half] + lanes[half : 2 * half]
        half //= 2
    return math.sqrt(float(lanes[0])) / alpha


def scale(g, factor, *, arithmetic=PLAIN):
    """g *= factor, in place."""
    g[...] = arithmetic.array(g) * g.dtype.type(factor)


def clip_by_value(g, limit, *, arithmetic=PLAIN):
    """g = min(max(g, -limit), limit), in place; NaN stays NaN."""
    limit = g.dtype.type(limit)
    g[...] = elementary.vmin(limit, elementary.vmax(-limit, arithmetic.array(g)))


def clip_by_norm(arrays, max_norm, *, arithmetic=PLAIN):
    """If the norm ||g|| of all arrays together is above v: g *= v / (||g|| + 1e-6), in place.

    Pascanu, Mikolov and Bengio 2013, https://arxiv.org/abs/1211.5063, with torch's 1e-6. Where the
    norm is not finite nothing is changed. Returns the norm before clipping.
    """
    norms = np.array([norm(g, arithmetic=arithmetic) for g in arrays], np.float64)
    total = norm(norms, arithmetic=arithmetic)
    if math.isfinite(total) and max_norm < total + 1e-6:
        for g in arrays:
            scale(g, max_norm / (total + 1e-6), arithmetic=arithmetic)
    return total
