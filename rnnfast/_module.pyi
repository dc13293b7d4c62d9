import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Dtype = Literal["float32", "float64"] | DTypeLike

DTYPES: tuple[np.dtype[Any], np.dtype[Any]]

def real_dtype(dtype: Dtype) -> np.dtype[Any]: ...

class Module:
    dtype: np.dtype[Any]
    params: dict[str, Array]
    grads: dict[str, Array]
    def __init__(self, dtype: Dtype = "float32") -> None: ...
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, Array]: ...
    def load_state_dict(
        self, mapping: Mapping[str, Any] | str | os.PathLike[str], prefix: str = ""
    ) -> None: ...
    def save_state_dict(self, path: str | os.PathLike[str], prefix: str = "") -> None: ...
    @property
    def num_parameters(self) -> int: ...
