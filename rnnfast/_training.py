"""Training of a character model that can stop anywhere and go on with the same bits."""

import hashlib
import io
import json
import math
import os
import time

import numpy as np

from rnnfast import _checkpoint, _text, clip_grad_norm, optim
from rnnfast._text import InputError
from rnnfast.charlm import CharLM

WARMUP = 50  # steps over which the learning rate rises
FLOOR = 0.02  # of the learning rate, at the end of its cosine
RECORDS, CHECKS = 200, 10  # in a whole run: points of the training curve, held-out validations
LN2 = math.log(2)


def files(out):
    """The files of a run, by role."""
    names = {"model": "model.safetensors", "checkpoint": "checkpoint.safetensors",
             "log": "log.jsonl", "plot": "loss.png"}
    return {role: os.path.join(out, name) for role, name in names.items()}


class Training:
    """A model, its text and where training stands.

    The training text is read as a ring by B parallel streams, evenly spaced; each pass over it
    starts at another character, drawn from (seed, epoch). The state is carried from window to
    window and put to zero at the start of a pass.

    Parameters
    ----------
    text : str
    options : dict
        cell, layers, hidden, dropout, seq_len, batch, lr, clip, steps or minutes, seed.
    """

    def __init__(self, text, options):
        self.options = options
        if len(text) < 2 * _text.HELDOUT_SHARE:
            raise InputError(f"the text has {len(text)} characters; at least "
                             f"{2 * _text.HELDOUT_SHARE} are needed")
        vocabulary = "".join(sorted(set(text)))
        self.model = CharLM(vocabulary, options["cell"], options["hidden"], options["layers"],
                            options["dropout"], seed=options["seed"])
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.train, self.heldout = _text.split(self.model.encode(text))
        if len(self.train) <= options["seq_len"]:
            raise InputError(f"the text leaves {len(self.train)} characters to train on, which is "
                             f"shorter than a window of --seq-len {options['seq_len']} and the "
                             "character after it")
        self.optimizer = optim.Adam(self.model, lr=options["lr"])
        self.state = None
        self.step = self.epoch = self.window = 0
        self.seconds = 0.0
        self.recent = [0.0, 0]  # sum and number of losses since the last record
        self.history = []

    # ---- where it stands ---------------------------------------------------------------------

    @property
    def progress(self):
        """Share of the run that is done."""
        if self.options["minutes"]:
            return min(1.0, self.seconds / (60 * self.options["minutes"]))
        return min(1.0, self.step / self.options["steps"])

    @property
    def windows(self):
        """Windows in a pass over the text."""
        o = self.options
        return max(1, len(self.train) // (o["batch"] * o["seq_len"]))

    def learning_rate(self):
        """Linear warm-up, then half a cosine over the whole run."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        return self.options["lr"] * min(1, (self.step + 1) / WARMUP) * max(FLOOR, cosine)

    # ---- training ----------------------------------------------------------------------------

    def advance(self):
        """One window: BPTT, clipping, Adam. Returns the loss in nats per character."""
        begin = time.perf_counter()
        o = self.options
        rng = np.random.default_rng([o["seed"], self.epoch])
        first = int(rng.integers(len(self.train))) + self.window * o["seq_len"]
        streams = np.arange(o["batch"]) * len(self.train) // o["batch"]
        at = first + streams + np.arange(o["seq_len"] + 1)[:, None]
        ids = self.train[at % len(self.train)]
        self.optimizer.lr = self.learning_rate()
        self.model.zero_grad()
        loss, self.state = self.model.loss_and_grads(ids[:-1], ids[1:], self.state)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}")
        if o["clip"]:
            clip_grad_norm(self.model.grads, o["clip"])
        self.optimizer.step()
        self.step += 1
        self.window += 1
        if self.window == self.windows:
            self.epoch, self.window, self.state = self.epoch + 1, 0, None
        self.recent[0] += loss
        self.recent[1] += 1
        self.seconds += time.perf_counter() - begin
        return loss

    def run(self, interrupted=lambda: False):
        """Train to the end; yields (loss, record or None) after each step.

        A record is a line of the log. Where `interrupted()` is true the run ends after the step at
        hand, the only place where all that a checkpoint holds belongs together.
        """
        while self.progress < 1 and not interrupted():
            before = self.progress
            loss = self.advance()
            yield loss, self._record(before)

    def _record(self, before):
        def passed(points):
            return int(self.progress * points) > int(before * points)

        check = passed(CHECKS)
        if not check and not passed(RECORDS):
            return None
        total, count = self.recent
        self.recent = [0.0, 0]
        record = {"step": self.step, "epoch": self.epoch, "seconds": round(self.seconds, 3),
                  "lr": self.optimizer.lr, "train_bits": total / count / LN2}
        if check:
            record["heldout_bits"] = self.model.evaluate(self.heldout)
        self.history.append(record)
        return record

    # ---- files -------------------------------------------------------------------------------

    def save(self, out, sources, baselines):
        """Write model, log and checkpoint into the folder `out`."""
        paths = files(out)
        run = {"options": self.options, "sources": sources, "sha256": self.digest,
               "step": self.step, "epoch": self.epoch, "window": self.window,
               "seconds": self.seconds, "recent": self.recent, "history": self.history,
               "rng": self.model.training_rng.bit_generator.state}
        checked = [r for r in self.history if "heldout_bits" in r]
        names = [os.path.basename(path) for path in sources]  # a path is private
        training = {"options": self.options, "sources": names, "step": self.step,
                    "baselines": baselines, "last_check": checked[-1] if checked else None}
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        _checkpoint.save_checkpoint(paths["checkpoint"], self.model, self.optimizer, self.state,
                                    run)
        _checkpoint.save_model(paths["model"], self.model, training)
        _checkpoint.replace(paths["log"], lines.encode())

    @classmethod
    def resume(cls, path, read, changes):
        """The training that a checkpoint holds, and its sources.

        Parameters
        ----------
        path : str
        read : callable
            Gives the text of a list of sources.
        changes : dict
            New "steps" or "minutes".
        """
        model, optimizer, state, run = _checkpoint.load_checkpoint(path)
        try:
            sources = run["sources"]
            self = cls(read(sources), run["options"] | changes)
            if self.digest != run["sha256"]:
                raise InputError(f"{path}: the text is not the one that training began with")
            self.model.load_state_dict(model.state_dict())
            self.optimizer.load_state_dict(optimizer)
            self.model.training_rng.bit_generator.state = run["rng"]
            self.state = state
            for name in ("step", "epoch", "window", "seconds", "recent", "history"):
                setattr(self, name, run[name])
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path}: damaged checkpoint: {error}") from None
        return self, sources


def plot(history, baselines, title):
    """The loss curves beside the baselines, as PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, quiet, blue, orange = "#222222", "#8a8a8a", "#9dbfe6", "#d1580f"
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    checked = [r for r in history if "heldout_bits" in r]
    for records, key, look in (
        (history, "train_bits", {"color": blue, "label": "training"}),
        (checked, "heldout_bits", {"color": orange, "label": "held-out", "marker": "o", "ms": 4,
                                    "clip_on": False}),
    ):
        ax.plot([r["step"] for r in records], [r[key] for r in records], lw=1.8, **look)
    right = history[-1]["step"] if history else 1
    for name, bits in baselines.items():
        ax.axhline(bits, color=quiet, lw=1, ls=(0, (5, 4)), zorder=0)
        # A good model ends near the 5-gram and starts near the others: labels keep out of its way.
        x, side = (0, "left") if name == "5-gram" else (1, "right")
        ax.annotate(f"{name}  {bits:.2f}", (x, bits), xycoords=("axes fraction", "data"),
                    xytext=(4 - 8 * x, 3), textcoords="offset points", ha=side, color=quiet,
                    fontsize=9)
    if checked:
        last = checked[-1]
        ax.annotate(f"{last['heldout_bits']:.2f}", (last["step"], last["heldout_bits"]),
                    xytext=(7, 0), textcoords="offset points", va="center", color=orange,
                    fontweight="bold", annotation_clip=False)
    ax.set_xlim(0, right)
    ax.set_ylim(0, max(baselines.values()) * 1.08)
    ax.set_xlabel("step")
    ax.set_ylabel("bits per character")
    ax.set_title(title, loc="left", color=ink, fontsize=11, pad=8)
    ax.grid(axis="y", color="#ececec", lw=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
