"""exp, tanh, sigmoid, log and fma: accuracy, special values, order, and the same bits everywhere.

The complete float32 sweep is `make sweep`; docs/arithmetic.md quotes its figures.
"""

import ctypes

import numpy as np
import pytest

from rnnfast import _kernels
from rnnfast.reference import elementary
from tests.bits import same_bits
from tests.ulp import fma_exact, ulp_error

DTYPES = [np.float32, np.float64]
FUNCTIONS = ["exp", "tanh", "sigmoid", "log1p"]
MODES = ["flush", "keep"]
ISAS = _kernels.isas()

# Largest error in ULP that docs/arithmetic.md states; the tail of sigmoid: results below an
# ULP of 1.
BOUNDS = {"exp": 1.1, "tanh": 1.4, "sigmoid": 1.9, "sigmoid tail": 2.5, "log1p": 1.5,
          "log_pos": 0.9}  # fmt: skip


def twin(name, *operands, denormals="keep"):
    """A function of rnnfast.reference.elementary in the given denormal mode."""
    if denormals == "flush":
        operands = [elementary.flushed(x) for x in operands]
    return np.asarray(getattr(elementary, name)(*operands))


def special(dtype):
    """Zeros, infinities, NaN, and the ends of the normal and denormal ranges, with both signs."""
    info = np.finfo(dtype)
    x = [0, info.smallest_subnormal, np.nextafter(info.tiny, dtype(0)), info.tiny,
         np.nextafter(info.tiny, dtype(1)), info.eps, 0.5, np.nextafter(dtype(1), dtype(0)), 1,
         1 + info.eps, info.max, np.inf, np.nan]  # fmt: skip
    x = np.array(x, dtype)
    return np.concatenate([x, -x])


def random_bits(rng, dtype, n):
    """Any bit pattern: all exponents alike, denormals and NaN among them."""
    return rng.integers(0, 256, n * np.dtype(dtype).itemsize, dtype=np.uint8).view(dtype)


def operands(rng, dtype, n):
    """A mixture: any bits, moderate values, values around the smallest normal, special values."""
    with np.errstate(all="ignore"):
        moderate = (rng.normal(size=n) * rng.choice([0.1, 1, 10, 100, 700], n)).astype(dtype)
        small = (rng.normal(size=n) * rng.choice([1e-3, 0.1, 1, 4], n)).astype(dtype)
        small *= np.finfo(dtype).tiny
    kinds = [random_bits(rng, dtype, n), moderate, small, rng.choice(special(dtype), n)]
    return np.choose(rng.integers(0, len(kinds), n), kinds)


def steps(name, dtype):
    """The arguments next to which the method changes: n -> n + 1, the split of tanh, the bounds."""
    info = np.finfo(dtype)
    low, high = {
        "exp": (info.minexp - info.nmant - 3, info.maxexp + 3),
        "sigmoid": (info.minexp - 3, info.maxexp + 3),
        "tanh": (-65, 65),
    }[name]
    at = (np.arange(low, high) + 0.5) * np.log(2) / (2 if name == "tanh" else 1)
    extra = {"exp": [-105, 90, -746, 710], "sigmoid": [-88, 88, -709, 709], "tanh": [0.55, 20]}
    at = np.concatenate([at, extra[name], np.negative(extra[name]), [0]])
    return np.unique(at.astype(dtype))


def around(x, reach):
    """Each x with its `reach` neighbours on both sides; shape (len(x), 2 reach + 1), ascending."""
    columns = [x]
    for direction in (-np.inf, np.inf):
        y = x
        for _ in range(reach):
            y = np.nextafter(y, x.dtype.type(direction))
            columns.append(y)
    return np.sort(np.stack(columns, axis=1), axis=1)


# ---- the same bits everywhere -------------------------------------------------------------------


@pytest.mark.parametrize("denormals", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_isa_gives_the_bits_of_the_twin(name, dtype, denormals):
    rng = np.random.default_rng(1)
    x = np.concatenate([special(dtype), operands(rng, dtype, 40_003)])
    if name in ("exp", "tanh", "sigmoid"):
        x = np.concatenate([x, around(steps(name, dtype), 2).ravel()])
    want = twin(name, x, denormals=denormals)
    for isa in ISAS:
        got = _kernels.apply(name, x, isa=isa, denormals=denormals)
        same_bits(got, want, f"{name}, {isa}, {denormals}")


@pytest.mark.parametrize("n", [*range(0, 18), 31, 33, 63, 65])
@pytest.mark.parametrize("dtype", DTYPES)
def test_short_arrays_and_tails(dtype, n):
    x = np.random.default_rng(n).normal(size=n).astype(dtype)
    for name in FUNCTIONS:
        for isa in ISAS:
            same_bits(_kernels.apply(name, x, isa=isa), twin(name, x), f"{name}, {isa}, n={n}")


# ---- accuracy -----------------------------------------------------------------------------------


def samples(name, dtype):
    """Arguments over the whole range in which the function is neither constant nor linear, all
    exponents among them, and next to the points where the method changes."""
    rng = np.random.default_rng(2)
    info = np.finfo(dtype)
    if name == "log1p":
        tiny_to_one = np.exp2(rng.uniform(info.minexp - info.nmant, 0, 800))
        return np.concatenate([rng.random(1500), tiny_to_one, [0, 1]]).astype(dtype)
    if name == "log_pos":
        with np.errstate(over="ignore"):
            wide = np.exp2(rng.uniform(0, info.maxexp, 1000)).astype(dtype)
        near = np.concatenate([1 + rng.random(1000), 1 + np.exp2(rng.uniform(-52, 2, 500))])
        return np.concatenate([wide[np.isfinite(wide)], near.astype(dtype), [1, 2, info.max]])
    bound = {"exp": 1.02, "tanh": 0.3, "sigmoid": 0.985}[name] * np.log(2) * info.maxexp
    signs = rng.choice([-1, 1], 800)
    x = np.concatenate([
        rng.uniform(-bound, bound, 1000),
        rng.normal(size=1000),
        signs * np.exp2(rng.uniform(info.minexp - info.nmant, 4, 800)),
        rng.choice(steps(name, dtype), 300),
        rng.choice(around(steps(name, dtype), 1).ravel(), 300),
    ]).astype(dtype)  # fmt: skip
    if name == "exp":  # gradual underflow, to the smallest denormal and beyond
        x = np.append(x, rng.uniform(info.minexp - info.nmant - 2, info.minexp, 200) * np.log(2))
    if name == "sigmoid":  # the tail of denormal results has its own test
        tail = -rng.uniform(info.nmant - 1, info.nmant + 5, 800) * np.log(2)
        x = np.append(x[x > info.minexp * np.log(2) + 1e-4], tail)
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*FUNCTIONS, "log_pos"])
def test_error_against_mpmath(name, dtype):
    x = samples(name, dtype)
    # log_pos has no kernel of its own (it is inside softmax_cross_entropy): the twin stands for it
    y = twin(name, x) if name == "log_pos" else _kernels.apply(name, x, denormals="keep")
    error = ulp_error(name, x, y)
    tail = (y < np.finfo(dtype).eps) if name == "sigmoid" else np.zeros(x.size, bool)
    for bound, part in ((BOUNDS[name], ~tail), (BOUNDS.get(f"{name} tail"), tail)):
        if part.any():
            worst = np.where(part, error, 0).argmax()
            assert error[worst] < bound, f"{error[worst]:.3f} ULP at {x[worst]!r}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_tail_goes_to_zero(dtype):
    """Where the result is no normal number: at least 0, at most one smallest normal off."""
    info = np.finfo(dtype)
    edge = info.minexp * np.log(2)
    x = np.linspace(edge * 1.1, edge * 1.0001, 5001).astype(dtype)
    for denormals in MODES:
        y = _kernels.apply("sigmoid", x, denormals=denormals)
        assert (y >= 0).all() and (y <= info.tiny).all()
        assert y[0] == 0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_of_softmax_cross_entropy(dtype, isa):
    """log_pos through the kernel that contains it: V equal logits cost log V."""
    table = ctypes.c_void_p, ctypes.c_ssize_t
    pointer, size = table
    real = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    kernel = ctypes.CFUNCTYPE(ctypes.c_double, size, size, pointer, pointer, real, pointer,
                              pointer, pointer, pointer)(
        _kernels.address(isa, np.dtype(dtype).name, "softmax_cross_entropy"))  # fmt: skip
    for V in (1, 2, 3, 5, 97, 1000):
        z, y, scale = np.zeros((1, V), dtype), np.zeros(1, np.int64), np.ones(1, dtype)
        loss = np.empty(1, dtype)
        kernel(1, V, z.ctypes.data, y.ctypes.data, 0, scale.ctypes.data, None, loss.ctypes.data,
               None)  # fmt: skip
        same_bits(loss, twin("log_pos", np.array([V], dtype)), f"log {V}, {isa}")


# ---- special values and order -------------------------------------------------------------------


@pytest.mark.parametrize("denormals", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype, denormals):
    inf, nan = np.inf, np.nan
    cases = {
        "exp": {0.0: 1, inf: inf, -inf: 0, nan: nan},
        "tanh": {0.0: 0.0, inf: 1, -inf: -1, nan: nan},
        "sigmoid": {0.0: 0.5, inf: 1, -inf: 0, nan: nan},
        "log1p": {0.0: 0.0, nan: nan},
    }
    for name, table in cases.items():
        x, y = np.array(list(table.items()), dtype).T.copy()
        for isa in ISAS:
            same_bits(_kernels.apply(name, x, isa=isa, denormals=denormals), y, f"{name}, {isa}")
    negative_zero = np.array([-0.0], dtype)
    same_bits(_kernels.apply("tanh", negative_zero), negative_zero, "tanh(-0)")
    assert _kernels.apply("exp", negative_zero) == 1
    same_bits(twin("log_pos", np.array([1, inf, nan], dtype)), np.array([0, inf, nan], dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_overflows_and_underflows_where_it_must(dtype):
    info = np.finfo(dtype)
    top = dtype(float(info.maxexp) * np.log(2))  # e^top is within a few ULP of 2^maxexp
    x = np.array([np.nextafter(top, dtype(0)), np.nextafter(top, dtype(np.inf)) * dtype(1.001)])
    assert np.isfinite(_kernels.apply("exp", x)).tolist() == [True, False]
    smallest = (info.minexp - info.nmant) * np.log(2)
    x = np.array([smallest + 0.1, smallest - 1.0], dtype)
    assert (_kernels.apply("exp", x, denormals="keep") == [info.smallest_subnormal, 0]).all()
    assert (_kernels.apply("exp", x, denormals="flush") == 0).all()


@pytest.mark.parametrize("denormals", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_is_odd_and_passes_small_arguments(dtype, denormals):
    x = operands(np.random.default_rng(3), dtype, 20_000)
    y = _kernels.apply("tanh", x, denormals=denormals)
    same_bits(_kernels.apply("tanh", -x, denormals=denormals), -y, "tanh(-x)")
    small = np.abs(x) < np.sqrt(np.finfo(dtype).eps) / 4
    kept = np.abs(x) >= (np.finfo(dtype).tiny if denormals == "flush" else 0)
    same_bits(y[small & kept], x[small & kept], "tanh of a small number")
    assert (np.abs(y[small & ~kept]) == 0).all()


@pytest.mark.parametrize("denormals", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid"])
def test_never_decreases(name, dtype, denormals):
    """Across every point where the method changes (all of them: elsewhere the order follows from
    the construction, see elementary_tmpl.h), and between random neighbours."""
    rng = np.random.default_rng(4)
    scale = rng.choice([0.01, 1, 10, 80] if dtype == np.float32 else [0.01, 1, 10, 700], 5000)
    random = (rng.normal(size=5000) * scale).astype(dtype)
    for x in (around(steps(name, dtype), 8), around(random, 2)):
        y = _kernels.apply(name, x, denormals=denormals)
        fell = np.argwhere(y[:, 1:] < y[:, :-1])
        assert not fell.size, f"{len(fell)} decreases, first after {x[tuple(fell[0])]!r}"


# ---- fma ----------------------------------------------------------------------------------------


def kernel_fma(isa, a, b, c, denormals):
    """a * b + c in the arithmetic of an instruction set: a column_dot of one row."""
    pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
    kernel = ctypes.CFUNCTYPE(None, size, size, pointer, size, pointer, size, pointer)(
        _kernels.address(isa, a.dtype.name, "column_dot")
    )
    enter, keep, leave = _kernels.fpmode_addresses()
    mode = ctypes.CFUNCTYPE(ctypes.c_uint64)(enter if denormals == "flush" else keep)
    back = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(leave)
    out = c.copy()
    arguments = (1, a.size, a.ctypes.data, a.size, b.ctypes.data, a.size, out.ctypes.data)
    before = mode()
    kernel(*arguments)
    back(before)
    return out


def hard_fma(rng, dtype, n):
    """Operands for which an fma is easy to get wrong: any bits, cancellation, exact ties and
    their neighbours, products and sums around the limits of the exponent."""
    info = np.finfo(dtype)
    a, b, c = (operands(rng, dtype, n) for _ in range(3))
    with np.errstate(all="ignore"):
        one, eps = dtype(1), info.eps
        # c cancels the rounded product
        cancel = rng.random(n) < 0.2
        c = np.where(cancel, -(a * b) * (one + rng.choice([0, eps, -eps], n).astype(dtype)), c)
        # a b near a power of two at either end of the range
        edge = rng.random(n) < 0.3
        e = rng.integers(info.minexp - info.nmant, info.maxexp, n)
        to = rng.choice([info.minexp, info.minexp - info.nmant, info.maxexp], n) - e
        near = rng.choice([1, 1 + eps, 1 - eps / 2, 1 + 2 * eps, 1.5], (2, n))
        a = np.where(edge, np.ldexp(near[0], e), a).astype(dtype)
        b = np.where(edge, np.ldexp(near[1], to + rng.integers(-2, 3, n)), b).astype(dtype)
        c = np.where(edge & (rng.random(n) < 0.3), 0, c)
        # one term is a tie of the other's last place, or just beside it
        tie = rng.random(n) < 0.2
        a = np.where(tie, rng.choice(near[0], n), a).astype(dtype)
        b = np.where(tie, rng.choice([1, -1, 1 + eps], n), b).astype(dtype)
        half = np.ldexp(rng.choice([1, 1 + eps, 1 - eps / 2], n), -(info.nmant + 1))
        c = np.where(tie, half * rng.choice([1, -1, 2, 0.5], n), c).astype(dtype)
    return tuple(np.where(rng.random(n) < 0.5, x, -x) for x in (a, b, c))


@pytest.mark.parametrize("denormals", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fma_against_exact_rationals(dtype, denormals):
    a, b, c = hard_fma(np.random.default_rng(5), dtype, 6000)
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    a, b, c = a[finite], b[finite], c[finite]
    with np.errstate(over="ignore", under="ignore"):
        exact = [fma_exact(*v, denormals == "flush") for v in zip(a, b, c, strict=True)]
    want = np.array(exact, dtype)
    same_bits(twin("fma", a, b, c, denormals=denormals), want, "twin")
    for isa in ISAS:
        same_bits(kernel_fma(isa, a, b, c, denormals), want, isa)


@pytest.mark.parametrize("denormals", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fma_of_every_isa_gives_the_bits_of_the_twin(dtype, denormals):
    a, b, c = hard_fma(np.random.default_rng(6), dtype, 100_003)
    want = twin("fma", a, b, c, denormals=denormals)
    for isa in ISAS:
        same_bits(kernel_fma(isa, a, b, c, denormals), want, isa)


def test_fma_wants_one_dtype():
    x = np.ones(2)
    with pytest.raises(TypeError, match="one dtype"):
        elementary.fma(x, x, x.astype(np.float32))


# ---- flushed arrays -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_flushed_products_and_quotients_around_the_smallest_normal(dtype):
    """What rounds up to the smallest normal number stays; what is tiny after rounding is flushed,
    also where gradual underflow would have rounded it up."""
    info = np.finfo(dtype)
    tiny, eps, one = info.tiny, info.eps, dtype(1)
    flushed = elementary.flushed
    # (1 - eps/2) tiny lies half way between the largest denormal and the smallest normal
    below = np.array([one - eps / 2, one - eps, one], dtype)
    assert ((below / 2) * (tiny * 2)).tolist()[0] == tiny
    got = np.asarray(flushed(below / 2) * (tiny * 2))
    assert got.tolist() == [0, 0, float(tiny)]
    got = np.asarray(flushed(np.array([tiny, -tiny], dtype)) / dtype(1 + eps))
    assert (got == 0).all() and np.signbit(got).tolist() == [False, True]
    denormal = np.array([tiny / 2, -tiny / 2], dtype)
    assert (np.asarray(flushed(denormal) + one) == 1).all()
    assert (flushed(denormal) < tiny).tolist() == [True, True]
    assert (flushed(denormal) < dtype(0)).tolist() == [False, False]
    same_bits(np.asarray(-flushed(denormal)), -denormal, "negation moves bits")


def test_flushed_refuses_what_it_cannot_mirror():
    x = elementary.flushed(np.ones(3))
    for call in (np.exp, np.sum, np.mean, lambda v: v @ v):
        with pytest.raises(TypeError):
            call(x)
    assert x.max() == 1
    y = x.copy()
    y += 1
    assert isinstance(y, elementary.Flushed) and (y == 2).all()
