"""Calls of every kernel of csrc/kernels.inc through ctypes, on memory between guard pages.

``python -m tests.kernel_calls DTYPE [NAME ...]`` makes the calls on every instruction set of this
CPU and prints one JSON line per kernel. It runs as a process of its own because an access out of
bounds ends it; `tests.test_kernels` starts it and reads the lines.

A case of a kernel is a generator: given a source of random data it yields pairs of the arguments
by name and a function of an arithmetic that says what each array that is not const, and the
result, must be afterwards.
"""

import ctypes
import faulthandler
import functools
import itertools
import json
import mmap
import os
import re
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rnnfast import _kernels
from rnnfast.reference import clip, loss, optim, sequence
from rnnfast.reference.arithmetic import LANES, Blas, Fused
from rnnfast.reference.lstm import clamp
from tests.bits import same_bits

INC = Path(__file__).parents[1] / "csrc" / "kernels.inc"
SIZES = (0, 1, 7, 8, 15, 16, 17, 31, 33, 64, 65)

# ---- prototypes ---------------------------------------------------------------------------------


class Act(ctypes.Structure):
    """rf_act"""

    _fields_ = (("kind", ctypes.c_int), ("alpha", ctypes.c_double), ("beta", ctypes.c_double))


class Lstm(ctypes.Structure):
    """rf_lstm"""

    _fields_ = (("gate", Act), ("coupled", ctypes.c_int), ("clip", ctypes.c_double))


IDENTITY = (4, 0.0, 0.0)  # RF_IDENTITY: no layer's activation

VALUES = {"void": None, "int": ctypes.c_int, "double": ctypes.c_double, "rf_act": Act,
          "ptrdiff_t": ctypes.c_ssize_t}  # fmt: skip


def prototypes():
    """name -> (result type, [(parameter, type)]) as csrc/kernels.inc has them."""
    text = re.sub(r"/\*.*?\*/", "", INC.read_text(), flags=re.DOTALL)
    found = {}
    for row in re.split(r"\bKERNEL\(", text)[1:]:
        result, name, rest = (part.strip() for part in row.split(",", 2))
        parameters = re.fullmatch(r"\((.*)\)\s*\)", rest, re.DOTALL)[1].split(",")
        split = [re.fullmatch(r"(.*?)(\w+)", " ".join(p.split())) for p in parameters]
        found[name] = result, [(m[2], m[1].replace(" *", "*").strip()) for m in split]
    return found


def is_pointer(kind):
    return kind.endswith("*")


def ctype(kind, real):
    if is_pointer(kind):
        return ctypes.c_void_p
    return real if kind == "REAL" else VALUES[kind]


# ---- memory that must not be left ---------------------------------------------------------------


class Guarded:
    """Some pages of memory with a page before and after them that nobody may touch."""

    PAGES, FILL = 72, 0xA5

    def __init__(self):
        page = mmap.PAGESIZE
        self.map = mmap.mmap(-1, (self.PAGES + 2) * page)
        self.size = self.PAGES * page
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.start = base + page
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (base, self.start + self.size):
            if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), mmap_none()):
                raise OSError(ctypes.get_errno(), "mprotect")
        whole = (ctypes.c_ubyte * self.size).from_address(self.start)
        self.bytes = np.frombuffer(whole, np.uint8)

    def place(self, value, at_end):
        """Copy an array, or the rows of a `Rows`, right against one of the guards."""
        self.bytes[:] = self.FILL
        rows = value if isinstance(value, Rows) else Rows(np.atleast_2d(value), None)
        array, (n, width) = rows.array, rows.array.shape
        item = array.itemsize
        ld = width if rows.ld is None else rows.ld
        span = ((n - 1) * ld + width) * item if n and width else 0
        assert span <= self.size
        offset = self.size - span if at_end else 0
        memory = self.bytes[offset:]
        self.view = np.lib.stride_tricks.as_strided(
            memory[: memory.size // item * item].view(array.dtype) if span else array,
            (n, width), (ld * item, item))  # fmt: skip
        self.view[...] = array
        self.shape = value.shape
        self.inside = np.zeros(self.size, bool)
        for i in range(n):
            self.inside[offset + i * ld * item :][: width * item] = True
        return self.start + offset

    def contents(self):
        return self.view.copy().reshape(self.shape)

    def check_rest(self):
        touched = np.flatnonzero((self.bytes != self.FILL) & ~self.inside)
        if touched.size:
            raise AssertionError(f"wrote {touched.size} bytes next to the array")


def mmap_none():
    """PROT_NONE, which the mmap module does not name."""
    return ctypes.c_int(0)


@dataclass
class Rows:
    """A matrix whose rows lie `ld` elements apart."""

    array: np.ndarray
    ld: int | None

    @property
    def shape(self):
        return self.array.shape


@dataclass
class ByIsa:
    """An array that is not the same for every instruction set."""

    make: Callable

    @property
    def shape(self):
        return self.make("scalar").shape


@dataclass
class Alias:
    """The same memory as another parameter's."""

    of: str


# ---- data ---------------------------------------------------------------------------------------


@dataclass
class Source:
    """Random arrays of one dtype; `special` mixes in infinities, NaN, zeros, huge and tiny."""

    rng: np.random.Generator
    dtype: type
    special: bool

    def __call__(self, *shape, scale=2.0):
        x = (self.rng.standard_normal(shape) * scale).astype(self.dtype)
        if not self.special:
            return x
        info = np.finfo(self.dtype)
        odd = [0, np.inf, np.nan, info.max, info.max / 4, 90, 800, info.eps, 1, 0.55, 20,
               info.tiny, info.tiny * 1.5, info.tiny * 3, info.tiny / 3, info.smallest_subnormal]
        odd = np.array(odd, self.dtype)
        chosen = self.rng.choice(np.concatenate([odd, -odd]), shape)
        return np.where(self.rng.random(shape) < 0.4, chosen, x).astype(self.dtype)

    def unit(self, *shape):
        """Values in (0, 1), or any where special."""
        return self(*shape) if self.special else self.rng.random(shape).astype(self.dtype)

    def positive(self, *shape):
        """Values of at least 0: what a second moment can be."""
        return abs(self(*shape))

    def blank(self, *shape):
        """An array that the kernel is to fill."""
        return np.full(shape, 12345, self.dtype)

    def pick(self, *options):
        return options[self.rng.integers(len(options))]

    def real(self, low, high):
        """A scalar argument."""
        return self.dtype(self.rng.uniform(low, high))


CASES: dict[str, Callable] = {}


def case(*names):
    def register(generate):
        for name in names:
            CASES[name] = generate
        return generate

    return register


def named(name):
    """Register a case that is told the kernel's name."""

    def register(generate):
        CASES[name] = lambda source: generate(source, name)
        return generate

    return register


def variants(source, sizes, each, **options):
    """(size, options): `each` draws per size, walking through all combinations in random order."""
    product = list(itertools.product(*options.values()))
    source.rng.shuffle(product)
    walk = itertools.cycle(product)
    for size in sizes:
        for _ in range(each):
            yield size, dict(zip(options, next(walk), strict=True))


def batches():
    """(B, H) for kernels that take one time step."""
    return [(3, H) for H in SIZES] + [(0, 5), (1, 1), (1, 64)]


def future_batches():
    """(B, H) for kernels that take one time step of BPTT, whose products have tiles."""
    # half a vector of units and less: more rows in a tile, and two of them in a vector
    return [*batches(), (7, 70), (14, 100), (75, 17), (7, 8), (21, 8), (16, 4), (37, 5)]


# ---- element-wise -------------------------------------------------------------------------------


def unary(source, name):
    for n in SIZES:
        for in_place in (False, True):
            x = source.unit(n) if name == "log1p" and not source.special else source(n, scale=6)
            if name == "log1p":
                x = np.minimum(abs(x), source.dtype(1))
            y = Alias("x") if in_place else source.blank(n)
            yield ({"n": n, "x": x, "y": y},
                   lambda ar, x=x: {"y": getattr(ar, name)(ar.array(x))})  # fmt: skip


for _name in ("exp", "tanh", "sigmoid", "relu", "log1p"):
    named(_name)(unary)


def unary_backward(source, name):
    f = name.removesuffix("_backward")
    for n in SIZES:
        for in_place in (False, True):
            y, dy = source.unit(n), source(n)
            dx = Alias("dy") if in_place else source.blank(n)

            def expected(ar, y=y, dy=dy):
                y, dy = ar.array(y), ar.array(dy)
                if f == "relu":
                    return {"dx": np.where(y > 0, np.asarray(dy), y.dtype.type(0))}
                return {"dx": dy * ar.derivative(f, y)}

            yield {"n": n, "y": y, "dy": dy, "dx": dx}, expected


for _name in ("tanh_backward", "sigmoid_backward", "relu_backward"):
    named(_name)(unary_backward)


@case("add")
def add(source):
    for n in SIZES:
        x, y = source(n), source(n)
        yield {"n": n, "x": x, "y": y}, lambda ar, x=x, y=y: {"y": ar.array(y) + x}


@case("multiply")
def multiply(source):
    for n, opt in variants(source, SIZES, 2, out=(None, "x")):
        x, y = source(n), source(n)
        out = Alias("x") if opt["out"] else source.blank(n)
        yield ({"n": n, "x": x, "y": y, "out": out},
               lambda ar, x=x, y=y: {"out": ar.array(x) * y})  # fmt: skip


@case("multiply_add")
def multiply_add(source):
    for n in SIZES:
        x, y, out = source(n), source(n), source(n)
        yield ({"n": n, "x": x, "y": y, "out": out},
               lambda ar, x=x, y=y, out=out: {"out": ar.fma(x, y, out)})  # fmt: skip


@case("axpy")
def axpy(source):
    for n in SIZES:
        x, y, alpha = source(n), source(n), source.real(-3, 3)
        yield ({"n": n, "alpha": alpha, "x": x, "y": y},
               lambda ar, a=alpha, x=x, y=y: {"y": ar.fma(a, x, y)})  # fmt: skip


@case("scale")
def scale(source):
    for n in SIZES:
        x, alpha = source(n), source.real(-3, 3)

        def expected(ar, x=x, alpha=alpha):
            x = x.copy()
            clip.scale(x, alpha, arithmetic=ar)
            return {"x": x}

        yield {"n": n, "alpha": alpha, "x": x}, expected


@case("clamp")
def clamp_(source):
    for n in SIZES:
        x, limit = source(n), source.real(0, 2)

        def expected(ar, x=x, limit=limit):
            x = x.copy()
            clip.clip_by_value(x, limit, arithmetic=ar)
            return {"x": x}

        yield {"n": n, "limit": limit, "x": x}, expected


@case("max_abs")
def max_abs(source):
    for n in SIZES:
        for x in (source(n), np.nan_to_num(source(n))):
            def expected(ar, x=x):
                return {"return": np.float64(np.asarray(ar.array(x) + 0).__abs__().max(initial=0))}

            yield {"n": n, "x": x}, expected


@case("sum_squares")
def sum_squares(source):
    for n in SIZES:
        x, alpha = source(n), 2.0 ** source.rng.integers(-40, 40)

        def expected(ar, x=x, alpha=alpha):
            x = np.asarray(ar.array(x) + 0).astype(np.float64)
            wide = ar.array(np.pad(x, (0, -len(x) % LANES))) * alpha
            lanes = ar.array(np.zeros(LANES))
            for block in wide.reshape(-1, LANES):
                lanes = lanes + block * block
            while len(lanes) > 1:
                half = len(lanes) // 2
                lanes = lanes[:half] + lanes[half:]
            return {"return": np.float64(lanes[0])}

        yield {"n": n, "alpha": alpha, "x": x}, expected


@case("column_sum")
def column_sum(source):
    for H in SIZES:
        for N in (0, 1, 5):
            a, out = source(N, H), source(H)
            lda = H + int(source.rng.integers(0, 4))
            yield ({"N": N, "H": H, "a": Rows(a, lda), "lda": lda, "out": out},
                   lambda ar, a=a, out=out: {"out": ar.sum_columns(a, out)})  # fmt: skip


@case("column_dot")
def column_dot(source):
    for H in SIZES:
        for N in (0, 1, 5):
            a, b, out = source(N, H), source(N, H), source(H)
            lda, ldb = (H + int(k) for k in source.rng.integers(0, 4, 2))
            yield ({"N": N, "H": H, "a": Rows(a, lda), "lda": lda, "b": Rows(b, ldb), "ldb": ldb,
                    "out": out},
                   lambda ar, a=a, b=b, out=out: {"out": ar.dot_columns(a, b, out)})  # fmt: skip


# ---- one time step ------------------------------------------------------------------------------


def maybe_rows(source, present, B, H, fill):
    """(Rows or None, their stride) for an optional y or dy."""
    if not present:
        return None, 0
    ld = H + int(source.rng.integers(0, 4))
    return Rows(fill(B, H), ld), ld


def plus(ar, dh, dy):
    return ar.array(dh) if dy is None else ar.array(dh) + dy.array


ACTS = ("sigmoid", "tanh", "relu", "hard_sigmoid", "hard_sigmoid_onnx")
GATES = ("sigmoid", "hard_sigmoid", "hard_sigmoid_onnx")
BOTH = (False, True)


@case("rnn_forward")
def rnn_forward(source):
    for (B, H), opt in variants(source, batches(), 3, act=ACTS, y=BOTH):
        a = source(B, H)
        y, ldy = maybe_rows(source, opt["y"], B, H, source.blank)

        def expected(ar, a=a, y=y, act=opt["act"]):
            h = ar.activation(act, ar.array(a))
            return {"h": h, "y": None if y is None else h}

        yield {"B": B, "H": H, "act": opt["act"], "a": a, "h": source.blank(B, H), "y": y,
               "ldy": ldy}, expected  # fmt: skip


def units_of(new, old, H, first, last):
    """Units first..last-1 of every gate of `new`, the others as in `old`."""
    if new is None:
        return None
    out = np.array(old)
    for at in range(0, out.shape[1], H) if H else ():
        out[:, at + first : at + last] = np.asarray(new)[:, at + first : at + last]
    return out


def some_units(source, H):
    """first, last, and `units_of` them."""
    first = int(source.rng.integers(H + 1)) if source.rng.integers(2) else 0
    last = int(source.rng.integers(first, H + 1)) if source.rng.integers(2) else H
    return first, last, lambda new, old: units_of(new, old, H, first, last)


def from_future(source, B, H, added):
    """Arguments that say which units a kernel of BPTT does and what product comes first, `units_of`
    those, and what the product makes of dh: added to it or put in its place."""
    first, last, only = some_units(source, H)
    m = source.pick(0, int(source.rng.integers(B + 1)), B)
    if m:
        first = first // TILE * TILE
        only = functools.partial(units_of, H=H, first=first, last=last)
    k = source.pick(1, 5, 18, 270)
    a, w = source(m, k, scale=0.7), source(k, H, scale=0.5)
    args = {"n": B, "H": H, "first": first, "last": last, "back": source.pick(*BOTH), "m": m,
            "k": k, "a": Rows(a, k + 2) if m else None, "lda": k + 2,
            "w": packed(w.T, 1) if m else None}  # fmt: skip

    def product(ar, dh):
        out = dh.copy()
        out[:m] = np.asarray(Fused(ar.denormals).matmul(a, w, dh[:m].copy() if added else None))
        return out

    return args, only, product


@case("rnn_backward")
def rnn_backward(source):
    for (B, H), opt in variants(source, future_batches(), 3, act=ACTS, dy=BOTH):
        h, dh = source.unit(B, H), source(B, H)
        dy, ldy = maybe_rows(source, opt["dy"], B, H, source)
        args, only, product = from_future(source, B, H, added=False)
        blank = source.blank(B, H)

        def expected(ar, h=h, dh=dh, dy=dy, act=opt["act"], only=only, blank=blank,
                     product=product):  # fmt: skip
            d = plus(ar, product(ar, dh), dy)
            return {"da": only(d * ar.derivative(act, ar.array(h)), blank)}

        yield {**args, "act": opt["act"], "h": h, "dh": dh, "dy": dy, "ldy": ldy,
               "da": blank}, expected  # fmt: skip


def lstm_options(opt):
    return {k: opt[k] for k in ("gate", "coupled", "clip")}


def lstm_gates(ar, opt, parts, c, p):
    """(gates side by side, new c, tanh of it, h) from each gate's pre-activations."""
    a_i, *a_f, a_g, a_o = parts
    c = ar.array(c)
    if p is not None:
        a_i, a_f = ar.fma(p[0], c, a_i), [ar.fma(p[1], c, z) for z in a_f]
    i = ar.activation(opt["gate"], a_i)
    f = 1 - i if opt["coupled"] else ar.activation(opt["gate"], a_f[0])
    g = ar.tanh(a_g)
    c = ar.fma(f, c, i * g)
    if opt["clip"] > 0:
        c = ar.array(clamp(c, c.dtype.type(opt["clip"])))
    if p is not None:
        a_o = ar.fma(p[2], c, a_o)
    o = ar.activation(opt["gate"], a_o)
    gates = np.concatenate([i, g, o] if opt["coupled"] else [i, f, g, o], axis=1)
    tanh_c = ar.tanh(c)
    return gates, c, tanh_c, o * tanh_c


@case("lstm_forward")
def lstm_forward(source):
    for (B, H), opt in variants(source, batches(), 3, gate=GATES, coupled=BOTH, clip=(0.0, 0.7),
                                peephole=BOTH, keep=BOTH, y=BOTH):  # fmt: skip
        G, keep = 3 if opt["coupled"] else 4, opt["keep"]
        a, c = source(B, G * H), source(B, H)
        peephole = source(3, H) if opt["peephole"] else None
        y, ldy = maybe_rows(source, opt["y"], B, H, source.blank)

        def expected(ar, a=a, c=c, p=peephole, y=y, G=G, opt=opt, keep=keep):
            parts = np.split(ar.array(a), G, axis=1)
            gates, c, tanh_c, h = lstm_gates(ar, opt, parts, c, p)
            return {"a": gates, "c": c, "y": None if y is None else h,
                    "tanh_c": tanh_c if keep else None, "h": h}  # fmt: skip

        yield {"B": B, "H": H, "opt": lstm_options(opt), "a": a, "peephole": peephole, "c": c,
               "tanh_c": source.blank(B, H) if keep else None, "h": source.blank(B, H), "y": y,
               "ldy": ldy}, expected  # fmt: skip


@case("lstm_norm_forward")
def lstm_norm_forward(source):
    for (B, H), opt in variants(source, batches(), 3, gate=GATES, coupled=BOTH, clip=(0.0, 0.7),
                                peephole=BOTH, keep=BOTH, y=BOTH):  # fmt: skip
        G, keep = 3 if opt["coupled"] else 4, opt["keep"]
        a, ah, c = source(B, G * H), source(B, G * H), source(B, H)
        gain_hh, gain_c, bias_c = source(G * H), source(H), source(H)
        peephole = source(3, H) if opt["peephole"] else None
        y, ldy = maybe_rows(source, opt["y"], B, H, source.blank)

        def expected(ar, a=a, ah=ah, c=c, gains=(gain_hh, gain_c, bias_c), p=peephole, y=y, G=G,
                     opt=opt, keep=keep):  # fmt: skip
            gain_hh, gain_c, bias_c = gains
            norm = functools.partial(sequence.layer_norm_forward, arithmetic=ar)
            a, hhat, h_rstd = norm(ah, gain_hh, None, a)
            gates, c, _, _ = lstm_gates(ar, opt, np.split(ar.array(a), G, axis=1), c, p)
            cn, chat, c_rstd = norm(np.asarray(c), gain_c, bias_c)
            tanh_c = ar.tanh(ar.array(cn))
            h = gates[:, gates.shape[1] - cn.shape[1] :] * tanh_c
            tape = {"hhat": hhat, "h_rstd": h_rstd, "chat": chat, "c_rstd": c_rstd,
                    "tanh_c": tanh_c}  # fmt: skip
            return {"ah": ah if keep else hhat, "a": gates, "c": c, "cn": cn, "h": h,
                    "y": None if y is None else h, **(tape if keep else {})}  # fmt: skip

        tape = {"hhat": (B, G * H), "h_rstd": (B,), "chat": (B, H), "c_rstd": (B,),
                "tanh_c": (B, H)}  # fmt: skip
        yield {"B": B, "H": H, "opt": lstm_options(opt), "eps": source.dtype(sequence.EPS),
               "ah": ah, "gain_hh": gain_hh, "gain_c": gain_c, "bias_c": bias_c, "a": a,
               "peephole": peephole, "c": c, "cn": source.blank(B, H), "h": source.blank(B, H),
               **{k: source.blank(*shape) if keep else None for k, shape in tape.items()},
               "y": y, "ldy": ldy}, expected  # fmt: skip


def lstm_gates_backward(ar, opt, parts, tc, cp, c, d, e, p, dcn=None):
    """(da of all gates, dc of the step before) from d = dE/dh and e = dE/dc; dcn: what of it passes
    through a normed c."""
    i, f, g, o = (parts[0], 1 - parts[0], *parts[1:]) if len(parts) == 3 else parts
    tc, cp, e = ar.array(tc), ar.array(cp), ar.array(e)
    one, gate, coupled = tc.dtype.type(1), opt["gate"], len(parts) == 3
    dz_o = d * tc * ar.derivative(gate, o)
    e = ar.fma(d * o, ar.fma(-tc, tc, one), e) if dcn is None else e + dcn
    if p is not None:
        e = ar.fma(dz_o, p[2], e)
    if opt["clip"] > 0:
        inside = abs(ar.array(c)) < c.dtype.type(opt["clip"])
        e = ar.array(np.where(inside, e, tc.dtype.type(0)))
    dz_i = e * (g - cp if coupled else g) * ar.derivative(gate, i)
    dz_f = e * cp * ar.derivative(gate, f)
    dz_g = e * i * ar.fma(-g, g, one)
    da = np.concatenate([dz_i, dz_g, dz_o] if coupled else [dz_i, dz_f, dz_g, dz_o], axis=1)
    e = e * f
    if p is not None:
        e = ar.fma(dz_i, p[0], e)
        e = e if coupled else ar.fma(dz_f, p[1], e)
    return da, e


@case("lstm_backward")
def lstm_backward(source):
    for (B, H), opt in variants(source, future_batches(), 3, gate=GATES, coupled=BOTH,
                                clip=(0.0, 0.7), peephole=BOTH, dy=BOTH):  # fmt: skip
        G = 3 if opt["coupled"] else 4
        gates, c_prev, dh, dc = source.unit(B, G * H), source(B, H), source(B, H), source(B, H)
        tanh_c = np.clip(source(B, H), -1, 1)
        c = source(B, H) if opt["clip"] or opt["peephole"] else None
        peephole = source(3, H) if opt["peephole"] else None
        dy, ldy = maybe_rows(source, opt["dy"], B, H, source)
        args, only, product = from_future(source, B, H, added=False)
        blank = source.blank(B, G * H)

        def expected(ar, G=G, gates=gates, cp=c_prev, dh=dh, dc=dc, tc=tanh_c, c=c, p=peephole,
                     dy=dy, opt=opt, only=only, blank=blank, product=product):  # fmt: skip
            parts, d = np.split(ar.array(gates), G, axis=1), plus(ar, product(ar, dh), dy)
            da, e = lstm_gates_backward(ar, opt, parts, tc, cp, c, d, dc, p)
            return {"dc": only(e, dc), "da": only(da, blank)}

        yield {**args, "opt": lstm_options(opt), "gates": gates, "peephole": peephole,
               "c_prev": c_prev, "tanh_c": tanh_c, "c": c, "dh": dh, "dy": dy, "ldy": ldy, "dc": dc,
               "da": blank}, expected  # fmt: skip


@case("lstm_norm_backward")
def lstm_norm_backward(source):
    for (B, H), opt in variants(source, batches(), 3, gate=GATES, coupled=BOTH, clip=(0.0, 0.7),
                                peephole=BOTH, dy=BOTH):  # fmt: skip
        G = 3 if opt["coupled"] else 4
        gates, c_prev, dh, dc = source.unit(B, G * H), source(B, H), source(B, H), source(B, H)
        tanh_c = np.clip(source(B, H), -1, 1)
        c = source(B, H) if opt["clip"] or opt["peephole"] else None
        peephole = source(3, H) if opt["peephole"] else None
        norm_h = source(G * H), source(B, G * H), source.positive(B)  # gain, xhat, rstd
        norm_c = source(H), source(B, H), source.positive(B)
        dy, ldy = maybe_rows(source, opt["dy"], B, H, source)

        def expected(ar, G=G, gates=gates, cp=c_prev, dh=dh, dc=dc, tc=tanh_c, c=c, p=peephole,
                     norm_h=norm_h, norm_c=norm_c, dy=dy, opt=opt):  # fmt: skip
            parts = np.split(ar.array(gates), G, axis=1)
            d, t = plus(ar, dh, dy), ar.array(tc)
            dcn = d * parts[-1] * ar.fma(-t, t, dh.dtype.type(1))
            dce = sequence.layer_norm_backward(np.asarray(dcn), *norm_c, arithmetic=ar)
            da, e = lstm_gates_backward(ar, opt, parts, tc, cp, c, d, dc, p, dce)
            dah = sequence.layer_norm_backward(np.asarray(da), *norm_h, arithmetic=ar)
            return {"dcn": dcn, "dce": dce, "dc": e, "da": da, "dah": dah}

        norms = dict(zip(("gain_hh", "hhat", "h_rstd", "gain_c", "chat", "c_rstd"),
                         norm_h + norm_c, strict=True))  # fmt: skip
        yield {"B": B, "H": H, "opt": lstm_options(opt), "gates": gates, "peephole": peephole,
               "c_prev": c_prev, "tanh_c": tanh_c, "c": c, **norms, "dh": dh, "dy": dy,
               "ldy": ldy, "dcn": source.blank(B, H), "dce": source.blank(B, H), "dc": dc,
               "da": source.blank(B, G * H),
               "dah": source.blank(B, G * H)}, expected  # fmt: skip


def gru_gates(ar, gate, a_r, a_z, u, ax_n, h):
    """(r, z, n side by side, new h); u: the hidden units' part of n, ax_n: the inputs'."""
    r, z = ar.activation(gate, a_r), ar.activation(gate, a_z)
    n = ar.tanh(ar.fma(r, u, ax_n))
    return np.concatenate([r, z, n], axis=1), ar.fma(z, ar.array(h) - n, n)


def gru_gates_backward(ar, gate, gates, u, h, d):
    """(direct part of dE/dh_{t-1}, da of the inputs' part, da of the hidden units')."""
    r, z, n = np.split(ar.array(gates), 3, axis=1)
    da_n = d * (1 - z) * ar.fma(-n, n, z.dtype.type(1))
    da_z = d * (ar.array(h) - n) * ar.derivative(gate, z)
    da_r = da_n * u * ar.derivative(gate, r)
    return (d * z, np.concatenate([da_r, da_z, da_n], axis=1),
            np.concatenate([da_r, da_z, da_n * r], axis=1))  # fmt: skip


@case("gru_forward")
def gru_forward(source):
    for (B, H), opt in variants(source, batches(), 3, gate=GATES, u=BOTH, y=BOTH):
        a, ax, h = source(B, 3 * H), source(B, 3 * H), source(B, H)
        y, ldy = maybe_rows(source, opt["y"], B, H, source.blank)

        def expected(ar, a=a, ax=ax, h=h, y=y, H=H, opt=opt):
            a_r, a_z, u = np.split(ar.array(a), 3, axis=1)
            gates, new = gru_gates(ar, opt["gate"], a_r, a_z, u, ar.array(ax[:, 2 * H :]), h)
            return {"a": gates, "u": u if opt["u"] else None, "h": new,
                    "y": None if y is None else new}  # fmt: skip

        yield {"B": B, "H": H, "gate": opt["gate"], "a": a, "ax": ax,
               "u": source.blank(B, H) if opt["u"] else None, "h": h, "y": y,
               "ldy": ldy}, expected  # fmt: skip


@case("gru_backward")
def gru_backward(source):
    for (B, H), opt in variants(source, future_batches(), 3, gate=GATES, dy=BOTH):
        gates, u, h, dh = source.unit(B, 3 * H), source(B, H), source(B, H), source(B, H)
        dy, ldy = maybe_rows(source, opt["dy"], B, H, source)
        args, only, product = from_future(source, B, H, added=True)
        blank = source.blank(B, 3 * H)

        def expected(ar, gates=gates, u=u, h=h, dh=dh, dy=dy, gate=opt["gate"], only=only,
                     blank=blank, product=product):  # fmt: skip
            d = plus(ar, product(ar, dh), dy)
            before, dax, dah = gru_gates_backward(ar, gate, gates, u, h, d)
            return {"dh": only(before, dh), "dax": only(dax, blank), "dah": only(dah, blank)}

        yield {**args, "gate": opt["gate"], "gates": gates, "u": u, "h_prev": h, "dh": dh, "dy": dy,
               "ldy": ldy, "dax": blank, "dah": blank}, expected  # fmt: skip


@case("gru_norm_forward")
def gru_norm_forward(source):
    for (B, H), opt in variants(source, batches(), 3, gate=GATES, keep=BOTH, bias=BOTH, y=BOTH,
                                in_place=BOTH):  # fmt: skip
        ah, ax, h, keep = source(B, 3 * H), source(B, 3 * H), source(B, H), opt["keep"]
        gain, bias_n = source(3 * H), source(H) if opt["bias"] else None
        y, ldy = maybe_rows(source, opt["y"], B, H, source.blank)

        def expected(ar, ah=ah, ax=ax, h=h, gain=gain, bias_n=bias_n, keep=keep, y=y, H=H, opt=opt):
            begin = ax.copy()
            begin[:, 2 * H :] = 0 if bias_n is None else bias_n
            a, hhat, rstd = sequence.layer_norm_forward(ah, gain, None, begin, arithmetic=ar)
            a_r, a_z, u = np.split(ar.array(a), 3, axis=1)
            gates, new = gru_gates(ar, opt["gate"], a_r, a_z, u, ar.array(ax[:, 2 * H :]), h)
            tape = {"hhat": hhat, "h_rstd": rstd, "u": u}
            return {"ah": ah if keep else hhat, "a": gates, "out": new,
                    "y": None if y is None else new, **(tape if keep else {})}  # fmt: skip

        tape = {"hhat": (B, 3 * H), "h_rstd": (B,), "u": (B, H)}
        out = Alias("h") if opt["in_place"] else source.blank(B, H)
        yield {"B": B, "H": H, "gate": opt["gate"], "eps": source.dtype(sequence.EPS), "ah": ah,
               "gain_hh": gain, "ax": ax, "bias_n": bias_n, "a": source.blank(B, 3 * H),
               **{k: source.blank(*shape) if keep else None for k, shape in tape.items()},
               "h": h, "out": out, "y": y, "ldy": ldy}, expected  # fmt: skip


@case("gru_norm_backward")
def gru_norm_backward(source):
    for (B, H), opt in variants(source, batches(), 3, gate=GATES, dy=BOTH):
        gates, u, h, dh = source.unit(B, 3 * H), source(B, H), source(B, H), source(B, H)
        norm = source(3 * H), source(B, 3 * H), source.positive(B)
        dy, ldy = maybe_rows(source, opt["dy"], B, H, source)

        def expected(ar, gates=gates, u=u, h=h, dh=dh, dy=dy, gate=opt["gate"], norm=norm):
            before, dax, dah = gru_gates_backward(ar, gate, gates, u, h, plus(ar, dh, dy))
            dm = sequence.layer_norm_backward(np.asarray(dah), *norm, arithmetic=ar)
            return {"dh": before, "dax": dax, "dah": dah, "dm": dm}

        blanks = {k: source.blank(B, 3 * H) for k in ("dax", "dah", "dm")}
        yield {"B": B, "H": H, "gate": opt["gate"], "gates": gates, "u": u, "h_prev": h,
               "gain_hh": norm[0], "hhat": norm[1], "h_rstd": norm[2], "dh": dh, "dy": dy,
               "ldy": ldy, **blanks}, expected  # fmt: skip


@case("gru_before_gates")
def gru_before_gates(source):
    for (B, H), opt in variants(source, batches(), 2, gate=GATES):
        a, h = source(B, 3 * H), source(B, H)

        def expected(ar, a=a, h=h, H=H, gate=opt["gate"]):
            r, z = (ar.activation(gate, ar.array(a[:, k * H : (k + 1) * H])) for k in (0, 1))
            return {"a": np.concatenate([r, z, a[:, 2 * H :]], axis=1), "rh": r * h}

        yield {"B": B, "H": H, "gate": opt["gate"], "a": a, "h": h,
               "rh": source.blank(B, H)}, expected  # fmt: skip


@case("gru_before_output")
def gru_before_output(source):
    for (B, H), opt in variants(source, batches(), 2, y=BOTH):
        a, h = source(B, 3 * H), source(B, H)
        y, ldy = maybe_rows(source, opt["y"], B, H, source.blank)

        def expected(ar, a=a, h=h, y=y, H=H):
            n = ar.tanh(ar.array(a[:, 2 * H :]))
            new = ar.fma(a[:, H : 2 * H], ar.array(h) - n, n)
            return {"a": np.concatenate([a[:, : 2 * H], n], axis=1), "h": new,
                    "y": None if y is None else new}  # fmt: skip

        yield {"B": B, "H": H, "a": a, "h": h, "y": y, "ldy": ldy}, expected


@case("gru_before_backward_output")
def gru_before_backward_output(source):
    for (B, H), opt in variants(source, future_batches(), 3, gate=GATES, dy=BOTH):
        gates, h, dh, da = source.unit(B, 3 * H), source(B, H), source(B, H), source(B, 3 * H)
        dy, ldy = maybe_rows(source, opt["dy"], B, H, source)
        args, only, product = from_future(source, B, H, added=True)

        def expected(ar, gates=gates, h=h, dh=dh, da=da, dy=dy, H=H, gate=opt["gate"], only=only,
                     product=product):  # fmt: skip
            d = plus(ar, product(ar, dh), dy)
            _, z, n = np.split(ar.array(gates), 3, axis=1)
            da_n = d * (1 - z) * ar.fma(-n, n, dh.dtype.type(1))
            da_z = d * (ar.array(h) - n) * ar.derivative(gate, z)
            new = np.concatenate([da[:, :H], da_z, da_n], axis=1)
            return {"dh": only(d * z, dh), "da": only(new, da)}

        yield {**args, "gate": opt["gate"], "gates": gates, "h_prev": h, "dh": dh, "dy": dy,
               "ldy": ldy, "da": da}, expected  # fmt: skip


@case("gru_before_backward_gates")
def gru_before_backward_gates(source):
    for (B, H), opt in variants(source, future_batches(), 2, gate=GATES):
        gates, h, drh, dh = source.unit(B, 3 * H), source(B, H), source(B, H), source(B, H)
        da = source(B, 3 * H)
        args, only, product = from_future(source, B, H, added=False)

        def expected(ar, gates=gates, h=h, drh=drh, dh=dh, da=da, H=H, gate=opt["gate"], only=only,
                     product=product):  # fmt: skip
            r, drh = ar.array(gates[:, :H]), ar.array(product(ar, drh))
            da_r = drh * h * ar.derivative(gate, r)
            new = np.concatenate([da_r, da[:, H:]], axis=1)
            return {"dh": only(ar.fma(drh, r, dh), dh), "da": only(new, da)}

        yield {**args, "gate": opt["gate"], "gates": gates, "h_prev": h, "drh": drh, "dh": dh,
               "da": da}, expected  # fmt: skip


# ---- rows ---------------------------------------------------------------------------------------


@case("layer_norm_forward")
def layer_norm_forward(source):
    for (B, n), opt in variants(source, batches(), 3, bias=BOTH, accumulate=BOTH,
                                alias=(None, "xhat", "y")):  # fmt: skip
        x, gain = source(B, n), source(n)
        bias = source(n) if opt["bias"] else None
        accumulate = opt["accumulate"] and opt["alias"] != "y"
        y = source(B, n) if accumulate else source.blank(B, n)

        def expected(ar, x=x, gain=gain, bias=bias, y=y if accumulate else None):
            y, xhat, rstd = sequence.layer_norm_forward(x, gain, bias, y, arithmetic=ar)
            return {"y": y, "xhat": xhat, "rstd": rstd}

        args = {"B": B, "n": n, "eps": source.dtype(sequence.EPS), "x": x, "gain": gain,
                "bias": bias, "xhat": source.blank(B, n), "rstd": source.blank(B), "y": y,
                "accumulate": int(accumulate)}  # fmt: skip
        if opt["alias"]:
            args[opt["alias"]] = Alias("x")
        yield args, expected


@case("layer_norm_backward")
def layer_norm_backward(source):
    for (B, n), opt in variants(source, batches(), 2, in_place=BOTH):
        dy, gain, xhat, rstd = source(B, n), source(n), source(B, n), source.positive(B)

        def expected(ar, dy=dy, gain=gain, xhat=xhat, rstd=rstd):
            return {"dx": sequence.layer_norm_backward(dy, gain, xhat, rstd, arithmetic=ar)}

        yield {"B": B, "n": n, "dy": dy, "gain": gain, "xhat": xhat, "rstd": rstd,
               "dx": Alias("dy") if opt["in_place"] else source.blank(B, n)}, expected  # fmt: skip


@case("softmax")
def softmax(source):
    for (N, V), opt in variants(source, batches(), 2, in_place=BOTH):
        z = source(N, V, scale=8)
        yield ({"N": N, "V": V, "z": z, "p": Alias("z") if opt["in_place"] else source.blank(N, V)},
               lambda ar, z=z: {"p": loss.softmax(z, arithmetic=ar)})  # fmt: skip


@case("softmax_cross_entropy")
def softmax_cross_entropy(source):
    sizes = [(N, V) for N, V in batches() if V] + [(5, 9), (7, 40)]
    for (N, V), opt in variants(source, sizes, 3, eps=(0.0, 0.1), weight=BOTH,
                                dz=("apart", "in place", "none"), some=BOTH):  # fmt: skip
        z, scale_ = source(N, V, scale=8), source(N)
        y = source.rng.integers(-1 if opt["some"] else 0, V, N)
        weight = source.rng.random(N) if opt["weight"] else None
        dz = {"apart": source.blank(N, V), "in place": Alias("z"), "none": None}[opt["dz"]]

        def expected(ar, z=z, y=y, scale=scale_, weight=weight, opt=opt):
            dz = None if opt["dz"] == "none" else np.empty_like(z)
            total, rows = loss.softmax_cross_entropy(
                z, y, scale, weight, opt["eps"], dz, arithmetic=ar)  # fmt: skip
            return {"return": np.float64(total), "loss": rows, "dz": dz}

        yield {"N": N, "V": V, "z": z, "y": y, "eps": source.dtype(opt["eps"]), "scale": scale_,
               "weight": weight, "loss": source.blank(N), "dz": dz}, expected  # fmt: skip


def elementwise_loss(source, name):
    first, gradient = ("z", "dz") if name == "sigmoid_cross_entropy" else ("y", "dy")
    for (N, V), opt in variants(source, batches(), 2, gradient=BOTH):
        x, t, factor = source(N, V), source.unit(N, V), source.real(0.1, 3)

        def expected(ar, x=x, t=t, factor=factor, opt=opt):
            total, rows, dx = getattr(loss, name)(x, t, factor, arithmetic=ar)
            return {"return": np.float64(total), "loss": rows,
                    gradient: dx if opt["gradient"] else None}  # fmt: skip

        yield {"N": N, "V": V, first: x, "t": t, "scale": factor, "loss": source.blank(N),
               gradient: source.blank(N, V) if opt["gradient"] else None}, expected  # fmt: skip


for _name in ("sigmoid_cross_entropy", "quadratic_error"):
    named(_name)(elementwise_loss)


# ---- optimisers ---------------------------------------------------------------------------------


def optimiser(source, name):
    slots = {"sgd_step": ("buf",), "adam_step": ("m", "v", "vmax"), "rmsprop_step": ("v", "buf"),
             "adagrad_step": ("v",)}[name]  # fmt: skip
    optional = {"sgd_step": "buf", "adam_step": "vmax", "rmsprop_step": "buf"}.get(name)
    scalars = {"sgd_step": ("lr", "momentum", "keep", "decay"),
               "adam_step": ("step", "beta1", "beta2", "root", "eps", "decay", "shrink"),
               "rmsprop_step": ("lr", "alpha", "eps", "decay", "momentum"),
               "adagrad_step": ("lr", "eps", "decay")}[name]  # fmt: skip
    for n, opt in variants(source, SIZES, 4, optional=BOTH, decay=BOTH, flag=(0, 1)):
        arrays = {"g": source(n), "p": source(n)}
        for slot in slots:
            arrays[slot] = source.positive(n) if slot.startswith("v") else source(n)
        if optional and not opt["optional"]:
            arrays[optional] = None
        given = {k: source.real(0.05, 1) for k in scalars}
        if not opt["decay"]:
            given["decay"] = source.dtype(0)
        if name == "sgd_step":
            given["nesterov"] = opt["flag"]

        def expected(ar, arrays=arrays, given=given):
            copies = {k: None if a is None else a.copy() for k, a in arrays.items()}
            getattr(optim, name)(**copies, **given, arithmetic=ar)
            return {k: a for k, a in copies.items() if k != "g"}

        yield {"n": n, **arrays, **given}, expected


for _name in ("sgd_step", "adam_step", "rmsprop_step", "adagrad_step"):
    named(_name)(optimiser)


@case("gemm")
def _(source):
    """Row-major and transposed A; B row-major with a row stride, and packed."""
    shapes = [(0, 3, 2), (1, 0, 2), (2, 3, 0), (1, 1, 1), (1, 17, 5), (3, 33, 4), (7, 16, 9),
              (13, 7, 3), (2, 65, 6), (5, 40, 2), (0, 3, 130), (14, 9, 140),
              (2, 3, 300), (15, 130, 5), (66, 70, 4)]  # fmt: skip
    drawn = [(shape, source.rng.integers(2, size=3).tolist()) for shape in shapes]
    # few columns, whose vectors run over rows; a last vector in part, of many k
    narrow = [(8, 1, 8), (19, 2, 21), (49, 3, 33), (16, 4, 3), (9, 30, 70), (73, 13, 66),
              (13, 5, 65), (7, 5, 9), (33, 8, 34), (16, 6, 4)]  # fmt: skip
    drawn += [(shape, (add, 0, is_packed)) for shape in narrow for add in (0, 1)
              for is_packed in (0, 1)]  # fmt: skip
    drawn += [(shape, (add, 1, 1)) for shape in [(7, 141, 70), (8, 12, 50), (15, 16, 19)]
              for add in (0, 1)]  # fmt: skip
    for (m, n, k), (add, transposed, is_packed) in drawn:
        a, b, c = source(m, k), source(k, n), source(m, n)
        args = {"m": m, "n": n, "k": k,
                "a": np.ascontiguousarray(a.T if transposed else a).ravel(),
                "ars": 1 if transposed else k, "acs": m if transposed else 1,
                "b": packed(b.T, 1) if is_packed else Rows(b, n + 2),
                "ldb": 0 if is_packed else n + 2, "add": add, "c": Rows(c, n + 3),
                "ldc": n + 3}  # fmt: skip

        def expected(ar, a=a, b=b, c=c, add=add):
            fused = Fused(ar.denormals)
            return {"c": np.asarray(fused.matmul(a, b, c if add else None))}

        yield args, expected


PANEL, TILE = 64, 16  # of packed weights


def width(isa, gates):
    """Units that a packed weight's tile or panel has."""
    return PANEL if gates == 1 and isa != "avx2" else TILE


def packed_for(isa, w, gates):
    n, k = len(w) // gates, w.shape[1]
    wide = width(isa, gates)
    out = np.zeros((-(-n // wide), k, gates, wide), w.dtype)
    for g in range(gates):
        for j in range(n):
            out[j // wide, :, g, j % wide] = w[g * n + j]
    return np.ascontiguousarray(out.swapaxes(1, 2) if isa == "avx2" else out).ravel()


def packed(w, gates):
    """The transposes of `gates` matrices under each other, as the kernel `pack` has them."""
    return ByIsa(lambda isa: packed_for(isa, w, gates))


@case("pack")
def _(source):
    shapes = [(1, 0, 3), (1, 1, 1), (1, 64, 4), (1, 67, 3), (4, 16, 17), (3, 35, 5), (4, 5, 18)]
    for gates, n, k in shapes:
        w = source(gates * n, k)
        first, last, blank, out = packed_range(source, w, gates, PANEL if gates == 1 else TILE)
        yield ({"G": gates, "n": n, "k": k, "first": first, "last": last, "w": Rows(w, k + 2),
                "ldw": k + 2, "out": blank}, lambda ar, out=out: {"out": out})  # fmt: skip


@case("panels")
def _(source):
    for n, k in [(0, 3), (1, 1), (16, 5), (64, 4), (67, 3), (150, 4), (203, 1)]:
        w = source(n, k)
        first, last, blank, out = packed_range(source, w, 1, PANEL)
        yield ({"n": n, "k": k, "first": first, "last": last, "w": Rows(w.T, n + 2), "ldw": n + 2,
                "out": blank}, lambda ar, out=out: {"out": out})  # fmt: skip


def packed_range(source, w, gates, unit):
    """Some of the units to pack, what is there before, and what is there afterwards."""
    n, k = len(w) // gates, w.shape[1]
    first, last = source.pick((0, n), (0, min(n, unit)), (n // unit * unit, n))

    def blank(isa):
        return source.blank(packed_for(isa, w, gates).size)

    def out(isa):
        wide, whole = width(isa, gates), blank(isa)
        mine = slice(first * k * gates, -(-last // wide) * wide * k * gates)
        whole[mine] = packed_for(isa, w, gates)[mine]
        return whole

    return first, last, ByIsa(blank), ByIsa(out)


@case("transpose")
def _(source):
    for m, n in [(0, 3), (1, 1), (16, 16), (17, 33), (35, 5)]:
        a = source(m, n)
        yield ({"m": m, "n": n, "a": Rows(a, n + 2), "lda": n + 2,
                "out": Rows(source.blank(n, m), m + 3), "ldo": m + 3},
               lambda ar, a=a: {"out": a.T})  # fmt: skip


# n, H and inputs of the kernels of whole steps: every number of rows of a tile, alone and among
# others; parts of vectors, several vectors and tiles; rows with fewer units than any vector; more k
# and more rows than one pass over a tile covers
STEPS = [(0, 3, 2), (1, 1, 1), (1, 35, 2), (1, 64, 1), (2, 33, 0), (2, 16, 3), (3, 40, 1),
         (4, 17, 2), (5, 16, 1), (6, 9, 2), (7, 20, 1), (8, 16, 1), (13, 5, 3), (2, 8, 1),
         (3, 3, 0), (4, 15, 1), (5, 7, 2), (6, 1, 1), (7, 2, 1), (17, 8, 1),
         (7, 64, 2), (8, 16, 530), (75, 16, 1)]  # fmt: skip


def step_inputs(source, shape, gates, P):
    """What the steps share, and the chains' values by gate: a function of an arithmetic."""
    n, H, inputs = shape
    x, h = source(n, inputs, scale=0.7), source(n, P, scale=0.7)
    w_ih, w_hh = source(gates * H, inputs, scale=0.5), source(gates * H, P, scale=0.5)
    kind = source.pick("none", "bias", "rows")
    start = {"none": None, "bias": source(gates * H), "rows": source(n, gates * H)}[kind]
    # of more units than two panels have those that begin inside a panel
    first, last = (0, H) if H <= TILE or (H < 2 * PANEL and source.rng.integers(2)) else (TILE, H)
    args = {"n": n, "H": H, "first": first, "last": last, "back": source.pick(*BOTH),
            "inputs": inputs, "x": x,
            "wx": packed(w_ih, gates) if inputs else None, "start": start,
            "lds": gates * H if kind == "rows" else 0, "h": h,
            "wh": packed(w_hh, gates)}  # fmt: skip

    def products(ar, bias_n=None):
        """Pre-activations; with `bias_n`, the last third's two chains apart."""
        fused = Fused(ar.denormals)
        begin = np.zeros((n, gates * H), x.dtype)
        if start is not None:
            begin[...] = start
        a = np.asarray(fused.matmul(x, w_ih.T, begin)) if inputs else begin
        if bias_n is None:
            return np.split(ar.array(fused.matmul(h, w_hh.T, a)), gates, axis=1)
        second = a.copy()
        second[:, 2 * H :] = bias_n
        r, z, u = np.split(ar.array(fused.matmul(h, w_hh.T, second)), 3, axis=1)
        return r, z, u, ar.array(a[:, 2 * H :])

    return args, products, lambda new, old: units_of(new, old, H, first, last)


@case("rnn_step")
def _(source):
    for shape in [*STEPS, (5, 150, 2), (16, 8, 3), (21, 6, 17)]:
        n, H, _ = shape
        P = source.pick(H, H + 3)
        args, products, only = step_inputs(source, shape, 1, P)
        act = source.pick(*ACTS, "identity")
        y, ldy = maybe_rows(source, source.pick(*BOTH), n, H, source.blank)

        blank = source.blank(n, H)

        def expected(ar, act=act, y=y, products=products, only=only, blank=blank):
            a = products(ar)[0]
            h = only(a if act == "identity" else ar.activation(act, a), blank)
            return {"out": h, "y": None if y is None else h}

        yield {**args, "P": P, "act": act, "out": source.blank(n, H), "y": y, "ldy": ldy}, expected


@case("lstm_step")
def _(source):
    for shape in STEPS:
        n, H, _ = shape
        opt = {"gate": source.pick(*GATES), "coupled": source.pick(*BOTH),
               "clip": source.pick(0.0, 0.7)}  # fmt: skip
        if source.rng.integers(2):
            opt = {"gate": "sigmoid", "coupled": False, "clip": 0.0}
        G, P = 3 if opt["coupled"] else 4, source.pick(H, H + 2)
        args, products, only = step_inputs(source, shape, G, P)
        p = source(3, H) if source.rng.integers(2) else None
        c, keep = source(n, H), source.pick(*BOTH)
        y, ldy = maybe_rows(source, source.pick(*BOTH), n, H, source.blank)

        blank, blanks = source.blank(n, H), source.blank(n, G * H)

        def expected(ar, c=c, p=p, y=y, keep=keep, opt=opt, products=products, only=only,
                     blank=blank, blanks=blanks):  # fmt: skip
            gates, new, tanh_c, h = lstm_gates(ar, opt, products(ar), c, p)
            h = only(h, blank)
            return {"c": only(new, c), "gates": only(gates, blanks) if keep else None,
                    "tanh_c": only(tanh_c, blank) if keep else None, "out": h,
                    "y": None if y is None else h}  # fmt: skip

        yield {**args, "opt": opt, "P": P, "peephole": p, "c": c,
               "gates": source.blank(n, G * H) if keep else None,
               "tanh_c": source.blank(n, H) if keep else None, "out": source.blank(n, H), "y": y,
               "ldy": ldy}, expected  # fmt: skip


@case("gru_step")
def _(source):
    for shape in STEPS:
        n, H, _ = shape
        args, products, only = step_inputs(source, shape, 3, H)
        gate, keep, bias_n = source.pick(*GATES), source.pick(*BOTH), source(H)
        h = source(n, H)
        y, ldy = maybe_rows(source, source.pick(*BOTH), n, H, source.blank)

        blank, blanks = source.blank(n, H), source.blank(n, 3 * H)

        def expected(ar, h=h, y=y, gate=gate, keep=keep, bias_n=bias_n, products=products,
                     only=only, blank=blank, blanks=blanks):  # fmt: skip
            a_r, a_z, u, ax_n = products(ar, bias_n)
            gates, new = gru_gates(ar, gate, a_r, a_z, u, ax_n, h)
            new = only(new, blank)
            return {"gates": only(gates, blanks) if keep else None,
                    "u": only(u, blank) if keep else None, "out": new,
                    "y": None if y is None else new}  # fmt: skip

        args["hm"] = args.pop("h")
        yield {**args, "gate": gate, "bias_n": bias_n, "h": h,
               "gates": source.blank(n, 3 * H) if keep else None,
               "u": source.blank(n, H) if keep else None, "out": source.blank(n, H), "y": y,
               "ldy": ldy}, expected  # fmt: skip


@case("gru_before_gates_step")
def _(source):
    for shape in STEPS:
        n, H, _ = shape
        args, products, only = step_inputs(source, shape, 2, H)
        gate, keep, ldr = source.pick(*GATES), source.pick(*BOTH), H + source.pick(0, H, 3)

        blank = source.blank(n, H)

        def expected(ar, h=args["h"], gate=gate, keep=keep, products=products, only=only,
                     blank=blank):  # fmt: skip
            r, z = (ar.activation(gate, a) for a in products(ar))
            return {"rt": only(r, blank) if keep else None, "zt": only(z, blank),
                    "rh": only(r * h, blank)}  # fmt: skip

        rows = [Rows(source.blank(n, H), ldr) for _ in range(2)]
        yield {**args, "gate": gate, "rt": rows[0] if keep else None, "zt": rows[1], "ldr": ldr,
               "rh": source.blank(n, H)}, expected  # fmt: skip


@case("gru_before_output_step")
def _(source):
    for shape in [*STEPS, (5, 150, 2), (16, 8, 3), (21, 6, 17)]:
        n, H, _ = shape
        args, products, only = step_inputs(source, shape, 1, H)
        args["rh"] = args.pop("h")
        keep, ldr = source.pick(*BOTH), H + source.pick(0, H, 3)
        z, h, in_place = source.unit(n, H), source(n, H), source.pick(*BOTH)
        y, ldy = maybe_rows(source, source.pick(*BOTH), n, H, source.blank)

        blank = source.blank(n, H)

        def expected(ar, z=z, h=h, keep=keep, y=y, old=h if in_place else blank, products=products,
                     only=only, blank=blank):  # fmt: skip
            nt = ar.tanh(products(ar)[0])
            new = ar.fma(z, ar.array(h) - nt, nt)
            return {"nt": only(nt, blank) if keep else None, "out": only(new, old),
                    "y": None if y is None else only(new, blank)}  # fmt: skip

        yield {**args, "zt": Rows(z, ldr), "nt": Rows(source.blank(n, H), ldr) if keep else None,
               "ldr": ldr, "h": h, "out": Alias("h") if in_place else source.blank(n, H), "y": y,
               "ldy": ldy}, expected  # fmt: skip


# T, H and inputs of the kernels of many steps: from parts of a vector up to as many as there may be
WALKS = [(0, 3, 2), (1, 1, 1), (5, 4, 1), (4, 8, 0), (3, 9, 2), (6, 16, 1), (3, 17, 3),
         (4, 23, 1), (3, 32, 2), (3, 33, 0), (4, 40, 1), (2, 47, 3), (3, 51, 1), (3, 60, 0),
         (4, 64, 2)]  # fmt: skip


def walk_inputs(source, shape, gates):
    """What the kernels of many steps share, and a step's chains by gate."""
    T, H, inputs = shape
    x, h = source(T, inputs, scale=0.7), source(1, H, scale=0.7)
    w_ih, w_hh = source(gates * H, inputs, scale=0.5), source(gates * H, H, scale=0.5)
    kind = source.pick("none", "bias", "rows")
    start = {"none": None, "bias": source(1, gates * H), "rows": source(T, gates * H)}[kind]
    y, ldy = maybe_rows(source, source.pick(*BOTH), T, H, source.blank)
    args = {"T": T, "H": H, "inputs": inputs, "x": Rows(x, inputs + 1), "ldx": inputs + 1,
            "wx": packed(w_ih, gates) if inputs else None, "start": start,
            "lds": gates * H if kind == "rows" else 0, "h": h, "wh": packed(w_hh, gates), "y": y,
            "ldy": ldy}  # fmt: skip

    def products(ar, t, h, bias_n=None):
        """Pre-activations of step t; with `bias_n`, the last third's two chains apart."""
        fused = Fused(ar.denormals)
        begin = np.zeros((1, gates * H), x.dtype)
        if start is not None:
            begin[...] = start[t if kind == "rows" else 0]
        a = np.asarray(fused.matmul(x[t : t + 1], w_ih.T, begin)) if inputs else begin
        second = a.copy()
        if bias_n is not None:
            second[:, 2 * H :] = bias_n
        parts = np.split(ar.array(fused.matmul(np.asarray(h), w_hh.T, second)), gates, axis=1)
        return parts if bias_n is None else (*parts, ar.array(a[:, 2 * H :]))

    def walk(step):
        """What h and y hold after h = step(t, h) for all t."""
        state, rows = h, []
        for t in range(T):
            state = step(t, state)
            rows.append(np.asarray(state)[0])
        whole = np.array(rows, x.dtype).reshape(T, H)
        return {"h": np.asarray(state), "y": None if y is None else whole}

    return args, products, walk


@case("rnn_steps")
def _(source):
    for shape in WALKS:
        args, products, walk = walk_inputs(source, shape, 1)
        act = source.pick(*ACTS)

        def expected(ar, act=act, products=products, walk=walk):
            return walk(lambda t, h: ar.activation(act, products(ar, t, h)[0]))

        yield {**args, "act": act}, expected


@case("lstm_steps")
def _(source):
    for shape in WALKS:
        opt = {"gate": source.pick(*GATES), "coupled": source.pick(*BOTH),
               "clip": source.pick(0.0, 0.7)}  # fmt: skip
        if source.rng.integers(2):
            opt = {"gate": "sigmoid", "coupled": False, "clip": 0.0}
        args, products, walk = walk_inputs(source, shape, 3 if opt["coupled"] else 4)
        p = source(3, shape[1]) if source.rng.integers(2) else None
        c = source(1, shape[1])

        def expected(ar, c=c, p=p, opt=opt, products=products, walk=walk):
            cell = [c]

            def step(t, h):
                _, cell[0], _, h = lstm_gates(ar, opt, products(ar, t, h), cell[0], p)
                return h

            return {**walk(step), "c": np.asarray(cell[0])}

        yield {**args, "opt": opt, "peephole": p, "c": c}, expected


@case("gru_steps")
def _(source):
    for shape in WALKS:
        args, products, walk = walk_inputs(source, shape, 3)
        gate, bias_n = source.pick(*GATES), source(shape[1])

        def expected(ar, gate=gate, bias_n=bias_n, products=products, walk=walk):
            return walk(lambda t, h: gru_gates(ar, gate, *products(ar, t, h, bias_n), h)[1])

        yield {**args, "gate": gate, "bias_n": bias_n}, expected


# ---- running ------------------------------------------------------------------------------------


class Runner:
    """Calls kernels of one dtype and compares what they leave behind."""

    def __init__(self, dtype, report=lambda text: None):
        self.dtype = np.dtype(dtype).type
        self.real = ctypes.c_float if self.dtype is np.float32 else ctypes.c_double
        self.slots = [Guarded() for _ in range(20)]
        self.report = report
        self.prototypes = prototypes()
        enter, keep, leave = _kernels.fpmode_addresses()
        self.enter = {"flush": ctypes.CFUNCTYPE(ctypes.c_uint64)(enter),
                      "keep": ctypes.CFUNCTYPE(ctypes.c_uint64)(keep)}  # fmt: skip
        self.leave = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(leave)
        self.isas = _kernels.isas()

    @functools.cache  # noqa: B019  (lives as long as its process)
    def function(self, isa, name):
        result, parameters = self.prototypes[name]
        kinds = [ctype(kind, self.real) for _, kind in parameters]
        make = ctypes.CFUNCTYPE(ctype(result, self.real), *kinds)
        return make(_kernels.address(isa, np.dtype(self.dtype).name, name))

    def scalar(self, kind, value):
        if kind == "rf_act":
            return Act(*(IDENTITY if value == "identity" else _kernels.ACTIVATIONS[value]))
        return ctype(kind, self.real)(value)

    def call(self, isa, name, args, mode, at_end):
        """{parameter: contents afterwards, "return": result} of what is not const."""
        result, parameters = self.prototypes[name]
        assert set(args) == {p for p, _ in parameters}, f"{name}: arguments {sorted(args)}"
        placed, passed = {}, {}
        free = iter(self.slots)
        for parameter, kind in parameters:
            value = args[parameter]
            if kind == "const rf_lstm*":
                gate = _kernels.ACTIVATIONS[value.get("gate", "sigmoid")]
                options = Lstm(Act(*gate), value["coupled"], value.get("clip", 0.0))
                passed[parameter] = ctypes.addressof(options)
            elif not is_pointer(kind):
                passed[parameter] = self.scalar(kind, value)
            elif value is None:
                passed[parameter] = None
            elif not isinstance(value, Alias):
                slot = next(free)
                placed[parameter] = slot
                passed[parameter] = ctypes.c_void_p(slot.place(value, at_end))
        for parameter, value in args.items():
            if isinstance(value, Alias):
                passed[parameter], placed[parameter] = passed[value.of], placed[value.of]
        function, ordered = self.function(isa, name), [passed[p] for p, _ in parameters]
        before = self.enter[mode]()
        returned = function(*ordered)
        self.leave(before)
        after = {} if result == "void" else {"return": np.array([returned])}
        changed = {a.of for a in args.values() if isinstance(a, Alias)}
        for parameter, kind in parameters:
            if parameter not in placed:
                continue
            slot = placed[parameter]
            slot.check_rest()
            if not kind.startswith("const"):
                after[parameter] = slot.contents()
            elif parameter not in changed:
                same = args[parameter]
                same = same.array if isinstance(same, Rows) else same
                assert slot.contents().tobytes() == same.tobytes(), f"const {parameter} changed"
        return after

    def check(self, name):
        """Every case of a kernel; the list of what went wrong, at most a few."""
        wrong = []
        for special, mode in ((False, "flush"), (True, "flush"), (True, "keep")):
            seed = [zlib.crc32(name.encode()), special, self.dtype is np.float64]
            source = Source(np.random.default_rng(seed), self.dtype, special)
            for number, (args, expected) in enumerate(CASES[name](source)):
                if mode == "keep" and number % 3:  # NumPy's own arithmetic: fewer cases do
                    continue
                with np.errstate(all="ignore"):
                    want = {k: v for k, v in expected(Blas(mode)).items() if v is not None}
                wrong += self.compare(name, number, args, want, mode)
                if len(wrong) >= 3:
                    return wrong
        return wrong

    def compare(self, name, number, args, want, mode):
        """What each instruction set does with one case, against the twin and the first one.

        The arrays lie before the guard page that catches reading on, in every fourth case also
        behind the one that catches reading before the first element.
        """
        wrong, first = [], None
        ends = (True, False) if number % 4 == 0 else (True,)
        for isa, at_end in itertools.product(self.isas, ends):
            mine, mine_args = ({k: v.make(isa) if isinstance(v, ByIsa) else v for k, v in d.items()}
                               for d in (want, args))  # fmt: skip
            where = "end" if at_end else "start"
            place = f"{name} on {isa}, {mode}, case {number}, {where} of memory"
            self.report(place)
            try:
                got = self.call(isa, name, mine_args, mode, at_end)
                assert got.keys() == want.keys(), f"{sorted(got)} != {sorted(want)}"
                first = first or got
                for key in want:
                    same_bits(got[key], np.atleast_1d(mine[key]), f"{key} and its twin")
                    if not isinstance(want[key], ByIsa):
                        same_bits(got[key], first[key], f"{key} and {self.isas[0]}")
            except AssertionError as error:
                sizes = {k: v for k, v in args.items() if not hasattr(v, "shape") or np.isscalar(v)}
                wrong.append(f"{place}: {error} (arguments {sizes})")
        return wrong


def overrun(dtype):
    """Read one element more than there is: must end this process."""
    runner = Runner(dtype)
    x = np.zeros(16, dtype)
    runner.call("scalar", "exp", {"n": 17, "x": x, "y": np.zeros(17, dtype)}, "keep", True)


def main(dtype, *names):
    faulthandler.enable()
    if names == ("overrun",):
        return overrun(dtype)
    progress = os.open(os.environ["KERNEL_CALLS_PROGRESS"], os.O_WRONLY | os.O_CREAT)
    runner = Runner(dtype, lambda text: os.pwrite(progress, text.ljust(200).encode(), 0))
    for name in names:
        print(json.dumps({"name": name, "wrong": runner.check(name)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
