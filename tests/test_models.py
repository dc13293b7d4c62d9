"""Each model against its equations written out in NumPy, and its gradients against differences."""

import copy
import pickle
from itertools import product

import numpy as np
import pytest

import rnnfast
from rnnfast import models

T, B, I, H, O = 5, 3, 4, 6, 3
LENGTHS = np.array([3, 5, 0])
CELLS = {"rnn": rnnfast.RNN, "lstm": rnnfast.LSTM, "gru": rnnfast.GRU}


def layer(cell="rnn", size=I, **options):
    return CELLS[cell](size, H, dtype="float64", seed=1, **options)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def classes(*shape, seed=0, high=O):
    return np.random.default_rng(seed).integers(0, high, shape)


def targets_for(output, *shape):
    """Targets that suit an output function."""
    if output == "softmax":
        return classes(*shape)
    if output == "sigmoid":
        return np.random.default_rng(0).random((*shape, O))
    return draw(*shape, O)


def check_gradients(model, energy, **others):
    """`model.grads`, and gradients of other arrays as pairs (array, gradient), against differences
    of fourth order of energy()."""
    pairs = {name: (p, model.grads[name]) for name, p in model.params.items()} | others
    for name, (p, grad) in pairs.items():
        assert grad.any(), f"{name}: the gradient is zero"
        for at in np.ndindex(p.shape):
            before, f = p[at], []
            for k in (-2, -1, 1, 2):
                p[at] = before + k * 1e-3
                f.append(energy())
            p[at] = before
            want = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * 1e-3)
            assert abs(grad[at] - want) < 1e-9 * max(1, abs(want)), (name, at, grad[at], want)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# ---- 1: feed-forward -----------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", models.REDUCTIONS)
@pytest.mark.parametrize("hidden", models.HIDDEN)
@pytest.mark.parametrize("output, loss", models.LOSSES)
def test_feed_forward_gradients(output, loss, hidden, reduction):
    net = models.FeedForward([I, 5, 4, O], hidden, output, loss, reduction=reduction,
                             dtype="float64", seed=2)  # fmt: skip
    x, d = draw(7, I), targets_for(output, 7)
    net.loss_and_grads(x, d)
    z, tape = net.forward(x)
    twice = copy.deepcopy(net)
    dx = twice.backward(tape, twice.output.loss(z, d)[1])
    check_gradients(net, lambda: net.output.loss(net.forward(x)[0], d)[0], x=(x, dx))


def test_feed_forward_deltas():
    """Sigmoid on both layers, E = 1/2 sum (o - d)^2: the deltas, written out."""
    net = models.FeedForward([I, H, O], dtype="float64", seed=0)
    x, d = draw(4, I), targets_for("sigmoid", 4)
    (W1, b1, W2, b2) = net.params.values()
    h = sigmoid(x @ W1.T + b1)
    o = sigmoid(h @ W2.T + b2)
    delta_o = (o - d) * o * (1 - o)
    delta_h = delta_o @ W2 * h * (1 - h)
    loss = net.loss_and_grads(x, d)
    np.testing.assert_allclose(loss, 0.5 * ((o - d) ** 2).sum(), rtol=1e-14)
    np.testing.assert_allclose(net(x), o, rtol=1e-14)
    want = [delta_h.T @ x, delta_h.sum(axis=0), delta_o.T @ h, delta_o.sum(axis=0)]
    for got, grad in zip(net.grads.values(), want, strict=True):
        np.testing.assert_allclose(got, grad, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("output, f", [("linear", lambda z: z), ("softmax", softmax)])
def test_feed_forward_outputs(output, f):
    net = models.FeedForward([I, H, O], "tanh", output, dtype="float64", seed=0)
    W1, b1, W2, b2 = net.params.values()
    x = draw(2, 4, I)
    np.testing.assert_allclose(net(x), f(np.tanh(x @ W1.T + b1) @ W2.T + b2), rtol=1e-13)


@pytest.mark.parametrize("output", ["linear", "softmax", "sigmoid"])
def test_matched_losses_have_the_gradient_o_minus_d(output):
    """The derivative of the output function cancels against that of its loss."""
    z = draw(7, O) * 5
    target = targets_for(output, 7)
    d = np.eye(O)[target] if output == "softmax" else target
    f = models.Output(output, reduction="sum")
    np.testing.assert_allclose(f.loss(z, target)[1], f(z) - d, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "arguments, match",
    [
        (([3],), "sizes"),
        (([3, 0],), "out_features"),
        (([3, 2], "gelu"), "hidden"),
        (([3, 2], "tanh", "tanh"), "output and loss"),
        (([3, 2], "tanh", "softmax", "quadratic"), "output and loss"),
        (([3, 2], "tanh", "linear", "cross_entropy"), "output and loss"),
    ],
)
def test_feed_forward_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        models.FeedForward(*arguments)


# ---- 2 and 3: step object, Elman -----------------------------------------------------------------


def test_step_equations():
    net = models.StepRNN(I, H, O, dtype="float64", seed=0)
    p, h, x = net.params, np.zeros(H), draw(T, I)
    for x_t in x:
        h = np.tanh(p["W_hh"] @ h + p["W_xh"] @ x_t + p["b"])
        np.testing.assert_allclose(net.step(x_t), p["W_hy"] @ h + p["c"], rtol=1e-13)
        np.testing.assert_allclose(net.state, h, rtol=1e-13)
    net.reset()
    assert net.state is None


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("batch", [(), (1,), (B,)])
def test_steps_equal_the_whole(batch, ids):
    net = models.StepRNN(I, H, O, "softmax", dtype="float64", seed=0)
    x = classes(T, *batch, high=I) if ids else draw(T, *batch, I)
    whole, h = net(x.reshape(T, max(1, int(np.prod(batch))), *x.shape[1 + len(batch) :]))
    got = np.stack([net.step(x_t) for x_t in x])
    assert got.shape == (T, *batch, O) and net.state.shape == (*batch, H)
    np.testing.assert_allclose(got.reshape(whole.shape), whole, rtol=1e-13)
    np.testing.assert_allclose(net.state.reshape(h[0].shape), h[0], rtol=1e-13)


def test_step_from_a_given_state():
    net = models.StepRNN(I, H, O, dtype="float64", seed=0)
    x = draw(2, I)
    net.step(x[0])
    h, want = net.state, net.step(x[1])
    net.state = h
    assert (net.step(x[1]) == want).all()


def elman_by_hand(p, x, y):
    """Loss and gradients of the Elman network for one sequence, BPTT in its three steps."""
    U, W, V, b, c = (p[k] for k in "UWVbc")
    steps, h, hs, ps = len(x), np.zeros(len(W)), [], []
    hs.append(h)
    for t in range(steps):  # forward
        h = np.tanh(b + W @ h + U @ x[t])
        hs.append(h)
        ps.append(softmax(c + V @ h))
    loss = -sum(np.log(ps[t][y[t]]) for t in range(steps))
    g = {k: np.zeros_like(v) for k, v in p.items()}
    da = np.zeros(len(W))
    for t in reversed(range(steps)):  # back through time
        do = ps[t] - np.eye(len(c))[y[t]]
        dh = V.T @ do + W.T @ da
        da = (1 - hs[t + 1] ** 2) * dh
        g["V"] += np.outer(do, hs[t + 1])  # sums over time
        g["c"] += do
        g["W"] += np.outer(da, hs[t])
        g["U"] += np.outer(da, x[t])
        g["b"] += da
    return loss, g


@pytest.mark.parametrize("ids", [False, True])
def test_elman_equations(ids):
    net = models.Elman(I, H, O, dtype="float64", seed=0)
    x, y = classes(T, B, high=I) if ids else draw(T, B, I), classes(T, B)
    one_hot = np.eye(I)[x] if ids else x
    loss, _ = net.loss_and_grads(x, y)
    by_hand = [elman_by_hand(net.params, one_hot[:, k], y[:, k]) for k in range(B)]
    np.testing.assert_allclose(loss, sum(e for e, _ in by_hand), rtol=1e-13)
    for name in "UWVbc":
        want = sum(g[name] for _, g in by_hand)
        np.testing.assert_allclose(net.grads[name], want, rtol=1e-11, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_elman_gradients(lengths):
    net = models.Elman(I, H, O, dtype="float64", seed=0)
    x, y, h0 = draw(T, B, I), classes(T, B), draw(1, B, H)
    net.loss_and_grads(x, y, h0, lengths)
    check_gradients(net, lambda: net.loss(net.forward(x, h0, lengths)[0], y, lengths)[0])


# ---- 4: recurrence through the output ------------------------------------------------------------


def output_recurrent_by_hand(p, f, x, teacher=None, lengths=None):
    """z (T, B, O) step by step; teacher (T, B, O): what is fed in place of the outputs."""
    o, zs = np.zeros((x.shape[1], len(p["c"]))), []
    for t, x_t in enumerate(x):
        h = np.tanh(x_t @ p["U"].T + o @ p["W"].T + p["b"])
        z = h @ p["V"].T + p["c"]
        o = f(z) if teacher is None else teacher[t]
        zs.append(z if lengths is None else np.where((t < lengths)[:, None], z, 0))
    return np.stack(zs)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("output", ["linear", "softmax"])
def test_output_recurrent_equations(output, teacher, lengths):
    net = models.OutputRecurrent(I, H, O, output, dtype="float64", seed=0)
    x, y = draw(T, B, I), targets_for(output, T, B)
    fed = (np.eye(O)[y] if output == "softmax" else y) if teacher else None
    f = softmax if output == "softmax" else lambda z: z
    want = output_recurrent_by_hand(net.params, f, x, fed, lengths)
    z, *_ = net.forward_teacher(x, y, None, lengths) if teacher else net.forward(x, None, lengths)
    np.testing.assert_allclose(z, want, rtol=1e-12, atol=1e-15)
    if not teacher:
        o, last = net(x, lengths=lengths)
        ends = np.full(B, T) if lengths is None else lengths
        for b in range(B):
            np.testing.assert_allclose(o[: ends[b], b], f(want[: ends[b], b]), rtol=1e-12)
            assert not o[ends[b] :, b].any()
            assert (last[b] == (o[ends[b] - 1, b] if ends[b] else 0)).all()


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("output", ["linear", "softmax"])
def test_output_recurrent_gradients(output, teacher, ids, lengths):
    net = models.OutputRecurrent(I, H, O, output, dtype="float64", seed=0)
    x = classes(T, B, high=I) if ids else draw(T, B, I)
    y, o0 = targets_for(output, T, B), draw(B, O, seed=3)

    def energy():
        z, *_ = net.forward_teacher(x, y, o0, lengths) if teacher else net.forward(x, o0, lengths)
        return net.loss(z, y, lengths)[0]

    net.loss_and_grads(x, y, o0, lengths, teacher_forcing=teacher)
    check_gradients(net, energy)


def test_output_recurrent_gradients_of_input_and_state():
    net = models.OutputRecurrent(I, H, O, "softmax", dtype="float64", seed=0)
    x, o0, lengths = draw(T, B, I), draw(B, O, seed=3), np.array([3, 5, 1])
    dz, dlast = draw(T, B, O, seed=4), draw(B, O, seed=5)

    def energy():
        z, last, _ = net.forward(x, o0, lengths)
        return (z * dz).sum() + (last * dlast).sum()

    tape = net.forward(x, o0, lengths)[2]
    dx, do0 = net.backward(tape, dz, dlast)
    assert not dx[3:, 0].any() and not dx[1:, 2].any()
    check_gradients(net, energy, o0=(o0, do0), x=(x, dx))


def test_teacher_forced_steps_decouple():
    """No step sees the input of an earlier one, while running freely every one does."""
    net = models.OutputRecurrent(I, H, O, dtype="float64", seed=0)
    x, y = draw(T, B, I), draw(T, B, O)
    other = x.copy()
    other[0] += 1
    a, b = (net.forward_teacher(v, y)[0] for v in (x, other))
    assert (a[1:] == b[1:]).all() and (a[0] != b[0]).any()
    a, b = (net.forward(v)[0] for v in (x, other))
    assert (a != b).any(axis=(1, 2)).all()


def test_output_recurrent_wrong_arguments():
    net = models.OutputRecurrent(I, H, O, dtype="float64")
    x, y = draw(T, B, I), draw(T, B, O)
    for bad in (lambda: net(x[:, 0]), lambda: net(x[..., :2]), lambda: net(x, draw(B, O + 1)),
                lambda: net.forward_teacher(x, y[:-1]), lambda: net.loss(y, y[:, :1]),
                lambda: models.OutputRecurrent(I, H, O, "sigmoid")):  # fmt: skip
        with pytest.raises(ValueError):
            bad()
    with pytest.raises(TypeError):
        net(x.astype(np.float32))


# ---- 5: sequence to one --------------------------------------------------------------------------

LAYERS = [
    {"cell": cell, "bidirectional": two, "num_layers": n}
    for cell, two, n in product(CELLS, [False, True], [1, 2])
]


@pytest.mark.parametrize("output", ["linear", "softmax", "sigmoid"])
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_sequence_to_one_gradients(options, output):
    model = models.SequenceToOne(layer(**options), O, output, seed=2)
    x, y = draw(T, B, I), targets_for(output, B)
    model.loss_and_grads(x, y, LENGTHS)
    z, tape = model.forward(x, LENGTHS)
    dx = copy.deepcopy(model).backward(tape, model.output.loss(z, y)[1])
    energy = lambda: model.output.loss(model.forward(x, LENGTHS)[0], y)[0]  # noqa: E731
    assert not dx[3:, 0].any() and not dx[:, 2].any()
    check_direction(model, energy, x=(x, dx))


def check_direction(model, energy, **others):
    """The derivative along random directions in all numbers at once."""
    pairs = list({n: (p, model.grads[n]) for n, p in model.params.items()}.values())
    pairs += others.values()
    rng = np.random.default_rng(9)
    for _ in range(3):
        d = [rng.standard_normal(p.shape) for p, _ in pairs]
        before, f = [p.copy() for p, _ in pairs], []
        for k in (-2, -1, 1, 2):
            for (p, _), start, v in zip(pairs, before, d, strict=True):
                p[...] = start + k * 1e-4 * v
            f.append(energy())
        for (p, _), start in zip(pairs, before, strict=True):
            p[...] = start
        want = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * 1e-4)
        got = sum((g * v).sum() for (_, g), v in zip(pairs, d, strict=True))
        assert abs(got - want) < 1e-8 * max(1, abs(want)), (got, want)


@pytest.mark.parametrize("cell", CELLS)
def test_sequence_to_one_reads_final_states_of_both_directions(cell):
    """The forward half at the own last step, the reverse half at the own first one."""
    model = models.SequenceToOne(layer(cell, bidirectional=True), O, "linear", seed=2)
    x = draw(T, B, I)
    y, _ = model.parts["layer"](x, lengths=LENGTHS)
    got = model(x, LENGTHS)
    W, c = model.params["head.weight"], model.params["head.bias"]
    for b, n in enumerate(LENGTHS):
        s = np.r_[y[n - 1, b, :H], y[0, b, H:]] if n else np.zeros(2 * H)
        np.testing.assert_allclose(got[b], W @ s + c, rtol=1e-13)


def test_sequence_to_one_equals_its_sequences_alone():
    model = models.SequenceToOne(layer("gru", bidirectional=True), O, seed=2)
    x = draw(T, B, I)
    got = model(x, [3, 5, 1])
    for b, n in enumerate([3, 5, 1]):
        np.testing.assert_allclose(got[b], model(x[:n, b : b + 1])[0], rtol=1e-13)


# ---- 6 and 11: an output at every step, deep, bidirectional, ragged ------------------------------


@pytest.mark.parametrize("output", ["linear", "softmax", "sigmoid"])
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_tagger_gradients(options, output):
    model = models.SequenceTagger(layer(**options), O, output, seed=2)
    x, y = draw(T, B, I), targets_for(output, T, B)
    model.loss_and_grads(x, y, None, LENGTHS)
    z, _, tape = model.forward(x, None, LENGTHS)
    dx, _ = copy.deepcopy(model).backward(tape, model.loss(z, y, LENGTHS)[1])
    check_direction(model, lambda: model.loss(model.forward(x, None, LENGTHS)[0], y, LENGTHS)[0],
                    x=(x, dx))  # fmt: skip


def test_sigmoid_outputs_with_quadratic_error_at_every_step():
    model = models.SequenceTagger(layer(), O, "sigmoid", "quadratic", seed=2)
    x, y = draw(T, B, I), targets_for("sigmoid", T, B)
    model.loss_and_grads(x, y, None, LENGTHS)
    check_gradients(model, lambda: model.loss(model.forward(x, None, LENGTHS)[0], y, LENGTHS)[0])


@pytest.mark.parametrize("cell", CELLS)
def test_deep_bidirectional_layers_read_both_directions_below(cell):
    """Two layers with two directions, put together from four layers with one."""
    deep = layer(cell, num_layers=2, bidirectional=True)
    x = draw(T, B, I)
    below = x
    for k in range(2):
        halves = []
        for direction in ("", "_reverse"):
            single = layer(cell, below.shape[2])
            single.load_state_dict(
                {n: deep.params[n.replace("_l0", f"_l{k}{direction}")] for n in single.params}
            )
            time = slice(None, None, -1 if direction else 1)
            halves.append(single(below[time])[0][time])
        below = np.concatenate(halves, axis=2)
    np.testing.assert_allclose(deep(x)[0], below, rtol=1e-12, atol=1e-15)


def test_lstm_equations():
    """Forget, input and output gates and the cell, written out."""
    lstm = layer("lstm")
    W, U, b1, b2 = lstm.params.values()
    x, h, c, hs = draw(T, B, I), np.zeros((B, H)), np.zeros((B, H)), []
    for x_t in x:
        i, f, g, o = np.split(x_t @ W.T + b1 + h @ U.T + b2, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        hs.append(h)
    y, (h_n, c_n) = lstm(x)
    np.testing.assert_allclose(y, hs, rtol=1e-12)
    np.testing.assert_allclose([h_n[0], c_n[0]], [h, c], rtol=1e-12)


@pytest.mark.parametrize("output", ["linear", "softmax", "sigmoid"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_ragged_tagger_equals_its_sequences_alone(batch_first, output):
    """Losses and gradients of one ragged batch are the sums over its sequences; what stands in
    the padding, NaN and no class at all, is not read."""
    lengths = np.array([3, 5, 1])
    batch = models.SequenceTagger(layer("lstm", bidirectional=True, batch_first=batch_first), O,
                                  output, reduction="sum", seed=2)  # fmt: skip
    alone = models.SequenceTagger(layer("lstm", bidirectional=True), O, output, reduction="sum",
                                  seed=2)  # fmt: skip
    x, y = draw(T, B, I), targets_for(output, T, B)
    total = 0
    o = np.zeros((T, B, O))
    for b, n in enumerate(lengths):
        total += alone.loss_and_grads(x[:n, b : b + 1], y[:n, b : b + 1])[0]
        o[:n, b] = alone(x[:n, b : b + 1])[0][:, 0]
        x[n:, b] = np.nan
        y[n:, b] = 10**6 if output == "softmax" else np.nan
    if batch_first:
        x, y, o = (a.swapaxes(0, 1) for a in (x, y, o))
    loss, _ = batch.loss_and_grads(x, y, None, lengths)
    np.testing.assert_allclose(loss, total, rtol=1e-12)
    np.testing.assert_allclose(batch(x, lengths=lengths)[0], o, rtol=1e-12)
    for name, g in batch.grads.items():
        np.testing.assert_allclose(g, alone.grads[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_mean_counts_real_steps_and_ignored_classes():
    model = models.SequenceTagger(layer(), O, seed=2)
    x, y = draw(T, B, I), classes(T, B)
    y[1, 1] = -100
    p, _ = model(x, lengths=LENGTHS)
    used = [(t, b) for b in range(B) for t in range(LENGTHS[b]) if y[t, b] != -100]
    want = np.mean([-np.log(p[t, b, y[t, b]]) for t, b in used])
    loss, _ = model.loss_and_grads(x, y, None, LENGTHS)
    np.testing.assert_allclose(loss, want, rtol=1e-13)


def test_a_call_drops_nothing_out():
    for model in (models.SequenceTagger(layer(num_layers=2, dropout=0.5), O, seed=2),
                  models.SequenceToOne(layer(num_layers=2, dropout=0.5), O, seed=2)):  # fmt: skip
        x = draw(T, B, I)
        a, b = model(x), model(x)
        a, b = (a[0], b[0]) if isinstance(a, tuple) else (a, b)
        assert (a == b).all()
        assert (model.forward(x)[0] != model.forward(x)[0]).any()


def test_only_batches():
    for model in (models.SequenceTagger(layer(), O), models.SequenceToOne(layer(), O)):
        with pytest.raises(ValueError, match="batch"):
            model(draw(T, I))


# ---- what all models share -----------------------------------------------------------------------

EVERY = {
    "FeedForward": lambda d: models.FeedForward([I, H, O], output="softmax", dtype=d, seed=0),
    "StepRNN": lambda d: models.StepRNN(I, H, O, "softmax", dtype=d, seed=0),
    "Elman": lambda d: models.Elman(I, H, O, dtype=d, seed=0),
    "OutputRecurrent": lambda d: models.OutputRecurrent(I, H, O, "softmax", dtype=d, seed=0),
    "SequenceToOne": lambda d: models.SequenceToOne(rnnfast.GRU(I, H, dtype=d, seed=0), O, seed=0),
    "SequenceTagger": lambda d: models.SequenceTagger(rnnfast.LSTM(I, H, dtype=d, seed=0), O,
                                                    seed=0),
}


def test_no_model_is_left_out():
    classes = [c for c in vars(models).values() if isinstance(c, type)]
    known = {c.__name__ for c in classes if issubclass(c, models.Model)}
    assert known - {"Model", "Sequential"} == set(EVERY)


def loss_of(model, name, dtype):
    """Loss and gradients of the model, from zero."""
    x = draw(T, B, I).astype(dtype)
    y = classes(B) if name == "SequenceToOne" else classes(T, B)
    model.zero_grad()
    loss = model.loss_and_grads(x, y)
    return loss[0] if isinstance(loss, tuple) else loss


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EVERY)
def test_learns_and_moves(name, dtype):
    """Clipping and optimisers take a model; its state dict, a copy and a pickle are the model."""
    model = EVERY[name](dtype)
    adam = rnnfast.optim.Adam(model, lr=0.02)
    first = loss_of(model, name, dtype)
    for _ in range(30):
        loss_of(model, name, dtype)
        assert rnnfast.clip_grad_norm(model.grads, 1.0) > 0
        adam.step()
    last = loss_of(model, name, dtype)
    assert last < 0.9 * first
    other = EVERY[name](dtype)
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert loss_of(twin, name, dtype) == last
        for key, g in model.grads.items():
            assert (twin.grads[key] == g).all()
        rnnfast.optim.SGD(twin, lr=0.1).step()
        assert loss_of(twin, name, dtype) != last
    assert name in repr(model)


@pytest.mark.parametrize("compiled, twin", [("blas", "reference"), ("fused", "reference-fused")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EVERY)
def test_same_bits_as_the_twins(name, dtype, compiled, twin, use_engine):
    results = []
    for engine in (compiled, twin):
        use_engine(engine)
        model = EVERY[name](dtype)
        results.append((loss_of(model, name, dtype), model.grads))
    assert results[0][0] == results[1][0]
    for key, g in results[0][1].items():
        assert (g == results[1][1][key]).all(), key


def test_parts_agree_in_dtype():
    parts = {"a": rnnfast.Linear(2, 2), "b": rnnfast.Linear(2, 2, dtype="float64")}
    with pytest.raises(TypeError, match="b is float64"):
        models.Model(models.Output("linear"), parts)
    with pytest.raises(ValueError, match="reduction"):
        models.Output("linear", reduction="none")
