"""What swapping a PyTorch module for ours gives, and what the bridge costs over the NumPy API.

    python bench/torch_gain.py [--threads N] [--seconds S]

torch, rnnfast.torch and the NumPy layer take turns in one process; median times.
"""

import argparse
import os
import statistics
import time
from functools import partial

SHAPES = [(1, 1, 64, 64), (50, 1, 64, 64), (100, 8, 32, 64), (50, 32, 64, 128), (64, 32, 256, 256)]


def turns(calls, seconds):
    """Median seconds of each call; a turn is as many calls as fill a millisecond, at least one."""
    times, repeats = [[] for _ in calls], []
    for call in calls:
        call()
        begin = time.perf_counter()
        call()
        repeats.append(max(1, int(1e-3 / (time.perf_counter() - begin))))
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or len(times[-1]) < 5:
        for call, n, kept in zip(calls, repeats, times, strict=True):
            begin = time.perf_counter()
            for _ in range(n):
                call()
            kept.append((time.perf_counter() - begin) / n)
    return [statistics.median(t) for t in times]


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


def main():
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5)
    args = parser.parse_args()
    for name in ("OMP", "OPENBLAS", "MKL", "RNNFAST"):
        os.environ[f"{name}_NUM_THREADS"] = str(args.threads)
    import torch

    import rnnfast
    import rnnfast.torch

    torch.set_num_threads(args.threads)
    print("| module, T x B x I x H | inference: torch | rnnfast.torch | gain | over NumPy API "
          "| training: torch | rnnfast.torch | gain |")
    print("|---|" + "---:|" * 7)
    for cell in ("LSTM", "GRU", "RNN"):
        for T, B, I, H in SHAPES:
            theirs = getattr(torch.nn, cell)(I, H)
            ours = getattr(torch.nn, cell)(I, H)
            ours.load_state_dict(theirs.state_dict())
            ours = rnnfast.torch.accelerate(torch.nn.ModuleList([ours]))[0]
            plain = getattr(rnnfast, cell)(I, H)
            plain.load_state_dict(theirs.state_dict())
            x, dy = torch.randn(T, B, I), torch.randn(T, B, H)

            a, b, c = turns([partial(infer, theirs, x), partial(infer, ours, x),
                             partial(plain, x.numpy())], args.seconds)  # fmt: skip
            d, e = turns([partial(train, theirs, x.clone().requires_grad_(), dy),
                          partial(train, ours, x.clone().requires_grad_(), dy)],
                         args.seconds)  # fmt: skip
            print(f"| {cell} {T} x {B} x {I} x {H} | {a * 1e6:.0f} µs | {b * 1e6:.0f} µs "
                  f"| {a / b:.2f} | {(b - c) * 1e6:+.0f} µs | {d * 1e6:.0f} µs | {e * 1e6:.0f} µs "
                  f"| {d / e:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
