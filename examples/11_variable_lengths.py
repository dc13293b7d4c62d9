"""Sequences of different lengths in one batch: no step is computed for padding, and each result
is that of the sequence alone. Data: Roman numerals, one to twelve letters long; read the value."""

import numpy as np

import rnnfast

SYMBOLS = "IVXLC"
DIGITS = [(100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"),
          (1, "I")]  # fmt: skip


def roman(n):
    text = ""
    for value, letters in DIGITS:
        text, n = text + letters * (n // value), n % value
    return text


numerals = [roman(n) for n in range(1, 400)]
lengths = np.array([len(s) for s in numerals])
x = np.zeros((lengths.max(), len(numerals)), int)  # (T, B) indices for one-hot vectors
for b, s in enumerate(numerals):
    x[: len(s), b] = [SYMBOLS.index(c) for c in s]
value = np.arange(1, 400)[:, None].astype(np.float32) / 100

rng = np.random.default_rng(0)
order = rng.permutation(len(numerals))
seen, unseen = order[:300], order[300:]
model = rnnfast.models.SequenceToOne(rnnfast.GRU(5, 32, seed=0), 1, "linear", seed=0)
adam = rnnfast.optim.Adam(model, lr=0.01)
for step in range(401):
    rows = rng.choice(seen, 64)
    adam.lr = 0.01 * (1 - step / 401)
    adam.zero_grad()
    loss = model.loss_and_grads(x[:, rows], value[rows], lengths[rows])
    rnnfast.clip_grad_norm(model.grads, 1.0)
    adam.step()

guess = 100 * model(x[:, unseen], lengths[unseen])[:, 0]
for b, g in list(zip(unseen, guess, strict=True))[:5]:
    print(f"{numerals[b]:>12} = {b + 1:3}, read as {g:6.1f}")
print(f"mean error on {len(unseen)} numerals never seen: {abs(guess - unseen - 1).mean():.2f}")

alone = np.concatenate([100 * model(x[: lengths[b], b : b + 1])[:, 0] for b in unseen])
print(f"largest difference from reading each alone: {abs(alone - guess).max():.1e}")
print(f"steps computed: {lengths.sum()}, with padding they would be {x.size}")
