"""What is measured: every function of an engine on arguments of realistic sizes.

A `Case` makes its arguments once and gives a call without arguments for whatever engine is in use,
so the compiled functions and their NumPy twins do the same work on equal arrays.
"""

from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

import rnnfast
from rnnfast import _engine, _kernels
from rnnfast.charlm import CharLM
from rnnfast.reference.arithmetic import PLAIN

ENGINES = [name for name in _engine.ENGINES if not name.startswith("reference")]
NUMPY = "numpy"
DTYPES = ("float32", "float64")

# T, B, I, H: single streams, small batches over long sequences, square ones, large ones.
SEQUENCES = [
    (512, 1, 16, 16),
    (128, 1, 64, 64),
    (128, 1, 256, 256),
    (32, 1, 1024, 1024),
    (512, 32, 1, 16),
    (64, 32, 64, 64),
    (32, 128, 128, 128),
    (64, 32, 256, 256),
    (64, 64, 512, 512),
]
README = {(128, 1, 64, 64), (128, 1, 256, 256), (64, 32, 64, 64), (64, 32, 256, 256),
          (64, 64, 512, 512)}  # fmt: skip


class Twins(_engine.Group):
    """The NumPy twins with NumPy's own arithmetic: what one would write without this library."""

    def _load(self, stem, function):
        module = __import__(f"rnnfast.reference.{stem}", fromlist=[function])
        return getattr(module, function)


TWINS = Twins(NUMPY)


@contextmanager
def using(side):
    """Put the engine `side`, or the twins, under everything for a while."""
    before = _engine.get_engine()
    try:
        if side == NUMPY:
            _engine._current.group = TWINS
        else:
            _engine.set_engine(side)
        yield _engine.functions()
    finally:
        _engine.set_engine(before)


class Case(NamedTuple):
    """One function at one size.

    Attributes
    ----------
    function : str
        As in the engine, or a name of its own for more than one call.
    size : str
    dtype : str
    make : callable
        ``make(functions)`` gives the call to time.
    products : bool
        Whether it multiplies matrices: only then can engines differ.
    flops : int or None
        Multiplications and additions of the matrix products.
    readme : bool
        Whether README.md shows it.
    """

    function: str
    size: str
    dtype: str
    make: Callable
    products: bool = False
    flops: int | None = None
    readme: bool = False

    @property
    def sides(self):
        """Who takes turns."""
        return [*(ENGINES if self.products else ENGINES[:1]), NUMPY]

    def __str__(self):
        return f"{self.function} {self.size} {self.dtype}"


def uniform(rng, dtype, *shape, bound=0.1):
    """Like freshly initialised weights."""
    return rng.uniform(-bound, bound, shape).astype(dtype)


def recurrence(cell, gates, shape, dtype, **options):
    """(arguments, number of states, gradients) of <cell>_forward for a batch without padding."""
    T, B, I, H = shape
    rng = np.random.default_rng(0)
    states = [uniform(rng, dtype, B, H) for _ in range(2 if cell == "lstm" else 1)]
    weights = {"w_ih": uniform(rng, dtype, gates * H, I), "w_hh": uniform(rng, dtype, gates * H, H),
               "b_ih": uniform(rng, dtype, gates * H), "b_hh": uniform(rng, dtype, gates * H)}
    x = rng.standard_normal((T * B, I)).astype(dtype)
    sizes = np.full(T, B, np.int64)
    grads = {name: np.zeros_like(w) for name, w in weights.items()}
    return (x, sizes, *states, *weights.values()), states, grads


def recurrences():
    """Forward (inference: nothing is kept) and BPTT of each cell."""
    variants = [("lstm", 4, {}), ("gru", 3, {}), ("gru", 3, {"reset_after": False}), ("rnn", 1, {})]
    for cell, gates, options in variants:
        shapes = [(128, 1, 64, 64), (64, 32, 256, 256)] if options else SEQUENCES
        note = " reset before" if options else ""
        for shape in shapes:
            T, B, I, H = shape
            for dtype in DTYPES:
                def forward(f, cell=cell, gates=gates, shape=shape, dtype=dtype, options=options):
                    args, _, _ = recurrence(cell, gates, shape, dtype)
                    call = getattr(f, f"{cell}_forward")
                    return lambda: call(*args, **options, keep=False)

                def backward(f, cell=cell, gates=gates, shape=shape, dtype=dtype, options=options):
                    args, states, grads = recurrence(cell, gates, shape, dtype)
                    y, *_, tape = getattr(f, f"{cell}_forward")(*args, **options)
                    call = getattr(f, f"{cell}_backward")
                    return lambda: call(tape, y, *states, grads)

                size, flops = "x".join(map(str, shape)), 2 * T * B * gates * H * (I + H)
                shown = shape in README and dtype == "float32" and not options
                yield Case(f"{cell}_forward{note}", size, dtype, forward, True, flops, shown)
                yield Case(f"{cell}_backward{note}", size, dtype, backward, True, 2 * flops, shown)


def output_recurrences():
    """The recurrence through the output; I = O."""
    for T, B, I, H in [(128, 1, 64, 64), (64, 32, 64, 128)]:
        for dtype in DTYPES:
            def arguments(T=T, B=B, I=I, H=H, dtype=dtype):
                rng = np.random.default_rng(0)
                shapes = {"w_ih": (H, I), "w_oh": (H, I), "w_ho": (I, H), "b_h": (H,), "b_o": (I,)}
                weights = {name: uniform(rng, dtype, *shape) for name, shape in shapes.items()}
                x, o0 = uniform(rng, dtype, T * B, I), uniform(rng, dtype, B, I)
                grads = {name: np.zeros_like(w) for name, w in weights.items()}
                return (x, np.full(T, B, np.int64), o0, *weights.values()), o0, grads

            def forward(f, arguments=arguments):
                args, _, _ = arguments()
                return lambda: f.output_rnn_forward(*args, keep=False)

            def backward(f, arguments=arguments):
                args, o0, grads = arguments()
                z, _, tape = f.output_rnn_forward(*args)
                return lambda: f.output_rnn_backward(tape, z, o0, grads)

            size, flops = f"{T}x{B}x{I}x{H}", 2 * T * B * 3 * I * H
            yield Case("output_rnn_forward", size, dtype, forward, True, flops)
            yield Case("output_rnn_backward", size, dtype, backward, True, 2 * flops)


def dense():
    """The affine layer and the activations; N rows."""
    for N, I, O in [(32, 64, 64), (2048, 128, 96), (2048, 512, 512)]:
        for dtype in DTYPES:
            def arrays(N=N, I=I, O=O, dtype=dtype):
                rng = np.random.default_rng(0)
                w = {"weight": uniform(rng, dtype, O, I), "bias": uniform(rng, dtype, O)}
                return uniform(rng, dtype, N, I), w, uniform(rng, dtype, N, O)

            def forward(f, arrays=arrays):
                x, w, _ = arrays()
                return lambda: f.linear_forward(x, *w.values())

            def backward(f, arrays=arrays):
                x, w, dy = arrays()
                grads = {name: np.zeros_like(a) for name, a in w.items()}
                return lambda: f.linear_backward(x, w["weight"], dy, grads)

            size, flops = f"{N}x{I}x{O}", 2 * N * I * O
            yield Case("linear_forward", size, dtype, forward, True, flops)
            yield Case("linear_backward", size, dtype, backward, True, 2 * flops)
            for name in ("sigmoid", "tanh", "relu"):
                def activation(f, name=name, arrays=arrays):
                    *_, x = arrays()
                    return lambda: f.activation_forward(name, x)

                def derivative(f, name=name, arrays=arrays):
                    *_, y = arrays()
                    return lambda: f.activation_backward(name, y, y)

                yield Case(f"activation_forward {name}", f"{N}x{O}", dtype, activation)
                yield Case(f"activation_backward {name}", f"{N}x{O}", dtype, derivative)


def losses():
    """Losses over N rows of V outputs, with their gradients."""
    for N, V in [(32, 96), (2048, 96), (512, 10000)]:
        for dtype in DTYPES:
            def arrays(N=N, V=V, dtype=dtype):
                rng = np.random.default_rng(0)
                z, t = rng.standard_normal((N, V)).astype(dtype), rng.random((N, V)).astype(dtype)
                return z, t, rng.integers(0, V, N), np.full(N, 1 / N, dtype)

            def softmax(f, arrays=arrays):
                z, *_ = arrays()
                return lambda: f.softmax(z)

            def cross_entropy(f, arrays=arrays):
                z, _, y, scale = arrays()
                dz = np.empty_like(z)
                return lambda: f.softmax_cross_entropy(z, y, scale, dz=dz)

            def sigmoid(f, arrays=arrays):
                z, t, *_ = arrays()
                return lambda: f.sigmoid_cross_entropy(z, t, 1.0)

            def quadratic(f, arrays=arrays):
                z, t, *_ = arrays()
                return lambda: f.quadratic_error(z, t, 1.0)

            shown = dtype == "float32" and N == 2048
            for name, make in (("softmax", softmax), ("softmax_cross_entropy", cross_entropy),
                               ("sigmoid_cross_entropy", sigmoid), ("quadratic_error", quadratic)):
                yield Case(name, f"{N}x{V}", dtype, make, readme=shown)


def parameter_arrays():
    """Clipping and the optimisers on n parameters."""
    for n in (10_000, 1_000_000):
        for dtype in DTYPES:
            def arrays(count, n=n, dtype=dtype):
                rng = np.random.default_rng(0)
                return [rng.random(n).astype(dtype) for _ in range(count)]

            def norm(f, arrays=arrays):
                (g,) = arrays(1)
                return lambda: f.norm(g)

            def scale(f, arrays=arrays):
                (g,) = arrays(1)
                return lambda: f.scale(g, 1.0)  # another factor would shrink g call by call

            def by_value(f, arrays=arrays):
                (g,) = arrays(1)
                return lambda: f.clip_by_value(g, 0.5)

            def by_norm(f, arrays=arrays):
                pair = arrays(2)
                return lambda: f.clip_by_norm(pair, 1.0)

            def sgd(f, arrays=arrays):
                g, p, buf = arrays(3)
                return lambda: f.sgd_step(g, p, buf, 1e-3, 0.9, 1.0, 0.0, False)

            def adam(f, arrays=arrays):
                g, p, m, v = arrays(4)
                return lambda: f.adam_step(g, p, m, v, None, 1e-3, 0.9, 0.999, 1.0, 1e-8, 0.0, 1.0)

            def rmsprop(f, arrays=arrays):
                g, p, v = arrays(3)
                return lambda: f.rmsprop_step(g, p, v, None, 1e-3, 0.99, 1e-8, 0.0, 0.0)

            def adagrad(f, arrays=arrays):
                g, p, v = arrays(3)
                return lambda: f.adagrad_step(g, p, v, 1e-3, 1e-10, 0.0)

            makers = {"norm": norm, "scale": scale, "clip_by_value": by_value,
                      "clip_by_norm": by_norm, "sgd_step": sgd,
                      "adam_step": adam, "rmsprop_step": rmsprop, "adagrad_step": adagrad}
            for name, make in makers.items():
                shown = dtype == "float32" and n == 1_000_000
                shown = shown and name in ("clip_by_norm", "adam_step")
                yield Case(name, str(n), dtype, make, readme=shown)


def elementary():
    """exp, tanh, ... alone, with the copy of the array that the way to the bare kernel makes."""
    for n in (1_000, 100_000):
        for dtype in DTYPES:
            for name in ("exp", "tanh", "sigmoid", "log1p"):
                def make(f, name=name, n=n, dtype=dtype):
                    x = np.random.default_rng(0).random(n).astype(dtype)
                    if f is TWINS:
                        return lambda: getattr(PLAIN, name)(x)
                    return lambda: _kernels.apply(name, x)

                shown = dtype == "float32" and n == 100_000 and name in ("exp", "tanh")
                yield Case(name, str(n), dtype, make, readme=shown)


def training_steps():
    """A whole step of a character model: forward, loss, BPTT, clipping, Adam; V = 96."""
    for cell, T, B, H, layers in [("lstm", 64, 32, 128, 1), ("lstm", 64, 32, 256, 2),
                                  ("gru", 64, 32, 256, 1), ("rnn", 64, 32, 128, 1)]:  # fmt: skip
        for dtype in DTYPES:
            def make(f, cell=cell, T=T, B=B, H=H, layers=layers, dtype=dtype):
                vocabulary = "".join(map(chr, range(32, 128)))
                model = CharLM(vocabulary, cell, H, layers, dtype=dtype, seed=0)
                adam = rnnfast.optim.Adam(model, lr=1e-3)
                ids = np.random.default_rng(0).integers(0, len(vocabulary), (T + 1, B))

                def step():
                    adam.zero_grad()
                    model.loss_and_grads(ids[:-1], ids[1:])
                    rnnfast.clip_grad_norm(model.grads, 1.0)
                    adam.step()

                return step

            name = f"training step {cell}"
            yield Case(name, f"{T}x{B}x{H}, {layers} layers" if layers > 1 else f"{T}x{B}x{H}",
                       dtype, make, True, readme=dtype == "float32")  # fmt: skip


def cases():
    """All of them, in the order of the tables."""
    parts = (training_steps, recurrences, output_recurrences, dense, losses, parameter_arrays,
             elementary)  # fmt: skip
    return [case for part in parts for case in part()]
