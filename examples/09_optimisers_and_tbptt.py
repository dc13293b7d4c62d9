"""One long sequence, window by window: truncated back-propagation through time carries the state,
not the gradients. With every optimiser, and with windows of several lengths.
Data (synthetic): a bit stream; the target is the bit of five steps ago."""

import numpy as np

import rnnfast
from rnnfast import optim, training

T, B, DELAY = 1000, 16, 5
bits = np.random.default_rng(0).integers(0, 2, (T, B))
target = np.roll(bits, DELAY, axis=0)
target[:DELAY] = -100  # nothing to remember yet: counts for nothing


def train(optimiser, k1, k2, **options):
    """Mean loss over the last 300 steps of one pass, in bits: 1 is guessing."""
    layer = rnnfast.GRU(2, 16, seed=0)
    model = rnnfast.models.SequenceTagger(layer, 2, seed=0)
    opt = optimiser(model, **options)
    losses = []
    for window in training.tbptt(model, bits, target, k1, k2):
        rnnfast.clip_grad_norm(model.grads, 1.0)
        opt.step()
        opt.zero_grad()
        losses += [window.loss / np.log(2)] * (window.stop - window.start)
    return np.mean(losses[-300:])


print("Adam, k1 = 5:")
for k2 in (5, 15):
    print(f"  k2 = {k2:2}: {train(optim.Adam, 5, k2, lr=0.02):.3f} bits")

print("Every optimiser, k1 = 5, k2 = 15:")
for optimiser, options in (
    (optim.SGD, {"lr": 2.0}),
    (optim.SGD, {"lr": 0.5, "momentum": 0.9}),
    (optim.Adam, {"lr": 0.02}),
    (optim.AdamW, {"lr": 0.02}),
    (optim.RMSprop, {"lr": 0.01}),
    (optim.Adagrad, {"lr": 0.1}),
):
    loss = train(optimiser, 5, 15, **options)
    print(f"  {optimiser.__name__:8} {options!s:32} {loss:.3f} bits")
