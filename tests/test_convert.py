"""Weights from one framework's layout to another's: round trips, and what real layers compute."""

import itertools

import numpy as np
import pytest

from rnnfast import convert

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
CELLS = sorted(GATES)
FRAMEWORKS = ("torch", "keras", "onnx")
I, H, T, B = 3, 5, 7, 2


def function(source, target, cell):
    return getattr(convert, f"{source}_to_{target}_{cell}")


def weights(framework, cell, seed=0, bias=True):
    """Random weights in a framework's layout, all blocks different."""
    rng = np.random.default_rng(seed)
    rows = GATES[cell] * H
    shapes = {"torch": [(rows, I), (rows, H), (rows,), (rows,)],
              "keras": [(I, rows), (H, rows), (2, rows) if cell == "gru" else (rows,)],
              "onnx": [(1, rows, I), (1, rows, H), (1, 2 * rows)]}[framework]  # fmt: skip
    arrays = [rng.uniform(-1, 1, s).astype(np.float32) for s in shapes]
    return arrays if bias else arrays[:2]


def equal(left, right):
    return all(
        a is b is None or (a.shape == b.shape and a.dtype == b.dtype and (a == b).all())
        for a, b in itertools.zip_longest(left, right)
    )


def padded(arrays, framework):
    n = 4 if framework == "torch" else 3
    return [*arrays, *[None] * (n - len(arrays))]


def torch_output(cell, arrays, x):
    torch = pytest.importorskip("torch")
    kind = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    layer = kind(I, H, bias=arrays[2] is not None)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    layer.load_state_dict({n: torch.tensor(a) for n, a in zip(names, arrays, strict=True)
                           if a is not None})  # fmt: skip
    with torch.no_grad():
        return layer(torch.tensor(x))[0].numpy()


def keras_output(cell, arrays, x, **options):
    keras = pytest.importorskip("keras")
    kind = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[cell]
    layer = kind(H, use_bias=arrays[2] is not None, return_sequences=True, **options)
    layer.build((B, T, I))
    layer.set_weights([a for a in arrays if a is not None])
    y = layer(x.swapaxes(0, 1))
    return keras.ops.convert_to_numpy(y).swapaxes(0, 1)


def onnx_output(cell, arrays, x, **attributes):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    h = onnx.helper
    if cell == "gru":
        attributes.setdefault("linear_before_reset", 1)
    given = {n: a for n, a in zip("WRB", arrays, strict=True) if a is not None}
    node = h.make_node(cell.upper(), ["X", *given], ["Y"], hidden_size=H, **attributes)
    real = onnx.TensorProto.FLOAT
    graph = h.make_graph(
        [node], "g", [h.make_tensor_value_info("X", real, x.shape)],
        [h.make_tensor_value_info("Y", real, None)],
        [onnx.numpy_helper.from_array(a, n) for n, a in given.items()])  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 14)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(),
                                       providers=["CPUExecutionProvider"])  # fmt: skip
    return session.run(None, {"X": x})[0][:, 0]


OUTPUT = {"torch": torch_output, "keras": keras_output, "onnx": onnx_output}
PAIRS = list(itertools.permutations(FRAMEWORKS, 2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_other_framework_computes_the_same(source, target, cell, bias):
    arrays = padded(weights(source, cell, bias=bias), source)
    x = np.random.default_rng(1).standard_normal((T, B, I)).astype(np.float32)
    converted = function(source, target, cell)(*arrays)
    assert all(a is None or a.dtype == np.float32 for a in converted)
    there, here = OUTPUT[target](cell, converted, x), OUTPUT[source](cell, arrays, x)
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("reset_after", [True, False])
def test_both_kinds_of_gru_from_keras_to_onnx(reset_after):
    arrays = weights("keras", "gru")
    arrays[2] = arrays[2] if reset_after else arrays[2][0]
    x = np.random.default_rng(1).standard_normal((T, B, I)).astype(np.float32)
    there = onnx_output("gru", convert.keras_to_onnx_gru(*arrays), x,
                        linear_before_reset=int(reset_after))  # fmt: skip
    np.testing.assert_allclose(there, keras_output("gru", arrays, x, reset_after=reset_after),
                               rtol=1e-4, atol=2e-6)  # fmt: skip
    back = convert.onnx_to_keras_gru(*convert.keras_to_onnx_gru(*arrays), reset_after=reset_after)
    assert equal(back, arrays)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_round_trip(source, target, cell, bias):
    arrays = weights(source, cell, bias=bias)
    back = function(target, source, cell)(*function(source, target, cell)(*arrays))
    if target != "keras" or cell == "gru" or not bias:
        assert equal(back, padded(arrays, source))
        return
    # Keras has one bias: what comes back holds the sum in the first
    assert equal(back[:2], arrays[:2])
    if source == "torch":
        assert (back[2] == arrays[2] + arrays[3]).all() and not back[3].any()
    else:
        first, second = np.split(back[2], 2, axis=1)
        assert (first == sum(np.split(arrays[2], 2, axis=1))).all() and not second.any()


@pytest.mark.parametrize("cell", CELLS)
def test_the_three_ways_meet(cell):
    keras = weights("keras", cell)
    torch = function("keras", "torch", cell)(*keras)
    assert equal(function("keras", "onnx", cell)(*keras), function("torch", "onnx", cell)(*torch))


@pytest.mark.parametrize("cell", CELLS)
def test_directions(cell):
    pair = [weights("torch", cell, seed) for seed in (0, 1)]
    both = [np.concatenate(p) for p in
            zip(*(function("torch", "onnx", cell)(*a) for a in pair), strict=True)]  # fmt: skip
    for d in (0, 1):
        assert equal(function("onnx", "torch", cell)(*both, direction=d), pair[d])
    with pytest.raises(ValueError, match=r"direction must lie in \[0, 2\), got 2"):
        function("onnx", "torch", cell)(*both, direction=2)


def test_one_bias_of_two_counts_as_zero():
    w_ih, w_hh, b_ih, b_hh = weights("torch", "gru")
    for given in ({"b_ih": b_ih}, {"b_hh": b_hh}):
        _, _, bias = convert.torch_to_keras_gru(w_ih, w_hh, **given)
        assert [bool(row.any()) for row in bias] == ["b_ih" in given, "b_hh" in given]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_nothing_is_shared(source, target, cell):
    arrays = weights(source, cell)
    for a, b in itertools.product(arrays, function(source, target, cell)(*arrays)):
        assert not np.shares_memory(a, b)


@pytest.mark.parametrize(("call", "message"), [
    (lambda w: convert.torch_to_onnx_lstm(w[0][1:], *w[1:]),
     r"w_ih: expected shape \(20, \*\), got \(19, 3\)"),
    (lambda w: convert.torch_to_keras_lstm(w[0], w[1][:, 1:]),
     "w_hh: expected 4 gates of 4 units each, got 20 rows"),
    (lambda w: convert.torch_to_keras_lstm(w[0], w[1], w[2][1:]),
     r"b_ih: expected shape \(20\), got \(19,\)"),
    (lambda w: convert.keras_to_torch_lstm(w[0].T, w[1].T, w[2][None]),
     r"bias: expected shape \(20\), got \(1, 20\)"),
    (lambda w: convert.onnx_to_torch_lstm(w[0], w[1]),
     r"R: expected shape \(\*, \*, \*\), got \(20, 5\)"),
    (lambda w: convert.onnx_to_torch_lstm(w[0][None], w[1][None], w[2][None]),
     r"B: expected shape \(1, 40\), got \(1, 20\)"),
])  # fmt: skip
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(weights("torch", "lstm"))
