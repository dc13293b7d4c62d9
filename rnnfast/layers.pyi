from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from rnnfast._module import Array, Dtype, Module

Merge = Literal["concat", "sum", "mul", "average"]
Init = Literal["torch", "keras"]
Gate = Literal["sigmoid", "hard_sigmoid", "hard_sigmoid_onnx"]
Pad = Literal["zero", "repeat"]
#: h of an RNN or GRU: an array; (h, c) of an LSTM.
State = TypeVar("State", Array, tuple[Array, Array])

class Tape:
    packing: Any
    segments: list[Any]
    unbatched: bool
    pad_output: Pad
    @property
    def nbytes(self) -> int: ...

class Recurrent(Module, Generic[State]):
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    input_dropout: float
    recurrent_dropout: float
    bidirectional: bool
    proj_size: int
    merge: Merge
    layer_norm: bool
    checkpoint_every: int | None
    directions: int
    state_size: int
    output_size: int
    training_rng: np.random.Generator
    def __call__(
        self,
        x: ArrayLike | Sequence[ArrayLike],
        state: State | None = None,
        lengths: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        *,
        pad_output: Pad = "zero",
        out: Array | None = None,
        return_sequences: bool = True,
    ) -> tuple[Array, State]: ...
    def forward(
        self,
        x: ArrayLike | Sequence[ArrayLike],
        state: State | None = None,
        lengths: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        *,
        pad_output: Pad = "zero",
    ) -> tuple[Array, State, Tape]: ...
    def backward(
        self,
        tape: Tape,
        doutput: ArrayLike | None,
        dstate: State | None = None,
        *,
        need_dx: bool = True,
    ) -> tuple[Array | None, State]: ...
    def stream(self, batch_size: int = 1) -> Stream[State]: ...
    def flatten_parameters(self) -> None: ...

class RNN(Recurrent[Array]):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Dtype = "float32",
        seed: int | None = None,
        init: Init = "torch",
        merge: Merge = "concat",
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        checkpoint_every: int | None = None,
    ) -> None: ...

class LSTM(Recurrent[tuple[Array, Array]]):
    peephole: bool
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: Dtype = "float32",
        seed: int | None = None,
        init: Init = "torch",
        forget_bias: float | None = None,
        merge: Merge = "concat",
        layer_norm: bool = False,
        peephole: bool = False,
        coupled: bool = False,
        gate: Gate = "sigmoid",
        cell_clip: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        checkpoint_every: int | None = None,
    ) -> None: ...

class GRU(Recurrent[Array]):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        dtype: Dtype = "float32",
        seed: int | None = None,
        init: Init = "torch",
        merge: Merge = "concat",
        layer_norm: bool = False,
        gate: Gate = "sigmoid",
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        checkpoint_every: int | None = None,
    ) -> None: ...

class Stream(Generic[State]):
    layer: Recurrent[State]
    batch_size: int
    state: State
    def __init__(self, layer: Recurrent[State], batch_size: int = 1) -> None: ...
    def reset(self) -> None: ...
    def step(self, x: ArrayLike, out: Array | None = None) -> Array: ...
    def process(self, x: ArrayLike) -> Array: ...

class Cell(Module, Generic[State]):
    layer: Recurrent[State]
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: Dtype = "float32",
        seed: int | None = None,
        **options: Any,
    ) -> None: ...
    def __call__(self, x: ArrayLike, state: State | None = None) -> State: ...
    def forward(
        self, x: ArrayLike, state: State | None = None, *, keep: bool = True
    ) -> tuple[State, Any]: ...
    def backward(self, tape: Any, dstate: State) -> tuple[Array, State]: ...

class RNNCell(Cell[Array]):
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        *,
        dtype: Dtype = "float32",
        seed: int | None = None,
    ) -> None: ...

class LSTMCell(Cell[tuple[Array, Array]]): ...
class GRUCell(Cell[Array]): ...

class Linear(Module):
    in_features: int
    out_features: int
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Dtype = "float32",
        seed: int | None = None,
    ) -> None: ...
    def __call__(self, x: ArrayLike) -> Array: ...
    def forward(self, x: ArrayLike) -> tuple[Array, Any]: ...
    def backward(self, tape: Any, dy: ArrayLike, *, need_dx: bool = True) -> Array | None: ...

class Embedding(Module):
    num_embeddings: int
    embedding_dim: int
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        dtype: Dtype = "float32",
        seed: int | None = None,
    ) -> None: ...
    def __call__(self, ids: ArrayLike) -> Array: ...
    def forward(self, ids: ArrayLike) -> tuple[Array, Any]: ...
    def backward(self, tape: Any, dy: ArrayLike) -> None: ...

def last_output(
    y: ArrayLike, lengths: ArrayLike | None = None, axis: Literal[0, 1] = 0
) -> Array: ...
