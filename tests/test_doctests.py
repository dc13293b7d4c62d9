"""The examples in the docstrings of the package run and print what they show."""

import doctest
import importlib
import pkgutil

import pytest

import rnnfast
from tests.extras import extras

MODULES = ["rnnfast", *(m.name for m in pkgutil.walk_packages(rnnfast.__path__, "rnnfast.")
                        if not m.name.endswith("__main__"))]  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, use_isa, use_denormals, use_engine):
    with extras():
        module = importlib.import_module(name)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    runner = doctest.DocTestRunner(optionflags=flags)
    report = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "Linear", "Embedding", "LSTMCell",
                                  "GRUCell", "RNNCell", "clip_grad_norm", "clip_grad_value",
                                  "last_output", "show_config"])  # fmt: skip
def test_has_an_example(name):
    assert ">>>" in getattr(rnnfast, name).__doc__


@pytest.mark.parametrize("name", rnnfast.__all__)
def test_is_documented(name):
    assert getattr(rnnfast, name).__doc__
