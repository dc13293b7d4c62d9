"""Every backward of the NumPy twins against finite differences, in float64 with plain arithmetic.

Two judges: a 4th-order central difference for each single number, on a cover of all pairs of
variants; and the derivative along random directions in all numbers at once, on all variants.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

import rnnfast
from rnnfast import _engine
from rnnfast.reference import gru, linear, loss, lstm, output_rnn, rnn, sequence
from rnnfast.reference.arithmetic import PLAIN, Plain

from .cells import MAKERS, batch, uniform
from .pairs import all_pairs

TOLERANCE = 1e-8
STEPS = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6)
MODULES = {"rnn": rnn, "lstm": lstm, "gru": gru, "output_rnn": output_rnn}


@dataclass
class Problem:
    """A function of named arrays, and what is claimed to be its gradient at `values`.

    `energy(values)` is (E, sides): sides tells on which side of every kink (of a ReLU, a hard
    sigmoid, a clamp) the point lies; a difference across a kink says nothing and is not taken.
    """

    values: dict
    gradient: dict
    energy: Callable


def slope(problem, direction):
    """dE along a direction (a dict like values) by 4th-order central differences.

    The step shrinks until no kink lies inside and two results in a row agree: behind a layer norm
    of nearly equal numbers the higher derivatives are large.
    """
    _, here = problem.energy(problem.values)
    before = None
    for step in STEPS:
        energies, smooth = [], True
        for k in (-2, -1, 1, 2):
            moved = {n: v + k * step * direction[n] if n in direction else v
                     for n, v in problem.values.items()}  # fmt: skip
            energy, sides = problem.energy(moved)
            energies.append(energy)
            smooth &= all((a == b).all() for a, b in zip(here, sides, strict=True))
        if smooth:
            a, b, c, d = energies
            now = (a - 8 * b + 8 * c - d) / (12 * step)
            if before is not None and abs(now - before) < TOLERANCE / 2 * max(1, abs(now)):
                return now
            before = now
    raise AssertionError("no step small enough to avoid a kink and large enough to measure")


def check_elements(problem):
    """Assert that every single number of the gradient is right."""
    assert problem.gradient.keys() == problem.values.keys()
    for name, gradient in problem.gradient.items():
        value = problem.values[name]
        assert gradient.shape == value.shape, name
        numeric = np.empty(value.shape)
        for at in np.ndindex(value.shape):
            unit = np.zeros(value.shape)
            unit[at] = 1
            numeric[at] = slope(problem, {name: unit})
        scale = max(1, abs(numeric).max(initial=0))
        np.testing.assert_allclose(gradient, numeric, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def check_direction(problem, rng, count=2):
    """Assert the derivative along random directions in which all numbers move at once."""
    for _ in range(count):
        direction = {n: rng.standard_normal(v.shape) for n, v in problem.values.items()}
        size = np.sqrt(sum((d * d).sum() for d in direction.values())) or 1
        direction = {n: d / size for n, d in direction.items()}
        claimed = sum((problem.gradient[n] * d).sum() for n, d in direction.items())
        numeric = slope(problem, direction)
        assert abs(claimed - numeric) <= TOLERANCE * max(1, abs(numeric)), (claimed, numeric)


# ---- recurrent cells -----------------------------------------------------------------------------

BATCH = {"bias": [True, False], "ids": [False, True], "ragged": [True, False],
         "resets": [True, False], "reverse": [False, True], "mask": [False, True]}  # fmt: skip
FORWARD_ONLY = {k: BATCH[k] for k in ("bias", "ids", "ragged", "resets")}
BATCHES = {"rnn": BATCH, "lstm": BATCH, "gru": BATCH, "output_rnn": FORWARD_ONLY}
GATES = ["sigmoid", "hard_sigmoid", "hard_sigmoid_onnx"]
VARIANTS = {
    "rnn": {"nonlinearity": ["tanh", "relu", "sigmoid"]},
    "lstm": {"gate": GATES, "coupled": [False, True], "peephole": [False, True], "P": [0, 2],
             "norm": [False, True], "clip": [0.0, 0.3]},
    "gru": {"gate": GATES, "kind": ["after", "before", "norm"]},
    "output_rnn": {"output": ["linear", "softmax"]},
}  # fmt: skip
GRU_KINDS = {"after": {}, "before": {"reset_after": False}, "norm": {"norm": True}}
#: arguments of a forward function that no derivative depends on
NO_VARIANT = {"keep", "out", "arithmetic"}
#: what a keyword of a forward function is called in VARIANTS and BATCH, where not the same
FACTOR = {"w_hr": "P", "h_mask": "mask", "reset_after": "kind", "norm": ("norm", "kind")}
STATES = {"rnn": ["h0"], "lstm": ["h0", "c0"], "gru": ["h0"], "output_rnn": ["o0"]}
WEIGHTS = {cell: ["w_ih", "w_hh", "b_ih", "b_hh"] for cell in MAKERS}
WEIGHTS["output_rnn"] = ["w_ih", "w_oh", "w_ho", "b_h", "b_o"]


def output_rnn_arguments(rng, T, B, I, H, dtype, *, output="linear", bias=True, ids=False,
                         ragged=True, resets=False):  # fmt: skip
    """As the functions of tests/cells.py, with two outputs."""
    x, sizes, r = batch(rng, T, B, dtype, I, ids, ragged, resets)
    shapes = {"w_ih": (H, I), "w_oh": (H, 2), "w_ho": (2, H)}
    if bias:
        shapes |= {"b_h": (H,), "b_o": (2,)}
    w = {name: uniform(rng, dtype, *shape) for name, shape in shapes.items()}
    grads = {name: uniform(rng, dtype, *shape) for name, shape in shapes.items()}
    kw = {"output": output, "resets": r}
    return (x, sizes, uniform(rng, dtype, B, 2), *w.values()), kw, grads, 1


ARGUMENTS = MAKERS | {"output_rnn": output_rnn_arguments}


def products(factors):
    return [dict(zip(factors, row, strict=True)) for row in product(*factors.values())]


def label(row):
    if isinstance(row, str):
        return row
    return "-".join(f"{k}={v}" for k, v in row.items())


def sides_of(cell, tape):
    """Which side of each kink: of ReLU, of hard gates, of the cell's clamp."""
    sides = []
    if tape.get("nonlinearity") == "relu":
        sides.append(tape["h"] > 0)
    if "gate" in tape:
        size = tape["h_prev" if cell == "gru" else "c_prev"].shape[1]
        gates = np.split(tape["gates"], tape["gates"].shape[1] // size, axis=1)
        del gates[2 if cell == "gru" else -2]  # the tanh has no kink
        sides += [g <= 0 for g in gates] + [g >= 1 for g in gates]
        if tape.get("clip"):
            sides.append(abs(tape["c"]) >= tape["clip"])
    return sides


def cell_problem(cell, options, seed=0, arithmetic=PLAIN, shape=(3, 3, 2, 3)):
    """All inputs, parameters and states of a cell over a short sequence."""
    options = dict(options)
    options |= GRU_KINDS[options.pop("kind")] if "kind" in options else {}
    rng = np.random.default_rng(seed)
    args, kw, grads, states = ARGUMENTS[cell](rng, *shape, np.float64, **options)
    x, sizes, *rest = args
    if options.get("gate", "sigmoid") != "sigmoid":
        rest = [10 * a if k == states else a for k, a in enumerate(rest)]  # W_ih: to saturate some
    forward = getattr(MODULES[cell], f"{cell}_forward")
    backward = getattr(MODULES[cell], f"{cell}_backward")
    state_names, weights = STATES[cell], WEIGHTS[cell][: len(rest) - states]
    values = dict(zip(state_names + weights, rest, strict=True))
    if x.ndim == 2:
        values["x"] = x
    for name in ("w_hr", "peephole"):
        if kw.get(name) is not None:
            values[name] = kw[name]
    norm = [n for n in ("gain_ih", "gain_hh", "gain_c", "bias_c") if n in grads]
    if norm:
        values |= dict(zip(norm, kw["norm"], strict=True))

    def run(values):
        keywords = kw | {n: values[n] for n in ("w_hr", "peephole") if n in values}
        if norm:
            keywords["norm"] = tuple(values[n] for n in norm)
        ordered = [values[n] for n in state_names + weights]
        return forward(values.get("x", x), sizes, *ordered, **keywords, arithmetic=arithmetic)

    *out, tape = run(values)
    weight = [rng.standard_normal(a.shape) for a in out]  # E = sum of weight times output

    def energy(values):
        *out, tape = run(values)
        return sum((w * a).sum() for w, a in zip(weight, out, strict=True)), sides_of(cell, tape)

    added = {n: g.copy() for n, g in grads.items()}
    dx, *dstates = backward(tape, *weight, added, arithmetic=arithmetic)
    gradient = {n: added[n] - grads[n] for n in grads}
    gradient |= dict(zip(state_names, dstates, strict=True))
    if "x" in values:
        gradient["x"] = dx
    else:
        assert dx is None
    return Problem(values, gradient, energy)


ELEMENT_CASES = [
    (cell, row) for cell in VARIANTS for row in all_pairs(VARIANTS[cell] | BATCHES[cell])
]
DIRECTION_CASES = [(cell, row) for cell in VARIANTS for row in products(VARIANTS[cell])]


@pytest.mark.parametrize("cell, options", ELEMENT_CASES, ids=label)
def test_cell_elements(cell, options):
    check_elements(cell_problem(cell, options))


@pytest.mark.parametrize("cell, options", DIRECTION_CASES, ids=label)
def test_cell_directions(cell, options):
    rng = np.random.default_rng(1)
    beyond = []
    for seed, row in enumerate(all_pairs(BATCHES[cell])):
        problem = cell_problem(cell, options | row, seed, shape=(5, 4, 3, 5))
        beyond += [side.any() for side in problem.energy(problem.values)[1]]
        check_direction(problem, rng, count=1)
    kinked = options.get("gate", "sigmoid") != "sigmoid" or options.get("nonlinearity") == "relu"
    assert any(beyond) or not (kinked or options.get("clip")), "no kink was passed"


def test_all_cells_and_keywords_are_covered():
    """A new cell or a new keyword without a gradient check fails here."""
    cells = {s for s, names in _engine.FUNCTIONS.items() if f"{s}_backward" in names} - {"linear"}
    assert cells == VARIANTS.keys() == MODULES.keys()
    for cell in cells:
        forward = inspect.signature(getattr(MODULES[cell], f"{cell}_forward"))
        keywords = {n for n, p in forward.parameters.items() if p.kind is p.KEYWORD_ONLY}
        for name in keywords - NO_VARIANT:
            factors = FACTOR.get(name, name)
            factors = {factors} if isinstance(factors, str) else set(factors)
            assert factors & (VARIANTS[cell] | BATCHES[cell]).keys(), f"{cell}_forward({name}=...)"


@pytest.mark.parametrize("cell", MAKERS)
def test_missing_dy_counts_as_zero_and_dx_may_be_left_out(cell):
    args, kw, grads, states = MAKERS[cell](np.random.default_rng(0), 4, 3, 2, 3, np.float64)
    *out, tape = getattr(MODULES[cell], f"{cell}_forward")(*args, **kw)
    backward = getattr(MODULES[cell], f"{cell}_backward")
    results = []
    for dy, need_dx in ((None, True), (np.zeros_like(out[0]), True), (None, False)):
        added = {n: g.copy() for n, g in grads.items()}
        dx, *dstates = backward(tape, dy, *map(np.ones_like, out[1:]), added, need_dx)
        results.append((dx, dstates, added))
    (dx, dstates, added), (dx0, dstates0, added0), (nothing, dstates1, added1) = results
    assert nothing is None
    np.testing.assert_array_equal(dx, dx0)
    for k in range(states):
        np.testing.assert_array_equal(dstates[k], dstates0[k])
        np.testing.assert_array_equal(dstates[k], dstates1[k])
    for n in grads:
        np.testing.assert_array_equal(added[n], added0[n])
        np.testing.assert_array_equal(added[n], added1[n])


# ---- layers without recurrence, losses -----------------------------------------------------------


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias, ids):
    rng = np.random.default_rng(2)
    x = rng.integers(0, 3, 5) if ids else rng.standard_normal((5, 3))
    values = {"weight": rng.standard_normal((4, 3))}
    if bias:
        values["bias"] = rng.standard_normal(4)
    grads = {n: rng.standard_normal(v.shape) for n, v in values.items()}
    added = {n: g.copy() for n, g in grads.items()}
    dy = rng.standard_normal((5, 4))
    dx = linear.linear_backward(x, values["weight"], dy, added)
    gradient = {n: added[n] - grads[n] for n in grads}
    if not ids:
        values["x"], gradient["x"] = x, dx
    else:
        assert dx is None

    def energy(v):
        return (linear.linear_forward(v.get("x", x), v["weight"], v.get("bias")) * dy).sum(), ()

    problem = Problem(values, gradient, energy)
    check_elements(problem)
    check_direction(problem, rng)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu", "hard_sigmoid", "hard_sigmoid_onnx"])
def test_activations(name):
    x = np.array([[-7.0, -0.3, 0.4], [1.3, 2.2, 7.0]])  # on both sides of every kink
    dy = np.random.default_rng(3).standard_normal(x.shape)
    dx = linear.activation_backward(name, linear.activation_forward(name, x), dy)
    check_elements(Problem({"x": x}, {"x": dx}, lambda v: (
        (linear.activation_forward(name, v["x"]) * dy).sum(), ())))  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("added_to", [True, False])
def test_layer_norm(added_to, bias):
    """dx by NB1-NB3; the gains' and the bias' gradients as the cells form them."""
    rng = np.random.default_rng(3)
    values = {"x": rng.standard_normal((4, 5)), "gain": rng.standard_normal(5)}
    if bias:
        values["bias"] = rng.standard_normal(5)
    y0 = rng.standard_normal((4, 5)) if added_to else None
    dy = rng.standard_normal((4, 5))

    def forward(v):
        return sequence.layer_norm_forward(v["x"], v["gain"], v.get("bias"), y0, arithmetic=PLAIN)

    _, xhat, rstd = forward(values)
    dx = sequence.layer_norm_backward(dy, values["gain"], xhat, rstd, arithmetic=PLAIN)
    gradient = {"x": dx, "gain": (dy * xhat).sum(axis=0)}
    if bias:
        gradient["bias"] = dy.sum(axis=0)
    problem = Problem(values, gradient, lambda v: ((forward(v)[0] * dy).sum(), ()))
    check_elements(problem)
    check_direction(problem, rng)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_softmax_cross_entropy(smoothing, weighted, inplace):
    rng = np.random.default_rng(4)
    z, targets = 3 * rng.standard_normal((6, 4)), np.array([0, 3, -1, 2, 2, -5])
    weight = rng.uniform(0, 2, 6) if weighted else None
    scale = np.ones(6) if weight is None else weight
    dz = z.copy() if inplace else np.full_like(z, np.nan)
    loss.softmax_cross_entropy(dz if inplace else z, targets, scale, weight, smoothing, dz)
    assert (dz[targets < 0] == 0).all()

    def energy(v):
        return loss.softmax_cross_entropy(v["z"], targets, scale, weight, smoothing)[0], ()

    problem = Problem({"z": z}, {"z": dz}, energy)
    check_elements(problem)
    check_direction(problem, rng)


@pytest.mark.parametrize("name", ["sigmoid_cross_entropy", "quadratic_error"])
def test_element_wise_losses(name):
    rng = np.random.default_rng(5)
    z, target, scale = 4 * rng.standard_normal((5, 3)), rng.random((5, 3)), 0.7
    function = getattr(loss, name)
    _, _, dz = function(z, target, scale)
    problem = Problem({"z": z}, {"z": dz}, lambda v: (scale * function(v["z"], target)[0], ()))
    check_elements(problem)
    check_direction(problem, rng)


def test_all_losses_are_covered():
    tested = {"softmax_cross_entropy", "sigmoid_cross_entropy", "quadratic_error"}
    assert set(_engine.FUNCTIONS["loss"]) - {"softmax"} == tested  # softmax alone has no backward


# ---- whole layers: what lies between the engine and the caller -----------------------------------

LAYER_FACTORS = {
    "cell": ["RNN", "LSTM", "GRU"],
    "num_layers": [1, 2, 3],
    "bidirectional": [False, True],
    "merge": ["concat", "sum", "mul", "average"],
    "dropout": [0.0, 0.4],
    "input_dropout": [0.0, 0.3],
    "recurrent_dropout": [0.0, 0.3],
    "block_rows": [1, 4, 1024],
    "pad_output": ["zero", "repeat"],
    "batch_first": [False, True],
    "checkpoint_every": [None, 2],
    "bias": [True, False],
}


@pytest.mark.parametrize("row", all_pairs(LAYER_FACTORS), ids=label)
def test_layer_directions(row, monkeypatch):
    """Deep, bidirectional, ragged, with resets and dropout, in one or many blocks of time steps."""
    row = row | {"dropout": row["dropout"] * (row["num_layers"] > 1)}
    rows = row.pop("block_rows")
    monkeypatch.setattr("rnnfast.layers.block_rows", lambda width: rows)
    cell, pad = getattr(rnnfast, row.pop("cell")), row.pop("pad_output")
    layer = cell(2, 3, **row, dtype="float64", seed=0)
    rng = np.random.default_rng(6)
    T, B = 5, 4
    axes = (B, T) if layer.batch_first else (T, B)
    x, resets = rng.standard_normal((*axes, 2)), rng.random(axes) < 0.2
    lengths = np.array([2, 5, 0, 3])
    n = layer.num_layers * layer.directions
    states = [rng.standard_normal((n, B, 3)) for _ in range(layer.states)]
    values = {f"param {k}": v.copy() for k, v in layer.params.items()} | {"x": x}
    values |= {f"state {k}": s for k, s in enumerate(states)}

    def run(values):
        for name, p in layer.params.items():
            p[...] = values[f"param {name}"]
        layer.training_rng = np.random.default_rng(7)  # the same dropout every time
        state = tuple(values[f"state {k}"] for k in range(layer.states))
        return layer.forward(values["x"], state if layer.states == 2 else state[0], lengths, resets,
                             pad_output=pad)  # fmt: skip

    def flat(y, state):
        return [y, *(state if layer.states == 2 else [state])]

    y, state, tape = run(values)
    weight = [rng.standard_normal(a.shape) for a in flat(y, state)]
    layer.zero_grad()
    dx, dstate = layer.backward(tape, weight[0],
                                tuple(weight[1:]) if layer.states == 2 else weight[1])  # fmt: skip
    gradient = {f"param {k}": g.copy() for k, g in layer.grads.items()} | {"x": dx}
    gradient |= {f"state {k}": d for k, d in enumerate(flat(None, dstate)[1:])}

    def energy(values):
        y, state, _ = run(values)
        return sum((w * a).sum() for w, a in zip(weight, flat(y, state), strict=True)), ()

    check_direction(Problem(values, gradient, energy), rng, count=3)


# ---- the judges themselves -----------------------------------------------------------------------


class WrongDerivative(Plain):
    """f' off by one part in ten thousand."""

    def derivative(self, name, y):
        return super().derivative(name, y) * 1.0001


class WrongProduct(Plain):
    """A product whose last row of columns is forgotten."""

    def matmul(self, a, b, c=None):
        out = np.array(super().matmul(a, b, c))
        if c is None and len(out) > 1:  # backward's products, not forward's
            out[-1] = 0
        return out


@pytest.mark.parametrize("wrong", [WrongDerivative(), WrongProduct()])
@pytest.mark.parametrize("cell", VARIANTS)
def test_wrong_gradients_are_caught(cell, wrong):
    problem = cell_problem(cell, {"ragged": False}, arithmetic=wrong)
    with pytest.raises(AssertionError):
        check_elements(problem)
    with pytest.raises(AssertionError):
        check_direction(problem, np.random.default_rng(8))


def test_one_wrong_number_is_caught():
    for name in ("x", "h0", "w_ih", "w_hh", "b_ih", "b_hh"):
        problem = cell_problem("rnn", {"ragged": False})
        problem.gradient[name] = problem.gradient[name].copy()
        problem.gradient[name].flat[-1] += 1e-6
        with pytest.raises(AssertionError, match=name):
            check_elements(problem)
        with pytest.raises(AssertionError):
            check_direction(problem, np.random.default_rng(9))


def test_kinks_are_not_stepped_over():
    """At a kink itself there is no derivative to compare with, and the judge says so."""
    problem = Problem({"x": np.zeros(1)}, {"x": np.zeros(1)},
                      lambda v: (abs(v["x"]).sum(), [v["x"] > 0]))  # fmt: skip
    with pytest.raises(AssertionError, match="kink"):
        check_elements(problem)
