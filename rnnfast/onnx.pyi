import os
from collections.abc import Mapping
from typing import IO, Any, Literal

import onnx
from numpy.typing import ArrayLike

from rnnfast._module import Array
from rnnfast.layers import Pad, Recurrent

Direction = Literal["forward", "reverse", "bidirectional"]
OpType = Literal["RNN", "LSTM", "GRU"]

OPSET: int
IR_VERSION: int

class Node:
    layer: Recurrent[Any]
    op_type: OpType
    name: str
    direction: Direction
    attributes: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str]
    state: Any
    lengths: Array | None
    def __init__(
        self,
        layer: Recurrent[Any],
        op_type: OpType,
        direction: Direction,
        *,
        name: str = "",
        attributes: dict[str, Any] | None = None,
        inputs: dict[str, str] | None = None,
        outputs: dict[str, str] | None = None,
        state: Any = None,
        lengths: Array | None = None,
    ) -> None: ...
    @property
    def compiled(self) -> bool: ...
    def __call__(
        self,
        x: ArrayLike,
        state: Any = None,
        lengths: ArrayLike | None = None,
        *,
        pad_output: Pad = "zero",
    ) -> tuple[Array, Any]: ...
    def run(
        self,
        X: ArrayLike,
        sequence_lens: ArrayLike | None = None,
        initial_h: ArrayLike | None = None,
        initial_c: ArrayLike | None = None,
    ) -> tuple[Array, ...]: ...

def load(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
    values: Mapping[str, ArrayLike] | None = None,
) -> list[Node]: ...
def export(
    layer: Recurrent[Any], path: str | os.PathLike[str] | IO[bytes], *, lengths: bool = False
) -> None: ...
