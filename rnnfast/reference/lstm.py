"""The LSTM and its BPTT: twins of ``rnnfast._lstm``."""

import numpy as np

from rnnfast.reference.arithmetic import PLAIN
from rnnfast.reference.sequence import (
    input_product,
    input_product_backward,
    layer_norm_backward,
    layer_norm_forward,
    steps,
    total_bias,
)


def lstm_forward(x, batch_sizes, h0, c0, w_ih, w_hh, b_ih=None, b_hh=None, *, w_hr=None,
                 peephole=None, norm=None, gate="sigmoid", coupled=False, clip=0.0, h_mask=None,
                 resets=None, reverse=False, keep=True, out=None, arithmetic=PLAIN):  # fmt: skip
    """LSTM over a packed batch: c_t = f c_{t-1} + i g, h_t = o tanh(c_t).

    Parameters
    ----------
    x : (N, I) array, or (N,) int64
        Inputs of all steps; integers stand for one-hot rows.
    batch_sizes : (T,) int64
        Sequences alive at each step, never increasing.
    h0, c0 : (B, P) and (B, H) arrays
        Initial state; P = H without a projection.
    w_ih, w_hh : (G H, I) and (G H, P) arrays
        Weights, gates stacked i f g o (G = 4), or i g o where coupled (G = 3).
    b_ih, b_hh : (G H,) arrays or None
    w_hr : (P, H) array or None
        Projection h_t = W_hr (o tanh(c_t)); Sak et al. 2014, https://arxiv.org/abs/1402.1128.
    peephole : (3, H) array or None
        Weights p_i, p_f on c_{t-1} and p_o on c_t (Gers and Schmidhuber, 2000).
    norm : (gain_ih, gain_hh, gain_c, bias_c) or None
        Layer norm of W_ih x, of W_hh h and of the c inside tanh (Ba et al., 2016).
    gate : {"sigmoid", "hard_sigmoid", "hard_sigmoid_onnx"}
        Activation of i, f and o.
    coupled : bool
        f = 1 - i (Greff et al. 2017, https://arxiv.org/abs/1503.04069).
    clip : float
        c is clamped to [-clip, clip] where clip > 0.
    h_mask, resets, reverse, keep, out, arithmetic
        As in `rnnfast.reference.rnn.rnn_forward`; h_mask is (B, P).

    Returns
    -------
    y : (N, P) array
        h after each step.
    h_n, c_n : (B, P) and (B, H) arrays
        State at each sequence's own end.
    tape : dict or None
    """
    ar = arithmetic
    N, H, P, width = len(x), c0.shape[1], w_hh.shape[1], len(w_hh)
    dtype = w_hh.dtype
    y = np.empty((N, P), dtype) if out is None else out
    bias = total_bias(ar, b_ih, b_hh)
    kept = {name: np.empty((N, n), dtype)
            for name, n in (("h_prev", P), ("c_prev", H), ("tanh_c", H))}  # fmt: skip
    if w_hr is not None:
        kept["m"] = np.empty((N, H), dtype)
    if peephole is not None or clip > 0:
        kept["c"] = np.empty((N, H), dtype)
    if norm is not None:
        for name, n in (("hhat", width), ("chat", H), ("h_rstd", 1), ("c_rstd", 1)):
            kept[name] = np.empty((N, n), dtype)
    h, c = np.array(h0), np.array(c0)

    if norm is None:
        a = input_product(ar, x, w_ih, bias)  # F1
    else:
        a = input_product(ar, x, w_ih, None)
        a, xhat, x_rstd = layer_norm_forward(a, norm[0], bias, arithmetic=ar)  # F1
        kept["xhat"], kept["x_rstd"] = xhat, x_rstd[:, None]
    for rows, n in steps(batch_sizes, reverse):
        if resets is not None:
            h[:n][resets[rows] != 0] = 0
            c[:n][resets[rows] != 0] = 0
        hm = h[:n] if h_mask is None else np.asarray(ar.array(h[:n]) * h_mask[:n])
        kept["h_prev"][rows], kept["c_prev"][rows] = hm, c[:n]
        if norm is None:
            a[rows] = ar.matmul(hm, w_hh.T, a[rows])  # F2
        else:
            ah = np.asarray(ar.matmul(hm, w_hh.T))
            a[rows], kept["hhat"][rows], rstd = layer_norm_forward(
                ah, norm[1], None, a[rows], arithmetic=ar)  # F2  # fmt: skip
            kept["h_rstd"][rows] = rstd[:, None]
        a_i, *a_f, a_g, a_o = np.split(ar.array(a[rows]), width // H, axis=1)
        c_prev = ar.array(c[:n])
        if peephole is not None:
            a_i = ar.fma(peephole[0], c_prev, a_i)
            a_f = [ar.fma(peephole[1], c_prev, z) for z in a_f]
        i = ar.activation(gate, a_i)  # F3
        f = 1 - i if coupled else ar.activation(gate, a_f[0])
        g = ar.tanh(a_g)
        c_t = ar.fma(f, c_prev, i * g)  # F4
        if clip > 0:
            c_t = ar.array(clamp(c_t, c_t.dtype.type(clip)))
        if peephole is not None:
            a_o = ar.fma(peephole[2], c_t, a_o)
        o = ar.activation(gate, a_o)
        c[:n] = c_t
        a[rows] = np.concatenate([i, g, o] if coupled else [i, f, g, o], axis=1)
        if norm is not None:
            c_t, kept["chat"][rows], rstd = layer_norm_forward(
                c_t, norm[2], norm[3], arithmetic=ar)  # fmt: skip
            kept["c_rstd"][rows] = rstd[:, None]
        tanh_c = ar.tanh(c_t)
        m = o * tanh_c  # F5
        h[:n] = m if w_hr is None else ar.matmul(m, w_hr.T)  # F6
        y[rows] = h[:n]
        kept["tanh_c"][rows] = tanh_c
        if "m" in kept:
            kept["m"][rows] = m
        if "c" in kept:
            kept["c"][rows] = c[:n]
    if not keep:
        return y, h, c, None
    tape = {"x": x, "batch_sizes": batch_sizes, "resets": resets, "w_ih": w_ih, "w_hh": w_hh,
            "w_hr": w_hr, "peephole": peephole, "norm": norm, "h_mask": h_mask, "gate": gate,
            "coupled": coupled, "clip": clip, "reverse": reverse, "gates": a, **kept}  # fmt: skip
    return y, h, c, tape


def clamp(x, limit):
    """x into [-limit, limit]; NaN stays."""
    return np.where(x > limit, limit, np.where(x < -limit, -limit, x))


def lstm_backward(tape, dy, dh_n, dc_n, grads, need_dx=True, *, out=None, arithmetic=PLAIN):
    """BPTT through `lstm_forward`.

    Parameters
    ----------
    tape : dict
    dy : (N, P) array or None
        dE/dy; None counts as zero.
    dh_n, dc_n : (B, P) and (B, H) arrays
        dE/dh_n and dE/dc_n.
    grads : dict
        Arrays to which the gradients are added: "w_ih", "w_hh", and of "b_ih", "b_hh", "w_hr",
        "peephole", "gain_ih", "gain_hh", "gain_c", "bias_c" those that the forward call had.
    need_dx : bool
        Whether dE/dx is wanted.
    out : (N, I) array or None
        Where to write dx.

    Returns
    -------
    dx : (N, I) array or None
    dh0, dc0 : (B, P) and (B, H) arrays
    """
    ar, w_hh, w_hr, norm = arithmetic, tape["w_hh"], tape["w_hr"], tape["norm"]
    peephole, gate, coupled, clip = (tape[k] for k in ("peephole", "gate", "coupled", "clip"))
    dtype = w_hh.dtype
    da = np.empty(tape["gates"].shape, dtype)
    dah = da if norm is None else np.empty(da.shape, dtype)
    dcn = None if norm is None else np.empty(tape["c_prev"].shape, dtype)
    dp = None if w_hr is None else np.empty(tape["h_prev"].shape, dtype)
    dh, dc = np.array(dh_n), np.array(dc_n)
    for rows, n in reversed(list(steps(tape["batch_sizes"], tape["reverse"]))):
        d = ar.array(dh[:n]) if dy is None else ar.array(dh[:n]) + dy[rows]  # B1
        if w_hr is not None:
            dp[rows] = d
            d = ar.matmul(d, w_hr)
        tanh_c, c_prev = ar.array(tape["tanh_c"][rows]), ar.array(tape["c_prev"][rows])
        gates = np.split(ar.array(tape["gates"][rows]), 3 if coupled else 4, axis=1)
        i, f, g, o = (gates[0], 1 - gates[0], *gates[1:]) if coupled else gates
        one = dtype.type(1)
        dz_o = d * tanh_c * ar.derivative(gate, o)  # B2
        if norm is None:
            e = ar.fma(d * o, ar.fma(-tanh_c, tanh_c, one), ar.array(dc[:n]))  # B3
        else:
            dcn[rows] = d * o * ar.fma(-tanh_c, tanh_c, one)
            e = ar.array(dc[:n]) + layer_norm_backward(
                dcn[rows], norm[2], tape["chat"][rows], tape["c_rstd"][rows, 0], arithmetic=ar)
        if peephole is not None:
            e = ar.fma(dz_o, peephole[2], e)
        if clip > 0:
            e = ar.array(np.where(abs(tape["c"][rows]) < dtype.type(clip), e, dtype.type(0)))
        dz_i = e * (g - c_prev if coupled else g) * ar.derivative(gate, i)  # B4
        dz_f = e * c_prev * ar.derivative(gate, f)
        dz_g = e * i * ar.fma(-g, g, one)
        da[rows] = np.concatenate(
            [dz_i, dz_g, dz_o] if coupled else [dz_i, dz_f, dz_g, dz_o], axis=1)  # fmt: skip
        e = e * f  # B5
        if peephole is not None:
            e = ar.fma(dz_i, peephole[0], e)
            e = e if coupled else ar.fma(dz_f, peephole[1], e)
        dc[:n] = e
        if norm is not None:
            dah[rows] = layer_norm_backward(
                da[rows], norm[1], tape["hhat"][rows], tape["h_rstd"][rows, 0], arithmetic=ar)
        dh[:n] = ar.matmul(dah[rows], w_hh)  # B6
        if tape["h_mask"] is not None:
            dh[:n] = ar.array(dh[:n]) * tape["h_mask"][:n]
        if tape["resets"] is not None:
            dh[:n][tape["resets"][rows] != 0] = 0
            dc[:n][tape["resets"][rows] != 0] = 0

    def add(name, value):
        if name in grads:
            grads[name][...] = value(grads[name])

    H = tape["c_prev"].shape[1]
    add("w_hh", lambda w: ar.matmul(dah.T, tape["h_prev"], w))  # B7
    add("b_ih", lambda b: ar.sum_columns(da, b))  # B8
    add("b_hh", lambda b: ar.sum_columns(da, b))
    if w_hr is not None:
        add("w_hr", lambda w: ar.matmul(dp.T, tape["m"], w))
    if peephole is not None:
        p = grads["peephole"]
        p[0] = ar.dot_columns(da[:, :H], tape["c_prev"], p[0])
        if not coupled:
            p[1] = ar.dot_columns(da[:, H : 2 * H], tape["c_prev"], p[1])
        p[2] = ar.dot_columns(da[:, -H:], tape["c"], p[2])
    dax = da
    if norm is not None:
        add("gain_ih", lambda g: ar.dot_columns(da, tape["xhat"], g))
        add("gain_hh", lambda g: ar.dot_columns(da, tape["hhat"], g))
        add("gain_c", lambda g: ar.dot_columns(dcn, tape["chat"], g))
        add("bias_c", lambda b: ar.sum_columns(dcn, b))
        dax = layer_norm_backward(da, norm[0], tape["xhat"], tape["x_rstd"][:, 0], arithmetic=ar)
    dx = input_product_backward(ar, tape["x"], tape["w_ih"], dax, grads["w_ih"], need_dx, out)  # B9
    return dx, dh, dc
