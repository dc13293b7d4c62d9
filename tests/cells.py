"""Random arguments for the functions of each cell, drawn from a seed."""

import numpy as np


def batch(rng, T, B, dtype, I, ids=False, ragged=True, resets=False):
    """(x, batch_sizes, resets) of a packed batch with up to T steps of up to B sequences."""
    lengths = np.sort(rng.integers(0 if ragged else T, T + 1, B))[::-1]
    sizes = np.array([(lengths > t).sum() for t in range(T)], np.int64)
    N = int(sizes.sum())
    x = rng.integers(0, I, N) if ids else rng.standard_normal((N, I)).astype(dtype)
    return x, sizes, (rng.random(N) < 0.3).astype(np.uint8) if resets else None


def uniform(rng, dtype, *shape, bound=0.5):
    return rng.uniform(-bound, bound, shape).astype(dtype)


def dropped(rng, dtype, *shape):
    """A mask of inverted dropout with rate 1/4."""
    return ((rng.random(shape) >= 0.25) / 0.75).astype(dtype)


def rnn(rng, T, B, I, H, dtype, *, bias=True, nonlinearity="tanh", ids=False, ragged=True,
        resets=False, reverse=False, mask=False):  # fmt: skip
    """(positional, keywords, grads, number of states) for rnn_forward."""
    x, sizes, r = batch(rng, T, B, dtype, I, ids, ragged, resets)
    w = {"w_ih": uniform(rng, dtype, H, I), "w_hh": uniform(rng, dtype, H, H)}
    if bias:
        w |= {"b_ih": uniform(rng, dtype, H), "b_hh": uniform(rng, dtype, H)}
    h0 = uniform(rng, dtype, B, H)
    kw = {"resets": r, "reverse": reverse, "nonlinearity": nonlinearity}
    if mask:
        kw["h_mask"] = dropped(rng, dtype, B, H)
    grads = {k: uniform(rng, dtype, *v.shape) for k, v in w.items()}
    return (x, sizes, h0, *w.values()), kw, grads, 1


def lstm(rng, T, B, I, H, dtype, *, bias=True, P=0, peephole=False, norm=False, gate="sigmoid",
         coupled=False, clip=0.0, ids=False, ragged=True, resets=False, reverse=False,
         mask=False):  # fmt: skip
    """(positional, keywords, grads, number of states) for lstm_forward."""
    x, sizes, r = batch(rng, T, B, dtype, I, ids, ragged, resets)
    G, out = (3 if coupled else 4) * H, P or H
    w = {"w_ih": uniform(rng, dtype, G, I), "w_hh": uniform(rng, dtype, G, out)}
    if bias:
        w |= {"b_ih": uniform(rng, dtype, G), "b_hh": uniform(rng, dtype, G)}
    extra = {}
    if P:
        extra["w_hr"] = uniform(rng, dtype, P, H)
    if peephole:
        extra["peephole"] = uniform(rng, dtype, 3, H)
    grads = {k: uniform(rng, dtype, *v.shape) for k, v in (w | extra).items()}
    if norm:
        sizes_of = {"gain_ih": G, "gain_hh": G, "gain_c": H, "bias_c": H}
        extra["norm"] = tuple(uniform(rng, dtype, n) + dtype(1) for n in sizes_of.values())
        grads |= {k: uniform(rng, dtype, n) for k, n in sizes_of.items()}
    if mask:
        extra["h_mask"] = dropped(rng, dtype, B, out)
    kw = extra | {"gate": gate, "coupled": coupled, "clip": clip, "resets": r, "reverse": reverse}
    state = (uniform(rng, dtype, B, out), uniform(rng, dtype, B, H))
    return (x, sizes, *state, *w.values()), kw, grads, 2


def gru(rng, T, B, I, H, dtype, *, bias=True, reset_after=True, norm=False, gate="sigmoid",
        ids=False, ragged=True, resets=False, reverse=False, mask=False):  # fmt: skip
    """(positional, keywords, grads, number of states) for gru_forward."""
    x, sizes, r = batch(rng, T, B, dtype, I, ids, ragged, resets)
    w = {"w_ih": uniform(rng, dtype, 3 * H, I), "w_hh": uniform(rng, dtype, 3 * H, H)}
    if bias:
        w |= {"b_ih": uniform(rng, dtype, 3 * H), "b_hh": uniform(rng, dtype, 3 * H)}
    grads = {k: uniform(rng, dtype, *v.shape) for k, v in w.items()}
    extra = {}
    if norm:
        extra["norm"] = tuple(uniform(rng, dtype, 3 * H) + dtype(1) for _ in range(2))
        grads |= {k: uniform(rng, dtype, 3 * H) for k in ("gain_ih", "gain_hh")}
    if mask:
        extra["h_mask"] = dropped(rng, dtype, B, H)
    kw = extra | {"reset_after": reset_after, "gate": gate, "resets": r, "reverse": reverse}
    return (x, sizes, uniform(rng, dtype, B, H), *w.values()), kw, grads, 1


MAKERS = {"rnn": rnn, "lstm": lstm, "gru": gru}
