"""The engine in use: which functions do the computing.

An engine is the set of functions that `rnnfast.reference` defines, under the same names. ``blas``
compiles them over SciPy's BLAS; ``reference`` is the NumPy twins themselves with the arithmetic of
``blas``, for tests that compare whole layers bit for bit.
"""

import functools
import importlib
import os
from types import SimpleNamespace

FUNCTIONS = {
    "rnn": ("rnn_forward", "rnn_backward"),
    "lstm": ("lstm_forward", "lstm_backward"),
    "gru": ("gru_forward", "gru_backward"),
    "linear": ("linear_forward", "linear_backward"),
    "loss": ("softmax", "softmax_cross_entropy", "sigmoid_cross_entropy", "quadratic_error"),
    "clip": ("norm", "scale", "clamp"),
    "optim": ("sgd_step", "adam_step", "rmsprop_step", "adagrad_step"),
}
COMPILED = {name: f"rnnfast._{name}" for name in FUNCTIONS} | {"linear": "rnnfast._dense"}
ENGINES = ("blas", "reference")


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
        if self.name == "blas":
            return getattr(importlib.import_module(COMPILED[stem]), function)
        arithmetic = importlib.import_module("rnnfast.reference.arithmetic").BLAS
        twin = getattr(importlib.import_module(f"rnnfast.reference.{stem}"), function)
        return functools.partial(twin, arithmetic=arithmetic)


_groups = {name: Group(name) for name in ENGINES}
_current = SimpleNamespace(group=None)


def get_engine():
    """Name of the engine in use: "blas" (or "reference", the NumPy twins)."""
    return _current.group.name


def set_engine(name):
    """Use the engine `name` from now on.

    Parameters
    ----------
    name : {"blas", "reference"}
        ``reference`` is slow and for tests.

    Raises
    ------
    ValueError
        For any other name.
    """
    if name not in _groups:
        raise ValueError(f"engine must be one of {ENGINES}, got {name!r}")
    _current.group = _groups[name]


def functions():
    """The functions of the engine in use."""
    return _current.group


set_engine(os.environ.get("RNNFAST_ENGINE") or "blas")
