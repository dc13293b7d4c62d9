"""The layers: their two engines against each other bit for bit, and what must hold whatever the
engine: ragged batches, resets, streams, directions, checkpoints, dtypes, errors.

Where one computation is cut into others of other shapes (a batch into its rows, a sequence into
chunks), engine ``blas`` promises no bits, because BLAS sums in an order that depends on the number
of rows. Those tests run in float64 and allow 1e-11 relative to numbers of the size of one.
"""

import contextlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnfast
import rnnfast._gru
import rnnfast._lstm
import rnnfast._rnn
from rnnfast import GRU, LSTM, RNN, Embedding, GRUCell, Linear, LSTMCell, RNNCell
from rnnfast._packing import BLOCK_ROWS, Packing, block_rows, time_blocks

from .bits import same_bits
from .cells import MAKERS

LAYERS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
I, H = 3, 5
cells = pytest.mark.parametrize("cell", LAYERS)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


TWINS = {"blas": "reference", "fused": "reference-fused"}


@contextlib.contextmanager
def engine(name):
    before = rnnfast.get_engine()
    rnnfast.set_engine(name)
    try:
        yield
    finally:
        rnnfast.set_engine(before)


@pytest.fixture(autouse=True)
def over_blas():
    """This file is about the layer class over engine ``blas``."""
    with engine("blas"):
        yield


def pair(state):
    """A state as a tuple of one array or two."""
    return state if isinstance(state, tuple) else (state,)


def state_of(arrays):
    """Such a tuple as a state."""
    return arrays if len(arrays) == 2 else arrays[0]


def close(got, want, name=""):
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11, err_msg=name)


def draw_state(rng, layer, B):
    """An initial state as the layer takes it."""
    n = layer.num_layers * layer.directions
    return state_of(tuple(rng.uniform(-1, 1, (n, B, size)).astype(layer.dtype)
                          for size in layer._state_sizes()))  # fmt: skip


def everything(layer, x, *, seed=1, dy=None, dstate=None, **call):
    """All that forward and backward give, by name; gradients start from what `grads` holds."""
    y, state, tape = layer.forward(x, **call)
    rng = np.random.default_rng(seed)
    if dy is None:
        dy = rng.standard_normal(y.shape).astype(layer.dtype)
    if dstate is None:
        dstate = state_of(tuple(rng.standard_normal(s.shape).astype(layer.dtype)
                                for s in pair(state)))  # fmt: skip
    dx, before = layer.backward(tape, dy, dstate)
    found = {"y": y} | ({} if dx is None else {"dx": dx})
    for name, s, d in zip("hc", pair(state), pair(before), strict=False):
        found |= {name: s, f"d{name}0": d}
    return found | {f"grad {k}": g.copy() for k, g in layer.grads.items()}


def same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        same_bits(got[name], want[name], name)


# ---- each engine against its NumPy twins ---------------------------------------------------------

GATES = st.sampled_from(["sigmoid", "hard_sigmoid", "hard_sigmoid_onnx"])
OPTIONS = {
    "rnn": st.fixed_dictionaries({"nonlinearity": st.sampled_from(["tanh", "relu"])}),
    "lstm": st.fixed_dictionaries(
        {
            "proj_size": st.integers(0, 3),
            "layer_norm": st.booleans(),
            "peephole": st.booleans(),
            "coupled": st.booleans(),
            "gate": GATES,
            "cell_clip": st.sampled_from([0.0, 0.4]),
        }
    ),
    "gru": st.one_of(
        st.fixed_dictionaries({"layer_norm": st.booleans(), "gate": GATES}),
        st.fixed_dictionaries({"reset_after": st.just(False), "gate": GATES}),
    ),
}
COMMON = st.fixed_dictionaries(
    {
        "num_layers": st.sampled_from([1, 1, 2, 3]),
        "bidirectional": st.booleans(),
        "merge": st.sampled_from(["concat", "sum", "mul", "average"]),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "dropout": st.sampled_from([0.0, 0.4]),
        "recurrent_dropout": st.sampled_from([0.0, 0.0, 0.3]),
        "checkpoint_every": st.sampled_from([None, 1, 3]),
    }
)
CALL = st.fixed_dictionaries(
    {
        "ids": st.booleans(),
        "state": st.booleans(),
        "lengths": st.booleans(),
        "resets": st.booleans(),
        "pad_output": st.sampled_from(["zero", "repeat"]),
    }
)
SHAPES = st.tuples(
    st.integers(1, 5), st.integers(0, 4), st.integers(1, 5), st.sampled_from([4, 5, 8, 17])
)


@cells
@settings(max_examples=settings().max_examples * 2)
@given(data=st.data(), compiled=st.sampled_from(list(TWINS)), shape=SHAPES, common=COMMON,
       dtype=st.sampled_from([np.float32, np.float64]), call=CALL,
       seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_same_bits_as_the_twins(cell, compiled, dtype, data, shape, common, call, seed):
    T, B, features, hidden = shape
    options = common | data.draw(OPTIONS[cell])
    if options["num_layers"] == 1:
        options["dropout"] = 0.0  # would warn that there is nothing between layers
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((T, B, features)).astype(dtype)
    if call["ids"]:
        x = rng.integers(0, features, (T, B))
    resets = rng.random((T, B)) < 0.3
    if options["batch_first"]:
        x, resets = np.ascontiguousarray(x.swapaxes(0, 1)), resets.T
    found = []
    for name in (compiled, TWINS[compiled]):
        with engine(name):
            layer = LAYERS[cell](features, hidden, dtype=dtype, seed=seed, **options)
            rng = np.random.default_rng(seed)
            found.append(everything(
                layer, x, state=draw_state(rng, layer, B) if call["state"] else None,
                lengths=rng.integers(0, T + 1, B) if call["lengths"] else None,
                resets=resets if call["resets"] else None,
                pad_output=call["pad_output"]))  # fmt: skip
    same(*found)


# ---- one computation cut into others -------------------------------------------------------------

LAYER_KINDS = {
    "rnn": [{}, {"num_layers": 2, "bidirectional": True}],
    "lstm": [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 2},
             {"layer_norm": True, "peephole": True, "bidirectional": True, "merge": "sum"}],
    "gru": [{"num_layers": 2}, {"reset_after": False, "bidirectional": True, "merge": "mul"}],
}  # fmt: skip
kinds = pytest.mark.parametrize(
    ("cell", "options"), [(c, o) for c, many in LAYER_KINDS.items() for o in many]
)
forward_kinds = pytest.mark.parametrize(
    ("cell", "options"),
    [("rnn", {}), ("rnn", {"num_layers": 2}), ("lstm", {}), ("lstm", {"num_layers": 3}),
     ("lstm", {"proj_size": 2, "coupled": True}), ("gru", {}), ("gru", {"num_layers": 2}),
     ("gru", {"reset_after": False})],
)  # fmt: skip


def double(cell, features=I, **options):
    return LAYERS[cell](features, H, dtype=np.float64, seed=4, **options)


@kinds
def test_ragged_batch_equals_its_sequences_alone(cell, options):
    rng = np.random.default_rng(0)
    lengths = [4, 0, 7, 1, 7, 2]
    T, B = 8, len(lengths)
    x = rng.standard_normal((T, B, I))
    layer = double(cell, **options)
    state = draw_state(rng, layer, B)
    dy = rng.standard_normal((T, B, layer.output_size))
    dstate = draw_state(rng, layer, B)
    batch = everything(layer, x, lengths=lengths, state=state, dy=dy, dstate=dstate)
    alone = double(cell, **options)
    for b, n in enumerate(lengths):
        assert (batch["y"][n:, b] == 0).all() and (batch["dx"][n:, b] == 0).all()
        one = slice(b, b + 1)
        mine = tuple(s[:, one] for s in pair(state))
        d_mine = tuple(s[:, one] for s in pair(dstate))
        if n == 0:
            for name, s, d in zip("hc", mine, d_mine, strict=False):
                same_bits(batch[name][:, one], s, name)
                same_bits(batch[f"d{name}0"][:, one], d, name)
            continue
        got = everything(alone, x[:n, one], state=state_of(mine), dy=dy[:n, one],
                         dstate=state_of(d_mine))  # fmt: skip
        for name in ("y", "dx"):
            close(batch[name][:n, one], got[name], name)
        for name in set(batch) & {"h", "c", "dh0", "dc0"}:
            close(batch[name][:, one], got[name], name)
    for name, g in alone.grads.items():
        close(layer.grads[name], g, name)


@kinds
def test_batch_equals_its_rows(cell, options):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 4, I))
    layer, alone = double(cell, **options), double(cell, **options)
    dy = rng.standard_normal((5, 4, layer.output_size))
    dstate = draw_state(rng, layer, 4)
    batch = everything(layer, x, dy=dy, dstate=dstate)
    for b in range(4):
        mine = tuple(s[:, b] for s in pair(dstate))
        row = everything(alone, x[:, b], dy=dy[:, b], dstate=state_of(mine))
        for name in ("y", "dx"):
            close(row[name], batch[name][:, b], name)
        for name in set(batch) & {"h", "c", "dh0", "dc0"}:
            close(row[name], batch[name][:, b], name)
    for name, g in alone.grads.items():
        close(layer.grads[name], g, name)


@forward_kinds
def test_resets_equal_separate_sequences(cell, options):
    rng = np.random.default_rng(2)
    T, B = 7, 3
    x = rng.standard_normal((T, B, I))
    resets = np.zeros((T, B), bool)
    resets[[0, 3], 0] = resets[[2, 3, 6], 1] = True
    layer, alone = double(cell, **options), double(cell, **options)
    state = draw_state(rng, layer, B)
    dy = rng.standard_normal((T, B, layer.output_size))
    dstate = draw_state(rng, layer, B)
    batch = everything(layer, x, resets=resets, state=state, dy=dy, dstate=dstate)
    for b in range(B):
        starts = np.flatnonzero(resets[:, b]).tolist()
        cuts = sorted({0, *starts, T})
        for a, z in itertools.pairwise(cuts):
            first, last = a == 0 and a not in starts, z == T
            begin = tuple(s[:, b : b + 1] * first for s in pair(state))
            end = tuple(s[:, b : b + 1] * last for s in pair(dstate))
            one = (slice(a, z), slice(b, b + 1))
            got = everything(alone, x[one], dy=dy[one], state=state_of(begin),
                             dstate=state_of(end))  # fmt: skip
            close(batch["y"][one], got["y"])
            close(batch["dx"][one], got["dx"])
            for name in set(batch) & {"h", "c"}:
                if last:
                    close(batch[name][:, b : b + 1], got[name], name)
                if a == 0:
                    close(batch[f"d{name}0"][:, b : b + 1], got[f"d{name}0"] * first, name)
    for name, g in alone.grads.items():
        close(layer.grads[name], g, name)


@forward_kinds
def test_streaming_equals_the_whole(cell, options):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((9, 2, I))
    layer = double(cell, **options)
    whole, state = layer(x)
    stream = layer.stream(batch_size=2)
    parts = [stream.step(x[0])[None], stream.process(x[1:4]), stream.process(x[4:])]
    close(np.concatenate(parts), whole)
    for got, want in zip(pair(stream.state), pair(state), strict=True):
        close(got, want)
    stream.reset()
    out = np.empty((2, layer.output_size))
    assert stream.step(x[0], out=out) is out
    close(out, whole[0])
    # the same by hand, with the state as plain arrays
    y, state = layer(x[:5])
    close(np.concatenate([y, layer(x[5:], state)[0]]), whole)


def test_stream_of_a_batch_first_layer_and_of_indices():
    layer = double("gru", batch_first=True)
    x = np.random.default_rng(3).standard_normal((2, 6, I))
    stream = layer.stream(2)
    close(stream.process(x.swapaxes(0, 1)).swapaxes(0, 1), layer(x)[0])
    ids = np.array([[0, 2], [1, 1]])
    stream = layer.stream(2)
    close(np.stack([stream.step(row) for row in ids]), layer(ids.T)[0].swapaxes(0, 1))


def test_stream_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="bidirectional"):
        double("lstm", bidirectional=True).stream()
    with pytest.raises(ValueError, match="batch of 2"):
        double("lstm").stream(2).step(np.zeros((3, I)))


@cells
@pytest.mark.parametrize("ragged", [False, True])
def test_reverse_direction_is_the_forward_layer_on_reversed_input(cell, ragged):
    rng = np.random.default_rng(5)
    T, lengths = 6, np.array([6, 3, 5]) if ragged else np.array([6, 6, 6])
    x, resets = rng.standard_normal((T, 3, I)), rng.random((T, 3)) < 0.3

    def turned(a):
        b = np.zeros_like(a)
        for k, n in enumerate(lengths):
            b[:n, k] = a[:n, k][::-1]
        return b

    both, forth = double(cell, bidirectional=True), double(cell)
    for name in forth.params:
        forth.params[name][...] = both.params[f"{name}_reverse"]
    dy = rng.standard_normal((T, 3, 2 * H))
    dstate = draw_state(rng, both, 3)
    got = everything(both, x, lengths=lengths, resets=resets, dy=dy, dstate=dstate)
    d_forth = tuple(s[1:] for s in pair(dstate))
    want = everything(forth, turned(x), lengths=lengths, resets=turned(resets),
                      dy=turned(dy)[..., H:], dstate=state_of(d_forth))  # fmt: skip
    close(got["y"][..., H:], turned(want["y"]))
    for name in set(want) & {"h", "c", "dh0", "dc0"}:
        close(got[name][1:], want[name], name)
    for name in forth.params:
        close(got[f"grad {name}_reverse"], want[f"grad {name}"], name)


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "average"])
def test_merge(merge):
    x = np.random.default_rng(0).standard_normal((4, 2, I))
    layer, concat = (double("gru", bidirectional=True, merge=m) for m in (merge, "concat"))
    a, b = np.split(concat(x)[0], 2, axis=-1)
    want = {"concat": concat(x)[0], "sum": a + b, "mul": a * b, "average": (a + b) / 2}[merge]
    same_bits(layer(x)[0], want)
    assert layer.output_size == want.shape[-1]
    deep = double("gru", bidirectional=True, merge=merge, num_layers=2)
    assert deep.params["weight_ih_l1"].shape == (3 * H, layer.output_size)


# ---- padding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad_output", ["zero", "repeat"])
@kinds
def test_nan_in_the_padding_reaches_nothing(cell, options, pad_output):
    rng = np.random.default_rng(6)
    lengths, T = np.array([2, 5, 0, 3]), 6
    past = np.arange(T)[:, None] >= lengths
    x = rng.standard_normal((T, 4, I))
    resets = rng.random((T, 4)) < 0.2
    dy = rng.standard_normal((T, 4, double(cell, **options).output_size))
    found = []
    for filler in (0, np.nan):
        layer = double(cell, **options)
        dy_padded = dy.copy()
        if pad_output == "zero":
            dy_padded[past] = filler
        else:
            dy_padded[:, 2] = filler  # a sequence without a step has nothing to repeat
        x[past] = filler
        found.append(everything(layer, x, lengths=lengths, resets=resets, dy=dy_padded,
                                pad_output=pad_output))  # fmt: skip
    same(*found)
    assert all(np.isfinite(a).all() for a in found[1].values())
    assert (found[1]["dx"][past] == 0).all()
    if pad_output == "zero":
        assert (found[1]["y"][past] == 0).all()
        assert not np.signbit(found[1]["y"][past]).any()


@cells
def test_repeated_padding_and_its_gradient(cell):
    rng = np.random.default_rng(7)
    lengths, T = [3, 5, 0], 6
    x, v = rng.standard_normal((2, T, 3, I))
    layer = double(cell, bidirectional=True, num_layers=2)
    plain, _ = layer(x, lengths=lengths)
    y, _, tape = layer.forward(x, lengths=lengths, pad_output="repeat")
    for b, n in enumerate(lengths):
        same_bits(y[:n, b], plain[:n, b])
        if n:
            assert (y[n:, b] == y[n - 1, b]).all()
        else:
            assert (y[:, b] == 0).all()
    weights = rng.standard_normal(y.shape)
    dx, _ = layer.backward(tape, weights)

    def value(step):
        return (layer(x + step * v, lengths=lengths, pad_output="repeat")[0] * weights).sum()

    h = 1e-4
    slope = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    assert math.isclose((dx * v).sum(), slope, rel_tol=1e-9)


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {"num_layers": 2, "dropout": 0.3, "recurrent_dropout": 0.2, "input_dropout": 0.1},
    {"bidirectional": True}, {},
])  # fmt: skip
@pytest.mark.parametrize("ragged", [False, True])
@cells
def test_checkpoints_change_no_bit(cell, ragged, options, monkeypatch):
    rng = np.random.default_rng(8)
    T, B = 9, 600
    monkeypatch.setattr("rnnfast.layers.block_rows", lambda width: BLOCK_ROWS)
    x = rng.standard_normal((T, B, 2)).astype(np.float32)
    lengths = rng.integers(0, T + 1, B) if ragged else None
    assert len(time_blocks(Packing(T, B, lengths), BLOCK_ROWS)) >= 3
    found = []
    for every in (None, 1, 4):
        layer = LAYERS[cell](2, 3, seed=9, checkpoint_every=every, **options)
        found.append(everything(layer, x, lengths=lengths))
    same(found[1], found[0])
    same(found[2], found[0])


@cells
def test_checkpoints_of_one_long_sequence(cell):
    rng = np.random.default_rng(8)
    T = 3 * block_rows(3 * 8) + 77
    x = rng.standard_normal((T, 1, 2)).astype(np.float32)
    resets = rng.random((T, 1)) < 0.01
    found, sizes = [], []
    for every in (None, 100):
        layer = LAYERS[cell](2, 8, num_layers=2, seed=9, checkpoint_every=every)
        found.append(everything(layer, x, resets=resets))
        sizes.append(layer.forward(x)[2].nbytes)
    same(*found)
    # two layers of gates, states and inputs against x and three states
    assert sizes[0] > T * 2 * 8 * 4 * 2
    assert sizes[1] < T * 2 * 4 + 5 * 8 * 4 * 4 + T * 8 * 2


def test_nbytes_counts_each_array_once():
    layer = LSTM(I, H, seed=0)
    x = np.ones((7, 2, I), np.float32)
    tape = layer.forward(x)[2]
    rows = 7 * 2
    kept = rows * (4 * H + 3 * H) * 4  # gates, h_prev, c_prev, tanh_c
    weights = sum(layer.params[f"weight_{w}_l0"].nbytes for w in ("ih", "hh"))
    assert kept + x.nbytes <= tape.nbytes <= kept + x.nbytes + weights + 7 * 8 + rows * H * 4


# ---- parameters ----------------------------------------------------------------------------------


@cells
def test_state_dict_round_trip(cell):
    a = LAYERS[cell](I, H, num_layers=2, bidirectional=True, seed=1)
    b = LAYERS[cell](I, H, num_layers=2, bidirectional=True, seed=2)
    x = np.random.default_rng(0).standard_normal((4, 2, I)).astype(np.float32)
    assert not np.array_equal(a(x)[0], b(x)[0])
    saved = a.state_dict()
    before = {k: v for k, v in b.params.items()}
    b.load_state_dict(saved)
    assert all(b.params[k] is before[k] for k in before)  # in place
    same_bits(a(x)[0], b(x)[0])
    saved["weight_ih_l0"][:] = 0  # a copy: the layer does not see it
    assert (a.params["weight_ih_l0"] != 0).any()
    inside = {f"encoder.{k}": v for k, v in a.state_dict().items()} | {"other": np.ones(1)}
    b.load_state_dict(inside, prefix="encoder.")


def test_load_state_dict_is_all_or_nothing():
    layer = LSTM(I, H, seed=1)
    before = layer.state_dict()
    fresh = {k: v + 1 for k, v in before.items()}
    wrong = {k: v for k, v in fresh.items() if k != "bias_hh_l0"} | {"bias_xx_l0": np.ones(3)}
    with pytest.raises(KeyError, match=r"missing \['bias_hh_l0'\], unknown \['bias_xx_l0'\]"):
        layer.load_state_dict(wrong)
    with pytest.raises(ValueError, match=r"bias_hh_l0: expected shape \(20,\), got \(19,\)"):
        layer.load_state_dict(fresh | {"bias_hh_l0": np.ones(19)})
    with pytest.raises(ValueError, match="bias_hh_l0: expected real numbers"):
        layer.load_state_dict(fresh | {"bias_hh_l0": np.array(["a"] * 20)})
    same(layer.state_dict(), before)


def test_parameter_names_and_shapes_are_torchs():
    layer = LSTM(3, 5, num_layers=2, bidirectional=True, proj_size=2)
    stems = {"weight_ih": (20, 3), "weight_hh": (20, 2), "bias_ih": (20,), "bias_hh": (20,),
             "weight_hr": (2, 5)}  # fmt: skip
    want = {}
    for k in range(2):
        for suffix in ("", "_reverse"):
            for stem, shape in stems.items():
                deeper = (20, 4) if k and stem == "weight_ih" else shape
                want[f"{stem}_l{k}{suffix}"] = deeper
    assert {k: v.shape for k, v in layer.params.items()} == want
    assert {k: v.shape for k, v in layer.grads.items()} == want
    assert layer.num_parameters == sum(math.prod(s) for s in want.values())
    assert set(GRU(3, 5, bias=False).params) == {"weight_ih_l0", "weight_hh_l0"}
    assert set(LSTMCell(3, 5).params) == {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}


@cells
def test_torch_initialisation(cell):
    layer = LAYERS[cell](30, 64, num_layers=2, bidirectional=True, seed=0)
    for name, p in layer.params.items():
        assert abs(p).max() <= 1 / 8, name
        assert abs(p).max() > 0.95 / 8 or p.size < 200, name
        assert abs(p.std() - 1 / 8 / math.sqrt(3)) < 0.01, name
    again = LAYERS[cell](30, 64, num_layers=2, bidirectional=True, seed=0)
    same(again.state_dict(), layer.state_dict())


@cells
def test_keras_initialisation(cell):
    layer = LAYERS[cell](30, 64, num_layers=2, bidirectional=True, seed=0, init="keras",
                         dtype=np.float64)  # fmt: skip
    gates = layer.gates
    for name, p in layer.params.items():
        if name.startswith("weight_ih"):
            bound = math.sqrt(6 / sum(p.shape))
            assert 0.98 * bound < abs(p).max() <= bound
        elif name.startswith("weight_hh"):
            close(p.T @ p, np.eye(64))
        elif cell == "lstm" and name.startswith("bias_ih"):
            assert (p == np.repeat([0, 1, 0, 0], 64)).all()
        else:
            assert (p == 0).all() and p.shape == (gates * 64,)


@pytest.mark.parametrize("init", ["torch", "keras"])
def test_forget_bias_applies_to_every_layer_and_direction(init):
    layer = LSTM(I, H, num_layers=3, bidirectional=True, init=init, forget_bias=2.5, seed=0)
    names = [n for n in layer.params if n.startswith("bias_ih")]
    assert len(names) == 6
    for name in names:
        total = layer.params[name] + layer.params[name.replace("ih", "hh")]
        assert (total[H : 2 * H] == 2.5).all()
        assert not (total[:H] == 2.5).any()


# ---- shapes and dtypes of the input --------------------------------------------------------------


@cells
def test_zero_batch(cell):
    layer = LAYERS[cell](I, H, num_layers=2, bidirectional=True)
    for call in ({}, {"lengths": []}, {"lengths": np.zeros(0, int)}):
        found = everything(layer, np.zeros((4, 0, I), np.float32), **call)
        assert found["y"].shape == (4, 0, 2 * H) and found["dx"].shape == (4, 0, I)
        assert found["h"].shape == (4, 0, H) == found["dh0"].shape
    assert all((g == 0).all() for g in layer.grads.values())
    assert layer(np.zeros((4, 0, I), np.float32), return_sequences=False)[0].shape == (0, 2 * H)


@cells
def test_zero_steps_are_an_error(cell):
    for x in (np.zeros((0, 2, I), np.float32), np.zeros((0, I), np.float32)):
        with pytest.raises(ValueError, match=f"{cell.upper()}: .*at least one time step"):
            LAYERS[cell](I, H)(x)


@kinds
def test_unbatched_input(cell, options):
    rng = np.random.default_rng(0)
    layer, batched = double(cell, **options), double(cell, **options)
    x = rng.standard_normal((6, I))
    found = everything(layer, x)
    want = everything(batched, x[:, None])  # draws as many random numbers
    for name in ("y", "dx", "h", "dh0"):
        same_bits(found[name], want[name][:, 0], name)
    assert found["h"].shape == (layer.num_layers * layer.directions, layer.state_size)
    state = draw_state(rng, layer, 1)
    flat = tuple(s[:, 0] for s in pair(state))
    y, _ = layer(x, state_of(flat), lengths=[4], resets=np.arange(6) == 2)
    want, _ = batched(x[:, None], state, lengths=[4], resets=np.arange(6)[:, None] == 2)
    same_bits(y, want[:, 0])


@cells
def test_batch_first_is_the_transpose(cell):
    rng = np.random.default_rng(0)
    x, resets = rng.standard_normal((6, 3, I)), rng.random((6, 3)) < 0.3
    dy = rng.standard_normal((6, 3, H))
    a, b = double(cell), double(cell, batch_first=True)
    want = everything(a, x, lengths=[6, 2, 4], resets=resets, dy=dy)
    got = everything(b, x.swapaxes(0, 1), lengths=[6, 2, 4], resets=resets.T, dy=dy.swapaxes(0, 1))
    for name in ("y", "dx"):
        got[name] = got[name].swapaxes(0, 1)
    same(got, want)


@pytest.mark.parametrize("batch_first", [False, True])
@cells
def test_list_of_sequences(cell, batch_first):
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal((n, I)) for n in (3, 0, 5, 2)]
    dense = np.zeros((5, 4, I))
    for b, x in enumerate(xs):
        dense[: len(x), b] = x
    layer = double(cell, batch_first=batch_first)
    y, state = layer(xs)
    want, want_state = layer(dense.swapaxes(0, 1) if batch_first else dense, lengths=[3, 0, 5, 2])
    same_bits(y, want)
    for a, b in zip(pair(state), pair(want_state), strict=True):
        same_bits(a, b)
    ids = [np.array([0, 2]), np.array([1])]
    same_bits(layer(ids)[0], layer([np.eye(I)[i] for i in ids])[0])
    for wrong, match in (([], "empty"), ([xs[0], np.ones((2, I + 1))], "agree"),
                         ([xs[0], np.ones(2)], "agree")):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            layer(wrong)
    with pytest.raises(ValueError, match="own lengths"):
        layer(xs, lengths=[3, 0, 5, 2])
    with pytest.raises(TypeError, match="float64, got"):
        layer([xs[0], xs[2].astype(complex)])
    mixed = layer([xs[0].astype(np.float16), xs[2]])[1]  # the wider type holds both
    close(pair(mixed)[0][:, 1], pair(state)[0][:, 2])


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "merge": "mul", "num_layers": 2}])
@cells
def test_out(cell, options):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 3, I))
    for batch_first in (False, True):
        layer = double(cell, batch_first=batch_first, **options)
        for call in ({}, {"lengths": [2, 5, 0]}, {"return_sequences": False}):
            given = x.swapaxes(0, 1) if batch_first else x
            want, want_state = layer(given, **call)
            roomy = np.full((*want.shape[:-1], want.shape[-1] + 2), 7.0)
            for out in (np.empty_like(want), roomy[..., :-2]):
                y, state = layer(given, out=out, **call)
                assert y is out
                same_bits(out, want)
                for a, b in zip(pair(state), pair(want_state), strict=True):
                    same_bits(a, b)
            assert (roomy[..., -2:] == 7).all()
    with pytest.raises(ValueError, match=r"out must have shape"):
        layer(given, out=np.empty((1, 2, 3)))
    with pytest.raises(TypeError, match="float64"):
        layer(given, out=np.empty(layer(given)[0].shape, np.float32))
    frozen = np.zeros(layer(given)[0].shape)
    frozen.flags.writeable = False
    with pytest.raises(TypeError, match="writable"):
        layer(given, out=frozen)
    assert (frozen == 0).all()


@cells
def test_out_may_be_the_input(cell):
    layer = double(cell, features=2 * H, bidirectional=True)
    x = np.random.default_rng(0).standard_normal((4, 2, 2 * H))
    want = layer(x)[0]
    layer(x, out=x)
    same_bits(x, want)


@kinds
def test_return_sequences_off(cell, options):
    rng = np.random.default_rng(0)
    layer = double(cell, **options)
    x = rng.standard_normal((5, 3, I))
    y, state = layer(x, lengths=[5, 1, 3])
    last, same_state = layer(x, lengths=[5, 1, 3], return_sequences=False)
    h = pair(same_state)[0]
    for a, b in zip(pair(state), pair(same_state), strict=True):
        same_bits(a, b)
    if not layer.bidirectional:
        same_bits(last, rnnfast.last_output(y, [5, 1, 3]))
    want = {"concat": lambda a, b: np.concatenate([a, b], -1), "sum": np.add, "mul": np.multiply}
    same_bits(last, want[layer.merge](h[-2], h[-1]) if layer.bidirectional else h[-1])
    assert not np.shares_memory(last, h)
    alone = layer(x[:, 0], return_sequences=False)[0]
    same_bits(alone, layer(x[:, :1], return_sequences=False)[0][0])


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint64, list, tuple, ">i4"])
def test_lengths_of_any_integer_type(kind):
    layer = double("lstm")
    x = np.random.default_rng(0).standard_normal((5, 3, I))
    plain = [2, 5, 0]
    lengths = kind(plain) if kind in (list, tuple) else np.array(plain, kind)
    same_bits(layer(x, lengths=lengths)[0], layer(x, lengths=np.array(plain))[0])


def test_wrong_lengths():
    layer, x = double("lstm"), np.zeros((5, 3, I))
    for lengths, error, match in (
        ([1, 2], ValueError, r"LSTM: lengths must have shape \(3,\), got \(2,\)"),
        ([1, 2, 6], ValueError, r"LSTM: lengths must lie in \[0, 5\], got 1 to 6"),
        ([1, -1, 2], ValueError, r"LSTM: lengths must lie in \[0, 5\], got -1 to 2"),
        ([1.0, 2.0, 3.0], TypeError, "LSTM: lengths must be integers, got float64"),
        ([True, False, True], TypeError, "LSTM: lengths must be integers, got bool"),
        ([[1, 2, 3]], ValueError, "LSTM: lengths must have shape"),
        (np.array([1, 2, 2**63 + 1], np.uint64), ValueError, "LSTM: lengths must lie in"),
    ):
        with pytest.raises(error, match=match):
            layer(x, lengths=lengths)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
@cells
def test_the_callers_arrays_are_never_changed(cell, options):
    rng = np.random.default_rng(0)
    layer = double(cell, **options)
    x, dy = rng.standard_normal((5, 3, I)), rng.standard_normal((5, 3, layer.output_size))
    state, dstate = draw_state(rng, layer, 3), draw_state(rng, layer, 3)
    resets, lengths = rng.random((5, 3)) < 0.3, np.array([2, 5, 3])
    given = [x, dy, resets, lengths, *pair(state), *pair(dstate), *layer.params.values()]
    copies = [a.copy() for a in given]
    for a in given:
        a.flags.writeable = False
    for call in ({}, {"lengths": lengths}, {"resets": resets}, {"pad_output": "repeat"},
                 {"lengths": lengths, "pad_output": "repeat", "resets": resets}):  # fmt: skip
        everything(layer, x, state=state, dy=dy, dstate=dstate, **call)
        layer(x, state, **call)
    for a, b in zip(given, copies, strict=True):
        same_bits(a, b)


@cells
def test_layouts_and_dtypes_of_the_input(cell):
    rng = np.random.default_rng(0)
    layer = LAYERS[cell](I, H, seed=0)
    x = rng.standard_normal((5, 3, I)).astype(np.float16).astype(np.float32)
    dy = rng.standard_normal((5, 3, H)).astype(np.float32)
    want = everything(layer, x, state=draw_state(np.random.default_rng(1), layer, 3), dy=dy)

    def strange(a, how):
        if how == "swapped":
            return a.astype(a.dtype.newbyteorder())
        if how == "float16":
            return a.astype(np.float16)
        if how == "fortran":
            return np.asfortranarray(a)
        if how == "strided":
            return np.repeat(a, 2, axis=0)[::2]
        if how == "negative":
            return a[::-1].copy()[::-1]
        buffer = np.empty(a.nbytes + 1, np.uint8)
        unaligned = buffer[1:].view(a.dtype).reshape(a.shape)
        unaligned[...] = a
        return unaligned

    for how in ("swapped", "float16", "fortran", "strided", "negative", "unaligned"):
        layer.zero_grad()
        state = draw_state(np.random.default_rng(1), layer, 3)
        if how != "float16":
            state = state_of(tuple(strange(s, how) for s in pair(state)))
        got = everything(layer, strange(x, how), state=state,
                         dy=dy if how == "float16" else strange(dy, how))  # fmt: skip
        same(got, want) if how != "float16" else same_bits(got["y"], want["y"], how)


@cells
def test_class_indices_are_one_hot_vectors(cell):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, I, (5, 3))
    for kind in (np.int64, np.uint8, np.int32, ">i2"):
        a, b = (double(cell, num_layers=2, bidirectional=True) for _ in range(2))
        got = everything(a, ids.astype(kind), lengths=[3, 5, 0])
        want = everything(b, np.eye(I)[ids], lengths=[3, 5, 0])
        assert "dx" not in got
        for name in got:
            close(got[name], want[name], name)
    # unbatched, batch first
    same_bits(a(ids[:, 0])[0], a(ids[:, :1])[0][:, 0])
    close(double(cell, batch_first=True)(ids.T)[0].swapaxes(0, 1), double(cell)(np.eye(I)[ids])[0])


def test_class_indices_out_of_range_only_count_before_the_end():
    layer = double("lstm")
    ids = np.array([[0, 1], [2, 99]])
    layer(ids, lengths=[2, 1])
    for wrong in (ids, np.array([[0, -1]]), np.array([[2**64 - 1]], np.uint64)):
        with pytest.raises(ValueError, match=r"LSTM: class indices must lie in \[0, 3\)"):
            layer(wrong)


def test_wrong_input():
    f32 = np.float32
    layer = LSTM(4, H)
    good = np.zeros((6, 2, 4), f32)
    h, c = np.zeros((2, 1, 2, H), f32)
    for call, error, match in (
        (lambda: layer(np.zeros((6, 2, 5), f32)), ValueError,
         "^LSTM: x has 5 features, weight_ih_l0 expects 4$"),
        (lambda: layer(good.astype(np.float64)), TypeError,
         "^LSTM: x must be float32, got float64$"),
        (lambda: LSTM(4, H, dtype="float64")(good), TypeError,
         "^LSTM: x must be float64, got float32$"),
        (lambda: layer(good.astype(complex)), TypeError, "got complex128"),
        (lambda: layer(good > 0), TypeError, "got bool"),
        (lambda: layer(np.full((6, 2, 4), "a")), TypeError, "LSTM: x must be float32"),
        (lambda: layer(None), (TypeError, ValueError), "LSTM: x must"),
        (lambda: layer(np.zeros((6, 2, 4, 1), f32)), ValueError,
         r"LSTM: x must have 3 dimensions .* got shape \(6, 2, 4, 1\)"),
        (lambda: layer(np.zeros(4, f32)), ValueError, "3 dimensions"),
        (lambda: layer(good, h), TypeError, r"LSTM: state must be a pair \(h, c\), got ndarray"),
        (lambda: layer(good, (h,)), TypeError, "pair"),
        (lambda: layer(good, (h, c[:, :1])), ValueError,
         r"LSTM: state c must have shape \(1, 2, 5\), got \(1, 1, 5\)"),
        (lambda: layer(good, (h, c.astype(np.float64))), TypeError,
         "LSTM: state c must be float32, got float64"),
        (lambda: layer(good, resets=np.zeros((6, 3), bool)), ValueError,
         r"LSTM: resets must have shape \(6, 2\), got \(6, 3\)"),
        (lambda: LSTM(4, H, batch_first=True)(good, resets=np.zeros((2, 6), bool)), ValueError,
         r"LSTM: resets must have shape \(6, 2\), got \(2, 6\)"),
        (lambda: layer(good, resets=np.full((6, 2), 2)), ValueError, "True or False"),
        (lambda: layer(good, pad_output="same"), ValueError, "pad_output must be"),
        (lambda: GRU(4, H)(good, (h, c)), (TypeError, ValueError), "GRU: state"),
        (lambda: layer.backward(layer.forward(good)[2], np.zeros((6, 2, 4), f32)), ValueError,
         r"LSTM: doutput must have shape \(6, 2, 5\)"),
        (lambda: layer.backward(layer.forward(good)[2], np.zeros((6, 2, H))), TypeError,
         "LSTM: doutput must be float32, got float64"),
        (lambda: layer.backward(layer.forward(good)[2], None, (h, c[:, :1])), ValueError,
         "LSTM: state c must have shape"),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            call()


@pytest.mark.parametrize(("arguments", "options", "error", "match"), [
    ((0, 5), {}, ValueError, "input_size must be at least 1, got 0"),
    ((3, 5.0), {}, TypeError, "hidden_size must be an integer, got 5.0"),
    ((3, 5), {"num_layers": 0}, ValueError, "num_layers must be at least 1"),
    ((3, 5), {"num_layers": True}, TypeError, "num_layers must be an integer"),
    ((3, 5), {"num_layers": 2, "dropout": 1.5}, ValueError, r"dropout must lie in \[0, 1\], got"),
    ((3, 5), {"dropout": "a"}, TypeError, "dropout must be a number"),
    ((3, 5), {"recurrent_dropout": math.nan}, ValueError, "recurrent_dropout must lie"),
    ((3, 5), {"proj_size": 5}, ValueError, "proj_size must be below hidden_size, got 5"),
    ((3, 5), {"proj_size": -1}, ValueError, "proj_size must be at least 0"),
    ((3, 5), {"merge": "max"}, ValueError, "merge must be one of"),
    ((3, 5), {"init": "zeros"}, ValueError, "init must be"),
    ((3, 5), {"gate": "tanh"}, ValueError, "gate must be one of"),
    ((3, 5), {"dtype": "float16"}, TypeError, "dtype must be float32 or float64, got float16"),
    ((3, 5), {"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
])  # fmt: skip
def test_wrong_arguments(arguments, options, error, match):
    with pytest.raises(error, match=match):
        LSTM(*arguments, **options)


def test_wrong_arguments_of_the_other_cells():
    with pytest.raises(ValueError, match="nonlinearity must be"):
        RNN(3, 5, nonlinearity="sigmoid")
    with pytest.raises(ValueError, match="GRU: layer_norm needs reset_after=True"):
        GRU(3, 5, layer_norm=True, reset_after=False)
    with pytest.raises(TypeError):
        GRU(3, 5, proj_size=2)


# ---- training ------------------------------------------------------------------------------------


@cells
def test_gradients_add_up_and_tapes_are_independent(cell):
    rng = np.random.default_rng(0)
    layer = double(cell, num_layers=2)
    xs = rng.standard_normal((2, 5, 3, I))
    one = []
    for x in xs:
        layer.zero_grad()
        everything(layer, x, seed=3)
        one.append({k: g.copy() for k, g in layer.grads.items()})
    layer.zero_grad()
    tapes = [layer.forward(x)[2] for x in xs]
    rng = np.random.default_rng(3)
    y, state = layer(xs[0])
    dy = rng.standard_normal(y.shape)
    dstate = tuple(rng.standard_normal(s.shape) for s in pair(state))
    for tape in reversed(tapes):
        layer.backward(tape, dy, state_of(dstate))
    for name, g in layer.grads.items():
        close(g, one[0][name] + one[1][name], name)


@cells
def test_backward_without_output_gradient_or_dx(cell):
    layer = double(cell, num_layers=2)
    x = np.random.default_rng(0).standard_normal((5, 3, I))
    y, _, tape = layer.forward(x)
    dx, _ = layer.backward(tape, np.ones_like(y))
    want = {k: g.copy() for k, g in layer.grads.items()}
    layer.zero_grad()
    nothing, _ = layer.backward(tape, np.ones_like(y), need_dx=False)
    assert nothing is None and dx.shape == x.shape
    same(layer.grads, want)
    layer.zero_grad()
    dx, before = layer.backward(tape, None)
    assert (dx == 0).all() and all((s == 0).all() for s in pair(before))
    assert all((g == 0).all() for g in layer.grads.values())


@cells
def test_dropout(cell):
    """The mask of the input of layer 1 follows from layer 0's output and dE/d(its input)."""
    x = np.random.default_rng(0).standard_normal((40, 8, I))
    quiet, layer = double(cell, num_layers=2), double(cell, num_layers=2, dropout=0.25)
    layer.load_state_dict(quiet.state_dict())
    same_bits(layer(x)[0], quiet(x)[0])  # a call is inference
    y1, _, tape = layer.forward(x)
    y2, _, _ = layer.forward(x)
    assert (y1 != y2).any()
    mask = tape.segments[0]["layers"][1]["masks"]
    assert set(np.unique(mask)) == {0, 1 / 0.75}
    assert abs((mask == 0).mean() - 0.25) < 0.04
    again = double(cell, num_layers=2, dropout=0.25)
    same_bits(again.forward(x)[0], y1)  # the same seed
    first = double(cell)
    second = LAYERS[cell](H, H, dtype=np.float64)
    first.load_state_dict({k: v for k, v in layer.params.items() if k.endswith("l0")})
    second.load_state_dict({k.replace("l1", "l0"): v for k, v in layer.params.items()
                            if k.endswith("l1")})  # fmt: skip
    below, _, first_tape = first.forward(x)
    y, _, second_tape = second.forward(below * mask.reshape(below.shape))
    close(y, y1)
    d, _ = second.backward(second_tape, np.ones_like(y))
    want, _ = first.backward(first_tape, d * mask.reshape(d.shape))
    got, _ = layer.backward(tape, np.ones_like(y))
    close(got, want)


def test_dropout_in_one_layer_warns():
    with pytest.warns(UserWarning, match="LSTM: dropout acts between layers"):
        double("lstm", dropout=0.5)


def test_dropout_of_everything():
    layer = double("lstm", num_layers=2, dropout=1.0)
    x = np.random.default_rng(0).standard_normal((4, 2, I))
    y, _, tape = layer.forward(x)
    assert np.isfinite(y).all()
    dx, _ = layer.backward(tape, np.ones_like(y))
    assert (dx == 0).all() and (layer.grads["weight_ih_l1"] == 0).all()


@pytest.mark.parametrize(("cell", "layer"), [(RNNCell, RNN), (LSTMCell, LSTM), (GRUCell, GRU)])
def test_cells_are_one_step_of_the_layer(cell, layer):
    rng = np.random.default_rng(0)
    one, whole = cell(I, H, dtype=np.float64, seed=1), layer(I, H, dtype=np.float64, seed=2)
    whole.load_state_dict({f"{k}_l0": v for k, v in one.params.items()})
    x = rng.standard_normal((3, 2, I))
    y, _, tape = whole.forward(x)
    state, tapes, seen = None, [], []
    for x_t in x:
        state, step = one.forward(x_t, state)
        tapes.append(step)
        seen.append(pair(state)[0])
    close(np.stack(seen), y)
    dstate = tuple(rng.standard_normal(s.shape) for s in pair(state))
    given = state_of(dstate)
    want, _ = whole.backward(tape, None, state_of(tuple(s[None] for s in dstate)))
    dxs = []
    for step in reversed(tapes):
        dx, given = one.backward(step, given)
        dxs.append(dx)
    close(np.stack(dxs[::-1]), want)
    for name, g in one.grads.items():
        close(g, whole.grads[f"{name}_l0"], name)
    single, _ = one.forward(x[0, 0])
    close(pair(single)[0], y[0, 0])
    with pytest.raises(ValueError, match=f"{cell.__name__}: x must be"):
        one(x)


# ---- the functions beside the recurrent layers ---------------------------------------------------


def test_last_output():
    y = np.random.default_rng(0).standard_normal((4, 3, 2))
    want = np.stack([y[1, 0], np.zeros(2), y[3, 2]])
    same_bits(rnnfast.last_output(y, [2, 0, 4]), want)
    same_bits(rnnfast.last_output(y.swapaxes(0, 1), [2, 0, 4], axis=1), want)
    same_bits(rnnfast.last_output(y), y[-1])
    same_bits(rnnfast.last_output(y[:, 0]), y[-1, 0])
    same_bits(rnnfast.last_output(y[:, 0], [2]), y[1, 0])
    same_bits(rnnfast.last_output(y[:, 0], 0), np.zeros(2))
    last = rnnfast.last_output(y)
    last[:] = 0
    assert (y[-1] != 0).all()


@dtypes
def test_linear(dtype):
    rng = np.random.default_rng(0)
    layer = Linear(3, 4, dtype=dtype, seed=0)
    x = rng.standard_normal((2, 5, 3)).astype(dtype)
    y, tape = layer.forward(x)
    tol = {"rtol": 1e-5 if dtype == np.float32 else 1e-13, "atol": 1e-5}
    np.testing.assert_allclose(y, x @ layer.params["weight"].T + layer.params["bias"], **tol)
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx = layer.backward(tape, dy)
    np.testing.assert_allclose(dx, dy @ layer.params["weight"], **tol)
    np.testing.assert_allclose(layer.grads["weight"], np.einsum("abo,abi->oi", dy, x), **tol)
    np.testing.assert_allclose(layer.grads["bias"], dy.sum((0, 1)), **tol)
    assert layer.backward(tape, dy, need_dx=False) is None
    assert layer(x[:0]).shape == (0, 5, 4) and layer(x[0, 0]).shape == (4,)
    bound = 1 / math.sqrt(3)
    assert all(abs(p).max() <= bound for p in layer.params.values())
    assert "bias" not in Linear(3, 4, bias=False).params
    with pytest.raises(ValueError, match=r"Linear: x has shape \(2, 4\), weight expects 3"):
        layer(np.zeros((2, 4), dtype))
    with pytest.raises(TypeError, match="Linear: x must be"):
        layer(np.zeros((2, 3), int))
    with pytest.raises(ValueError, match=r"Linear: dy must have shape \(2, 5, 4\), got \(5, 2"):
        layer.backward(tape, np.zeros((5, 2, 4), dtype))


@dtypes
def test_embedding(dtype):
    rng = np.random.default_rng(0)
    table = Embedding(6, 3, dtype=dtype, seed=0)
    ids = rng.integers(0, 6, (5, 4))
    y, tape = table.forward(ids)
    same_bits(y, table.params["weight"][ids])
    dy = rng.standard_normal(y.shape).astype(dtype)
    table.backward(tape, dy)
    table.backward(tape, dy)
    want = np.zeros((6, 3))
    np.add.at(want, ids, 2 * dy)
    np.testing.assert_allclose(table.grads["weight"], want, rtol=1e-5, atol=1e-5)
    assert table(np.array(3)).shape == (3,) and table(np.zeros((0, 2), int)).shape == (0, 2, 3)
    for wrong, error, match in ((ids * 1.0, TypeError, "Embedding: indices must be integers"),
                                (ids + 6, ValueError, r"must lie in \[0, 6\)"),
                                (ids - 7, ValueError, r"must lie in \[0, 6\)")):  # fmt: skip
        with pytest.raises(error, match=match):
            table(wrong)
    with pytest.raises(ValueError, match=r"Embedding: dy must have shape \(5, 4, 3\)"):
        table.backward(tape, dy.swapaxes(0, 1))


# ---- the compiled functions, given nonsense ------------------------------------------------------

COMPILED = {"rnn": rnnfast._rnn, "lstm": rnnfast._lstm, "gru": rnnfast._gru}
full = pytest.mark.parametrize(("cell", "options"), [
    ("rnn", {"mask": True}), ("rnn", {}),
    ("lstm", {"P": 3, "peephole": True, "norm": True, "mask": True, "clip": 0.5}),
    ("lstm", {"coupled": True, "clip": 0.5}),
    ("gru", {"norm": True, "mask": True}), ("gru", {"reset_after": False}),
])  # fmt: skip


def distortions(a, optional=False):
    """What must be refused in the place of `a`: (what it is, value)."""
    for what, value in candidates(a):
        if value is None and optional:
            continue
        fine = isinstance(value, np.ndarray) and value.flags.carray
        if not (fine and value.dtype == a.dtype and value.shape == a.shape):
            yield what, value


def more_sequences(what, cell, kw):
    """One state more than sequences that have a step, which is fine where nothing else says how
    many sequences there are."""
    return what == "long axis 0" and cell != "lstm" and kw.get("h_mask") is None


def candidates(a):
    kinds = {"f": np.float64 if a.dtype == np.float32 else np.float32}
    yield "dtype", a.astype(kinds.get(a.dtype.kind, np.int32))
    yield "byte order", a.astype(a.dtype.newbyteorder())
    yield "list", a.tolist()
    yield "none", None
    for axis in range(a.ndim):
        yield f"short axis {axis}", np.ascontiguousarray(np.delete(a, -1, axis))
        yield f"long axis {axis}", np.concatenate([a, a.take([0], axis)], axis)
    yield "one axis more", a[None]
    yield "flat", a.reshape(-1) if a.ndim > 1 else a.reshape(1, -1)
    yield "strided", np.repeat(a, 2, axis=-1)[..., ::2]
    if a.ndim > 1:
        yield "fortran", np.asfortranarray(a)


def nested(args):
    """Paths to every array of (positional, keyword) arguments."""
    args, kw = args
    for k, a in enumerate(args):
        if isinstance(a, np.ndarray):
            yield ("args", k), a
    for k, a in kw.items():
        for i, part in enumerate(a if isinstance(a, tuple) else (a,)):
            if isinstance(part, np.ndarray):
                yield (k, i if isinstance(a, tuple) else None), part


def replaced(args, path, value):
    args, kw = list(args[0]), dict(args[1])
    if path[0] == "args":
        args[path[1]] = value
    elif path[1] is None:
        kw[path[0]] = value
    else:
        kw[path[0]] = tuple(value if i == path[1] else a for i, a in enumerate(kw[path[0]]))
    return args, kw


REFUSED = (TypeError, ValueError, IndexError, AttributeError, KeyError)


@full
def test_forward_refuses_distorted_arrays(cell, options):
    args, kw, _, _ = MAKERS[cell](np.random.default_rng(0), 4, 3, 5, 7, np.float32, resets=True,
                                  ragged=False, **options)  # fmt: skip
    forward = getattr(COMPILED[cell], f"{cell}_forward")
    forward(*args, **kw)
    tried = 0
    for path, a in nested((args, kw)):
        biases = [("args", len(args) - 2), ("args", len(args) - 1)]
        optional = path in biases or path[0] in ("h_mask", "resets", "peephole")
        for what, value in distortions(a, optional):
            if path == ("args", 2) and more_sequences(what, cell, kw):
                continue
            args2, kw2 = replaced((args, kw), path, value)
            with pytest.raises(REFUSED):
                forward(*args2, **kw2)
                pytest.fail(f"{path}: {what} was taken", pytrace=False)
            tried += 1
    assert tried > 60
    for x in (np.full(12, 5), np.full(12, -1), np.full(12, 2**40)):
        with pytest.raises(ValueError, match="ids must lie"):
            forward(x, *args[1:], **kw)
    N, width = 12, args[2].shape[1]
    for out in (np.empty((N, width + 1), np.float32), np.empty((N - 1, width), np.float32),
                np.empty((N, width)), np.empty((width, N), np.float32).T,
                np.empty((N, 2 * width), np.float32)[:, ::2],
                np.lib.stride_tricks.as_strided(np.empty(50, np.float32), (N, width), (4, 4)),
                np.empty((N, width), np.float32)[::-1]):  # fmt: skip
        with pytest.raises(REFUSED):
            forward(*args, **kw, out=out)
    for sizes in ([3, 3, 3, 4], [3, 4, 3, 2], [4, 4, 4, 0], [3, 3, 3], [-3, 3, 6, 6]):
        with pytest.raises(ValueError, match="batch_sizes"):
            forward(args[0], np.array(sizes), *args[2:], **kw)


@full
def test_backward_refuses_distorted_arrays(cell, options):
    args, kw, grads, n = MAKERS[cell](np.random.default_rng(0), 4, 3, 5, 7, np.float32,
                                      resets=True, ragged=False, **options)  # fmt: skip
    ours = COMPILED[cell]
    y, *state, tape = getattr(ours, f"{cell}_forward")(*args, **kw)
    assert len(state) == n
    backward = getattr(ours, f"{cell}_backward")
    backward(tape, y, *state, grads)

    def refused(what, *arguments):
        with pytest.raises(REFUSED):
            backward(*arguments)
            pytest.fail(f"{what} was taken", pytrace=False)

    for k in range(n + 1):
        for what, value in distortions((y, *state)[k], optional=k == 0):
            if k == 1 and more_sequences(what, cell, kw):
                continue
            given = [y, *state]
            given[k] = value
            refused(f"gradient {k}: {what}", tape, *given, grads)
    for name, g in grads.items():
        for what, value in distortions(g):
            refused(f"grads[{name}]: {what}", tape, y, *state, grads | {name: value})
        frozen = g.copy()
        frozen.flags.writeable = False
        refused(f"read-only grads[{name}]", tape, y, *state, grads | {name: frozen})
    for name, a in tape.items():
        for i, part in enumerate(a if isinstance(a, tuple) else (a,)):
            if not isinstance(part, np.ndarray):
                continue
            for what, value in distortions(part, name in ("resets", "h_mask", "peephole")):
                whole = value
                if isinstance(a, tuple):
                    whole = tuple(value if j == i else p for j, p in enumerate(a))
                refused(f"tape[{name}]: {what}", tape | {name: whole}, y, *state, grads)
        if isinstance(a, np.ndarray) and name not in ("resets", "h_mask", "w_hr", "peephole"):
            refused(f"tape without {name}", {k: v for k, v in tape.items() if k != name}, y, *state,
                    grads)  # fmt: skip
