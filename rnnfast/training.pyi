from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from rnnfast._module import Array

class Window(NamedTuple):
    loss: float
    state: Any
    start: int
    stop: int

def tbptt(
    model: Any,
    x: ArrayLike,
    y: ArrayLike,
    k1: int,
    k2: int | None = None,
    *,
    state: Any = None,
    loss: Callable[[Array, Array], tuple[float, Array]] | None = None,
) -> Iterator[Window]: ...
