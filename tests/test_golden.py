"""Layers, losses, clipping and optimisers against values and gradients from PyTorch.

The files under golden/ hold float64 results that tools/make_golden.py wrote; PyTorch is not needed.
"""

from pathlib import Path

import numpy as np
import pytest

import rnnfast
from rnnfast import losses
from rnnfast.reference import sequence
from rnnfast.reference.arithmetic import BLAS, PLAIN

from . import golden_cases as g

GOLDEN = Path(__file__).parent / "golden"
DTYPES = ["float32", "float64"]

#: Bound in float32, in units of eps times the largest number of the array: the longest chain runs
#: through 4 steps of 3 layers and back, 24 cell steps, with one rounding of full size for each (the
#: sums inside a step are short and their errors of both signs). Largest seen: 12.
ROUNDINGS = 24
#: A layer norm of three numbers divides by their deviation, which magnifies errors: 48 seen.
NORM_ROUNDINGS = 240


@pytest.fixture(scope="module")
def golden():
    """golden(file)[key] is one packed vector of `golden_cases.pack`."""
    files = {}

    def load(name):
        if name not in files:
            with np.load(GOLDEN / f"{name}.npz") as npz:
                files[name] = dict(npz)
        return files[name]

    return load


def close(got, want, dtype, name="", roundings=ROUNDINGS):
    got = np.asarray(got)
    if dtype == "float64":
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12, err_msg=name)
    else:
        bound = roundings * np.finfo(np.float32).eps * max(1, abs(want).max(initial=0))
        np.testing.assert_allclose(got, want, rtol=0, atol=bound, err_msg=name)


def label(case):
    return "-".join(f"{k}={v}" for k, v in case.items())


def run(layer, inputs, states, lengths=None):
    """Forward and backward as the script has it: outputs, gradients of x, states, parameters."""
    layer.load_state_dict(inputs["params"])
    dtype = layer.dtype
    x, *state = (inputs[n].astype(dtype) for n in ("x", "h0", "c0")[: states + 1])
    dy, *dstate = (inputs[n].astype(dtype) for n in ("dy", "dh_n", "dc_n")[: states + 1])
    one = states == 1
    y, last, tape = layer.forward(x, state[0] if one else tuple(state), lengths)
    dx, dfirst = layer.backward(tape, dy, dstate[0] if one else tuple(dstate))
    flat = [y, last, dx, dfirst] if one else [y, *last, dx, *dfirst]
    names = ["y", "h_n", "dx", "dh0"] if one else ["y", "h_n", "c_n", "dx", "dh0", "dc0"]
    return dict(zip(names, flat, strict=True)) | {n: layer.grads[n] for n in inputs["params"]}


def compare(got, inputs, vector, dtype, roundings=ROUNDINGS):
    assert all(a.dtype == dtype for a in got.values())
    want = g.unpack(inputs, vector, [a.shape for a in got.values()])
    for (name, a), b in zip(got.items(), want, strict=True):
        close(a, b, dtype, name, roundings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind, index, case",
    [(kind, k, case) for kind in g.NETWORKS for k, case in enumerate(g.network_cases(kind))],
    ids=lambda p: label(p) if isinstance(p, dict) else str(p),
)
def test_networks(golden, kind, index, case, dtype):
    name, keywords, states = g.NETWORKS[kind]
    options = {k: v for k, v in case.items() if k != "ragged" and (k != "proj_size" or v)}
    layer = getattr(rnnfast, name)(g.I, g.H, **options, **keywords, dtype=dtype)
    assert {n: p.shape for n, p in layer.params.items()} == g.network_shapes(kind, case)
    inputs = g.network_inputs(kind, index, case)
    got = run(layer, inputs, states, g.LENGTHS if case["ragged"] else None)
    compare(got, inputs, golden(kind)[str(index)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "cell, index, case",
    [(cell, k, case) for cell in g.VARIANTS for k, case in enumerate(g.variant_cases(cell))],
    ids=lambda p: label(p) if isinstance(p, dict) else str(p),
)
def test_variants(golden, cell, index, case, dtype):
    options = dict(case)
    if cell == "gru":
        kind = options.pop("kind")
        options |= {"reset_after": kind != "before", "layer_norm": kind == "norm"}
    layer = getattr(rnnfast, cell.upper())(g.I, g.H, **options, dtype=dtype)
    inputs = g.variant_inputs(cell, index, case)
    got = run(layer, inputs, 2 if cell == "lstm" else 1)
    normed = case.get("layer_norm") or case.get("kind") == "norm"
    compare(got, inputs, golden("variants")[f"{cell}_{index}"], dtype,
            NORM_ROUNDINGS if normed else ROUNDINGS)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", g.CELLS)
def test_cells(golden, kind, bias, dtype):
    name, keywords = g.CELLS[kind]
    cell, inputs = getattr(rnnfast, name)(g.I, g.H, bias=bias, **keywords, dtype=dtype), {}
    inputs = g.cell_inputs(kind, bias)
    cell.load_state_dict(inputs["params"])
    x, h, c, dh, dc = (inputs[n].astype(dtype) for n in ("x", "h0", "c0", "dh", "dc"))
    lstm = kind == "lstm"
    state, tape = cell.forward(x, (h, c) if lstm else h)
    dx, before = cell.backward(tape, (dh, dc) if lstm else dh)
    flat = [*state, dx, *before] if lstm else [state, dx, before]
    got = dict(enumerate(flat)) | {n: cell.grads[n] for n in inputs["params"]}
    compare({str(k): v for k, v in got.items()}, inputs, golden("cells")[f"{kind}_{bias:d}"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index, case", [*enumerate(g.SOFTMAX_CASES)], ids=str)
def test_softmax_cross_entropy(golden, index, case, dtype):
    logits, targets, classes = g.softmax_inputs()
    ignore = case["ignore_index"]
    targets = np.where(targets < 0, ignore, targets)
    weight = classes[np.maximum(targets, 0)] if case["weighted"] else None  # of each row's class
    loss, dz = losses.softmax_cross_entropy(
        logits.astype(dtype), targets, ignore_index=ignore, reduction=case["reduction"],
        label_smoothing=case["smoothing"], weight=weight)  # fmt: skip
    want = golden("functions")[f"softmax_{index}"]
    # torch flattens: one loss per row for "none"
    want_loss, want_dz = g.unpack((logits, classes), want, [np.shape(loss), dz.shape])
    close(loss, want_loss, dtype)
    close(dz, want_dz, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sigmoid", "quadratic"])
def test_other_losses(golden, name, dtype):
    function = {"sigmoid": losses.sigmoid_cross_entropy, "quadratic": losses.quadratic_error}[name]
    z, target = g.sigmoid_inputs()
    want = g.unpack((z, target), golden("functions")[name], [z.shape[:1], z.shape])
    z32, target32 = z.astype(dtype), target.astype(dtype)
    loss, dz = function(z32, target32, reduction="none")
    close(loss, want[0], dtype)
    close(dz, want[1], dtype)
    loss, dz = function(z32, target32, reduction="sum")
    close(loss, want[0].sum(), dtype)
    close(dz, want[1], dtype)
    loss, dz = function(z32, target32, reduction="mean")
    close(loss, want[0].mean(), dtype)
    close(dz, want[1] / len(z), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(golden, dtype):
    table, ids, dy = g.embedding_inputs()
    layer = rnnfast.Embedding(*table.shape, dtype=dtype)
    layer.load_state_dict({"weight": table})
    y, tape = layer.forward(ids)
    layer.backward(tape, dy.astype(dtype))
    want = g.unpack((table, dy), golden("functions")["embedding"], [y.shape, table.shape])
    close(y, want[0], dtype)
    close(layer.grads["weight"], want[1], dtype)


@pytest.mark.parametrize("arithmetic", [PLAIN, BLAS], ids=lambda a: a.name)
def test_layer_norm(golden, arithmetic):
    inputs = x, gain, bias, dy = g.layer_norm_inputs()
    y, xhat, rstd = sequence.layer_norm_forward(x, gain, bias, arithmetic=arithmetic)
    dx = sequence.layer_norm_backward(dy, gain, xhat, rstd, arithmetic=arithmetic)
    got = y, dx, arithmetic.dot_columns(dy, xhat, 0 * gain), arithmetic.sum_columns(dy, 0 * bias)
    want = g.unpack(inputs, golden("functions")["layer_norm"], [np.shape(a) for a in got])
    for a, b in zip(got, want, strict=True):
        close(a, b, "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k, limit", [*enumerate(g.CLIP_LIMITS)])
def test_clipping(golden, k, limit, dtype):
    for name, clip in (("norm", rnnfast.clip_grad_norm), ("value", rnnfast.clip_grad_value)):
        grads = [a.astype(dtype) for a in g.clip_inputs()]
        total = clip(grads, limit)
        want = g.unpack(g.clip_inputs(), golden("functions")[f"clip_{name}_{k}"],
                        [(), *(a.shape for a in grads)])  # fmt: skip
        close(0.0 if total is None else total, want[0], dtype)
        for a, b in zip(grads, want[1:], strict=True):
            close(a, b, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", g.OPTIMISERS)
def test_optimisers(golden, name, dtype):
    kind, options = g.OPTIMISERS[name]
    params, gradients = g.optimiser_inputs()
    module = rnnfast.Linear(1, 1, dtype=dtype)  # anything with params and grads
    module.params = {n: a.astype(dtype) for n, a in params.items()}
    module.grads = {n: np.zeros_like(a) for n, a in module.params.items()}
    optimizer = getattr(rnnfast.optim, kind)(module, **options)
    shapes = [a.shape for _ in gradients for a in params.values()]
    want = iter(g.unpack((params, *gradients), golden("optimisers")[name], shapes))
    for step in gradients:
        for n, a in step.items():
            module.grads[n][...] = a
        optimizer.step()
        for n, p in module.params.items():
            close(p, next(want), dtype, n)


def test_files_hold_nothing_else(golden):
    """Every stored case is read by a test above."""
    names = {
        **{kind: [str(k) for k in range(len(g.network_cases(kind)))] for kind in g.NETWORKS},
        "variants": [f"{c}_{k}" for c in g.VARIANTS for k in range(len(g.variant_cases(c)))],
        "cells": [f"{kind}_{b}" for kind in g.CELLS for b in (0, 1)],
        "functions": [
            *(f"softmax_{k}" for k in range(len(g.SOFTMAX_CASES))),
            *(f"clip_{n}_{k}" for n in ("norm", "value") for k in range(len(g.CLIP_LIMITS))),
            "sigmoid", "quadratic", "embedding", "layer_norm",
        ],
        "optimisers": list(g.OPTIMISERS),
    }  # fmt: skip
    assert {p.stem for p in GOLDEN.glob("*.npz")} == names.keys()
    for name, keys in names.items():
        assert sorted(golden(name)) == sorted(keys)
    assert sum(p.stat().st_size for p in GOLDEN.iterdir()) < 1_500_000


def test_another_result_is_noticed(golden):
    """A relative 1e-8 in one number, wherever it is, fails in float64; 1e-4 fails in float32."""
    case = {"num_layers": 1, "bidirectional": False, "bias": True, "batch_first": False,
            "ragged": False, "proj_size": 0}  # fmt: skip
    index = g.network_cases("gru").index(case)
    inputs = g.network_inputs("gru", index, case)
    for dtype, change in (("float64", 1e-8), ("float32", 1e-4)):
        got = run(rnnfast.GRU(g.I, g.H, dtype=dtype), inputs, 1)
        vector = golden("gru")[str(index)]
        compare(got, inputs, vector, dtype)
        at = 1
        for a in got.values():
            wrong = vector.copy()
            wrong[at + abs(a).argmax()] *= 1 + change
            at += a.size
            with pytest.raises(AssertionError):
                compare(got, inputs, wrong, dtype)
