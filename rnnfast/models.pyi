from collections.abc import Sequence
from typing import Any, Literal

from numpy.typing import ArrayLike

from rnnfast._module import Array, Dtype, Module
from rnnfast.layers import Recurrent

Function = Literal["linear", "sigmoid", "softmax"]
Loss = Literal["quadratic", "cross_entropy"]
Reduction = Literal["mean", "sum"]

class Output:
    def __init__(
        self, function: Function, loss: Loss | None = None, reduction: Reduction = "mean"
    ) -> None: ...
    def __call__(self, z: Array) -> Array: ...
    def loss(self, z: Array, target: ArrayLike) -> tuple[float, Array]: ...

class Model(Module):
    output: Output
    parts: dict[str, Module]

class FeedForward(Model):
    def __init__(
        self,
        sizes: Sequence[int],
        hidden: Literal["sigmoid", "tanh", "relu"] = "sigmoid",
        output: Function = "sigmoid",
        loss: Loss | None = None,
        *,
        reduction: Reduction = "sum",
        dtype: Dtype = "float32",
        seed: int | None = None,
    ) -> None: ...
    def __call__(self, x: ArrayLike) -> Array: ...
    def forward(self, x: ArrayLike) -> tuple[Array, Any]: ...
    def backward(self, tape: Any, dz: ArrayLike, *, need_dx: bool = True) -> Array | None: ...
    def loss_and_grads(self, x: ArrayLike, target: ArrayLike) -> float: ...

class Sequential(Model):
    batch_first: bool
    def __call__(
        self, x: ArrayLike, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[Array, Any]: ...
    def loss(
        self, z: Array, targets: ArrayLike, lengths: ArrayLike | None = None
    ) -> tuple[float, Array]: ...
    def loss_and_grads(
        self, x: ArrayLike, targets: ArrayLike, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[float, Any]: ...

class SequenceTagger(Sequential):
    def __init__(
        self,
        layer: Recurrent[Any],
        output_size: int,
        output: Function = "softmax",
        loss: Loss | None = None,
        *,
        reduction: Reduction = "mean",
        seed: int | None = None,
        rename: Any = None,
    ) -> None: ...
    def forward(
        self, x: ArrayLike, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[Array, Any, Any]: ...
    def backward(
        self, tape: Any, dz: ArrayLike, dstate: Any = None, *, need_dx: bool = True
    ) -> tuple[Array | None, Any]: ...

class StepRNN(SequenceTagger):
    state: Array | None
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        output: Function = "linear",
        loss: Loss | None = None,
        *,
        reduction: Reduction = "mean",
        dtype: Dtype = "float32",
        seed: int | None = None,
    ) -> None: ...
    def reset(self) -> None: ...
    def step(self, x: ArrayLike) -> Array: ...

class Elman(StepRNN):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        reduction: Reduction = "sum",
        dtype: Dtype = "float32",
        seed: int | None = None,
    ) -> None: ...

class OutputRecurrent(Sequential):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        output: Function = "linear",
        *,
        reduction: Reduction = "mean",
        dtype: Dtype = "float32",
        seed: int | None = None,
    ) -> None: ...
    def forward(
        self, x: ArrayLike, state: Any = None, lengths: ArrayLike | None = None
    ) -> tuple[Array, Any, Any]: ...
    def backward(
        self, tape: Any, dz: ArrayLike, dstate: Any = None, *, need_dx: bool = True
    ) -> tuple[Array | None, Any]: ...
    def forward_teacher(
        self,
        x: ArrayLike,
        targets: ArrayLike,
        state: Any = None,
        lengths: ArrayLike | None = None,
    ) -> tuple[Array, Any]: ...
    def backward_teacher(self, tape: Any, dz: ArrayLike) -> None: ...
    def loss_and_grads(
        self,
        x: ArrayLike,
        targets: ArrayLike,
        state: Any = None,
        lengths: ArrayLike | None = None,
        *,
        teacher_forcing: bool = False,
    ) -> tuple[float, Any]: ...

class SequenceToOne(Model):
    def __init__(
        self,
        layer: Recurrent[Any],
        output_size: int,
        output: Function = "softmax",
        loss: Loss | None = None,
        *,
        reduction: Reduction = "mean",
        seed: int | None = None,
    ) -> None: ...
    def __call__(self, x: ArrayLike, lengths: ArrayLike | None = None) -> Array: ...
    def forward(self, x: ArrayLike, lengths: ArrayLike | None = None) -> tuple[Array, Any]: ...
    def backward(self, tape: Any, dz: ArrayLike, *, need_dx: bool = True) -> Array | None: ...
    def loss_and_grads(
        self, x: ArrayLike, targets: ArrayLike, lengths: ArrayLike | None = None
    ) -> float: ...
