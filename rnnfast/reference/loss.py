"""Losses with their gradients: twins of ``rnnfast._loss``. Rows are samples; totals are float64
sums over the rows in ascending order."""

import numpy as np

from rnnfast.reference.arithmetic import PLAIN


def total_of(loss):
    """0.0 + loss[0] + loss[1] + ... in float64. (Python 3.12's `sum` compensates.)"""
    total = 0.0
    for x in np.asarray(loss).tolist():
        total += x
    return total


def softmax(z, *, arithmetic=PLAIN):
    """p = exp(z - max z) / sum exp(z - max z) per row of an (N, V) array."""
    ar = arithmetic
    if z.shape[1] == 0:
        return z.copy()
    e = ar.exp(ar.array(z) - z.max(axis=1, keepdims=True))
    return np.asarray(e / ar.sum_rows(e))


def softmax_cross_entropy(z, targets, scale, weight=None, smoothing=0.0, dz=None, *,
                          arithmetic=PLAIN):  # fmt: skip
    """Negative log-likelihood of class indices under a softmax.

    Parameters
    ----------
    z : (N, V) array
        Logits.
    targets : (N,) int64
        Class of each row; negative: the row is left out (loss 0, gradient 0).
    scale : (N,) array
        What each row's gradient is multiplied by.
    weight : (N,) float64 or None
        What each row's loss is multiplied by in the total; None: 1.
    smoothing : float
        Share eps of the target's mass that is spread over all V classes.
    dz : (N, V) array or None
        Where the gradient goes; may be z.

    Returns
    -------
    total : float
    loss : (N,) array
    """
    ar, (N, V) = arithmetic, z.shape
    real = z.dtype.type
    used = targets >= 0
    y, row = np.where(used, targets, 0), np.arange(N)
    centred = ar.array(z) - z.max(axis=1, keepdims=True)  # S1
    e = ar.exp(centred)
    s = ar.sum_rows(e)[:, 0]  # S2
    lse = ar.log_pos(s)
    loss = lse - centred[row, y]  # S3
    if smoothing > 0:
        spread = lse - ar.sum_rows(centred)[:, 0] / real(V)
        loss = (real(1) - real(smoothing)) * loss + real(smoothing) * spread
    loss = np.where(used, loss, real(0))
    total = 0.0
    for n in range(N):
        if used[n]:
            total += (1.0 if weight is None else float(weight[n])) * float(loss[n])
    if dz is not None:
        scale = ar.array(scale)
        off = real(smoothing) / real(V) * scale if smoothing > 0 else np.zeros_like(scale)
        d = ar.fma(e, (scale / s)[:, None], -off[:, None])  # S4
        d[row, y] = d[row, y] - (real(1) - real(smoothing)) * scale  # S5
        dz[...] = np.where(used[:, None], d, real(0))
    return total, loss


def sigmoid_cross_entropy(z, target, scale=1.0, *, arithmetic=PLAIN):
    """-t log sigmoid(z) - (1 - t) log(1 - sigmoid(z)), summed over each row of (N, V).

    The sigmoid's derivative cancels: dE/dz = sigmoid(z) - t. Returns (total, loss, dz), dz
    multiplied by `scale`.
    """
    ar, x, t = arithmetic, arithmetic.array(z), arithmetic.array(target)
    soft = ar.log1p(ar.exp(-abs(x)))
    loss = ar.sum_rows(ar.fma(-x, t, ar.relu(x)) + soft)[:, 0]  # E1
    dz = (ar.sigmoid(x) - t) * z.dtype.type(scale)  # E2
    return total_of(loss), np.asarray(loss), np.asarray(dz)


def quadratic_error(y, target, scale=1.0, *, arithmetic=PLAIN):
    """1/2 sum (y - t)^2 over each row of (N, V): (total, loss, dy), dy multiplied by `scale`."""
    ar = arithmetic
    e = ar.array(y) - target  # Q1
    loss = y.dtype.type(0.5) * ar.dot_rows(e, e)[:, 0]
    dy = e * y.dtype.type(scale)  # Q2
    return total_of(loss), np.asarray(loss), np.asarray(dy)
