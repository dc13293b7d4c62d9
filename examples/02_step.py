"""An object that is fed one measurement at a time and keeps its hidden state between the calls:
h = tanh(W_hh h + W_xh x + b), y = W_hy h + c.
Data (synthetic): a noisy sum of two waves; the network forecasts the next value."""

from itertools import pairwise

import numpy as np

import rnnfast

rng = np.random.default_rng(0)


def waves(T, B):
    """(T, B, 1): different phases, the same two frequencies, a little noise."""
    t, phase = np.arange(T)[:, None], rng.uniform(0, 2 * np.pi, (2, B))
    x = np.sin(0.3 * t + phase[0]) + 0.5 * np.sin(0.11 * t + phase[1])
    return (x + 0.02 * rng.standard_normal((T, B)))[..., None].astype(np.float32)


net = rnnfast.models.StepRNN(1, 24, 1, seed=0)
adam = rnnfast.optim.Adam(net, lr=0.01)
for step in range(301):
    x = waves(80, 16)
    adam.zero_grad()
    loss, _ = net.loss_and_grads(x[:-1], x[1:])
    rnnfast.clip_grad_norm(net.grads, 1.0)
    adam.step()
    if step % 100 == 0:
        print(f"step {step:3}  mean of 1/2 (y - target)^2 = {loss:.4f}")

# In use: values arrive one by one.
signal, errors = waves(300, 1)[:, 0], []
net.reset()
for now, following in pairwise(signal):
    forecast = net.step(now)
    errors.append(float(forecast[0] - following[0]))
settled = np.array(errors[50:])
naive = np.diff(signal[50:, 0])
print(f"error of 'as it is now': {np.sqrt((naive**2).mean()):.3f}")
print(f"error of the forecast:   {np.sqrt((settled**2).mean()):.3f}")
