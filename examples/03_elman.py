"""Elman network: a_t = b + W h_{t-1} + U x_t, h_t = tanh a_t, o_t = c + V h_t, softmax.
Data (synthetic) after Elman's 1990 paper: consonants in random order, each followed by its own
vowels, b -> ba, d -> dii, g -> guuu. Which consonant comes next cannot be known; that the vowels
come, and how many, can."""

import numpy as np

import rnnfast

WORDS, LETTERS = ["ba", "dii", "guuu"], "bdgaiu"
rng = np.random.default_rng(0)


def text(n):
    return "".join(rng.choice(WORDS, n))


def windows(text, T):
    """Letters as (T, B) indices, and the letter after each."""
    ids = np.array([LETTERS.index(c) for c in text])
    B = (len(ids) - 1) // T
    return ids[: B * T].reshape(B, T).T, ids[1 : B * T + 1].reshape(B, T).T


net = rnnfast.models.Elman(len(LETTERS), 20, len(LETTERS), reduction="mean", seed=0)
adam = rnnfast.optim.Adam(net, lr=0.01)
x, y = windows(text(1000), 25)
for epoch in range(121):
    adam.zero_grad()
    loss, _ = net.loss_and_grads(x, y)
    adam.step()
    if epoch % 30 == 0:
        print(f"epoch {epoch:3}  mean negative log-likelihood = {loss:.3f}")

fresh = text(200)
x, y = windows(fresh, len(fresh) - 1)
p = net(x)[0][:, 0]
surprise = -np.log(p[np.arange(len(p)), y[:, 0]])
print("surprise at each letter of", fresh[10:26])
for letter, s in zip(fresh[10:26], surprise[9:25], strict=True):
    print(f"  {letter}  {s:5.2f}  {'#' * round(20 * s)}")
vowel = y[:, 0] >= 3
print(f"mean surprise at a consonant: {surprise[~vowel].mean():.3f} (ln 3 = {np.log(3):.3f})")
print(f"mean surprise at a vowel:     {surprise[vowel].mean():.3f}")
