"""One step of each optimiser on one array, in place: twins of ``rnnfast._optim``."""

import numpy as np

from rnnfast.reference.arithmetic import PLAIN


def sgd_step(g, p, buf, lr, momentum, keep, decay, nesterov, *, arithmetic=PLAIN):
    """d = g + decay p; buf = momentum buf + keep d; p -= lr (buf, or d + momentum buf if nesterov).

    buf None: p -= lr d. `keep` is 1 at the first step and 1 - dampening later.
    """
    ar, real, x = arithmetic, p.dtype.type, arithmetic.array(p)
    d = ar.fma(real(decay), x, ar.array(g))
    if buf is not None:
        v = ar.fma(real(momentum), ar.array(buf), real(keep) * d)
        buf[...] = v
        d = ar.fma(real(momentum), v, d) if nesterov else v
    p[...] = ar.fma(-real(lr), d, x)


def adam_step(g, p, m, v, vmax, step, beta1, beta2, root, eps, decay, shrink, *, arithmetic=PLAIN):
    """Adam (Kingma and Ba, https://arxiv.org/abs/1412.6980) with bias correction folded into
    step = lr / (1 - beta1^t) and root = sqrt(1 - beta2^t).

    decay is added to the gradient (L2); shrink multiplies p first (AdamW, Loshchilov and Hutter,
    https://arxiv.org/abs/1711.05101); vmax, where given, keeps the largest v (AMSGrad).
    """
    ar, real, x = arithmetic, p.dtype.type, arithmetic.array(p)
    d = ar.fma(real(decay), x, ar.array(g))
    x = real(shrink) * x
    m[...] = ar.fma(real(beta1), ar.array(m), (1 - real(beta1)) * d)
    v_t = ar.fma(real(beta2), ar.array(v), (1 - real(beta2)) * d * d)
    v[...] = v_t
    if vmax is not None:
        v_t = ar.array(np.where(vmax > v_t, vmax, v_t))
        vmax[...] = v_t
    below = np.sqrt(v_t) / real(root) + real(eps)
    p[...] = ar.fma(-real(step), ar.array(m) / below, x)


def rmsprop_step(g, p, v, buf, lr, alpha, eps, decay, momentum, *, arithmetic=PLAIN):
    """v = alpha v + (1 - alpha) d^2; p -= lr d / (sqrt(v) + eps), through a momentum where buf."""
    ar, real, x = arithmetic, p.dtype.type, arithmetic.array(p)
    d = ar.fma(real(decay), x, ar.array(g))
    v_t = ar.fma(real(alpha), ar.array(v), (1 - real(alpha)) * d * d)
    v[...] = v_t
    u = d / (np.sqrt(v_t) + real(eps))
    if buf is not None:
        u = ar.fma(real(momentum), ar.array(buf), u)
        buf[...] = u
    p[...] = ar.fma(-real(lr), u, x)


def adagrad_step(g, p, v, lr, eps, decay, *, arithmetic=PLAIN):
    """v += d^2; p -= lr d / (sqrt(v) + eps) (Duchi, Hazan and Singer, JMLR 12, 2011)."""
    ar, real, x = arithmetic, p.dtype.type, arithmetic.array(p)
    d = ar.fma(real(decay), x, ar.array(g))
    v_t = ar.fma(d, d, ar.array(v))
    v[...] = v_t
    p[...] = ar.fma(-real(lr), d / (np.sqrt(v_t) + real(eps)), x)
