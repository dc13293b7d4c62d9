"""The tanh or ReLU recurrence and its BPTT: twins of ``rnnfast._rnn``."""

import numpy as np

from rnnfast.reference.arithmetic import PLAIN
from rnnfast.reference.sequence import (
    input_product,
    input_product_backward,
    steps,
    total_bias,
)


def rnn_forward(x, batch_sizes, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, nonlinearity="tanh",
                h_mask=None, resets=None, reverse=False, keep=True, out=None,
                arithmetic=PLAIN):  # fmt: skip
    """h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) over a packed batch.

    Parameters
    ----------
    x : (N, I) array, or (N,) int64
        Inputs of all steps; integers stand for one-hot rows.
    batch_sizes : (T,) int64
        Sequences alive at each step, never increasing.
    h0 : (B, H) array
        Initial state.
    w_ih, w_hh : (H, I) and (H, H) arrays
    b_ih, b_hh : (H,) arrays or None
    nonlinearity : {"tanh", "relu", "sigmoid"}
    h_mask : (B, H) array or None
        Recurrent dropout: W_hh reads h_{t-1} times this, the same at every step (Gal and
        Ghahramani 2016, https://arxiv.org/abs/1512.05287).
    resets : (N,) uint8 or None
        Where 1, the state is zero before that row is consumed.
    reverse : bool
        Visit the steps last to first.
    keep : bool
        Whether to return a tape for `rnn_backward`.
    out : (N, H) array or None
        Where to write y; its rows may lie apart.
    arithmetic : Arithmetic
        What a product and a tanh are, bit for bit.

    Returns
    -------
    y : (N, H) array
        State after each step.
    h_n : (B, H) array
        State at each sequence's own end.
    tape : dict or None
    """
    ar = arithmetic
    y = np.empty((len(x), len(w_hh)), w_hh.dtype) if out is None else out
    h_prev = np.empty(y.shape, y.dtype)
    h = np.array(h0)
    a = input_product(ar, x, w_ih, total_bias(ar, b_ih, b_hh))  # F1
    for rows, n in steps(batch_sizes, reverse):
        if resets is not None:
            h[:n][resets[rows] != 0] = 0
        h_prev[rows] = h[:n] if h_mask is None else ar.array(h[:n]) * h_mask[:n]
        a_t = ar.matmul(h_prev[rows], w_hh.T, a[rows])  # F2
        h[:n] = ar.activation(nonlinearity, a_t)  # F3
        y[rows] = h[:n]
    if not keep:
        return y, h, None
    tape = {"x": x, "batch_sizes": batch_sizes, "resets": resets, "w_ih": w_ih, "w_hh": w_hh,
            "reverse": reverse, "h_mask": h_mask, "nonlinearity": nonlinearity, "h": np.array(y),
            "h_prev": h_prev}  # fmt: skip
    return y, h, tape


def rnn_backward(tape, dy, dh_n, grads, need_dx=True, *, out=None, arithmetic=PLAIN):
    """BPTT through `rnn_forward`.

    Parameters
    ----------
    tape : dict
    dy : (N, H) array or None
        dE/dy; None counts as zero.
    dh_n : (B, H) array
        dE/dh_n.
    grads : dict
        Arrays "w_ih", "w_hh", "b_ih", "b_hh" to which the gradients are added; the biases may be
        missing.
    need_dx : bool
        Whether dE/dx is wanted.
    out : (N, I) array or None
        Where to write dx.

    Returns
    -------
    dx : (N, I) array or None
    dh0 : (B, H) array
    """
    ar, w_hh = arithmetic, tape["w_hh"]
    da = np.empty(tape["h"].shape, w_hh.dtype)
    dh = np.array(dh_n)
    for rows, n in reversed(list(steps(tape["batch_sizes"], tape["reverse"]))):
        d = ar.array(dh[:n]) if dy is None else ar.array(dh[:n]) + dy[rows]  # B1
        da[rows] = d * ar.derivative(tape["nonlinearity"], ar.array(tape["h"][rows]))  # B2
        dh[:n] = ar.matmul(da[rows], w_hh)  # B3
        if tape["h_mask"] is not None:
            dh[:n] = ar.array(dh[:n]) * tape["h_mask"][:n]
        if tape["resets"] is not None:
            dh[:n][tape["resets"][rows] != 0] = 0
    grads["w_hh"][...] = ar.matmul(da.T, tape["h_prev"], grads["w_hh"])  # B4
    for bias in ("b_ih", "b_hh"):
        if bias in grads:
            grads[bias][...] = ar.sum_columns(da, grads[bias])  # B5
    dx = input_product_backward(ar, tape["x"], tape["w_ih"], da, grads["w_ih"], need_dx, out)  # B6
    return dx, dh
