"""Weights of one layer and direction from one framework's layout to another's: plain functions on
NumPy arrays, for every pair of PyTorch, Keras and ONNX and for each cell.

The layouts, with G gates (1 for the RNN, 4 for the LSTM, 3 for the GRU):

========  =====================================  =========  =======  ==============================
..        weights                                LSTM       GRU      biases
========  =====================================  =========  =======  ==============================
PyTorch   w_ih (G H, I), w_hh (G H, H)           i f g o    r z n    b_ih (G H), b_hh (G H)
Keras     kernel (I, G H),                       i f g o    z r n    bias (G H); GRU with
          recurrent_kernel (H, G H)                                  reset_after (2, G H)
ONNX      W (D, G H, I), R (D, G H, H)           i o f g    z r n    B (D, 2 G H) = [Wb, Rb]
========  =====================================  =========  =======  ==============================

`rnnfast` has PyTorch's layout. The functions from and to it take and give ``(w_ih, w_hh, b_ih,
b_hh)``, those for Keras ``(kernel, recurrent_kernel, bias)``, which is what ``get_weights``
returns, and those for ONNX ``(W, R, B)``. Biases are None where a layer has none.

- ONNX stacks the D directions of a layer in one array. The functions to ONNX make D = 1, and
  ``np.concatenate([forward, backward])`` joins two; those from ONNX take the index ``direction``.
- Where one bias has to do for two it is their sum; where two come from one the second is zero. So
  PyTorch and ONNX lose by a way through Keras which part of the sum was whose (of the GRU's n with
  ``reset_after`` both are kept), and nothing else is ever lost.
- The dtype stays, arrays are never shared with the arguments' memory, and a wrong shape is a
  ValueError that names the array.

Keras's GRU with ``reset_after=False`` and ONNX's with ``linear_before_reset=0`` compute the
candidate state differently, which no conversion of weights can change: such weights belong into
``rnnfast.GRU(reset_after=False)``, which torch has no counterpart of.
"""

import numpy as np

#: Where each framework keeps the gates, in the letters of docs/math.md
ORDER = {
    "rnn": {"torch": "h", "keras": "h", "onnx": "h"},
    "lstm": {"torch": "ifgo", "keras": "ifgo", "onnx": "iofg"},
    "gru": {"torch": "rzn", "keras": "zrn", "onnx": "zrn"},
}


def _reorder(a, cell, source, target):
    """A copy of (G H, ...) with the blocks of H rows in the target's order."""
    order = ORDER[cell]
    blocks = np.split(a, len(order[source]))
    return np.concatenate([blocks[order[source].index(gate)] for gate in order[target]])


def _check(name, a, shape):
    """a as an array, of this shape; None stands for any size."""
    a = np.asarray(a)
    if a.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, a.shape, strict=True)):
        want = ", ".join("*" if n is None else str(n) for n in shape)
        raise ValueError(f"{name}: expected shape ({want}), got {a.shape}")
    return a


def _gate_rows(cell, name, hidden, rows):
    if rows != len(ORDER[cell]["torch"]) * hidden:
        raise ValueError(f"{name}: expected {len(ORDER[cell]['torch'])} gates of {hidden} units "
                         f"each, got {rows} rows")  # fmt: skip


def _two_biases(b_ih, b_hh, rows):
    """Both biases, zeros for one that is missing; None where both are."""
    if b_ih is None and b_hh is None:
        return None
    given = [b if b is None else _check(name, b, (rows,))
             for name, b in (("b_ih", b_ih), ("b_hh", b_hh))]  # fmt: skip
    return [np.zeros_like(given[1 - k]) if b is None else b for k, b in enumerate(given)]


def _torch(cell, w_ih, w_hh, b_ih, b_hh):
    """What every function from PyTorch takes, checked: (w_ih, w_hh, pair of biases or None)."""
    w_hh = _check("w_hh", w_hh, (None, None))
    rows = len(w_hh)
    _gate_rows(cell, "w_hh", w_hh.shape[1], rows)
    return _check("w_ih", w_ih, (rows, None)), w_hh, _two_biases(b_ih, b_hh, rows)


def _torch_to_keras(cell, w_ih, w_hh, b_ih, b_hh, two_rows=False):
    w_ih, w_hh, b = _torch(cell, w_ih, w_hh, b_ih, b_hh)
    kernel, recurrent = (_reorder(w, cell, "torch", "keras").T.copy() for w in (w_ih, w_hh))
    if b is None:
        return kernel, recurrent, None
    b_ih, b_hh = (_reorder(a, cell, "torch", "keras") for a in b)
    return kernel, recurrent, np.stack([b_ih, b_hh]) if two_rows else b_ih + b_hh


def _keras_to_torch(cell, kernel, recurrent_kernel, bias):
    recurrent_kernel = _check("recurrent_kernel", recurrent_kernel, (None, None))
    hidden, rows = recurrent_kernel.shape
    _gate_rows(cell, "recurrent_kernel", hidden, rows)
    kernel = _check("kernel", kernel, (None, rows))
    w_ih, w_hh = (_reorder(w.T, cell, "keras", "torch") for w in (kernel, recurrent_kernel))
    if bias is None:
        return w_ih, w_hh, None, None
    bias = np.asarray(bias)
    bias = _check("bias", bias, (2, rows) if cell == "gru" and bias.ndim == 2 else (rows,))
    pair = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
    return w_ih, w_hh, *(_reorder(a, cell, "keras", "torch") for a in pair)


def _torch_to_onnx(cell, w_ih, w_hh, b_ih, b_hh):
    w_ih, w_hh, b = _torch(cell, w_ih, w_hh, b_ih, b_hh)
    W, R = (_reorder(w, cell, "torch", "onnx")[None] for w in (w_ih, w_hh))
    B = None if b is None else np.concatenate([_reorder(a, cell, "torch", "onnx") for a in b])[None]
    return W, R, B


def _onnx_to_torch(cell, W, R, B, direction):
    R = _check("R", R, (None, None, None))
    directions, rows, hidden = R.shape
    if not 0 <= direction < directions:
        raise ValueError(f"direction must lie in [0, {directions}), got {direction}")
    _gate_rows(cell, "R", hidden, rows)
    W = _check("W", W, (directions, rows, None))
    w_ih, w_hh = (_reorder(w[direction], cell, "onnx", "torch") for w in (W, R))
    if B is None:
        return w_ih, w_hh, None, None
    B = _check("B", B, (directions, 2 * rows))[direction]
    return w_ih, w_hh, *(_reorder(b, cell, "onnx", "torch") for b in np.split(B, 2))


# ---- PyTorch and Keras -------------------------------------------------------------------------


def torch_to_keras_rnn(w_ih, w_hh, b_ih=None, b_hh=None):
    """(kernel, recurrent_kernel, bias) of ``keras.layers.SimpleRNN`` from ``torch.nn.RNN``."""
    return _torch_to_keras("rnn", w_ih, w_hh, b_ih, b_hh)


def torch_to_keras_lstm(w_ih, w_hh, b_ih=None, b_hh=None):
    """(kernel, recurrent_kernel, bias) of ``keras.layers.LSTM`` from ``torch.nn.LSTM``.

    Parameters
    ----------
    w_ih : (4 H, I) array
    w_hh : (4 H, H) array
        A projection (proj_size) has no counterpart in Keras.
    b_ih, b_hh : (4 H,) arrays, optional

    Returns
    -------
    kernel : (I, 4 H) array
    recurrent_kernel : (H, 4 H) array
    bias : (4 H,) array or None
        b_ih + b_hh.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> p = rnnfast.LSTM(3, 5, seed=0).params
    >>> weights = rnnfast.convert.torch_to_keras_lstm(
    ...     p["weight_ih_l0"], p["weight_hh_l0"], p["bias_ih_l0"], p["bias_hh_l0"])
    >>> [w.shape for w in weights]
    [(3, 20), (5, 20), (20,)]
    """
    return _torch_to_keras("lstm", w_ih, w_hh, b_ih, b_hh)


def torch_to_keras_gru(w_ih, w_hh, b_ih=None, b_hh=None, reset_after=True):
    """(kernel, recurrent_kernel, bias) of ``keras.layers.GRU`` from ``torch.nn.GRU``.

    The bias is (2, 3 H); with ``reset_after=False``, for weights of a GRU that is computed so, it
    is the sum (3 H,).
    """
    return _torch_to_keras("gru", w_ih, w_hh, b_ih, b_hh, two_rows=bool(reset_after))


def keras_to_torch_rnn(kernel, recurrent_kernel, bias=None):
    """(w_ih, w_hh, b_ih, b_hh) of ``torch.nn.RNN`` from ``keras.layers.SimpleRNN``; b_hh is 0."""
    return _keras_to_torch("rnn", kernel, recurrent_kernel, bias)


def keras_to_torch_lstm(kernel, recurrent_kernel, bias=None):
    """(w_ih, w_hh, b_ih, b_hh) of ``torch.nn.LSTM`` from ``keras.layers.LSTM``; b_hh is 0."""
    return _keras_to_torch("lstm", kernel, recurrent_kernel, bias)


def keras_to_torch_gru(kernel, recurrent_kernel, bias=None):
    """(w_ih, w_hh, b_ih, b_hh) of ``torch.nn.GRU`` from ``keras.layers.GRU``.

    The bias is (2, 3 H), or (3 H,) of a GRU with ``reset_after=False``; then b_hh is 0.
    """
    return _keras_to_torch("gru", kernel, recurrent_kernel, bias)


# ---- PyTorch and ONNX --------------------------------------------------------------------------


def torch_to_onnx_rnn(w_ih, w_hh, b_ih=None, b_hh=None):
    """(W, R, B) of ONNX's RNN from ``torch.nn.RNN``; one direction."""
    return _torch_to_onnx("rnn", w_ih, w_hh, b_ih, b_hh)


def torch_to_onnx_lstm(w_ih, w_hh, b_ih=None, b_hh=None):
    """(W, R, B) of ONNX's LSTM from ``torch.nn.LSTM``.

    Parameters
    ----------
    w_ih : (4 H, I) array
    w_hh : (4 H, H) array
        A projection (proj_size) has no counterpart in ONNX.
    b_ih, b_hh : (4 H,) arrays, optional

    Returns
    -------
    W : (1, 4 H, I) array
    R : (1, 4 H, H) array
    B : (1, 8 H) array or None

    Examples
    --------
    Both directions of a bidirectional layer:

    >>> import numpy as np, rnnfast
    >>> p = rnnfast.LSTM(3, 5, bidirectional=True, seed=0).params
    >>> names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    >>> forward = rnnfast.convert.torch_to_onnx_lstm(*[p[n] for n in names])
    >>> reverse = rnnfast.convert.torch_to_onnx_lstm(*[p[n + "_reverse"] for n in names])
    >>> W, R, B = (np.concatenate(pair) for pair in zip(forward, reverse))
    >>> W.shape, R.shape, B.shape
    ((2, 20, 3), (2, 20, 5), (2, 40))
    """
    return _torch_to_onnx("lstm", w_ih, w_hh, b_ih, b_hh)


def torch_to_onnx_gru(w_ih, w_hh, b_ih=None, b_hh=None):
    """(W, R, B) of ONNX's GRU from ``torch.nn.GRU``; the node needs ``linear_before_reset=1``."""
    return _torch_to_onnx("gru", w_ih, w_hh, b_ih, b_hh)


def onnx_to_torch_rnn(W, R, B=None, direction=0):
    """(w_ih, w_hh, b_ih, b_hh) of ``torch.nn.RNN`` from one direction of ONNX's RNN."""
    return _onnx_to_torch("rnn", W, R, B, direction)


def onnx_to_torch_lstm(W, R, B=None, direction=0):
    """(w_ih, w_hh, b_ih, b_hh) of ``torch.nn.LSTM`` from one direction of ONNX's LSTM."""
    return _onnx_to_torch("lstm", W, R, B, direction)


def onnx_to_torch_gru(W, R, B=None, direction=0):
    """(w_ih, w_hh, b_ih, b_hh) of ``torch.nn.GRU`` from one direction of ONNX's GRU.

    Without ``linear_before_reset`` they belong into ``rnnfast.GRU(reset_after=False)``.
    """
    return _onnx_to_torch("gru", W, R, B, direction)


# ---- Keras and ONNX ----------------------------------------------------------------------------


def keras_to_onnx_rnn(kernel, recurrent_kernel, bias=None):
    """(W, R, B) of ONNX's RNN from ``keras.layers.SimpleRNN``; one direction, Rb is 0."""
    return _torch_to_onnx("rnn", *_keras_to_torch("rnn", kernel, recurrent_kernel, bias))


def keras_to_onnx_lstm(kernel, recurrent_kernel, bias=None):
    """(W, R, B) of ONNX's LSTM from ``keras.layers.LSTM``; one direction, Rb is 0."""
    return _torch_to_onnx("lstm", *_keras_to_torch("lstm", kernel, recurrent_kernel, bias))


def keras_to_onnx_gru(kernel, recurrent_kernel, bias=None):
    """(W, R, B) of ONNX's GRU from ``keras.layers.GRU``; one direction.

    ``linear_before_reset`` of the node is ``reset_after`` of the layer, whose bias is then
    (2, 3 H); else it is (3 H,) and Rb is 0.
    """
    return _torch_to_onnx("gru", *_keras_to_torch("gru", kernel, recurrent_kernel, bias))


def onnx_to_keras_rnn(W, R, B=None, direction=0):
    """(kernel, recurrent_kernel, bias) of ``SimpleRNN`` from one direction of ONNX's RNN."""
    return _torch_to_keras("rnn", *_onnx_to_torch("rnn", W, R, B, direction))


def onnx_to_keras_lstm(W, R, B=None, direction=0):
    """(kernel, recurrent_kernel, bias) of Keras's LSTM from one direction of ONNX's LSTM."""
    return _torch_to_keras("lstm", *_onnx_to_torch("lstm", W, R, B, direction))


def onnx_to_keras_gru(W, R, B=None, direction=0, reset_after=True):
    """(kernel, recurrent_kernel, bias) of Keras's GRU from one direction of ONNX's GRU.

    ``reset_after`` of the layer is ``linear_before_reset`` of the node; the bias is then (2, 3 H),
    else (3 H,).
    """
    return _torch_to_keras("gru", *_onnx_to_torch("gru", W, R, B, direction),
                           two_rows=bool(reset_after))  # fmt: skip
