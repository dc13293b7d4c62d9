"""Every compiled recurrence against its NumPy twin, bit for bit, forward and backward."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rnnfast._gru
import rnnfast._lstm
import rnnfast._rnn
import rnnfast.reference.gru
import rnnfast.reference.lstm
import rnnfast.reference.rnn
from rnnfast import _kernels
from rnnfast.reference.arithmetic import BLAS, FUSED, PLAIN, Blas, Fused

from .bits import same_bits, same_tape
from .cells import MAKERS

COMPILED = {"rnn": rnnfast._rnn, "lstm": rnnfast._lstm, "gru": rnnfast._gru}
TWINS = {
    "rnn": rnnfast.reference.rnn,
    "lstm": rnnfast.reference.lstm,
    "gru": rnnfast.reference.gru,
}
VARIANTS = {
    "rnn": st.fixed_dictionaries({"nonlinearity": st.sampled_from(["tanh", "relu", "sigmoid"])}),
    "lstm": st.fixed_dictionaries(
        {
            "P": st.sampled_from([0, 0, 3]),
            "peephole": st.booleans(),
            "norm": st.booleans(),
            "gate": st.sampled_from(["sigmoid", "hard_sigmoid", "hard_sigmoid_onnx"]),
            "coupled": st.booleans(),
            "clip": st.sampled_from([0.0, 0.3]),
        }
    ),
    "gru": st.one_of(
        st.fixed_dictionaries(
            {
                "norm": st.booleans(),
                "gate": st.sampled_from(["sigmoid", "hard_sigmoid", "hard_sigmoid_onnx"]),
            }
        ),
        st.fixed_dictionaries({"reset_after": st.just(False)}),
    ),
}
COMMON = st.fixed_dictionaries(
    {
        "bias": st.booleans(),
        "ids": st.booleans(),
        "ragged": st.booleans(),
        "resets": st.booleans(),
        "reverse": st.booleans(),
        "mask": st.booleans(),
    }
)
SHAPES = st.tuples(
    st.integers(1, 6),
    st.integers(0, 6),
    st.integers(1, 9),
    st.sampled_from([1, 2, 3, 7, 8, 17, 33]),
)


def run_both(cell, shape, dtype, options, seed, arithmetic=BLAS, gradient_seeds=True):
    """Forward and backward on both sides; yields (name, compiled, twin) of every result."""
    args, kw, grads, n_states = MAKERS[cell](np.random.default_rng(seed), *shape, dtype, **options)
    ours, twin = COMPILED[cell], TWINS[cell]
    forward, backward = f"{cell}_forward", f"{cell}_backward"
    got = getattr(ours, forward)(*args, **kw)
    want = getattr(twin, forward)(*args, **kw, arithmetic=arithmetic)
    yield "tape", got[-1], want[-1]
    for k in range(n_states + 1):
        yield ("y", "h_n", "c_n")[k], got[k], want[k]
    rng = np.random.default_rng(seed + 1)
    dy, *dstate = (rng.standard_normal(a.shape).astype(dtype) for a in want[:-1])
    ours_grads = {k: v.copy() for k, v in grads.items()}
    twin_grads = {k: v.copy() for k, v in grads.items()}
    got = getattr(ours, backward)(got[-1], dy, *dstate, ours_grads)
    want = getattr(twin, backward)(want[-1], dy, *dstate, twin_grads, arithmetic=arithmetic)
    for k in range(n_states + 1):
        yield ("dx", "dh0", "dc0")[k], got[k], want[k]
    for k in grads:
        yield f"d{k}", ours_grads[k], twin_grads[k]


ARITHMETICS = {"blas": {"flush": BLAS, "keep": Blas("keep")},
               "fused": {"flush": FUSED, "keep": Fused("keep")}}  # fmt: skip


@pytest.fixture(params=ARITHMETICS)
def engine(request, use_engine):
    """Each engine in turn."""
    use_engine(request.param)
    return request.param


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", MAKERS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), shape=SHAPES, common=COMMON, seed=st.integers(0, 2**32 - 1))
def test_same_bits_as_twin(engine, cell, dtype, data, shape, common, seed):
    options = common | data.draw(VARIANTS[cell])
    arithmetic = ARITHMETICS[engine]["flush"]
    for name, got, want in run_both(cell, shape, dtype, options, seed, arithmetic):
        if name == "tape":
            same_tape(got, want)
        else:
            same_bits(got, want, name)


@pytest.mark.parametrize("isa", _kernels.isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", MAKERS)
def test_same_bits_on_every_isa(engine, cell, dtype, isa, use_isa):
    use_isa(isa)
    arithmetic = ARITHMETICS[engine]["flush"]
    shape = (5, 9, 20, 50) if engine == "blas" else (4, 7, 5, 35)
    for name, got, want in run_both(cell, shape, dtype, {"resets": True}, 7, arithmetic):
        if name == "tape":
            same_tape(got, want)
        else:
            same_bits(got, want, name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", MAKERS)
@settings(deadline=None)
@given(data=st.data(), shape=SHAPES, common=COMMON, seed=st.integers(0, 2**32 - 1))
def test_close_to_plain_numpy(cell, dtype, data, shape, common, seed):
    options = common | data.draw(VARIANTS[cell])
    tolerance = 2e-4 if dtype == np.float32 else 1e-12
    if options.get("norm"):
        tolerance *= 50  # a row of two or three nearly equal numbers is divided by its deviation
    for name, got, want in run_both(cell, shape, dtype, options, seed, PLAIN):
        if name != "tape" and want is not None:
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("denormals", ["flush", "keep"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", MAKERS)
def test_denormals_as_twin(engine, cell, dtype, denormals, use_denormals):
    """States and gradients around the smallest normal number, in both modes."""
    use_denormals(denormals)
    tiny = float(np.finfo(dtype).smallest_normal)
    args, kw, grads, n_states = MAKERS[cell](np.random.default_rng(3), 6, 5, 4, 19, dtype)
    x, sizes, *rest = args
    h0 = [(s * 3 * tiny).astype(dtype) for s in rest[:n_states]]
    args = (x * 0, sizes, *h0, *rest[n_states : n_states + 2])
    arithmetic = ARITHMETICS[engine][denormals]
    ours, twin = COMPILED[cell], TWINS[cell]
    got = getattr(ours, f"{cell}_forward")(*args, **kw)
    want = getattr(twin, f"{cell}_forward")(*args, **kw, arithmetic=arithmetic)
    small = (np.abs(want[0]) < tiny) & (want[0] != 0)
    assert small.any() == (denormals == "keep") or cell == "gru"
    same_tape(got[-1], want[-1])
    rng = np.random.default_rng(4)
    dy, *dstate = ((rng.standard_normal(a.shape) * 3 * tiny).astype(dtype) for a in want[:-1])
    grads = {k: v * 0 for k, v in grads.items() if not k.startswith("b_")}
    twin_grads = {k: v.copy() for k, v in grads.items()}
    got = getattr(ours, f"{cell}_backward")(got[-1], dy, *dstate, grads)
    want = getattr(twin, f"{cell}_backward")(want[-1], dy, *dstate, twin_grads,
                                             arithmetic=arithmetic)  # fmt: skip
    for k in range(n_states + 1):
        same_bits(got[k], want[k], str(k))
    for k in grads:
        same_bits(grads[k], twin_grads[k], k)
