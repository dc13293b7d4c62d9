"""Hypothesis profiles and the switches a test may turn, put back afterwards."""

import os
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

from rnnfast import _engine, _kernels

# Processes that tests start find the installed package as well, not the folder beside tests/.
os.environ["PYTHONSAFEPATH"] = "1"
os.environ.setdefault("KERAS_BACKEND", "torch")

# Docstrings are looked for in every file, so every file is imported.
collect_ignore = [] if find_spec("torch") else ["torch_processes.py"]

common = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=25, derandomize=True, **common)
settings.register_profile("thorough", max_examples=500, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture
def use_isa():
    """A function that switches the instruction set for the rest of the test."""
    before = _kernels.get_isa()
    yield _kernels.set_isa
    _kernels.set_isa(before)


@pytest.fixture
def use_denormals():
    """A function that switches the treatment of denormals for the rest of the test."""
    before = _kernels.get_denormals()
    yield _kernels.set_denormals
    _kernels.set_denormals(before)


@pytest.fixture
def use_engine():
    """A function that switches the engine for the rest of the test."""
    before = _engine.get_engine()
    yield _engine.set_engine
    _engine.set_engine(before)
