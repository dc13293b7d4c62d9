from collections.abc import Iterable, Mapping
from typing import Literal

from rnnfast._module import Array

Grads = Array | Mapping[str, Array] | Iterable[Array] | Iterable[Mapping[str, Array]]

def clip_grad_norm(
    grads: Grads, max_norm: float, *, nonfinite: Literal["raise", "skip", "propagate"] = "raise"
) -> float: ...
def clip_grad_value(grads: Grads, limit: float) -> None: ...
