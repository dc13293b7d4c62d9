import os
from collections.abc import Mapping

from numpy.typing import ArrayLike

from rnnfast._module import Array

SUFFIXES: tuple[str, ...]

def load(path: str | os.PathLike[str], prefix: str = "") -> dict[str, Array]: ...
def save(
    path: str | os.PathLike[str], mapping: Mapping[str, ArrayLike], prefix: str = ""
) -> None: ...
