"""An output at every step that needs what came before and what comes after: deep bidirectional
RNN and LSTM, each layer reading both directions of the one below.
Data (synthetic): rows of numbers; at each place, is the sum of all before it larger than the sum
of all after it? The forward direction alone can only guess what comes."""

import numpy as np

import rnnfast

T, B = 12, 32
rng = np.random.default_rng(0)


def sums(B):
    x = rng.standard_normal((T, B, 1))
    before = np.cumsum(x, axis=0) - x
    after = x.sum(axis=0) - x - before
    return x.astype(np.float32), (before > after)[..., 0].astype(int)


layers = {
    "LSTM, forwards only": rnnfast.LSTM(1, 24, seed=0),
    "LSTM, both directions": rnnfast.LSTM(1, 16, bidirectional=True, seed=0),
    "RNN, both directions, 2 layers": rnnfast.RNN(1, 16, 2, bidirectional=True, seed=0),
    "LSTM, both directions, 2 layers": rnnfast.LSTM(1, 16, 2, bidirectional=True, seed=0),
}
for name, layer in layers.items():
    model = rnnfast.models.SequenceTagger(layer, 2, seed=0)
    adam = rnnfast.optim.Adam(model, lr=0.01)
    for _ in range(200):
        x, y = sums(B)
        adam.zero_grad()
        model.loss_and_grads(x, y)
        rnnfast.clip_grad_norm(model.grads, 1.0)
        adam.step()
    x, y = sums(500)
    right = (model(x)[0].argmax(axis=2) == y).mean()
    print(f"{name + ':':33} right at {100 * right:.1f} % of places, {model.num_parameters} weights")
