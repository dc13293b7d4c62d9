"""The engine in use: which functions do the computing.

An engine is the set of functions that `rnnfast.reference` defines, under the same names, compiled:
``fused`` with whole time steps in one kernel and products of our own in fixed order, ``blas`` over
SciPy's BLAS. ``reference`` and
``reference-fused`` are the NumPy twins themselves with the arithmetic of the one or the other, for
tests that compare whole layers bit for bit.
"""

import functools
import importlib
import os
from types import SimpleNamespace

from rnnfast import _kernels, _product

FUNCTIONS = {
    "rnn": ("rnn_forward", "rnn_backward"),
    "lstm": ("lstm_forward", "lstm_backward"),
    "gru": ("gru_forward", "gru_backward"),
    "output_rnn": ("output_rnn_forward", "output_rnn_backward"),
    "linear": ("linear_forward", "linear_backward", "activation_forward", "activation_backward"),
    "loss": ("softmax", "softmax_cross_entropy", "sigmoid_cross_entropy", "quadratic_error"),
    "clip": ("norm", "scale", "clip_by_value", "clip_by_norm"),
    "optim": ("sgd_step", "adam_step", "rmsprop_step", "adagrad_step"),
}
COMPILED = {name: f"rnnfast._{name}" for name in FUNCTIONS} | {"linear": "rnnfast._dense"}
ENGINES = ("blas", "fused", "reference", "reference-fused")
ARITHMETIC = {"reference": "BLAS", "reference-fused": "FUSED"}


class Group:
    """The functions of one engine; a module is imported when its first function is asked for, so
    that only what uses BLAS pays for importing it."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, function):
        for stem, functions in FUNCTIONS.items():
            if function in functions:
                setattr(self, function, self._load(stem, function))
                return getattr(self, function)
        raise AttributeError(function)

    def _load(self, stem, function):
        if self.name not in ARITHMETIC:
            return getattr(importlib.import_module(COMPILED[stem]), function)
        module = importlib.import_module("rnnfast.reference.arithmetic")
        arithmetic = getattr(module, ARITHMETIC[self.name])
        twin = getattr(importlib.import_module(f"rnnfast.reference.{stem}"), function)
        return functools.partial(twin, arithmetic=arithmetic)


_groups = {name: Group(name) for name in ENGINES}
_current = SimpleNamespace(group=None)


def get_engine():
    """Name of the engine in use: "blas" or "fused" (or one of the NumPy twins)."""
    return _current.group.name


def set_engine(name):
    """Use the engine `name` from now on.

    Parameters
    ----------
    name : {"blas", "fused", "reference", "reference-fused"}
        ``fused``, the default where the CPU has AVX2 or AVX-512: a time step is one kernel and the
        products are our own, in fixed order; a result then does not depend on the other sequences
        of the batch, on chunks, on the number of threads or on the instruction set
        (docs/arithmetic.md). ``blas``: the products are SciPy's BLAS's, on as many threads as it
        likes. The other two are slow and for tests.

    Raises
    ------
    ValueError
        For any other name.
    """
    if name not in _groups:
        raise ValueError(f"engine must be one of {ENGINES}, got {name!r}")
    _product.set_fixed_order(name == "fused")
    _current.group = _groups[name]


def functions():
    """The functions of the engine in use."""
    return _current.group


# Where the CPU has no vectors with fma, BLAS is faster than our own products.
set_engine(os.environ.get("RNNFAST_ENGINE")
           or ("fused" if _kernels.get_isa() in ("avx2", "avx512") else "blas"))  # fmt: skip
