from typing import Literal, overload

from numpy.typing import ArrayLike

from rnnfast._module import Array

Reduction = Literal["mean", "sum"]

def softmax(z: ArrayLike) -> Array: ...
@overload
def softmax_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    weight: ArrayLike | None = None,
    inplace: bool = False,
) -> tuple[float, Array]: ...
@overload
def softmax_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    ignore_index: int = -100,
    reduction: Literal["none"],
    label_smoothing: float = 0.0,
    weight: ArrayLike | None = None,
    inplace: bool = False,
) -> tuple[Array, Array]: ...
@overload
def sigmoid_cross_entropy(
    z: ArrayLike, target: ArrayLike, *, reduction: Reduction = "mean"
) -> tuple[float, Array]: ...
@overload
def sigmoid_cross_entropy(
    z: ArrayLike, target: ArrayLike, *, reduction: Literal["none"]
) -> tuple[Array, Array]: ...
@overload
def quadratic_error(
    y: ArrayLike, target: ArrayLike, *, reduction: Reduction = "sum"
) -> tuple[float, Array]: ...
@overload
def quadratic_error(
    y: ArrayLike, target: ArrayLike, *, reduction: Literal["none"]
) -> tuple[Array, Array]: ...
