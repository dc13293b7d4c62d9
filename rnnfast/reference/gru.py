"""The GRU, reset after or before the product, and its BPTT: twins of ``rnnfast._gru``."""

import numpy as np

from rnnfast.reference.arithmetic import PLAIN
from rnnfast.reference.sequence import (
    input_product,
    input_product_backward,
    layer_norm_backward,
    layer_norm_forward,
    start,
    steps,
)


def gru_bias(ar, b_ih, b_hh, reset_after):
    """(what goes into F1, what u_n starts at): r and z need only the sum of both biases."""
    if b_ih is None or b_hh is None:
        b = b_hh if b_ih is None else b_ih
        if b is None or not reset_after:
            return b, None
        H = len(b) // 3
        head, zero = b[: 2 * H], np.zeros(H, b.dtype)
        ax = np.concatenate([head, zero if b_ih is None else b[2 * H :]])
        return ax, b[2 * H :] if b_ih is None else zero
    both = np.asarray(ar.array(b_ih) + b_hh)
    if not reset_after:
        return both, None
    H = len(both) // 3
    return np.concatenate([both[: 2 * H], b_ih[2 * H :]]), b_hh[2 * H :]


def gru_forward(x, batch_sizes, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, reset_after=True,
                norm=None, gate="sigmoid", h_mask=None, resets=None, reverse=False, keep=True,
                out=None, arithmetic=PLAIN):  # fmt: skip
    """GRU over a packed batch: h_t = (1 - z) n + z h_{t-1}.

    Parameters
    ----------
    x : (N, I) array, or (N,) int64
        Inputs of all steps; integers stand for one-hot rows.
    batch_sizes : (T,) int64
        Sequences alive at each step, never increasing.
    h0 : (B, H) array
        Initial state.
    w_ih, w_hh : (3 H, I) and (3 H, H) arrays
        Weights, gates stacked r z n.
    b_ih, b_hh : (3 H,) arrays or None
    reset_after : bool
        True: n = tanh(W_n x + b_in + r (U_n h + b_hn)). False, as in Cho et al. 2014
        (https://arxiv.org/abs/1406.1078): n = tanh(W_n x + b_in + b_hn + U_n (r h)).
    norm : (gain_ih, gain_hh) or None
        Layer norm of W_ih x and of W_hh h (Ba et al., 2016); reset_after only.
    gate : {"sigmoid", "hard_sigmoid", "hard_sigmoid_onnx"}
        Activation of r and z.
    h_mask, resets, reverse, keep, out, arithmetic
        As in `rnnfast.reference.rnn.rnn_forward`.

    Returns
    -------
    y : (N, H) array
        h after each step.
    h_n : (B, H) array
        State at each sequence's own end.
    tape : dict or None
    """
    ar = arithmetic
    N, H, dtype = len(x), w_hh.shape[1], w_hh.dtype
    y = np.empty((N, H), dtype) if out is None else out
    names = ("h_prev", "u") if reset_after else ("h_prev", "rh")
    kept = {name: np.empty((N, H), dtype) for name in names}
    if h_mask is not None:
        kept["hm"] = np.empty((N, H), dtype)
    if norm is not None:
        kept["hhat"], kept["h_rstd"] = np.empty((N, 3 * H), dtype), np.empty((N, 1), dtype)
    gates = np.empty((N, 3 * H), dtype)
    bias, bias_n = gru_bias(ar, b_ih, b_hh, reset_after)
    h = np.array(h0)

    if norm is None:
        ax = input_product(ar, x, w_ih, bias)  # F1
    else:
        ax = input_product(ar, x, w_ih, None)
        ax, xhat, x_rstd = layer_norm_forward(ax, norm[0], bias, arithmetic=ar)  # F1
        kept["xhat"], kept["x_rstd"] = xhat, x_rstd[:, None]
    for rows, n in steps(batch_sizes, reverse):
        if resets is not None:
            h[:n][resets[rows] != 0] = 0
        kept["h_prev"][rows] = h[:n]
        h_prev = hm = ar.array(h[:n])
        if h_mask is not None:
            hm = h_prev * h_mask[:n]
            kept["hm"][rows] = hm
        if reset_after:
            a = np.concatenate([ax[rows, : 2 * H], start(ar, n, bias_n, H, dtype)], axis=1)
            if norm is None:
                a = ar.matmul(hm, w_hh.T, a)  # F2
            else:
                ah = np.asarray(ar.matmul(hm, w_hh.T))
                a, kept["hhat"][rows], rstd = layer_norm_forward(
                    ah, norm[1], None, a, arithmetic=ar)  # F2  # fmt: skip
                kept["h_rstd"][rows] = rstd[:, None]
            a_r, a_z, u = np.split(ar.array(a), 3, axis=1)
            r, z = ar.activation(gate, a_r), ar.activation(gate, a_z)  # F3
            n_t = ar.tanh(ar.fma(r, u, ar.array(ax[rows, 2 * H :])))  # F4
            kept["u"][rows] = u
        else:
            a = ar.matmul(hm, w_hh[: 2 * H].T, ax[rows, : 2 * H])  # F2
            a_r, a_z = np.split(ar.array(a), 2, axis=1)
            r, z = ar.activation(gate, a_r), ar.activation(gate, a_z)  # F3
            rh = r * hm
            n_t = ar.tanh(ar.matmul(rh, w_hh[2 * H :].T, ax[rows, 2 * H :]))  # F4
            kept["rh"][rows] = rh
        h[:n] = ar.fma(z, h_prev - n_t, n_t)  # F5
        y[rows] = h[:n]
        gates[rows] = np.concatenate([r, z, n_t], axis=1)
    if not keep:
        return y, h, None
    tape = {"x": x, "batch_sizes": batch_sizes, "resets": resets, "w_ih": w_ih, "w_hh": w_hh,
            "norm": norm, "h_mask": h_mask, "gate": gate, "reset_after": reset_after,
            "reverse": reverse, "gates": gates, **kept}  # fmt: skip
    return y, h, tape


def gru_backward(tape, dy, dh_n, grads, need_dx=True, *, out=None, arithmetic=PLAIN):
    """BPTT through `gru_forward`.

    Parameters
    ----------
    tape : dict
    dy : (N, H) array or None
        dE/dy; None counts as zero.
    dh_n : (B, H) array
        dE/dh_n.
    grads : dict
        Arrays to which the gradients are added: "w_ih", "w_hh", and of "b_ih", "b_hh", "gain_ih",
        "gain_hh" those that the forward call had.
    need_dx : bool
        Whether dE/dx is wanted.
    out : (N, I) array or None
        Where to write dx.

    Returns
    -------
    dx : (N, I) array or None
    dh0 : (B, H) array
    """
    ar, w_hh, norm = arithmetic, tape["w_hh"], tape["norm"]
    gate, reset_after = tape["gate"], tape["reset_after"]
    H, dtype = w_hh.shape[1], w_hh.dtype
    dax = np.empty(tape["gates"].shape, dtype)  # of W_ih x: da_r da_z da_n
    dah = np.empty(dax.shape, dtype) if reset_after else dax  # of W_hh h: da_r da_z du_n
    dm = dah if norm is None else np.empty(dax.shape, dtype)  # of W_hh h before its layer norm
    hm, mask = tape.get("hm", tape["h_prev"]), tape["h_mask"]
    dh = np.array(dh_n)
    for rows, n in reversed(list(steps(tape["batch_sizes"], tape["reverse"]))):
        d = ar.array(dh[:n]) if dy is None else ar.array(dh[:n]) + dy[rows]  # B1
        r, z, n_t = np.split(ar.array(tape["gates"][rows]), 3, axis=1)
        h_prev = ar.array(tape["h_prev"][rows])
        da_n = d * (1 - z) * ar.fma(-n_t, n_t, dtype.type(1))  # B2
        da_z = d * (h_prev - n_t) * ar.derivative(gate, z)
        if reset_after:
            da_r = da_n * tape["u"][rows] * ar.derivative(gate, r)  # B3
            dax[rows] = np.concatenate([da_r, da_z, da_n], axis=1)
            dah[rows] = np.concatenate([da_r, da_z, da_n * r], axis=1)
            dh[:n] = d * z  # B4
            if norm is not None:
                dm[rows] = layer_norm_backward(
                    dah[rows], norm[1], tape["hhat"][rows], tape["h_rstd"][rows, 0], arithmetic=ar)
            if mask is None:
                dh[:n] = ar.matmul(dm[rows], w_hh, dh[:n])  # B5
            else:
                dh[:n] = ar.fma(ar.matmul(dm[rows], w_hh), mask[:n], ar.array(dh[:n]))
        else:
            drh = ar.matmul(np.asarray(da_n), w_hh[2 * H :])
            da_r = drh * hm[rows] * ar.derivative(gate, r)  # B3
            dax[rows] = np.concatenate([da_r, da_z, da_n], axis=1)
            direct = d * z  # B4
            d_hm = ar.fma(drh, r, direct if mask is None else ar.array(np.zeros_like(dh[:n])))
            d_hm = ar.matmul(dax[rows, : 2 * H], w_hh[: 2 * H], d_hm)  # B5
            dh[:n] = d_hm if mask is None else ar.fma(d_hm, mask[:n], direct)
        if tape["resets"] is not None:
            dh[:n][tape["resets"][rows] != 0] = 0
    dw = grads["w_hh"]
    if reset_after:
        dw[...] = ar.matmul(dm.T, hm, dw)  # B6
    else:
        dw[: 2 * H] = ar.matmul(dax[:, : 2 * H].T, hm, dw[: 2 * H])
        dw[2 * H :] = ar.matmul(dax[:, 2 * H :].T, tape["rh"], dw[2 * H :])
    for bias, da in (("b_ih", dax), ("b_hh", dah)):
        if bias in grads:
            grads[bias][...] = ar.sum_columns(da, grads[bias])  # B7
    if norm is not None:
        grads["gain_ih"][...] = ar.dot_columns(dax, tape["xhat"], grads["gain_ih"])
        grads["gain_hh"][...] = ar.dot_columns(dah, tape["hhat"], grads["gain_hh"])
        dax = layer_norm_backward(dax, norm[0], tape["xhat"], tape["x_rstd"][:, 0], arithmetic=ar)
    dx = input_product_backward(ar, tape["x"], tape["w_ih"], dax, grads["w_ih"], need_dx, out)  # B8
    return dx, dh
