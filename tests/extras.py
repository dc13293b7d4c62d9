"""Tests of what needs the library of an extra."""

from contextlib import contextmanager

import pytest


@contextmanager
def extras():
    """Skips the test where a library that is not ours is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "rnnfast":
            raise
        pytest.skip(f"{error.name} is not installed")
