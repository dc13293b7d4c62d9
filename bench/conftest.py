"""One thread unless the caller says otherwise, a record of the machine, and a short result file."""

import os
import platform
import statistics
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RNNFAST_NUM_THREADS")
for _name in THREADS:  # read once, when NumPy and SciPy load their BLAS: hence before the imports
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
import scipy  # noqa: E402
import scipy.linalg.cython_blas  # noqa: E402

import rnnfast  # noqa: E402
from rnnfast import _kernels  # noqa: E402


def _read(path):
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _cpu_model():
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _caches():
    """{"L1 Data": "48K", ...} of the first CPU, where the system tells."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(index / part) for part in ("level", "type", "size"))
        if level and size:
            found[f"L{level} {kind}" if kind != "Unified" else f"L{level}"] = size
    return found


def _blas():
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    keys = ("internal_api", "version", "architecture", "num_threads")
    return [{k: info.get(k) for k in keys} for info in threadpool_info()
            if info["user_api"] == "blas"]  # fmt: skip


def pytest_benchmark_update_machine_info(machine_info):
    """What the figures depend on; nothing that names the machine."""
    machine_info.clear()
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    machine_info.update({
        "cpu": _cpu_model(),
        "caches": _caches(),
        "cpus": len(cpus),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "compiler": platform.python_compiler(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "rnnfast": rnnfast.__version__,
        "blas": _blas(),
        "isa": _kernels.get_isa(),
        "denormals": _kernels.get_denormals(),
        "threads": {name: os.environ.get(name) for name in THREADS},
    })  # fmt: skip


def pytest_benchmark_update_json(output_json):
    """One entry per case and side: the least and the median over all turns."""
    merged = {}
    for bench in output_json["benchmarks"]:
        info = bench["extra_info"]
        key = info["function"], info["size"], info["dtype"], info["side"]
        merged.setdefault(key, (info, []))[1].append(bench["stats"])
    output_json["benchmarks"] = [
        info | {"min": min(s["min"] for s in stats),
                "median": statistics.median(s["median"] for s in stats),
                "turns": len(stats), "rounds": sum(s["rounds"] for s in stats)}
        for info, stats in merged.values()
    ]  # fmt: skip
    output_json.pop("commit_info", None)
