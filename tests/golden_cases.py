"""What the golden files hold: the cases, and their inputs, drawn again from a seed.

Shared by tools/make_golden.py, which needs PyTorch, and tests/test_golden.py, which does not.
All inputs are numbers that float32 holds exactly, so both dtypes can be judged by one file.
"""

from itertools import product

import numpy as np

from .pairs import all_pairs

T, B, I, H = 4, 3, 2, 3
LENGTHS = np.array([2, 4, 1])  # neither sorted nor all full

NETWORKS = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}, 1),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}, 1),
    "lstm": ("LSTM", {}, 2),
    "gru": ("GRU", {}, 1),
}  #: name -> (class, keywords, states)
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


def draw(rng, *shape, low=-1.0, high=1.0):
    """Uniform numbers in float64 with the precision of float32."""
    return (low + (high - low) * rng.random(shape)).astype(np.float32).astype(np.float64)


def network_cases(kind):
    """Every combination of the arguments that torch.nn has too."""
    factors = {"num_layers": [1, 2, 3], "bidirectional": [False, True], "bias": [False, True],
               "batch_first": [False, True], "ragged": [False, True],
               "proj_size": [0, 2] if kind == "lstm" else [0]}  # fmt: skip
    return [dict(zip(factors, row, strict=True)) for row in product(*factors.values())]


def network_shapes(kind, case):
    """Parameter shapes by torch.nn's names, in torch.nn's order."""
    name, _, _ = NETWORKS[kind]
    directions, P = 1 + case["bidirectional"], case["proj_size"] or H
    shapes = {}
    for layer in range(case["num_layers"]):
        for suffix in [f"_l{layer}", f"_l{layer}_reverse"][:directions]:
            rows = GATES[name] * H
            shapes["weight_ih" + suffix] = (rows, P * directions if layer else I)
            shapes["weight_hh" + suffix] = (rows, P)
            if case["bias"]:
                shapes |= {"bias_ih" + suffix: (rows,), "bias_hh" + suffix: (rows,)}
            if case["proj_size"]:
                shapes["weight_hr" + suffix] = (P, H)
    return shapes


def network_inputs(kind, index, case):
    """x, states, what the outputs are multiplied by to give E, and the parameters, by name."""
    rng = np.random.default_rng([list(NETWORKS).index(kind), index])
    P, D = case["proj_size"] or H, 1 + case["bidirectional"]
    time_batch = (B, T) if case["batch_first"] else (T, B)
    state = (case["num_layers"] * D, B)
    shapes = {"x": (*time_batch, I), "h0": (*state, P), "c0": (*state, H),
              "dy": (*time_batch, D * P), "dh_n": (*state, P), "dc_n": (*state, H)}  # fmt: skip
    inputs = {name: draw(rng, *shape) for name, shape in shapes.items()}
    inputs["params"] = {n: draw(rng, *s) for n, s in network_shapes(kind, case).items()}
    return inputs


# ---- variants that torch.nn does not have, written out in torch by the script --------------------

VARIANTS = {
    "lstm": {"gate": ["sigmoid", "hard_sigmoid", "hard_sigmoid_onnx"], "coupled": [False, True],
             "peephole": [False, True], "proj_size": [0, 2], "layer_norm": [False, True],
             "cell_clip": [0.0, 0.3], "bias": [True, False]},
    "gru": {"gate": ["sigmoid", "hard_sigmoid", "hard_sigmoid_onnx"],
            "kind": ["after", "before", "norm"], "bias": [True, False]},
}  # fmt: skip


def variant_cases(cell):
    return all_pairs(VARIANTS[cell])


def variant_inputs(cell, index, case):
    """Inputs of one layer and direction, dense; parameters by rnnfast's names."""
    rng = np.random.default_rng([10, list(VARIANTS).index(cell), index])
    P, G = case.get("proj_size") or H, 3 * H if cell == "gru" or case["coupled"] else 4 * H
    shapes = {"x": (T, B, I), "h0": (1, B, P), "c0": (1, B, H), "dy": (T, B, P),
              "dh_n": (1, B, P), "dc_n": (1, B, H)}  # fmt: skip
    inputs = {name: draw(rng, *shape) for name, shape in shapes.items()}
    params = {"weight_ih": (G, I), "weight_hh": (G, P)}
    if case["bias"]:
        params |= {"bias_ih": (G,), "bias_hh": (G,)}
    if P != H:
        params["weight_hr"] = (P, H)
    if case.get("peephole"):
        params["peephole"] = (3, H)
    if case.get("layer_norm") or case.get("kind") == "norm":
        params |= {"gain_ih": (G,), "gain_hh": (G,)}
        if cell == "lstm":
            params |= {"gain_c": (H,), "bias_c": (H,)}
    inputs["params"] = {f"{n}_l0": draw(rng, *s) for n, s in params.items()}
    return inputs


# ---- the rest ------------------------------------------------------------------------------------

CELLS = {
    "rnn_tanh": ("RNNCell", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNNCell", {"nonlinearity": "relu"}),
    "lstm": ("LSTMCell", {}),
    "gru": ("GRUCell", {}),
}


def cell_inputs(kind, bias):
    """Inputs of one step."""
    rng = np.random.default_rng([20, list(CELLS).index(kind), bias])
    rows = GATES[CELLS[kind][0].removesuffix("Cell")] * H
    params = {"weight_ih": (rows, I), "weight_hh": (rows, H)}
    if bias:
        params |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    names = ("h0", "c0", "dh", "dc")
    return ({"x": draw(rng, B, I)} | {n: draw(rng, B, H) for n in names}
            | {"params": {n: draw(rng, *s) for n, s in params.items()}})  # fmt: skip


REDUCTIONS = ["mean", "sum", "none"]
SOFTMAX_CASES = [
    {"reduction": r, "smoothing": s, "weighted": w, "ignore_index": i}
    for r, s, w, i in product(REDUCTIONS, [0.0, 0.2], [False, True], [-100, 1])
    if not (s and w)  # torch weights the smoothed classes too; ours is a weight per row
]


def softmax_inputs():
    """(logits (4, 3, 5), targets with -100 among them, a weight for each class)."""
    rng = np.random.default_rng(30)
    logits, classes = draw(rng, 4, 3, 5, low=-6, high=6), draw(rng, 5, low=0.25, high=2)
    targets = np.array([[0, 1, 2], [1, 4, -100], [3, -100, 1], [2, 2, 4]])
    return logits, targets, classes


def sigmoid_inputs():
    """(logits (6, 4), some of them large; targets in [0, 1])."""
    rng = np.random.default_rng(31)
    logits = draw(rng, 6, 4, low=-5, high=5)
    logits[0] = [-200, 200, -30, 30]
    return logits, draw(rng, 6, 4, low=0, high=1)


def embedding_inputs():
    """(table, indices with repetitions, gradient)."""
    rng = np.random.default_rng(32)
    return draw(rng, 7, 3), np.array([[1, 1, 6], [0, 1, 3]]), draw(rng, 2, 3, 3)


def layer_norm_inputs():
    """(x, gain, bias, dy)."""
    rng = np.random.default_rng(33)
    return draw(rng, 5, 7), draw(rng, 7), draw(rng, 7), draw(rng, 5, 7)


CLIP_LIMITS = [0.5, 3.0, 100.0]


def clip_inputs():
    rng = np.random.default_rng(34)
    return [draw(rng, 3, 4, low=-2, high=2), draw(rng, 5, low=-2, high=2)]


OPTIMISERS = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd_decay": ("SGD", {"lr": 0.1, "weight_decay": 0.2}),
    "sgd_momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    "sgd_nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": ("Adam", {"lr": 0.05}),
    "adam_amsgrad": ("Adam", {"lr": 0.05, "betas": (0.7, 0.6), "amsgrad": True, "eps": 1e-3}),
    "adam_decay": ("Adam", {"lr": 0.05, "weight_decay": 0.3}),
    "adamw": ("AdamW", {"lr": 0.05, "weight_decay": 0.3}),
    "adamw_amsgrad": ("AdamW", {"lr": 0.05, "betas": (0.5, 0.5), "amsgrad": True}),
    "rmsprop": ("RMSprop", {"lr": 0.05}),
    "rmsprop_momentum": ("RMSprop", {"lr": 0.05, "alpha": 0.9, "momentum": 0.8,
                                     "weight_decay": 0.1, "eps": 1e-2}),
    "adagrad": ("Adagrad", {"lr": 0.1}),
    "adagrad_decay": ("Adagrad", {"lr": 0.1, "weight_decay": 0.2, "eps": 1e-3}),
}  # fmt: skip
OPTIMISER_STEPS = 8


def optimiser_inputs():
    """({name: parameter}, [{name: gradient} of each step])."""
    rng = np.random.default_rng(35)
    shapes = {"w": (3, 2), "b": (4,)}
    params = {n: draw(rng, *s) for n, s in shapes.items()}
    return params, [{n: draw(rng, *s) for n, s in shapes.items()} for _ in range(OPTIMISER_STEPS)]


def fingerprint(inputs):
    """A number that tells whether inputs were drawn alike: the sum of all their elements."""
    if isinstance(inputs, dict):
        inputs = inputs.values()
    if isinstance(inputs, np.ndarray):
        return float(inputs.sum(dtype=np.float64))
    return sum(fingerprint(a) for a in inputs)


def pack(inputs, arrays):
    """One vector: the fingerprint of the inputs, then all arrays."""
    return np.concatenate([[fingerprint(inputs)], *(np.ravel(a) for a in arrays)])


def unpack(inputs, vector, shapes):
    """The arrays of these shapes out of `pack`'s vector."""
    np.testing.assert_allclose(vector[0], fingerprint(inputs), rtol=1e-9,
                               err_msg="the inputs were drawn differently")  # fmt: skip
    arrays, at = [], 1
    for shape in shapes:
        size = int(np.prod(shape))
        arrays.append(vector[at : at + size].reshape(shape))
        at += size
    assert at == len(vector)
    return arrays
