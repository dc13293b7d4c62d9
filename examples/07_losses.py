"""Three losses and their gradients. Why cross-entropy for a sigmoid output: where the unit is
saturated on the wrong side, the sigmoid's derivative takes the gradient of the quadratic error
away; in the cross-entropy it cancels and dE/dz = o - d is left."""

import numpy as np

import rnnfast
from rnnfast import losses

print("one sigmoid unit, d = 1:   z      o    quadratic dE/dz   cross-entropy dE/dz")
for z in (-10.0, -4.0, 0.0, 4.0):
    z = np.array([[z]])
    d = np.ones_like(z)
    quadratic = rnnfast.models.Output("sigmoid", "quadratic")
    entropy = rnnfast.models.Output("sigmoid", "cross_entropy")
    print(f"{z[0, 0]:29.0f} {quadratic(z)[0, 0]:6.3f} {quadratic.loss(z, d)[1][0, 0]:15.6f} "
          f"{entropy.loss(z, d)[1][0, 0]:18.6f}")  # fmt: skip

z = np.array([[-1000.0]])  # 1 - sigmoid(-1000) and its logarithm are out of reach, E is not
print("E at z = -1000, computed from z:", losses.sigmoid_cross_entropy(z, np.ones_like(z))[0])

z = np.array([[2.0, 1.0, 0.1]])
loss, dz = losses.softmax_cross_entropy(z, np.array([2]))
print("softmax", losses.softmax(z).round(3)[0], " E", round(loss, 3), " dE/dz", dz.round(3)[0])
loss, dy = losses.quadratic_error(z, np.array([[2.0, 0.0, 0.0]]))
print("linear ", z[0], " E", round(loss, 3), " dE/dy", dy.round(3)[0])

# Exclusive or, from weights that saturate the output on the wrong side.
x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
d = np.array([[0], [1], [1], [0]], np.float32)
for loss in ("quadratic", "cross_entropy"):
    net = rnnfast.models.FeedForward([2, 8, 1], "tanh", "sigmoid", loss, seed=0)
    net.params["layer1.bias"] -= 12
    sgd = rnnfast.optim.SGD(net, lr=0.5)
    for _ in range(1000):
        sgd.zero_grad()
        net.loss_and_grads(x, d)
        sgd.step()
    print(f"{loss}: largest |o - d| after 1000 steps: {abs(net(x) - d).max():.4f}")
