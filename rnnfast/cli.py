"""The command ``rnnfast``: train, sample, eval and info for character models, and bench. See
docs/train.md and docs/performance.md."""

import argparse
import contextlib
import math
import os
import signal
import sys
import threading

DEFAULTS = {"cell": "gru", "layers": 1, "hidden": 256, "seq_len": 32, "batch": 32, "lr": 4e-3,
            "clip": 1.0, "dropout": 0.0, "steps": 2500, "minutes": None, "seed": 0}
OUT = "rnnfast-model"
EXTRAS = ("safetensors.numpy", "tqdm", "matplotlib.figure")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def number(kind, accept, wanted):
    """An argparse type: a number of `kind` for which `accept` holds."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return convert


positive_int = number(int, lambda n: n >= 1, "a whole number, at least 1")
natural = number(int, lambda n: n >= 0, "a whole number, at least 0")
positive = number(float, lambda x: 0 < x < math.inf, "a positive number")
not_negative = number(float, lambda x: 0 <= x < math.inf, "a number, at least 0")
share = number(float, lambda x: 0 <= x < 1, "a number from 0 to below 1")


def shape(text):
    """An argparse type: four sizes."""
    try:
        sizes = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected four sizes T,B,I,H, got {text!r}")
    return sizes


def parser():
    """The parser of the whole command line."""
    top = Parser(prog="rnnfast", description="Recurrent networks on the CPU: character models, "
                 "and how fast this machine runs them.")
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def command(name, function, summary):
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(function=function)
        return sub

    p = command("train", train, "train a model on text (default: Python's language reference)")
    p.add_argument("files", nargs="*", metavar="FILE", help="UTF-8 text; several are joined")
    d = DEFAULTS
    p.add_argument("--cell", choices=("rnn", "lstm", "gru"), help=f"default {d['cell']}")
    for name, kind, text in (
        ("layers", positive_int, "recurrent layers"),
        ("hidden", positive_int, "units in each layer"),
        ("seq-len", positive_int, "time steps through which gradients flow"),
        ("batch", positive_int, "streams of text read side by side"),
        ("lr", positive, "highest learning rate of Adam"),
        ("clip", not_negative, "highest norm of the gradient, 0 for any"),
        ("dropout", share, "share of each layer's output set to zero"),
        ("seed", natural, "for weights, order of the text and dropout"),
    ):
        default = d[name.replace("-", "_")]
        p.add_argument(f"--{name}", type=kind, metavar="N", help=f"{text} (default {default})")
    length = p.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive_int, metavar="N",
                        help=f"windows to train on (default {d['steps']})")
    length.add_argument("--minutes", type=positive, metavar="N",
                        help="train for so long; the result then depends on the machine's speed")
    p.add_argument("--out", default=OUT, metavar="DIR", help=f"folder to write (default {OUT})")
    p.add_argument("--resume", action="store_true",
                   help="go on from the checkpoint in DIR; of the options only --steps or "
                   "--minutes may change")

    p = command("sample", sample, "write text drawn from a model")
    p.add_argument("model", metavar="MODEL", help="model file, or the folder that holds it")
    p.add_argument("--prime", default="", metavar="TEXT", help="text to go on from")
    p.add_argument("--length", type=natural, default=500, metavar="N",
                   help="characters to draw (default 500)")
    p.add_argument("--temperature", type=positive, default=1.0, metavar="N",
                   help="below 1: more predictable; above 1: more surprising (default 1)")
    p.add_argument("--seed", type=natural, default=0, metavar="N", help="default 0")

    p = command("eval", evaluate, "bits per character of a model on a text")
    p.add_argument("model", metavar="MODEL", help="model file, or the folder that holds it")
    p.add_argument("file", metavar="FILE", help="UTF-8 text")

    p = command("bench", bench, "time a layer of your own shape, beside other libraries")
    p.add_argument("--shape", type=shape, default=(64, 32, 128, 128), metavar="T,B,I,H",
                   help="steps, batch, inputs, hidden units (default 64,32,128,128)")
    p.add_argument("--cell", choices=("rnn", "lstm", "gru"), default="lstm", help="default lstm")
    p.add_argument("--mode", choices=("infer", "train", "stream"), action="append",
                   help="a whole sequence, with BPTT, or one step at a time (default: all three)")
    p.add_argument("--layers", type=positive_int, default=1, metavar="N", help="default 1")
    p.add_argument("--bidirectional", action="store_true")
    p.add_argument("--peers", nargs="*", metavar="NAME",
                   help="libraries to compare with: torch onnxruntime openvino jax numpy (default: "
                   "those installed; none after --peers alone)")
    p.add_argument("--threads", type=positive_int, default=1, metavar="N", help="default 1")
    p.add_argument("--seconds", type=positive, default=0.5, metavar="N",
                   help="for each library and mode (default 0.5)")

    p = command("info", info, "what a model is, or what this machine runs")
    p.add_argument("model", metavar="MODEL", nargs="?", help="model file, or its folder")
    return top


def main(argv=None):
    """Run the command line `argv`; returns the exit code.

    0: done. 1: it failed on the way (disk full, training diverged). 2: the input cannot be used.
    130: interrupted.
    """
    from rnnfast._text import InputError

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a model may know characters the terminal does not
            stream.reconfigure(errors="backslashreplace")
    try:
        args = parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code
    name = f"rnnfast {args.command}"
    try:
        code = args.function(args)
        sys.stdout.flush()
        return code or 0
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has left; the interpreter's own flush at exit must not complain about it.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except (OSError, FloatingPointError, MemoryError) as error:
        print(f"{name}: {error or 'out of memory'}", file=sys.stderr)
        return 1


# ---- train ---------------------------------------------------------------------------------------


def train(args):
    """``rnnfast train``."""
    from rnnfast import _checkpoint, _text, _training

    _checkpoint.require(*EXTRAS)
    _one_blas_thread()
    paths = _training.files(args.out)
    given = {key: getattr(args, key) for key in DEFAULTS if getattr(args, key) is not None}
    if args.resume:
        run, sources = _resume(args, paths["checkpoint"], given)
    else:
        options = DEFAULTS | ({"steps": None} if "minutes" in given else {}) | given
        sources = [os.path.abspath(path) for path in args.files]
        run = _training.Training(_read(sources), options)
        try:
            os.makedirs(args.out, exist_ok=True)
        except OSError as error:
            raise _text.InputError(f"--out {args.out}: {error.strerror}") from None
    if not os.access(args.out, os.W_OK):
        raise _text.InputError(f"--out {args.out}: no permission to write there")

    model, o = run.model, run.options
    what = ", ".join(os.path.basename(s) for s in sources) or "Python's language reference"
    _say(f"text      {what}: {len(run.train):,} characters to train on, {run.heldout.size:,} held "
         f"out, {len(model.vocabulary)} different")
    _say(f"model     {o['cell'].upper()}, {o['layers']} x {o['hidden']} units, "
         f"{model.num_parameters:,} parameters")
    baselines = _text.baselines(run.train, run.heldout, len(model.vocabulary))
    _say("to beat   " + ", ".join(f"{k} {v:.3f}" for k, v in baselines.items())
         + " bits per character on the held-out text")

    with _stop_flag() as stopped:
        try:
            _loop(run, args.out, sources, baselines, stopped)
        except FloatingPointError as error:
            raise FloatingPointError(f"training diverged at step {run.step + 1}: {error}; "
                                     "try a smaller --lr or --clip") from None
        run.save(args.out, sources, baselines)
        if run.history:
            title = f"{o['cell'].upper()} {o['layers']} x {o['hidden']} on {what}"
            _checkpoint.replace(paths["plot"], _training.plot(run.history, baselines, title))
    if stopped:
        where = "" if args.out == OUT else f" --out {_quoted(args.out)}"
        _say(f"Stopped after step {run.step}; all is saved in {args.out}.\n"
             f"Go on with: rnnfast train --resume{where}")
        return 128 + stopped[0]
    _report(run, baselines, args.out)
    return 0


def _one_blas_thread():
    """Unless the user has set a number, and before BLAS is loaded.

    Threads of BLAS gain little on products of this size, wait for each other in busy loops (next
    to other work on two cores that made training ten times slower), and their number changes the
    bits of a run.
    """
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    if not any(name in os.environ for name in (*names, "OMP_NUM_THREADS")):
        os.environ.update(dict.fromkeys(names, "1"))


def _resume(args, path, given):
    from rnnfast._text import InputError
    from rnnfast._training import Training

    if not os.path.exists(path):
        raise InputError(f"nothing to resume: there is no {path}")
    length = {key: given.pop(key) for key in ("steps", "minutes") if key in given}
    changes = {"steps": None, "minutes": None} | length if length else {}
    run, sources = Training.resume(path, _read, changes)
    for key, value in given.items():
        if value != run.options[key]:
            raise InputError(f"--{key.replace('_', '-')} cannot change on the way: it was "
                             f"{run.options[key]}")
    if args.files and [os.path.abspath(f) for f in args.files] != sources:
        raise InputError("training goes on with the files it began with: leave FILE away")
    if run.progress >= 1:
        raise InputError(f"training ended at step {run.step}; to go on give more --steps or "
                         "--minutes")
    return run, sources


def _read(sources):
    from rnnfast import _text

    if not sources:
        return _text.default_text()
    return "".join(_text.read_text(path) for path in sources)


def _loop(run, out, sources, baselines, stopped):
    """Train under a progress bar; saves at each validation."""
    from tqdm import tqdm

    o = run.options
    timed = o["minutes"] is not None
    total = 60 * o["minutes"] if timed else o["steps"]
    form = "{percentage:3.0f}%|{bar}| " + ("" if timed else "{n_fmt}/{total_fmt} steps, ")
    speed, loss_shown, begin = None, None, run.seconds
    with tqdm(total=total, initial=run.seconds if timed else run.step, disable=None,
              dynamic_ncols=True, bar_format=form + "{remaining} left{postfix}") as bar:
        for loss, record in run.run(lambda: bool(stopped)):
            now = o["batch"] * o["seq_len"] / max(run.seconds - begin, 1e-9)
            begin = run.seconds
            # Smoothed for the eye: the mean of about 50 steps.
            speed = now if speed is None else 1 / (0.98 / speed + 0.02 / now)
            loss_shown = loss if loss_shown is None else 0.98 * loss_shown + 0.02 * loss
            bar.set_postfix_str(f"loss {loss_shown:.3f}, {loss_shown / math.log(2):.3f} bits/char, "
                                f"{speed:,.0f} chars/s", refresh=False)
            bar.update(min(total, run.seconds) - bar.n if timed else 1)
            if record and "heldout_bits" in record:
                bar.write(f"step {record['step']:6d}   training {record['train_bits']:.3f}   "
                          f"held-out {record['heldout_bits']:.3f} bits/char", file=sys.stderr)
                sys.stderr.flush()
                run.save(out, sources, baselines)


def _report(run, baselines, out):
    from rnnfast import _training

    bits = run.history[-1]["heldout_bits"]
    print(f"\nHeld-out text, bits per character ({run.heldout.size:,} characters):")
    for name, value in (baselines | {"this model": bits}).items():
        print(f"  {name:<12}{value:8.3f}")
    change = 100 * (bits / baselines["5-gram"] - 1)
    print(f"  {abs(change):.1f} % {'below' if change < 0 else 'above'} the 5-gram, "
          f"after {run.step:,} steps in {run.seconds:.0f} s")
    best = min((r for r in run.history if "heldout_bits" in r), key=lambda r: r["heldout_bits"])
    if best["heldout_bits"] < bits - 0.01:
        print(f"  At step {best['step']:,} it was {best['heldout_bits']:.3f}: the model has begun "
              "to learn by heart. Train shorter, or with more --dropout.")
    print("\nA sample:\n")
    print(run.model.sample(400, temperature=0.8, seed=run.options["seed"]))
    print("\nWritten:", *_training.files(out).values(), sep="\n  ")
    print(f"More: rnnfast sample {_quoted(out)} --length 1000 --temperature 0.8")


def _say(text):
    print(text, file=sys.stderr, flush=True)


def _quoted(path):
    import shlex

    return shlex.quote(path)


@contextlib.contextmanager
def _stop_flag():
    """A list that holds the signal's number once Ctrl-C (or SIGTERM) came.

    A step must not be torn apart: half the parameters moved would be another run. A second Ctrl-C
    interrupts at once; what was saved before stays.
    """
    caught, before = [], {}

    def handle(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handle)
    try:
        yield caught
    finally:
        for number, old in before.items():
            signal.signal(number, old)


# ---- sample, eval, info --------------------------------------------------------------------------


def _load(path):
    from rnnfast import _checkpoint, _training

    return _checkpoint.load_model(_training.files(path)["model"] if os.path.isdir(path) else path)


def sample(args):
    """``rnnfast sample``."""
    from rnnfast._text import InputError
    from rnnfast.charlm import UnknownCharacter

    model, _ = _load(args.model)
    try:
        characters = model.generate(args.length, args.prime, args.temperature, args.seed)
    except UnknownCharacter as error:
        raise InputError(f"--prime: {_stranger(error)} (character {error.position + 1})") from None
    sys.stdout.write(args.prime)
    for character in characters:
        sys.stdout.write(character)
        if character == "\n":
            sys.stdout.flush()
    sys.stdout.write("\n")


def evaluate(args):
    """``rnnfast eval``."""
    from rnnfast import _text
    from rnnfast.charlm import UnknownCharacter

    model, _ = _load(args.model)
    text = _text.read_text(args.file)
    if len(text) < 2:
        raise _text.InputError(f"{args.file}: at least 2 characters are needed: the first is only "
                               "read")
    try:
        ids = model.encode(text)
    except UnknownCharacter as error:
        raise _text.InputError(f"{args.file}: {_stranger(error)} "
                               f"({_text.place(text, error.position)})") from None
    bits = model.evaluate(ids)
    print(f"{bits:.4f} bits per character over {len(text) - 1:,} characters "
          f"(perplexity {2**bits:.3f})")


def _stranger(error):
    return (f"the model does not know the character {error.character!a} "
            f"(U+{ord(error.character):04X})")


def bench(args):
    """``rnnfast bench``."""
    for name in ("OMP", "OPENBLAS", "MKL", "RNNFAST"):  # read when the libraries load
        os.environ[f"{name}_NUM_THREADS"] = str(args.threads)
    from rnnfast import _bench, _peers
    from rnnfast._text import InputError

    found = _peers.installed()
    peers = [name for name in found if name != "numpy"] if args.peers is None else args.peers
    for name in peers:
        if name not in _peers.PEERS:
            raise InputError(f"--peers: {name!r} is none of {', '.join(_peers.PEERS)}")
        if name not in found:
            raise InputError(f"--peers: {name} is not installed")
    for mode in args.mode or _peers.MODES:
        work = _peers.Work(args.cell, mode, *args.shape, layers=args.layers,
                           bidirectional=args.bidirectional, threads=args.threads)
        if mode == "stream" and args.bidirectional:
            _say("stream: left out, a bidirectional layer cannot be streamed")
            continue
        times = _bench.compare(work, ["fused", "blas", *peers], args.seconds)
        print(*_bench.report(work, times), "", sep="\n", flush=True)


def info(args):
    """``rnnfast info``."""
    if args.model is None:
        import rnnfast

        rnnfast.show_config()
        return
    model, training = _load(args.model)
    o, check = training.get("options", {}), training.get("last_check") or {}
    rows = [
        ("cell", model.cell), ("layers", model.layers), ("hidden", model.hidden),
        ("dropout", model.dropout), ("dtype", model.dtype),
        ("parameters", f"{model.num_parameters:,}"),
        ("characters", f"{len(model.vocabulary)}: {model.vocabulary!a}"),
    ]
    if training:
        rows.append(("trained on", ", ".join(training["sources"]) or "Python's language reference"))
        rows.append(("steps", f"{training['step']:,}"))
        rows += [(k, o[k]) for k in ("seq_len", "batch", "lr", "clip", "seed") if k in o]
        rows += [(f"{k} bits", f"{v:.3f}") for k, v in training.get("baselines", {}).items()]
    if check:
        rows.append(("held-out bits", f"{check['heldout_bits']:.3f} at step {check['step']:,}"))
    for name, value in rows:
        print(f"{name:<14}{value}")
