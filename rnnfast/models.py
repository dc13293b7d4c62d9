"""Whole networks: layers, an output function and a loss, with gradients by back-propagation.

Every model has ``params`` and ``grads``, so `rnnfast.optim` and `rnnfast.clip_grad_norm` take it
like a layer. Equations: docs/models.md.
"""

from itertools import pairwise

import numpy as np

from rnnfast import _engine, losses
from rnnfast._module import Module
from rnnfast._packing import Packing
from rnnfast.layers import RNN, Linear, _positive, real_array

HIDDEN = ("sigmoid", "tanh", "relu")
#: output function and loss -> the loss of `rnnfast.losses` that computes both together
LOSSES = {
    ("linear", "quadratic"): losses.quadratic_error,
    ("sigmoid", "cross_entropy"): losses.sigmoid_cross_entropy,
    ("softmax", "cross_entropy"): losses.softmax_cross_entropy,
    ("sigmoid", "quadratic"): None,
}
REDUCTIONS = ("mean", "sum")


class Output:
    """Output function o = f(z) and loss E(o, d) of a model.

    Parameters
    ----------
    function : {"linear", "sigmoid", "softmax"}
        f.
    loss : {"quadratic", "cross_entropy"} or None
        E. None: the one for which dE/dz = o - d, quadratic error for linear outputs and
        cross-entropy for the others.
    reduction : {"mean", "sum"}
        Over rows: time steps and sequences. Each row's loss is a sum over its outputs.
    """

    def __init__(self, function, loss=None, reduction="mean"):
        if loss is None:
            loss = "quadratic" if function == "linear" else "cross_entropy"
        if (function, loss) not in LOSSES:
            raise ValueError(f"output and loss must be a pair of {list(LOSSES)}, "
                             f"got {(function, loss)}")  # fmt: skip
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
        self.function, self.loss_name, self.reduction = function, loss, reduction

    def __call__(self, z):
        """o = f(z)."""
        if self.function == "linear":
            return z
        if self.function == "softmax":
            return losses.softmax(z)
        return _engine.functions().activation_forward("sigmoid", np.ascontiguousarray(z))

    def loss(self, z, target):
        """(E, dE/dz) for z (..., O); target (..., O), or classes (...) for a softmax."""
        fused = LOSSES[self.function, self.loss_name]
        if fused is not None:
            return fused(z, target, reduction=self.reduction)
        o = self(z)
        loss, do = losses.quadratic_error(o, target, reduction=self.reduction)
        return loss, _engine.functions().activation_backward("sigmoid", o, do)  # (o - d) o (1 - o)


class Model(Module):
    """Layers under names, an `Output`, and their parameters as "<part>.<name>".

    Parameters
    ----------
    output : Output
    parts : dict of str to Module
        Their arrays are shared, not copied.
    rename : dict of str to str, optional
        Other names for some parameters.
    """

    def __init__(self, output, parts, rename=None):
        super().__init__(next(iter(parts.values())).dtype)
        self.output, self.parts, rename = output, parts, rename or {}
        for part, module in parts.items():
            if module.dtype != self.dtype:
                raise TypeError(f"{part} is {module.dtype}, the rest {self.dtype}")
            for name, p in module.params.items():
                full = f"{part}.{name}"
                self.params[rename.get(full, full)] = p
                self.grads[rename.get(full, full)] = module.grads[name]

    def __repr__(self):
        parts = ", ".join(f"{name}={part!r}" for name, part in self.parts.items())
        return f"{type(self).__name__}({parts}, output={self.output.function!r})"


class FeedForward(Model):
    """Input, hidden layers, output: h = f(W1 x + b1), ..., o = g(W2 h + b2).

    The weights are learnt from the back-propagated deltas, delta_o = (o - d) o' and
    delta_h = h' W2^T delta_o (Rumelhart, Hinton and Williams 1986).

    Parameters
    ----------
    sizes : sequence of int
        Units of each layer, inputs and outputs included.
    hidden : {"sigmoid", "tanh", "relu"}
    output : {"sigmoid", "linear", "softmax"}
    loss : {"quadratic", "cross_entropy"} or None
        quadratic, E = 1/2 sum (o - d)^2, is the default for sigmoid and linear outputs,
        cross_entropy for softmax; sigmoid outputs take both.
    reduction : {"sum", "mean"}
        Over the rows of x.
    dtype : {"float32", "float64"}
    seed : int or None

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    >>> d = np.array([[0], [1], [1], [0]], np.float32)
    >>> net = rnnfast.models.FeedForward([2, 4, 1], seed=0)
    >>> adam = rnnfast.optim.Adam(net, lr=0.1)
    >>> for _ in range(300):
    ...     adam.zero_grad()
    ...     loss = net.loss_and_grads(x, d)
    ...     adam.step()
    >>> net(x).round().ravel().tolist()
    [0.0, 1.0, 1.0, 0.0]
    """

    def __init__(self, sizes, hidden="sigmoid", output="sigmoid", loss=None, *, reduction="sum",
                 dtype="float32", seed=None):  # fmt: skip
        if hidden not in HIDDEN:
            raise ValueError(f"hidden must be one of {HIDDEN}, got {hidden!r}")
        if len(sizes) < 2:
            raise ValueError(f"sizes must name inputs and outputs at least, got {sizes}")
        if loss is None and output == "sigmoid":
            loss = "quadratic"
        self.hidden = hidden
        rng = np.random.default_rng(seed)
        layers = {
            f"layer{k}": Linear(m, n, dtype=dtype, seed=int(rng.integers(2**63)))
            for k, (m, n) in enumerate(pairwise(sizes))
        }
        super().__init__(Output(output, loss, reduction), layers)

    def __call__(self, x):
        """o (..., O) for x (..., I)."""
        return self.output(self.forward(x)[0])

    def forward(self, x):
        """(z, tape): the outputs before their function."""
        tape, last, f = [], list(self.parts.values())[-1], _engine.functions()
        for layer in self.parts.values():
            z, kept = layer.forward(x)
            x = None if layer is last else f.activation_forward(self.hidden, z)
            tape.append((kept, x))
        return z, tape

    def backward(self, tape, dz, *, need_dx=True):
        """dE/dx from dE/dz; adds into `grads`."""
        f, layers = _engine.functions(), list(self.parts.values())
        for k, (kept, h) in reversed(list(enumerate(tape))):
            if h is not None:
                dz = f.activation_backward(self.hidden, h, dz)  # delta_h
            dz = layers[k].backward(kept, dz, need_dx=k > 0 or need_dx)
        return dz

    def loss_and_grads(self, x, target):
        """E; adds its gradients into `grads`.

        Parameters
        ----------
        x : (..., I) array
        target : (..., O) array, or (...) integers for a softmax
        """
        z, tape = self.forward(x)
        loss, dz = self.output.loss(z, target)
        self.backward(tape, dz, need_dx=False)
        return loss


class Sequential(Model):
    """What models with an output at every time step share; x and targets are laid out alike."""

    batch_first = False

    def _packed(self, a, lengths):
        """(packing, rows) of an array (T, B, ...)."""
        a = a.swapaxes(0, 1) if self.batch_first else a
        packing = Packing(*a.shape[:2], lengths, type(self).__name__)
        return packing, packing.pack(a)

    def _dense(self, packing, rows):
        a = packing.unpack(rows)
        return a.swapaxes(0, 1) if self.batch_first else a

    def __call__(self, x, state=None, lengths=None):
        """(o, state): outputs (T, B, O), exactly 0 past the end of a sequence, and the state.

        Keeps nothing, and no dropout is at work.
        """
        z, state, _ = self._run(x, state, lengths, False)
        packing, rows = self._packed(z, lengths)
        return self._dense(packing, self.output(rows)), state

    def loss(self, z, targets, lengths=None):
        """(E, dE/dz) over the steps that are not padding.

        Parameters
        ----------
        z : (T, B, O) array
            Outputs before their function, as from `forward`.
        targets : (T, B) integers for a softmax, else (T, B, O) array
            What lies past the end of a sequence is not read. Class -100 counts for nothing.
        lengths : (B,) integers, optional
        """
        targets = np.asarray(targets)
        k = 1 if self.output.function == "softmax" else 0
        if targets.shape != z.shape[: z.ndim - k]:
            raise ValueError(f"{type(self).__name__}: targets must have shape "
                             f"{z.shape[: z.ndim - k]}, got {targets.shape}")  # fmt: skip
        packing, rows = self._packed(z, lengths)
        loss, dz = self.output.loss(rows, self._packed(targets, lengths)[1])
        return loss, self._dense(packing, dz)

    def loss_and_grads(self, x, targets, state=None, lengths=None):
        """(E, final state); adds the gradients of E, by BPTT, into `grads`.

        Parameters
        ----------
        x : (T, B, I) array, or (T, B) integers for one-hot vectors
        targets, lengths
            As in `loss`.
        state : as returned, optional
            Where the sequences start from; zero by default. No gradient flows back into it.
        """
        z, state, tape = self.forward(x, state, lengths)
        loss, dz = self.loss(z, targets, lengths)
        self.backward(tape, dz, need_dx=False)
        return loss, state


class SequenceTagger(Sequential):
    """An output at every time step over any recurrent layer: z_t = V h_t + c, o_t = f(z_t).

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Deep and bidirectional as one likes; each step then sees the whole sequence.
    output_size : int
        O, outputs or classes.
    output, loss, reduction
        As in `Output`.
    seed : int or None

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.LSTM(3, 8, num_layers=2, bidirectional=True, seed=0)
    >>> model = rnnfast.models.SequenceTagger(layer, 5, seed=0)
    >>> x, tags = np.ones((7, 2, 3), np.float32), np.zeros((7, 2), int)
    >>> loss, state = model.loss_and_grads(x, tags, lengths=[7, 4])
    >>> p, state = model(x, lengths=[7, 4])
    >>> p.shape, bool((p[4:, 1] == 0).all())
    ((7, 2, 5), True)
    """

    def __init__(self, layer, output_size, output="softmax", loss=None, *, reduction="mean",
                 seed=None, rename=None):  # fmt: skip
        head = Linear(layer.output_size, output_size, dtype=layer.dtype, seed=seed)
        self.batch_first = layer.batch_first
        super().__init__(Output(output, loss, reduction), {"layer": layer, "head": head}, rename)

    def forward(self, x, state=None, lengths=None):
        """(z, state, tape): outputs before their function, 0 past the end."""
        return self._run(x, state, lengths, True)

    def _run(self, x, state, lengths, keep):
        layer = self.parts["layer"]
        y, state, *tape = (layer.forward if keep else layer)(x, state, lengths)
        if y.ndim != 3:
            raise ValueError(f"{type(self).__name__}: x must be a batch, got shape {np.shape(x)}")
        packing, rows = self._packed(y, lengths)
        z, head = self.parts["head"].forward(rows)
        return self._dense(packing, z), state, (tape, packing, head)

    def backward(self, tape, dz, dstate=None, *, need_dx=True):
        """(dx, dstate) from dE/dz and dE/d(final state); adds into `grads`."""
        (tape,), packing, head = tape
        dz = dz.swapaxes(0, 1) if self.batch_first else dz
        dy = self.parts["head"].backward(head, packing.pack(dz))
        return self.parts["layer"].backward(tape, self._dense(packing, dy), dstate, need_dx=need_dx)


class OneBiasRNN(RNN):
    """h_t = tanh(W_ih x_t + W_hh h_{t-1} + b): one bias, where torch.nn.RNN has two."""

    def _shapes(self, layer):
        shapes = super()._shapes(layer)
        del shapes["b_hh"]
        return shapes


class StepRNN(SequenceTagger):
    """A network that is given one input at a time and keeps h between the calls.

    h = tanh(W_hh h + W_xh x + b), y = W_hy h + c.

    Parameters
    ----------
    input_size, hidden_size, output_size : int
    output, loss, reduction
        As in `Output`.
    dtype : {"float32", "float64"}
    seed : int or None

    Attributes
    ----------
    state : array or None
        h, (H,) or (B, H); None stands for zero. May be set.
    params, grads : dict
        W_xh (H, I), W_hh (H, H), b (H,), W_hy (O, H), c (O,).

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> net = rnnfast.models.StepRNN(3, 5, 2, seed=0)
    >>> x = np.ones(3, np.float32)
    >>> first, second = net.step(x), net.step(x)
    >>> first.shape, bool((first == second).all())
    ((2,), False)
    >>> net.reset()
    >>> bool((net.step(x) == first).all())
    True
    """

    names = ("W_xh", "W_hh", "b", "W_hy", "c")

    def __init__(self, input_size, hidden_size, output_size, output="linear", loss=None, *,
                 reduction="mean", dtype="float32", seed=None):  # fmt: skip
        rng = np.random.default_rng(seed)
        layer = OneBiasRNN(input_size, hidden_size, dtype=dtype, seed=int(rng.integers(2**63)))
        full = ("layer.weight_ih_l0", "layer.weight_hh_l0", "layer.bias_ih_l0", "head.weight",
                "head.bias")  # fmt: skip
        super().__init__(layer, output_size, output, loss, reduction=reduction,
                         seed=int(rng.integers(2**63)),
                         rename=dict(zip(full, self.names, strict=True)))  # fmt: skip
        self.state = None

    def reset(self):
        """Back to h = 0."""
        self.state = None

    def step(self, x):
        """y, (O,) for x (I,) or (B, O) for (B, I); integers, () or (B,), stand for one-hot x."""
        x = np.asarray(x)
        single = x.ndim == (0 if x.dtype.kind in "iu" else 1)
        h = None if self.state is None else np.atleast_2d(self.state)[None]
        y, h = self(x[None, None] if single else x[None], h)
        self.state = h[0, 0] if single else h[0]
        return y[0, 0] if single else y[0]


class Elman(StepRNN):
    """The Elman network: an output at every step, recurrence from hidden to hidden.

    a_t = b + W h_{t-1} + U x_t, h_t = tanh(a_t), o_t = c + V h_t, p_t = softmax(o_t), and the loss
    is the sum over t of -log p_t[y_t] (Elman 1990; gradients by BPTT).

    Parameters
    ----------
    input_size, hidden_size, output_size : int
    reduction : {"sum", "mean"}
        Over time steps and sequences.
    dtype : {"float32", "float64"}
    seed : int or None

    Attributes
    ----------
    params, grads : dict
        U (H, I), W (H, H), b (H,), V (O, H), c (O,).

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> net = rnnfast.models.Elman(4, 5, 4, seed=0)
    >>> x = np.array([[0], [1], [2]])  # (T, B) classes stand for one-hot vectors
    >>> loss, state = net.loss_and_grads(x, (x + 1) % 4)
    >>> sorted(net.grads), net.grads["U"].shape
    (['U', 'V', 'W', 'b', 'c'], (5, 4))
    """

    names = ("U", "W", "b", "V", "c")

    def __init__(self, input_size, hidden_size, output_size, *, reduction="sum", dtype="float32",
                 seed=None):  # fmt: skip
        super().__init__(input_size, hidden_size, output_size, "softmax", reduction=reduction,
                         dtype=dtype, seed=seed)  # fmt: skip


class OutputRecurrent(Sequential):
    """The output before, not h, feeds the next step (Jordan 1986; Goodfellow et al. 2016, 10.2.1).

    h_t = tanh(U x_t + W o_{t-1} + b), z_t = V h_t + c, o_t = f(z_t).

    Running freely, `loss_and_grads` goes back through time along o. With ``teacher_forcing`` the
    target y_{t-1} takes the place of o_{t-1}: nothing that is computed at one step is read at
    another, and all steps are one batch.

    Parameters
    ----------
    input_size, hidden_size, output_size : int
    output : {"linear", "softmax"}
        f; the loss is quadratic error or cross-entropy.
    reduction : {"mean", "sum"}
    dtype : {"float32", "float64"}
    seed : int or None

    Attributes
    ----------
    params, grads : dict
        U (H, I), W (H, O), V (O, H), b (H,), c (O,).

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> net = rnnfast.models.OutputRecurrent(2, 8, 3, output="softmax", seed=0)
    >>> x, y = np.ones((6, 4, 2), np.float32), np.zeros((6, 4), int)
    >>> loss, last = net.loss_and_grads(x, y, teacher_forcing=True)
    >>> p, last = net(x)
    >>> p.shape, last.shape
    ((6, 4, 3), (4, 3))
    """

    def __init__(self, input_size, hidden_size, output_size, output="linear", *, reduction="mean",
                 dtype="float32", seed=None):  # fmt: skip
        if output not in ("linear", "softmax"):
            raise ValueError(f"output must be 'linear' or 'softmax', got {output!r}")
        self.input_size, self.output_size = _positive("input_size", input_size), output_size
        rng = np.random.default_rng(seed)
        seeds = [int(rng.integers(2**63)) for _ in range(3)]
        parts = {
            "input": Linear(input_size, hidden_size, dtype=dtype, seed=seeds[0]),
            "feedback": Linear(output_size, hidden_size, bias=False, dtype=dtype, seed=seeds[1]),
            "head": Linear(hidden_size, output_size, dtype=dtype, seed=seeds[2]),
        }
        names = {"input.weight": "U", "feedback.weight": "W", "head.weight": "V",
                 "input.bias": "b", "head.bias": "c"}  # fmt: skip
        super().__init__(Output(output, None, reduction), parts, names)

    def _arrange(self, x, state, lengths):
        """(packing, rows of x, initial outputs in packed order)."""
        x, me = np.asarray(x), type(self).__name__
        ids = x.dtype.kind in "iu"
        if x.ndim != 3 - ids:
            raise ValueError(f"{me}: x must be (T, B, I) or integers (T, B), got {x.shape}")
        if not ids:
            x = real_array(me, "x", x, self.dtype)
            if x.shape[2] != self.input_size:
                raise ValueError(f"{me}: x has {x.shape[2]} features, U expects {self.input_size}")
        packing, rows = self._packed(x, lengths)
        return packing, rows.astype(np.int64) if ids else rows, self._state(state, packing)

    def _state(self, state, packing):
        """Outputs (B, O), or their gradients, in packed order; zero by default."""
        shape = (packing.B, self.output_size)
        if state is None:
            return np.zeros(shape, self.dtype)
        state = real_array(type(self).__name__, "state", state, self.dtype)
        if state.shape != shape:
            raise ValueError(f"{type(self).__name__}: state must be {shape}, got {state.shape}")
        return packing.sort(state[None])[0]

    def forward(self, x, state=None, lengths=None):
        """(z, last output, tape), each output feeding the next step.

        Parameters
        ----------
        x : (T, B, I) array, or (T, B) integers for one-hot vectors
        state : (B, O) array, optional
            The output before the first step; zero by default.
        lengths : (B,) integers, optional
        """
        return self._run(x, state, lengths, True)

    def _run(self, x, state, lengths, keep):
        packing, rows, o0 = self._arrange(x, state, lengths)
        p = self.params
        z, last, tape = _engine.functions().output_rnn_forward(
            rows, packing.batch_sizes, o0, p["U"], p["W"], p["V"], p["b"], p["c"],
            output=self.output.function, keep=keep)  # fmt: skip
        return self._dense(packing, z), packing.unsort(last[None])[0], (tape, packing)

    def backward(self, tape, dz, dstate=None, *, need_dx=True):
        """(dx, dstate) from dE/dz and dE/d(last output); adds into `grads`."""
        tape, packing = tape
        g = self.grads
        names = {"w_ih": "U", "w_oh": "W", "w_ho": "V", "b_h": "b", "b_o": "c"}
        dx, dstate = _engine.functions().output_rnn_backward(
            tape, packing.pack(dz), self._state(dstate, packing),
            {k: g[v] for k, v in names.items()}, need_dx)  # fmt: skip
        dx = None if dx is None else packing.unpack(dx)
        return dx, packing.unsort(dstate[None])[0]

    def forward_teacher(self, x, targets, state=None, lengths=None):
        """(z, tape) with the targets in place of the outputs: every step at once.

        Parameters as in `forward`, targets (T, B) classes for a softmax, else (T, B, O).
        """
        packing, rows, o0 = self._arrange(x, state, lengths)
        targets = np.asarray(targets)
        if targets.shape[:2] != (packing.T, packing.B):
            raise ValueError(f"OutputRecurrent: targets must be {(packing.T, packing.B)} and "
                             f"outputs, got {targets.shape}")  # fmt: skip
        if self.output.function == "softmax":
            before = targets[:-1].astype(np.int64)  # y_{t-1}: one-hot, looked up
        else:
            before = real_array(type(self).__name__, "targets", targets[:-1], self.dtype)
        # rows of step 0 are the first; row for row the others have the target of one step earlier
        first = int(packing.batch_sizes[0]) if packing.T else 0
        later = packing.pack(np.concatenate([before[:1], before]))[first:] if len(before) else None
        f, p = _engine.functions(), self.params
        a = f.linear_forward(rows, p["U"], p["b"])
        a[:first] += f.linear_forward(o0[:first], p["W"])
        if later is not None:
            a[first:] += f.linear_forward(later, p["W"])
        h = f.activation_forward("tanh", a)
        z = f.linear_forward(h, p["V"], p["c"])
        return self._dense(packing, z), (packing, rows, o0[:first], later, h)

    def backward_teacher(self, tape, dz):
        """Add the gradients into `grads`: no step depends on another."""
        packing, rows, o0, later, h = tape
        f, p, g = _engine.functions(), self.params, self.grads
        dz = packing.pack(dz)
        dh = f.linear_backward(h, p["V"], dz, {"weight": g["V"], "bias": g["c"]})
        da = f.activation_backward("tanh", h, dh)
        f.linear_backward(o0, p["W"], da[: len(o0)], {"weight": g["W"]}, False)
        if later is not None:
            f.linear_backward(later, p["W"], da[len(o0) :], {"weight": g["W"]}, False)
        f.linear_backward(rows, p["U"], da, {"weight": g["U"], "bias": g["b"]}, False)

    def loss_and_grads(self, x, targets, state=None, lengths=None, *, teacher_forcing=False):
        """(E, last output); adds the gradients of E into `grads`.

        Parameters
        ----------
        x, targets, state, lengths
            As in the other models with an output at every step; state is (B, O).
        teacher_forcing : bool
            Feed the target of each step, not the output, to the next one; the second result is
            None, since no output was fed.
        """
        if not teacher_forcing:
            return super().loss_and_grads(x, targets, state, lengths)
        z, tape = self.forward_teacher(x, targets, state, lengths)
        loss, dz = self.loss(z, targets, lengths)
        self.backward_teacher(tape, dz)
        return loss, None


class SequenceToOne(Model):
    """Reads the whole sequence, then gives one output: z = V s + c, o = f(z).

    The summary s is the final state h of the top layer at each sequence's own end; with two
    directions, of both: each has read everything.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Of any depth, in one direction or two.
    output_size : int
        O, outputs or classes.
    output, loss, reduction
        As in `Output`: softmax makes a classifier, linear a regressor.
    seed : int or None

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.GRU(3, 8, bidirectional=True, seed=0)
    >>> model = rnnfast.models.SequenceToOne(layer, 5, seed=0)
    >>> x = np.ones((7, 2, 3), np.float32)
    >>> loss = model.loss_and_grads(x, np.array([0, 3]), lengths=[7, 4])
    >>> model(x, lengths=[7, 4]).shape
    (2, 5)
    """

    def __init__(self, layer, output_size, output="softmax", loss=None, *, reduction="mean",
                 seed=None):  # fmt: skip
        head = Linear(layer.directions * layer.state_size, output_size, dtype=layer.dtype,
                      seed=seed)  # fmt: skip
        super().__init__(Output(output, loss, reduction), {"layer": layer, "head": head})

    def __call__(self, x, lengths=None):
        """o (B, O) for x (T, B, I), or integers (T, B) for one-hot vectors."""
        return self.output(self._run(x, lengths, False)[0])

    def forward(self, x, lengths=None):
        """(z, tape): the outputs (B, O) before their function."""
        return self._run(x, lengths, True)

    def _run(self, x, lengths, keep):
        layer = self.parts["layer"]
        _, state, *tape = (layer.forward if keep else layer)(x, None, lengths)
        h = state[0] if layer.states == 2 else state
        if h.ndim != 3:
            raise ValueError(f"SequenceToOne: x must be a batch, got shape {np.shape(x)}")
        summary = np.concatenate(h[-layer.directions :], axis=1)
        z, head = self.parts["head"].forward(summary)
        return z, (tape, head, state)

    def backward(self, tape, dz, *, need_dx=True):
        """dE/dx from dE/dz; adds into `grads`."""
        (tape,), head, state = tape
        layer = self.parts["layer"]
        ds = self.parts["head"].backward(head, dz)
        dstate = tuple(map(np.zeros_like, state)) if layer.states == 2 else np.zeros_like(state)
        dh = dstate[0] if layer.states == 2 else dstate
        dh[-layer.directions :] = np.split(ds, layer.directions, axis=1)
        return layer.backward(tape, None, dstate, need_dx=need_dx)[0]

    def loss_and_grads(self, x, targets, lengths=None):
        """E; adds its gradients, by BPTT, into `grads`.

        Parameters
        ----------
        x : (T, B, I) array, or (T, B) integers for one-hot vectors
        targets : (B,) classes for a softmax, else (B, O) array
        lengths : (B,) integers, optional
        """
        z, tape = self.forward(x, lengths)
        loss, dz = self.output.loss(z, targets)
        self.backward(tape, dz, need_dx=False)
        return loss
