"""Feed-forward network: sigmoid hidden and output units, E = 1/2 sum (o - d)^2, back-propagated
deltas and plain gradient descent. Data: is the number of ones among four bits odd?"""

from itertools import product

import numpy as np

import rnnfast

x = np.array(list(product([0, 1], repeat=4)), np.float32)
parity = x.sum(axis=1, keepdims=True) % 2

net = rnnfast.models.FeedForward([4, 8, 1], hidden="sigmoid", output="sigmoid", seed=1)
sgd = rnnfast.optim.SGD(net, lr=0.5, momentum=0.9)
for epoch in range(3001):
    sgd.zero_grad()
    error = net.loss_and_grads(x, parity)
    sgd.step()
    if epoch % 500 == 0:
        print(f"epoch {epoch:4}  E = {error:.4f}")

for bits, o in zip(x.astype(int), net(x), strict=True):
    print(*bits, f"-> {o[0]:.3f}")
print("wrong:", int((net(x).round() != parity).sum()), "of", len(x))

# The same network with a softmax output: one unit per class, cross-entropy.
net = rnnfast.models.FeedForward([4, 16, 5], hidden="tanh", output="softmax", seed=0)
adam = rnnfast.optim.Adam(net, lr=0.02)
ones = x.sum(axis=1).astype(int)  # class: how many ones
for _ in range(300):
    adam.zero_grad()
    net.loss_and_grads(x, ones)
    adam.step()
print("wrong classes:", int((net(x).argmax(axis=1) != ones).sum()), "of", len(x))
