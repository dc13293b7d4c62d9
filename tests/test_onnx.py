"""ONNX nodes as layers, against ONNX's own node tests, ONNX Runtime and the reference evaluator;
layers as ONNX models."""

import importlib
import io
import itertools
import re
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnnfast

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import rnnfast.onnx as bridge  # noqa: E402

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
OPS = list(GATES)
KINDS = {"RNN": rnnfast.RNN, "LSTM": rnnfast.LSTM, "GRU": rnnfast.GRU}
T, B, I, H = 6, 3, 2, 4


def info(name, array):
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * array.ndim)


def model_of(nodes, feeds, outputs, initializers, opset=14):
    """A checked model with these nodes, inputs, output names and constants."""
    graph = helper.make_graph(
        nodes, "g", [info(n, a) for n, a in feeds.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in initializers.items()])  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def weights(op, D=1, seed=0, P=False, dtype=np.float32):
    rng, rows = np.random.default_rng(seed), GATES[op] * H
    shapes = {"W": (D, rows, I), "R": (D, rows, H), "B": (D, 2 * rows)}
    if P:
        shapes["P"] = (D, 3 * H)
    return {k: rng.uniform(-0.7, 0.7, s).astype(dtype) for k, s in shapes.items()}


def one_node(op, D=1, seed=0, lengths=None, state=False, P=False, **attributes):
    """(model, what to feed it): one node with random constant weights."""
    rng = np.random.default_rng([seed, 1])
    constants = weights(op, D, seed, P)
    swap = attributes.get("layout", 0)

    def random(*shape):
        a = rng.standard_normal(shape).astype(np.float32)
        return np.ascontiguousarray(a.swapaxes(0, 1)) if swap else a

    feeds = {"X": random(T, B, I)}
    if lengths is not None:
        feeds["sequence_lens"] = np.array(lengths, np.int32)
    if state:
        feeds["initial_h"] = random(D, B, H)
        if op == "LSTM":
            feeds["initial_c"] = random(D, B, H)
    known = feeds.keys() | constants.keys()
    names = [n if n in known else "" for n in bridge.INPUTS[: 8 if op == "LSTM" else 6]]
    outputs = list(bridge.OUTPUTS[: 3 if op == "LSTM" else 2])
    if D == 2:
        attributes["direction"] = "bidirectional"
    node = helper.make_node(op, names, outputs, name="the node", hidden_size=H, **attributes)
    return model_of([node], feeds, outputs, constants), feeds


def run(model, feeds):
    session = runtime.InferenceSession(model.SerializeToString(),
                                       providers=["CPUExecutionProvider"])  # fmt: skip
    return session.run(None, feeds)


def close(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


# ---- the node tests of ONNX itself -------------------------------------------------------------


def backend_cases():
    """The library makes its node tests when these modules are imported; it need not carry data."""
    for op in OPS:
        importlib.import_module(f"onnx.backend.test.case.node.{op.lower()}")
    made = importlib.import_module("onnx.backend.test.case.node")._NodeTestCases
    return [case for case in made if case.model.graph.node[0].op_type in OPS]


CASES = backend_cases()


def test_there_are_backend_cases_for_every_operator():
    found = [case.model.graph.node[0].op_type for case in CASES]
    assert all(found.count(op) >= 4 for op in OPS), found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_backend(case):
    names = [i.name for i in case.model.graph.input]
    for inputs, outputs in case.data_sets:
        feeds = dict(zip(names, inputs, strict=True))
        X = feeds.pop("X")
        (node,) = bridge.load(case.model.SerializeToString(), feeds)
        got = dict(zip(bridge.OUTPUTS, node.run(X), strict=False))
        roles = {name: role for role, name in node.outputs.items()}
        for value, want in zip(case.model.graph.output, outputs, strict=True):
            assert got[roles[value.name]].shape == want.shape
            np.testing.assert_allclose(got[roles[value.name]], want, rtol=1e-3, atol=1e-7)


# ---- attributes, against ONNX Runtime ----------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [None, [T, 1, 4]])
@pytest.mark.parametrize("state", [False, True])
def test_directions_lengths_states(op, direction, lengths, state):
    D = 2 if direction == "bidirectional" else 1
    model, feeds = one_node(op, D, lengths=lengths, state=state, direction=direction)
    (node,) = bridge.load(model.SerializeToString())
    assert node.compiled and node.direction == direction and node.name == "the node"
    want = run(model, feeds)
    close(node.run(**feeds), want)
    # The same called as a layer
    first = feeds.get("initial_h")
    if op == "LSTM" and state:
        first = first, feeds["initial_c"]
    y, final = node(feeds["X"], first, lengths)
    close([y], [want[0].swapaxes(1, 2).reshape(T, B, D * H)])
    close(final if op == "LSTM" else [final], want[1:])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_layout(op, direction):
    D = 2 if direction == "bidirectional" else 1
    turned, feeds = one_node(op, D, state=True, layout=1, direction=direction)
    plain, _ = one_node(op, D, state=True, direction=direction)
    (node,), (other,) = bridge.load(turned), bridge.load(plain)
    got = node.run(**feeds)
    want = other.run(**{k: a.swapaxes(0, 1) for k, a in feeds.items()})
    close(got, [want[0].transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in want[1:])])
    y, final = node(feeds["X"])
    assert y.shape == (B, T, D * H) and np.shape(final)[-3:] == (D, B, H)


ACTIVATIONS = {"Relu": 0, "Tanh": 0, "Sigmoid": 0, "Affine": 2, "LeakyRelu": 1,
               "ThresholdedRelu": 1, "ScaledTanh": 2, "HardSigmoid": 2, "Elu": 1, "Softsign": 0,
               "Softplus": 0}  # fmt: skip
PLACES = [("RNN", 0), ("LSTM", 0), ("LSTM", 1), ("LSTM", 2), ("GRU", 0), ("GRU", 1)]


def test_the_list_of_activations_is_the_operators():
    text = onnx.defs.get_schema("LSTM").doc
    assert {name for name in ACTIVATIONS if f"* {name}(x)" in text} == set(ACTIVATIONS)
    assert {name.lower() for name in ACTIVATIONS} == set(bridge.ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("op", "place"), PLACES)
def test_activations(op, place, name):
    names = list(bridge.DEFAULTS[op.lower()])
    names[place] = name
    attributes = {"activations": names}
    if ACTIVATIONS[name] > 0:
        attributes["activation_alpha"] = [0.3]
    if ACTIVATIONS[name] > 1:
        attributes["activation_beta"] = [0.4]
    model, feeds = one_node(op, lengths=[T, 1, 4], **attributes)
    feeds["X"] *= 0.5  # so that no gate without bounds explodes
    (node,) = bridge.load(model)
    close(node.run(**feeds), run(model, feeds))


@pytest.mark.parametrize("name", ["LeakyRelu", "HardSigmoid", "Elu"])
@pytest.mark.parametrize(("op", "place"), PLACES)
def test_default_alpha_and_beta(op, place, name):
    """For the other three ONNX Runtime takes 0, the definition the operator's own default."""
    names = list(bridge.DEFAULTS[op.lower()])
    names[place] = name
    model, feeds = one_node(op, activations=names)
    (node,) = bridge.load(model)
    close(node.run(**feeds), run(model, feeds))


def test_default_alpha_and_beta_of_the_definition():
    X = np.linspace(-3, 3, T * B * I, dtype=np.float32).reshape(T, B, I)
    for name, values in (("ThresholdedRelu", {"activation_alpha": [1.0]}),
                         ("Affine", {"activation_alpha": [1.0], "activation_beta": [0.0]})):
        default, _ = one_node("RNN", activations=[name])
        said, _ = one_node("RNN", activations=[name], **values)
        close(bridge.load(default)[0].run(X), bridge.load(said)[0].run(X))


def test_alpha_and_beta_are_consumed_in_order_by_those_that_take_one():
    for names, values in (
            (["Sigmoid", "LeakyRelu", "Elu"], {"activation_alpha": [0.3, 0.2]}),
            (["HardSigmoid", "LeakyRelu", "Affine"],
             {"activation_alpha": [0.3, 0.2, 0.7], "activation_beta": [0.4, 0.1]})):  # fmt: skip
        model, feeds = one_node("LSTM", activations=names, **values)
        close(bridge.load(model)[0].run(**feeds), run(model, feeds))


def test_each_direction_has_its_own_activations():
    model, feeds = one_node("GRU", 2, activations=["HardSigmoid", "Tanh", "Sigmoid", "Relu"],
                            lengths=[T, 1, 4], state=True)  # fmt: skip
    (node,) = bridge.load(model)
    assert not node.compiled
    close(node.run(**feeds), run(model, feeds))


@pytest.mark.parametrize(("alpha", "beta", "gate"), [
    (None, None, "hard_sigmoid_onnx"), (0.2, 0.5, "hard_sigmoid_onnx"),
    (1 / 6, 0.5, "hard_sigmoid"),
])  # fmt: skip
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_hard_sigmoids_are_compiled(op, alpha, beta, gate):
    said = {} if alpha is None else {"activation_alpha": [alpha], "activation_beta": [beta]}
    names = ["HardSigmoid", *bridge.DEFAULTS[op.lower()][1:]]
    model, feeds = one_node(op, activations=names, **said)
    (node,) = bridge.load(model)
    assert node.compiled and node.layer.options["gate"] == gate
    close(node.run(**feeds), run(model, feeds))


@pytest.mark.parametrize("clip", [0.05, 0.5])
@pytest.mark.parametrize(("op", "attributes"), [
    ("RNN", {}), ("LSTM", {}), ("LSTM", {"P": True}), ("LSTM", {"input_forget": 1}), ("GRU", {}),
    ("GRU", {"linear_before_reset": 1})])  # fmt: skip
@pytest.mark.parametrize("D", [1, 2])
def test_clip(op, attributes, D, clip):
    model, feeds = one_node(op, D, clip=clip, lengths=[T, 1, 4], **attributes)
    (node,) = bridge.load(model)
    assert not node.compiled
    close(node.run(**feeds), run(model, feeds))


@pytest.mark.parametrize("P", [False, True])
@pytest.mark.parametrize("input_forget", [0, 1])
@pytest.mark.parametrize("D", [1, 2])
def test_peepholes_and_coupled_gates(D, P, input_forget):
    model, feeds = one_node("LSTM", D, P=P, input_forget=input_forget, state=True)
    (node,) = bridge.load(model)
    assert node.compiled
    close(node.run(**feeds), run(model, feeds))


@pytest.mark.parametrize("linear_before_reset", [0, 1])
def test_reset_before_and_after(linear_before_reset):
    model, feeds = one_node("GRU", linear_before_reset=linear_before_reset)
    (node,) = bridge.load(model)
    assert node.compiled and node.layer.options["reset_after"] == linear_before_reset
    close(node.run(**feeds), run(model, feeds))


BOUNDED = ("Sigmoid", "HardSigmoid", "Tanh", "Softsign", "ScaledTanh")


@given(st.data())
def test_any_node(data):
    """Attributes and inputs in any combination."""
    draw = data.draw
    op, D = draw(st.sampled_from(OPS)), draw(st.integers(1, 2))
    options = {"seed": draw(st.integers(0, 99)), "state": draw(st.booleans())}
    if draw(st.booleans()):
        options["lengths"] = draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
    if D == 1:
        options["direction"] = draw(st.sampled_from(["forward", "reverse"]))
    if draw(st.booleans()):
        n = D * len(bridge.DEFAULTS[op.lower()])
        names = draw(st.lists(st.sampled_from(BOUNDED), min_size=n, max_size=n))
        options["activations"] = names
        values = st.sampled_from([0.25, 0.5, 0.75])
        options["activation_alpha"] = draw(st.lists(values, min_size=n, max_size=n))
        options["activation_beta"] = draw(st.lists(values, min_size=n, max_size=n))
    if draw(st.booleans()):
        options["clip"] = draw(st.sampled_from([0.1, 1.0]))
    if op == "LSTM":
        options |= {"P": draw(st.booleans()), "input_forget": draw(st.integers(0, 1))}
    if op == "GRU":
        options["linear_before_reset"] = draw(st.integers(0, 1))
    model, feeds = one_node(op, D, **options)
    close(bridge.load(model)[0].run(**feeds), run(model, feeds))


@pytest.mark.parametrize("op", OPS)
def test_the_reference_evaluator_agrees(op):
    more = {"linear_before_reset": 1} if op == "GRU" else {}
    model, feeds = one_node(op, **more)
    got = ReferenceEvaluator(model).run(["Y", "Y_h"], feeds)  # onnx 1.17's LSTM has no Y_c
    close(bridge.load(model)[0].run(**feeds)[:2], got)


def test_repeated_padding_of_a_reverse_node():
    model, feeds = one_node("GRU", direction="reverse")
    (node,) = bridge.load(model)
    y, _ = node(feeds["X"], lengths=[T, 0, 4], pad_output="repeat")
    assert (y[4:, 2] == y[3, 2]).all() and not y[:, 1].any() and y[3, 2].any()
    assert (node(feeds["X"][:, 0])[0] == node(feeds["X"][:, :1])[0][:, 0]).all()
    with pytest.raises(ValueError, match=r"lengths must have shape \(3,\), got \(2,\)"):
        node(feeds["X"], lengths=[T, 2])


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", OPS)
def test_a_general_layer_is_the_compiled_one(op, direction):
    """The slow path with the usual activations, ragged, stepwise equal to the compiled layer."""
    D = 2 if direction == "bidirectional" else 1
    lengths = [T, 0, 4]
    plain, feeds = one_node(op, D, direction=direction, state=True)
    slow, _ = one_node(op, D, direction=direction, state=True, clip=1e9)
    (a,), (b,) = bridge.load(plain), bridge.load(slow)
    assert a.compiled and not b.compiled
    close(a.run(**feeds, sequence_lens=lengths), b.run(**feeds, sequence_lens=lengths))
    with pytest.raises(NotImplementedError, match="no backward pass"):
        b.layer.forward(feeds["X"])


@pytest.mark.parametrize("engine", ["blas", "fused"])
@pytest.mark.parametrize("op", OPS)
def test_general_layers_under_every_engine(op, engine, use_engine):
    """No engine's short cut for dense batches or streams passes the activations by."""
    use_engine(engine)
    model, feeds = one_node(op, clip=0.2)
    (node,) = bridge.load(model)
    want = run(model, feeds)
    close(node.run(**feeds), want)
    parts = [node.layer.stream(B).step(feeds["X"][0])]
    close(parts, [want[0][0, 0]])


# ---- finding nodes and constants ---------------------------------------------------------------


def test_constant_states_and_lengths_are_the_nodes_own():
    model, feeds = one_node("LSTM", lengths=[T, 2, 4], state=True)
    X = feeds.pop("X")
    (node,) = bridge.load(model, feeds)
    assert np.asarray(node.lengths).tolist() == [T, 2, 4] and node.state[0].shape == (1, B, H)
    close(node.run(X), run(model, feeds | {"X": X}))
    zero = {k: np.zeros_like(a) for k, a in feeds.items() if k != "sequence_lens"}
    (node,) = bridge.load(model, zero)
    assert node.state is None  # any batch size starts there
    assert node(X[:, :1])[0].shape == (T, 1, H)


@pytest.mark.parametrize("layout", [0, 1])
def test_one_constant_state_of_two(layout):
    """initial_c alone, in either layout; initial_h is then zero."""
    model, feeds = one_node("LSTM", 2, state=True, layout=layout)
    (node,) = bridge.load(model, {"initial_c": feeds["initial_c"],
                                  "initial_h": np.zeros_like(feeds["initial_h"])})  # fmt: skip
    assert [a.any() for a in node.state] == [False, True]
    want = bridge.load(model)[0].run(feeds["X"], initial_c=feeds["initial_c"])
    close(node.run(feeds["X"]), want)
    if layout == 0:  # all that ONNX Runtime has
        feeds["initial_h"][:] = 0
        close(want, run(model, feeds))


def test_a_random_state_is_no_constant():
    start = helper.make_node("RandomNormal", [], ["initial_h"], shape=[1, B, H])
    node = helper.make_node("GRU", ["X", "W", "R", "", "", "initial_h"], ["Y"], hidden_size=H)
    w = {k: a for k, a in weights("GRU").items() if k != "B"}
    X = np.ones((T, B, I), np.float32)
    (loaded,) = bridge.load(model_of([start, node], {"X": X}, ["Y"], w))
    assert loaded.state is None and loaded.inputs["initial_h"] == "initial_h"


def test_weights_computed_from_constants():
    w = weights("GRU")
    halves = dict(zip(("W0", "W1"), np.split(w["W"], 2, axis=1), strict=True))
    constant = helper.make_node("Constant", [], ["R"], value=numpy_helper.from_array(w["R"]))
    nodes = [helper.make_node("Concat", ["W0", "W1"], ["W"], axis=1), constant,
             helper.make_node("Cast", ["B16"], ["B"], to=TensorProto.FLOAT),
             helper.make_node("GRU", ["X", "W", "R", "B"], ["Y"], hidden_size=H)]  # fmt: skip
    X = np.ones((T, B, I), np.float32)
    model = model_of(nodes, {"X": X}, ["Y"], halves | {"B16": w["B"].astype(np.float16)})
    close(bridge.load(model)[0].run(X)[:1], run(model, {"X": X}))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes(dtype):
    w = weights("LSTM", dtype=dtype)
    X = np.ones((T, B, I), dtype)
    node = helper.make_node("LSTM", ["X", *w], ["Y"], hidden_size=H)
    (loaded,) = bridge.load(model_of([node], {"X": X}, ["Y"], w))
    assert loaded.layer.dtype == (np.float64 if dtype == np.float64 else np.float32)
    wide = {k: a.astype(np.float32) for k, a in w.items()}
    model = model_of([node], {"X": X.astype(np.float32)}, ["Y"], wide)
    np.testing.assert_allclose(loaded.run(X)[0], run(model, {"X": X.astype(np.float32)})[0],
                               rtol=1e-5, atol=1e-6)  # fmt: skip


def test_nodes_in_branches_and_functions():
    w, X = weights("GRU"), np.ones((T, B, I), np.float32)

    def branch(reset):
        node = helper.make_node("GRU", ["X", "W", "R", "B"], ["Y" + str(reset)], name=f"gru{reset}",
                                linear_before_reset=reset, hidden_size=H)  # fmt: skip
        out = helper.make_tensor_value_info("Y" + str(reset), TensorProto.FLOAT, None)
        return helper.make_graph([node], f"b{reset}", [], [out])

    choice = helper.make_node("If", ["which"], ["Y"], then_branch=branch(1), else_branch=branch(0))
    model = model_of([choice], {"which": np.array(True), "X": X}, ["Y"], w)
    nodes = bridge.load(model)
    assert sorted(node.name for node in nodes) == ["gru0", "gru1"]
    for node in nodes:
        which = np.array(node.name == "gru1")
        close(node.run(X)[:1], run(model, {"which": which, "X": X}))

    inner = helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=H)
    opset = [helper.make_opsetid("", 14), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Gru", ["x", "w", "r"], ["y"], [inner], opset[:1])
    call = helper.make_node("Gru", ["X", "W", "R"], ["Y"], domain="own")
    model = model_of([call], {"X": X}, ["Y"], {k: w[k] for k in "WR"})
    model.functions.append(function)
    model.opset_import.append(opset[1])
    close(bridge.load(model)[0].run(X)[:1], run(model, {"X": X}))


# ---- stacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True},
                                     {"bidirectional": True, "batch_first": True}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", OPS)
def test_what_torch_exports(kind, options, dynamic, tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = getattr(torch.nn, kind)(I, H, 3, dropout=0.5, **options).eval()
    x = torch.randn(T, B, I)
    free = {"input_names": ["x"], "dynamic_axes": {"x": [0, 1]}} if dynamic else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter: its own age, batch sizes
        torch.onnx.export(net, (x,), tmp_path / "net.onnx", dynamo=False, opset_version=14, **free)
    (stack,) = bridge.load(tmp_path / "net.onnx")
    assert type(stack.layer) is KINDS[kind] and stack.layer.num_layers == 3
    assert {k: getattr(stack.layer, k) for k in options} == options
    with torch.no_grad():
        want, final = net(x)
    y, state = stack(x.numpy())
    close([y], [want.numpy()])
    close(np.atleast_3d(state) if kind != "LSTM" else state,
          [s.numpy() for s in final] if kind == "LSTM" else final.numpy())  # fmt: skip


def layer_nodes(op, count, D=1, glue="own", between=(), tie=None, **attributes):
    """(nodes, constants) of a stack X -> ... -> y, by hand; glue between and after the layers."""
    nodes, constants, x = [], {}, "X"
    rows = GATES[op] * H
    for k in range(count):
        rng = np.random.default_rng([7, k])
        width = I if k == 0 else D * H
        for name, shape in (("W", (D, rows, width)), ("R", (D, rows, H)), ("B", (D, 2 * rows))):
            constants[f"{name}{k}"] = rng.uniform(-0.7, 0.7, shape).astype(np.float32)
        more = {"direction": "bidirectional"} if D == 2 else {}
        nodes.append(helper.make_node(op, [x, f"W{k}", f"R{k}", f"B{k}", *(tie or {}).get(k, [])],
                                      [f"Y{k}", f"h{k}"], name=f"node{k}", hidden_size=H,
                                      **attributes, **more))  # fmt: skip
        made, x = glues(glue, k, D)
        nodes += made
    constants["flat"] = np.array([0, 0, -1])
    return nodes, constants


def glues(kind, k, D):
    """(nodes, output) that make (T, B, D H) of Y."""
    Y, y = f"Y{k}", f"y{k}"
    if kind == "own":
        return [helper.make_node("Transpose", [Y], [f"t{k}"], perm=[0, 2, 1, 3]),
                helper.make_node("Reshape", [f"t{k}", "flat"], [y])], y  # fmt: skip
    if kind == "squeeze":
        return [helper.make_node("Squeeze", [Y, "one"], [y])], y
    if kind == "split":
        parts = [f"part{k}{d}" for d in range(D)]
        flat = [f"flat{k}{d}" for d in range(D)]
        return [helper.make_node("Split", [Y], parts, axis=1),
                *(helper.make_node("Squeeze", [p, "one"], [f])
                  for p, f in zip(parts, flat, strict=True)),
                helper.make_node("Concat", flat, [y], axis=-1)], y  # fmt: skip
    if kind == "relu":
        made, inner = glues("own", k, D)
        return [*made, helper.make_node("Relu", [inner], [f"r{k}"])], f"r{k}"
    if kind == "fixed":  # a shape that only T = 6 has
        return [helper.make_node("Transpose", [Y], [f"t{k}"], perm=[0, 2, 1, 3]),
                helper.make_node("Reshape", [f"t{k}", "six"], [y])], y  # fmt: skip
    if kind == "swapped":  # the reverse direction first
        made, inner = glues("split", k, D)
        made[-1].input[:] = list(made[-1].input)[::-1]
        return made, inner
    raise AssertionError(kind)


MORE = {"one": np.array([1]), "six": np.array([6, -1, 2 * H])}


def by_hand(nodes, constants, outputs, feeds=None):
    feeds = feeds or {"X": np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)}
    return model_of(nodes, feeds, outputs, constants | MORE), feeds


@pytest.mark.parametrize(("glue", "D", "joined"), [
    ("own", 1, True), ("squeeze", 1, True), ("own", 2, True), ("split", 2, True),
    ("relu", 2, False), ("fixed", 2, False), ("swapped", 2, False),
])  # fmt: skip
@pytest.mark.parametrize("op", OPS)
def test_glue(op, glue, D, joined):
    nodes, constants = layer_nodes(op, 3, D, glue)
    model, feeds = by_hand(nodes, constants, [nodes[-1].output[0], "h0", "h1", "h2"])
    loaded = bridge.load(model)
    assert [len(one.nodes) for one in loaded] == ([3] if joined else [1, 1, 1])
    if not joined:
        assert all(type(one) is bridge.Node for one in loaded)
        return
    (stack,) = loaded
    want, *final = run(model, feeds)
    y, h = stack(feeds["X"])
    close([y, (h[0] if op == "LSTM" else h)], [want, np.concatenate(final)])
    assert stack.inputs == {"X": "X"} and stack.outputs == {"Y": nodes[-1].output[0]}
    assert [n.name for n in stack.nodes] == ["node0", "node1", "node2"]
    # the nodes are there by themselves, over the same memory
    x = feeds["X"]
    for node in stack.nodes:
        x, _ = node(x)
    assert (x == y).all()
    stack.layer.params["weight_ih_l1"] += 1
    assert (stack.nodes[1].layer.params["weight_ih_l0"]
            == stack.layer.params["weight_ih_l1"]).all()  # fmt: skip


@pytest.mark.parametrize("seen", ["Y0", "t0", "y0", "by a node", "by a branch", "h0 only"])
def test_what_somebody_else_reads_is_not_hidden(seen):
    nodes, constants = layer_nodes("GRU", 2, 2)
    outputs = ["y1"]
    if seen == "by a node":
        nodes.append(helper.make_node("Relu", ["y0"], ["other"]))
    elif seen == "by a branch":
        inner = helper.make_node("Relu", ["t0"], ["z"])
        out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        graph = helper.make_graph([inner], "b", [], [out])
        constants["true"] = np.array(True)
        nodes.append(helper.make_node("If", ["true"], ["other"], then_branch=graph,
                                      else_branch=graph))  # fmt: skip
    else:
        outputs.append(seen.split()[0])
    model, _ = by_hand(nodes, constants, outputs)
    assert len(bridge.load(model)) == (1 if seen == "h0 only" else 2)


@pytest.mark.parametrize(("opset", "domain"), [(7, ""), (11, ""), (12, "ai.onnx"), (14, "ai.onnx")])
def test_glue_of_older_opsets(opset, domain):
    """Squeeze has axes as an attribute before opset 13."""
    nodes, constants = layer_nodes("GRU", 2)
    for k in (0, 1):
        how = {"axes": [1]} if opset < 13 else {}
        squeeze = ["Y0", "Y1"][k : k + 1] + ([] if how else ["one"])
        nodes[3 * k + 1 : 3 * k + 3] = [helper.make_node("Squeeze", squeeze, [f"t{k}"], **how),
                                        helper.make_node("Identity", [f"t{k}"], [f"y{k}"])]
    model, feeds = by_hand(nodes, constants, ["y1"])
    model.opset_import[0].version, model.opset_import[0].domain = opset, domain
    (stack,) = bridge.load(model)
    close([stack(feeds["X"])[0]], run(model, feeds))


def test_the_shape_of_an_output_tells_nothing():
    nodes, constants = layer_nodes("GRU", 2, 2)
    nodes.append(helper.make_node("Shape", ["y0"], ["shape"]))
    assert len(bridge.load(by_hand(nodes, constants, ["y1"])[0])) == 1


def test_a_state_from_the_layer_below_is_no_stacks():
    """As from an encoder to its decoder."""
    nodes, constants = layer_nodes("GRU", 2, tie={1: ["", "h0"]})
    model, feeds = by_hand(nodes, constants, ["y1"])
    below, above = bridge.load(model)
    y, h = below(feeds["X"])
    close([above(y, h)[0]], run(model, feeds))


def test_layers_that_differ_are_not_joined():
    for change in ({"hidden_size": H + 1}, {"clip": 0.5}, {"linear_before_reset": 1},
                   {"direction": "reverse"}):  # fmt: skip
        nodes, constants = layer_nodes("GRU", 2)
        for name, value in change.items():
            other = [a for a in nodes[3].attribute if a.name != name]
            del nodes[3].attribute[:]
            nodes[3].attribute.extend([*other, helper.make_attribute(name, value)])
        if "hidden_size" in change:
            n = H + 1
            constants |= {"W1": np.ones((1, 3 * n, H), np.float32), "B1": np.ones((1, 6 * n),
                          np.float32), "R1": np.ones((1, 3 * n, n), np.float32)}  # fmt: skip
        assert len(bridge.load(by_hand(nodes, constants, ["y1"])[0])) == 2
    nodes, constants = layer_nodes("GRU", 3)
    nodes[3].input.remove("B1")
    assert [len(n.nodes) for n in bridge.load(by_hand(nodes, constants, ["y2"])[0])] == [1, 1, 1]


@pytest.mark.parametrize("attributes", [
    {"direction": "reverse"}, {"clip": 0.3}, {"activations": ["HardSigmoid", "Softsign"]},
    {"linear_before_reset": 1},
], ids=str)  # fmt: skip
def test_every_attribute_in_a_stack(attributes):
    nodes, constants = layer_nodes("GRU", 2, **attributes)
    X = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    for node in nodes[::3]:
        node.input.append("lengths")
    model, feeds = by_hand(nodes, constants, ["y1", "h0", "h1"],
                           {"X": X, "lengths": np.array([T, 1, 4], np.int32)})  # fmt: skip
    (stack,) = bridge.load(model)
    want, *final = run(model, feeds)
    y, h = stack(X, lengths=feeds["lengths"])
    close([y, h], [want, np.concatenate(final)])
    assert stack.inputs["sequence_lens"] == "lengths"
    assert stack.compiled == (attributes.keys() <= {"direction", "linear_before_reset"})
    # lengths of one layer only, or of each layer its own
    nodes[3].input[-1] = "others"
    assert len(bridge.load(by_hand(nodes, constants, ["y1"], feeds | {"others": X})[0])) == 2


@pytest.mark.parametrize("which", [(0, 1), (0,), (1,)])
def test_constant_states_of_a_stack(which):
    rng = np.random.default_rng(1)
    starts = {f"start{k}": rng.standard_normal((1, B, H)).astype(np.float32) for k in which}
    nodes, constants = layer_nodes("RNN", 2, tie={k: ["", f"start{k}"] for k in which})
    model, feeds = by_hand(nodes, constants | starts, ["y1"])
    (stack,) = bridge.load(model)
    assert [bool(s.any()) for s in stack.state] == [0 in which, 1 in which]
    close([stack(feeds["X"])[0]], run(model, feeds))
    if len(which) == 2:
        starts["start1"] = starts["start1"][:, :2]  # no batch has both
        assert len(bridge.load(by_hand(nodes, constants | starts, ["y1"])[0])) == 2


def test_a_merge_that_the_last_layer_lacks():
    """Both directions' sum is read above, but the output itself is not summed: no one layer."""
    layer, file = rnnfast.GRU(I, H, 3, bidirectional=True, merge="sum", seed=0), io.BytesIO()
    bridge.export(layer, file)
    model = onnx.load_model_from_string(file.getvalue())
    model.graph.output[0].name = "Y_l2"
    lower, upper = bridge.load(model)
    assert (lower.layer.num_layers, lower.layer.merge) == (2, "sum")
    assert type(upper) is bridge.Node and upper.layer.merge == "concat"
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    y = upper(lower(x)[0])[0]
    assert (y[..., :H] + y[..., H:] == layer(x)[0]).all()


# ---- bad input ---------------------------------------------------------------------------------


def test_files_that_are_no_models(tmp_path):
    model, _ = one_node("GRU")
    data = model.SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.onnx: cut short or not an ONNX model"):
        bridge.load(tmp_path / "cut.onnx")
    with pytest.raises(ValueError, match="the bytes: cut short or not an ONNX model"):
        bridge.load(b"no model at all")
    with pytest.raises(ValueError, match="the bytes: cut short or not an ONNX model"):
        bridge.load(b"")
    with pytest.raises(ValueError, match="the model has no RNN, LSTM or GRU node"):
        bridge.load(model_of([], {}, [], {}))
    with pytest.raises(FileNotFoundError):
        bridge.load(tmp_path / "none.onnx")


def test_a_model_cut_anywhere():
    """Also where the protocol's own fields end, which its library does not notice."""
    data = one_node("GRU")[0].SerializeToString()
    for end in range(len(data)):
        with pytest.raises(ValueError, match="the bytes: cut short or not an ONNX model"):
            bridge.load(data[:end])


def test_weights_that_are_cut_short(tmp_path):
    """Within the model, and in the file beside it that holds them."""
    model, _ = one_node("LSTM")
    model.graph.initializer[1].raw_data = model.graph.initializer[1].raw_data[:-4]
    for computed in (False, True):
        text = r"LSTM 'the node': R: 'R(16)?' of shape \(1, 16, 4\) is cut short"
        with pytest.raises(ValueError, match=text):
            bridge.load(model)
        if not computed:
            model.graph.initializer[1].name = "R16"
            cast = helper.make_node("Cast", ["R16"], ["R"], to=TensorProto.FLOAT)
            model.graph.node.insert(0, cast)
    path = tmp_path / "net.onnx"
    onnx.save(one_node("LSTM")[0], path, save_as_external_data=True, size_threshold=0,
              location="net.data")  # fmt: skip
    assert len(bridge.load(path)) == 1
    beside = tmp_path / "net.data"
    beside.write_bytes(beside.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"'R'"):
        bridge.load(path)
    beside.unlink()
    with pytest.raises(ValueError, match=r"net\.onnx: .*\bW\b.*net\.data"):
        bridge.load(path)


def changed(op, name, value, **more):
    """A model whose constant `name` is another."""
    model, _ = one_node(op, **more)
    for k, t in enumerate(model.graph.initializer):
        if t.name == name:
            model.graph.initializer[k].CopyFrom(numpy_helper.from_array(value, name))
    return model


@pytest.mark.parametrize(("name", "shape", "want"), [
    ("W", (1, 4 * H - 1, I), (1, 4 * H, I)), ("R", (2, 4 * H, H), (1, 4 * H, H)),
    ("B", (1, 4 * H), (1, 8 * H)), ("P", (3, H), (1, 3 * H)), ("W", (), (1, 4 * H, 0)),
])  # fmt: skip
def test_wrong_shapes_name_the_tensor(name, shape, want):
    model = changed("LSTM", name, np.zeros(shape, np.float32), P=True)
    text = f"LSTM 'the node': {name} ('{name}') must have shape {want}, got {shape}"
    with pytest.raises(ValueError, match=re.escape(text)):
        bridge.load(model)


@pytest.mark.parametrize(("value", "text"), [
    (np.ones((1, 16, H), np.int64), "R ('R') must hold real numbers, got int64"),
    (np.full((1, 16, H), "x", object), "R ('R') must hold real numbers, got object"),
    (np.ones((1, 16, H), np.float64), "R ('R') must be float32 as W is, got float64"),
])  # fmt: skip
def test_wrong_types_name_the_tensor(value, text):
    with pytest.raises(ValueError, match=re.escape(f"LSTM 'the node': {text}")):
        bridge.load(changed("LSTM", "R", value))


def test_a_layer_for_another_width_than_the_one_below_gives():
    nodes, constants = layer_nodes("GRU", 2, 2)
    constants["W1"] = constants["W1"][..., 1:]
    with pytest.raises(ValueError, match=r"GRU 'node1': W \('W1'\) must be for 8 features, which "
                                         "'y0' has, got 7"):  # fmt: skip
        bridge.load(by_hand(nodes, constants, ["y1"])[0])


def test_a_damaged_model():
    """Whatever byte is wrong, it is a model all the same or an error that says so."""
    data = one_node("GRU")[0].SerializeToString()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x55
        try:
            bridge.load(bytes(damaged))
        except (ValueError, NotImplementedError):
            pass


def test_unknown_attributes_and_activations():
    for attributes, error, text in (
            ({"magic": 1}, NotImplementedError, r"GRU 'the node': attributes \['magic'\] are not"),
            ({"input_forget": 1}, NotImplementedError, r"attributes \['input_forget'\]"),
            ({"activations": ["Sigmoid", "Swish"]}, NotImplementedError, "activation 'Swish'"),
            ({"activations": ["Sigmoid"]}, ValueError, r"expected 2 activations, got "),
            ({"activations": ["Sigmoid", "ScaledTanh"]}, ValueError, "needs activation_alpha"),
            ({"direction": "up"}, ValueError, "direction must be one of"),
            ({"direction": 1}, ValueError, "GRU 'the node': direction must be of type STRING"),
            ({"activations": 1}, ValueError, "activations must be of type STRINGS"),
            ({"layout": 2}, ValueError, "layout must be 0 or 1, got 2"),
            ({"clip": -1.0}, ValueError, "clip must be positive, got -1.0")):  # fmt: skip
        with pytest.raises(error, match=text):
            bridge.load(one_node("GRU", **attributes)[0])


def test_weights_that_are_not_constant():
    model, feeds = one_node("GRU")
    del model.graph.initializer[1]
    model.graph.input.append(helper.make_tensor_value_info("R", TensorProto.FLOAT, None))
    with pytest.raises(ValueError, match=r"GRU 'the node': R \('R'\) is not a constant"):
        bridge.load(model)
    (node,) = bridge.load(model, {"R": weights("GRU")["R"]})
    close(node.run(**feeds), bridge.load(one_node("GRU")[0])[0].run(**feeds))


# ---- export ------------------------------------------------------------------------------------


VARIANTS = [("RNN", {}), ("RNN", {"nonlinearity": "relu", "bias": False}), ("LSTM", {}),
            ("LSTM", {"bias": False, "peephole": True}), ("LSTM", {"coupled": True}),
            ("LSTM", {"gate": "hard_sigmoid"}), ("GRU", {}), ("GRU", {"reset_after": False}),
            ("GRU", {"gate": "hard_sigmoid_onnx", "bias": False})]  # fmt: skip
DEEP = {"bidirectional": True, "num_layers": 2}
SHAPES = [{}, {"num_layers": 3}, DEEP | {"batch_first": True},
          *(DEEP | {"merge": m} for m in ("sum", "mul", "average"))]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=str)
def test_onnx_runtime_runs_what_is_exported(kind, options, shape, tmp_path):
    layer = KINDS[kind](I, H, **options, **shape, seed=3)
    bridge.export(layer, tmp_path / "net.onnx", lengths=True)
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    rng, rows = np.random.default_rng(0), layer.num_layers * layer.directions
    for steps, batch in ((5, 3), (1, 1), (9, 2)):  # T and B are free
        x = rng.standard_normal((steps, batch, I)).astype(np.float32)
        x = x.swapaxes(0, 1).copy() if layer.batch_first else x
        state = [rng.standard_normal((rows, batch, H)).astype(np.float32)
                 for _ in range(layer.states)]  # fmt: skip
        lengths = rng.integers(1, steps + 1, batch)
        feeds = dict(zip(("h0", "c0"), state, strict=False)) | {"x": x}
        feeds["lengths"] = lengths.astype(np.int32)
        y, final = layer(x, tuple(state) if layer.states == 2 else state[0], lengths)
        close(session.run(["y", "hn", "cn"][: 1 + layer.states], feeds),
              [y, *(final if layer.states == 2 else [final])])  # fmt: skip


@pytest.mark.parametrize("kind", OPS)
def test_state_out_is_state_in(kind):
    """A chunk at a time, the model's state carried along, is the whole."""
    layer, file = KINDS[kind](I, H, 2, seed=0), io.BytesIO()
    bridge.export(layer, file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    names = [i.name for i in session.get_inputs()][1:]
    assert names == ["h0", "c0"][: layer.states]
    state = {name: np.zeros((2, B, H), np.float32) for name in names}
    parts = []
    for chunk in np.split(x, [1, 3]):
        y, *new = session.run(None, {"x": chunk, **state})
        state = dict(zip(names, new, strict=True))
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts), layer(x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [{}, {"bidirectional": True}, {"batch_first": True},
                                   {"bidirectional": True, "merge": "mul"}, *SHAPES],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_there_and_back_gives_the_same_layer_and_bits(kind, options, shape, dtype):
    layer = KINDS[kind](I, H, dtype=dtype, seed=0, **options, **shape)
    rng, file = np.random.default_rng(0), io.BytesIO()
    bridge.export(layer, file, lengths=True)
    (back,) = bridge.load(file.getvalue())
    assert back.compiled and type(back.layer) is type(layer) and repr(back.layer) == repr(layer)
    for name in ("merge", "bias", "batch_first", "num_layers", "options"):
        assert getattr(back.layer, name) == getattr(layer, name), name
    assert back.layer.params.keys() == layer.params.keys()
    assert all((back.layer.params[k] == p).all() for k, p in layer.params.items())
    x = rng.standard_normal((B, T, I) if layer.batch_first else (T, B, I)).astype(dtype)
    n = layer.num_layers * layer.directions
    state = tuple(rng.standard_normal((n, B, H)).astype(dtype) for _ in range(layer.states))
    state = state if layer.states == 2 else state[0]
    for call in ((x,), (x, state, [T, 0, 4])):
        for a, b in zip(back(*call), layer(*call), strict=True):
            assert np.array_equal(a, b)
    # trained on and exported again it is the same model
    again = io.BytesIO()
    bridge.export(back.layer, again, lengths=True)
    assert again.getvalue() == file.getvalue()


def test_what_onnx_cannot_express():
    for layer, name in ((rnnfast.LSTM(I, H, proj_size=2), "proj_size"),
                        (rnnfast.LSTM(I, H, cell_clip=1.0), "cell_clip"),
                        (rnnfast.GRU(I, H, layer_norm=True), "layer_norm")):  # fmt: skip
        with pytest.raises(NotImplementedError, match=f"{name} cannot be written to ONNX"):
            bridge.export(layer, io.BytesIO())
    with pytest.raises(TypeError, match="expected an RNN, LSTM or GRU, got Linear"):
        bridge.export(rnnfast.Linear(I, H), io.BytesIO())


def test_constants_of_every_layer_are_there():
    file = io.BytesIO()
    bridge.export(rnnfast.GRU(I, H, num_layers=3, bidirectional=True), file)
    names = {t.name for t in onnx.load_model_from_string(file.getvalue()).graph.initializer}
    assert {f"{r}_l{k}" for r, k in itertools.product("WRB", range(3))} <= names
