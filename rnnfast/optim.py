"""Optimisers: ``step`` moves parameters along their gradients, in place."""

import math

import numpy as np

from rnnfast import _engine


class Optimizer:
    """Parameters with their gradients and per-parameter state.

    Parameters
    ----------
    modules : Module or sequence of Modules
        Anything with dictionaries ``params`` and ``grads`` of the same keys.
    lr : float
        Learning rate; may be changed between steps.
    weight_decay : float
        Added to the gradient as weight_decay * p.

    Attributes
    ----------
    state : dict of str to dict of str to ndarray
        By parameter, "0.weight_ih_l0" for the first module and so on.
    steps : int
        Steps taken.
    """

    slots = ()

    def __init__(self, modules, lr, weight_decay=0.0):
        if not isinstance(modules, list | tuple):
            modules = [modules]
        if not lr >= 0 or not weight_decay >= 0:
            raise ValueError(f"lr and weight_decay must not be negative, got {lr}, {weight_decay}")
        self.modules, self.lr, self.weight_decay, self.steps = list(modules), lr, weight_decay, 0
        self.state = {
            name: {slot: np.zeros_like(p) for slot in self.slots} for name, p, _ in self._named()
        }

    def _named(self):
        for k, module in enumerate(self.modules):
            for name, p in module.params.items():
                yield f"{k}.{name}", p, module.grads[name]

    def zero_grad(self):
        """Set every gradient to zero."""
        for module in self.modules:
            module.zero_grad()

    def step(self):
        """Move every parameter once."""
        self.steps += 1
        functions = _engine.functions()
        for name, p, g in self._named():
            self._update(functions, g, p, **self.state[name])

    def state_dict(self):
        """Flat dict of arrays that `load_state_dict` takes: steps, lr and all slots."""
        flat = {f"{n}.{s}": a.copy() for n, slots in self.state.items() for s, a in slots.items()}
        return flat | {"steps": np.array([self.steps], np.int64), "lr": np.array([self.lr])}

    def load_state_dict(self, mapping):
        """Copy what `state_dict` gave; KeyError or ValueError where it does not fit."""
        want = self.state_dict()
        if mapping.keys() != want.keys():
            missing, unknown = want.keys() - mapping.keys(), mapping.keys() - want.keys()
            raise KeyError(f"{type(self).__name__}: missing {sorted(missing)}, "
                           f"unknown {sorted(unknown)}")  # fmt: skip
        for name, a in want.items():
            if np.shape(mapping[name]) != a.shape:
                raise ValueError(f"{name}: expected shape {a.shape}, got {np.shape(mapping[name])}")
        for n, slots in self.state.items():
            for s, a in slots.items():
                a[...] = mapping[f"{n}.{s}"]
        self.steps, self.lr = int(mapping["steps"][0]), float(mapping["lr"][0])


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; torch's update.

    d = g + weight_decay p; buf = momentum buf + (1 - dampening) d (d at the first step);
    p -= lr buf, or lr (d + momentum buf) with nesterov.

    Parameters
    ----------
    modules, lr, weight_decay
        As in `Optimizer`.
    momentum, dampening : float
    nesterov : bool
        Needs momentum > 0 and dampening 0.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> lin = rnnfast.Linear(1, 1, bias=False, seed=0)
    >>> lin.params["weight"][:] = 1; lin.grads["weight"][:] = 2
    >>> rnnfast.optim.SGD(lin, lr=0.25).step()
    >>> float(lin.params["weight"][0, 0])
    0.5
    """

    def __init__(self, modules, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0,
                 nesterov=False):  # fmt: skip
        if nesterov and (momentum <= 0 or dampening):
            raise ValueError("nesterov needs momentum > 0 and dampening = 0")
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov
        self.slots = ("buf",) if momentum else ()
        super().__init__(modules, lr, weight_decay)

    def _update(self, f, g, p, buf=None):
        keep = 1.0 if self.steps == 1 else 1.0 - self.dampening
        f.sgd_step(g, p, buf, self.lr, self.momentum, keep, self.weight_decay, self.nesterov)


class Adam(Optimizer):
    """Adam (Kingma and Ba, https://arxiv.org/abs/1412.6980); torch's update, eps outside the root.

    Parameters
    ----------
    modules, lr, weight_decay
        As in `Optimizer`.
    betas : (float, float)
    eps : float
    amsgrad : bool
        Divide by the largest second moment so far.

    Examples
    --------
    >>> import rnnfast
    >>> lstm = rnnfast.LSTM(2, 3, seed=0)
    >>> opt = rnnfast.optim.Adam(lstm, lr=1e-3)
    >>> opt.zero_grad(); opt.step(); opt.steps
    1
    """

    decoupled = False

    def __init__(self, modules, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
                 amsgrad=False):  # fmt: skip
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise ValueError(f"betas must lie in [0, 1), got {betas}")
        self.betas, self.eps = tuple(betas), eps
        self.slots = ("m", "v", "vmax") if amsgrad else ("m", "v")
        super().__init__(modules, lr, weight_decay)

    def _update(self, f, g, p, m, v, vmax=None):
        # the kernel's betas: 1 - float32(0.999) is off by 1e-5, and so must be the correction
        b1, b2 = (float(p.dtype.type(b)) for b in self.betas)
        step = self.lr / (1 - b1**self.steps)
        root = math.sqrt(1 - b2**self.steps)
        decay, shrink = self.weight_decay, 1.0
        if self.decoupled:
            decay, shrink = 0.0, 1 - self.lr * self.weight_decay
        f.adam_step(g, p, m, v, vmax, step, b1, b2, root, self.eps, decay, shrink)


class AdamW(Adam):
    """Adam with decoupled weight decay p *= 1 - lr weight_decay
    (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101).

    Parameters as in `Adam`; weight_decay is 0.01 by default.
    """

    decoupled = True

    def __init__(self, modules, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2,
                 amsgrad=False):  # fmt: skip
        super().__init__(modules, lr, betas, eps, weight_decay, amsgrad)


class RMSprop(Optimizer):
    """v = alpha v + (1 - alpha) g^2; p -= lr g / (sqrt(v) + eps), through a momentum if asked.

    Tieleman and Hinton (2012). Parameters modules, lr, weight_decay as in `Optimizer`; alpha, eps
    and momentum as in torch.
    """

    def __init__(self, modules, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0):
        self.alpha, self.eps, self.momentum = alpha, eps, momentum
        self.slots = ("v", "buf") if momentum else ("v",)
        super().__init__(modules, lr, weight_decay)

    def _update(self, f, g, p, v, buf=None):
        f.rmsprop_step(g, p, v, buf, self.lr, self.alpha, self.eps, self.weight_decay,
                       self.momentum)  # fmt: skip


class Adagrad(Optimizer):
    """v += g^2; p -= lr g / (sqrt(v) + eps) (Duchi, Hazan and Singer, JMLR 12, 2011).

    Parameters modules, lr, weight_decay as in `Optimizer`; eps as in torch.
    """

    slots = ("v",)

    def __init__(self, modules, lr=1e-2, eps=1e-10, weight_decay=0.0):
        self.eps = eps
        super().__init__(modules, lr, weight_decay)

    def _update(self, f, g, p, v):
        f.adagrad_step(g, p, v, self.lr, self.eps, self.weight_decay)
