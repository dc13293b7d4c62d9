"""Recurrent layers from Keras 3: `from_layer` takes a layer, `from_weights` what ``get_weights``
returned. What comes out gives what Keras gives, masks, order of outputs and states included.

Nothing here imports Keras: a layer that is passed brings all that is needed, and weights that were
saved need no framework.
"""

import copy

import numpy as np

from rnnfast import _general, _threads, convert
from rnnfast.layers import GRU, LSTM, PARALLEL_WORK, RNN

LAYERS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
CELLS = {"SimpleRNN": "rnn", "LSTM": "lstm", "GRU": "gru"}
MERGES = ("concat", "sum", "mul", "ave", None)
COMPILED_GATES = ("sigmoid", "hard_sigmoid", "hard_sigmoid_onnx")
#: Keras's activations by name; what the compiled layers do not have is computed by NumPy
ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": _general.relu,
    "relu6": lambda x: np.clip(x, 0, 6),
    "tanh": np.tanh,
    "sigmoid": _general.sigmoid,
    "hard_sigmoid": _general.hard_sigmoid(1 / 6, 0.5),
    "hard_sigmoid_onnx": _general.hard_sigmoid(0.2, 0.5),
    "elu": _general.elu(1.0),
    "selu": lambda x: 1.0507009873554805 * _general.elu(1.6732632423543772)(x),
    "leaky_relu": _general.leaky_relu(0.2),
    "silu": lambda x: x * _general.sigmoid(x),
    "softplus": _general.softplus,
    "softsign": _general.softsign,
    "exponential": np.exp,
}


class Layer:
    """A recurrent layer of Keras; `from_layer` and `from_weights` make them.

    Attributes
    ----------
    layers : list of RNN, LSTM or GRU
        What computes: one layer of rnnfast, with ``batch_first``, for each cell. Where a cell has
        an activation that the compiled layers do not have it is a slow one in plain NumPy without a
        backward pass.
    return_sequences, return_state, go_backwards, zero_output_for_mask, stateful : bool
        As in Keras.
    state : list of arrays or None
        Where `stateful`, the state that the next call starts from; None is zero.
    """

    def __init__(self, layers, *, stacked=False, return_sequences=False, return_state=False,
                 go_backwards=False, zero_output_for_mask=False, stateful=False):  # fmt: skip
        self.layers, self.stacked = layers, stacked
        self.return_sequences, self.return_state = return_sequences, return_state
        self.go_backwards, self.stateful = go_backwards, stateful
        self.zero_output_for_mask = zero_output_for_mask
        self.state = None

    def __call__(self, x, mask=None, initial_state=None):
        """What the Keras layer returns in inference.

        Parameters
        ----------
        x : (B, T, I) array
            Of any real dtype; it is converted to the layer's, as Keras does.
        mask : (B, T) bool array, optional
            False, anywhere: the step is left out; the state is carried over it. The output there is
            the one before it (0 before the first step that counts, as with Keras on TensorFlow and
            PyTorch), or 0 with `zero_output_for_mask`.
        initial_state : array or list of arrays, optional
            One array (B, H) for each state of each cell; lists may be nested as Keras has them.

        Returns
        -------
        output : array
            (B, T, H) with `return_sequences`, in the order in which the steps were read (so with
            `go_backwards` the last step's comes first), else (B, H).
        states
            With `return_state` a tuple (output, states ...) is returned: one array for each state,
            or of stacked cells a list for each cell.
        """
        output, states = self.run(x, mask, initial_state)
        return (output, *states) if self.return_state else output

    def run(self, x, mask=None, initial_state=None):
        """(output, list of states) whether or not states are asked for."""
        x, mask, lengths = self._arranged(x, mask)
        given = self._initial(initial_state)
        states = []
        for layer in self.layers:
            state = tuple(a[None] for a in given[: layer.states])
            given = given[layer.states :]
            x, state = layer(x, (state if layer.states == 2 else state[0]) if state else None,
                             lengths)  # fmt: skip
            states.append([a[0] for a in (state if layer.states == 2 else [state])])
        if mask is not None:
            x = self._spread(x, mask)
        if self.stateful:
            self.state = [a.copy() for a in _flat(states)]
        output = x if self.return_sequences else x[:, -1]
        return output, states if self.stacked else states[0]

    def _arranged(self, x, mask):
        """(x, mask, lengths): in the order of reading, of x the steps that count first; lengths,
        like the mask, are None where all count."""
        x = np.asarray(x, self.layers[0].dtype)
        if x.ndim != 3:
            raise ValueError(f"x must have shape (B, T, I), got {x.shape}")
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != x.shape[:2]:
                raise ValueError(f"mask must have shape {x.shape[:2]}, got {mask.shape}")
            mask = mask.astype(bool)
        if self.go_backwards:
            x, mask = x[:, ::-1], None if mask is None else mask[:, ::-1]
        if mask is None:
            return x, None, None
        order = np.argsort(~mask, axis=1, kind="stable")
        return np.take_along_axis(x, order[..., None], 1), mask, mask.sum(axis=1)

    def _initial(self, state):
        """The arrays that a call starts from, as a list; an empty one stands for zeros."""
        given = self.state if state is None and self.stateful else state
        given = [np.asarray(a, self.layers[0].dtype) for a in _flat(given)]
        wanted = sum(layer.states for layer in self.layers)
        if given and len(given) != wanted:
            raise ValueError(f"initial_state must have {wanted} arrays, got {len(given)}")
        return given

    def _spread(self, y, mask):
        """Outputs of the steps that count, where these steps are; in between they repeat."""
        index = mask.cumsum(axis=1) - 1
        y = np.take_along_axis(y, np.maximum(index, 0)[..., None], 1)
        y[~mask if self.zero_output_for_mask else index < 0] = 0
        return y

    def reset_state(self):
        """Back to the zero state, where `stateful`."""
        self.state = None

    def __repr__(self):
        return f"Layer({', '.join(map(repr, self.layers))})"


class Bidirectional:
    """Two layers that read from both ends; `from_layer` and `from_weights` make them.

    Attributes
    ----------
    forward, backward : Layer
    merge_mode : {"concat", "sum", "mul", "ave", None}
        How the two outputs become one; None gives both.
    layer : RNN, LSTM or GRU, or None
        Where both are one cell of the same kind, sizes and options: the bidirectional layer of
        rnnfast, with ``batch_first``, that computes, over the memory of their weights. Its
        ``merge`` is `merge_mode`, "concat" where that is None. Where the forward layer has
        `go_backwards` it reads the sequences turned round. None: each reads by itself, on two
        threads where there is enough to do.
    """

    def __init__(self, forward, backward, merge_mode="concat"):
        if merge_mode not in MERGES:
            raise ValueError(f"merge_mode must be one of {MERGES}, got {merge_mode!r}")
        self.forward, self.backward, self.merge_mode = forward, backward, merge_mode
        self.layer = _joined(forward, backward, merge_mode)

    def __call__(self, x, mask=None, initial_state=None):
        """What the Keras layer returns in inference.

        Parameters
        ----------
        x, mask
            As of a `Layer`.
        initial_state : list of arrays, optional
            The forward layer's, then the backward layer's.

        Returns
        -------
        output : array, or pair of arrays with ``merge_mode=None``
            Both in the order of the input.
        states
            With ``return_state`` a tuple (output, states ...), the forward layer's first; with
            ``merge_mode=None`` (forward output, backward output, states ...).
        """
        given = [*initial_state] if initial_state is not None else []
        half = len(given) // 2
        given = [given[:half] or None, given[half:] or None]
        # What an output is where a step is left out differs between the directions, but for zeros
        # throughout, and where there is only the final one
        alike = mask is None or self.forward.zero_output_for_mask == self.forward.return_sequences
        run = self._as_one if self.layer is not None and alike else self._as_two
        y, states = run(x, mask, given)
        if not self.forward.return_state:
            return y
        return (*(y if self.merge_mode is None else (y,)), *states)

    def _as_one(self, x, mask, given):
        """(output, states) by the bidirectional layer."""
        pair, sequences = (self.forward, self.backward), self.forward.return_sequences
        x, mask, lengths = self.forward._arranged(x, mask)
        initial = [side._initial(state) for side, state in zip(pair, given, strict=True)]
        state = None
        if any(initial):
            zero = np.zeros((len(x), self.layer.hidden_size), self.layer.dtype)
            initial = [arrays or [zero] * self.layer.states for arrays in initial]
            state = tuple(map(np.stack, zip(*initial, strict=True)))
            state = state if self.layer.states == 2 else state[0]
        y, state = self.layer(x, state, lengths, return_sequences=sequences)
        states = state if self.layer.states == 2 else (state,)
        for d, side in enumerate(pair):
            if side.stateful:
                side.state = [a[d].copy() for a in states]
        if mask is not None and sequences:
            y = self.forward._spread(y, mask)
        elif mask is not None:
            y[lengths == 0] = 0
        if self.merge_mode is None:
            y = tuple(np.split(y, 2, axis=-1))
        return y, [a[d] for d in range(2) for a in states]

    def _as_two(self, x, mask, given):
        """(output, states) by both layers."""
        sides = (self.forward, self.backward)

        def run(k):
            return sides[k].run(x, mask, given[k])

        work = np.prod(np.shape(x)[:2]) * sum(a.num_parameters for a in self.forward.layers)
        both = _threads.run_pair(run) if work >= PARALLEL_WORK else [run(0), run(1)]
        (y, states), (back, more) = both
        if self.forward.return_sequences:
            back = back[:, ::-1]
        return _merged(self.merge_mode, y, back), [*states, *more]

    def reset_state(self):
        """Back to the zero state, where stateful."""
        self.forward.reset_state()
        self.backward.reset_state()

    def __repr__(self):
        return f"Bidirectional({self.forward}, {self.backward}, {self.merge_mode!r})"


def _joined(forward, backward, merge_mode):
    """One bidirectional layer over the weights of both, or None where they differ."""
    def kind(side):
        layer = side.layers[0]
        return (type(layer), layer.input_size, layer.hidden_size, layer.bias, layer.dtype,
                layer.options, getattr(layer, "clip", None), len(side.layers), side.stacked,
                side.return_sequences, side.zero_output_for_mask)  # fmt: skip

    if kind(forward) != kind(backward) or len(forward.layers) > 1 or forward.stacked \
            or forward.go_backwards == backward.go_backwards:  # fmt: skip
        return None
    first, second = forward.layers[0], backward.layers[0]
    layer = copy.copy(first)
    layer._set_directions(True, {None: "concat", "ave": "average"}.get(merge_mode, merge_mode))
    for which in ("params", "grads"):
        own = {f"{name}_reverse": a for name, a in getattr(second, which).items()}
        setattr(layer, which, getattr(first, which) | own)
    if isinstance(layer, tuple(_general.LAYERS.values())):
        layer.activations = [*first.activations, *second.activations]
    return layer


def _merged(mode, y, back):
    if mode is None:
        return y, back
    if mode == "concat":
        return np.concatenate([y, back], axis=-1)
    if mode == "mul":
        return y * back
    return y + back if mode == "sum" else (y + back) * y.dtype.type(0.5)


def _flat(nested):
    """Arrays of lists that may be nested."""
    if nested is None:
        return []
    if isinstance(nested, list | tuple):
        return [a for item in nested for a in _flat(item)]
    return [nested]


def _computing(cell, weights, activation, recurrent_activation, reset_after):
    """A layer of rnnfast with the weights of a Keras cell."""
    names = (activation,) if cell == "rnn" else (activation, recurrent_activation)
    for name in names:
        if name not in ACTIVATIONS:
            raise NotImplementedError(f"activation {name!r}; known are {sorted(ACTIVATIONS)}")
    if len(weights) not in (2, 3):
        raise ValueError(f"a cell has 2 or 3 arrays of weights, got {len(weights)}")
    weights = [*map(np.asarray, weights)]
    for name, a in zip(("kernel", "recurrent_kernel", "bias"), weights, strict=False):
        if a.dtype.kind in "bcOSU":
            raise ValueError(f"{name}: expected real numbers, got {a.dtype}")
    weights = [a if a.dtype == np.float64 else np.asarray(a, np.float32) for a in weights]
    arrays = getattr(convert, f"keras_to_torch_{cell}")(*weights)
    (I, _), (H, _) = weights[0].shape, weights[1].shape
    options = {"bias": len(weights) == 3, "batch_first": True, "dtype": weights[0].dtype}
    if cell == "gru":
        said = None if len(weights) == 2 else weights[2].ndim == 2
        if None not in (said, reset_after) and said != bool(reset_after):
            raise ValueError(f"reset_after={reset_after} does not go with a bias of shape "
                             f"{weights[2].shape}")  # fmt: skip
        options["reset_after"] = said if reset_after is None else bool(reset_after)
        if options["reset_after"] is None:
            options["reset_after"] = True
    if cell == "rnn" and activation in ("tanh", "relu"):
        layer = RNN(I, H, nonlinearity=activation, **options)
    elif cell != "rnn" and activation == "tanh" and recurrent_activation in COMPILED_GATES:
        layer = LAYERS[cell](I, H, gate=recurrent_activation, **options)
    else:
        g, f = ACTIVATIONS[activation], ACTIVATIONS[recurrent_activation]
        functions = {"rnn": (g,), "lstm": (f, g, g), "gru": (f, g)}[cell]
        layer = _general.LAYERS[cell](I, H, activations=[functions], **options)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    layer.load_state_dict({n: a for n, a in zip(names, arrays, strict=True) if a is not None})
    return layer


def from_weights(weights, cell, *, activation="tanh", recurrent_activation="sigmoid",
                 reset_after=None, num_cells=1, bidirectional=False, merge_mode="concat",
                 return_sequences=False, return_state=False, go_backwards=False,
                 zero_output_for_mask=None, stateful=False):  # fmt: skip
    """A layer from the list of arrays that the Keras layer's ``get_weights`` returned.

    Parameters
    ----------
    weights : list of arrays
        kernel (I, G H), recurrent_kernel (H, G H) and, if there is one, bias of each cell; of
        stacked cells one after the other, of a bidirectional layer the forward ones first.
    cell : {"SimpleRNN", "LSTM", "GRU"}
    activation, recurrent_activation : str
        As Keras names them. "hard_sigmoid" is Keras 3's relu6(x + 3)/6; the 0.2 x + 0.5 of older
        Keras (and the default of Keras 1) is "hard_sigmoid_onnx".
    reset_after : bool, optional
        Of a GRU; by default what the shape of the bias says, and True where there is none.
    num_cells : int
        Cells of one kind stacked in a ``keras.layers.RNN``.
    bidirectional : bool
        Whether the layer is wrapped in ``keras.layers.Bidirectional``, with this `merge_mode`.
    return_sequences, return_state, go_backwards, stateful : bool
        As in Keras.
    zero_output_for_mask : bool, optional
        By default False, and where bidirectional `return_sequences`, as Keras has it.

    Returns
    -------
    Layer or Bidirectional

    Raises
    ------
    ValueError
        If the number of arrays or a shape is wrong; the array is named.
    NotImplementedError
        For an activation that is not known.

    Examples
    --------
    >>> import numpy as np, rnnfast.keras
    >>> rng = np.random.default_rng(0)
    >>> weights = [rng.standard_normal(s) for s in ((3, 20), (5, 20), (20,))]
    >>> lstm = rnnfast.keras.from_weights(weights, "LSTM", return_sequences=True)
    >>> lstm(np.ones((2, 7, 3)), mask=np.ones((2, 7), bool)).shape
    (2, 7, 5)
    """
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {list(CELLS)}, got {cell!r}")
    n = num_cells * (2 if bidirectional else 1)
    if n < 1 or len(weights) not in (2 * n, 3 * n):
        raise ValueError(f"expected {2 * n} or {3 * n} arrays of weights, got {len(weights)}")
    each = len(weights) // n
    computing = []
    for k in range(n):
        try:
            layer = _computing(CELLS[cell], weights[k * each : (k + 1) * each], activation,
                               recurrent_activation, reset_after)  # fmt: skip
            below = computing[0].input_size if k in (0, num_cells) and computing else \
                computing[-1].hidden_size if computing else layer.input_size  # fmt: skip
            if layer.input_size != below:
                raise ValueError(f"kernel: expected {below} rows, got {layer.input_size}")
        except ValueError as error:
            raise ValueError(f"{f'cell {k}: ' if n > 1 else ''}{error}") from None
        computing.append(layer)
    if bidirectional and merge_mode not in ("concat", None) \
            and computing[-1].hidden_size != computing[num_cells - 1].hidden_size:  # fmt: skip
        raise ValueError(f"merge_mode {merge_mode!r} needs two layers of the same size, got "
                         f"{computing[num_cells - 1].hidden_size} and {computing[-1].hidden_size}")
    if zero_output_for_mask is None:
        zero_output_for_mask = bidirectional and return_sequences
    options = {"stacked": num_cells > 1, "return_sequences": return_sequences,
               "return_state": return_state, "stateful": stateful,
               "zero_output_for_mask": zero_output_for_mask}  # fmt: skip
    forward = Layer(computing[:num_cells], go_backwards=go_backwards, **options)
    if not bidirectional:
        return forward
    backward = Layer(computing[num_cells:], go_backwards=not go_backwards, **options)
    return Bidirectional(forward, backward, merge_mode)


def from_layer(layer):
    """A layer that computes what a built Keras layer computes in inference.

    Parameters
    ----------
    layer : keras.layers.SimpleRNN, LSTM, GRU, RNN or Bidirectional
        RNN with a cell, or with several in ``StackedRNNCells``, of the three kinds; Bidirectional
        around any of these.

    Returns
    -------
    Layer or Bidirectional

    Raises
    ------
    TypeError
        For any other layer or cell.
    ValueError
        If the layer has no weights yet.
    NotImplementedError
        For an activation that is not known.
    """
    kind = type(layer).__name__
    if kind == "Bidirectional":
        pair = (from_layer(layer.forward_layer), from_layer(layer.backward_layer))
        return Bidirectional(*pair, layer.merge_mode)
    if kind not in (*CELLS, "RNN"):
        raise TypeError(f"expected SimpleRNN, LSTM, GRU, RNN or Bidirectional of Keras, got {kind}")
    if not layer.built:
        raise ValueError(f"{kind} {layer.name!r} has no weights yet: call or build it first")
    stacked = type(layer.cell).__name__ == "StackedRNNCells"
    computing = [_from_cell(cell) for cell in (layer.cell.cells if stacked else [layer.cell])]
    return Layer(computing, stacked=stacked, return_sequences=layer.return_sequences,
                 return_state=layer.return_state, go_backwards=layer.go_backwards,
                 zero_output_for_mask=bool(getattr(layer, "zero_output_for_mask", False)),
                 stateful=layer.stateful)  # fmt: skip


def _from_cell(cell):
    kind = CELLS.get(type(cell).__name__.removesuffix("Cell"))
    if kind is None:
        raise TypeError("expected SimpleRNNCell, LSTMCell or GRUCell of Keras, "
                        f"got {type(cell).__name__}")  # fmt: skip
    config = cell.get_config()
    return _computing(kind, cell.get_weights(), _name(config["activation"]),
                      _name(config.get("recurrent_activation", "sigmoid")),
                      config.get("reset_after"))  # fmt: skip


def _name(activation):
    """The name of an activation in a layer's configuration; one with settings is a dict."""
    if isinstance(activation, dict):
        return activation.get("config") if isinstance(activation.get("config"), str) else \
            str(activation.get("class_name"))  # fmt: skip
    return activation or "linear"
