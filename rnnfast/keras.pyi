from collections.abc import Sequence
from typing import Any, Literal

from numpy.typing import ArrayLike

from rnnfast._module import Array
from rnnfast.layers import Recurrent

Cell = Literal["SimpleRNN", "LSTM", "GRU"]
Merge = Literal["concat", "sum", "mul", "ave"] | None

class Layer:
    layers: list[Recurrent[Any]]
    stacked: bool
    return_sequences: bool
    return_state: bool
    go_backwards: bool
    zero_output_for_mask: bool
    stateful: bool
    state: list[Array] | None
    def __init__(
        self,
        layers: list[Recurrent[Any]],
        *,
        stacked: bool = False,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        zero_output_for_mask: bool = False,
        stateful: bool = False,
    ) -> None: ...
    def __call__(
        self, x: ArrayLike, mask: ArrayLike | None = None, initial_state: Any = None
    ) -> Any: ...
    def run(
        self, x: ArrayLike, mask: ArrayLike | None = None, initial_state: Any = None
    ) -> tuple[Array, list[Any]]: ...
    def reset_state(self) -> None: ...

class Bidirectional:
    forward: Layer
    backward: Layer
    merge_mode: Merge
    layer: Recurrent[Any] | None
    def __init__(self, forward: Layer, backward: Layer, merge_mode: Merge = "concat") -> None: ...
    def __call__(
        self, x: ArrayLike, mask: ArrayLike | None = None, initial_state: Any = None
    ) -> Any: ...
    def reset_state(self) -> None: ...

def from_weights(
    weights: Sequence[ArrayLike],
    cell: Cell,
    *,
    activation: str = "tanh",
    recurrent_activation: str = "sigmoid",
    reset_after: bool | None = None,
    num_cells: int = 1,
    bidirectional: bool = False,
    merge_mode: Merge = "concat",
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
    zero_output_for_mask: bool | None = None,
    stateful: bool = False,
) -> Layer | Bidirectional: ...
def from_layer(layer: Any) -> Layer | Bidirectional: ...
