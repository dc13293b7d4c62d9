"""RNN, LSTM and GRU with any activation functions, in plain NumPy.

For what layers of other frameworks may ask and the compiled ones do not have. Slow, and without a
backward pass.
"""

import numpy as np

from rnnfast.layers import GRU, LSTM, RNN


def sigmoid(x):
    """1/(1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def hard_sigmoid(alpha, beta):
    """x -> alpha x + beta within [0, 1]."""
    return lambda x: np.clip(alpha * x + beta, 0, 1)


def elu(alpha):
    """x -> x where positive, else alpha (exp(x) - 1)."""
    return lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def leaky_relu(alpha):
    """x -> x where positive, else alpha x."""
    return lambda x: np.where(x >= 0, x, alpha * x)


def relu(x):
    return np.maximum(x, 0)


def softplus(x):
    """log(1 + exp(x)), without overflow."""
    return np.logaddexp(0, x)


def softsign(x):
    return x / (1 + np.abs(x))


class _General:
    """Activation functions and clipping in place of a layer's own; mixed into the layers, which
    see to everything but the steps.

    Parameters
    ----------
    activations : list of tuples of functions, one tuple per direction
        (f,) of the RNN, (f, g) of the GRU, (f, g, h) of the LSTM: f acts on gates, g on the
        candidate, h on c. Each maps an array to one of its shape.
    clip : float or None
        What f and g are applied to is first clamped to [-clip, clip]; c is not, nor what h is
        applied to.
    arguments, options
        As of the layer.
    """

    def __init__(self, *arguments, activations, clip=None, **options):
        super().__init__(*arguments, **options)
        self.activations, self.clip = activations, clip

    def forward(self, *arguments, **options):
        """Not possible: there is no backward pass through any activation."""
        raise NotImplementedError(
            f"{self._me}: activations that are not compiled have no backward pass")

    def _stackable(self):
        """Never: the steps are those below, not a kernel's."""
        return False

    def _direction(self, layer, direction, x, states, blocks, resets, out, h_mask, keep):
        p = {key: self.params[name] for key, name in self._names(layer, direction).items()}
        f_and_g, h = self.activations[direction][:2], self.activations[direction][2:]
        functions = [*map(self._clipped, f_and_g), *h]
        k = layer * self.directions + direction
        ax = p["w_ih"].T[x] if x.ndim == 1 else x @ p["w_ih"].T
        if "b_ih" in p:
            ax += p["b_ih"]
        b_hh = p.get("b_hh", np.zeros(len(p["w_hh"]), self.dtype))
        sizes = np.concatenate([block.sizes for block in blocks])
        stops = np.cumsum(sizes)
        times = range(len(sizes))
        for t in reversed(times) if direction else times:
            n = sizes[t]
            rows = slice(stops[t] - n, stops[t])
            now = [a[k, :n] for a in states]
            if resets is not None:
                for a in now:
                    a[resets[rows] != 0] = 0
            with np.errstate(over="ignore", invalid="ignore"):  # compiled layers do not warn either
                new = self._step(ax[rows], now, p, b_hh, functions)
            for a, b in zip(now, new, strict=True):
                a[...] = b
            if out is not None:
                out[rows] = new[0]

    def _clipped(self, function):
        if self.clip is None:
            return function
        return lambda x: function(np.clip(x, -self.clip, self.clip))


class GeneralRNN(_General, RNN):
    """h = f(W_ih x + b_ih + W_hh h + b_hh)."""

    def _step(self, ax, state, p, b_hh, functions):
        (f,) = functions
        return (f(ax + state[0] @ p["w_hh"].T + b_hh),)


class GeneralLSTM(_General, LSTM):
    """c = f c + i g, h = o h(c), with peepholes and coupled gates where the layer has them."""

    def _step(self, ax, state, p, b_hh, functions):
        f, g, h = functions
        h_prev, c_prev = state
        a = np.split(ax + h_prev @ p["w_hh"].T + b_hh, self.gates, axis=1)
        a_i, a_g, a_o = a[0], a[-2], a[-1]
        p_i, p_f, p_o = p.get("peephole", np.zeros((3, 1), self.dtype))
        gate_i = f(a_i + p_i * c_prev)
        gate_f = 1 - gate_i if self.options_coupled else f(a[1] + p_f * c_prev)
        c = gate_f * c_prev + gate_i * g(a_g)
        return f(a_o + p_o * c) * h(c), c


class GeneralGRU(_General, GRU):
    """h = (1 - z) n + z h, with the reset before or after the product."""

    def _step(self, ax, state, p, b_hh, functions):
        f, g = functions
        (h,) = state
        U_r, U_z, U_n = np.split(p["w_hh"], 3)
        a_r, a_z, a_n = np.split(ax, 3, axis=1)
        b_r, b_z, b_n = np.split(b_hh, 3)
        r, z = f(a_r + h @ U_r.T + b_r), f(a_z + h @ U_z.T + b_z)
        if self.options["reset_after"]:
            n = g(a_n + r * (h @ U_n.T + b_n))
        else:
            n = g(a_n + (r * h) @ U_n.T + b_n)
        return ((1 - z) * n + z * h,)


LAYERS = {"rnn": GeneralRNN, "lstm": GeneralLSTM, "gru": GeneralGRU}
