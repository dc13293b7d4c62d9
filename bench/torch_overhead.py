"""What a call of rnnfast.torch costs over the NumPy API, where sequences are so small that little
else counts.

    taskset -c 0 python bench/torch_overhead.py [--seconds S] [--size T B I H]

The NumPy layer, rnnfast.torch, torch's own module and an empty module take turns in one process on
one thread; median times in µs. The empty module computes nothing: it gives the memory of its input
to NumPy and arrays that lie ready to torch, in training through a torch.autograd.Function with as
many tensors in and out. That much of the overhead is torch's own, whatever bridge is built on it.
"""

import argparse
import os

CELLS = ("LSTM", "GRU", "RNN")
COLUMNS = ("NumPy API", "rnnfast.torch", "torch", "empty module")


def empty_module(like, x):
    """A module that takes the tensors that `like` takes, and gives such as that gives."""
    import torch

    weights = list(like.parameters())
    with torch.no_grad():
        y, state = like(x)
    state = state if isinstance(state, tuple) else (state,)
    outputs = [t.numpy() for t in (y, *state)]
    gradients = [t.detach().numpy().copy() for t in (x, *weights)]

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *weights):
            x.detach().numpy()
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x, *weights)
            return tuple([torch.from_numpy(a) for a in outputs])

        @staticmethod
        def backward(ctx, dy, *dstate):
            ctx.saved_tensors  # noqa: B018  what notices changes in place
            dy.numpy()
            return tuple([torch.from_numpy(a) for a in gradients])

    class Empty(torch.nn.Module):
        def forward(self, x):
            if torch.is_grad_enabled():
                y, *state = Node.apply(x, *weights)
            else:
                x.numpy()
                y, *state = [torch.from_numpy(a) for a in outputs]
            return y, tuple(state) if len(state) == 2 else state[0]

    return Empty()


def numpy_calls(layer, x, dy):
    """(inference, forward, training) of a NumPy layer."""

    def train():
        layer.zero_grad()
        _, _, tape = layer.forward(x)
        layer.backward(tape, dy)

    return (lambda: layer(x)), (lambda: layer.forward(x)), train


def torch_calls(module, weights, x, dy):
    """(inference, forward, training) of a module; inference is called where gradients are off."""
    plain, leaf = x.clone(), x.clone().requires_grad_()

    def train():
        for t in (leaf, *weights):
            t.grad = None
        y, _ = module(leaf)
        y.backward(dy)

    return (lambda: module(plain)), (lambda: module(leaf)), train


def measure(cell, T, B, I, H, seconds):
    """(name of the mode, {column: median µs}) of each mode."""
    import torch

    import rnnfast
    import rnnfast.torch
    from rnnfast._bench import turns

    theirs, ours, layer = (getattr(home, cell)(I, H) for home in (torch.nn, rnnfast.torch, rnnfast))
    ours.load_state_dict(theirs.state_dict())
    layer.load_state_dict(theirs.state_dict())
    x, dy = torch.randn(T, B, I), torch.randn(T, B, H)
    calls = [numpy_calls(layer, x.numpy(), dy.numpy())]
    calls += [torch_calls(m, list(like.parameters()), x, dy)
              for m, like in ((ours, ours), (theirs, theirs), (empty_module(theirs, x), theirs))]

    def medians(k):
        columns = dict(zip(COLUMNS, [c[k] for c in calls], strict=True))
        return {name: median * 1e6 for name, (_, median) in turns(columns, seconds).items()}

    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            yield mode.__name__, medians(0)
    yield "forward", medians(1)
    yield "forward and backward", medians(2)


def main():
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=0.3, help="for each cell of the table")
    parser.add_argument("--size", type=int, nargs=4, default=(4, 1, 8, 8), metavar=tuple("TBIH"))
    args = parser.parse_args()
    for name in ("OMP", "OPENBLAS", "MKL", "RNNFAST"):
        os.environ[f"{name}_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    print(f"T x B x I x H = {' x '.join(map(str, args.size))}, float32; µs a call\n")
    print(f"| | {' | '.join(COLUMNS)} | overhead | without the empty module |")
    print("|---|" + "---:|" * 6)
    for cell in CELLS:
        for mode, times in measure(cell, *args.size, args.seconds):
            over = times["rnnfast.torch"] - times["NumPy API"]
            print(f"| {cell}, {mode} | {' | '.join(f'{t:.1f}' for t in times.values())} "
                  f"| {over:+.1f} | {over - times['empty module']:+.1f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
