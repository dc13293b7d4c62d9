"""Batches of sequences of different lengths as packed rows, and their division into blocks."""

import itertools
from typing import NamedTuple

import numpy as np

from rnnfast import _seq
from rnnfast._memory import empty_array

#: Rows that one engine call covers, about: enough for a matrix product to run at full speed and to
#: pay for packing the weights, few enough that a block's arrays stay in the nearer caches.
BLOCK_ROWS = 1024
#: Pre-activations of a block, where those of so many rows are fewer, and the most rows then: a call
#: costs 50 to 100 us of Python.
BLOCK_SIZE, MOST_ROWS = 1 << 18, 8192

KEPT = np.dtype("float32"), np.dtype("float64")


class Packing:
    """Where each step of each sequence of a (T, B) batch lies among the packed rows.

    Sequences are sorted by length, longest first; row by row come step 0 of all sequences that
    have one, then step 1, and so on. No row stands for padding.

    Attributes
    ----------
    T, B, rows : int
        rows: N, how many packed rows there are.
    batch_sizes : (T,) int64
        Sequences that have each step.
    order, lengths : (B,) int64, or None without `lengths`
        Sequences by length, and how long they are.
    """

    def __init__(self, T, B, lengths=None, owner="Packing"):
        self.T, self.B, self.rows = T, B, T * B
        self.order = self.lengths = None
        if lengths is None:
            self.batch_sizes = np.empty(T, np.int64)
            self.batch_sizes.fill(B)
            return
        lengths = np.asarray(lengths)
        if lengths.dtype.kind not in "iu" and lengths.size:  # NumPy takes [] for float64
            raise TypeError(f"{owner}: lengths must be integers, got {lengths.dtype}")
        if lengths.shape != (B,):
            raise ValueError(f"{owner}: lengths must have shape {(B,)}, got {lengths.shape}")
        self.lengths = lengths.astype(np.int64)
        self.order = np.argsort(-self.lengths, kind="stable")
        if B:
            most, least = self.lengths[self.order[0]], self.lengths[self.order[-1]]
            if least < 0 or most > T:
                raise ValueError(f"{owner}: lengths must lie in [0, {T}], got {least} to {most}")
        ended = np.bincount(self.lengths, minlength=T + 1)[:T].cumsum()
        self.batch_sizes = (B - ended).astype(np.int64, copy=False)
        self.rows = int(self.batch_sizes.sum())

    def pack(self, x):
        """(T, B, ...) as (N, ...), C-contiguous."""
        if self.order is None and x.flags.c_contiguous:
            return x.reshape(self.rows, *x.shape[2:])
        if x.ndim > 2 and not x[:1, :1].flags.c_contiguous:
            x = np.ascontiguousarray(x)
        rows = _empty((self.rows, *x.shape[2:]), x.dtype)
        _seq.pack_rows(x, self.batch_sizes, self.order, rows)
        return rows

    def unpack(self, rows, pad="zero"):
        """(N, ...) as (T, B, ...); past the end 0, or the sequence's last row again."""
        shape = self.T, self.B, *rows.shape[1:]
        if self.order is None:
            return rows.reshape(shape)
        x = _empty(shape, rows.dtype)
        _seq.pack_rows(x, self.batch_sizes, self.order, np.ascontiguousarray(rows), back=True)
        if pad == "repeat":
            for b in np.flatnonzero(self.lengths):
                x[self.lengths[b] :, b] = x[self.lengths[b] - 1, b]
        return x

    def pack_gradient(self, dx, pad="zero"):
        """The way back through `unpack`: what was repeated adds up in the last row."""
        if pad == "repeat" and self.order is not None:
            dx = dx.copy()
            for b in np.flatnonzero(self.lengths):
                n = self.lengths[b]
                dx[n - 1, b] += dx[n:, b].sum(axis=0)
        return self.pack(dx)

    def sort(self, state):
        """A copy of (..., B, size) in the order of the packed sequences."""
        return state.copy() if self.order is None else np.ascontiguousarray(state[:, self.order])

    def unsort(self, state):
        """The way back of `sort`."""
        if self.order is None:
            return state
        out = np.empty_like(state)
        out[:, self.order] = state
        return out


def _empty(shape, dtype):
    """np.empty, of memory that is kept from call to call where there can be much of it."""
    return (empty_array if dtype in KEPT else np.empty)(shape, dtype)


class Block(NamedTuple):
    """Time steps start..stop and their packed rows."""

    start: int
    stop: int
    rows: slice
    sizes: np.ndarray


def block_rows(width):
    """About how many rows of `width` pre-activations one engine call covers."""
    return max(BLOCK_ROWS, min(MOST_ROWS, BLOCK_SIZE // width))


def time_blocks(packing, about):
    """Consecutive blocks of time steps of about so many rows each: where steps are small, two
    thirds to one and a half times as many.

    The division depends on the batch sizes alone, so every pass over the same batch makes the same
    engine calls.
    """
    batch_sizes, rows = packing.batch_sizes, packing.rows
    count = max(1, (rows + about // 2) // about)
    if count == 1:
        return [Block(0, packing.T, slice(0, rows), batch_sizes)]
    stops = np.cumsum(batch_sizes)
    wanted = np.arange(1, count) * rows // count
    ends = np.unique(np.searchsorted(stops, wanted) + 1)
    edges = [0, *(int(t) for t in ends if stops[t - 1] < rows), packing.T]
    return [
        Block(a, b, slice(int(stops[a - 1]) if a else 0, int(stops[b - 1])), batch_sizes[a:b])
        for a, b in itertools.pairwise(edges)
    ]
