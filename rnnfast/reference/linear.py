"""The affine layer and element-wise activations: twins of the functions of ``rnnfast._dense``."""

import numpy as np

from rnnfast.reference.arithmetic import PLAIN
from rnnfast.reference.sequence import input_product, input_product_backward


def linear_forward(x, weight, bias=None, *, arithmetic=PLAIN):
    """y = x W^T + b.

    Parameters
    ----------
    x : (N, I) array, or (N,) int64
        Integers stand for one-hot rows.
    weight : (O, I) array
    bias : (O,) array or None

    Returns
    -------
    (N, O) array
    """
    return input_product(arithmetic, x, weight, bias)


def linear_backward(x, weight, dy, grads, need_dx=True, *, arithmetic=PLAIN):
    """Add dE/dW and dE/db to grads["weight"] and grads["bias"]; return dE/dx or None."""
    if "bias" in grads:
        grads["bias"][...] = np.asarray(arithmetic.sum_columns(dy, grads["bias"]))
    return input_product_backward(arithmetic, x, weight, dy, grads["weight"], need_dx)


def activation_forward(name, x, *, arithmetic=PLAIN):
    """y = f(x), element by element.

    Parameters
    ----------
    name : {"sigmoid", "tanh", "relu", "hard_sigmoid", "hard_sigmoid_onnx"}
    x : array
    """
    ar = arithmetic
    return np.asarray(ar.activation(name, ar.array(x)))


def activation_backward(name, y, dy, *, arithmetic=PLAIN):
    """dy f'(x), with f' written in terms of y = f(x)."""
    ar = arithmetic
    return np.asarray(ar.array(dy) * ar.derivative(name, ar.array(y)))
