"""Gradient clipping, in place, over dictionaries or sequences of arrays."""

import math

import numpy as np

from rnnfast import _engine

NONFINITE = ("raise", "skip", "propagate")


def named_arrays(grads):
    """[(name, array)] of a dict, of a sequence of dicts or arrays, or of one array."""
    if isinstance(grads, np.ndarray):
        return [("grads", grads)]
    items = grads.items() if hasattr(grads, "items") else enumerate(grads)
    found = []
    for name, value in items:
        if hasattr(value, "items"):
            found += [(f"{name}.{k}", a) for k, a in value.items()]
        else:
            found.append((str(name), value))
    return found


def clip_grad_norm(grads, max_norm, *, nonfinite="raise"):
    """Scale all gradients together so that their Euclidean norm is at most `max_norm`.

    If ||g|| > v then g <- g v / ||g|| (Pascanu et al. 2013, https://arxiv.org/abs/1211.5063), with
    torch's factor min(1, v / (||g|| + 1e-6)).

    Parameters
    ----------
    grads : dict of arrays, or sequence of arrays or of dicts
        float32 or float64, changed in place.
    max_norm : float
        v > 0.
    nonfinite : {"raise", "skip", "propagate"}
        What to do where the norm is infinite or NaN: raise an error that names the first such
        gradient; leave all gradients alone; or scale all the same (as torch does: finite numbers
        become 0 or NaN).

    Returns
    -------
    float
        The norm before clipping, summed in float64 so that it neither overflows nor vanishes.

    Raises
    ------
    FloatingPointError
        Where the norm is not finite and `nonfinite` is "raise".

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> g = {"w": np.array([3.0, 4.0])}
    >>> rnnfast.clip_grad_norm(g, 1.0)
    5.0
    >>> g["w"].round(5).tolist()
    [0.6, 0.8]
    """
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {NONFINITE}, got {nonfinite!r}")
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    f, named = _engine.functions(), named_arrays(grads)
    arrays = [g for _, g in named]
    total = f.clip_by_norm(arrays, max_norm)
    if not math.isfinite(total):
        if nonfinite == "raise":
            bad = [name for name, g in named if not math.isfinite(f.norm(g))]
            raise FloatingPointError(f"the gradient of {bad[0] if bad else 'all together'} "
                                     f"has norm {total}")  # fmt: skip
        if nonfinite == "propagate":
            for g in arrays:
                f.scale(g, max_norm / total)
    return total


def clip_grad_value(grads, limit):
    """Clamp every gradient into [-limit, limit]; NaN stays NaN.

    Parameters
    ----------
    grads : dict of arrays, or sequence of arrays or of dicts
        float32 or float64, changed in place.
    limit : float
        At least 0.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> g = [np.array([-3.0, 0.5])]
    >>> rnnfast.clip_grad_value(g, 1.0)
    >>> g[0].tolist()
    [-1.0, 0.5]
    """
    if not limit >= 0:
        raise ValueError(f"limit must not be negative, got {limit}")
    for _, g in named_arrays(grads):
        _engine.functions().clip_by_value(g, limit)
