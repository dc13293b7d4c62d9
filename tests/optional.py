"""Libraries that only a bridge or an example needs: what needs them is skipped without them."""

import re
from contextlib import contextmanager

import pytest

LIBRARIES = {"dask", "distributed", "joblib", "keras", "onnx", "onnxruntime", "pandas", "sklearn",
             "skops", "statsmodels", "torch"}  # fmt: skip


@contextmanager
def optional():
    """Skip the test where such a library is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        skip_for(str(error))
        raise


def skip_for(text):
    """Skip the test where `text`, an error or a traceback, says that such a library is missing."""
    found = re.search(r"No module named '(\w+)", text)
    if found and found[1] in LIBRARIES:
        pytest.skip(f"{found[1]} is not installed")
