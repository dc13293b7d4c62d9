"""The promise of engine ``fused``: the same bits for a sequence alone, in any batch, at any place
in it, padded, ragged, streamed in chunks of any size, and on every instruction set."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rnnfast
from rnnfast import _kernels

from .bits import same_bits

LAYERS = {"rnn": rnnfast.RNN, "lstm": rnnfast.LSTM, "gru": rnnfast.GRU}
VARIANTS = {
    "rnn": [{}, {"nonlinearity": "relu"}],
    "lstm": [{}, {"proj_size": 5, "peephole": True}, {"layer_norm": True, "coupled": True}],
    "gru": [{}, {"reset_after": False}, {"layer_norm": True}],
}
CASES = [(cell, options) for cell in LAYERS for options in VARIANTS[cell]]
CASE = pytest.mark.parametrize(("cell", "options"), CASES, ids=[f"{c}-{o}" for c, o in CASES])
QUIET = settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def fused(use_engine):
    use_engine("fused")


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def make(cell, options, dtype, **more):
    return LAYERS[cell](7, 19, num_layers=2, dtype=dtype, seed=3, **options, **more)


@CASE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@QUIET
@given(seed=st.integers(0, 2**32 - 1), B=st.integers(1, 13), T=st.integers(1, 9))
def test_a_sequence_alone_and_in_a_batch(cell, options, dtype, seed, B, T):
    """Output, final state, dx and the initial state's gradient of each row of a ragged batch."""
    layer = make(cell, options, dtype, bidirectional=bool(seed % 2))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((T, B, 7)).astype(dtype)
    lengths = rng.integers(1, T + 1, B)
    y, state, tape = layer.forward(x, lengths=lengths)
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx, dstate = layer.backward(tape, dy)
    for b in range(B):
        n = lengths[b]
        alone, s, t = layer.forward(x[:n, b : b + 1])
        same_bits(y[:n, b : b + 1], alone, f"output of sequence {b}")
        d, ds = layer.backward(t, dy[:n, b : b + 1])
        same_bits(dx[:n, b : b + 1], d, f"dx of sequence {b}")
        for whole, part in zip(parts(state) + parts(dstate), parts(s) + parts(ds), strict=True):
            same_bits(whole[:, b : b + 1], part, f"state of sequence {b}")


@CASE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@QUIET
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), T=st.integers(1, 12))
def test_whole_and_in_chunks(cell, options, dtype, data, seed, T):
    layer = make(cell, options, dtype)
    x = np.random.default_rng(seed).standard_normal((T, 3, 7)).astype(dtype)
    whole, final = layer(x)
    stream, outputs, t = layer.stream(3), [], 0
    while t < T:
        n = data.draw(st.integers(1, T - t))
        outputs.append(stream.process(x[t : t + n]))
        t += n
    same_bits(np.concatenate(outputs), whole, "output")
    for got, want in zip(parts(stream.state), parts(final), strict=True):
        same_bits(got, want, "state")


@CASE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_isa(cell, options, dtype, use_isa):
    """All results of a training step, weight gradients included, over more than one block."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((30, 40, 7)).astype(dtype)
    lengths, results = rng.integers(0, 31, 40), {}
    slow = [isa for isa in _kernels.isas() if isa != "scalar"] or ["scalar"]
    for isa in slow:
        use_isa(isa)
        layer = make(cell, options, dtype, bidirectional=True)
        y, state, tape = layer.forward(x, lengths=lengths)
        dx, dstate = layer.backward(tape, np.cos(y, dtype=np.float64).round(3).astype(dtype))
        results[isa] = {"y": y, "dx": dx, **layer.grads}
        for k, a in enumerate(parts(state) + parts(dstate)):
            results[isa][f"state {k}"] = a
    for isa in slow[1:]:
        for name, want in results[slow[0]].items():
            same_bits(results[isa][name], want, f"{name} on {isa}")


def test_a_stream_after_a_change_of_instruction_set(use_isa):
    """AVX2 packs weights in an order of its own: a stream that packed them in the other refuses."""
    layer = rnnfast.LSTM(3, 20, seed=0)
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    want = layer(x)[0]
    for packed, used in itertools.permutations(_kernels.isas(), 2):
        use_isa(packed)
        stream = layer.stream(2)
        use_isa(used)
        if "avx2" not in (packed, used):
            same_bits(stream.process(x), want, f"packed for {packed}, on {used}")
            continue
        for run, part in ((stream.step, x[0]), (stream.process, x)):
            with pytest.raises(RuntimeError, match="instruction set"):
                run(part)
        use_isa(packed)
        same_bits(stream.process(x), want, f"back on {packed}")


@CASE
def test_the_scalar_build_without_hardware_fma(cell, options, use_isa):
    x = np.random.default_rng(6).standard_normal((3, 2, 7)).astype("float32")
    results = []
    for isa in ("scalar", _kernels.isas()[-1]):
        use_isa(isa)
        layer = make(cell, options, "float32")
        y, _, tape = layer.forward(x)
        results.append((y, layer.backward(tape, y)[0], *layer.grads.values()))
    for got, want in zip(*results, strict=True):
        same_bits(got, want)


@pytest.mark.parametrize("size", [(1100, 9, 70), (14, 1100, 9)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_chains_are_not_cut(dtype, size, use_engine):
    """More rows and columns than a block of the product holds: still one chain per element."""
    rows, width, outputs = size
    rng = np.random.default_rng(8)
    x, dy = (rng.standard_normal((rows, n)).astype(dtype) for n in (width, outputs))
    results = []
    for engine in ("fused", "reference-fused"):
        use_engine(engine)
        linear = rnnfast.Linear(width, outputs, dtype=dtype, seed=1)
        y, tape = linear.forward(x)
        results.append((y, linear.backward(tape, dy), *linear.grads.values()))
    for got, want in zip(*results, strict=True):
        same_bits(got, want)


@CASE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("T", [1, 43, 85, 86])
def test_few_rows_of_many_inputs(cell, options, dtype, T):
    """Up to 85 rows of 257 inputs are multiplied with weights in place, more with packed ones."""
    layer = LAYERS[cell](257, 9, dtype=dtype, seed=5, bidirectional=True, **options)
    x = np.random.default_rng(T).standard_normal((T, 5, 257)).astype(dtype)
    whole = layer(x)[0]
    for B in (1, 2):
        same_bits(layer(x[:, :B])[0], whole[:, :B])
        same_bits(layer.forward(x[:, :B])[0], whole[:, :B])


# ---- threads ------------------------------------------------------------------------------------


@pytest.fixture
def use_threads():
    """A function that sets the number of threads for the rest of the test."""
    yield rnnfast.set_num_threads
    rnnfast.set_num_threads(None)


def everything(layer, x, lengths=None, resets=None):
    """Every array that a layer computes: inference, forward, backward."""
    layer.zero_grad()
    y, state, tape = layer.forward(x, lengths=lengths, resets=resets)
    dx, dstate = layer.backward(tape, y)
    inferred, _ = layer(x, lengths=lengths, resets=resets)
    return {"y": y, "dx": dx, "inferred": inferred, **layer.grads,
            **{f"state {k}": a for k, a in enumerate(parts(state) + parts(dstate))}}  # fmt: skip


@CASE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_number_of_threads(cell, options, dtype, use_threads):
    """Enough work that rows and products are divided; 23 rows divide evenly into nothing."""
    rng = np.random.default_rng(5)
    layer = LAYERS[cell](70, 66, num_layers=2, dtype=dtype, seed=3, **options)
    x = rng.standard_normal((40, 23, 70)).astype(dtype)
    for lengths in (None, rng.integers(0, 41, 23)):
        use_threads(1)
        want = everything(layer, x, lengths)
        for threads in (2, 3, 7):
            use_threads(threads)
            for name, got in everything(layer, x, lengths).items():
                same_bits(got, want[name], f"{name} with {threads} threads")


HALVES = [(cell, {}) for cell in LAYERS]  # and what needs all units in the middle of a step
HALVES += [("lstm", {"proj_size": 150}), ("gru", {"reset_after": False})]
HALVES += [(cell, {"recurrent_dropout": 0.3, **options}) for cell, options in HALVES]
HALVES += [("lstm", {"layer_norm": True, "proj_size": 150, "recurrent_dropout": 0.3}),
           ("lstm", {"layer_norm": True, "peephole": True}), ("gru", {"layer_norm": True}),
           ("gru", {"layer_norm": True, "recurrent_dropout": 0.3})]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("cell", "options"), HALVES, ids=[f"{c}-{o}" for c, o in HALVES])
@pytest.mark.parametrize("B", [1, 3, 5])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_few_sequences_on_any_number_of_threads(cell, options, B, bidirectional, dtype,
                                                use_threads):  # fmt: skip
    """So many weights that the hidden units are divided; 330 divide evenly into nothing."""
    rng = np.random.default_rng(6)

    def everything_of_a_new_layer(resets=None):  # whose dropout draws the same again
        layer = LAYERS[cell](70, 330, bidirectional=bidirectional, dtype=dtype, seed=3, **options)
        return everything(layer, x, resets=resets)

    layer = LAYERS[cell](70, 330, bidirectional=bidirectional, dtype=dtype, seed=3, **options)
    # enough for threads to be asked; the portable C build, where fma is a call, does no more
    T = 40 if _kernels.get_isa() != "scalar" else {"rnn": 40, "gru": 17, "lstm": 14}[cell]
    x = rng.standard_normal((T, B, 70)).astype(dtype)
    resets = rng.random((T, B)) < 0.2 if B > 1 else None
    use_threads(1)
    want = everything_of_a_new_layer()
    begun_anew = everything_of_a_new_layer(resets)
    for threads in (2, 3, 7):
        use_threads(threads)
        for name, got in everything_of_a_new_layer().items():
            same_bits(got, want[name], f"{name} with {threads} threads")
        for name, got in everything_of_a_new_layer(resets).items():
            same_bits(got, begun_anew[name], f"{name} with resets and {threads} threads")
        if not bidirectional:
            stream = layer.stream(B)
            steps = np.stack([stream.step(x_t) for x_t in x])
            same_bits(steps, want["inferred"], f"stream with {threads} threads")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("H", [3, 8, 12, 21, 40, 64])
@pytest.mark.parametrize("cell", LAYERS)
def test_few_units_alone_and_in_a_batch(cell, H, dtype):
    """Where one kernel takes a sequence through all steps: of a batch's sequences too, if few."""
    rng = np.random.default_rng(H)
    for inputs, bidirectional in ((1, True), (20, False)):
        layer = LAYERS[cell](inputs, H, 2, bidirectional=bidirectional, dtype=dtype, seed=H)
        x = rng.standard_normal((9, 33, inputs)).astype(dtype)
        alone = np.concatenate([layer(x[:, b : b + 1])[0] for b in range(33)], axis=1)
        for B in (2, 7, 33):
            same_bits(layer(x[:, :B])[0], alone[:, :B], f"{inputs} inputs, {B} sequences")
        resets = rng.random((9, 33)) < 0.3
        resets[:, 0] = False
        want, final, _ = layer.forward(x, resets=resets)
        for B in (1, 2, 7, 33):
            name = f"{inputs} inputs, {B} sequences with resets"
            y, state = layer(x[:, :B], resets=resets[:, :B])
            same_bits(y, want[:, :B], name)
            for got, all_of_it in zip(parts(state), parts(final), strict=True):
                same_bits(got, all_of_it[:, :B], name)


@CASE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ids", [False, True])
def test_resets_in_inference_and_in_training(cell, options, dtype, ids):
    """A call runs other functions than `forward`; many steps, whose inputs are one product, too."""
    rng = np.random.default_rng(8)
    for T, B, batch_first in ((1, 1, False), (9, 4, True), (300, 1, False), (70, 40, True)):
        layer = make(cell, options, dtype, bidirectional=B == 4, batch_first=batch_first)
        axes = (B, T) if batch_first else (T, B)
        x = rng.integers(0, 7, axes) if ids else rng.standard_normal((*axes, 7)).astype(dtype)
        resets = rng.random(axes) < 0.2
        y, state = layer(x, resets=resets)
        want, final, _ = layer.forward(x, resets=resets)
        same_bits(y, want, f"{T} x {B}")
        for got, other in zip(parts(state), parts(final), strict=True):
            same_bits(got, other, f"{T} x {B}, state")


@CASE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("B", [1, 4])
@pytest.mark.parametrize("ids", [False, True])
def test_steps_of_a_stream(cell, options, dtype, B, ids):
    """Each alone, and the state put back in the middle; class indices too."""
    layer = make(cell, options, dtype)
    rng = np.random.default_rng(4)
    x = rng.integers(0, 7, (9, B)) if ids else rng.standard_normal((9, B, 7)).astype(dtype)
    y, final = layer(x)
    stream = layer.stream(B)
    first = [stream.step(x_t) for x_t in x[:5]]
    state = stream.state
    stream.step(x[0])
    stream.state = state
    same_bits(np.stack(first + [stream.step(x_t) for x_t in x[5:]]), y, "output")
    for got, want in zip(parts(stream.state), parts(final), strict=True):
        same_bits(got, want, "state")
    stream.reset()
    same_bits(stream.process(x), y, "output after a reset")


# ---- other machines -----------------------------------------------------------------------------

# SHA-256 of all results of `everything` for the inputs below: the same on every machine whose
# arithmetic is IEEE 754's, x86's flush-to-zero included (docs/arithmetic.md has the limits).
HASHES = {
    ("rnn", "float32"):
        "f82d7af5c3f4ea9f81281f1b106ea2168db54084c640347d7740f406c25c3a45",
    ("rnn", "float64"):
        "2dc66d3e00f6b5d0d3e783d2f38834b58524f82e417023397518d33ae3fe2086",
    ("lstm", "float32"):
        "ccad0d4cd214a1345e51daa535dedc5e0ff172eadbe3af713f5b0cfe84055a8e",
    ("lstm", "float64"):
        "56286ea33f29c017ded2d157fa0edea78f7e90bacf0696f6998b3c8373974e09",
    ("gru", "float32"):
        "0d57224ac6123c00e8d3ce7a12bc51443cbf7e708b964051846d036d4ffbe882",
    ("gru", "float64"):
        "12d9eb87269a1738c58b0601607ded65c8e08ad47fcb94b5d19a25a8f73ea131",
}


def dyadic(rng, shape, dtype):
    """Numbers that every machine draws alike: multiples of 2^-9."""
    return (rng.randint(-1024, 1025, shape) / 512).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", LAYERS)
def test_stored_hash(cell, dtype):
    rng = np.random.RandomState(11)
    layer = LAYERS[cell](9, 37, num_layers=2, bidirectional=True, dtype=dtype, seed=0)
    for name in sorted(layer.params):
        layer.params[name][...] = dyadic(rng, layer.params[name].shape, dtype) / 8
    x = dyadic(rng, (12, 7, 9), dtype)
    digest = hashlib.sha256()
    for name, a in sorted(everything(layer, x, [12, 3, 0, 7, 12, 1, 9]).items()):
        digest.update(name.encode() + a.astype(a.dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest() == HASHES[cell, dtype]
