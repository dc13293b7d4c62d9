"""Comparison of arrays bit for bit, with a report that shows where and how far apart."""

import numpy as np


def ordered(x):
    """The bits of floats as integers whose difference is the distance in ULP."""
    bits = x.view(np.int32 if x.dtype == np.float32 else np.int64)
    low = np.iinfo(bits.dtype).min
    return np.where(bits < 0, low - bits, bits).astype(object)


def same_bits(got, want, name="array"):
    """Assert equal shape, dtype and bits (every NaN counts as the same NaN)."""
    if want is None or isinstance(want, (str, bool, float, int)):
        assert got == want, f"{name}: {got!r} != {want!r}"
        return
    got, want = np.ascontiguousarray(got), np.ascontiguousarray(want)
    assert got.shape == want.shape, f"{name}: shape {got.shape} != {want.shape}"
    assert got.dtype == want.dtype, f"{name}: dtype {got.dtype} != {want.dtype}"
    if got.dtype.kind != "f":
        assert (got == want).all(), name
        return
    kind = np.int32 if got.dtype == np.float32 else np.int64
    differ = (got.view(kind) != want.view(kind)) & ~(np.isnan(got) & np.isnan(want))
    if differ.any():
        at = tuple(int(i) for i in np.argwhere(differ)[0])
        a, b = got[at], want[at]
        ulp = "?" if np.isnan(a) or np.isnan(b) else ordered(a[None])[0] - ordered(b[None])[0]
        raise AssertionError(
            f"{name}: {differ.sum()} of {differ.size} differ, first at {at}: "
            f"{a!r} ({a.tobytes()[::-1].hex()}) != {b!r} ({b.tobytes()[::-1].hex()}), {ulp} ULP"
        )


def same_tape(got, want):
    """Assert that two tapes have the same keys and bits."""
    assert got.keys() == want.keys()
    for key in want:
        if isinstance(want[key], tuple):
            for k, (a, b) in enumerate(zip(got[key], want[key], strict=True)):
                same_bits(a, b, f"tape[{key}][{k}]")
        else:
            same_bits(got[key], want[key], f"tape[{key}]")
