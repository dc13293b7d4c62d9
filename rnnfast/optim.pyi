from collections.abc import Mapping, Sequence
from typing import Any

from rnnfast._module import Array, Module

Modules = Module | Sequence[Module]

class Optimizer:
    modules: list[Module]
    lr: float
    weight_decay: float
    steps: int
    state: dict[str, dict[str, Array]]
    def __init__(self, modules: Modules, lr: float, weight_decay: float = 0.0) -> None: ...
    def zero_grad(self) -> None: ...
    def step(self) -> None: ...
    def state_dict(self) -> dict[str, Array]: ...
    def load_state_dict(self, mapping: Mapping[str, Any]) -> None: ...

class SGD(Optimizer):
    def __init__(
        self,
        modules: Modules,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None: ...

class Adam(Optimizer):
    def __init__(
        self,
        modules: Modules,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None: ...

class AdamW(Adam):
    def __init__(
        self,
        modules: Modules,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None: ...

class RMSprop(Optimizer):
    def __init__(
        self,
        modules: Modules,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None: ...

class Adagrad(Optimizer):
    def __init__(
        self, modules: Modules, lr: float = 1e-2, eps: float = 1e-10, weight_decay: float = 0.0
    ) -> None: ...
