"""Build of the compiled modules. What is built is said here; everything else is in pyproject.toml.

Only ``_kernels`` compiles ``csrc/``. The ISA of each C file is chosen inside the file, so all
files take the same flags. ``RNNFAST_DEBUG=1`` turns on bounds checks and C asserts.
"""

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from threading import Semaphore

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

os.chdir(Path(__file__).resolve().parent)
DEBUG = os.environ.get("RNNFAST_DEBUG", "") not in ("", "0")
CPUS = os.cpu_count() or 1
ANNOTATE = os.environ.get("RNNFAST_ANNOTATE", "") not in ("", "0")
MODULES = [
    "_memory", "_seq", "_product", "_blas", "_dense", "_rnn", "_lstm", "_gru", "_stream",
    "_output_rnn", "_loss", "_clip", "_optim",
]  # fmt: skip


def read_kernels():
    """The rows of csrc/kernels.inc as (result, name, [(type, argument), ...])."""
    text = re.sub(r"/\*.*?\*/", "", Path("csrc/kernels.inc").read_text(), flags=re.DOTALL)
    row = re.compile(r"KERNEL\((\w+),\s*(\w+),\s*\((.*?)\)\)", re.DOTALL)
    for result, name, arguments in row.findall(text):
        split = [re.fullmatch(r"\s*(.*?)(\w+)\s*", a, re.DOTALL) for a in arguments.split(",")]
        yield result, name, [(m[1].strip(), m[2]) for m in split]


def write_if_changed(path, text):
    path = Path(path)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def write_kernel_declarations():
    """Tell Cython of the kernels: the two tables, and per kernel one function over both dtypes."""
    head = "# Written by setup.py from csrc/kernels.inc.\n"
    tables, declarations, definitions = [], [], []
    for suffix, ctype in (("f32", "float"), ("f64", "double")):
        tables.append(f"    ctypedef struct rf_table_{suffix}:\n        const char *isa")
        for result, name, arguments in read_kernels():
            types = ", ".join(t.replace("REAL", ctype) for t, _ in arguments)
            tables.append(f"        {result} (*{name})({types}) noexcept nogil")
    for result, name, arguments in read_kernels():
        typed = ", ".join(f"{t.replace('REAL', 'real_t')} {a}" for t, a in arguments)
        names = ", ".join(a for _, a in arguments)
        call = "return " if result != "void" else ""
        declarations.append(f"cdef {result} {name}({typed}) noexcept nogil")
        definitions.append(
            f"cdef {result} {name}({typed}) noexcept nogil:\n"
            f"    if real_t is float:\n        {call}f32.{name}({names})\n"
            f"    else:\n        {call}f64.{name}({names})\n"
        )
    table = 'cdef extern from "rnnfast.h" nogil:\n' + "\n".join(tables)
    text = f"{head}{table}\n\n" + "\n".join(declarations) + "\n"
    write_if_changed("rnnfast/_kernel_tables.pxi", text)
    write_if_changed("rnnfast/_kernel_calls.pxi", head + "\n".join(definitions))


def outdated():
    """Whether a .c is older than a declaration that others use. Cython's own search for
    dependencies does not see those of ``from rnnfast cimport _seq``."""
    shared = [os.path.getmtime(path) for path in glob("rnnfast/*.px[di]")]
    made = [os.path.getmtime(path) for path in glob("rnnfast/*.c")]
    return bool(made) and min(made) < max(shared)


def extensions():
    if sys.platform == "win32" and "clang" not in os.environ.get("CC", ""):
        flags = ["/O2", "/std:c11", "/fp:precise"]
    else:
        # contraction off: no compiler may add or drop an fma (docs/arithmetic.md)
        flags = ["-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-g0"]
        if DEBUG:
            flags += ["-O1", "-g", "-UNDEBUG"]
    threads = [] if sys.platform == "win32" else ["-pthread"]  # csrc/pool.c
    flags += threads + os.environ.get("RNNFAST_CFLAGS", "").split()
    link = threads + os.environ.get("RNNFAST_LDFLAGS", "").split()
    common = {
        "include_dirs": ["csrc", numpy.get_include()],
        "extra_compile_args": flags,
        "extra_link_args": link,
        "define_macros": [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
    }
    headers = glob("csrc/*.h") + glob("csrc/*.inc") + glob("csrc/simd/*.h")
    yield Extension(
        "rnnfast._kernels",
        ["rnnfast/_kernels.pyx", *sorted(glob("csrc/*.c"))],
        depends=[*headers, *glob("rnnfast/_kernel_*.pxi")],
        **common,
    )
    for name in MODULES:
        yield Extension(f"rnnfast.{name}", [f"rnnfast/{name}.pyx"], depends=headers, **common)


class BuildInParallel(build_ext):
    """As many C files at once as there are CPUs, in a module too: some of csrc/ take a minute."""

    def build_extensions(self):
        compile_files, free = self.compiler.compile, Semaphore(CPUS)

        def compile_one(source, options):
            with free:
                return compile_files([source], **options)

        def compile_each(sources, **options):
            with ThreadPoolExecutor(len(sources)) as pool:
                objects = pool.map(lambda source: compile_one(source, options), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile_each
        super().build_extensions()


write_kernel_declarations()
setup(
    cmdclass={"build_ext": BuildInParallel},
    ext_modules=cythonize(
        list(extensions()),
        compiler_directives={
            "language_level": 3,
            # for tuples such as a.shape: the loops run over pointers, which nothing checks anyway
            "boundscheck": True,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "cdivision": True,
            "embedsignature": True,
            "embedsignature.format": "python",
            "binding": True,
            "freethreading_compatible": False,
        },
        annotate=ANNOTATE,
        force=DEBUG or ANNOTATE or outdated(),
    ),
    options={"build_ext": {"parallel": CPUS}},
)
