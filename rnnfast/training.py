"""Training over long sequences: truncated back-propagation through time."""

from typing import Any, NamedTuple

import numpy as np

from rnnfast.layers import _positive


class Window(NamedTuple):
    """One step of `tbptt`.

    Attributes
    ----------
    loss : float
        Of the time steps start..stop.
    state : array or (array, array)
        After step stop - 1: what the next window, or another call, starts from.
    start, stop : int
        Time steps whose outputs the loss counts; every step belongs to one window.
    """

    loss: float
    state: Any
    start: int
    stop: int


def tbptt(model, x, y, k1, k2=None, *, state=None, loss=None):
    """Truncated BPTT: every `k1` time steps, go back through the last `k2`.

    Williams and Peng (1990) call it BPTT(k2; k1). The state goes on from window to window as plain
    arrays; gradients never cross the beginning of a window. Each window's loss is that of its
    newest k1 outputs, so every output counts once; what lies before them in the window is
    computed again, with the parameters as they are now, for the gradients to pass through.

    Parameters
    ----------
    model : model or layer
        ``forward(x, state)`` gives (z, state, tape), ``backward(tape, dz, dstate)`` gives
        (dx, dstate) and adds into ``grads``: the models of `rnnfast.models` with an output at
        every step, or RNN, LSTM and GRU, in one direction and time first.
    x, y : (T, B, ...) arrays
        Inputs and targets of the whole sequences.
    k1, k2 : int
        1 <= k1 <= k2; k2 is k1 by default.
    state : as the model returns it, optional
        Before the first step; zero by default.
    loss : callable, optional
        (z, targets) -> (value, dE/dz) of one window; ``model.loss`` by default.

    Yields
    ------
    Window
        When its gradients have been added into ``model.grads``: take an optimiser's step and set
        them to zero before asking for the next.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> model = rnnfast.models.Elman(2, 8, 2, reduction="mean", seed=0)
    >>> adam = rnnfast.optim.Adam(model, lr=0.02)
    >>> x = np.arange(400)[:, None] // 2 % 2  # 0 0 1 1 0 0 ...
    >>> for window in rnnfast.training.tbptt(model, x[:-1], x[1:], k1=5, k2=10):
    ...     _ = rnnfast.clip_grad_norm(model.grads, 1.0)
    ...     adam.step()
    ...     adam.zero_grad()
    >>> window.start, window.stop, window.loss < 0.2
    (395, 399, True)
    """
    k1 = _positive("k1", k1)
    k2 = k1 if k2 is None else _positive("k2", k2, least=k1)
    if getattr(model, "batch_first", False):
        raise ValueError("tbptt: time must be the first axis, the model is batch_first")
    if getattr(getattr(model, "parts", {}).get("layer", model), "bidirectional", False):
        raise ValueError("tbptt: a bidirectional layer reads from the end: it has no windows")
    loss = model.loss if loss is None else loss
    x, y = np.asarray(x), np.asarray(y)
    if len(x) != len(y):
        raise ValueError(f"tbptt: x has {len(x)} time steps, y has {len(y)}")
    return _windows(model, x, y, k1, k2, state, loss)


def _windows(model, x, y, k1, k2, state, loss):
    T, begin = len(x), 0  # `state` is the one before step `begin`
    for start in range(0, T, k1):
        stop = min(start + k1, T)
        cut = min(max(0, start + 2 * k1 - k2), stop)  # where the next window begins
        zs, tapes, after = [], [], state
        for first, last in ((begin, cut), (cut, stop)):
            if first < last:
                z, after, tape = model.forward(x[first:last], after)
                zs.append(z)
                tapes.append((first - begin, last - begin, tape))
            if last == cut:
                state = after
        z = np.concatenate(zs)
        dz, dstate = np.zeros_like(z), None
        value, dz[start - begin :] = loss(z[start - begin :], y[start:stop])
        for first, last, tape in reversed(tapes):
            _, dstate = model.backward(tape, dz[first:last], dstate, need_dx=False)
        begin = cut
        yield Window(value, after, start, stop)
