"""The recurrence through the output alone, running freely, and its BPTT: twins of
``rnnfast._output_rnn``."""

import numpy as np

from rnnfast.reference.arithmetic import PLAIN
from rnnfast.reference.loss import softmax
from rnnfast.reference.sequence import input_product, input_product_backward, steps


def output_rnn_forward(x, batch_sizes, o0, w_ih, w_oh, w_ho, b_h=None, b_o=None, *,
                       output="linear", resets=None, keep=True, arithmetic=PLAIN):  # fmt: skip
    """h_t = tanh(U x_t + W o_{t-1} + b), z_t = V h_t + c, o_t = f(z_t) over a packed batch.

    Parameters
    ----------
    x : (N, I) array, or (N,) int64
        Inputs of all steps; integers stand for one-hot rows.
    batch_sizes : (T,) int64
        Sequences alive at each step, never increasing.
    o0 : (B, O) array
        What the first step takes for the output before it.
    w_ih, w_oh, w_ho : (H, I), (H, O) and (O, H) arrays
        U, W and V.
    b_h, b_o : (H,) and (O,) arrays or None
        b and c.
    output : {"linear", "softmax"}
        f: what becomes of z before it is fed back.
    resets : (N,) uint8 or None
        Where 1, the output before that row counts as zero.
    keep : bool
        Whether to return a tape for `output_rnn_backward`.
    arithmetic : Arithmetic
        What a product and a tanh are, bit for bit.

    Returns
    -------
    z : (N, O) array
        Output before f at each step.
    o_n : (B, O) array
        Output at each sequence's own end.
    tape : dict or None
    """
    ar, real = arithmetic, w_ho.dtype
    a = input_product(ar, x, w_ih, b_h)  # F1
    o = np.array(o0)
    h = np.empty((len(x), len(w_oh)), real)
    z, o_prev, p = (np.empty((len(x), len(w_ho)), real) for _ in range(3))
    for rows, n in steps(batch_sizes):
        if resets is not None:
            o[:n][resets[rows] != 0] = 0
        o_prev[rows] = o[:n]
        a_t = ar.matmul(o[:n], w_oh.T, a[rows])  # F2
        h[rows] = ar.tanh(a_t)  # F3
        z[rows] = input_product(ar, h[rows], w_ho, b_o)  # F4
        p[rows] = softmax(z[rows], arithmetic=ar) if output == "softmax" else z[rows]  # F5
        o[:n] = p[rows]
    if not keep:
        return z, o, None
    tape = {"x": x, "batch_sizes": batch_sizes, "resets": resets, "w_ih": w_ih, "w_oh": w_oh,
            "w_ho": w_ho, "h": h, "o_prev": o_prev,
            "p": p if output == "softmax" else None}  # fmt: skip
    return z, o, tape


def output_rnn_backward(tape, dz, do_n, grads, need_dx=True, *, arithmetic=PLAIN):
    """BPTT through `output_rnn_forward`.

    Parameters
    ----------
    tape : dict
    dz : (N, O) array
        dE/dz as far as the loss looks at each z directly.
    do_n : (B, O) array
        dE/do_n.
    grads : dict
        Arrays "w_ih", "w_oh", "w_ho", "b_h", "b_o" to which the gradients are added; the biases
        may be missing.
    need_dx : bool
        Whether dE/dx is wanted.

    Returns
    -------
    dx : (N, I) array or None
    do0 : (B, O) array
    """
    ar, w_oh, w_ho = arithmetic, tape["w_oh"], tape["w_ho"]
    dz = np.array(dz)
    da = np.empty(tape["h"].shape, w_oh.dtype)
    do = np.array(do_n)
    for rows, n in reversed(list(steps(tape["batch_sizes"]))):
        d = ar.array(do[:n])
        if tape["p"] is not None:
            p = ar.array(tape["p"][rows])
            dot = ar.sum_columns((d * p).T, np.zeros(n, dz.dtype))
            d = (d - dot[:, None]) * p  # B1
        dz[rows] = d + dz[rows]  # B2
        dh = ar.array(ar.matmul(dz[rows], w_ho))  # B3
        da[rows] = dh * ar.derivative("tanh", ar.array(tape["h"][rows]))  # B4
        do[:n] = ar.matmul(da[rows], w_oh)  # B5
        if tape["resets"] is not None:
            do[:n][tape["resets"][rows] != 0] = 0
    grads["w_oh"][...] = ar.matmul(da.T, tape["o_prev"], grads["w_oh"])  # B6
    grads["w_ho"][...] = ar.matmul(dz.T, tape["h"], grads["w_ho"])  # B7
    for bias, d in (("b_h", da), ("b_o", dz)):
        if bias in grads:
            grads[bias][...] = ar.sum_columns(d, grads[bias])  # B8
    dx = input_product_backward(ar, tape["x"], tape["w_ih"], da, grads["w_ih"], need_dx)  # B9
    return dx, do
