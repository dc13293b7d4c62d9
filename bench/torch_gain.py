"""What swapping a PyTorch module for ours gives, and what the bridge costs over the NumPy API.

    python bench/torch_gain.py [--threads N] [--seconds S] [--out FILE]

torch, rnnfast.torch and the NumPy layer take turns in one process; median times. The gains go to a
file that `make readme` pastes into README.md.
"""

import argparse
import os
from functools import partial
from pathlib import Path

SHAPES = [(1, 1, 64, 64), (50, 1, 64, 64), (100, 8, 32, 64), (50, 32, 64, 128), (64, 32, 256, 256)]


def infer(module, x):
    """A call without gradients."""
    import torch

    with torch.inference_mode():
        return module(x)


def train(module, x, dy):
    """Forward and BPTT to x and all weights."""
    module.zero_grad()
    x.grad = None
    y, _ = module(x)
    y.backward(dy)


def measure(cell, shape, seconds, threads):
    """Median seconds: {"infer": {"torch", "ours", "numpy"}, "train": {"torch", "ours"}}."""
    import torch

    import rnnfast
    import rnnfast.torch
    from rnnfast._bench import turns

    T, B, I, H = shape
    theirs, ours = (getattr(torch.nn, cell)(I, H) for _ in range(2))
    ours.load_state_dict(theirs.state_dict())
    ours = rnnfast.torch.accelerate(torch.nn.ModuleList([ours]))[0]
    plain = getattr(rnnfast, cell)(I, H)
    plain.load_state_dict(theirs.state_dict())
    x, dy = torch.randn(T, B, I), torch.randn(T, B, H)
    modules = {"torch": theirs, "ours": ours}
    calls = {
        "infer": {name: partial(infer, module, x) for name, module in modules.items()}
        | {"numpy": partial(plain, x.numpy())},
        "train": {name: partial(train, module, x.clone().requires_grad_(), dy)
                  for name, module in modules.items()},
    }  # fmt: skip
    return {mode: {name: median for name, (_, median) in turns(c, seconds, threads).items()}
            for mode, c in calls.items()}  # fmt: skip


def gain(times):
    """Two digits, bold where torch is faster."""
    ratio = times["torch"] / times["ours"]
    return f"**{ratio:.2f}**" if ratio < 1 else f"{ratio:.2f}"


def main():
    """Print a table in Markdown, and write the part of it for README.md."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=here / "results" / "torch.md")
    args = parser.parse_args()
    for name in ("OMP", "OPENBLAS", "MKL", "RNNFAST"):
        os.environ[f"{name}_NUM_THREADS"] = str(args.threads)
    import grid

    grid.pin(args.threads)
    import torch

    import rnnfast

    torch.set_num_threads(args.threads)
    threads = f"{args.threads} thread" + "s" * (args.threads > 1)
    where = grid.cpu(), f"kernels {rnnfast.get_isa()}", threads, f"torch {torch.__version__}"
    short = [f"{', '.join(where)}.", "",
             "| module, T x B x I x H | inference: times faster | training: times faster |",
             "|---|---:|---:|"]  # fmt: skip
    print("| module, T x B x I x H | inference: torch | rnnfast.torch | gain | over NumPy API "
          "| training: torch | rnnfast.torch | gain |")
    print("|---|" + "---:|" * 7)
    for cell in ("LSTM", "GRU", "RNN"):
        for shape in SHAPES:
            module = f"{cell} {' x '.join(map(str, shape))}"
            found = measure(cell, shape, args.seconds, args.threads)
            gains = {mode: gain(times) for mode, times in found.items()}
            us = {mode: {name: t * 1e6 for name, t in times.items()}
                  for mode, times in found.items()}
            a, b = us["infer"], us["train"]
            print(f"| {module} | {a['torch']:.0f} µs | {a['ours']:.0f} µs | {gains['infer']} "
                  f"| {a['ours'] - a['numpy']:+.0f} µs | {b['torch']:.0f} µs | {b['ours']:.0f} µs "
                  f"| {gains['train']} |", flush=True)  # fmt: skip
            short.append(f"| {module} | {gains['infer']} | {gains['train']} |")
    args.out.write_text("\n".join(short) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
