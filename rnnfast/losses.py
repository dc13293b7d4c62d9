"""Losses: each call gives the value and the gradient with respect to its first argument."""

import numpy as np

from rnnfast import _engine
from rnnfast._module import real_dtype
from rnnfast.layers import real_array

REDUCTIONS = ("mean", "sum", "none")


def _floats(name, z):
    z = np.asarray(z)
    try:
        return real_array(name, "input", z, real_dtype(z.dtype.newbyteorder("=")))
    except TypeError:
        raise TypeError(f"{name}: expected float32 or float64, got {z.dtype}") from None


def _check(name, reduction, known=REDUCTIONS):
    if reduction not in known:
        raise ValueError(f"{name}: reduction must be one of {known}, got {reduction!r}")


def softmax(z):
    """exp(z) / sum exp(z) over the last axis, computed from z - max z.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> rnnfast.losses.softmax(np.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    z = _floats("softmax", z)
    return _engine.functions().softmax(z.reshape(-1, z.shape[-1])).reshape(z.shape)


def softmax_cross_entropy(logits, targets, *, ignore_index=-100, reduction="mean",
                          label_smoothing=0.0, weight=None, inplace=False):  # fmt: skip
    """Negative log-likelihood -log softmax(z)_y, from logits.

    Parameters
    ----------
    logits : (..., V) array
        float32 or float64.
    targets : (...) integers
        Classes in [0, V), or `ignore_index`.
    ignore_index : int
        Rows with this target count for nothing.
    reduction : {"mean", "sum", "none"}
        mean: the weighted sum over the sum of weights of all rows that count; 0 where there are
        none. none: the loss of each row.
    label_smoothing : float in [0, 1)
        Share of each target that is spread evenly over all classes.
    weight : (...) array, optional
        A weight for each row, at least 0.
    inplace : bool
        Write the gradient over the logits, which must be C-contiguous and writable: no copy of
        them is made.

    Returns
    -------
    loss : float, or (...) array for "none"
    dlogits : (..., V) array
        Gradient of the loss; for "none", of the sum of all losses.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape or class.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> z = np.zeros((2, 3, 4), np.float32)
    >>> loss, dz = rnnfast.losses.softmax_cross_entropy(z, np.zeros((2, 3), int))
    >>> round(loss, 4), dz.shape
    (1.3863, (2, 3, 4))
    """
    name = "softmax_cross_entropy"
    _check(name, reduction)
    z = _floats(name, logits)
    if inplace and not (np.may_share_memory(z, logits) and z.flags.writeable):
        raise ValueError(f"{name}: inplace needs a C-contiguous, writable array of logits")
    targets = np.asarray(targets)
    if targets.dtype.kind not in "iu":
        raise TypeError(f"{name}: targets must be integers, got {targets.dtype}")
    if z.ndim == 0 or targets.shape != z.shape[:-1]:
        raise ValueError(f"{name}: targets must have shape {z.shape[:-1]}, got {targets.shape}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{name}: label_smoothing must lie in [0, 1), got {label_smoothing}")
    y = targets.reshape(-1).astype(np.int64)
    used = y != ignore_index
    bad = used & ((y < 0) | (y >= z.shape[-1]))
    if bad.any():
        raise ValueError(f"{name}: targets must lie in [0, {z.shape[-1]}), got {y[bad][0]}")
    y[~used] = -1
    w = np.ones(len(y)) if weight is None else np.array(weight, np.float64)
    if weight is not None and w.shape != targets.shape:
        raise ValueError(f"{name}: weight must have shape {targets.shape}, got {w.shape}")
    if not (w >= 0).all():
        raise ValueError(f"{name}: weights must be at least 0, got {w.min()}")
    w = np.where(used, w.reshape(-1), 0.0)
    count = float(w.sum())
    share = 1 / count if reduction == "mean" and count > 0 else 1.0
    rows = z.reshape(-1, z.shape[-1])
    dz = rows if inplace else np.empty_like(rows)
    total, loss = _engine.functions().softmax_cross_entropy(
        rows, y, (w * share).astype(z.dtype), None if weight is None else w, label_smoothing, dz)
    if reduction == "none":
        return (loss * w.astype(z.dtype)).reshape(targets.shape), dz.reshape(z.shape)
    return total * share, dz.reshape(z.shape)


def _elementwise(name, function, z, target, reduction):
    _check(name, reduction)
    z = _floats(name, z)
    target = real_array(name, "target", target, z.dtype)
    if target.shape != z.shape:
        raise ValueError(f"{name}: target must have shape {z.shape}, got {target.shape}")
    rows = z.reshape(-1, z.shape[-1]) if z.ndim > 1 else z.reshape(1, -1)
    share = 1 / max(1, len(rows)) if reduction == "mean" else 1.0
    compute = getattr(_engine.functions(), function)
    total, loss, dz = compute(rows, target.reshape(rows.shape), share)
    if reduction == "none":
        return loss.reshape(z.shape[:-1]), dz.reshape(z.shape)
    return total * share, dz.reshape(z.shape)


def sigmoid_cross_entropy(z, target, *, reduction="mean"):
    """-t log s - (1 - t) log(1 - s) with s = sigmoid(z), computed stably from z.

    The sigmoid's derivative cancels: dE/dz = s - t.

    Parameters
    ----------
    z, target : (..., V) arrays of one dtype
        Logits, and targets in [0, 1].
    reduction : {"mean", "sum", "none"}
        Each row's loss is the sum over its V outputs; mean is over rows.

    Returns
    -------
    loss : float, or (...) array for "none"
    dz : (..., V) array

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> loss, dz = rnnfast.losses.sigmoid_cross_entropy(np.array([[-1000.0]]), np.array([[1.0]]))
    >>> loss, dz.tolist()
    (1000.0, [[-1.0]])
    """
    return _elementwise("sigmoid_cross_entropy", "sigmoid_cross_entropy", z, target, reduction)


def quadratic_error(y, target, *, reduction="sum"):
    """1/2 sum (y - t)^2.

    Parameters
    ----------
    y, target : (..., V) arrays of one dtype
    reduction : {"sum", "mean", "none"}
        Each row's loss is the sum over its V outputs; mean is over rows.

    Returns
    -------
    loss : float, or (...) array for "none"
    dy : (..., V) array

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> loss, dy = rnnfast.losses.quadratic_error(np.array([[3.0, 1.0]]), np.array([[1.0, 1.0]]))
    >>> loss, dy.tolist()
    (2.0, [[2.0, 0.0]])
    """
    return _elementwise("quadratic_error", "quadratic_error", y, target, reduction)
