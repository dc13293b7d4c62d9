"""The affine layer, activations and the output recurrence against their twins, bit for bit."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rnnfast import _dense, _kernels, _output_rnn
from rnnfast.reference import linear, output_rnn
from rnnfast.reference.arithmetic import PLAIN, Blas, Fused

from .bits import same_bits, same_tape
from .cells import batch, uniform

DTYPES = (np.float32, np.float64)
ACTIVATIONS = ("sigmoid", "tanh", "relu", "hard_sigmoid", "hard_sigmoid_onnx")
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.sampled_from([1, 2, 3, 7, 16, 33])
ARITHMETICS = {"blas": Blas, "fused": Fused}
both_engines = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=ARITHMETICS)
def arithmetic(request, use_engine):
    """The arithmetic of each engine in turn; what is compiled uses that engine."""
    use_engine(request.param)
    return ARITHMETICS[request.param]


def linear_both(arithmetic, seed, N, I, O, dtype, bias=True, ids=False, need_dx=True):
    """(name, compiled, twin) of every result of linear_forward and linear_backward."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, I, N) if ids else rng.standard_normal((N, I)).astype(dtype)
    w = {"weight": uniform(rng, dtype, O, I)}
    if bias:
        w["bias"] = uniform(rng, dtype, O)
    dy = rng.standard_normal((N, O)).astype(dtype)
    grads = {k: uniform(rng, dtype, *v.shape) for k, v in w.items()}
    other = {k: v.copy() for k, v in grads.items()}
    yield "y", _dense.linear_forward(x, *w.values()), linear.linear_forward(
        x, *w.values(), arithmetic=arithmetic)  # fmt: skip
    yield "dx", _dense.linear_backward(x, w["weight"], dy, grads, need_dx), linear.linear_backward(
        x, w["weight"], dy, other, need_dx, arithmetic=arithmetic)  # fmt: skip
    for k in grads:
        yield f"d{k}", grads[k], other[k]


@pytest.mark.parametrize("dtype", DTYPES)
@both_engines
@given(seed=SEEDS, N=st.integers(0, 9), I=SIZES, O=SIZES, bias=st.booleans(), ids=st.booleans(),
       need_dx=st.booleans())  # fmt: skip
def test_linear_same_bits(arithmetic, dtype, seed, N, I, O, bias, ids, need_dx):
    for name, got, want in linear_both(arithmetic(), seed, N, I, O, dtype, bias, ids, need_dx):
        same_bits(got, want, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [1, 2])
def test_large_linear_same_bits(use_engine, N, dtype):
    """So large that one row is another routine's of BLAS (GEMV_SIZE)."""
    use_engine("blas")
    for name, got, want in linear_both(Blas(), 0, N, 514, 512, dtype):
        same_bits(got, want, name)


@pytest.mark.parametrize("isa", _kernels.isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ids", [False, True])
def test_linear_same_bits_on_every_isa(arithmetic, ids, dtype, isa, use_isa):
    use_isa(isa)
    for name, got, want in linear_both(arithmetic(), 1, 50, 20, 35, dtype, ids=ids):
        same_bits(got, want, name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_are_one_hot_rows(dtype):
    rng = np.random.default_rng(0)
    ids, w, dy = rng.integers(0, 6, 20), uniform(rng, dtype, 4, 6), uniform(rng, dtype, 20, 4)
    one_hot = np.eye(6, dtype=dtype)[ids]
    same_bits(_dense.linear_forward(ids, w), _dense.linear_forward(one_hot, w))
    got, want = ({"weight": np.zeros_like(w)} for _ in range(2))
    assert _dense.linear_backward(ids, w, dy, got) is None
    _dense.linear_backward(one_hot, w, dy, want)
    np.testing.assert_allclose(got["weight"], want["weight"], rtol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [-1, 6])
def test_ids_out_of_range(bad, dtype):
    w = np.zeros((4, 6), dtype)
    with pytest.raises(ValueError, match="ids must lie in"):
        _dense.linear_forward(np.array([0, bad]), w)
    with pytest.raises(ValueError, match="ids must lie in"):
        _dense.linear_backward(np.array([0, bad]), w, np.zeros((2, 4), dtype), {"weight": w.copy()})


# ---- activations ----------------------------------------------------------------------------


def hard_values(rng, dtype):
    info = np.finfo(dtype)
    special = [0.0, np.inf, np.nan, info.tiny, info.tiny / 4, info.max, 1, 2.5, 3]
    with np.errstate(under="ignore"):
        special = np.array(special, dtype)
    return np.concatenate([special, -special, (rng.standard_normal(199) * 5).astype(dtype)])


@pytest.mark.parametrize("denormals", ["flush", "keep"])
@pytest.mark.parametrize("isa", _kernels.isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_same_bits(name, dtype, isa, denormals, use_isa, use_denormals):
    use_isa(isa)
    use_denormals(denormals)
    rng, arithmetic = np.random.default_rng(2), Blas(denormals)
    x = hard_values(rng, dtype).reshape(7, -1)
    y = _dense.activation_forward(name, x)
    same_bits(y, linear.activation_forward(name, x, arithmetic=arithmetic), "y")
    y, dy = np.nan_to_num(y), rng.permuted(np.nan_to_num(x / 4))
    got = _dense.activation_backward(name, y, dy)
    same_bits(got, linear.activation_backward(name, y, dy, arithmetic=arithmetic), "dx")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_backward_is_the_derivative(name):
    x = np.random.default_rng(3).standard_normal(500) * 2
    kinks = {"relu": [0], "hard_sigmoid": [-3, 3], "hard_sigmoid_onnx": [-2.5, 2.5]}.get(name, [])
    x = x[np.all([abs(x - k) > 1e-2 for k in kinks], axis=0)] if kinks else x
    y, e = _dense.activation_forward(name, x), 1e-3
    f = [_dense.activation_forward(name, x + k * e) for k in (-2, -1, 1, 2)]
    want = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * e)
    got = _dense.activation_backward(name, y, np.ones_like(y))
    np.testing.assert_allclose(got, want, atol=1e-11)


def test_activation_errors():
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match="activation must be one of"):
        _dense.activation_forward("gelu", x)
    with pytest.raises(ValueError, match="contiguous"):
        _dense.activation_forward("tanh", x.T)
    with pytest.raises(ValueError, match="shape"):
        _dense.activation_backward("tanh", x, np.ones(5))
    with pytest.raises(TypeError, match="dy"):
        _dense.activation_backward("tanh", x, x.astype(np.float32))


# ---- output recurrence -----------------------------------------------------------------------


def output_arguments(seed, T, B, I, H, O, dtype, bias=True, ids=False, ragged=True, resets=False):
    """(positional, keywords, weights, grads) for output_rnn_forward."""
    rng = np.random.default_rng(seed)
    x, sizes, r = batch(rng, T, B, dtype, I, ids, ragged, resets)
    shapes = {"w_ih": (H, I), "w_oh": (H, O), "w_ho": (O, H)}
    if bias:
        shapes |= {"b_h": (H,), "b_o": (O,)}
    w = {k: uniform(rng, dtype, *s) for k, s in shapes.items()}
    grads = {k: uniform(rng, dtype, *s) for k, s in shapes.items()}
    return (x, sizes, uniform(rng, dtype, B, O)), {"resets": r}, w, grads


def output_both(arithmetic, seed, *shape, output, **options):
    """(name, compiled, twin) of every result."""
    args, kw, w, grads = output_arguments(seed, *shape, **options)
    other = {k: v.copy() for k, v in grads.items()}
    got = _output_rnn.output_rnn_forward(*args, *w.values(), output=output, **kw)
    want = output_rnn.output_rnn_forward(
        *args, *w.values(), output=output, **kw, arithmetic=arithmetic)  # fmt: skip
    yield from zip(("z", "o_n", "tape"), got, want, strict=True)
    rng = np.random.default_rng(seed + 1)
    d = [rng.standard_normal(a.shape).astype(a.dtype) for a in want[:2]]
    before = [a.copy() for a in d]
    dgot = _output_rnn.output_rnn_backward(got[2], *d, grads)
    dwant = output_rnn.output_rnn_backward(want[2], *d, other, arithmetic=arithmetic)
    yield from zip(("dx", "do0"), dgot, dwant, strict=True)
    yield from ((f"d{k}", grads[k], other[k]) for k in grads)
    yield from zip(("dz stays", "do_n stays"), d, before, strict=True)


OPTIONS = st.fixed_dictionaries(
    {k: st.booleans() for k in ("bias", "ids", "ragged", "resets")}
    | {"output": st.sampled_from(_output_rnn.OUTPUTS)}
)
SHAPES = st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(1, 9), SIZES, SIZES)


def check(results):
    for name, got, want in results:
        if name == "tape":
            same_tape(got, want)
        else:
            same_bits(got, want, name)


@pytest.mark.parametrize("dtype", DTYPES)
@both_engines
@given(seed=SEEDS, shape=SHAPES, options=OPTIONS)
def test_output_rnn_same_bits(arithmetic, dtype, seed, shape, options):
    check(output_both(arithmetic(), seed, *shape, dtype, **options))


@pytest.mark.parametrize("isa", _kernels.isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("output", _output_rnn.OUTPUTS)
def test_output_rnn_same_bits_on_every_isa(arithmetic, output, dtype, isa, use_isa):
    use_isa(isa)
    check(output_both(arithmetic(), 5, 4, 7, 5, 35, 20, dtype, output=output, resets=True))


@pytest.mark.parametrize("dtype", DTYPES)
@both_engines
@given(seed=SEEDS, shape=SHAPES, options=OPTIONS)
def test_output_rnn_close_to_plain(arithmetic, dtype, seed, shape, options):
    tolerance = 2e-4 if dtype == np.float32 else 1e-12
    for name, got, want in output_both(PLAIN, seed, *shape, dtype, **options):
        if name != "tape" and want is not None:
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("denormals", ["flush", "keep"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("output", _output_rnn.OUTPUTS)
def test_output_rnn_denormals_as_twin(arithmetic, output, dtype, denormals, use_denormals):
    use_denormals(denormals)
    tiny = float(np.finfo(dtype).smallest_normal)
    (x, sizes, o0), kw, w, grads = output_arguments(4, 6, 5, 4, 19, 7, dtype, bias=False)
    args = (x * 0, sizes, (o0 * 3 * tiny).astype(dtype), *w.values())
    arithmetic = arithmetic(denormals)
    got = _output_rnn.output_rnn_forward(*args, **kw, output=output)
    want = output_rnn.output_rnn_forward(*args, **kw, output=output, arithmetic=arithmetic)
    check(zip(("z", "o_n", "tape"), got, want, strict=True))
    rng = np.random.default_rng(5)
    d = [(rng.standard_normal(a.shape) * 3 * tiny).astype(dtype) for a in want[:2]]
    grads = {k: v * 0 for k, v in grads.items()}
    other = {k: v.copy() for k, v in grads.items()}
    dgot = _output_rnn.output_rnn_backward(got[2], *d, grads)
    dwant = output_rnn.output_rnn_backward(want[2], *d, other, arithmetic=arithmetic)
    check(zip(("dx", "do0"), dgot, dwant, strict=True))
    check((k, grads[k], other[k]) for k in grads)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("output", _output_rnn.OUTPUTS)
def test_output_rnn_gradients(output, ids):
    """The twin's BPTT against differences of fourth order, every entry of every argument."""
    args, kw, w, _ = output_arguments(6, 4, 3, 2, 3, 4, np.float64, ids=ids, resets=True)
    x, _, o0 = args
    values = {"x": x, "o0": o0} | w
    rng = np.random.default_rng(7)
    z, o_n, tape = output_rnn.output_rnn_forward(*args, *w.values(), output=output, **kw)
    dz, do_n = rng.standard_normal(z.shape), rng.standard_normal(o_n.shape)

    def loss():
        z, o_n, _ = output_rnn.output_rnn_forward(*args, *w.values(), output=output, **kw)
        return (z * dz).sum() + (o_n * do_n).sum()

    grads = {k: np.zeros_like(v) for k, v in w.items()}
    dx, do0 = output_rnn.output_rnn_backward(tape, dz, do_n, grads)
    grads |= {"o0": do0} if ids else {"o0": do0, "x": dx}
    for name, grad in grads.items():
        for at in np.ndindex(grad.shape):
            a, e = values[name], 1e-3
            before, f = a[at], []
            for k in (-2, -1, 1, 2):
                a[at] = before + k * e
                f.append(loss())
            a[at] = before
            want = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * e)
            assert abs(grad[at] - want) < 1e-9 * max(1, abs(want)), (name, at)


def test_output_rnn_errors():
    args, kw, w, grads = output_arguments(8, 3, 2, 2, 3, 4, np.float64, ragged=False)
    f = _output_rnn.output_rnn_forward
    with pytest.raises(ValueError, match="output must be one of"):
        f(*args, *w.values(), output="relu")
    for name in w:
        with pytest.raises(ValueError, match="shape"):
            f(*args, *(w | {name: np.zeros((9, 9))}).values())
    with pytest.raises(ValueError, match="o0"):
        f(args[0], args[1], np.zeros((2, 9)), *w.values())
    z, o_n, tape = f(*args, *w.values(), **kw)
    with pytest.raises(ValueError, match="dz"):
        _output_rnn.output_rnn_backward(tape, z[1:], o_n, grads)
