"""Every kernel of csrc/kernels.inc on every instruction set, between guard pages, bit for bit
against its NumPy twin and the scalar build. `tests.kernel_calls` has the cases."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rnnfast
from rnnfast import _kernels
from tests import kernel_calls

DTYPES = ["float32", "float64"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made by mprotect")


def start(*arguments, progress=os.devnull):
    # at the path's end: an installed rnnfast comes before the sources beside tests/
    code = (f"import runpy, sys; sys.path.append({str(Path(__file__).parents[1])!r}); "
            "runpy.run_module('tests.kernel_calls', run_name='__main__')")  # fmt: skip
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True,
                          env=os.environ | {"KERNEL_CALLS_PROGRESS": str(progress)})  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """outcome(dtype, kernel) -> what was wrong. A crash counts against the kernel it happened in;
    the others go on in a new process."""
    known = {}

    def run(dtype):
        progress = tmp_path_factory.mktemp("kernels") / "progress"
        left = [name for name in _kernels.kernel_names() if name in kernel_calls.CASES]
        found = {}
        while left:
            done = start(dtype, *left, progress=progress)
            for line in done.stdout.splitlines():
                report = json.loads(line)
                found[report["name"]] = report["wrong"]
                left.remove(report["name"])
            if not left:
                break
            place = progress.read_text().strip() if progress.exists() else "before the first call"
            found[left.pop(0)] = [f"died ({done.returncode}) at: {place}\n{done.stderr}"]
        return found

    def outcome(dtype, name):
        if dtype not in known:
            known[dtype] = run(dtype)
        return known[dtype][name]

    return outcome


@linux
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", _kernels.kernel_names())
def test_kernel(name, dtype, outcomes):
    assert name in kernel_calls.CASES, f"tests/kernel_calls.py has no case for the kernel {name}"
    wrong = outcomes(dtype, name)
    assert not wrong, "\n".join(wrong)


def test_the_list_is_the_one_compiled():
    assert list(kernel_calls.prototypes()) == _kernels.kernel_names()
    assert set(kernel_calls.CASES) == set(_kernels.kernel_names())


@linux
@pytest.mark.parametrize("dtype", DTYPES)
def test_guard_pages_catch_an_overrun(dtype):
    died = start(dtype, "overrun")
    # the address sanitizer takes the signal and exits by itself
    assert died.returncode == -signal.SIGSEGV or "AddressSanitizer" in died.stderr


def test_a_write_next_to_an_array_is_noticed():
    slot = kernel_calls.Guarded()
    slot.place(np.zeros(3, np.float32), at_end=False)
    slot.check_rest()
    slot.bytes[12] = 0
    with pytest.raises(AssertionError, match="1 bytes"):
        slot.check_rest()


# ---- the floating-point mode --------------------------------------------------------------------

ENTER, KEEP, LEAVE = _kernels.fpmode_addresses()
enter, keep = (ctypes.CFUNCTYPE(ctypes.c_uint64)(address) for address in (ENTER, KEEP))
leave = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(LEAVE)


def mode():
    """This thread's two mode bits as a state of the arithmetic: does a denormal survive?"""
    tiny = np.full(4, np.finfo(np.float32).smallest_subnormal * 8)
    return bool((tiny * np.float32(1) != 0).all())


def refused(layer, x):
    with pytest.raises(TypeError):
        layer(x)


def calls():
    """Something of every compiled module."""
    f32 = np.float32
    lstm, gru, rnn = (c(3, 5, seed=0) for c in (rnnfast.LSTM, rnnfast.GRU, rnnfast.RNN))
    x = np.ones((4, 2, 3), f32)

    def train(layer):
        y, _, tape = layer.forward(x)
        layer.backward(tape, y)

    adam = rnnfast.optim.Adam(lstm)
    z = np.ones((2, 3), f32)
    yield from (lambda layer=layer: train(layer) for layer in (lstm, gru, rnn))
    yield lambda: train(rnnfast.LSTM(3, 5, proj_size=2, layer_norm=True, seed=0))
    yield lambda: lstm(np.ones((4, 2), int))
    yield lambda: rnnfast.losses.softmax_cross_entropy(z, np.zeros(2, int))
    yield lambda: rnnfast.losses.sigmoid_cross_entropy(z, z)
    yield lambda: rnnfast.losses.quadratic_error(z, z)
    yield lambda: rnnfast.clip_grad_norm(lstm.grads, 1.0)
    yield lambda: rnnfast.clip_grad_value(lstm.grads, 0.1)
    yield adam.step
    yield lambda: _kernels.apply("exp", z)
    yield lambda: refused(lstm, x.astype(np.float64))


@pytest.mark.parametrize("denormals", ["flush", "keep"])
@pytest.mark.parametrize("caller", ["flush", "keep"])
def test_a_call_gives_the_callers_mode_back(caller, denormals, use_denormals):
    use_denormals(denormals)
    todo = list(calls())
    before = {"flush": enter, "keep": keep}[caller]()
    try:
        seen = []
        for call in todo:
            call()
            seen.append(mode())
    finally:
        leave(before)
    assert seen == [caller == "keep"] * len(todo)
    assert mode()


def test_modes_are_per_thread_state():
    """What `mode` reads is what enter and keep set."""
    before = enter()
    flushed = mode()
    leave(before)
    assert not flushed and mode()
