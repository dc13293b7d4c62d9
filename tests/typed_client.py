"""What a typed program would write: `make lint` has mypy read it, with the package's stubs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import rnnfast
from rnnfast.charlm import CharLM

x: NDArray[np.float32] = np.zeros((5, 2, 3), np.float32)

lstm = rnnfast.LSTM(3, 4, num_layers=2, bidirectional=True, dtype="float64", seed=0)
y, (h, c) = lstm(x, lengths=[5, 2])
y, (h, c), tape = lstm.forward(x, (h, c))
size: int = tape.nbytes
dx, (dh, dc) = lstm.backward(tape, y, (h, c))

gru = rnnfast.GRU(3, 4, reset_after=False)
out, state = gru(x)
print(state.shape)
stream = gru.stream(batch_size=2)
step: NDArray[Any] = stream.step(x[0])

linear = rnnfast.Linear(4, 2)
logits, kept = linear.forward(out)
loss, dlogits = rnnfast.losses.softmax_cross_entropy(logits, np.zeros((5, 2), int))
print(loss + 1.0)
each, _ = rnnfast.losses.softmax_cross_entropy(logits, np.zeros((5, 2), int), reduction="none")
print(each.shape)
norm: float = rnnfast.clip_grad_norm([linear.grads, gru.grads], 1.0)
adam = rnnfast.optim.Adam([linear, gru], lr=1e-3)
adam.step()
text: str = CharLM("abc", hidden=4).sample(3)
rnnfast.set_engine("blas")
