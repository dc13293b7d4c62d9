"""The character model, the text it reads and the baselines beside it."""

import itertools
import math

import numpy as np
import pytest

import rnnfast
from rnnfast import _text
from rnnfast.charlm import CharLM, UnknownCharacter
from tests.bits import same_bits

CELLS = ("lstm", "gru", "rnn")


def windows(V, T, B, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, V, (T + 1, B))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_untrained_model_is_near_uniform(cell, dtype):
    model = CharLM("abcdefgh", cell, hidden=6, layers=2, dtype=dtype)
    bits = model.evaluate(windows(8, 200, 3))
    assert abs(bits - 3) < 0.3
    assert model.params["output.weight"].dtype == dtype


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
def test_gradient_is_that_of_the_loss(cell, layers):
    """Along a random direction, against a 4th-order difference quotient."""
    model = CharLM("abcde", cell, hidden=4, layers=layers, dtype="float64", seed=3)
    ids = windows(5, 6, 3)
    _, state = model.loss_and_grads(ids[:-1], ids[1:])
    model.zero_grad()
    model.loss_and_grads(ids[:-1], ids[1:], state)
    rng = np.random.default_rng(1)
    start = model.state_dict()
    direction = {k: rng.standard_normal(a.shape) for k, a in start.items()}
    slope = sum((model.grads[k] * d).sum() for k, d in direction.items())

    def loss(eps):
        model.load_state_dict({k: a + eps * direction[k] for k, a in start.items()})
        return model.loss_and_grads(ids[:-1], ids[1:], state)[0]

    h = 1e-3
    quotient = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
    assert quotient == pytest.approx(slope, rel=1e-8)


@pytest.mark.parametrize("layers", [1, 2])
def test_gradient_with_dropout(layers):
    """The masks of the forward pass are those of the backward pass."""
    model = CharLM("abcde", "gru", hidden=8, layers=layers, dropout=0.4, dtype="float64", seed=3)
    ids = windows(5, 6, 3)
    before = model.training_rng.bit_generator.state
    model.loss_and_grads(ids[:-1], ids[1:])
    slope = model.grads["recurrent.weight_hh_l0"][2, 1]
    p, h = model.params["recurrent.weight_hh_l0"], 1e-3
    start, losses = p[2, 1], []
    for eps in (h, -h, 2 * h, -2 * h):
        p[2, 1] = start + eps
        model.training_rng.bit_generator.state = before
        losses.append(model.loss_and_grads(ids[:-1], ids[1:])[0])
    quotient = (8 * (losses[0] - losses[1]) - (losses[2] - losses[3])) / (12 * h)
    assert slope != 0
    assert quotient == pytest.approx(slope, rel=1e-7)


def test_gradients_add_up_and_are_the_parts_own():
    model = CharLM("abc", hidden=4)
    ids = windows(3, 5, 2)
    model.loss_and_grads(ids[:-1], ids[1:])
    once = {k: g.copy() for k, g in model.grads.items()}
    model.loss_and_grads(ids[:-1], ids[1:])
    for name, g in model.grads.items():
        np.testing.assert_allclose(g, 2 * once[name], rtol=1e-5, atol=1e-7)
    assert model.grads["output.weight"] is model.output.grads["weight"]
    model.zero_grad()
    assert not any(g.any() for g in model.recurrent.grads.values())


@pytest.mark.parametrize("cell", CELLS)
def test_loss_and_evaluate_agree_and_the_state_is_carried(cell):
    model = CharLM("abcde", cell, hidden=6, dtype="float64")
    ids = windows(5, 12, 1)
    first, state = model.loss_and_grads(ids[:6], ids[1:7])
    second, _ = model.loss_and_grads(ids[6:12], ids[7:], state)
    cold, _ = model.loss_and_grads(ids[6:12], ids[7:])
    bits = (first + second) / 2 / math.log(2)
    assert model.evaluate(ids) == pytest.approx(bits, rel=1e-12)
    assert model.evaluate(ids[:, 0], chunk=5) == pytest.approx(bits, rel=1e-12)
    assert cold != second


def test_evaluate_ignores_dropout_and_leaves_the_model_alone():
    model = CharLM("abcde", hidden=6, layers=2, dropout=0.5)
    ids, before = windows(5, 30, 2), model.training_rng.bit_generator.state
    assert model.evaluate(ids) == model.evaluate(ids)
    assert model.training_rng.bit_generator.state == before


def test_evaluate_refuses_what_has_nothing_to_predict():
    with pytest.raises(ValueError, match="N >= 2"):
        CharLM("ab", hidden=2).evaluate([0])


def learnt(text="hello world. ", steps=150):
    model = CharLM("".join(sorted(set(text))), hidden=24, seed=0)
    ids = model.encode(text * 8)[:, None]
    adam = rnnfast.optim.Adam(model, lr=0.02)
    for _ in range(steps):
        adam.zero_grad()
        model.loss_and_grads(ids[:-1], ids[1:])
        rnnfast.clip_grad_norm(model.grads, 1.0)
        adam.step()
    return model


def test_learns_a_text_and_samples_it():
    model = learnt()
    assert model.evaluate(model.encode("hello world. " * 8)) < 0.5
    for temperature in (1e-3, 1e-30, 1e-300):
        assert model.sample(26, prime="hello", temperature=temperature, seed=4) == \
            " world. hello world. hello"


def test_cold_sampling_is_argmax():
    model = CharLM("abcdefg", "lstm", hidden=8, seed=5)
    ids, state, greedy = [0], None, ""
    for _ in range(20):
        y, state = model.recurrent(np.array(ids[-1:])[:, None], state)
        ids.append(int(model.output(y)[0, 0].argmax()))
        greedy += model.vocabulary[ids[-1]]
    assert model.sample(20, prime="a", temperature=1e-200, seed=9) == greedy


def test_samples_repeat_with_the_seed_and_differ_without():
    model = CharLM("abcdefg", hidden=4)
    assert model.sample(50, seed=1) == model.sample(50, seed=1)
    assert model.sample(50, seed=1) != model.sample(50, seed=2)
    assert model.sample(0) == ""


def test_samples_follow_the_distribution():
    """Frequencies of the first character lie within 5 standard deviations of softmax(z / t)."""
    model = CharLM("abcd", "rnn", hidden=4, seed=2)
    model.params["output.bias"][:] = [0, 1, 2, -1]
    y, _ = model.recurrent(model.encode("b")[:, None])
    z = model.output(y)[0, 0].astype(float)
    for temperature in (0.5, 2.0):
        p = np.exp(z / temperature)
        p /= p.sum()
        n = 500
        drawn = [model.sample(1, "b", temperature, seed) for seed in range(n)]
        for k, c in enumerate("abcd"):
            assert abs(drawn.count(c) / n - p[k]) < 5 * math.sqrt(p[k] * (1 - p[k]) / n)


@pytest.mark.parametrize("temperature", [0, -1, math.inf, math.nan])
def test_sample_refuses_temperature(temperature):
    with pytest.raises(ValueError, match="temperature"):
        CharLM("ab", hidden=2).sample(1, temperature=temperature)


def test_unknown_characters_are_named():
    model = CharLM("ab\n", hidden=2)
    with pytest.raises(UnknownCharacter, match=r"U\+20AC.*index 2"):
        model.encode("ab€a")
    with pytest.raises(UnknownCharacter):
        model.sample(3, prime="x")


def test_text_outside_the_basic_plane_and_one_character():
    model = CharLM("😀é", hidden=2)
    assert model.decode(model.encode("é😀é")) == "é😀é"
    assert CharLM("z", hidden=2).sample(3) == "zzz"


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"vocabulary": ""}, ValueError),
        ({"vocabulary": "aba"}, ValueError),
        ({"vocabulary": 3}, ValueError),
        ({"cell": "tree"}, ValueError),
        ({"hidden": 0}, ValueError),
        ({"hidden": 2.5}, TypeError),
        ({"layers": 0}, ValueError),
        ({"dropout": 1}, ValueError),
        ({"dropout": -0.1}, ValueError),
        ({"dtype": "int32"}, TypeError),
    ],
)
def test_arguments_are_checked(arguments, error):
    with pytest.raises(error):
        CharLM(**({"vocabulary": "ab", "hidden": 2} | arguments))


def test_state_dict_moves_a_model():
    a, b = CharLM("abc", hidden=4, seed=1), CharLM("abc", hidden=4, seed=2)
    b.load_state_dict(a.state_dict())
    same_bits(b.output.params["weight"], a.output.params["weight"])
    assert a.sample(30) == b.sample(30)
    assert CharLM(**a.config).config == a.config


# ---- text and baselines --------------------------------------------------------------------------


def test_default_text_has_no_paragraph_twice():
    text = _text.default_text()
    paragraphs = text.split("\n\n")
    assert len(paragraphs) == len(set(paragraphs))
    assert len(text) > 200_000


@pytest.mark.parametrize("N", [20, 999, 5000, 12_345, 100_000, 300_001])
def test_split_takes_every_character_once(N):
    train, heldout = _text.split(np.arange(N))
    assert sorted([*train, *heldout.ravel()]) == list(range(N))
    assert abs(heldout.size - N / 10) <= 20
    assert (np.diff(heldout, axis=0) == 1).all()


def kneser_ney(train, context, w, V, order):
    """The textbook recursion with dictionaries, for one word."""

    def counts(m):
        grams = [tuple(train[i : i + m]) for i in range(len(train) - m + 1)]
        if m == order:
            return {g: grams.count(g) for g in set(grams)}
        wider = {tuple(train[i : i + m + 1]) for i in range(len(train) - m)}
        return {g: sum(v[1:] == g for v in wider) for g in set(grams)}

    p = 1 / V
    for m in range(1, order + 1):
        h = tuple(context[len(context) - m + 1 :]) if m > 1 else ()
        c = counts(m)
        n = [sum(v == k for v in c.values()) for k in range(1, 5)]
        D = [0, 0.1, 0.1, 0.1]
        if n[0] and n[1]:
            Y = n[0] / (n[0] + 2 * n[1])
            for k in (1, 2, 3):
                raw = k - (k + 1) * Y * n[k] / n[k - 1] if n[k - 1] else 0
                D[k] = min(max(raw, 0.1), k)
        after = {g[-1]: v for g, v in c.items() if g[:-1] == h and v}
        if len(context) < m - 1 or not after:
            continue
        free = sum(D[min(v, 3)] for v in after.values())
        v = after.get(w, 0)
        p = (v - D[min(v, 3)] + free * p) / sum(after.values())
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngram_is_the_textbook_recursion(order):
    rng = np.random.default_rng(order)
    train = np.array([0, 1, 0, 2] * 8 + list(rng.integers(0, 4, 60)))
    heldout = rng.integers(0, 5, (9, 3))  # 4 never occurs in training
    p = _text.ngram_probabilities(train, heldout, 5, order)
    for i, k in itertools.product(range(8), range(3)):
        text = [int(c) for c in heldout[:, k]]
        want = kneser_ney(train.tolist(), text[: i + 1], text[i + 1], 5, order)
        assert p[i, k] == pytest.approx(want, rel=1e-12)


def test_ngram_probabilities_add_up_to_one():
    rng = np.random.default_rng(0)
    train, V = rng.integers(0, 3, 300), 4
    for context in ([0, 1, 2, 1], [3, 3, 0, 1], [2, 3], [0]):
        heldout = np.array([[*context, w] for w in range(V)]).T
        assert _text.ngram_probabilities(train, heldout, V)[-1].sum() == pytest.approx(1)


def test_baselines_order_themselves():
    text = _text.default_text()[:60_000]
    model = CharLM("".join(sorted(set(text))), hidden=2)
    train, heldout = _text.split(model.encode(text))
    bits = _text.baselines(train, heldout, len(model.vocabulary))
    assert bits["uniform"] > bits["unigram"] > bits["5-gram"] > 1
    best = min(_text.ngram_bits(train, heldout, len(model.vocabulary), n) for n in (2, 3, 4))
    assert bits["5-gram"] < best  # longer contexts help: nothing is thrown away
