"""Losses, clipping, optimiser steps, look-ups and layer norm: the compiled functions against their
twins bit for bit, against plain NumPy within a tolerance, and against exact values."""

import inspect
import math

import mpmath
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rnnfast
from rnnfast import _clip, _dense, _loss, _optim, _seq, losses
from rnnfast.reference import clip, loss, optim, sequence
from rnnfast.reference.arithmetic import PLAIN, Blas

from .bits import same_bits

DTYPES = [np.float32, np.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES)
SEEDS = st.integers(0, 2**32 - 1)
ROWS = st.integers(0, 9)
WIDTHS = st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100])
SPECIAL = st.booleans()
# a mode set once holds for all examples of a test
modes = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def numbers(rng, dtype, *shape, special=False, scale=3.0):
    """Normal deviates; where special, a fifth of them zeros, infinities, NaN, huge or tiny."""
    x = (rng.standard_normal(shape) * scale).astype(dtype)
    if special:
        info = np.finfo(dtype)
        odd = np.array([0, np.inf, np.nan, info.max, info.tiny, info.tiny / 8, 100, 1000], dtype)
        x = np.where(rng.random(shape) < 0.2, rng.choice(np.concatenate([odd, -odd]), shape), x)
    return x.astype(dtype)


def tolerance(dtype):
    return {"rtol": 2e-5, "atol": 2e-5} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(params=["flush", "keep"])
def twin(request, use_denormals):
    """The arithmetic of both treatments of denormals in turn; the kernels run in the same."""
    use_denormals(request.param)
    return Blas(request.param)


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


def agree(compiled, reference, make, twin, dtype):
    """Run both on equal arguments made by `make()`; compare the results and the arguments."""
    mine, theirs = make(), make()
    got, want = compiled(*mine), reference(*theirs, arithmetic=twin)
    plain = twin is PLAIN

    def compare(a, b, name):
        if isinstance(a, tuple):
            for k, (x, y) in enumerate(zip(a, b, strict=True)):
                compare(x, y, f"{name}[{k}]")
        elif isinstance(a, float | np.ndarray):
            a, b = np.atleast_1d(a), np.atleast_1d(b)
            if plain and a.dtype.kind == "f":
                np.testing.assert_allclose(a, b, **tolerance(dtype), err_msg=name)
            else:
                same_bits(a, b, name)

    compare(got, want, "result")
    for k, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        compare(a, b, f"argument {k}")


# ---- losses --------------------------------------------------------------------------------------


def cross_entropy_arguments(seed, N, V, dtype, special, options):
    """softmax_cross_entropy's arguments; options: (left out, weights, smoothing, where dz goes)."""
    some, weighted, smoothing, gradient = options
    rng = np.random.default_rng(seed)
    z = numbers(rng, dtype, N, V, special=special)
    y = rng.integers(-1 if some else 0, V, N)
    weight = rng.random(N) if weighted else None
    dz = {"none": None, "in place": z, "apart": np.empty_like(z)}[gradient]
    return z, y, rng.random(N).astype(dtype), weight, smoothing, dz


CROSS_ENTROPY = st.tuples(st.booleans(), st.booleans(), st.sampled_from([0.0, 0.1, 0.9]),
                          st.sampled_from(["none", "in place", "apart"]))  # fmt: skip


@dtypes
@modes
@given(seed=SEEDS, N=ROWS, V=WIDTHS, special=SPECIAL, options=CROSS_ENTROPY)
def test_softmax_cross_entropy_same_bits(twin, dtype, seed, N, V, special, options):
    def make():
        return cross_entropy_arguments(seed, N, V, dtype, special, options)

    agree(_loss.softmax_cross_entropy, loss.softmax_cross_entropy, make, twin, dtype)


@dtypes
@given(seed=SEEDS, N=ROWS, V=WIDTHS, options=CROSS_ENTROPY)
def test_softmax_cross_entropy_close_to_plain(dtype, seed, N, V, options):
    def make():
        return cross_entropy_arguments(seed, N, V, dtype, False, options)

    agree(_loss.softmax_cross_entropy, loss.softmax_cross_entropy, make, PLAIN, dtype)


TWO = {"sigmoid_cross_entropy": "target in [0, 1]", "quadratic_error": "any target"}


def two(seed, N, V, dtype, special, scale):
    rng = np.random.default_rng(seed)
    z = numbers(rng, dtype, N, V, special=special)
    t = numbers(rng, dtype, N, V, special=True) if special else rng.random((N, V)).astype(dtype)
    return z, t, scale


@pytest.mark.parametrize("name", TWO)
@dtypes
@modes
@given(seed=SEEDS, N=ROWS, V=WIDTHS, special=SPECIAL, scale=st.sampled_from([1.0, 0.125, 3.3]))
def test_elementwise_losses(twin, dtype, name, seed, N, V, special, scale):
    compiled, reference = getattr(_loss, name), getattr(loss, name)
    agree(compiled, reference, lambda: two(seed, N, V, dtype, special, scale), twin, dtype)
    agree(compiled, reference, lambda: two(seed, N, V, dtype, False, scale), PLAIN, dtype)


@dtypes
@modes
@given(seed=SEEDS, N=ROWS, V=st.one_of(WIDTHS, st.just(0)), special=SPECIAL)
def test_softmax(twin, dtype, seed, N, V, special):
    rng = np.random.default_rng(seed)
    z = numbers(rng, dtype, N, V, special=special)
    agree(_loss.softmax, loss.softmax, lambda: (z.copy(),), twin, dtype)
    if V and not special:
        agree(_loss.softmax, loss.softmax, lambda: (z.copy(),), PLAIN, dtype)
        np.testing.assert_allclose(_loss.softmax(z).sum(axis=1), 1, **tolerance(dtype))


def exact_cross_entropy(z, y):
    """(loss, dz) of one row, by mpmath from the logits as they are."""
    with mpmath.workdps(40):
        z = [mpmath.mpf(float(v)) for v in z]
        z = [v - max(z) for v in z]
        e = [mpmath.exp(v) for v in z]
        s = mpmath.fsum(e)
        value = mpmath.log(s) - z[y]
        dz = [p / s - (k == y) for k, p in enumerate(e)]
        return float(value), np.array([float(d) for d in dz])


@dtypes
def test_cross_entropy_of_extreme_logits(dtype):
    """Within a few ULP of the loss, and of 1 in the gradient, wherever the logits lie."""
    eps = float(np.finfo(dtype).eps)
    big = float(np.finfo(dtype).max) / 4
    rng = np.random.default_rng(0)
    rows = [[0, 0, 0], [1000, 0, -1000], [-1000, -1000, -1000], [big, -big, 0], [88, 88.5, 87],
            [-big, -big, -big], [1e4, 1e4 - 20, 1e4 - 25], [0, -90, -110]]  # fmt: skip
    rows = [np.array(r, dtype) for r in rows]
    rows += [(rng.standard_normal(n) * s).astype(dtype) for n in (2, 17, 50) for s in (0.01, 5, 80)]
    for z in rows:
        for y in {0, len(z) // 2, len(z) - 1}:
            value, dz = losses.softmax_cross_entropy(z[None], np.array([y]))
            want, d_want = exact_cross_entropy(z, y)
            assert abs(value - want) <= 8 * eps * abs(want) + 4 * eps, (z, y, value, want)
            np.testing.assert_allclose(dz[0], d_want, rtol=0, atol=8 * eps)


@dtypes
def test_cross_entropy_of_a_sure_prediction_keeps_its_digits(dtype):
    """log(1 + small), where log(sum) has only the digits of 1 + small."""
    eps = float(np.finfo(dtype).eps)
    value, dz = losses.softmax_cross_entropy(np.array([[12, 0]], dtype), np.array([0]))
    want, d_want = exact_cross_entropy(np.array([12, 0]), 0)
    assert abs(value - want) <= 2 * eps  # absolute: the sum 1 + 6e-6 is rounded first
    np.testing.assert_allclose(dz[0], d_want, atol=2 * eps, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@dtypes
def test_cross_entropy_of_a_single_class_is_zero(dtype, smoothing):
    value, dz = losses.softmax_cross_entropy(np.array([[5.0], [-2e4]], dtype), np.zeros(2, int),
                                             label_smoothing=smoothing)  # fmt: skip
    assert value == 0
    np.testing.assert_allclose(dz, 0, atol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@dtypes
def test_all_ignored_is_zero(dtype, reduction):
    z = np.full((2, 3, 4), np.nan, dtype)  # what is ignored may be anything
    value, dz = losses.softmax_cross_entropy(z, np.full((2, 3), -100), reduction=reduction)
    assert value == 0 and (dz == 0).all()
    rows, dz = losses.softmax_cross_entropy(z, np.full((2, 3), -100), reduction="none")
    assert rows.shape == (2, 3) and (rows == 0).all() and (dz == 0).all()
    empty, dz = losses.softmax_cross_entropy(np.zeros((0, 4), dtype), np.zeros(0, int))
    assert empty == 0 and dz.shape == (0, 4)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_by_its_definition(reduction, smoothing, weighted):
    """Every option, written once more in float64; the gradient by differences of the loss."""
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((2, 5, 6)), rng.integers(0, 6, (2, 5))
    y[0, 1] = y[1, 4] = 3
    w = rng.random((2, 5)) if weighted else None
    options = {"ignore_index": 3, "reduction": reduction, "label_smoothing": smoothing, "weight": w}
    value, dz = losses.softmax_cross_entropy(z, y, **options)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    target = (1 - smoothing) * np.eye(6)[y] + smoothing / 6
    weights = (y != 3) * (1 if w is None else w)
    rows = weights * -(target * np.log(p)).sum(-1)
    share = 1 / weights.sum() if reduction == "mean" else 1
    want = rows if reduction == "none" else rows.sum() * share
    np.testing.assert_allclose(value, want, rtol=1e-13)
    want = share * weights[..., None] * (p - target)
    np.testing.assert_allclose(dz, want, rtol=1e-11, atol=1e-16)

    def total(at):
        return np.sum(losses.softmax_cross_entropy(at, y, **options)[0])

    v, h = rng.standard_normal(z.shape), 1e-3
    near, far = (total(z + k * h * v) - total(z - k * h * v) for k in (1, 2))
    assert math.isclose((dz * v).sum(), (8 * near - far) / (12 * h), rel_tol=1e-9)


def test_cross_entropy_in_place():
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((4, 6)), rng.integers(0, 6, 4)
    want_value, want = losses.softmax_cross_entropy(z, y)
    before = z.copy()
    value, dz = losses.softmax_cross_entropy(z, y, inplace=True)
    assert np.shares_memory(dz, z) and value == want_value
    same_bits(z, want)
    frozen = before.copy()
    frozen.flags.writeable = False
    same_bits(losses.softmax_cross_entropy(frozen, y)[1], want)
    for refused in (frozen, np.asfortranarray(before), before.astype(">f8")):
        with pytest.raises(ValueError, match="inplace needs a C-contiguous, writable array"):
            losses.softmax_cross_entropy(refused, y, inplace=True)
    same_bits(frozen, before)


def test_sigmoid_cross_entropy_is_exact_far_out():
    """The textbook form overflows or loses every digit here. The gradient, a difference from the
    target, is exact to an ULP of 1."""
    for z, t in ((-800.0, 0.0), (800.0, 1.0), (-40.0, 0.0), (40.0, 1.0), (30.0, 0.3), (0.0, 0.5)):
        value, dz = losses.sigmoid_cross_entropy(np.array([[z]]), np.array([[t]]))
        with mpmath.workdps(60):
            s = 1 / (1 + mpmath.exp(-mpmath.mpf(z)))
            one = mpmath.mpf(1)
            on = t * mpmath.log(s) if t else 0
            off = (1 - t) * mpmath.log(one - s) if t < 1 else 0
            want = float(-on - off)
            d_want = float(s - t)
        assert math.isclose(value, want, rel_tol=1e-15, abs_tol=1e-300), (z, t)
        assert abs(dz[0, 0] - d_want) <= 2.0**-53 or math.isclose(dz[0, 0], d_want, rel_tol=1e-15)


def test_reductions_of_the_elementwise_losses():
    rng = np.random.default_rng(0)
    y, t = rng.standard_normal((2, 3, 4)), rng.random((2, 3, 4))
    rows = 0.5 * ((y - t) ** 2).sum(-1)
    for reduction, want, share in (("sum", rows.sum(), 1), ("mean", rows.mean(), 1 / 6),
                                   ("none", rows, 1)):  # fmt: skip
        value, dy = losses.quadratic_error(y, t, reduction=reduction)
        np.testing.assert_allclose(value, want, rtol=1e-14)
        np.testing.assert_allclose(dy, (y - t) * share, rtol=1e-14)
        value, _ = losses.sigmoid_cross_entropy(y, t, reduction=reduction)
        cross = (np.log1p(np.exp(y)) - t * y).sum(-1)
        np.testing.assert_allclose(value, {"sum": cross.sum(), "mean": cross.mean(), "none": cross}
                                   [reduction], rtol=1e-13)  # fmt: skip
    assert losses.quadratic_error(np.array([3.0, 1.0]), np.array([1.0, 1.0]))[0] == 2


def test_losses_refuse_what_does_not_fit():
    z, y = np.zeros((2, 3)), np.zeros(2, int)
    ce = losses.softmax_cross_entropy
    for call, error, match in (
        (lambda: ce(z, y * 1.0), TypeError, "softmax_cross_entropy: targets must be integers"),
        (lambda: ce(z, np.zeros(3, int)), ValueError, r"targets must have shape \(2,\), got"),
        (lambda: ce(z, y + 3), ValueError, r"targets must lie in \[0, 3\), got 3"),
        (lambda: ce(z, y - 1), ValueError, r"targets must lie in \[0, 3\), got -1"),
        (lambda: ce(z.astype(int), y), TypeError, "expected float32 or float64, got int64"),
        (lambda: ce(z.astype(np.float16), y), TypeError, "float32 or float64, got float16"),
        (lambda: ce(z, y, label_smoothing=1.0), ValueError, r"label_smoothing must lie in \[0, 1"),
        (lambda: ce(z, y, reduction="max"), ValueError, "reduction must be one of"),
        (lambda: ce(z, y, weight=np.ones((2, 1))), ValueError, r"weight must have shape \(2,\)"),
        (lambda: losses.quadratic_error(z, z[:1]), ValueError, r"target must have shape \(2, 3\)"),
        (lambda: losses.quadratic_error(z, z.astype(np.float32)), TypeError,
         "quadratic_error: target must be float64, got float32"),
        (lambda: losses.sigmoid_cross_entropy(z, z, reduction="max"), ValueError, "reduction must"),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            call()


def test_swapped_and_strided_logits():
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((4, 6)), rng.integers(0, 6, 4)
    want, d_want = losses.softmax_cross_entropy(z, y)
    for other in (z.astype(">f8"), np.asfortranarray(z), np.repeat(z, 2, axis=1)[:, ::2]):
        value, dz = losses.softmax_cross_entropy(other, y.astype(np.uint8))
        assert value == want
        same_bits(dz, d_want)


# ---- clipping ------------------------------------------------------------------------------------


@dtypes
@modes
@given(seed=SEEDS, n=st.integers(0, 70), special=SPECIAL, exponent=st.integers(-1000, 1000),
       limit=st.sampled_from([0.0, 0.5, 2.0]))  # fmt: skip
def test_clip_parts_same_bits(twin, dtype, seed, n, special, exponent, limit):
    rng = np.random.default_rng(seed)
    g = numbers(rng, dtype, n, special=special)
    g = np.ldexp(g, exponent % 300 - 150 if dtype == np.float32 else exponent).astype(dtype)
    agree(_clip.norm, clip.norm, lambda: (g.copy(),), twin, dtype)
    agree(_clip.scale, clip.scale, lambda: (g.copy(), limit), twin, dtype)
    agree(_clip.clip_by_value, clip.clip_by_value, lambda: (g.copy(), limit), twin, dtype)


@dtypes
@modes
@given(seed=SEEDS, n=st.integers(0, 70), max_norm=st.sampled_from([0.01, 1.0, 1e3]))
def test_clip_by_norm(twin, dtype, seed, n, max_norm):
    rng = np.random.default_rng(seed)
    arrays = [numbers(rng, dtype, n), numbers(rng, dtype, 3, 5), numbers(rng, dtype, 1)]
    for arithmetic in (twin, PLAIN):
        mine, theirs = [a.copy() for a in arrays], [a.copy() for a in arrays]
        got = _clip.clip_by_norm(mine, max_norm)
        want = clip.clip_by_norm(theirs, max_norm, arithmetic=arithmetic)
        if arithmetic is not PLAIN:
            assert got == want
        assert math.isclose(got, want, rel_tol=1e-13)
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, **tolerance(dtype))
            if arithmetic is not PLAIN:
                same_bits(a, b)
    before = math.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in arrays))
    assert math.isclose(got, before, rel_tol=1e-13)
    after = math.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in mine))
    assert after <= max_norm * (1 + 1e-6) or np.allclose(after, before)


@dtypes
def test_norm_neither_overflows_nor_vanishes(dtype, use_denormals):
    info = np.finfo(dtype)
    norm = rnnfast.clip_grad_norm
    for size in (info.max / 64, info.max / 1000, 1.0, float(info.tiny)):
        g = np.array([3, -4, 0] * 5, dtype) * dtype(size)
        assert math.isclose(norm({"g": g}, np.inf), math.hypot(*g.tolist()), rel_tol=1e-15)
    for denormals, kept in (("keep", 1.0), ("flush", 0.0)):
        use_denormals(denormals)
        g = np.array([3, 4], dtype) * info.smallest_subnormal
        assert norm({"g": g}, 1.0) == 5 * kept * float(info.smallest_subnormal)


def test_norm_of_float32_is_summed_in_float64():
    g = np.full(1 << 16, 1 + 2.0**-12, np.float32)
    assert math.isclose(rnnfast.clip_grad_norm([g], 1e9), float(g[0]) * 2**8, rel_tol=1e-14)


def test_clip_grad_norm_over_modules_and_nonfinite_norms():
    a, b = {"w": np.array([3.0, 0])}, {"w": np.array([[4.0]]), "b": np.zeros(2)}
    assert rnnfast.clip_grad_norm([a, b], 1.0) == 5
    np.testing.assert_allclose([a["w"][0], b["w"][0, 0]], [0.6, 0.8], rtol=1e-6)
    assert rnnfast.clip_grad_norm([], 1.0) == 0
    small = np.array([0.3, 0.4])
    assert rnnfast.clip_grad_norm(small, 1.0) == 0.5
    assert small.tolist() == [0.3, 0.4]
    for bad in (np.nan, np.inf):
        grads = {"ok": np.ones(3), "weight_hh_l0": np.array([1.0, bad])}
        copies = {k: v.copy() for k, v in grads.items()}
        with pytest.raises(FloatingPointError, match="gradient of weight_hh_l0 has norm"):
            rnnfast.clip_grad_norm(grads, 1.0)
        assert not math.isfinite(rnnfast.clip_grad_norm(grads, 1.0, nonfinite="skip"))
        for k, g in grads.items():
            same_bits(g, copies[k])
        rnnfast.clip_grad_norm(grads, 1.0, nonfinite="propagate")
        assert np.isnan(grads["weight_hh_l0"][1])
        assert (grads["ok"] == 0).all() if bad == np.inf else np.isnan(grads["ok"]).all()
    with pytest.raises(ValueError, match="nonfinite must be one of"):
        rnnfast.clip_grad_norm([], 1.0, nonfinite="ignore")
    for limit in (0, -1, np.nan):
        with pytest.raises(ValueError, match="max_norm must be positive"):
            rnnfast.clip_grad_norm([], limit)


@dtypes
def test_clip_grad_value(dtype):
    g = np.array([-3, -0.0, 0.5, np.nan, np.inf, -np.inf, 2], dtype)
    rnnfast.clip_grad_value({"a": [g][0]}, 1.0)
    same_bits(g, np.array([-1, -0.0, 0.5, np.nan, 1, -1, 1], dtype))
    with pytest.raises(ValueError, match="limit must not be negative"):
        rnnfast.clip_grad_value([g], -1.0)


# ---- optimiser steps -----------------------------------------------------------------------------

STEPS = {
    "sgd_step": {"slots": ("buf",), "optional": "buf",
                 "scalars": ("lr", "momentum", "keep", "decay")},
    "adam_step": {"slots": ("m", "v", "vmax"), "optional": "vmax",
                  "scalars": ("step", "beta1", "beta2", "root", "eps", "decay", "shrink")},
    "rmsprop_step": {"slots": ("v", "buf"), "optional": "buf",
                     "scalars": ("lr", "alpha", "eps", "decay", "momentum")},
    "adagrad_step": {"slots": ("v",), "optional": None, "scalars": ("lr", "eps", "decay")},
}  # fmt: skip


def step_arguments(name, seed, n, dtype, special, optional, decay):
    rng = np.random.default_rng(seed)
    kind = STEPS[name]
    arrays = {"g": numbers(rng, dtype, n, special=special), "p": numbers(rng, dtype, n)}
    for slot in kind["slots"]:
        a = numbers(rng, dtype, n, special=special)
        arrays[slot] = abs(a) if slot.startswith("v") else a
    if not optional and kind["optional"]:
        arrays[kind["optional"]] = None
    scalars = {k: float(rng.uniform(0.05, 1)) for k in kind["scalars"]}
    scalars["decay"] *= decay
    if name == "sgd_step":
        scalars["nesterov"] = bool(rng.random() < 0.5)
    order = inspect.signature(getattr(optim, name)).parameters
    return tuple((arrays | scalars)[k] for k in order if k != "arithmetic")


@pytest.mark.parametrize("name", STEPS)
@dtypes
@modes
@given(seed=SEEDS, n=st.integers(0, 70), special=SPECIAL, optional=st.booleans(),
       decay=st.booleans())  # fmt: skip
def test_optimiser_steps(twin, dtype, name, seed, n, special, optional, decay):
    compiled, reference = getattr(_optim, name), getattr(optim, name)
    for odd, arithmetic in ((special, twin), (False, PLAIN)):
        agree(compiled, reference,
              lambda odd=odd: step_arguments(name, seed, n, dtype, odd, optional, decay),
              arithmetic, dtype)  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_optimiser_steps_refuse_distorted_arrays(name):
    good = step_arguments(name, 0, 6, np.float32, False, True, True)
    compiled = getattr(_optim, name)
    compiled(*good)
    names = list(inspect.signature(getattr(optim, name)).parameters)
    optional = STEPS[name]["optional"]
    for k, a in enumerate(good):
        if not isinstance(a, np.ndarray):
            continue
        frozen = a.copy()
        frozen.flags.writeable = False
        wrong = [a.astype(np.float64), a[:-1], a[::-1], a[:, None], a.tolist()]
        wrong += [np.repeat(a, 2)[::2]]
        wrong += [frozen] * (names[k] != "g") + [None] * (names[k] != optional)
        for value in wrong:
            with pytest.raises((TypeError, ValueError, AttributeError)):
                compiled(*good[:k], value, *good[k + 1 :])


# ---- look-ups and layer norm ---------------------------------------------------------------------


@dtypes
@modes
@given(seed=SEEDS, N=st.integers(0, 30), V=st.integers(1, 5), n=WIDTHS, special=SPECIAL)
def test_gather_and_scatter(twin, dtype, seed, N, V, n, special):
    rng = np.random.default_rng(seed)
    ids, table = rng.integers(0, V, N), numbers(rng, dtype, V, n, special=special)
    out = np.empty((N, n), dtype)
    _seq.gather(ids, table, out)
    same_bits(out, table[ids])  # a copy: denormals and NaN stay what they are
    rows = numbers(rng, dtype, N, n, special=special)
    want = twin.array(table.copy())
    for i, row in zip(ids, twin.array(rows), strict=True):
        want[i] = want[i] + row
    _seq.scatter_add(ids, rows, table)
    same_bits(table, want)


def test_gather_and_scatter_refuse_nonsense():
    ids, table, out = np.array([0, 2]), np.zeros((3, 4), np.float32), np.zeros((2, 4), np.float32)
    frozen = table.copy()
    frozen.flags.writeable = False
    for wrong in (ids + 1, ids - 1, ids.astype(np.int32), ids[:1], ids[:, None], None):
        with pytest.raises((TypeError, ValueError)):
            _seq.gather(wrong, table, out)
        with pytest.raises((TypeError, ValueError)):
            _seq.scatter_add(wrong, out, table)
    for wrong in (table[:, :3], table.astype(np.float64), table.T, frozen, None):
        with pytest.raises((TypeError, ValueError, AttributeError, IndexError)):
            _seq.scatter_add(ids, out, wrong)
    with pytest.raises(ValueError, match="writable"):
        _seq.gather(ids, table, frozen[:2])


@dtypes
@modes
@given(seed=SEEDS, N=ROWS, n=WIDTHS, bias=st.booleans(), added=st.booleans(), special=SPECIAL)
def test_layer_norm(twin, dtype, seed, N, n, bias, added, special):
    rng = np.random.default_rng(seed)

    def forward(special):
        x, gain, b = (numbers(rng, dtype, *s, special=special) for s in ((N, n), (n,), (n,)))
        y = numbers(rng, dtype, N, n)
        return lambda: (x.copy(), gain, b if bias else None, y.copy() if added else None)

    agree(_dense.layer_norm_forward, sequence.layer_norm_forward, forward(special), twin, dtype)
    dy, gain, rstd = numbers(rng, dtype, N, n), numbers(rng, dtype, n), abs(numbers(rng, dtype, N))
    xhat = numbers(rng, dtype, N, n, special=special)
    agree(_dense.layer_norm_backward, sequence.layer_norm_backward,
          lambda: (dy, gain, xhat, rstd), twin, dtype)  # fmt: skip


@dtypes
@pytest.mark.parametrize("n", [4, 17, 64])
def test_layer_norm_by_its_definition(dtype, n):
    rng = np.random.default_rng(0)
    x, gain, bias, v = (rng.standard_normal(s).astype(dtype) for s in ((3, n), n, n, (3, n)))
    x += 5
    y, xhat, rstd = _dense.layer_norm_forward(x, gain, bias)
    wide = x.astype(np.float64)
    deviation = np.sqrt(wide.var(1, keepdims=True) + sequence.EPS)
    want = (wide - wide.mean(1, keepdims=True)) / deviation * gain + bias
    loose = {"rtol": 1e-4, "atol": 1e-4} if dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-11}
    np.testing.assert_allclose(y, want, **loose)
    dx = _dense.layer_norm_backward(v, gain, xhat, rstd)
    g = v.astype(np.float64) * gain
    hat = (wide - wide.mean(1, keepdims=True)) / deviation
    want = (g - g.mean(1, keepdims=True) - hat * (g * hat).mean(1, keepdims=True)) / deviation
    np.testing.assert_allclose(dx, want, **loose)


def test_the_parts_refuse_nonsense():
    z, t = np.zeros((2, 3)), np.zeros((2, 3))
    y, s = np.zeros(2, np.int64), np.ones(2)
    frozen = z.copy()
    frozen.flags.writeable = False
    for call in (
        lambda: _loss.softmax_cross_entropy(z, None, s),
        lambda: _loss.softmax_cross_entropy(z, y, None),
        lambda: _loss.softmax_cross_entropy(z, y + 3, s),
        lambda: _loss.softmax_cross_entropy(z, y[:1], s),
        lambda: _loss.softmax_cross_entropy(z, y, s, None, 0.0, frozen),
        lambda: _loss.softmax_cross_entropy(z, y, s, s.astype(np.float32)),
        lambda: _loss.softmax(z.T),
        lambda: _loss.sigmoid_cross_entropy(z, None),
        lambda: _loss.quadratic_error(z, t[:1]),
        lambda: _loss.quadratic_error(z, None),
        lambda: _clip.scale(frozen, 2.0),
        lambda: _clip.clip_by_value(frozen, 2.0),
        lambda: _clip.norm(z.T),
        lambda: _clip.norm(None),
        lambda: _dense.layer_norm_forward(z, None),
        lambda: _dense.layer_norm_forward(z, np.ones(4)),
        lambda: _dense.layer_norm_backward(z, np.ones(3), t, None),
        lambda: _dense.column_sum(z, frozen[0]),
        lambda: _dense.column_sum(z, np.ones(2)),
        lambda: _dense.column_dot(z, t, np.ones(3), 1),
        lambda: _dense.weight_product(z, t, np.ones((4, 3))),
        lambda: _dense.weight_product(z, None, np.ones((3, 3))),
        lambda: _dense.linear_forward(z, np.ones((2, 4))),
        lambda: _dense.linear_backward(z, np.ones((2, 3)), np.zeros((2, 3)), {"weight": t}),
    ):
        with pytest.raises((TypeError, ValueError, AttributeError, IndexError)):
            call()
