"""Layers from and to ONNX. Importing this module imports the library ``onnx`` (extra [onnx]).

`load` finds the RNN, LSTM and GRU nodes of a model and makes a `Node` of each, or a `Stack` of
those that are the layers of one; both are called like a layer. `export` writes a layer as a model
that ONNX Runtime runs.
"""

import os
from typing import NamedTuple

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from rnnfast import _general, convert
from rnnfast.layers import GRU, LSTM, RNN

OPSET, IR_VERSION = 17, 8  # of what `export` writes: ONNX Runtime 1.13 and younger read them

CELLS = {"RNN": "rnn", "LSTM": "lstm", "GRU": "gru"}
LAYERS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
#: Inputs by position and the activations that a node has where it names none
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
OUTPUTS = ("Y", "Y_h", "Y_c")
DEFAULTS = {"rnn": ("Tanh",), "lstm": ("Sigmoid", "Tanh", "Tanh"), "gru": ("Sigmoid", "Tanh")}
#: Known attributes and their types; `output_sequence` of opset 1 only says whether Y is wanted
ATTRIBUTES = {"activations": "STRINGS", "activation_alpha": "FLOATS", "activation_beta": "FLOATS",
              "clip": "FLOAT", "direction": "STRING", "hidden_size": "INT", "layout": "INT",
              "output_sequence": "INT"}  # fmt: skip
OWN_ATTRIBUTES = {"rnn": {}, "lstm": {"input_forget": "INT"}, "gru": {"linear_before_reset": "INT"}}
DIRECTIONS = ("forward", "reverse", "bidirectional")
RANDOM = ("Random", "Multinomial", "Bernoulli")  # what makes no constant, whatever it is made from
#: What may stand between two layers of a stack; what it does there is found out by doing it
GLUE = {"Add", "Cast", "Concat", "Div", "Dropout", "Gather", "Identity", "Mul", "ReduceMean",
        "ReduceProd", "ReduceSum", "Reshape", "Shape", "Split", "Squeeze", "Transpose",
        "Unsqueeze"}  # fmt: skip

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


class _Called:
    """What `Node` and `Stack` share."""

    def __init__(self, layer, op_type, direction, inputs, outputs, state, lengths):
        self.layer, self.op_type, self.direction = layer, op_type, direction
        self.inputs, self.outputs = inputs, outputs
        self.state, self.lengths = state, lengths

    @property
    def compiled(self):
        """Whether a compiled layer computes, or plain NumPy."""
        return not isinstance(self.layer, tuple(_general.LAYERS.values()))

    def __call__(self, x, state=None, lengths=None, *, pad_output="zero"):
        """Run it.

        Parameters
        ----------
        x : array
            (T, B, I), or (B, T, I) where the layer has ``batch_first``, or (T, I) for one sequence.
        state : array or (array, array) for an LSTM, optional
            Initial state(s), (layers * directions, B, H) in either layout; by default the model's
            own constants, else zero.
        lengths : (B,) integers, optional
            Steps of each sequence; by default the model's own constants, else T.
        pad_output : {"zero", "repeat"}
            What the output past a sequence's end is.

        Returns
        -------
        output : array
            (T, B, features), laid out like x; of both directions 2 H features, or H where a stack
            merges them in another way than one after the other.
        state : array or (array, array)
            Final state(s), (layers * directions, B, H).
        """
        state = self.state if state is None else state
        lengths = self.lengths if lengths is None else lengths
        if self.direction != "reverse":
            return self.layer(x, state, lengths, pad_output=pad_output)
        x = np.asarray(x)
        time = 1 if self.layer.batch_first and x.ndim == 3 else 0
        y, state = self.layer(_reversed(x, lengths, time), state, lengths, pad_output=pad_output)
        return _reversed(y, lengths, time, repeat=pad_output == "repeat"), state


class Node(_Called):
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
        super().__init__(layer, op_type, direction, inputs or {}, outputs or {}, state, lengths)
        self.name, self.attributes = name, attributes or {}

    @property
    def nodes(self):
        """[the node], as a `Stack` has several."""
        return [self]

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


class Stack(_Called):
    """Nodes of an ONNX model that are the layers of one, called like it; `load` makes them.

    Each node reads what the one before it gives, all features of both directions, and nothing else
    in the model does.

    Attributes
    ----------
    layer : RNN, LSTM or GRU
        What computes: one layer with the weights of all nodes, with ``num_layers``, and with the
        ``merge`` and ``batch_first`` that the model makes of them by what it has before, between
        and after the nodes. Of reverse nodes it is the layer that reads forward; the stack turns
        the sequences round.
    nodes : list of Node
        Each node by itself, from the first layer on. Their layers have the memory of `layer`'s
        weights.
    compiled, op_type, direction
        As of a `Node`; all nodes agree in them.
    inputs, outputs : dict of str to str
        The model's names of what `layer` reads and gives: "X", "sequence_lens" and "Y" where it has
        them. Those of the states are the nodes'.
    state, lengths : arrays or None
        As of a `Node`, the state (layers * directions, B, H).
    """

    def __init__(self, layer, nodes, inputs, outputs):
        first = nodes[0]
        super().__init__(layer, first.op_type, first.direction, inputs, outputs,
                         _stacked_state(nodes, layer), first.lengths)  # fmt: skip
        self.nodes = nodes

    def __repr__(self):
        return f"Stack({len(self.nodes)} {self.op_type} nodes, {self.direction}, {self.layer!r})"


def _stacked_state(nodes, layer):
    """The nodes' constant initial states as those of one layer; one that is missing is zero."""
    pairs = [n.state if layer.states == 2 or n.state is None else (n.state,) for n in nodes]
    given = [pair[0] for pair in pairs if pair is not None]
    if not given:
        return None
    zero = [np.zeros(given[0].shape, layer.dtype)] * layer.states
    joined = [np.concatenate(each) for each in zip(*(p or zero for p in pairs), strict=True)]
    return tuple(joined) if layer.states == 2 else joined[0]


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
    list of Node and Stack
        In the model's order. A `Stack` takes the place of nodes that are the layers of one: of one
        kind, with the same attributes and lengths, each reading the output of the one before it,
        which nobody else reads. Also that of a single node whose directions the model then merges
        by sum, product or mean, or that has transpositions around it which make it batch first.

    Raises
    ------
    ValueError
        If the file is no ONNX model or has no such node, or if a weight has a wrong shape, is cut
        short or is not a constant (an initialiser, or computed from constants alone); the node and
        the tensor are named.
    NotImplementedError
        If a node has an attribute or an activation that the operator's definition does not.

    Examples
    --------
    >>> import io, numpy as np, rnnfast, rnnfast.onnx
    >>> gru = rnnfast.GRU(3, 5, num_layers=2, bidirectional=True, seed=0)
    >>> file = io.BytesIO()
    >>> rnnfast.onnx.export(gru, file)
    >>> (stack,) = rnnfast.onnx.load(file.getvalue())
    >>> stack.layer
    GRU(3, 5, num_layers=2, bidirectional=True, dtype=float32)
    >>> x = np.ones((7, 2, 3), np.float32)
    >>> bool((stack(x)[0] == gru(x)[0]).all())
    True
    """
    model = _model(source)
    if len(model.functions):
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    opsets = list(model.opset_import)
    found = [_node(node, scopes, opsets) for node, scopes in _find(model.graph, [], values or {})]
    if not found:
        raise ValueError("the model has no RNN, LSTM or GRU node")
    return _stacks(found, opsets)


def _model(source):
    if isinstance(source, onnx.ModelProto):
        return source
    from google.protobuf.message import DecodeError

    in_memory = isinstance(source, bytes | bytearray | memoryview)
    name = "the bytes" if in_memory else os.fspath(source)
    try:
        model = onnx.load_model_from_string(bytes(source)) if in_memory else onnx.load(source)
    except DecodeError as error:
        raise ValueError(f"{name}: cut short or not an ONNX model ({error})") from None
    except (ValueError, onnx.checker.ValidationError) as error:  # weights in a file beside it
        raise ValueError(f"{name}: {error}") from None
    if not model.opset_import:  # it stands behind the graph: a cut there leaves no other trace
        raise ValueError(f"{name}: cut short or not an ONNX model (it names no operator set)")
    return model


class _Scope:
    """What a graph gives its nodes: initialisers by name, and which node makes or reads which
    tensor."""

    def __init__(self, graph, values):
        self.nodes, self.values = graph.node, dict(values)
        self.outputs, self.readers = {o.name for o in graph.output}, {}
        for node in graph.node:
            for name in _reads(node):
                self.readers.setdefault(name, []).append(node)
        self.initializers = {t.name: t for t in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.inputs = {i.name for i in graph.input}


def _graphs(node):
    """Graphs within a node."""
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


def _reads(node):
    """Names of tensors whose values a node reads, or that graphs within it may take from outside.

    Of what Shape reads the values do not matter: exporters ask every layer's output for T and B.
    """
    names = {*node.input} if node.op_type != "Shape" else set()
    for graph in _graphs(node):
        names.update(o.name for o in graph.output)
        names.update(*map(_reads, graph.node))
    return names - {""}


def _find(graph, outer, values):
    """(node, scopes from the innermost out) of every node wanted, within nested graphs too."""
    scopes = [_Scope(graph, values), *outer]
    for node in graph.node:
        if node.op_type in CELLS and node.domain in ("", "ai.onnx"):
            yield node, scopes
        for inner in _graphs(node):
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
                if any(_graphs(node)) or node.op_type.startswith(RANDOM):
                    return False
                if not all(visit(i) for i in node.input):
                    return False
                if node not in needed:
                    needed.append(node)
                return True
        return False

    if not visit(name):
        return None
    for tensor in initializers.values():
        try:
            numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{tensor.name!r} of shape {tuple(tensor.dims)} is cut short or "
                             f"damaged ({error})") from None  # fmt: skip
    if name in initializers:
        return numpy_helper.to_array(initializers[name])
    from onnx.reference import ReferenceEvaluator

    result = helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None)
    graph = helper.make_graph(needed, "constant", [], [result], list(initializers.values()))
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, {})[0]


class _Wanted(NamedTuple):
    """What a layer has to be to do a node's work."""

    cell: str
    input_size: int
    hidden_size: int
    options: dict
    activations: list
    clip: float | None
    weights: dict

    def like(self, other):
        """Whether both could be layers of one."""
        return self[:1] + self[2:6] == other[:1] + other[2:6]


class _Found(NamedTuple):
    """A node: as we give it, as the model has it, and where."""

    node: Node
    proto: onnx.NodeProto
    scopes: list
    wanted: _Wanted


def _node(proto, scopes, opsets):
    cell = CELLS[proto.op_type]
    me = f"{proto.op_type} {proto.name or next(filter(None, proto.output), '')!r}"
    kinds = ATTRIBUTES | OWN_ATTRIBUTES[cell]
    unknown = sorted({a.name for a in proto.attribute} - kinds.keys())
    if unknown:
        raise NotImplementedError(f"{me}: attributes {unknown} are not the operator's")
    for a in proto.attribute:
        if a.type != AttributeProto.AttributeType.Value(kinds[a.name]):
            raise ValueError(f"{me}: {a.name} must be of type {kinds[a.name]}")
    attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
    inputs = {role: name for role, name in zip(INPUTS, proto.input, strict=False) if name}
    given = {}
    for role in inputs.keys() - {"X"}:
        try:
            given[role] = _constant(inputs[role], scopes, opsets)
        except ValueError as error:
            raise ValueError(f"{me}: {role}: {error}") from None
    for role in ("W", "R", "B", "P"):
        if role in ("W", "R") and role not in inputs:
            raise ValueError(f"{me}: there is no {role}")
        if role in inputs and given[role] is None:
            raise ValueError(f"{me}: {role} ({inputs[role]!r}) is not a constant of the model")
        if role in inputs and given[role].dtype.kind in "iubcOSU":
            raise ValueError(f"{me}: {role} ({inputs[role]!r}) must hold real numbers, "
                             f"got {given[role].dtype}")  # fmt: skip
        if role in inputs and given[role].dtype != given["W"].dtype:
            raise ValueError(f"{me}: {role} ({inputs[role]!r}) must be {given['W'].dtype} as W is, "
                             f"got {given[role].dtype}")  # fmt: skip
    direction = attributes.get("direction", b"forward").decode(errors="replace")
    if direction not in DIRECTIONS:
        raise ValueError(f"{me}: direction must be one of {DIRECTIONS}, got {direction!r}")
    if attributes.get("layout", 0) not in (0, 1):
        raise ValueError(f"{me}: layout must be 0 or 1, got {attributes['layout']}")
    if attributes.get("clip", 0) < 0:
        raise ValueError(f"{me}: clip must be positive, got {attributes['clip']}")
    wanted = _wanted(me, cell, direction, attributes, given, inputs)
    layer = _layer([wanted])
    lengths = given.get("sequence_lens")
    state = _pair(given, layer.states == 2, layer, _batch(given, layer))
    if state is not None and not np.any(state):
        state = None  # a constant zero of one batch size is what any other starts with as well
    outputs = {role: name for role, name in zip(OUTPUTS, proto.output, strict=False) if name}
    node = Node(layer, proto.op_type, direction, name=proto.name, attributes=attributes,
                inputs=inputs, outputs=outputs, state=state, lengths=lengths)  # fmt: skip
    return _Found(node, proto, scopes, wanted)


def _batch(given, layer):
    """The batch size of constant initial states."""
    for role in ("initial_h", "initial_c"):
        if given.get(role) is not None:
            return given[role].shape[0 if layer.batch_first else 1]
    return 0


def _wanted(me, cell, direction, attributes, given, names):
    """What computes a node, its weights with our names."""
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
    activations = _activations(me, cell, D, attributes)
    clip = attributes.get("clip", 0.0) or None
    to_torch = getattr(convert, f"onnx_to_torch_{cell}")
    weights = {}
    for d in range(D):
        arrays = [a for a in to_torch(W, R, B, direction=d) if a is not None]
        if coupled:
            arrays = [np.delete(a, np.s_[H : 2 * H], axis=0) for a in arrays]  # f of i f g o
        stems = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
        if P is not None and cell == "lstm":
            i, o, f = np.split(P[d], 3)
            stems, arrays = [*stems[: len(arrays)], "peephole"], [*arrays, np.stack([i, f, o])]
        suffix = "_l0_reverse" if d else "_l0"
        weights |= {stem + suffix: a for stem, a in zip(stems, arrays, strict=False)}
    return _Wanted(cell, I, H, options, activations, clip, weights)


def _layer(wanted, **options):
    """One layer of all that are wanted, compiled or, where that cannot be, general."""
    first = wanted[0]
    sizes = (first.input_size, first.hidden_size, len(wanted))
    options = first.options | options
    compiled = None if first.clip else _compiled(first.cell, first.activations)
    if compiled is None:
        functions = [tuple(ACTIVATIONS[n][2](a, b) for n, a, b in one)
                     for one in first.activations]  # fmt: skip
        layer = _general.LAYERS[first.cell](*sizes, activations=functions, clip=first.clip,
                                            **options)  # fmt: skip
    else:
        layer = LAYERS[first.cell](*sizes, **options, **compiled)
    layer.load_state_dict({_in_layer(name, k): a for k, one in enumerate(wanted)
                           for name, a in one.weights.items()})  # fmt: skip
    return layer


def _in_layer(name, k):
    """The name in layer k of a parameter of layer 0."""
    return name.replace("_l0", f"_l{k}")


def _real(a):
    """float64 as it is, any other (float16, bfloat16) as float32, which is exact."""
    return a if a is None or a.dtype == np.float64 else np.asarray(a, np.float32)


def _activations(me, cell, D, attributes):
    """[(name, alpha, beta), ...] for each direction; None for what an activation does not take."""
    each = len(DEFAULTS[cell])
    names = [a.decode(errors="replace") for a in attributes.get("activations", [])]
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


# ---- stacks ------------------------------------------------------------------------------------


def _stacks(found, opsets):
    """The nodes found, those that are layers of one as a `Stack`."""
    glues = [_Glue(one, opsets) for one in found]
    above = {}
    for k, one in enumerate(found):
        for j in range(k + 1, len(found)):
            merge = _link(one, found[j], glues[k])
            if merge:
                above[k] = j, merge
                break
    taken, results = set(), []
    for k in range(len(found)):
        if k in taken:
            continue
        chain, merges = [k], set()
        while chain[-1] in above:
            j, merge = above[chain[-1]]
            if len(merges | {merge}) > 1:
                break
            merges.add(merge)
            chain.append(j)
        result, chain = _stack(found, glues, chain, merges)
        taken.update(chain)
        results.append(result)
    return results


def _link(a, b, glue):
    """How the directions of node a are merged where node b is the layer above it, else None."""
    X, own = b.node.inputs.get("X"), a.node.outputs.keys() & {*OUTPUTS}
    if a.scopes[0] is not b.scopes[0] or not a.wanted.like(b.wanted) \
            or a.node.direction != b.node.direction:  # fmt: skip
        return None
    merge, turned = glue.kinds.get(X, (None, False))
    scope = a.scopes[0]
    if merge is None or turned or not glue.alone(X) or X in scope.outputs \
            or scope.readers[X] != [b.proto]:  # fmt: skip
        return None
    if list(b.proto.input).count(X) > 1:
        return None
    width = a.node.layer.hidden_size * (a.node.layer.directions if merge == "concat" else 1)
    if b.wanted.input_size != width:
        W = b.node.inputs["W"]
        raise ValueError(f"{b.node.op_type} {b.node.name!r}: W ({W!r}) must be for {width} "
                         f"features, which {X!r} has, got {b.wanted.input_size}")  # fmt: skip
    ours, theirs = (one.node.inputs.get("sequence_lens") for one in (a, b))
    if ours != theirs and not (a.node.lengths is not None
                               and np.array_equal(a.node.lengths, b.node.lengths)):  # fmt: skip
        return None
    # An initial state made from what the layer below gives is no layer's of a stack
    from_below = {a.node.outputs[role] for role in own}
    states = [b.node.inputs.get(role) for role in ("initial_h", "initial_c")]
    if any(name and _depends(name, from_below, scope) for name in states):
        return None
    batch = {np.shape(n.state)[-2] for n in (a.node, b.node) if n.state is not None}
    return merge if len(batch) < 2 else None


def _depends(name, sources, scope):
    """Whether a tensor is made from one of these."""
    todo, seen = [name], set()
    while todo:
        name = todo.pop()
        if name in sources:
            return True
        if name not in seen and name in scope.makers:
            todo.extend(_reads(scope.makers[name]))
        seen.add(name)
    return False


def _stack(found, glues, chain, merges):
    """(what stands for these nodes, those of them it stands for)."""
    while True:
        first, last, glue = found[chain[0]], found[chain[-1]], glues[chain[-1]]
        scope = last.scopes[0]
        merge = next(iter(merges), None) or glue.merge
        Y = last.node.outputs.get("Y")
        # After a merge that loses something the model must do it to the last output too
        if merge == "concat" or merge == glue.merge or not (Y in scope.readers
                                                            or Y in scope.outputs):  # fmt: skip
            break
        chain = chain[:-1]
    X, batch_first = first.node.inputs.get("X"), first.wanted.options["batch_first"]
    ends = {turned: name for name, (m, turned) in reversed(glue.kinds.items()) if m == merge}
    before = scope.makers.get(X)
    if not batch_first and True in ends and before is not None and _swaps(before):
        X, batch_first = before.input[0], True
    if len(chain) == 1 and merge == "concat" and batch_first == first.wanted.options["batch_first"]:
        return first.node, chain
    options = {"batch_first": batch_first} | ({"merge": merge} if merge != "concat" else {})
    layer = _layer([found[k].wanted for k in chain], **options)
    nodes = [found[k].node for k in chain]
    for k, node in enumerate(nodes):
        for which in ("params", "grads"):
            whole, part = getattr(layer, which), getattr(node.layer, which)
            part.update({name: whole[_in_layer(name, k)] for name in part})
    inputs = {"X": X} | {role: name for role, name in first.node.inputs.items()
                         if role == "sequence_lens"}  # fmt: skip
    turned = batch_first != first.wanted.options["batch_first"]
    return Stack(layer, nodes, inputs, {"Y": ends[turned]} if turned in ends else {}), chain


def _swaps(node):
    """Whether a node turns batch first into time first."""
    perm = [list(a.ints) for a in node.attribute if a.name == "perm"]
    return node.op_type == "Transpose" and perm == [[1, 0, 2]]


class _Glue:
    """What the model makes of a node's Y with `GLUE`: found by doing it to numbers.

    Attributes
    ----------
    kinds : dict of str to (str, bool)
        Tensors that are a layer's output, with the directions merged so, and whether batch and time
        have changed places.
    merge : str
        How the directions are merged, where nobody sees them before that, else "concat".
    """

    def __init__(self, found, opsets):
        self.scope, self.Y = found.scopes[0], found.node.outputs.get("Y")
        self.kinds, self.merge = {}, "concat"
        if self.Y is None:
            return
        self.ways = {}  # name of a tensor made from Y -> the node that makes it
        constants = {}

        def constant(name):
            if name not in constants:
                constants[name] = _constant(name, found.scopes, opsets)
            return constants[name]

        # What holds for both of these sizes holds for all: see GLUE
        kinds = [self._kinds(found, sizes, opsets, constant) for sizes in ((5, 3), (4, 7))]
        self.kinds = {name: kind for name, kind in kinds[0].items() if kinds[1].get(name) == kind}
        merged = {kind[0] for name, kind in self.kinds.items() if self.alone(name)}
        if len(merged) == 1:
            self.merge = merged.pop()

    def _kinds(self, found, sizes, opsets, constant):
        from onnx.reference import ReferenceEvaluator

        layer = found.node.layer
        D, H, axis = layer.directions, layer.hidden_size, 2 if layer.batch_first else 1
        shape = (*sizes[:axis], D, *sizes[axis:], H)
        probe = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape) - 50
        probe = probe.astype(layer.dtype)
        wide = np.moveaxis(probe, axis, 2).reshape(*sizes, D * H)
        merged = {"concat": wide, "sum": probe.sum(axis), "mul": probe.prod(axis),
                  "average": probe.mean(axis)}  # fmt: skip
        values = {self.Y: probe}
        versions = {o.domain.removeprefix("ai.onnx"): o.version for o in opsets}
        for node in self.scope.nodes:
            known = [name for name in node.input if name in values]
            if node.op_type not in GLUE or node.domain not in ("", "ai.onnx") or not known:
                continue
            feeds = {name: values[name] if name in values else constant(name)
                     for name in node.input if name}  # fmt: skip
            if any(a is None for a in feeds.values()):
                continue
            try:
                results = ReferenceEvaluator(node, opsets=versions).run(None, feeds)
            except Exception:  # whatever it does not like: it is glue for another shape
                continue
            for name, value in zip(node.output, results, strict=False):
                values[name], self.ways[name] = value, node
        kinds = {}
        for name, value in values.items():
            for merge, want in merged.items():
                for turned in (False, True):
                    if np.array_equal(value, want.swapaxes(0, 1) if turned else want):
                        kinds.setdefault(name, (merge, turned))
        return kinds

    def alone(self, name):
        """Whether Y is read for this tensor's sake only, and so what is made on the way."""
        nodes, todo, passed = [], [name], set()
        while todo:
            node = self.ways.get(todo.pop())
            if node is not None and node not in nodes:
                nodes.append(node)
                todo.extend(i for i in node.input if i in self.ways or i == self.Y)
                passed.update(i for i in node.input if i in self.ways or i == self.Y)
        return bool(nodes) and not passed & self.scope.outputs and all(
            reader in nodes for i in passed for reader in self.scope.readers.get(i, ()))


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
