"""Memory of long sequences, measured in a process of its own."""

import json
import subprocess
import sys

import pytest

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
