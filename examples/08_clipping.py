"""Gradient clipping. Where the recurrence is expanding, gradients grow by a factor per time step;
one step along such a gradient throws everything away that was learnt (Pascanu et al. 2013).
Data (synthetic): the running sum of small numbers, by ReLU networks that start as expanding."""

import math

import numpy as np

import rnnfast

T, B, RUNS = 30, 16, 5


def train(clip, seed):
    """(largest gradient norm, mean of the last losses) of plain gradient descent."""
    rng = np.random.default_rng(seed)
    layer = rnnfast.RNN(1, 16, nonlinearity="relu", seed=seed)
    layer.params["weight_hh_l0"][:] = 1.3 * np.linalg.qr(rng.standard_normal((16, 16)))[0]
    model = rnnfast.models.SequenceTagger(layer, 1, "linear", seed=seed)
    sgd = rnnfast.optim.SGD(model, lr=0.1)
    norms, losses = [], []
    for _ in range(300):
        x = rng.uniform(-0.5, 0.5, (T, B, 1)).astype(np.float32)
        sgd.zero_grad()
        loss, _ = model.loss_and_grads(x, np.cumsum(x, axis=0))
        if clip == "norm":
            norm = rnnfast.clip_grad_norm(model.grads, 1.0)
        else:
            norm = rnnfast.clip_grad_norm(model.grads, math.inf, nonfinite="skip")  # measures
            if clip == "value":
                rnnfast.clip_grad_value(model.grads, 0.1)
        norms.append(norm)
        losses.append(loss)
        if not math.isfinite(norm):
            break
        sgd.step()
    return max(norms), float(np.mean(losses[-20:]))


zero = (T + 1) / 48
print(f"answering 0 all the time has loss {zero:.3f}; {RUNS} runs each, clipping by")
for clip in ("nothing", "value", "norm"):
    norms, losses = zip(*(train(clip, seed) for seed in range(RUNS)), strict=True)
    print(f"  {clip + ':':8} largest norm {max(norms):.3g}, losses", *(f"{x:.3f}" for x in losses))
    print(f"           median loss: {np.median(np.nan_to_num(losses, nan=np.inf)):.3f}")
