from collections.abc import Iterator
from typing import Any, Literal

from numpy.typing import ArrayLike

from rnnfast._module import Array, Dtype, Module
from rnnfast.layers import Linear, Recurrent

class UnknownCharacter(ValueError):
    character: str
    position: int
    def __init__(self, character: str, position: int) -> None: ...

class CharLM(Module):
    vocabulary: str
    cell: Literal["lstm", "gru", "rnn"]
    hidden: int
    layers: int
    dropout: float
    recurrent: Recurrent[Any]
    output: Linear
    def __init__(
        self,
        vocabulary: str,
        cell: Literal["lstm", "gru", "rnn"] = "lstm",
        hidden: int = 128,
        layers: int = 1,
        dropout: float = 0.0,
        dtype: Dtype = "float32",
        seed: int | None = 0,
    ) -> None: ...
    @property
    def config(self) -> dict[str, Any]: ...
    def encode(self, text: str) -> Array: ...
    def decode(self, ids: ArrayLike) -> str: ...
    def loss_and_grads(
        self, inputs: ArrayLike, targets: ArrayLike, state: Any = None
    ) -> tuple[float, Any]: ...
    def evaluate(self, ids: ArrayLike, *, state: Any = None, chunk: int = 256) -> float: ...
    def generate(
        self, length: int, prime: str = "", temperature: float = 1.0, seed: int | None = 0
    ) -> Iterator[str]: ...
    def sample(
        self, length: int, prime: str = "", temperature: float = 1.0, seed: int | None = 0
    ) -> str: ...
