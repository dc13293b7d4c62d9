"""Layers of Keras: the same outputs and states as the real ones, whatever the mask and options."""

import numpy as np
import pytest

import rnnfast
import rnnfast.keras as bridge

keras = pytest.importorskip("keras")
L = keras.layers
B, T, I, H = 4, 7, 3, 5
CELLS = {"SimpleRNN": {}, "LSTM": {}, "GRU": {}, "GRU before": {"reset_after": False}}
CELL_TYPES = {"SimpleRNN": L.SimpleRNNCell, "LSTM": L.LSTMCell, "GRU": L.GRUCell}


def rng(seed=0):
    return np.random.default_rng(seed)


def data(seed=0):
    return rng(seed).standard_normal((B, T, I)).astype(np.float32)


def masks():
    """No padding, to the right, to the left, anywhere; one row with no step at all."""
    right = np.arange(T) < np.array([T, 3, 1, 0])[:, None]
    return {"none": None, "full": np.ones((B, T), bool), "right": right, "left": right[:, ::-1],
            "anywhere": rng(7).random((B, T)) < 0.5}  # fmt: skip


MASKS = masks()


def plain(value):
    """Keras's tensors, nested as they are, as arrays."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, np.ndarray) else keras.ops.convert_to_numpy(value)


def close(got, want):
    if isinstance(want, list):
        assert isinstance(got, list | tuple) and len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            close(a, b)
        return
    assert got.shape == want.shape and got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


def random_weights(layer, seed=0):
    """Build the layer and give it weights of which no two blocks are alike."""
    layer.build((B, T, I))
    layer.set_weights([rng([seed, k]).uniform(-0.7, 0.7, w.shape)
                       for k, w in enumerate(layer.get_weights())])  # fmt: skip
    return layer


def make(cell, **options):
    return random_weights(getattr(L, cell.split()[0])(H, **CELLS[cell], **options))


def both(layer, **call):
    """What Keras gives and what we give."""
    x, loaded = data(), bridge.from_layer(layer)
    state = call.pop("initial_state", None)
    if state is not None:
        call["initial_state"] = state
    return plain(loaded(x, **call)), plain(layer(x, **call))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_layers(cell, go_backwards, return_sequences, mask):
    layer = make(cell, return_sequences=return_sequences, go_backwards=go_backwards,
                 return_state=True)  # fmt: skip
    close(*both(layer, mask=MASKS[mask]))


@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_returned(cell, return_state):
    got, want = both(make(cell, return_state=return_state))
    assert isinstance(got, list) == return_state
    close(got, want)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cell", CELLS)
def test_initial_state(cell, mask):
    layer = make(cell, return_state=True, return_sequences=True)
    n = 2 if cell == "LSTM" else 1
    state = [rng(k).standard_normal((B, H)).astype(np.float32) for k in range(n)]
    close(*both(layer, mask=MASKS[mask], initial_state=state))
    if n == 1:
        close(*both(layer, initial_state=state[0]))


@pytest.mark.parametrize("cell", CELLS)
def test_without_bias(cell):
    close(*both(make(cell, use_bias=False, return_sequences=True)))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cell", CELLS)
def test_output_of_masked_steps(cell, mask, zero):
    inner = CELL_TYPES[cell.split()[0]](H, **CELLS[cell])
    for sequences in (False, True):
        layer = random_weights(L.RNN(inner, return_sequences=sequences, return_state=True,
                                     zero_output_for_mask=zero))  # fmt: skip
        close(*both(layer, mask=MASKS[mask]))


@pytest.mark.parametrize("cell", CELLS)
def test_masked_steps_are_never_read(cell):
    layer = bridge.from_layer(make(cell, return_sequences=True))
    mask, dirty = MASKS["anywhere"], data()
    dirty[~mask] = np.nan
    assert (layer(dirty, mask=mask) == layer(data(), mask=mask)).all()


@pytest.mark.parametrize("recurrent", ["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("cell", [c for c in CELLS if c != "SimpleRNN"])
def test_gates_are_compiled(cell, recurrent):
    layer = make(cell, recurrent_activation=recurrent, return_sequences=True)
    (computing,) = bridge.from_layer(layer).layers
    assert type(computing).__module__ == "rnnfast.layers"
    assert computing.options["gate"] == recurrent
    x = 3 * data()  # into the flat parts
    close(plain(bridge.from_layer(layer)(x)), plain(layer(x)))


@pytest.mark.parametrize("activation", sorted(bridge.ACTIVATIONS.keys() - {"hard_sigmoid_onnx"}))
@pytest.mark.parametrize("cell", CELLS)
def test_activations(cell, activation):
    layer = make(cell, activation=activation, return_sequences=True, return_state=True)
    if activation == "exponential":  # of weights as large as the others it has no bounds
        layer.set_weights([0.3 * w for w in layer.get_weights()])
    close(*both(layer, mask=MASKS["anywhere"]))


@pytest.mark.parametrize("recurrent", ["tanh", "softsign", "relu6"])
@pytest.mark.parametrize("cell", [c for c in CELLS if c != "SimpleRNN"])
def test_activations_of_gates(cell, recurrent):
    layer = make(cell, recurrent_activation=recurrent, activation="softsign")
    close(*both(layer, mask=MASKS["anywhere"]))


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave", None])
def test_bidirectional(merge, sequences, mask, state):
    for cell in CELLS if merge == "concat" else ["LSTM"]:
        inner = getattr(L, cell.split()[0])(H, **CELLS[cell], return_sequences=sequences,
                                            return_state=state)  # fmt: skip
        layer = random_weights(L.Bidirectional(inner, merge_mode=merge))
        close(*both(layer, mask=MASKS[mask]))


def test_bidirectional_of_two_kinds_and_the_wrong_way_round():
    pair = [L.LSTM(H, return_sequences=True, return_state=True, go_backwards=True),
            L.GRU(H + 1, return_sequences=True, return_state=True)]  # fmt: skip
    layer = L.Bidirectional(pair[0], backward_layer=pair[1])
    layer(data())
    assert bridge.from_layer(layer).layer is None
    close(*both(layer))
    close(*both(layer, mask=MASKS["anywhere"]))


@pytest.mark.parametrize("as_one", [True, False])
def test_two_threads_change_no_bit(as_one, monkeypatch):
    layer = random_weights(L.Bidirectional(L.LSTM(H, return_sequences=True, return_state=True)))
    loaded, mask = bridge.from_layer(layer), MASKS["anywhere"]
    if not as_one:
        loaded.layer = None
    before = loaded(data(), mask)
    monkeypatch.setattr(bridge, "PARALLEL_WORK", 0)
    monkeypatch.setattr(rnnfast.layers, "PARALLEL_WORK", 0)
    rnnfast.set_num_threads(2)
    try:
        assert all((a == b).all() for a, b in zip(loaded(data(), mask), before, strict=True))
        with pytest.raises(ValueError, match="x has 2 features"):
            loaded(data()[..., 1:])
    finally:
        rnnfast.set_num_threads(None)


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("cell", CELLS)
def test_bidirectional_is_one_layer(cell, merge):
    """Of rnnfast, over the same weights: what it computes is what trains and is exported."""
    for backwards in (False, True):
        pair = [getattr(L, cell.split()[0])(H, **CELLS[cell], return_sequences=True,
                                            go_backwards=back)
                for back in (backwards, not backwards)]  # fmt: skip
        layer = L.Bidirectional(pair[0], backward_layer=pair[1], merge_mode=merge)
        close(*both(random_weights(layer)))
        loaded = bridge.from_layer(layer)
        one = loaded.layer
        assert type(one) is getattr(rnnfast, cell.split()[0].removeprefix("Simple"))
        assert one.bidirectional and one.batch_first
        assert one.merge == {None: "concat", "ave": "average"}.get(merge, merge)
        y, _ = one(data()[:, ::-1].copy() if backwards else data())
        want = loaded(data())
        assert (y == (np.concatenate(want, axis=-1) if merge is None else want)).all()
        for side, suffix in ((loaded.forward, ""), (loaded.backward, "_reverse")):
            for name, p in side.layers[0].params.items():
                assert np.shares_memory(p, one.params[name + suffix])
        output, _, tape = one.forward(data())
        one.backward(tape, np.ones_like(output))
        assert all(g.any() for g in one.grads.values())


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("merge", ["concat", "mul", None])
def test_one_layer_and_two_give_the_same_bits(merge, sequences, zero, mask, use_engine):
    use_engine("fused")
    for cell in CELLS:
        saved = [w for seed in (0, 1) for w in make_weights(cell, seed)]
        options = {"merge_mode": merge, "return_sequences": sequences, "return_state": True,
                   "zero_output_for_mask": zero, "stateful": True}  # fmt: skip
        name = cell.split()[0]
        pair = [bridge.from_weights(saved, name, bidirectional=True, **options, **CELLS[cell])
                for _ in range(2)]  # fmt: skip
        assert pair[0].layer is not None
        pair[1].layer = None
        state = [rng(k).standard_normal((B, H)).astype(np.float32)
                 for k in range(4 if cell == "LSTM" else 2)]  # fmt: skip
        for given in (None, state, None):  # the last goes on from the one before it
            one, two = (plain(b(data(), MASKS[mask], given)) for b in pair)
            for a, b in zip(one, two, strict=True):
                assert np.array_equal(a, b)
        pair[0].reset_state()
        again = pair[0](data(), MASKS[mask])
        pair[1].reset_state()
        assert np.array_equal(again[0], pair[1](data(), MASKS[mask])[0])


def make_weights(cell, seed):
    layer = getattr(L, cell.split()[0])(H, **CELLS[cell])
    return random_weights(layer, seed).get_weights()


@pytest.mark.parametrize("change", [{"units": H + 1}, {"use_bias": False},
                                    {"recurrent_activation": "hard_sigmoid"},
                                    {"reset_after": False}], ids=str)  # fmt: skip
def test_halves_that_differ_stay_two_layers(change):
    halves = [L.GRU(**({"units": H, "return_sequences": True} | options), go_backwards=back)
              for options, back in (({}, False), (change, True))]  # fmt: skip
    layer = L.Bidirectional(halves[0], backward_layer=halves[1])
    layer.build((B, T, I))
    assert bridge.from_layer(layer).layer is None
    close(*both(layer, mask=MASKS["anywhere"]))


def test_one_layer_of_activations_that_are_not_compiled():
    halves = [L.LSTM(H, activation=name, return_sequences=True, go_backwards=back)
              for name, back in (("softsign", False), ("elu", True))]  # fmt: skip
    layer = random_weights(L.Bidirectional(halves[0], backward_layer=halves[1]))
    assert bridge.from_layer(layer).layer.bidirectional
    close(*both(layer, mask=MASKS["anywhere"]))
    close(*both(random_weights(L.Bidirectional(L.GRU(H, activation="relu")))))


def test_bidirectional_initial_state():
    layer = random_weights(L.Bidirectional(L.LSTM(H, return_state=True, return_sequences=True)))
    state = [rng(k).standard_normal((B, H)).astype(np.float32) for k in range(4)]
    close(*both(layer, initial_state=state))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kinds", [("LSTM", "LSTM"), ("GRU", "SimpleRNN", "LSTM")])
def test_stacked_cells(kinds, mask):
    for sequences in (False, True):
        cells = [CELL_TYPES[kind](H + k) for k, kind in enumerate(kinds)]
        layer = random_weights(L.RNN(cells, return_sequences=sequences, return_state=True))
        close(*both(layer, mask=MASKS[mask]))
        state = [[rng([k, j]).standard_normal((B, H + k)).astype(np.float32)
                  for j in range(2 if kind == "LSTM" else 1)]
                 for k, kind in enumerate(kinds)]  # fmt: skip
        close(*both(layer, initial_state=state))


def test_a_stack_of_one_cell():
    """Without a mask: with one, Keras nests the states in another way."""
    close(*both(random_weights(L.RNN([L.LSTMCell(H)], return_state=True))))


def test_bidirectional_stacked_cells():
    inner = L.RNN([L.LSTMCell(H), L.GRUCell(H)], return_sequences=True)
    close(*both(random_weights(L.Bidirectional(inner)), mask=MASKS["anywhere"]))


def test_stateful():
    layer = make("LSTM", stateful=True)
    loaded = bridge.from_layer(layer)
    layer.reset_state()
    for seed in (0, 1):
        close(plain(loaded(data(seed))), plain(layer(data(seed))))
    loaded.reset_state()
    layer.reset_state()
    close(plain(loaded(data())), plain(layer(data())))


def test_float64_and_other_input():
    layer = L.GRU(H, dtype="float64")
    random_weights(layer)
    loaded = bridge.from_layer(layer)
    assert loaded.layers[0].dtype == np.float64
    np.testing.assert_allclose(loaded(data()), plain(layer(data())), rtol=1e-10, atol=1e-12)
    layer = make("GRU")
    ones = np.ones((B, T, I), int)
    close(plain(bridge.from_layer(layer)(ones)), plain(layer(ones)))


# ---- from_weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"return_sequences": True, "return_state": True},
                                     {"go_backwards": True, "return_sequences": True},
                                     {"use_bias": False}], ids=str)  # fmt: skip
def test_from_weights(cell, options):
    layer = make(cell, **options)
    options = {k: v for k, v in options.items() if k != "use_bias"}
    if not layer.use_bias:
        options |= CELLS[cell]
    loaded = bridge.from_weights(layer.get_weights(), cell.split()[0], **options)
    close(plain(loaded(data(), mask=MASKS["anywhere"])),
          plain(layer(data(), mask=MASKS["anywhere"])))  # fmt: skip


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("sequences", [False, True])
def test_from_weights_of_both_directions(merge, sequences):
    inner = L.GRU(H, return_sequences=sequences, return_state=True)
    layer = random_weights(L.Bidirectional(inner, merge_mode=merge))
    loaded = bridge.from_weights(layer.get_weights(), "GRU", bidirectional=True, merge_mode=merge,
                                 return_sequences=sequences, return_state=True)  # fmt: skip
    close(plain(loaded(data(), MASKS["anywhere"])), plain(layer(data(), mask=MASKS["anywhere"])))


def test_from_weights_of_stacked_cells():
    layer = random_weights(L.RNN([L.LSTMCell(H), L.LSTMCell(H + 1)], return_state=True))
    loaded = bridge.from_weights(layer.get_weights(), "LSTM", num_cells=2, return_state=True)
    close(plain(loaded(data())), plain(layer(data())))


def test_the_hard_sigmoid_of_older_keras():
    layer = make("GRU", return_sequences=True)
    layer.cell.recurrent_activation = lambda x: keras.ops.clip(0.2 * x + 0.5, 0, 1)
    loaded = bridge.from_weights(layer.get_weights(), "GRU", return_sequences=True,
                                 recurrent_activation="hard_sigmoid_onnx")  # fmt: skip
    x = 3 * data()
    close(plain(loaded(x)), plain(L.RNN(layer.cell, return_sequences=True)(x)))


# ---- bad input ---------------------------------------------------------------------------------


def test_what_is_not_known():
    with pytest.raises(TypeError, match=r"expected SimpleRNN, LSTM, GRU, .* got Dense"):
        bridge.from_layer(L.Dense(3))
    with pytest.raises(ValueError, match="LSTM 'mine' has no weights yet"):
        bridge.from_layer(L.LSTM(3, name="mine"))
    with pytest.raises(NotImplementedError, match="activation 'gelu'; known are"):
        bridge.from_layer(make("LSTM", activation="gelu"))
    with pytest.raises(ValueError, match="cell must be one of"):
        bridge.from_weights([], "ConvLSTM")
    with pytest.raises(ValueError, match="merge_mode must be one of"):
        w = make("GRU").get_weights()
        bridge.from_weights(w + w, "GRU", bidirectional=True, merge_mode="max")


def test_wrong_weights():
    kernel, recurrent, bias = make("LSTM").get_weights()
    for weights, text in (
            ([kernel], "expected 2 or 3 arrays of weights, got 1"),
            ([kernel[:, 1:], recurrent, bias], r"kernel: expected shape \(\*, 20\), got \(3, 19\)"),
            ([kernel, recurrent[1:], bias], "recurrent_kernel: expected 4 gates of 4 units each"),
            ([kernel, recurrent, bias[1:]], r"bias: expected shape \(20\), got")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            bridge.from_weights(weights, "LSTM")
    other = [np.ones(s, np.float32) for s in ((3, 24), (6, 24), (24,))]
    for weights, options, text in (
            ([kernel, recurrent, np.array([None] * 20)], {}, "bias: expected real numbers"),
            ([kernel, recurrent, bias] * 2, {"num_cells": 2},
             "cell 1: kernel: expected 5 rows, got 3"),
            ([kernel, recurrent, bias, kernel[1:], recurrent, bias], {"bidirectional": True},
             "cell 1: kernel: expected 3 rows, got 2"),
            ([kernel, recurrent, bias, kernel, recurrent, bias[1:]], {"bidirectional": True},
             r"cell 1: bias: expected shape \(20\), got"),
            ([kernel, recurrent, bias, *other], {"bidirectional": True, "merge_mode": "sum"},
             "merge_mode 'sum' needs two layers of the same size, got 5 and 6")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            bridge.from_weights(weights, "LSTM", **options)
    with pytest.raises(ValueError, match="reset_after=False does not go with a bias"):
        bridge.from_weights(make("GRU").get_weights(), "GRU", reset_after=False)


def test_wrong_input():
    layer = bridge.from_layer(make("GRU"))
    for call, text in ((lambda: layer(data()[0]), r"x must have shape \(B, T, I\), got \(7, 3\)"),
                       (lambda: layer(data()[..., 1:]), "x has 2 features"),
                       (lambda: layer(data(), MASKS["full"][:, 1:]),
                        r"mask must have shape \(4, 7\), got \(4, 6\)"),
                       (lambda: layer(data(), initial_state=[np.zeros((B, H))] * 2),
                        "initial_state must have 1 arrays, got 2")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            call()
