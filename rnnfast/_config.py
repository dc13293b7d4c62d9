"""Settings of the whole process, and a report of them."""

import os
import platform
import sys

import numpy as np

from rnnfast import _engine, _kernels
from rnnfast._threads import get_num_threads, set_num_threads

__all__ = ["get_denormals", "get_isa", "get_num_threads", "set_denormals", "set_isa",
           "set_num_threads", "show_config"]  # fmt: skip


def get_isa():
    """Instruction set of the kernels in use: "scalar", "fma", "avx2" or "avx512"."""
    return _kernels.get_isa()


def set_isa(name=None):
    """Use the instruction set `name`; None: the widest that this CPU runs. The results do not
    depend on it. ValueError where the CPU or the build does not have it. Not while calls run;
    streams from before, whose weights are packed for one, may raise RuntimeError."""
    _kernels.set_isa(name)


def get_denormals():
    """"flush" or "keep"."""
    return _kernels.get_denormals()


def set_denormals(mode):
    """"flush" (the default): below the smallest normal number is 0; "keep": gradual underflow."""
    _kernels.set_denormals(mode)


def _blas():
    """threadpoolctl's view of SciPy's BLAS, or None where threadpoolctl is not installed."""
    try:
        import threadpoolctl
    except ImportError:
        return None
    import scipy.linalg.cython_blas  # noqa: F401  (so that its BLAS is loaded)

    pools = [p for p in threadpoolctl.ThreadpoolController().lib_controllers
             if p.user_api == "blas"]  # fmt: skip
    mine = [p for p in pools if "scipy" in (p.filepath or "")]
    return (mine or pools or [None])[0]


def show_config(file=None):
    """Print version, engine, instruction set, threads and the libraries in use.

    Examples
    --------
    >>> import rnnfast
    >>> rnnfast.show_config()  # doctest: +ELLIPSIS
    rnnfast ...
    engine ...
    """
    import scipy

    from rnnfast import __version__

    blas = _blas()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"rnnfast {__version__}",
        f"engine      {_engine.get_engine()}",
        f"isa         {get_isa()} (this CPU runs {', '.join(_kernels.isas())})",
        f"denormals   {get_denormals()}",
        f"threads     {get_num_threads()}",
        f"cpus        {cpus}",
        f"python      {platform.python_version()}",
        f"numpy       {np.__version__}",
        f"scipy       {scipy.__version__}",
    ]
    if blas is not None:
        lines.append(f"blas        {blas.internal_api} {blas.version}, {blas.num_threads} threads, "
                     f"{getattr(blas, 'architecture', '?')}")  # fmt: skip
    print("\n".join(lines), file=file or sys.stdout)
