"""Packed batches, and the products over all time steps at once that the cells share.

A packed batch is an (N, ...) array: row ``offsets[t] + b`` is step t of sequence b. Sequences are
sorted by length, longest first, so the ``batch_sizes[t]`` sequences alive at step t are the first
ones, and no row stands for padding.
"""

import numpy as np

EPS = 1e-5  #: layer norm's epsilon


def steps(batch_sizes, reverse=False):
    """The (rows, n) of each step in the order the recurrence visits them."""
    stops = np.cumsum(batch_sizes)
    order = reversed(range(len(batch_sizes))) if reverse else range(len(batch_sizes))
    for t in order:
        n = int(batch_sizes[t])
        yield slice(int(stops[t]) - n, int(stops[t])), n


def total_bias(ar, b_ih, b_hh):
    """b_ih + b_hh; either may be None, both: None."""
    if b_ih is None or b_hh is None:
        return b_hh if b_ih is None else b_ih
    return ar.array(b_ih) + b_hh


def start(ar, rows, bias, width, dtype):
    """`rows` rows that start at the bias."""
    a = np.zeros((rows, width), dtype)
    return a if bias is None else a + np.asarray(bias)


def input_product(ar, x, w, bias):
    """F1: bias + W x for all steps at once; for ids, bias + their columns of W."""
    if x.ndim == 1:
        table = ar.array(np.ascontiguousarray(w.T))
        return np.asarray(table if bias is None else table + bias)[x]
    return np.asarray(ar.matmul(x, w.T, start(ar, len(x), bias, len(w), w.dtype)))


def input_product_backward(ar, x, w, da, dw, need_dx, out=None):
    """dW += da^T x, and dx = da W; for ids the rows of da are added to their columns of dW.

    out: where to write dx, or None.
    """
    if x.ndim == 1:
        columns = ar.array(np.ascontiguousarray(dw.T))
        for i, row in zip(x, ar.array(da), strict=True):
            columns[i] = columns[i] + row
        dw[...] = columns.T
        return None
    dw[...] = ar.matmul(da.T, x, dw)
    if not need_dx:
        return None
    dx = np.asarray(ar.matmul(da, w))
    if out is None:
        return dx
    out[...] = dx
    return out


def layer_norm_forward(x, gain, bias=None, y=None, *, arithmetic):
    """N1-N4: gain (x - mean) / sqrt(var + eps) + bias per row, plus y where given.

    Layer normalisation after Ba, Kiros and Hinton, https://arxiv.org/abs/1607.06450.
    Returns the result, and xhat and 1 / sqrt(var + eps) for the way back.
    """
    ar = arithmetic
    x = ar.array(x)
    size = x.dtype.type(x.shape[1])
    away = x - ar.sum_rows(x) / size  # N1
    rstd = 1 / np.sqrt(ar.dot_rows(away, away) / size + x.dtype.type(EPS))  # N2
    xhat = away * rstd  # N3
    terms = [ar.array(term) for term in (y, bias) if term is not None]
    first = sum(terms[1:], terms[0]) if terms else x.dtype.type(0)
    y = ar.fma(ar.array(gain), xhat, first)  # N4
    return np.asarray(y), np.asarray(xhat), np.asarray(rstd)[:, 0]


def layer_norm_backward(dy, gain, xhat, rstd, *, arithmetic):
    """NB1-NB3: dx of `layer_norm_forward`."""
    ar = arithmetic
    size = dy.dtype.type(dy.shape[1])
    g = ar.array(dy) * gain
    mean = ar.sum_rows(g) / size  # NB1
    dot = ar.dot_rows(g, ar.array(xhat)) / size  # NB2
    return np.asarray(ar.array(rstd)[:, None] * ar.fma(-ar.array(xhat), dot, g - mean))  # NB3
