"""A whole sequence to one output, at its end.
Regressor: the adding problem of Hochreiter and Schmidhuber (1997), synthetic: of a row of random
numbers two are marked; give their sum. Classifier: which of four symbols stood first?"""

import numpy as np

import rnnfast

rng = np.random.default_rng(0)


def adding(T, B):
    """x (T, B, 2): numbers and marks; target (B, 1)."""
    numbers, marks = rng.random((T, B)), np.zeros((T, B))
    for b in range(B):
        marks[rng.choice(T, 2, replace=False), b] = 1
    x = np.stack([numbers, marks], axis=2)
    return x.astype(np.float32), (numbers * marks).sum(axis=0)[:, None].astype(np.float32)


layer = rnnfast.GRU(2, 24, seed=0)
model = rnnfast.models.SequenceToOne(layer, 1, output="linear", seed=0)
adam = rnnfast.optim.Adam(model, lr=0.01)
for step in range(301):
    x, target = adding(15, 48)
    adam.zero_grad()
    loss = model.loss_and_grads(x, target)
    rnnfast.clip_grad_norm(model.grads, 1.0)
    adam.step()
    if step % 100 == 0:
        print(f"step {step:3}  mean square error = {2 * loss:.4f}")
x, target = adding(15, 1000)
print(f"always answering 1: mean square error {((1 - target) ** 2).mean():.4f}")
print(f"regressor: mean square error {((model(x) - target) ** 2).mean():.4f}")

model = rnnfast.models.SequenceToOne(rnnfast.LSTM(4, 24, forget_bias=2.0, seed=0), 4, seed=0)
adam = rnnfast.optim.Adam(model, lr=0.01)
for _ in range(200):
    symbols = rng.integers(0, 4, (10, 48))  # integers stand for one-hot vectors
    adam.zero_grad()
    model.loss_and_grads(symbols, symbols[0])
    adam.step()
symbols = rng.integers(0, 4, (10, 1000))
right = (model(symbols).argmax(axis=1) == symbols[0]).mean()
print(f"classifier: right for {100 * right:.1f} % of sequences")
