"""Losses, clipping and optimisers against their formulas, and truncated BPTT."""

import math

import numpy as np
import pytest

import rnnfast
from rnnfast import losses, models, optim
from rnnfast.training import tbptt

from .bits import same_bits

DTYPES = (np.float32, np.float64)


def draw(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- losses --------------------------------------------------------------------------------------


def quadratic(y, t):
    return 0.5 * ((y - t) ** 2).sum(axis=-1)


def sigmoid_entropy(z, t):
    s = 1 / (1 + np.exp(-z))
    return -(t * np.log(s) + (1 - t) * np.log(1 - s)).sum(axis=-1)


def softmax_entropy(z, y, smoothing=0.0):
    p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    q = np.eye(z.shape[-1])[y] * (1 - smoothing) + smoothing / z.shape[-1]
    return -(q * np.log(p)).sum(axis=-1)


def loss_cases():
    z, t = draw(4, 5, 6), np.random.default_rng(1).random((4, 5, 6))
    y = np.random.default_rng(2).integers(0, 6, (4, 5))
    yield pytest.param(losses.quadratic_error, quadratic, z, t, {}, id="quadratic")
    yield pytest.param(losses.sigmoid_cross_entropy, sigmoid_entropy, z, t, {}, id="sigmoid")
    yield pytest.param(losses.softmax_cross_entropy, softmax_entropy, z, y, {}, id="softmax")
    smooth = {"label_smoothing": 0.1}
    yield pytest.param(losses.softmax_cross_entropy, lambda z, y: softmax_entropy(z, y, 0.1), z, y,
                       smooth, id="smoothed")  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("function, definition, z, target, options", [*loss_cases()])
def test_loss_definition_and_gradient(function, definition, z, target, options, reduction):
    loss, dz = function(z, target, reduction=reduction, **options)
    reduce = {"mean": np.mean, "sum": np.sum, "none": lambda x: x}[reduction]
    np.testing.assert_allclose(loss, reduce(definition(z, target)), rtol=1e-13)
    for at in np.ndindex(2, 2, 6):
        f = []
        for k in (-2, -1, 1, 2):
            moved = z.copy()
            moved[at] += k * 1e-3
            f.append(np.sum(function(moved, target, reduction=reduction, **options)[0]))
        want = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * 1e-3)
        assert abs(dz[at] - want) < 1e-10, (at, dz[at], want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_of_large_logits(dtype):
    """Computed from z, not from its sigmoid or softmax, so nothing overflows or is log(0)."""
    z = np.array([[1000.0, -1000.0]], dtype)
    loss, dz = losses.sigmoid_cross_entropy(z, np.array([[0, 1]], dtype), reduction="sum")
    assert loss == 2000 and dz.tolist() == [[1, -1]]
    loss, dz = losses.softmax_cross_entropy(z, np.array([1]))
    assert loss == 2000 and dz.tolist() == [[1, -1]]


# ---- clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [0.5, 5.0, 500.0])
def test_clip_by_norm(limit, dtype):
    grads = {"a": draw(7, 3, dtype=dtype), "b": draw(50, dtype=dtype, seed=1) * 3}
    before = {k: g.copy() for k, g in grads.items()}
    norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
    returned = rnnfast.clip_grad_norm(grads, limit)
    assert returned == pytest.approx(norm, rel=1e-14)
    factor = min(1, limit / (returned + 1e-6))
    for k, g in grads.items():
        if factor == 1:
            same_bits(g, before[k])
        np.testing.assert_allclose(g, before[k] * factor, rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_by_value(dtype):
    g = np.array([-3, -0.5, 0, 0.5, 3, np.inf, -np.inf, np.nan], dtype)
    rnnfast.clip_grad_value([g], 1.0)
    same_bits(g, np.array([-1, -0.5, 0, 0.5, 1, 1, -1, np.nan], dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("power", [-100, -60, 60, 100])
def test_norm_neither_overflows_nor_vanishes(power, dtype):
    scale = 2.0 ** (power if dtype == np.float32 else 8 * power)
    grads = [np.array([3, 0, 4], dtype) * dtype(scale), np.array([12], dtype) * dtype(scale)]
    assert rnnfast.clip_grad_norm(grads, 1e300) == 13 * scale
    with np.errstate(all="ignore"):
        if power == 100:
            assert np.isinf(dtype(sum((g * g).sum() for g in grads)))  # as one would write it
    limit = 6.5 * scale
    if limit > 1e-3:  # below, torch's 1e-6 in the factor counts
        rnnfast.clip_grad_norm(grads, limit)
        np.testing.assert_allclose(grads[0], [1.5 * scale, 0, 2 * scale], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_that_are_not_finite(dtype, bad):
    def gradients():
        return {k: np.array([1, v], dtype) for k, v in (("fine", 2), ("ill", bad), ("later", bad))}

    g = gradients()
    with pytest.raises(FloatingPointError, match="ill"):
        rnnfast.clip_grad_norm(g, 1.0)
    for k, a in gradients().items():
        same_bits(g[k], a, k)
    norm = rnnfast.clip_grad_norm(g, 1.0, nonfinite="skip")
    assert not math.isfinite(norm)
    for k, a in gradients().items():
        same_bits(g[k], a, k)
    norm = rnnfast.clip_grad_norm(g, 1.0, nonfinite="propagate")
    nan = math.isnan(bad)
    assert math.isnan(norm) if nan else norm == math.inf
    assert np.isnan(g["fine"]).all() if nan else not g["fine"].any()
    assert np.isnan(g["ill"][1])


def test_a_nan_counts_more_than_an_infinity():
    g = [np.array([np.inf]), np.array([np.nan])]
    assert math.isnan(rnnfast.clip_grad_norm(g, 1.0, nonfinite="skip"))


def test_clipping_takes_models_and_lists_of_dicts():
    a, b = rnnfast.Linear(2, 1, bias=False), rnnfast.Linear(1, 1, bias=False)
    a.grads["weight"][:] = [[2, 3]]
    b.grads["weight"][:] = 6
    assert rnnfast.clip_grad_norm([a.grads, b.grads], 100.0) == 7
    b.grads["weight"][:] = np.nan
    with pytest.raises(FloatingPointError, match=r"1\.weight"):
        rnnfast.clip_grad_norm([a.grads, b.grads], 1.0)
    for bad in (0, -1, math.nan):
        with pytest.raises(ValueError, match="max_norm"):
            rnnfast.clip_grad_norm(a.grads, bad)
    with pytest.raises(ValueError, match="nonfinite"):
        rnnfast.clip_grad_norm(a.grads, 1, nonfinite="ignore")


# ---- optimisers ----------------------------------------------------------------------------------
# Each as a literal transcription: state in a dict, t the number of the step, from 1.


def sgd(p, g, s, t, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    g = g + weight_decay * p
    if momentum:
        s["b"] = g if t == 1 else momentum * s["b"] + (1 - dampening) * g
        g = g + momentum * s["b"] if nesterov else s["b"]
    return p - lr * g


def adam(p, g, s, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False,
         decoupled=False):  # fmt: skip
    if decoupled:
        p = p - lr * weight_decay * p
    else:
        g = g + weight_decay * p
    s["m"] = betas[0] * s.get("m", 0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0) + (1 - betas[1]) * g**2
    m_hat = s["m"] / (1 - betas[0] ** t)
    s["top"] = np.maximum(s.get("top", 0), s["v"]) if amsgrad else s["v"]
    v_hat = s["top"] / (1 - betas[1] ** t)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps)


def adamw(p, g, s, t, lr, weight_decay=1e-2, **options):
    return adam(p, g, s, t, lr, weight_decay=weight_decay, decoupled=True, **options)


def rmsprop(p, g, s, t, lr, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0):
    g = g + weight_decay * p
    s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g**2
    u = g / (np.sqrt(s["v"]) + eps)
    s["b"] = momentum * s.get("b", 0) + u
    return p - lr * s["b"]


def adagrad(p, g, s, t, lr, eps=1e-10, weight_decay=0.0):
    g = g + weight_decay * p
    s["v"] = s.get("v", 0) + g**2
    return p - lr * g / (np.sqrt(s["v"]) + eps)


CASES = [
    (optim.SGD, sgd, {}),
    (optim.SGD, sgd, {"weight_decay": 0.1}),
    (optim.SGD, sgd, {"momentum": 0.9}),
    (optim.SGD, sgd, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (optim.SGD, sgd, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (optim.Adam, adam, {}),
    (optim.Adam, adam, {"betas": (0.5, 0.7), "eps": 1e-2, "weight_decay": 0.1}),
    (optim.Adam, adam, {"amsgrad": True, "betas": (0.9, 0.5)}),
    (optim.AdamW, adamw, {}),
    (optim.AdamW, adamw, {"weight_decay": 0.3, "amsgrad": True, "betas": (0.9, 0.5)}),
    (optim.RMSprop, rmsprop, {}),
    (optim.RMSprop, rmsprop, {"alpha": 0.7, "eps": 1e-2, "momentum": 0.9, "weight_decay": 0.1}),
    (optim.Adagrad, adagrad, {}),
    (optim.Adagrad, adagrad, {"eps": 1e-2, "weight_decay": 0.1}),
]


def case_id(value):
    return str(getattr(value, "__name__", value))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cls, formula, options", CASES, ids=case_id)
def test_optimiser_formula(cls, formula, options, dtype):
    """Twelve steps with gradients that grow, shrink and turn."""
    module = rnnfast.Linear(5, 4, dtype=dtype, seed=0)
    opt = cls(module, lr=0.03, **options)
    p = {k: v.astype(np.float64) for k, v in module.params.items()}
    state = {k: {} for k in p}
    for t in range(1, 13):
        for k, g in module.grads.items():
            g[...] = draw(*g.shape, dtype=dtype, seed=t) * math.exp(math.sin(t) * 2)
            p[k] = formula(p[k], g.astype(np.float64), state[k], t, 0.03, **options)
        opt.step()
        for k, v in module.params.items():
            tolerance = (1e-13 if dtype == np.float64 else 4e-6) * t
            np.testing.assert_allclose(v, p[k], rtol=tolerance, atol=tolerance, err_msg=f"{k}, {t}")
    assert opt.steps == 12


def test_no_optimiser_is_left_out():
    classes = {c for c in vars(optim).values() if isinstance(c, type)}
    known = {c for c in classes if issubclass(c, optim.Optimizer)}
    assert known - {optim.Optimizer} == {c for c, _, _ in CASES}


def test_optimiser_of_several_modules_goes_on_from_its_state():
    def train(steps, opt, modules):
        for t in steps:
            for k, m in enumerate(modules):
                for g in m.grads.values():
                    g[...] = draw(*g.shape, seed=10 * t + k)
            opt.step()

    def fresh():
        modules = [rnnfast.Linear(3, 2, dtype="float64", seed=k) for k in range(2)]
        return optim.Adam(modules, lr=0.1), modules

    whole, first, second = fresh(), fresh(), fresh()
    train(range(6), *whole)
    train(range(3), *first)
    second[0].load_state_dict(first[0].state_dict())
    for a, b in zip(second[1], first[1], strict=True):
        a.load_state_dict(b.state_dict())
    train(range(3, 6), *second)
    for a, b in zip(second[1], whole[1], strict=True):
        for k in a.params:
            same_bits(a.params[k], b.params[k], k)
    whole[0].zero_grad()
    assert not any(g.any() for m in whole[1] for g in m.grads.values())


# ---- truncated BPTT ------------------------------------------------------------------------------

T, B, I, H, O = 11, 3, 4, 5, 3


def model_of(cell):
    if cell == "output":
        return models.OutputRecurrent(I, H, O, "softmax", reduction="sum", dtype="float64", seed=0)
    layer = {"rnn": rnnfast.RNN, "lstm": rnnfast.LSTM, "gru": rnnfast.GRU}[cell]
    layer = layer(I, H, 2, dtype="float64", seed=0)
    return models.SequenceTagger(layer, O, reduction="sum", seed=1)


def data(ids=False):
    rng = np.random.default_rng(3)
    x = rng.integers(0, I, (T, B)) if ids else rng.standard_normal((T, B, I))
    return x, rng.integers(0, O, (T, B))


def pair(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", "output"])
def test_one_window_is_full_bptt(cell, ids):
    whole, parts = model_of(cell), model_of(cell)
    x, y = data(ids)
    loss, state = whole.loss_and_grads(x, y)
    (window,) = tbptt(parts, x, y, T)
    assert (window.loss, window.start, window.stop) == (loss, 0, T)
    for a, b in zip(pair(window.state), pair(state), strict=True):
        same_bits(a, b, "state")
    for k, g in whole.grads.items():
        same_bits(parts.grads[k], g, k)


def truncated(model, x, y, k1, k2, step):
    """(loss, gradients, final state) of each window: states step by step, then the window from the
    state in which it begins, in one piece."""
    states, result = {0: None}, []
    for start in range(0, len(x), k1):
        begin, stop = max(0, start + k1 - k2), min(start + k1, len(x))
        for t in range(begin, stop):
            states[t + 1] = model.forward(x[t : t + 1], states[t])[1]
        z, last, tape = model.forward(x[begin:stop], states[begin])
        dz = np.zeros_like(z)
        loss, dz[start - begin :] = model.loss(z[start - begin :], y[start:stop])
        model.backward(tape, dz)
        result.append((loss, {k: g.copy() for k, g in model.grads.items()}, last))
        step()
    return result


WINDOWS = [(1, 1), (1, 4), (2, 5), (3, 3), (3, 4), (4, 8), (4, 11), (3, 50), (11, 11), (20, 30)]


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("k1, k2", WINDOWS)
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", "output"])
def test_windows(cell, k1, k2, learn):
    """Losses, states and gradients of every window, with and without a step after each."""
    x, y = data()
    models_ = model_of(cell), model_of(cell)

    def stepper(model):
        opt = optim.SGD(model, lr=0.1)
        return lambda: (opt.step() if learn else None, opt.zero_grad())

    want = truncated(models_[1], x, y, k1, k2, stepper(models_[1]))
    step, steps = stepper(models_[0]), []
    for window, (loss, grads, last) in zip(tbptt(models_[0], x, y, k1, k2), want, strict=True):
        np.testing.assert_allclose(window.loss, loss, rtol=1e-12)
        for a, b in zip(pair(window.state), pair(last), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14)
        for k, g in grads.items():
            np.testing.assert_allclose(models_[0].grads[k], g, rtol=1e-10, atol=1e-13, err_msg=k)
        steps += range(window.start, window.stop)
        step()
    assert steps == list(range(T))


def test_gradient_reaches_back_k2_steps_and_no_further():
    """Windows that reach back to the start add up to full BPTT; shorter ones do not."""
    x, y = data()
    full = model_of("rnn")
    full.loss_and_grads(x, y)
    for k1, k2, equal in ((1, T, True), (4, T + 3, True), (1, 1, False), (1, T - 1, False)):
        model = model_of("rnn")
        total = sum(window.loss for window in tbptt(model, x, y, k1, k2))
        np.testing.assert_allclose(total, full.loss(full.forward(x)[0], y)[0], rtol=1e-12)
        close = all(np.allclose(model.grads[k], g, rtol=1e-9, atol=1e-12)
                    for k, g in full.grads.items())  # fmt: skip
        assert close == equal, (k1, k2)


def test_state_is_carried_as_arrays():
    """Two halves, the second from where the first ended, are one run."""
    x, y = data()
    whole, halves = model_of("lstm"), model_of("lstm")
    want = list(tbptt(whole, x, y, 2))
    first = list(tbptt(halves, x[:6], y[:6], 2))
    assert all(type(a) is np.ndarray for a in first[-1].state)
    got = first + list(tbptt(halves, x[6:], y[6:], 2, state=first[-1].state))
    assert [w.loss for w in got] == [w.loss for w in want]
    for k, g in whole.grads.items():
        same_bits(halves.grads[k], g, k)


def test_windows_of_a_bare_layer():
    x, _ = data()
    y = draw(T, B, H)
    layer, other = (rnnfast.GRU(I, H, dtype="float64", seed=0) for _ in range(2))
    windows = list(tbptt(layer, x, y, 4, loss=losses.quadratic_error))
    state, total = None, 0
    for start in range(0, T, 4):
        z, state, tape = other.forward(x[start : start + 4], state)
        loss, dz = losses.quadratic_error(z, y[start : start + 4])
        other.backward(tape, dz)
        total += loss
    assert sum(w.loss for w in windows) == total
    for k, g in other.grads.items():
        same_bits(layer.grads[k], g, k)


def test_wrong_windows():
    x, y = data()
    model = model_of("rnn")
    for k1, k2 in ((0, None), (3, 2), (-1, 1)):
        with pytest.raises(ValueError, match=r"k[12] must be at least"):
            tbptt(model, x, y, k1, k2)
    with pytest.raises(TypeError, match="k1"):
        tbptt(model, x, y, 2.0)
    with pytest.raises(ValueError, match="time steps"):
        tbptt(model, x, y[1:], 2)
    for option, match in (("bidirectional", "bidirectional"), ("batch_first", "time")):
        layer = rnnfast.RNN(I, H, dtype="float64", **{option: True})
        for wrong in (layer, models.SequenceTagger(layer, O)):
            with pytest.raises(ValueError, match=match):
                tbptt(wrong, x, y, 2, loss=losses.quadratic_error)
