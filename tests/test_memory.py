"""Memory of long sequences, measured in a process of its own; and what is kept between calls."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from rnnfast import _memory

SCRIPT = """
import json, resource, sys
import numpy as np
import rnnfast
from rnnfast import _lstm

T, every = int(sys.argv[1]), int(sys.argv[2]) or None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layer = rnnfast.LSTM(16, 128, checkpoint_every=every, seed=0)
x = np.random.default_rng(0).standard_normal((T, 1, 16), np.float32)
y, state, tape = layer.forward(x)
dx, dstate = layer.backward(tape, np.ones_like(y))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"mb": peak / 1024, "tape": tape.nbytes / 2**20}))
"""


def run(T, every):
    out = subprocess.run([sys.executable, "-c", SCRIPT, str(T), str(every)], capture_output=True,
                         text=True, check=True)  # fmt: skip
    return json.loads(out.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
def test_a_hundred_thousand_steps_in_400_mb():
    """T = 100,000, B = 1, H = 128: input, output and both their gradients included."""
    assert run(100_000, 1000)["mb"] < 400


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
def test_checkpoints_hold_states_only():
    kept, saved = run(20_000, 0), run(20_000, 1000)
    states = 20 * 2 * 128 * 4 / 2**20
    inputs = 20_000 * 16 * 4 / 2**20
    assert saved["tape"] < inputs + 3 * states + 1
    assert kept["tape"] > 20 * saved["tape"]


keeps = pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""),
                           reason="the address sanitizer is shown every allocation")  # fmt: skip


def floats(n):
    return _memory.empty_array((n,), np.dtype("float32"))


@keeps
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages on demand")
def test_large_arrays_begin_with_a_huge_page():
    assert floats(1 << 20).ctypes.data % (1 << 21) == 0


@keeps
def test_memory_of_large_arrays_is_used_again():
    _memory.release()
    a = floats(100_000)
    where, view = a.ctypes.data, a[:10]
    del a
    assert _memory.kept_bytes() == 0  # the view still needs it
    view[...] = 1
    del view
    assert 400_000 <= _memory.kept_bytes() < 450_000
    assert floats(100_000 - 7).ctypes.data == where
    assert where % 64 == 0
    _memory.release()
    assert _memory.kept_bytes() == 0


@keeps
def test_kept_memory_has_a_limit():
    _memory.release()
    pieces = [floats(5_000_000) for _ in range(20)]  # 400 MB, of which no page is touched
    del pieces
    assert 200e6 < _memory.kept_bytes() <= 256 * 2**20
    many = [floats(20_000) for _ in range(200)]
    del many
    assert _memory.kept_bytes() <= 256 * 2**20
    _memory.release()


def test_shapes_and_dtypes():
    for shape in [(), (0, 5), (3, 4), (300, 1, 200)]:
        for dtype in (np.dtype("float32"), np.dtype("float64")):
            a = _memory.empty_array(shape, dtype)
            assert a.shape == shape and a.dtype == dtype and a.flags.carray
            a[...] = 7
    with pytest.raises(ValueError, match="int32"):
        _memory.empty_array((3,), np.dtype("int32"))
    with pytest.raises(ValueError, match="negative"):
        _memory.empty_array((3, -1), np.dtype("float32"))
