"""The arithmetic that a reference function computes with.

The functions of this package read like the equations of ``docs/math.md``. What a product, an fma
or a tanh *is*, bit for bit, comes from an object that they take as ``arithmetic``:

``PLAIN``
    ``@`` and NumPy's own functions: what a NumPy user would write. An independent judge within a
    tolerance, and the baseline of every speed-up that is quoted.
``BLAS``
    Our elementary functions (`rnnfast.reference.elementary`) and SciPy's BLAS called with the same
    arguments as the compiled engine ``blas``: the same bits as that engine.
``FUSED``
    The same elementary functions, and every element of a product one chain of fused multiply-adds
    in ascending k: the same bits as the compiled engine ``fused``.

``Blas("keep")`` and ``Fused("keep")`` are the last two with gradual underflow in place of flushing.
"""

import numpy as np
from scipy.linalg import blas

from rnnfast.reference import elementary

#: name -> (alpha, beta) of min(max(alpha x + beta, 0), 1)
HARD = {"hard_sigmoid": (1.0 / 6.0, 0.5), "hard_sigmoid_onnx": (0.2, 0.5)}
LANES = 16
GEMV_SIZE = 1 << 18  # elements of a matrix from which its product with one row is gemv's


class Arithmetic:
    """What all arithmetics share: everything that follows from their few operations."""

    def activation(self, name, x):
        """f(x) for an activation by name."""
        if name == "sigmoid":
            return self.sigmoid(x)
        if name == "tanh":
            return self.tanh(x)
        if name == "relu":
            return self.relu(x)
        alpha, beta = HARD[name]
        one = x.dtype.type(1)
        z = self.fma(x.dtype.type(alpha), x, x.dtype.type(beta))
        z = np.where(z < 0, one * 0, z)
        return self.array(np.where(z > 1, one, z))

    def derivative(self, name, y):
        """f'(x) written with y = f(x)."""
        if name == "sigmoid":
            return self.fma(-y, y, y)
        if name == "tanh":
            return self.fma(-y, y, y.dtype.type(1))
        one = y.dtype.type(1)
        if name == "relu":
            return self.array(np.where(y > 0, one, 0 * one))
        inside = (y > 0) & (y < 1)
        return self.array(np.where(inside, y.dtype.type(HARD[name][0]), 0 * one))

    def relu(self, x):
        return self.array(elementary.vmax(x.dtype.type(0), x))


class Plain(Arithmetic):
    """NumPy as it comes."""

    name = "plain"

    def array(self, x):
        return np.asarray(x)

    def matmul(self, a, b, c=None):
        """a @ b, plus c where given."""
        return a @ b if c is None else a @ b + c

    def fma(self, a, b, c):
        return a * b + c

    def exp(self, x):
        return np.exp(x)

    def log_pos(self, x):
        return np.log(x)

    def log1p(self, x):
        return np.log1p(x)

    def tanh(self, x):
        return np.tanh(x)

    def sigmoid(self, x):
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-x))

    def relu(self, x):
        return np.maximum(x, 0)

    def sum_rows(self, x):
        """Sum over the last axis, which stays with length 1."""
        return x.sum(axis=-1, keepdims=True)

    def dot_rows(self, x, y):
        """Sum over the last axis of x y, which stays with length 1."""
        return (x * y).sum(axis=-1, keepdims=True)

    def sum_columns(self, x, start):
        """start plus the sum over axis 0."""
        return start + x.sum(axis=0)

    def dot_columns(self, x, y, start):
        """start plus the sum over axis 0 of x y."""
        return start + (x * y).sum(axis=0)


class Blas(Arithmetic):
    """The arithmetic of engine ``blas``.

    Parameters
    ----------
    denormals : {"flush", "keep"}
        Whether numbers below the smallest normal count as 0 outside of BLAS.
    """

    name = "blas"

    def __init__(self, denormals="flush"):
        self.denormals = denormals

    def array(self, x):
        x = np.asarray(x)
        return elementary.flushed(x) if self.denormals == "flush" else x

    def matmul(self, a, b, c=None):
        """a @ b, plus c where given: one call of ?gemm with beta 0 or 1; of ?gemv for one row
        and a large b.

        Fortran sees a row-major matrix transposed, so C^T = B^T A^T is what is asked for. A matrix
        with one row or one column is passed as not transposed.
        """
        a, b = np.asarray(a), np.asarray(b)
        (m, k), n = a.shape, b.shape[1]
        out = np.zeros((m, n), a.dtype) if c is None else np.array(c, a.dtype, order="C")
        if m == 1 and n > 1 and n * k >= GEMV_SIZE:
            gemv = blas.sgemv if a.dtype == np.float32 else blas.dgemv
            bt, trans_b = _fortran(b)
            out = gemv(1.0, bt, a[0], 1.0, out[0], trans=trans_b)[None]
        elif m and n and k:
            gemm = blas.sgemm if a.dtype == np.float32 else blas.dgemm
            at, trans_a = _fortran(a)
            bt, trans_b = _fortran(b)
            beta = 0.0 if c is None else 1.0
            out = gemm(1.0, bt, at, beta, out.T, trans_b, trans_a, 1).T
        return self.array(out)

    def fma(self, a, b, c):
        dtype = np.result_type(*(x for x in (a, b, c) if isinstance(x, np.ndarray | np.generic)))
        return self.array(elementary.fma(*(self.array(np.asarray(x, dtype)) for x in (a, b, c))))

    def exp(self, x):
        return self.array(elementary.exp(self.array(x)))

    def log_pos(self, x):
        return self.array(elementary.log_pos(self.array(x)))

    def log1p(self, x):
        return self.array(elementary.log1p(self.array(x)))

    def tanh(self, x):
        return self.array(elementary.tanh(self.array(x)))

    def sigmoid(self, x):
        return self.array(elementary.sigmoid(self.array(x)))

    def sum_rows(self, x):
        """Sixteen interleaved partial sums, then halves added until one is left."""
        return self._reduce_lanes(lambda total, x: total + x, x)

    def dot_rows(self, x, y):
        """The same sixteen partial sums, each a chain of fma."""
        return self._reduce_lanes(lambda total, x, y: self.fma(x, y, total), x, y)

    def _reduce_lanes(self, step, *operands):
        rows, n = operands[0].shape
        blocks = -(-n // LANES)
        padded = [np.zeros((rows, blocks * LANES), x.dtype) for x in operands]
        for wide, x in zip(padded, operands, strict=True):
            wide[:, :n] = x
        lanes = self.array(np.zeros((rows, LANES), operands[0].dtype))
        for k in range(blocks):
            block = slice(k * LANES, (k + 1) * LANES)
            lanes = step(lanes, *(self.array(wide[:, block]) for wide in padded))
        half = LANES // 2
        while half:
            lanes = lanes[:, :half] + lanes[:, half : 2 * half]
            half //= 2
        return lanes

    def sum_columns(self, x, start):
        """One chain per column, rows ascending."""
        total = self.array(start)
        for row in self.array(x):
            total = total + row
        return total

    def dot_columns(self, x, y, start):
        """One chain of fma per column, rows ascending."""
        total = self.array(start)
        for u, v in zip(x, y, strict=True):
            total = self.fma(u, v, total)
        return total


class Fused(Blas):
    """The arithmetic of engine ``fused``: as `Blas`, but products are chains of fma.

    Parameters
    ----------
    denormals : {"flush", "keep"}
        Whether numbers below the smallest normal count as 0.
    """

    name = "fused"

    def matmul(self, a, b, c=None):
        """Every element: fma(a[i, k], b[k, j], ...) over k ascending, from c[i, j] or 0."""
        a, b = np.asarray(a), np.asarray(b)
        out = np.zeros((len(a), b.shape[1]), a.dtype) if c is None else np.array(c, a.dtype)
        out = self.array(out)
        for k in range(a.shape[1] if out.size else 0):
            out = self.fma(a[:, k : k + 1], b[k : k + 1], out)
        return out


def _fortran(x):
    """(array in Fortran order, trans) that make ?gemm read the transpose of x."""
    if x.flags.c_contiguous or x.strides[1] == x.itemsize:
        return np.ascontiguousarray(x).T, 0
    return np.asfortranarray(x), 1


PLAIN = Plain()
BLAS = Blas()
FUSED = Fused()
