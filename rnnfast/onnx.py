"""Layers from and to ONNX. Importing this module imports the library ``onnx`` (extra [onnx]).

`load` finds the RNN, LSTM and GRU nodes of a model and makes a `Node` of each, which is called like
a layer; `export` writes a layer as a model that ONNX Runtime runs.
"""

import os

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rnnfast import _general, convert
from rnnfast.layers import GRU, LSTM, RNN

OPSET, IR_VERSION = 17, 8  # of what `export` writes: ONNX Runtime 1.13 and younger read them

CELLS = {"RNN": "rnn", "LSTM": "lstm", "GRU": "gru"}
LAYERS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
#: Inputs by position and the activations that a node has where it names none
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
OUTPUTS = ("Y", "Y_h", "Y_c")
DEFAULTS = {"rnn": ("Tanh",), "lstm": ("Sigmoid", "Tanh", "Tanh"), "gru": ("Sigmoid", "Tanh")}
#: Known attributes; `output_sequence` of opset 1 only says whether Y is wanted
ATTRIBUTES = {"activations", "activation_alpha", "activation_beta", "clip", "direction",
              "hidden_size", "layout", "output_sequence"}  # fmt: skip
OWN_ATTRIBUTES = {"rnn": set(), "lstm": {"input_forget"}, "gru": {"linear_before_reset"}}
DIRECTIONS = ("forward", "reverse", "bidirectional")
RANDOM = ("Random", "Multinomial", "Bernoulli")  # what makes no constant, whatever it is made from

#: name in lower case -> (default alpha, default beta, function of them); None: takes no such value,
#: NaN: has no default
NEEDED = float("nan")
ACTIVATIONS = {
    "relu": (None, None, lambda a, b: _general.relu),
    "tanh": (None, None, lambda a, b: np.tanh),
    "sigmoid": (None, None, lambda a, b: _general.sigmoid),
    "affine": (1.0, 0.0, lambda a, b: lambda x: a * x + b),
    "leakyrelu": (0.01, None, lambda a, b: _general.leaky_relu(a)),
    "thresholdedrelu": (1.0, None, lambda a, b: lambda x: np.where(x >= a, x, x.dtype.type(0))),
    "scaledtanh": (NEEDED, NEEDED, lambda a, b: lambda x: a * np.tanh(b * x)),
    "hardsigmoid": (0.2, 0.5, _general.hard_sigmoid),
    "elu": (1.0, None, lambda a, b: _general.elu(a)),
    "softsign": (None, None, lambda a, b: _general.softsign),
    "softplus": (None, None, lambda a, b: _general.softplus),
}
#: Activations of gates that the compiled layers have
GATES = {("sigmoid", None, None): "sigmoid", ("hardsigmoid", 0.2, 0.5): "hard_sigmoid_onnx",
         ("hardsigmoid", float(np.float32(0.2)), 0.5): "hard_sigmoid_onnx",
         ("hardsigmoid", float(np.float32(1 / 6)), 0.5): "hard_sigmoid"}  # fmt: skip


class Node:
    """An RNN, LSTM or GRU node of an ONNX model, called like a layer; `load` makes them.

    Attributes
    ----------
    layer : RNN, LSTM or GRU
        What computes: one layer with the node's weights, bidirectional where the node is, with
        ``batch_first`` where the node's layout is 1. Of a reverse node it is the layer that reads
        forward; the node turns the sequences round. Where the node asks for activations, a clip or
        a pair of directions that the compiled layers do not have, it is a slow one in plain NumPy
        without a backward pass (`compiled` is then False). A clip acts on what f and g are applied
        to, not on what h is, as in ONNX Runtime.
    compiled : bool
    op_type, name : str
        As in the model; `name` may be empty.
    direction : {"forward", "reverse", "bidirectional"}
    attributes : dict
        The node's attributes as they were written.
    inputs, outputs : dict of str to str
        The model's name of each tensor that the node reads or writes, by its name in the operator's
        definition: ``node.inputs["X"]``.
    state, lengths : arrays or None
        Initial state(s) and lengths where the model has them as constants: what a call takes where
        it is given none (None too where the constant state is zero). What else `inputs` has of
        "initial_h", "initial_c" and "sequence_lens" the model computes while it runs: they are for
        the caller to pass.
    """

    def __init__(self, layer, op_type, direction, *, name="", attributes=None, inputs=None,
                 outputs=None, state=None, lengths=None):  # fmt: skip
        self.layer, self.op_type, self.direction, self.name = layer, op_type, direction, name
        self.attributes, self.inputs, self.outputs = attributes or {}, inputs or {}, outputs or {}
        self.state, self.lengths = state, lengths

    @property
    def compiled(self):
        """Whether a compiled layer computes, or plain NumPy."""
        return not isinstance(self.layer, tuple(_general.LAYERS.values()))

    def __call__(self, x, state=None, lengths=None, *, pad_output="zero"):
        """Run the node.

        Parameters
        ----------
        x : array
            (T, B, I), or (B, T, I) where the node's layout is 1, or (T, I) for one sequence.
        state : array or (array, array) for an LSTM, optional
            Initial state(s), (directions, B, H) in either layout; by default the node's own
            constants, else zero.
        lengths : (B,) integers, optional
            Steps of each sequence; by default the node's own constants, else T.
        pad_output : {"zero", "repeat"}
            What the output past a sequence's end is.

        Returns
        -------
        output : array
            (T, B, directions * H), laid out like x.
        state : array or (array, array)
            Final state(s), (directions, B, H).
        """
        state = self.state if state is None else state
        lengths = self.lengths if lengths is None else lengths
        if self.direction != "reverse":
            return self.layer(x, state, lengths, pad_output=pad_output)
        x = np.asarray(x)
        time = 1 if self.layer.batch_first and x.ndim == 3 else 0
        y, state = self.layer(_reversed(x, lengths, time), state, lengths, pad_output=pad_output)
        return _reversed(y, lengths, time, repeat=pad_output == "repeat"), state

    def run(self, X, sequence_lens=None, initial_h=None, initial_c=None):
        """Run the node with ONNX's names, shapes and layout.

        Parameters
        ----------
        X, sequence_lens, initial_h, initial_c : arrays
            As the operator defines them for the node's layout; optional but X.

        Returns
        -------
        Y, Y_h : arrays
        Y_c : array
            Of an LSTM only.
        """
        batch_first, pair = self.layer.batch_first, self.layer.states == 2
        given = {"initial_h": initial_h, "initial_c": initial_c}
        state = _pair(given, pair, self.layer, np.shape(X)[0 if batch_first else 1])
        y, state = self(X, state, sequence_lens)
        D, H = self.layer.directions, self.layer.hidden_size
        y = y.reshape(*y.shape[:2], D, H)
        states = state if pair else (state,)
        if batch_first:
            return y, *(s.swapaxes(0, 1) for s in states)
        return y.swapaxes(1, 2), *states

    def __repr__(self):
        return f"Node({self.op_type} {self.name!r}, {self.direction}, {self.layer!r})"


def _pair(given, pair, layer, B):
    """The state that initial_h and initial_c are, or None; one that is missing is zero."""
    names = ("initial_h", "initial_c")[: 2 if pair else 1]
    if all(given.get(name) is None for name in names):
        return None
    zero = np.zeros((layer.directions, B, layer.hidden_size), layer.dtype)
    states = []
    for name in names:
        a = zero if given.get(name) is None else np.asarray(given[name], layer.dtype)
        layout = layer.batch_first and a is not zero
        states.append(a.swapaxes(0, 1) if layout else a)
    return tuple(states) if pair else states[0]


def _reversed(x, lengths, time, repeat=False):
    """Each sequence's own steps in reverse order; what is past its end stays there, or is what its
    last step now is."""
    if lengths is None:
        return np.flip(x, time)
    if x.ndim == 2:
        return _reversed(x[:, None], lengths, 0, repeat)[:, 0]
    T = x.shape[time]
    lengths = np.asarray(lengths)
    if lengths.shape != x.shape[1 - time : 2 - time]:
        raise ValueError(f"lengths must have shape {x.shape[1 - time : 2 - time]}, "
                         f"got {lengths.shape}")  # fmt: skip
    t = np.arange(T)[:, None]
    index = np.where(t < lengths, lengths - 1 - t, 0 if repeat else t)[:, :, None]
    return np.take_along_axis(x, index.swapaxes(0, 1) if time else index, time)


# ---- reading -----------------------------------------------------------------------------------


def load(source, values=None):
    """The RNN, LSTM and GRU nodes of an ONNX model as layers.

    Parameters
    ----------
    source : str, path-like, bytes or onnx.ModelProto
        The model. Nodes within branches and loops, and within the model's own functions, are found
        as well.
    values : mapping of str to array, optional
        Values of graph inputs that are to count as constants, for models that get their weights
        from outside.

    Returns
    -------
    list of Node
        In the model's order.

    Raises
    ------
    ValueError
        If the file is no ONNX model or has no such node, or if a weight has a wrong shape or is not
        a constant (an initialiser, or computed from constants alone); the node and the tensor are
        named.
    NotImplementedError
        If a node has an attribute or an activation that the operator's definition does not.

    Examples
    --------
    >>> import io, numpy as np, rnnfast, rnnfast.onnx
    >>> gru = rnnfast.GRU(3, 5, seed=0)
    >>> file = io.BytesIO()
    >>> rnnfast.onnx.export(gru, file)
    >>> (node,) = rnnfast.onnx.load(file.getvalue())
    >>> x = np.ones((7, 2, 3), np.float32)
    >>> bool((node(x)[0] == gru(x)[0]).all())
    True
    """
    model = _model(source)
    if len(model.functions):
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    opsets = list(model.opset_import)
    nodes = [_node(node, scopes, opsets) for node, scopes in _find(model.graph, [], values or {})]
    if not nodes:
        raise ValueError("the model has no RNN, LSTM or GRU node")
    return nodes


def _model(source):
    if isinstance(source, onnx.ModelProto):
        return source
    from google.protobuf.message import DecodeError

    try:
        if isinstance(source, bytes | bytearray | memoryview):
            return onnx.load_model_from_string(bytes(source))
        return onnx.load(source)
    except DecodeError as error:
        name = "the bytes" if isinstance(source, bytes | bytearray | memoryview) else \
            os.fspath(source)  # fmt: skip
        raise ValueError(f"{name}: cut short or not an ONNX model ({error})") from None


class _Scope:
    """What a graph gives its nodes: initialisers by name, and which node makes which tensor."""

    def __init__(self, graph, values):
        self.values = dict(values)
        self.initializers = {t.name: t for t in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.inputs = {i.name for i in graph.input}


def _find(graph, outer, values):
    """(node, scopes from the innermost out) of every node wanted, within nested graphs too."""
    scopes = [_Scope(graph, values), *outer]
    for node in graph.node:
        if node.op_type in CELLS and node.domain in ("", "ai.onnx"):
            yield node, scopes
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _find(inner, scopes, {})


def _constant(name, scopes, opsets):
    """The value of a tensor that depends on constants alone, or None."""
    needed, initializers, visited = [], {}, set()

    def visit(name):
        if not name or name in visited:
            return True
        visited.add(name)
        for scope in scopes:
            if name in scope.values:
                initializers[name] = numpy_helper.from_array(np.asarray(scope.values[name]), name)
                return True
            if name in scope.initializers:
                initializers[name] = scope.initializers[name]
                return True
            if name in scope.inputs:
                return False
            if name in scope.makers:
                node = scope.makers[name]
                nested = any(a.HasField("g") or a.graphs for a in node.attribute)
                if nested or node.op_type.startswith(RANDOM):
                    return False
                if not all(visit(i) for i in node.input):
                    return False
                if node not in needed:
                    needed.append(node)
                return True
        return False

    if not visit(name):
        return None
    if name in initializers:
        return numpy_helper.to_array(initializers[name])
    from onnx.reference import ReferenceEvaluator

    result = helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None)
    graph = helper.make_graph(needed, "constant", [], [result], list(initializers.values()))
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, {})[0]


def _node(proto, scopes, opsets):
    cell = CELLS[proto.op_type]
    me = f"{proto.op_type} {proto.name or next(filter(None, proto.output), '')!r}"
    attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
    unknown = sorted(attributes.keys() - ATTRIBUTES - OWN_ATTRIBUTES[cell])
    if unknown:
        raise NotImplementedError(f"{me}: attributes {unknown} are not the operator's")
    inputs = {role: name for role, name in zip(INPUTS, proto.input, strict=False) if name}
    given = {role: _constant(name, scopes, opsets) for role, name in inputs.items() if role != "X"}
    for role in ("W", "R", "B", "P"):
        if role in ("W", "R") and role not in inputs:
            raise ValueError(f"{me}: there is no {role}")
        if role in inputs and given[role] is None:
            raise ValueError(f"{me}: {role} ({inputs[role]!r}) is not a constant of the model")
    direction = attributes.get("direction", b"forward").decode()
    if direction not in DIRECTIONS:
        raise ValueError(f"{me}: direction must be one of {DIRECTIONS}, got {direction!r}")
    layer = _layer(me, cell, direction, attributes, given, inputs)
    lengths = given.get("sequence_lens")
    state = _pair(given, layer.states == 2, layer, _batch(given, layer))
    if state is not None and not np.any(state):
        state = None  # a constant zero of one batch size is what any other starts with as well
    outputs = {role: name for role, name in zip(OUTPUTS, proto.output, strict=False) if name}
    return Node(layer, proto.op_type, direction, name=proto.name, attributes=attributes,
                inputs=inputs, outputs=outputs, state=state, lengths=lengths)  # fmt: skip


def _batch(given, layer):
    """The batch size of constant initial states."""
    for role in ("initial_h", "initial_c"):
        if given.get(role) is not None:
            return given[role].shape[0 if layer.batch_first else 1]
    return 0


def _layer(me, cell, direction, attributes, given, names):
    """A layer with a node's weights, compiled or, where that cannot be, general."""
    W, R, B, P = (_real(given.get(role)) for role in ("W", "R", "B", "P"))
    D = 2 if direction == "bidirectional" else 1
    I, H = ((0, *a.shape)[-1] for a in (W, R))
    H = attributes.get("hidden_size", H)
    rows = len(convert.ORDER[cell]["onnx"]) * H
    wanted = {"W": (D, rows, I), "R": (D, rows, H), "B": (D, 2 * rows), "P": (D, 3 * H)}
    for (role, shape), a in zip(wanted.items(), (W, R, B, P), strict=True):
        if a is not None and a.shape != shape:
            raise ValueError(f"{me}: {role} ({names[role]!r}) must have shape {shape}, "
                             f"got {a.shape}")  # fmt: skip
    options = {"bias": B is not None, "batch_first": bool(attributes.get("layout", 0)),
               "bidirectional": D == 2, "dtype": W.dtype}  # fmt: skip
    coupled = bool(attributes.get("input_forget", 0))
    if cell == "lstm":
        options |= {"peephole": P is not None, "coupled": coupled}
    if cell == "gru":
        options["reset_after"] = bool(attributes.get("linear_before_reset", 0))
    chosen = _activations(me, cell, D, attributes)
    clip = attributes.get("clip", 0.0) or None
    compiled = None if clip else _compiled(cell, chosen)
    if compiled is None:
        functions = [tuple(ACTIVATIONS[n][2](a, b) for n, a, b in one) for one in chosen]
        layer = _general.LAYERS[cell](I, H, activations=functions, clip=clip, **options)
    else:
        layer = LAYERS[cell](I, H, **options, **compiled)
    to_torch = getattr(convert, f"onnx_to_torch_{cell}")
    state_dict = {}
    for d in range(D):
        arrays = [a for a in to_torch(W, R, B, direction=d) if a is not None]
        if coupled:
            arrays = [np.delete(a, np.s_[H : 2 * H], axis=0) for a in arrays]  # f of i f g o
        stems = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
        if P is not None and cell == "lstm":
            i, o, f = np.split(P[d], 3)
            stems, arrays = [*stems[: len(arrays)], "peephole"], [*arrays, np.stack([i, f, o])]
        suffix = "_l0_reverse" if d else "_l0"
        state_dict |= {stem + suffix: a for stem, a in zip(stems, arrays, strict=False)}
    layer.load_state_dict(state_dict)
    return layer


def _real(a):
    """float64 as it is, any other (float16, bfloat16) as float32, which is exact."""
    return a if a is None or a.dtype == np.float64 else np.asarray(a, np.float32)


def _activations(me, cell, D, attributes):
    """[(name, alpha, beta), ...] for each direction; None for what an activation does not take."""
    each = len(DEFAULTS[cell])
    names = [a.decode() for a in attributes.get("activations", [])]
    if not names:
        names = [*DEFAULTS[cell]] * D
    if len(names) != each * D:
        raise ValueError(f"{me}: expected {each * D} activations, got {names}")
    alphas, betas = (list(attributes.get(f"activation_{k}", [])) for k in ("alpha", "beta"))
    chosen = []
    for name in names:
        if name.lower() not in ACTIVATIONS:
            raise NotImplementedError(f"{me}: activation {name!r} is not in the operator's "
                                      "definition")  # fmt: skip
        values = []
        # Values are consumed in order, by the activations that take one
        for queue, default in zip((alphas, betas), ACTIVATIONS[name.lower()][:2], strict=True):
            values.append(None if default is None else queue.pop(0) if queue else default)
        if NEEDED in values or any(v != v for v in values if v is not None):
            raise ValueError(f"{me}: {name} needs activation_alpha and activation_beta")
        chosen.append((name.lower(), *values))
    return [chosen[d * each : (d + 1) * each] for d in range(D)]


def _compiled(cell, chosen):
    """Options of the compiled layer with these activations, or None."""
    if any(one != chosen[0] for one in chosen):
        return None
    first, *rest = chosen[0]
    if cell == "rnn":
        return {"nonlinearity": first[0]} if first[0] in ("tanh", "relu") else None
    gate = GATES.get(first)
    return {"gate": gate} if gate and all(r[0] == "tanh" for r in rest) else None


# ---- writing -----------------------------------------------------------------------------------


def export(layer, path, *, lengths=False):
    """Write a layer as an ONNX model.

    The model's inputs are ``x``, ``h0`` (and ``c0`` of an LSTM), its outputs ``y``, ``hn`` (and
    ``cn``), in the shapes that the layer itself takes and gives; T and B are free, so that one
    model serves batches, whole sequences and single steps with the state carried along.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Any number of layers and directions, any merge, peepholes, coupled gates, hard sigmoids.
        Dropout, which acts in training only, is left out.
    path : str, path-like or binary file
    lengths : bool
        Give the model an input ``lengths``, (B,) int32. (ONNX Runtime's final state of a sequence
        of length 0 is 0; rnnfast's is its initial state.)

    Raises
    ------
    NotImplementedError
        For what ONNX's operators do not have: projection, layer norm, a clipped cell.

    Notes
    -----
    float64 models are valid, but ONNX Runtime has only float32 kernels for the CPU.
    """
    kind = next((op for op, c in CELLS.items() if c == getattr(layer, "cell", "")), None)
    if kind is None:
        raise TypeError(f"expected an RNN, LSTM or GRU, got {type(layer).__name__}")
    _check_exportable(layer)
    graph = _Graph(layer, kind, lengths)
    model = helper.make_model(graph.build(), producer_name="rnnfast", ir_version=IR_VERSION,
                              opset_imports=[helper.make_opsetid("", OPSET)])  # fmt: skip
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _check_exportable(layer):
    me = type(layer).__name__
    general = isinstance(layer, tuple(_general.LAYERS.values()))
    for name, has in (("proj_size", layer.proj_size), ("layer_norm", layer.layer_norm),
                      ("cell_clip", layer.options.get("clip", 0) > 0),
                      ("an activation", general)):  # fmt: skip
        if has:
            raise NotImplementedError(f"{me}: {name} cannot be written to ONNX")


class _Graph:
    """The nodes of a layer, one RNN, LSTM or GRU node for each of its layers."""

    def __init__(self, layer, kind, lengths):
        self.layer, self.kind, self.lengths = layer, kind, lengths
        self.nodes, self.initializers = [], {}
        self.D, self.H = layer.directions, layer.hidden_size

    def constant(self, name, value):
        self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def add(self, op, inputs, output, **attributes):
        outputs = [output] if isinstance(output, str) else output
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0] + "_node",
                                           **attributes))  # fmt: skip
        return output

    def build(self):
        layer, L = self.layer, self.layer.num_layers
        real = helper.np_dtype_to_tensor_dtype(layer.dtype)
        time = ["B", "T"] if layer.batch_first else ["T", "B"]
        states = ("h", "c")[: layer.states]
        x = self.add("Transpose", ["x"], "x_tbi", perm=[1, 0, 2]) if layer.batch_first else "x"
        parts = {s: self.split(f"{s}0", s) for s in states}
        final = {s: [] for s in states}
        lengths = "lengths" if self.lengths else ""
        for k in range(L):
            new = [f"{s}n_l{k}" for s in states]
            self.add(self.kind, [x, *self.weights(k, lengths, [parts[s][k] for s in states])],
                     [f"Y_l{k}", *new], hidden_size=self.H, **self.attributes())  # fmt: skip
            for s, name in zip(states, new, strict=True):
                final[s].append(name)
            y = "y" if k == L - 1 and not layer.batch_first else f"y_l{k}"
            x = self.merge(f"Y_l{k}", y)
        if layer.batch_first:
            self.add("Transpose", [x], "y", perm=[1, 0, 2])
        for s in states:
            self.add("Concat", final[s], f"{s}n", axis=0)

        def value(name, shape, kind=real):
            return helper.make_tensor_value_info(name, kind, shape)

        state_shape = [L * self.D, "B", self.H]
        inputs = [value("x", [*time, layer.input_size])]
        inputs += [value(f"{s}0", state_shape) for s in states]
        if self.lengths:
            inputs.append(value("lengths", ["B"], TensorProto.INT32))
        outputs = [value("y", [*time, layer.output_size])]
        outputs += [value(f"{s}n", state_shape) for s in states]
        return helper.make_graph(self.nodes, type(layer).__name__, inputs, outputs,
                                 list(self.initializers.values()))  # fmt: skip

    def split(self, name, s):
        """Names of each layer's part of a state."""
        L = self.layer.num_layers
        if L == 1:
            return [name]
        sizes = self.constant(f"{name}_sizes", np.full(L, self.D, np.int64))
        return self.add("Split", [name, sizes], [f"{s}0_l{k}" for k in range(L)], axis=0)

    def weights(self, k, lengths, states):
        """Names of all inputs but X."""
        cell, layer = self.layer.cell, self.layer
        coupled = layer.options.get("coupled", False)
        each = []
        for d in range(self.D):
            p = {key: layer.params[name] for key, name in layer._names(k, d).items()}
            arrays = [p.get(key) for key in ("w_ih", "w_hh", "b_ih", "b_hh")]
            if coupled:  # i g o -> i f g o; f is not looked at
                arrays = [a if a is None else np.concatenate([a[: self.H], a]) for a in arrays]
            converted = getattr(convert, f"torch_to_onnx_{cell}")(*arrays)
            P = p["peephole"][[0, 2, 1]].reshape(1, -1) if "peephole" in p else None
            each.append([*converted, P])
        W, R, B, P = (
            "" if pair[0] is None else self.constant(f"{role}_l{k}", np.concatenate(pair))
            for role, pair in zip("WRBP", zip(*each, strict=True), strict=True)
        )
        return [W, R, B, lengths, *states, *([P] if P else [])]

    def attributes(self):
        layer, D = self.layer, self.D
        found = {"direction": "bidirectional" if D == 2 else "forward"}
        if layer.cell == "rnn":
            found["activations"] = [layer.options["nonlinearity"].capitalize()] * D
            return found
        gate = layer.options["gate"]
        if gate != "sigmoid":
            rest = ["Tanh"] * (2 if layer.cell == "lstm" else 1)
            found["activations"] = ["HardSigmoid", *rest] * D
            found["activation_alpha"] = [0.2 if gate == "hard_sigmoid_onnx" else 1 / 6] * D
            found["activation_beta"] = [0.5] * D
        if layer.cell == "gru":
            found["linear_before_reset"] = int(layer.options["reset_after"])
        elif layer.options["coupled"]:
            found["input_forget"] = 1
        return found

    def merge(self, Y, y):
        """(T, D, B, H) as what the next layer reads."""
        merge = self.layer.merge if self.D == 2 else "concat"
        if merge == "concat":
            turned = self.add("Transpose", [Y], f"{Y}_t", perm=[0, 2, 1, 3])
            return self.add("Reshape", [turned, self.constant("flat", (0, 0, -1))], y)
        if merge == "sum":
            return self.add("ReduceSum", [Y, self.constant("axis", (1,))], y, keepdims=0)
        op = "ReduceProd" if merge == "mul" else "ReduceMean"
        return self.add(op, [Y], y, axes=[1], keepdims=0)
