"""Swap the LSTM of a PyTorch model in the middle of its training: parameters, optimiser and loss go
on, only the time changes (each library on the threads it takes by itself). Data: the next character
of Python's own help pages."""

import time
from pydoc_data.topics import topics

import torch
from torch import nn

import rnnfast.torch

text = "".join(topics[key] for key in sorted(topics))
text = "".join(c if c.isascii() else "?" for c in text)[:200_000]
ids = torch.tensor(list(text.encode("ascii")))
rows = ids[: len(ids) // 64 * 64].reshape(64, -1).T  # (time, 64 readers side by side)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(128, 32)
        self.rnn = nn.LSTM(32, 128)
        self.head = nn.Linear(128, 128)

    def forward(self, ids):
        return self.head(self.rnn(self.embed(ids))[0])


def train(windows):
    """(mean loss in bits per character, seconds)."""
    total, start = 0.0, time.perf_counter()
    for w in windows:
        x = rows[50 * w : 50 * w + 51]
        loss = nn.functional.cross_entropy(model(x[:-1]).flatten(0, 1), x[1:].flatten())
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        total += loss.item() / 0.693147 / len(windows)
    return total, time.perf_counter() - start


torch.manual_seed(0)
model = Reader()
adam = torch.optim.Adam(model.parameters(), lr=0.005)
print("torch:   loss {:.2f} bits, {:.2f} s".format(*train(range(30))))

with torch.no_grad():
    before = model(rows[:200])
    rnnfast.torch.accelerate(model)
    print(f"largest difference of the outputs: {(model(rows[:200]) - before).abs().max():.1e}")
print("rnnfast: loss {:.2f} bits, {:.2f} s".format(*train(range(30, 60))))
