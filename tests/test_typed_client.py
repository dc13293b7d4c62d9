"""What a typed program would write. It runs here, and `make lint` has mypy read it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import rnnfast
from rnnfast.charlm import CharLM


def test_a_typed_program_runs() -> None:
    x: NDArray[np.float32] = np.zeros((5, 2, 3), np.float32)
    lstm = rnnfast.LSTM(3, 4, num_layers=2, bidirectional=True, seed=0)
    y, (h, c) = lstm(x, lengths=[5, 2])
    y, (h, c), tape = lstm.forward(x, (h, c))
    size: int = tape.nbytes
    dx, (dh, dc) = lstm.backward(tape, y, (h, c))
    assert size > 0 and dx is not None and dh.shape == dc.shape == h.shape

    W, R, bias = rnnfast.convert.torch_to_onnx_lstm(
        lstm.params["weight_ih_l0"], lstm.params["weight_hh_l0"]
    )
    assert W.shape == (1, 16, 3) and R.shape == (1, 16, 4) and bias is None

    gru = rnnfast.GRU(3, 4, reset_after=False)
    out, state = gru(x)
    stream = gru.stream(batch_size=2)
    step: NDArray[Any] = stream.step(x[0])
    assert step.shape == state[0].shape

    linear = rnnfast.Linear(4, 2)
    logits, kept = linear.forward(out)
    targets = np.zeros((5, 2), int)
    loss, dlogits = rnnfast.losses.softmax_cross_entropy(logits, targets)
    each, _ = rnnfast.losses.softmax_cross_entropy(logits, targets, reduction="none")
    assert abs(loss - each.mean()) < 1e-6
    linear.backward(kept, dlogits)
    norm: float = rnnfast.clip_grad_norm([linear.grads, gru.grads], 1.0)
    rnnfast.optim.Adam([linear, gru], lr=1e-3).step()
    text: str = CharLM("abc", hidden=4).sample(3)
    assert norm > 0 and len(text) == 3
