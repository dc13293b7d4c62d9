"""One recurrent layer in every library that is installed: the same weights, the same input, the
same work, as calls without arguments that a benchmark can time in turns."""

import functools
import importlib.util
import os
from dataclasses import dataclass

import numpy as np

MODES = ("infer", "train", "stream")
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


@dataclass(frozen=True)
class Work:
    """What is timed.

    Attributes
    ----------
    cell : {"rnn", "lstm", "gru"}
    mode : {"infer", "train", "stream"}
        The whole sequence; the whole sequence and BPTT to x, the state and all weights; one step
        whose state is carried on.
    T, B, I, H : int
    layers : int
    bidirectional : bool
    lengths : tuple of int, or None
    resets : bool
        Episodes of 32 steps on average; only rnnfast has a call for that, the others run without.
    """

    cell: str
    mode: str
    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    lengths: tuple | None = None
    resets: bool = False
    threads: int = 1

    @property
    def flops(self):
        """Of the matrix products alone, padding included: what a ratio to the peak refers to."""
        steps = 1 if self.mode == "stream" else self.T
        D = 2 if self.bidirectional else 1
        widths = [self.I] + [D * self.H] * (self.layers - 1)
        forward = sum(2 * steps * self.B * D * GATES[self.cell] * self.H * (w + self.H)
                      for w in widths)
        return forward * (3 if self.mode == "train" else 1)

    def layer(self):
        """The layer of rnnfast whose weights all others take."""
        import rnnfast

        make = {"rnn": rnnfast.RNN, "lstm": rnnfast.LSTM, "gru": rnnfast.GRU}[self.cell]
        return make(self.I, self.H, self.layers, bidirectional=self.bidirectional, seed=0)

    def arrays(self):
        """x (T, B, I) and dE/dy (T, B, features), float32."""
        rng = np.random.default_rng(1)
        T = 1 if self.mode == "stream" else self.T
        x = rng.standard_normal((T, self.B, self.I), np.float32)
        wide = self.H * (2 if self.bidirectional else 1)
        return x, rng.standard_normal((T, self.B, wide), np.float32)

    def __str__(self):
        text = f"{self.cell} {self.mode} {self.T}x{self.B}x{self.I}x{self.H}"
        if self.layers > 1:
            text += f" {self.layers} layers"
        if self.bidirectional:
            text += " both directions"
        return text + (" ragged" if self.lengths else "") + (" resets" if self.resets else "")


class NotComparable(Exception):
    """A library has no way to do this work."""


# ---- rnnfast -----------------------------------------------------------------------------------


def _rnnfast(work, engine):
    import rnnfast
    from rnnfast import _engine

    rnnfast.set_num_threads(work.threads)
    layer, (x, dy) = work.layer(), work.arrays()
    resets = None
    if work.resets:
        resets = np.random.default_rng(2).random(x.shape[:2]) < 1 / 32
    lengths = None if work.lengths is None else np.array(work.lengths)

    def using(call):
        """The engine is part of the call, and costs it a fraction of a microsecond."""
        def run():
            if _engine.get_engine() != engine:
                _engine.set_engine(engine)
            return call()

        return run

    if work.mode == "infer":
        return using(lambda: layer(x, lengths=lengths, resets=resets)[0])
    if work.mode == "train":
        def train():
            layer.zero_grad()
            y, _, tape = layer.forward(x, lengths=lengths, resets=resets)
            dx, _ = layer.backward(tape, dy)
            return y, dx, layer.grads["weight_hh_l0"]

        return using(train)
    _engine.set_engine(engine)
    stream, x_t = layer.stream(work.B), x[0]
    def step():
        return stream.step(x_t)

    # A stream of engine fused has its kernels; asking for the engine would be a fifth of a step.
    return step if engine == "fused" else using(step)


# ---- PyTorch -----------------------------------------------------------------------------------


def _torch(work):
    import torch

    torch.set_num_threads(work.threads)
    make = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[work.cell]
    layer = make(work.I, work.H, work.layers, bidirectional=work.bidirectional)
    state = {k: torch.from_numpy(v.copy()) for k, v in work.layer().state_dict().items()}
    layer.load_state_dict(state)
    x, dy = (torch.from_numpy(a) for a in work.arrays())
    pack = None
    if work.lengths is not None:
        pack = functools.partial(torch.nn.utils.rnn.pack_padded_sequence,
                                 lengths=torch.tensor(work.lengths), enforce_sorted=False)
        unpack = torch.nn.utils.rnn.pad_packed_sequence

    def forward(x):
        if pack is None:
            return layer(x)
        y, state = layer(pack(x))
        return unpack(y, total_length=work.T)[0], state

    if work.mode == "infer":
        @torch.inference_mode()
        def infer():
            return forward(x)[0].numpy()

        return infer
    if work.mode == "train":
        x.requires_grad_()

        def train():
            x.grad = None
            layer.zero_grad(set_to_none=True)
            y, _ = forward(x)
            y.backward(dy)
            return y.detach().numpy(), x.grad.numpy(), layer.weight_hh_l0.grad.numpy()

        return train
    held = [None]

    @torch.inference_mode()
    def step():
        y, held[0] = layer(x, held[0])
        return y.numpy()[0]

    return step


# ---- ONNX Runtime and OpenVINO -----------------------------------------------------------------


def onnx_model(work):
    """One ONNX graph for both: X and the initial states in, Y (T, B, features) and states out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    layer, H = work.layer(), work.H
    if work.lengths is not None and work.layers > 1:
        raise NotComparable("ragged stacks")
    D = 2 if work.bidirectional else 1
    order = {"rnn": [0], "lstm": [0, 3, 1, 2], "gru": [1, 0, 2]}[work.cell]
    op = work.cell.upper()
    nodes, weights, inputs, outputs = [], [], [], []

    def gates(w):
        parts = np.split(w, GATES[work.cell])
        return np.concatenate([parts[k] for k in order])

    def constant(name, value):
        weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def tensor(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    steps = 1 if work.mode == "stream" else work.T
    inputs.append(tensor("x", [steps, work.B, work.I]))
    lengths = ""
    if work.lengths is not None:
        lengths = constant("lengths", np.array(work.lengths, np.int32))
    below = "x"
    for k in range(work.layers):
        suffixes = [f"_l{k}"] + [f"_l{k}_reverse"] * (D - 1)
        W, R, bih, bhh = (np.stack([gates(layer.params[stem + s]) for s in suffixes])
                          for stem in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        names = [constant(f"W{k}", W), constant(f"R{k}", R),
                 constant(f"B{k}", np.concatenate([bih, bhh], axis=1))]
        states = [f"h{k}"] + ([f"c{k}"] if work.cell == "lstm" else [])
        inputs += [tensor(s, [D, work.B, H]) for s in states]
        new = [f"{s}_out" for s in states]
        outputs += [tensor(s, [D, work.B, H]) for s in new]
        more = {"linear_before_reset": 1} if work.cell == "gru" else {}
        nodes.append(helper.make_node(
            op, [below, *names, lengths, *states], [f"Y{k}", *new], hidden_size=H,
            direction="bidirectional" if D == 2 else "forward", **more))
        # (T, D, B, H) to (T, B, D H)
        nodes.append(helper.make_node("Transpose", [f"Y{k}"], [f"Z{k}"], perm=[0, 2, 1, 3]))
        shape = constant(f"shape{k}", np.array([0, 0, -1], np.int64))
        nodes.append(helper.make_node("Reshape", [f"Z{k}", shape], [f"y{k}"]))
        below = f"y{k}"
    outputs.insert(0, tensor(below, [steps, work.B, D * H]))
    graph = helper.make_graph(nodes, "layer", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _zero_states(work):
    D = 2 if work.bidirectional else 1
    names = ("h", "c") if work.cell == "lstm" else ("h",)
    return {f"{s}{k}": np.zeros((D, work.B, work.H), np.float32)
            for k in range(work.layers) for s in names}


def _onnxruntime(work):
    import onnxruntime

    if work.mode == "train":
        raise NotComparable("inference only")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx_model(work), options,
                                           providers=["CPUExecutionProvider"])
    feed = {"x": work.arrays()[0]} | _zero_states(work)
    names = [out.name for out in session.get_outputs()]
    if work.mode == "infer":
        return lambda: session.run(names[:1], feed)[0]
    carried = list(_zero_states(work))

    def step():
        y, *states = session.run(names, feed)
        for name, state in zip(carried, states, strict=True):
            feed[name] = state
        return y[0]

    return step


def _openvino(work):
    import openvino

    if work.mode == "train":
        raise NotComparable("inference only")
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": work.threads, "NUM_STREAMS": 1,
                "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = core.read_model(onnx_model(work))
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    feed = {"x": work.arrays()[0]} | _zero_states(work)
    if work.mode == "infer":
        return lambda: request.infer(feed)[0]
    carried = list(_zero_states(work))

    def step():
        results = list(request.infer(feed).values())
        for name, state in zip(carried, results[1:], strict=True):
            feed[name] = state
        return results[0][0]

    return step


# ---- JAX ---------------------------------------------------------------------------------------


def _jax(work):
    if work.threads == 1:  # read when the backend starts
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ.setdefault("XLA_FLAGS", flags)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp

    if work.lengths is not None:
        raise NotComparable("ragged batches")
    D = 2 if work.bidirectional else 1
    H = work.H
    params = {k: jnp.asarray(v) for k, v in work.layer().state_dict().items()}

    def cell(p, s):
        w, b_h = p["weight_hh" + s].T, p["bias_hh" + s]

        def rnn(state, a):
            h = jnp.tanh(a + state[0] @ w + b_h)
            return (h,), h

        def lstm(state, a):
            h, c = state
            i, f, g, o = jnp.split(a + h @ w + b_h, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        def gru(state, a):
            (h,) = state
            r, z, u = jnp.split(h @ w + b_h, 3, axis=-1)
            ar, az, an = jnp.split(a, 3, axis=-1)
            z = jax.nn.sigmoid(az + z)
            n = jnp.tanh(an + jax.nn.sigmoid(ar + r) * u)
            h = n + z * (h - n)
            return (h,), h

        return {"rnn": rnn, "lstm": lstm, "gru": gru}[work.cell]

    count = 2 if work.cell == "lstm" else 1
    zero = tuple(jnp.zeros((work.B, H)) for _ in range(count))
    states = [zero] * (work.layers * D)

    def forward(p, x, states):
        final = []
        for k in range(work.layers):
            outs = []
            for d in range(D):
                s = f"_l{k}" + ("_reverse" if d else "")
                a = x @ p["weight_ih" + s].T + p["bias_ih" + s]
                last, y = jax.lax.scan(cell(p, s), states[k * D + d], a, reverse=bool(d))
                final.append(last)
                outs.append(y)
            x = jnp.concatenate(outs, axis=-1)
        return x, final

    x, dy = (jnp.asarray(a) for a in work.arrays())
    if work.mode == "infer":
        run = jax.jit(lambda p, x: forward(p, x, states)[0])
        return lambda: np.asarray(run(params, x))
    if work.mode == "train":
        @jax.jit
        def step(p, x, dy):
            y, back = jax.vjp(lambda p, x: forward(p, x, states)[0], p, x)
            return y, back(dy)

        def train():
            y, (grads, dx) = step(params, x, dy)
            return np.asarray(y), np.asarray(dx), np.asarray(grads["weight_hh_l0"])

        return train
    run = jax.jit(forward)
    held = [states]

    def one():
        y, held[0] = run(params, x, held[0])
        return np.asarray(y)[0]

    return one


# ---- NumPy -------------------------------------------------------------------------------------


def _numpy(work):
    """The reference with NumPy's own arithmetic."""
    import importlib

    from rnnfast._packing import Packing
    from rnnfast.reference.arithmetic import PLAIN

    if work.layers > 1 or work.bidirectional or work.lengths is not None:
        raise NotComparable("one plain layer only")
    module = importlib.import_module(f"rnnfast.reference.{work.cell}")
    forward = getattr(module, f"{work.cell}_forward")
    backward = getattr(module, f"{work.cell}_backward")
    layer, (x, dy) = work.layer(), work.arrays()
    names = {"w_ih": "weight_ih_l0", "w_hh": "weight_hh_l0", "b_ih": "bias_ih_l0",
             "b_hh": "bias_hh_l0"}
    weights = {k: layer.params[v] for k, v in names.items()}
    grads = {k: layer.grads[v] for k, v in names.items()}
    T, B, _ = x.shape
    sizes = Packing(T, B).batch_sizes
    rows, d = x.reshape(T * B, -1), dy.reshape(T * B, -1)
    zero = [np.zeros((B, work.H), np.float32) for _ in range(2 if work.cell == "lstm" else 1)]
    held = list(zero)

    def run(keep, states):
        y, *states, tape = forward(rows, sizes, *states, **weights, keep=keep, arithmetic=PLAIN)
        return y.reshape(T, B, -1), states, tape

    if work.mode == "infer":
        return lambda: run(False, zero)[0]
    if work.mode == "train":
        def train():
            layer.zero_grad()
            y, _, tape = run(True, zero)
            dx, *_ = backward(tape, d, *zero, grads, arithmetic=PLAIN)
            return y, dx.reshape(x.shape), grads["w_hh"]

        return train

    def step():
        nonlocal held
        y, held, _ = run(False, held)
        return y[0]

    return step


# ---- all ---------------------------------------------------------------------------------------

#: name -> (module it needs, maker of the call)
PEERS = {
    "torch": ("torch", _torch),
    "onnxruntime": ("onnxruntime", _onnxruntime),
    "openvino": ("openvino", _openvino),
    "jax": ("jax", _jax),
    "numpy": ("numpy", _numpy),
}
OURS = {name: functools.partial(_rnnfast, engine=name) for name in ("fused", "blas")}


def installed():
    """Names of the peers that can run here."""
    return [name for name, (module, _) in PEERS.items() if importlib.util.find_spec(module)]


def make(name, work):
    """The call that does `work` in the library or engine `name`; NotComparable where it cannot."""
    return (OURS[name] if name in OURS else PEERS[name][1])(work)
