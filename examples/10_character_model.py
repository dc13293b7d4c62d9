"""A character-level language model: one-hot characters, an LSTM, softmax; then text drawn from it.
Data: part of the Python reference that every CPython carries. For a real run, `rnnfast train`."""

from pydoc_data.topics import topics

import numpy as np

import rnnfast
from rnnfast.charlm import CharLM

text = "\n".join(topics[k] for k in sorted(topics))[:120_000]
vocabulary = "".join(sorted(set(text)))
model = CharLM(vocabulary, cell="lstm", hidden=96, seed=0)
ids = model.encode(text)
cut = len(ids) * 9 // 10
train, held_out = ids[:cut], ids[cut:]

T, B = 32, 32
streams = train[: len(train) // B * B].reshape(B, -1).T  # B texts side by side
adam = rnnfast.optim.Adam(model, lr=0.01)
state = None
for step in range(151):
    start = step * T % (len(streams) - T)
    window = streams[start : start + T + 1]
    adam.zero_grad()
    loss, state = model.loss_and_grads(window[:-1], window[1:], state)
    rnnfast.clip_grad_norm(model.grads, 1.0)
    adam.step()
    if step % 50 == 0:
        print(f"step {step:3}  {loss / np.log(2):.3f} bits per character")

counts = np.bincount(train, minlength=len(vocabulary)) + 1
unigram = -np.log2(counts / counts.sum())[held_out].mean()
print(f"held-out text, one of {len(vocabulary)} at random: {np.log2(len(vocabulary)):.3f} bits")
print(f"held-out text, by frequency: {unigram:.3f} bits")
print(f"held-out text, the model: {model.evaluate(held_out):.3f} bits")
print("--- drawn at temperature 0.7 ---")
print(model.sample(300, prime="The ", temperature=0.7, seed=1))
