"""PyTorch's recurrent modules with rnnfast inside: the classes of torch.nn by their names, and
`accelerate`, which swaps those of a whole model. docs/torch.md is the guide.

A module here is a subclass of torch's: constructor, parameters, state dict, checks and messages are
inherited. Only ``forward`` is ours, and it hands over to torch's own whatever rnnfast does not
compute. No array is copied on the way in or out: the NumPy layer's parameters are views of the
memory of torch's, so that it sees every change of them.
"""

import warnings

import numpy as np
import torch
from torch import Tensor, from_numpy, is_grad_enabled, nn
from torch._C import (
    _are_functorch_transforms_active,
    _is_any_autocast_enabled,
    _is_tracing,
    _len_torch_dispatch_stack,
)
from torch._C._functorch import unwrap_if_dead
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from rnnfast import layers
from rnnfast._packing import Packing

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "accelerate", "restore"]

DTYPES = {torch.float32: "float32", torch.float64: "float64"}


# ---- NumPy layers over torch's memory ------------------------------------------------------------


class Rows(Packing):
    """The rows of a PackedSequence: in the order that `Packing` makes, so they stay as they are."""

    def __init__(self, batch_sizes):
        self.batch_sizes = batch_sizes
        self.T, self.B = len(batch_sizes), int(batch_sizes[0])
        self.rows = int(batch_sizes.sum())
        self.order = self.lengths = None

    def pack(self, x):
        return np.ascontiguousarray(x)

    def unpack(self, rows, pad="zero"):
        return rows

    def pack_gradient(self, dx, pad="zero"):
        return self.pack(dx)


class Borrowing:
    """A layer whose parameters belong to somebody else, and which takes `Rows` for lengths."""

    def _initialise(self, init, forget_bias, rng):
        """Nothing to draw: `params` is set by the owner of the parameters."""

    def _arrange(self, x, state, lengths, resets):
        if not isinstance(lengths, Rows):
            return super()._arrange(x, state, lengths, resets)
        rows = layers.real_array(self._me, "x", x, self.dtype)
        return rows, self._states(state, lengths.B, lengths, False), lengths, None, False

    def _output_shape(self, packing, unbatched, sequences):
        if isinstance(packing, Rows):
            return (packing.rows, self.output_size)
        return super()._output_shape(packing, unbatched, sequences)

    def over(self, weights):
        """The same layer over these weights: over their memory, where they are contiguous."""
        names = [name for layer in range(self.num_layers) for direction in range(self.directions)
                 for name in self._names(layer, direction).values()]  # fmt: skip
        arrays = [np.ascontiguousarray(view(w)) for w in weights]
        return self.variant(params=dict(zip(names, arrays, strict=True)))

    def variant(self, **attributes):
        """A shallow copy with other attributes; calls on several threads share nothing that
        changes."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, **attributes)
        return other


class NumpyRNN(Borrowing, layers.RNN):
    """See `Borrowing`."""


class NumpyLSTM(Borrowing, layers.LSTM):
    """See `Borrowing`."""


class NumpyGRU(Borrowing, layers.GRU):
    """See `Borrowing`."""


class Seed:
    """Stands for a layer's generator: the seed of the dropout masks comes from torch's, so that
    torch.manual_seed governs it; a second pass with it draws the same masks."""

    def __init__(self):
        self.value = int(torch.randint(2**63 - 1, (), device="cpu"))

    def integers(self, high):
        return self.value


def view(tensor):
    """The tensor's memory as an array (a copy only where a lazy minus is pending)."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    try:
        return tensor.numpy()
    except RuntimeError:  # rare: asking first would cost every call
        return tensor.numpy(force=True)


class Binding:
    """A NumPy layer over a module's weights, good for as long as `holds` says so."""

    def __init__(self, layer, weights):
        self.layer = layer
        self.dtype = weights[0].dtype
        self.pointers = [*map(Tensor.data_ptr, weights)]

    def holds(self, weights):
        """Whether the weights still lie where the layer reads them. (Where one is not contiguous
        the layer has a copy, which nothing keeps up to date.)"""
        for w, pointer in zip(weights, self.pointers):  # noqa: B905  strict=True takes longer
            if w.data_ptr() != pointer or not w.is_contiguous():
                return False
        return weights[0].dtype is self.dtype


# ---- one pass ------------------------------------------------------------------------------------


class Pass:
    """One call of a module: which layer runs, and how its arrays lie.

    Parameters
    ----------
    layer : NumpyRNN, NumpyLSTM or NumpyGRU
    form : {"time first", "batch first", "packed", "cell"}
    given : int
        How many initial states there are: none, where they are zero, or all of the layer's.
    rows : Rows or None
        For "packed".
    """

    def __init__(self, layer, form, given, rows=None):
        self.layer, self.form, self.given, self.rows = layer, form, given, rows

    def turn(self, a):
        """x, y or a gradient of them from torch's layout to the layer's or back."""
        return a.swapaxes(0, 1) if self.form == "batch first" else a

    def forward(self, x, states, keep):
        """([torch's outputs], tape or None); `states` are tensors, none at all for zeros."""
        layer, cell = self.layer, self.form == "cell"
        x, state, tape = view(x), None, None
        if states:
            state = self._state([view(s)[None] if cell else view(s) for s in states])
        x = x[None] if cell else self.turn(x)
        if keep:
            y, final, tape = layer.forward(x, state, self.rows)
        else:
            y, final = layer(x, state, self.rows)
        final = final if layer.states == 2 else (final,)
        arrays = [s[0] for s in final] if cell else (self.turn(y), *final)
        return [*map(from_numpy, arrays)], tape

    def backward(self, tape, gradients, need_dx):
        """(dx or None, (dstates), [dweights]), arrays, from dE/d(outputs), None standing for
        zeros."""
        layer, cell, state = self.layer, self.form == "cell", None
        dy = None if cell or gradients[0] is None else self.turn(view(gradients[0]))
        dstates = gradients if cell else gradients[1:]
        given = [d for d in dstates if d is not None]
        if given:
            like = view(given[0])
            arrays = [np.zeros((*like.shape[:-1], n), like.dtype) if d is None else view(d)
                      for d, n in zip(dstates, layer._state_sizes(), strict=True)]  # fmt: skip
            state = self._state([a[None] for a in arrays] if cell else arrays)
        grads = {name: np.zeros(p.shape, p.dtype) for name, p in layer.params.items()}
        dx, before = layer._backward(grads, tape, dy, state, need_dx)
        before = before if layer.states == 2 else (before,)
        if cell:
            dx, before = None if dx is None else dx[0], [s[0] for s in before]
        elif dx is not None:
            dx = self.turn(dx)
        return dx, before, grads.values()

    def over(self, weights):
        """The same pass over other weights."""
        return Pass(self.layer.over(weights), self.form, self.given, self.rows)

    def divided(self, inputs):
        """(x, states, weights) from the list of all."""
        return inputs[0], inputs[1 : 1 + self.given], inputs[1 + self.given :]

    def _state(self, arrays):
        return tuple(arrays) if self.layer.states == 2 else arrays[0]

    def by_torch(self, x, states, weights):
        """The outputs again, by torch's functions, through which it can differentiate twice.

        Always the function for packed rows: the other one may be oneDNN's, which has no second
        derivative.
        """
        layer, cell = self.layer, self.form == "cell"
        if cell:
            x, states = x[None], [s[None] for s in states]
        alone = self.rows is None and x.dim() == 2
        if alone:
            x, states = x[:, None], [s[:, None] for s in states]
        x = self.turn(x)
        if self.rows is None:
            T, B = x.shape[:2]
            x, sizes = x.reshape(T * B, -1), torch.full((T,), B, device="cpu")
        else:
            B, sizes = self.rows.B, from_numpy(self.rows.batch_sizes)
        n = layer.num_layers * layer.directions
        states = states or [x.new_zeros(n, B, size) for size in layer._state_sizes()]
        name = layer.cell if layer.cell != "rnn" else f"rnn_{layer.options['nonlinearity']}"
        y, *final = getattr(torch, name)(x, sizes, self._state(states), weights, layer.bias,
                                         layer.num_layers, 0.0, False, layer.bidirectional)
        if self.rows is None:
            y = self.turn(y.reshape(T, B, -1))
        if alone:
            y, final = y[:, 0], [s[:, 0] for s in final]
        return [s[0] for s in final] if cell else [y, *final]


NOTHING = np.empty(0, np.float32)  # a tensor of it, unlike torch.empty's, is always the CPU's


class Bptt(torch.autograd.Function):
    """A `Pass` as one node of torch's graph."""

    @classmethod
    def run(cls, call, inputs):
        """`apply`, of which only the C part remains: the rest looks for default arguments, and
        calls what follows for each argument."""
        inputs = map(unwrap_if_dead, inputs)  # tensors that outlived a torch.func transform
        return super(torch.autograd.Function, cls).apply(call, *inputs)

    @staticmethod
    def forward(ctx, call, x, *others):
        # others: the states, unless they are zero, and the weights
        outputs, tape = call.forward(x, others[: call.given], True)
        # The tape hangs on a saved tensor, so that it goes when torch lets go of those: after
        # backward, not only when the last output is forgotten.
        holder = from_numpy(NOTHING)
        holder.tape = tape
        ctx.call = call
        ctx.save_for_backward(holder, x, *others)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *gradients):
        call, needed = ctx.call, ctx.needs_input_grad[1:]
        holder, *inputs = ctx.saved_tensors  # raises where one was changed in place
        if is_grad_enabled():
            return None, *twice(call, inputs, gradients, needed)
        tape = getattr(holder, "tape", None)
        if tape is None:  # a hook on saved tensors (checkpoint, offloading) gave other ones
            x, states, weights = call.divided(inputs)
            tape = call.over(weights).forward(x, states, True)[1]
        dx, dstates, dweights = call.backward(tape, gradients, needed[0])
        arrays = dx, *dstates[: call.given], *dweights
        return None, *[from_numpy(a) if n else None
                       for a, n in zip(arrays, needed, strict=True)]  # fmt: skip


def twice(call, inputs, gradients, needed):
    """The gradients as functions of all that they depend on (create_graph=True)."""
    if call.layer.dropout:
        raise RuntimeError("rnnfast.torch: a gradient of gradients needs torch's own implementation"
                           ", which cannot repeat our dropout masks; use eval() or dropout=0")
    # New names for the inputs: one of them may itself depend on another, and that way round
    # does not belong to this node's gradient.
    inputs = [t.view_as(t) for t in inputs]
    outputs = call.by_torch(*call.divided(inputs))
    pairs = [(y, d) for y, d in zip(outputs, gradients, strict=True) if d is not None]
    wanted = [t for t, n in zip(inputs, needed, strict=True) if n]
    found = iter(torch.autograd.grad([y for y, _ in pairs], wanted, [d for _, d in pairs],
                                     create_graph=True, allow_unused=True))  # fmt: skip
    return [next(found) if n else None for n in needed]


# ---- the modules ---------------------------------------------------------------------------------

_warned = set()


def _warn(reason):
    """Once per reason and process."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"rnnfast.torch does not compute this ({reason}): torch's own implementation "
                      "does", stacklevel=5)  # fmt: skip


# What torch.compiler.assume_constant_result does, without the seconds that importing its machinery
# takes: torch.compile calls the function while it traces, and no call of it ends up in the graph.
_warn._dynamo_marked_constant = True


def _obstacle():
    """What in torch's present mode takes plain arrays away from us, or None."""
    if torch.compiler.is_compiling():
        return "torch.compile"
    if _is_tracing():
        return "torch.jit"
    if _are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func or forward-mode differentiation"
    if _len_torch_dispatch_stack():
        return "a dispatch mode"
    if _is_any_autocast_enabled():
        return "autocast"
    return None


def _foreign(tensors, dtype):
    """Why some tensor is not an array in the memory of the CPU, or None."""
    for t in tensors:
        if type(t) is not Tensor and type(t) is not nn.Parameter:
            return f"a {type(t).__name__}"
        if not t.is_cpu:
            return f"device {t.device.type}"
        if t.dtype is not dtype or dtype not in DTYPES:
            return f"dtype {t.dtype}"
        if t.layout is not torch.strided:
            return f"layout {t.layout}"
    return None


def _learns(tensors):
    """Whether one of them needs a gradient. (A loop: any() takes twice the instructions.)"""
    for t in tensors:
        if t.requires_grad:
            return True
    return False


class Swapped:
    """What the six modules share: their ``forward``."""

    _binding = None

    def forward(self, input, hx=None):
        """What torch's module gives for these arguments, computed by rnnfast."""
        plan = _obstacle() or self._plan(input, hx)
        if isinstance(plan, str):
            result = super().forward(input, hx)  # or torch's error
            _warn(plan)
            return result
        call, x, states, weights = plan
        inputs = (x, *states, *weights)
        if is_grad_enabled() and _learns(inputs):
            outputs = Bptt.run(call, inputs)
        else:  # a NumPy layer applies dropout where it keeps a tape
            outputs = call.forward(x, states, bool(call.layer.dropout))[0]
        return self._result(outputs, input)

    def _plan(self, input, hx):
        """(pass, x, states, weights), or the reason why torch's own implementation has to run."""
        own, names = self._parameters, self._names()
        try:
            weights = [own[name] for name in names]
        except KeyError:  # something stands in for a parameter: parametrisations, pruning
            weights = [getattr(self, name) for name in names]
        binding = self._binding
        if binding is None or not binding.holds(weights):
            binding = self._bind(weights)
            if isinstance(binding, str):
                return binding
        if hx is None:
            states = ()
        elif binding.layer.states == 1:
            states = (hx,)
        elif isinstance(hx, (tuple, list)) and len(hx) == 2:
            states = tuple(hx)
        else:
            return "a state that is not a pair"
        x = input.data if isinstance(input, PackedSequence) else input
        reason = _foreign((x, *states), binding.dtype)
        if reason:
            return reason
        found = self._pass(binding.layer, input, x, states)
        return found if isinstance(found, str) else (*found, weights)

    def _bind(self, weights):
        """A `Binding` of these weights, or the reason why there is none."""
        dtype = weights[0].dtype
        reason = _foreign(weights, dtype)
        if reason:
            return reason
        layer = self._numpy_layer(DTYPES[dtype])
        shapes = [shape for k in range(layer.num_layers)
                  for _, shape in [*layer._shapes(k).values()] * layer.directions]  # fmt: skip
        if [tuple(w.shape) for w in weights] != shapes:
            return "weights of other shapes"
        self.__dict__["_binding"] = binding = Binding(layer.over(weights), weights)
        return binding

    def __getstate__(self):
        state = dict(super().__getstate__())
        state.pop("_binding", None)  # addresses of this process
        return state


class SwappedLayer(Swapped):
    """RNN, LSTM and GRU."""

    def _names(self):
        return self._flat_weights_names

    def _pass(self, layer, input, x, states):
        """(pass, x, states), or the reason why there is none."""
        packed, shape = input is not x, x.shape
        form, rows, ndim, given = "time first", None, len(shape), len(states)
        if ndim not in ((2,) if packed else (2, 3)) or shape[-1] != self.input_size:
            return "an input of another shape"
        if packed:
            form, rows = "packed", self._rows(input)
            if rows is None:
                return "a PackedSequence that contradicts itself"
            batch = (rows.B,)
        elif ndim == 2:
            batch = ()
        elif self.batch_first:
            form, batch = "batch first", (shape[0],)
        else:
            batch = (shape[1],)
        if not packed and shape[form == "batch first"] == 0:
            return "a sequence without a step"
        if given:
            n = layer.num_layers * layer.directions
            for s, size in zip(states, layer._state_sizes(), strict=True):
                if s.shape != (n, *batch, size):
                    return "a state of another shape"
            if packed:
                states = self._permuted(states, input.sorted_indices)
        if self.dropout and self.training and self.num_layers > 1:
            layer = layer.variant(dropout=self.dropout, training_rng=Seed())
        return Pass(layer, form, given, rows), x, states

    def _result(self, outputs, input):
        y, *final = outputs
        if isinstance(input, PackedSequence):
            y = PackedSequence(y, *input[1:])
            final = self._permuted(final, input.unsorted_indices)
        return y, tuple(final) if len(final) == 2 else final[0]

    @staticmethod
    def _permuted(states, order):
        return states if order is None else [s.index_select(1, order) for s in states]

    @staticmethod
    def _rows(packed):
        """The `Rows` of a PackedSequence, or None where its parts contradict each other."""
        sizes = packed.batch_sizes
        if not sizes.is_cpu or sizes.dtype != torch.int64 or sizes.dim() != 1 or not len(sizes):
            return None
        sizes = np.ascontiguousarray(sizes.numpy())
        if sizes[-1] < 1 or (sizes[1:] > sizes[:-1]).any() or sizes.sum() != len(packed.data):
            return None
        return Rows(sizes)


class SwappedCell(Swapped):
    """RNNCell, LSTMCell and GRUCell."""

    def _names(self):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return names if self.bias else names[:2]

    def _pass(self, layer, input, x, states):
        shape = x.shape
        if len(shape) not in (1, 2) or shape[-1] != self.input_size:
            return "an input of another shape"
        if any(s.shape != (*shape[:-1], self.hidden_size) for s in states):
            return "a state of another shape"
        return Pass(layer, "cell", len(states)), x, states

    def _result(self, outputs, input):
        return tuple(outputs) if len(outputs) == 2 else outputs[0]


class RNN(SwappedLayer, nn.RNN):
    """torch.nn.RNN, computed by rnnfast; arguments, parameters and results are the same.

    Examples
    --------
    >>> import torch, rnnfast.torch
    >>> rnn = rnnfast.torch.RNN(3, 5, nonlinearity="relu")
    >>> y, h = rnn(torch.ones(7, 2, 3))
    >>> y.shape, h.shape
    (torch.Size([7, 2, 5]), torch.Size([1, 2, 5]))
    """

    def _numpy_layer(self, dtype):
        return NumpyRNN(self.input_size, self.hidden_size, self.num_layers, self.nonlinearity,
                        self.bias, bidirectional=self.bidirectional, dtype=dtype)  # fmt: skip


class LSTM(SwappedLayer, nn.LSTM):
    """torch.nn.LSTM, computed by rnnfast; arguments, parameters and results are the same.

    Takes and gives what torch's does: (T, B, I), (B, T, I) with batch_first, (T, I), or a
    PackedSequence; gradients of any of them, of the states and of the weights. On another device
    or dtype than float32 and float64 of the CPU, under torch.compile, autocast, torch.func or
    forward-mode differentiation torch's own implementation runs, with one warning.

    In training mode dropout draws other masks than torch's, seeded by torch's generator.

    Examples
    --------
    >>> import torch, rnnfast.torch
    >>> lstm = rnnfast.torch.LSTM(3, 5, num_layers=2)
    >>> y, (h, c) = lstm(torch.ones(7, 2, 3))
    >>> y.sum().backward()
    >>> y.shape, lstm.weight_hh_l1.grad.shape
    (torch.Size([7, 2, 5]), torch.Size([20, 5]))
    >>> isinstance(lstm, torch.nn.LSTM)
    True
    """

    def _numpy_layer(self, dtype):
        return NumpyLSTM(self.input_size, self.hidden_size, self.num_layers, self.bias,
                         bidirectional=self.bidirectional, proj_size=self.proj_size,
                         dtype=dtype)  # fmt: skip


class GRU(SwappedLayer, nn.GRU):
    """torch.nn.GRU, computed by rnnfast; arguments, parameters and results are the same.

    Examples
    --------
    >>> import torch, rnnfast.torch
    >>> gru = rnnfast.torch.GRU(3, 5, batch_first=True, bidirectional=True)
    >>> y, h = gru(torch.ones(2, 7, 3))
    >>> y.shape, h.shape
    (torch.Size([2, 7, 10]), torch.Size([2, 2, 5]))
    """

    def _numpy_layer(self, dtype):
        return NumpyGRU(self.input_size, self.hidden_size, self.num_layers, self.bias,
                        bidirectional=self.bidirectional, dtype=dtype)  # fmt: skip


class RNNCell(SwappedCell, nn.RNNCell):
    """torch.nn.RNNCell, computed by rnnfast.

    Examples
    --------
    >>> import torch, rnnfast.torch
    >>> rnnfast.torch.RNNCell(3, 5)(torch.ones(2, 3)).shape
    torch.Size([2, 5])
    """

    def _numpy_layer(self, dtype):
        return NumpyRNN(self.input_size, self.hidden_size, nonlinearity=self.nonlinearity,
                        bias=self.bias, dtype=dtype)  # fmt: skip


class LSTMCell(SwappedCell, nn.LSTMCell):
    """torch.nn.LSTMCell, computed by rnnfast.

    Examples
    --------
    >>> import torch, rnnfast.torch
    >>> h, c = rnnfast.torch.LSTMCell(3, 5)(torch.ones(2, 3))
    >>> h.shape, c.shape
    (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    def _numpy_layer(self, dtype):
        return NumpyLSTM(self.input_size, self.hidden_size, bias=self.bias, dtype=dtype)


class GRUCell(SwappedCell, nn.GRUCell):
    """torch.nn.GRUCell, computed by rnnfast.

    Examples
    --------
    >>> import torch, rnnfast.torch
    >>> rnnfast.torch.GRUCell(3, 5)(torch.ones(3)).shape
    torch.Size([5])
    """

    def _numpy_layer(self, dtype):
        return NumpyGRU(self.input_size, self.hidden_size, bias=self.bias, dtype=dtype)


# ---- whole models --------------------------------------------------------------------------------

SWAPS = {nn.RNN: RNN, nn.LSTM: LSTM, nn.GRU: GRU,
         nn.RNNCell: RNNCell, nn.LSTMCell: LSTMCell, nn.GRUCell: GRUCell}  # fmt: skip


def accelerate(model):
    """Let rnnfast compute every recurrent module of a model.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place. Modules of the classes nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell
        and nn.GRUCell themselves stay the objects they are, with their parameters, hooks and
        names, and get the class of the same name from here; instances of subclasses are left.

    Returns
    -------
    torch.nn.Module
        The model.

    Examples
    --------
    >>> import torch, rnnfast.torch
    >>> model = torch.nn.ModuleDict({"encoder": torch.nn.GRU(3, 5), "head": torch.nn.Linear(5, 2)})
    >>> weight = model["encoder"].weight_ih_l0
    >>> rnnfast.torch.accelerate(model)["encoder"].weight_ih_l0 is weight
    True
    >>> type(model["encoder"]) is rnnfast.torch.GRU
    True
    """
    return _change(model, SWAPS)


def restore(model):
    """Undo `accelerate`: the modules get torch's classes back, in place; returns the model.

    For what looks at a module's exact class: torch.jit.script, torch.fx, quantisation, or a pickle
    that has to load where rnnfast is not installed.

    Examples
    --------
    >>> import torch, rnnfast.torch
    >>> model = torch.nn.Sequential(rnnfast.torch.LSTM(3, 5))
    >>> type(rnnfast.torch.restore(model)[0]) is torch.nn.LSTM
    True
    """
    return _change(model, {ours: theirs for theirs, ours in SWAPS.items()})


def _change(model, classes):
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
            module.__dict__.pop("_binding", None)
    return model
