"""Speed goals that a grid of shapes beside other libraries (bench/grid.py) does not show: ragged
batches, denormals, single steps, a whole training step, threads, the core's peak, memory.

    python bench/promises.py [--only TEXT] [--seconds S] [--blas] [--out FILE]

What is compared takes turns in one process on one thread. Only two threads ask for a second CPU,
past an affinity mask of one, and memory for processes of its own. Every row is kept, met or not.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

if __name__ == "__main__":
    for _name in ("OMP", "OPENBLAS", "MKL", "RNNFAST"):  # before NumPy loads its BLAS
        os.environ[f"{_name}_NUM_THREADS"] = "1"

import grid
import numpy as np

import rnnfast
from rnnfast import _bench, _peers
from rnnfast._peers import Work
from rnnfast.charlm import CharLM

RESULTS = Path(__file__).parent / "results"
CELLS = ("lstm", "gru", "rnn")


@dataclass
class Row:
    """One line of the table.

    Attributes
    ----------
    section, what : str
    value, least : float
        By median times, and by the least times; the same where nothing is timed.
    goal : float
    at_most : bool
        Whether the goal is the most that is allowed, or the least.
    unit : str
    beside : dict
        What else was measured, as text.
    """

    section: str
    what: str
    value: float
    least: float
    goal: float
    at_most: bool
    unit: str = ""
    beside: dict = field(default_factory=dict)

    @property
    def met(self):
        """By median times."""
        return self.value <= self.goal if self.at_most else self.value >= self.goal


def ratio(times, over, under):
    """(by median, by least) times of `_bench.turns`."""
    return times[over][1] / times[under][1], times[over][0] / times[under][0]


def named(calls, suffix):
    """The same calls under longer names."""
    return {name + suffix: call for name, call in calls.items()}


def once(call):
    """Seconds of a single call: for what takes a hundred times as long as it should."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def installed(*names):
    """Those of the peers that are here."""
    return [name for name in names if name in _peers.installed()]


# ---- sections: each yields rows ------------------------------------------------------------------


def ragged(seconds, cells=CELLS, shape=(64, 32, 128, 128)):
    """Lengths evenly from T/10 to T, 0.55 T on average, in random order."""
    names = ["fused", *installed("torch")]
    for cell in cells:
        dense = Work(cell, "train", *shape)
        lengths = np.linspace(0.1 * dense.T, dense.T, dense.B).round().clip(1).astype(int)
        lengths = np.random.default_rng(3).permutation(lengths)
        ragged = replace(dense, lengths=tuple(lengths.tolist()))
        calls = _bench.make_calls(dense, names)
        calls |= named(_bench.make_calls(ragged, names), " ragged")
        times = _bench.turns(calls, seconds)
        beside = {name: f"{ratio(times, name + ' ragged', name)[0]:.2f}" for name in names[1:]}
        yield Row("ragged", f"{ragged}: time over the padded batch's",
                  *ratio(times, "fused ragged", "fused"), 0.62, True, beside=beside)


@dataclass(frozen=True)
class Underflow(Work):
    """Work whose numbers lie below the normal ones.

    kind "signal": x and dE/dy of 1e-40 and no biases, so that all pre-activations, states and
    gradients are denormal. "gate": a bias of -86.5 at the input gate of an LSTM, or both gates of a
    GRU, so that these gates lie at the least normal number and what is multiplied with them, the
    LSTM's states and all gradients through such gates, below it; an RNN has no gates.
    """

    kind: str = "signal"

    def layer(self):
        """As in `Work`, other biases."""
        layer, H = super().layer(), self.H
        for name, value in layer.params.items():
            if name.startswith("bias") and self.kind == "signal":
                value[...] = 0
        if self.kind == "gate":
            layer.params["bias_ih_l0"][: {"lstm": H, "gru": 2 * H}[self.cell]] = -86.5
        return layer

    def arrays(self):
        """As in `Work`, smaller."""
        size = np.float32(1e-40 if self.kind == "signal" else 1)
        return tuple(a * size for a in super().arrays())

    def __str__(self):
        return f"{super().__str__()} {self.kind}"


def denormals(seconds, cells=CELLS, shapes=((64, 32, 128, 128), (128, 1, 64, 64))):
    """The same layer with numbers that underflow over normal ones; torch's ratio beside it is of
    single calls."""
    for cell, mode, shape in itertools.product(cells, ("infer", "train"), shapes):
        for kind in ("signal",) if cell == "rnn" else ("signal", "gate"):
            small = Underflow(cell, mode, *shape, kind=kind)
            names, pair = ["fused", *installed("torch")], {}
            for suffix, work in (("", Work(cell, mode, *shape)), (" small", small)):
                pair |= named(_bench.make_calls(work, names), suffix)
            peers = {name: pair.pop(name) for name in list(pair) if name.startswith("torch")}
            times = _bench.turns(pair, seconds)
            beside = {}
            if peers:
                beside["torch"] = f"{once(peers['torch small']) / once(peers['torch']):.1f}"
            yield Row("denormals", f"{small}: time over normal numbers'",
                      *ratio(times, "fused small", "fused"), 1.2, True, beside=beside)


def streaming(seconds, cells=CELLS, H=64):
    """One step of one sequence, called from Python."""
    names = ["fused", *installed("onnxruntime", "torch")]
    for cell in cells:
        work = Work(cell, "stream", 1, 1, H, H)
        times = _bench.compare(work, names, seconds)
        beside = {name: _bench.duration(times[name][1]) for name in names[1:]}
        yield Row("streaming step", str(work), times["fused"][1] * 1e6, times["fused"][0] * 1e6,
                  2.5, True, " µs", beside)


def sequence(seconds, cells=CELLS, shape=(2048, 1, 1, 16)):
    """Whole sequences of a small layer: time of a step."""
    names = ["fused", *installed("onnxruntime", "torch")]
    for cell in cells:
        work = Work(cell, "infer", *shape)
        steps = {name: [t / work.T for t in times]
                 for name, times in _bench.compare(work, names, seconds).items()}
        beside = {name: _bench.duration(steps[name][1]) for name in names[1:]}
        yield Row("small layer", f"{work}: a step", steps["fused"][1] * 1e6,
                  steps["fused"][0] * 1e6, 0.1, True, " µs", beside)


# The weights hardly move, so that every step of a measurement is the same work.
LEARNING_RATE = 1e-6


def character_calls(cell, T, B, V, H, layers=2):
    """A training step of a character model in both libraries: the same weights, the same text.

    Ours is the loop of ``rnnfast train``. Torch looks up the one-hot vectors, which is faster than
    making them, and steps its fused Adam; the state is carried from step to step in both.
    """
    import torch
    from torch.nn import functional

    vocabulary = "".join(chr(ord("0") + k) for k in range(V))
    model = CharLM(vocabulary, cell, H, layers, seed=0)
    ids = np.random.default_rng(1).integers(0, V, (T + 1, B), np.int32)
    theirs = torch.nn.ModuleDict({
        "recurrent": getattr(torch.nn, cell.upper())(V, H, layers),
        "output": torch.nn.Linear(H, V),
    })
    theirs.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in model.params.items()})
    inputs, targets = (torch.from_numpy(a.astype(np.int64)) for a in (ids[:-1], ids[1:]))
    one_hot = torch.eye(V)
    our_adam = rnnfast.optim.Adam(model, lr=LEARNING_RATE)
    their_adam = torch.optim.Adam(theirs.parameters(), lr=LEARNING_RATE, fused=True)
    our_state = their_state = None

    def ours():
        nonlocal our_state
        model.zero_grad()
        loss, our_state = model.loss_and_grads(ids[:-1], ids[1:], our_state)
        rnnfast.clip_grad_norm(model.grads, 1.0)
        our_adam.step()
        return loss

    def torchs():
        nonlocal their_state
        their_adam.zero_grad()
        y, state = theirs["recurrent"](functional.embedding(inputs, one_hot), their_state)
        loss = functional.cross_entropy(theirs["output"](y).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        their_adam.step()
        their_state = tuple(s.detach() for s in state) if cell == "lstm" else state.detach()
        return float(loss.detach())

    difference = abs(ours() - torchs())
    if not difference < 1e-3:
        raise AssertionError(f"{cell}: the losses differ by {difference:.2g}")
    return {"fused": ours, "torch": torchs}


def characters(seconds, cells=CELLS, shapes=((50, 50, 65, 128), (128, 50, 65, 512))):
    """A training step of a model of two layers, optimiser included: torch's time over ours."""
    if not installed("torch"):
        return
    for shape, cell in itertools.product(shapes, cells):
        times = _bench.turns(character_calls(cell, *shape), seconds)
        beside = {name: _bench.duration(t[1]) for name, t in times.items()}
        yield Row("character model", f"{cell} {'x'.join(map(str, shape))} 2 layers: torch's time "
                  "over ours", *ratio(times, "torch", "fused"), 1.2 if cell == "lstm" else 1.5,
                  False, beside=beside)  # fmt: skip


@contextlib.contextmanager
def every_cpu():
    """The process may run on all CPUs for a while, whatever it was pinned to."""
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count()
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count()))
    try:
        yield len(os.sched_getaffinity(0))
    finally:
        os.sched_setaffinity(0, before)


def burn(work):
    """Do the same work on the last CPU until stdin ends; a line when it has begun."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    call = _peers.make("fused", work)
    call()
    print(flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        call()


@contextlib.contextmanager
def neighbour(work):
    """A second process that does the same work; gives a function to stop it and let it go."""
    shape = map(str, (work.T, work.B, work.I, work.H))
    command = [sys.executable, __file__, "--burn", work.cell, work.mode, *shape]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}) as process:
        try:
            process.stdout.readline()
            yield lambda go: process.send_signal(signal.SIGCONT if go else signal.SIGSTOP)
        finally:
            process.send_signal(signal.SIGCONT)


def two_processes(work, call, seconds):
    """Twice the time of a call alone over its time beside a process that does the same on another
    CPU: what two threads could gain that never wait for each other and share nothing."""
    with neighbour(work) as let:
        def beside(go):
            def run():
                let(go)
                return call()

            return run

        times = _bench.turns({"alone": beside(False), "beside": beside(True)}, seconds, threads=2)
    return 2 * times["alone"][1] / times["beside"][1]


def threads(seconds, shapes=((64, 32, 256, 256), (64, 64, 512, 512), (64, 128, 128, 128),
                             (128, 1, 128, 128), (128, 1, 256, 256), (128, 1, 512, 512))):
    """One thread's time over two threads', an LSTM; one sequence, whose hidden units are divided,
    need only gain by it. Beside it: `two_processes`."""
    def limited(n, call):
        def run():
            rnnfast.set_num_threads(n)
            return call()

        return run

    with every_cpu() as cpus:
        if cpus < 2:
            print("left out: two threads, there is one CPU")
            return
        for mode, shape in itertools.product(("infer", "train"), shapes):
            work = Work("lstm", mode, *shape)
            call = _peers.make("fused", work)
            times = _bench.turns({str(n): limited(n, call) for n in (1, 2)}, seconds, threads=2)
            rnnfast.set_num_threads(1)
            beside = {f"{n} thread{'s' * (n > 1)}": _bench.duration(times[str(n)][1])
                      for n in (1, 2)}
            if hasattr(os, "sched_setaffinity"):
                beside["two processes"] = f"{two_processes(work, call, seconds):.2f}"
            yield Row("two threads", f"{work}: one thread's time over two threads'",
                      *ratio(times, "1", "2"), 1.85 if work.B >= 32 else 1, False, beside=beside)


def peak(seconds, cells=CELLS, shapes=((64, 32, 128, 128), (64, 128, 128, 128),
                                       (64, 32, 256, 256), (64, 64, 512, 512),
                                       (32, 64, 1024, 1024))):  # fmt: skip
    """Share of the fma peak, which is measured in turns with the layer: clocks change."""
    for shape, cell in itertools.product(shapes, cells):
        work = Work(cell, "infer", *shape)
        product, flops = grid.peak_call()
        times = _bench.turns({"fused": _peers.make("fused", work), "peak": product}, seconds)
        speeds = {name: [n / t / 1e9 for t in times[name]]
                  for name, n in (("fused", work.flops), ("peak", flops))}
        beside = {name: f"{speed[1]:.0f} GFLOP/s" for name, speed in speeds.items()}
        yield Row("share of the peak", str(work), speeds["fused"][1] / speeds["peak"][1],
                  speeds["fused"][0] / speeds["peak"][0], 0.85 if work.H < 256 else 0.9, False,
                  beside=beside)  # fmt: skip


def resident(name):
    """A size in bytes from Linux's record of this process."""
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


def growth(name, work):
    """Bytes by which the peak of resident memory rises above what is resident before one call."""
    _peers.make(name, replace(work, T=2, B=2, I=4, H=8))()  # what the library sets up once
    call = _peers.make(name, work)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def memory(seconds, cell="lstm", shapes=((64, 64, 512, 512), (365, 256, 30, 128))):
    """Each library in a fresh process."""
    if not installed("torch") or not Path("/proc/self/clear_refs").exists():
        return
    for shape in shapes:
        work, grown = Work(cell, "train", *shape), {}
        for name in ("fused", "torch"):
            done = subprocess.run([sys.executable, __file__, "--grow", name, cell,
                                   *map(str, shape)], stdout=subprocess.PIPE, check=True,
                                  env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
            grown[name] = int(done.stdout) / 2**20
        beside = {name: f"{size:.0f} MB" for name, size in grown.items()}
        share = grown["fused"] / grown["torch"]
        yield Row("memory", f"{work}: growth of the peak over torch's", share, share, 1, True,
                  beside=beside)


def blas(seconds, measure=False, path=None):
    """Engine blas's time over ours: the worst of the square shapes, by cell and mode; as in the
    grid that was measured, unless `measure` or another path says otherwise."""
    path = path or RESULTS / f"grid-1-{rnnfast.get_isa()}.json"
    if measure:
        rows = []
        for use, work in grid.works(1):
            if use is None and work.mode != "stream":
                times = _bench.compare(work, ["fused", "blas"], seconds)
                rows.append(grid.row_of(use, work, times))
    elif path.exists():
        rows = json.loads(path.read_text())["rows"]
    else:
        print(f"left out: engine blas, {path.name} is not there; --blas measures it")
        return
    for cell, mode in itertools.product(CELLS, ("infer", "train")):
        chosen = [r for r in rows if r["cell"] == cell and r["mode"] == mode and not r["use"]
                  and {"blas", "fused"} <= r["median"].keys()]  # fmt: skip
        if not chosen:
            continue
        ratios = [r["median"]["blas"] / r["median"]["fused"] for r in chosen]
        worst = chosen[int(np.argmin(ratios))]
        yield Row("engine blas", f"{worst['work']}, the worst of {len(chosen)}: blas's time over "
                  "fused's", min(ratios), worst["least"]["blas"] / worst["least"]["fused"], 1,
                  False, beside={"slower": str(sum(r < 1 for r in ratios))})  # fmt: skip


SECTIONS = {section.__name__: section for section in (
    ragged, denormals, streaming, sequence, characters, threads, peak, memory, blas)}

# ---- the table -----------------------------------------------------------------------------------


def table(rows):
    """Markdown; what is not met in bold."""
    lines = ["| | what | measured | goal | met | beside it |", "|---|---|---:|---:|---|---|"]
    for row in rows:
        value = f"{row.value:.2f}{row.unit}"
        if f"{row.least:.2f}" != f"{row.value:.2f}":
            value += f" ({row.least:.2f})"
        goal = f"{'≤' if row.at_most else '≥'} {row.goal:g}{row.unit}"
        beside = ", ".join(f"{name} {text}" for name, text in row.beside.items())
        lines.append(f"| {row.section} | {row.what} | {value} | {goal} | "
                     f"{'yes' if row.met else '**no**'} | {beside} |")
    return "\n".join(lines)


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help=f"of {', '.join(SECTIONS)}: those with this "
                        "in their name")
    parser.add_argument("--seconds", type=float, default=0.15, help="of each call")
    parser.add_argument("--blas", action="store_true", help="measure engine blas over the square "
                        "shapes, where otherwise the grid in results/ is read")
    parser.add_argument("--out", type=Path,
                        default=RESULTS / f"promises-{rnnfast.get_isa()}.json")
    parser.add_argument("--grow", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--burn", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.burn:
        cell, mode, *shape = args.burn
        burn(Work(cell, mode, *map(int, shape)))
        return
    if args.grow:
        name, cell, *shape = args.grow
        print(growth(name, Work(cell, "train", *map(int, shape))))
        return
    for name in ("torch", "onnxruntime"):
        if not importlib.util.find_spec(name):
            print(f"left out: {name} is not installed")
    grid.pin(1)
    rows = []
    result = {"cpu": grid.cpu(), "rows": []}
    for name, section in SECTIONS.items():
        if args.only not in name:
            continue
        more = {"measure": args.blas} if section is blas else {}
        for row in section(args.seconds, **more):
            rows.append(row)
            print(table([row]).splitlines()[-1], flush=True)
            result["rows"].append(asdict(row) | {"met": row.met})
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    note = (f"Measured on {result['cpu']}, kernels {rnnfast.get_isa()}, float32, one thread where "
            "nothing else is said. By median times; in brackets by the least.\n")
    args.out.with_suffix(".md").write_text(f"{note}\n{table(rows)}\n")
    missed = sum(not row.met for row in rows)
    print(f"{len(rows)} goals, {missed} missed")


if __name__ == "__main__":
    main()
