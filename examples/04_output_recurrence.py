"""Recurrence through the output alone: h_t = tanh(U x_t + W o_{t-1} + b), o_t = V h_t + c.
With teacher forcing the true y_{t-1} takes the place of o_{t-1}: the steps decouple and are one
batch. In use the network runs freely and has to live with its own errors.
Data (synthetic): the plant y_t = y_{t-1} / (1 + y_{t-1}^2) + x_t^3 of Narendra and Parthasarathy
(1990)."""

import numpy as np

import rnnfast

rng = np.random.default_rng(0)


def plant(T, B):
    x = rng.uniform(-1, 1, (T, B, 1))
    y = np.zeros((T + 1, B, 1))
    for t in range(T):
        y[t + 1] = y[t] / (1 + y[t] ** 2) + x[t] ** 3
    return x.astype(np.float32), y[1:].astype(np.float32)


def free_error(net):
    """Root mean square of o - y over a fresh run in which each output feeds the next step."""
    x, y = plant(200, 16)
    o, _ = net(x)
    return float(np.sqrt(((o - y) ** 2).mean()))


net = rnnfast.models.OutputRecurrent(1, 32, 1, seed=0)
print(f"untrained, running freely:      {free_error(net):.4f}")
for teacher_forcing, steps, lr in ((True, 600, 0.01), (False, 200, 0.003)):
    adam = rnnfast.optim.Adam(net, lr=lr)
    for _ in range(steps):
        x, y = plant(30, 32)
        adam.zero_grad()
        net.loss_and_grads(x, y, teacher_forcing=teacher_forcing)
        rnnfast.clip_grad_norm(net.grads, 1.0)
        adam.step()
    how = "teacher forcing:" if teacher_forcing else "BPTT through o:"
    print(f"freely, after {how}  {free_error(net):.4f}")
print(f"standard deviation of y:        {plant(200, 16)[1].std():.4f}")
