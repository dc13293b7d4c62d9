"""rnnfast.torch against torch itself: the same values, gradients, errors and manners."""

import copy
import gc
import io
import itertools
import os
import pickle
import subprocess
import sys
import threading
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import rnn as packing  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import rnnfast.torch as ours  # noqa: E402

LAYERS, CELLS = ("RNN", "LSTM", "GRU"), ("RNNCell", "LSTMCell", "GRUCell")
LENGTHS = {"sorted": [6, 5, 3, 3, 1], "unsorted": [3, 1, 6, 5, 3]}


@pytest.fixture(autouse=True)
def seeded():
    """Each test starts from the same seed, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def native(monkeypatch):
    """The passes that rnnfast computed; whether torch's implementation ran unasked shows here."""
    passes, forward = [], ours.Pass.forward

    def count(self, *arguments):
        passes.append(self.form)
        return forward(self, *arguments)

    monkeypatch.setattr(ours.Pass, "forward", count)
    monkeypatch.setattr(ours, "_warned", set())
    return passes


def near(got, want, what=""):
    """Equal up to the rounding of two implementations: each element comes from some hundred
    roundings of numbers of the size of the largest."""
    assert got.shape == want.shape and got.dtype == want.dtype, what
    scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
    difference = (got - want).abs().max().item() if want.numel() else 0.0
    assert difference <= 256 * torch.finfo(want.dtype).eps * scale, (what, difference)


def flat(result):
    """The tensors of a result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, packing.PackedSequence):
        return [result.data]
    return [t for part in result for t in flat(part)]


def pair(name, *arguments, dtype=torch.float64, **options):
    """(torch's module, ours with the same weights)."""
    theirs = getattr(nn, name)(*arguments, dtype=dtype, **options)
    mine = getattr(ours, name)(*arguments, dtype=dtype, **options)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def case(module, form, with_state, dtype=torch.float64):
    """(leaves, arguments): input of some form, and the tensors it was made of."""
    I, B, T = module.input_size, 5, 6
    if isinstance(module, nn.RNNCellBase):
        shape, rows = ((I,), ()) if form == "one" else ((B, I), (B,))
        sizes = [(*rows, module.hidden_size)] * 2
    else:
        n = module.num_layers * (2 if module.bidirectional else 1)
        rows = (n,) if form == "one" else (n, B)
        shape = (T, I) if form == "one" else (B, T, I) if module.batch_first else (T, B, I)
        sizes = [(*rows, module.proj_size or module.hidden_size), (*rows, module.hidden_size)]
    x = torch.randn(*shape, dtype=dtype, requires_grad=True)
    states = [torch.randn(*s, dtype=dtype, requires_grad=True)
              for s in (sizes if "LSTM" in type(module).__name__ else sizes[:1])]  # fmt: skip
    state = (tuple(states) if len(states) == 2 else states[0]) if with_state else None
    leaves = [x, *states] if with_state else [x]
    if form in LENGTHS:
        return leaves, lambda: (packing.pack_padded_sequence(
            x, LENGTHS[form], module.batch_first, form == "sorted"), state)  # fmt: skip
    return leaves, lambda: (x, state)


def gradients(module, leaves, arguments, weights=None):
    """(outputs, gradients of leaves and parameters) for random output gradients."""
    outputs = flat(module(*arguments()))
    generator = torch.Generator().manual_seed(7)
    upstream = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in outputs]
    wanted = [*leaves, *(module.parameters() if weights is None else weights)]
    return outputs, torch.autograd.grad(outputs, wanted, upstream)


# ---- values and gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["batch", "one", "sorted", "unsorted"])
@pytest.mark.parametrize("name", [*LAYERS, "projected LSTM", "relu RNN"])
def test_all_combinations(name, form, native):
    extra, name = name.split() if " " in name else ("", name)
    extra = {"projected": {"proj_size": 2}, "relu": {"nonlinearity": "relu"}, "": {}}[extra]
    switches = itertools.product((1, 2), (True, False), (False, True), (False, True), (False, True))
    count = 0
    for num_layers, bias, batch_first, bidirectional, with_state in switches:
        theirs, mine = pair(name, 3, 4, num_layers=num_layers, bias=bias, batch_first=batch_first,
                            bidirectional=bidirectional, **extra)  # fmt: skip
        leaves, arguments = case(theirs, form, with_state)
        got, want = (gradients(m, leaves, arguments) for m in (mine, theirs))
        for g, w in zip(flat(got), flat(want), strict=True):
            near(g, w, f"{mine}, state: {with_state}")
        count += 1
        assert len(native) == count
        with torch.no_grad():  # the way that keeps nothing
            again = flat(mine(*arguments()))
        assert not any(y.requires_grad for y in again)
        for y, z in zip(again, want[0], strict=True):
            near(y, z)
        count += 1


@pytest.mark.parametrize("form", ["batch", "one"])
@pytest.mark.parametrize("name", [*CELLS, "relu RNNCell"])
def test_cells(name, form, native):
    extra, name = ({"nonlinearity": "relu"}, "RNNCell") if " " in name else ({}, name)
    for bias, with_state in itertools.product((True, False), (False, True)):
        theirs, mine = pair(name, 3, 4, bias=bias, **extra)
        leaves, arguments = case(theirs, form, with_state)
        got, want = (gradients(m, leaves, arguments) for m in (mine, theirs))
        for g, w in zip(flat(got), flat(want), strict=True):
            near(g, w, f"{mine}, state: {with_state}")
    assert len(native) == 4


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_float32(name, native):
    theirs, mine = pair(name, 3, 4, dtype=torch.float32)
    leaves, arguments = case(theirs, "batch", True, torch.float32)
    for g, w in zip(*(flat(gradients(m, leaves, arguments)) for m in (mine, theirs)), strict=True):
        near(g, w)
    assert len(native) == 1


def test_engine_fused(use_engine, native):
    use_engine("fused")
    theirs, mine = pair("LSTM", 3, 4, num_layers=2, bidirectional=True)
    leaves, arguments = case(theirs, "unsorted", True)
    for g, w in zip(*(flat(gradients(m, leaves, arguments)) for m in (mine, theirs)), strict=True):
        near(g, w)
    assert len(native) == 1


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_outputs_that_are_not_used(name):
    theirs, mine = pair(name, 3, 4)
    leaves, arguments = case(theirs, "batch", True)
    for k in range(len(flat(mine(*arguments())))):
        found = []
        for m in (mine, theirs):
            y = flat(m(*arguments()))[k]
            found.append(torch.autograd.grad(y.square().sum(), [*leaves, *m.parameters()],
                                             allow_unused=True))  # fmt: skip
        for g, w in zip(*found, strict=True):
            near(torch.zeros_like(w) if g is None else g, w)


def test_default_device_and_dtype(native):
    """What torch makes by default does not matter to tensors that are there."""
    theirs, mine = pair("GRU", 3, 4, num_layers=2, dropout=0.5, dtype=torch.float32)
    x = torch.randn(6, 5, 3)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            mine(x)[0].sum().backward()
            mine.eval()
            y = mine(x)[0]
    finally:
        torch.set_default_dtype(torch.float32)
    near(y, theirs.eval()(x)[0])
    assert len(native) == 2


def test_what_needs_no_gradient_gets_none():
    theirs, mine = pair("LSTM", 3, 4)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    for m in (mine, theirs):
        m.weight_ih_l0.requires_grad_(False)
        m(x)[0].sum().backward()
    assert mine.weight_ih_l0.grad is None and x.grad is None
    near(mine.weight_hh_l0.grad, theirs.weight_hh_l0.grad)
    mine.requires_grad_(False)
    assert not mine(x)[0].requires_grad
    x.requires_grad_()
    got, want = (torch.autograd.grad(m(x)[0].sum(), x)[0] for m in (mine, theirs))
    near(got, want)


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck(name):
    """The derivative against finite differences, without torch's implementation."""
    mine = getattr(ours, name)(2, 3, num_layers=2, dtype=torch.float64)
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *weights: flat(mine(x)), (x, *mine.parameters()))


def test_layouts_of_memory(native):
    """Transposed, expanded, negated and sliced tensors are read as what they stand for."""
    theirs, mine = pair("GRU", 3, 4)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    z = torch.complex(x, x).conj()
    for odd in (x.transpose(0, 1), x[:, :1].expand(6, 5, 3), z.imag, x[::2]):
        near(mine(odd)[0], theirs(odd)[0])
    state = torch.randn(1, 1, 4, dtype=torch.float64).expand(1, 5, 4)
    near(mine(x, state)[0], theirs(x, state)[0])
    assert z.imag.is_neg() and len(native) == 5
    got, want = (m(x[:, :0])[0] for m in (mine, theirs))  # no sequence at all
    near(got, want)


# ---- the weights are torch's ---------------------------------------------------------------------


def changed_by_optimiser(mine, theirs):
    for m in (mine, theirs):
        sgd = torch.optim.SGD(m.parameters(), lr=0.1)
        m(torch.ones(2, 1, 3, dtype=m.weight_ih_l0.dtype))[0].sum().backward()
        sgd.step()


def changed_by_load_state_dict(mine, theirs):
    theirs.reset_parameters()
    mine.load_state_dict(theirs.state_dict())


def changed_by_assignment_of_a_state_dict(mine, theirs):
    theirs.reset_parameters()
    mine.load_state_dict({k: v.clone() for k, v in theirs.state_dict().items()}, assign=True)


def changed_by_data(mine, theirs):
    for m in (mine, theirs):
        m.weight_hh_l0.data = torch.full_like(m.weight_hh_l0, 0.25)


def changed_by_a_transposed_view(mine, theirs):
    for m in (mine, theirs):
        m.weight_hh_l0.data = m.weight_hh_l0.data.t()
        m(torch.ones(2, 1, 3, dtype=m.weight_ih_l0.dtype))
        with torch.no_grad():
            m.weight_hh_l0.mul_(0.5)


def changed_by_a_new_parameter(mine, theirs):
    for m in (mine, theirs):
        m.bias_hh_l0 = nn.Parameter(torch.ones_like(m.bias_hh_l0))


def changed_by_sharing(mine, theirs):
    mine.share_memory()
    changed_by_optimiser(mine, theirs)


def changed_by_conversion(mine, theirs):
    for m in (mine, theirs):
        m.float()
        m.double()


CHANGES = [f for name, f in sorted(globals().items()) if name.startswith("changed_by")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_changed_weights_are_seen(change, native):
    theirs, mine = pair("RNN", 3, 4)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    before = mine(x)[0]
    change(mine, theirs)
    native.clear()
    with torch.no_grad():
        after = mine(x)[0]
    near(after, theirs(x)[0].detach())
    assert native and not torch.equal(before, after)


def test_nothing_is_copied():
    mine = ours.LSTM(3, 4)
    x = torch.randn(6, 5, 3)
    seen = []
    forward = ours.NumpyLSTM.forward

    def look(self, x, *rest):
        seen.append((x, forward(self, x, *rest)))
        return seen[-1][1]

    ours.NumpyLSTM.forward = look
    try:
        y, _ = mine(x)
    finally:
        ours.NumpyLSTM.forward = forward
    ((array, (output, _, _)),) = seen
    assert np.shares_memory(array, x.numpy())
    assert np.shares_memory(output, y.detach().numpy())
    for name, value in mine._binding.layer.params.items():
        assert np.shares_memory(value, getattr(mine, name).detach().numpy())


def test_weights_that_are_computed():
    """Parametrisations and functional_call give the layer tensors in place of parameters."""
    theirs, mine = pair("GRU", 3, 4)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    weights = {k: (2 * v).detach().requires_grad_() for k, v in theirs.named_parameters()}
    found = []
    for m in (mine, theirs):
        y = torch.func.functional_call(m, weights, (x,))[0]
        found.append([y, *torch.autograd.grad(y.sum(), weights.values())])
    for g, w in zip(*found, strict=True):
        near(g, w)
    near(mine(x)[0], theirs(x)[0])
    for m in (mine, theirs):
        nn.utils.parametrizations.weight_norm(m, "weight_hh_l0")
    got, want = (gradients(m, [], lambda: (x,)) for m in (mine, theirs))
    for g, w in zip(flat(got), flat(want), strict=True):
        near(g, w)


# ---- autograd's manners --------------------------------------------------------------------------


def test_double_backward():
    for name, form in itertools.product((*LAYERS, *CELLS), ("batch", "one", "unsorted")):
        if name in CELLS and form == "unsorted":
            continue
        extra = {"num_layers": 2, "bidirectional": True} if name in LAYERS else {}
        theirs, mine = pair(name, 2, 3, **extra)
        if form == "batch" and name in LAYERS:
            theirs.batch_first = mine.batch_first = True
        leaves, arguments = case(theirs, form, True)
        found = []
        for m in (mine, theirs):
            wanted = [*leaves, *m.parameters()]
            loss = sum(y.pow(3).sum() for y in flat(m(*arguments())))
            first = torch.autograd.grad(loss, wanted, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
            found.append([*first, *second])
        for g, w in zip(*found, strict=True):
            near(g, w, f"{name} {form}")


def test_double_backward_where_inputs_depend_on_each_other():
    theirs, mine = pair("GRU", 3, 4)
    x = torch.randn(6, 5, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for m in (mine, theirs):
        state = x.mean(0)[None].repeat(1, 1, 2)[..., :4].sin()
        (first,) = torch.autograd.grad(m(x, state)[0].square().sum(), x, create_graph=True)
        found.append([first, *torch.autograd.grad(first.square().sum(), x)])
    for g, w in zip(*found, strict=True):
        near(g, w)


def test_double_backward_in_float32():
    """oneDNN's LSTM, which torch uses here, would refuse."""
    _, mine = pair("LSTM", 3, 4, dtype=torch.float32)
    x = torch.randn(6, 5, 3, requires_grad=True)
    (g,) = torch.autograd.grad(mine(x)[0].square().sum(), x, create_graph=True)
    g.square().sum().backward()
    wide = copy.deepcopy(mine).double()
    z = x.detach().double().requires_grad_()
    (g,) = torch.autograd.grad(wide(z)[0].square().sum(), z, create_graph=True)
    g.square().sum().backward()
    near(x.grad, z.grad.float())


def test_double_backward_through_dropout_is_refused():
    mine = ours.LSTM(3, 4, num_layers=2, dropout=0.5)
    y = mine(torch.ones(2, 1, 3))[0].sum()
    with pytest.raises(RuntimeError, match=r"dropout masks; use eval\(\)"):
        torch.autograd.grad(y, mine.weight_hh_l0, create_graph=True)


def test_the_tape_goes_with_the_graph(monkeypatch):
    tapes, forward = [], ours.Pass.forward

    def watch(self, *arguments):
        result = forward(self, *arguments)
        tapes.append(weakref.ref(result[1]))
        return result

    monkeypatch.setattr(ours.Pass, "forward", watch)
    mine = ours.LSTM(3, 4)
    gc.disable()  # counting references is enough
    try:
        y, _ = mine(torch.ones(2, 1, 3))
        loss = y.sum()
        assert tapes[-1]() is not None
        loss.backward(retain_graph=True)
        first = mine.weight_hh_l0.grad.clone()
        mine.zero_grad()
        loss.backward()
        assert torch.equal(mine.weight_hh_l0.grad, first)
        assert tapes[-1]() is None, "y and loss are still there, the tape is not"
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
        y, state = mine(torch.ones(2, 1, 3))
        del y, state
        assert tapes[-1]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("which", ["input", "weight"])
def test_a_change_before_backward_is_noticed(which):
    mine = ours.GRU(3, 4)
    x = torch.ones(2, 1, 3)
    y = mine(x)[0].sum()
    with torch.no_grad():
        (x if which == "input" else mine.weight_hh_l0).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_an_output_may_be_changed():
    theirs, mine = pair("GRU", 3, 4)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    y = mine(x)[0]
    y.mul_(2)
    y.sum().backward()
    (2 * theirs(x)[0]).sum().backward()
    near(mine.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant):
    """Dropout included: the recomputation draws the same masks."""
    mine = ours.LSTM(3, 4, num_layers=2, dropout=0.5)
    x = torch.randn(6, 5, 3, requires_grad=True)
    found = []
    for run in (mine, lambda x: checkpoint(mine, x, use_reentrant=reentrant)):
        torch.manual_seed(3)
        y = run(x)[0]
        found.append([y, *torch.autograd.grad(y.sum(), [x])] if not reentrant else [y])
        mine.zero_grad()
        x.grad = None
        run(x)[0].sum().backward()
        found[-1] += [x.grad, *(p.grad for p in mine.parameters())]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_hooks_on_saved_tensors():
    mine = ours.LSTM(3, 4, num_layers=2, dropout=0.5)
    x = torch.randn(6, 5, 3)
    found = []
    hooks = torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t)
    for context in (torch.enable_grad(), hooks, torch.autograd.graph.save_on_cpu()):
        torch.manual_seed(3)
        with context:
            y = mine(x)[0]
        found.append(torch.autograd.grad(y.sum(), list(mine.parameters())))
    torch.manual_seed(3)
    with hooks:  # what was saved counts, not what became of it
        y = mine(x)[0]
    with torch.no_grad():
        mine.weight_hh_l0.zero_()
        x.zero_()
    found.append(torch.autograd.grad(y.sum(), list(mine.parameters())))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_modes(name, native):
    mine = getattr(ours, name)(3, 4)
    x = torch.randn(*((2, 5, 3) if name in LAYERS else (5, 3)))
    want = flat(mine(x))
    assert all(y.requires_grad for y in want)
    with torch.no_grad():
        assert not any(y.requires_grad for y in flat(mine(x)))
    with torch.inference_mode():
        got = flat(mine(x))
        assert all(y.is_inference() for y in got)
        inner = mine(x.clone())  # an inference tensor as input
    for a, b, c in zip(want, got, flat(inner), strict=True):
        assert torch.equal(a.detach(), b.clone()) and torch.equal(b, c)
    with torch.no_grad():
        with torch.inference_mode():
            frozen = x.clone()
        assert torch.equal(flat(mine(frozen))[0], want[0].detach())  # and outside of that mode
    assert len(native) == 5


def test_clip_grad_norm():
    theirs, mine = pair("LSTM", 3, 4)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    norms = []
    for m in (mine, theirs):
        (100 * m(x)[0].sum()).backward()
        norms.append(nn.utils.clip_grad_norm_(m.parameters(), 0.5))
    near(*norms)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        near(p.grad, q.grad)


def test_threads():
    """A module may be used, and its gradients computed, on several threads at a time."""
    mine = ours.LSTM(3, 16, num_layers=2)
    inputs = [torch.randn(50, 4, 3) for _ in range(4)]
    want = [torch.autograd.grad(mine(x)[0].sum(), list(mine.parameters())) for x in inputs]
    mine = copy.deepcopy(mine)  # not bound yet: the threads do that at the same time
    found = [[] for _ in inputs]

    def work(k):
        for _ in range(5):
            found[k].append(torch.autograd.grad(mine(inputs[k])[0].sum(), list(mine.parameters())))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k in range(4):
        assert len(found[k]) == 5
        for grads in found[k]:
            assert all(torch.equal(a, b) for a, b in zip(grads, want[k], strict=True))


# ---- dropout -------------------------------------------------------------------------------------


def test_dropout():
    theirs, mine = pair("GRU", 2, 3, num_layers=2, dropout=0.5)
    x = torch.randn(6, 3, 2, dtype=torch.float64)

    def seeded(seed):
        torch.manual_seed(seed)
        return mine(x)[0]

    assert torch.equal(seeded(1), seeded(1))
    assert not torch.equal(seeded(1), seeded(2))
    assert not torch.equal(mine(x)[0], mine(x)[0])
    with torch.no_grad():  # what decides is the mode of the module
        assert torch.equal(seeded(1), seeded(1)) and not torch.equal(mine(x)[0], mine(x)[0])
    leaf = x.clone().requires_grad_()

    def function(x, *weights):
        torch.manual_seed(5)
        return mine(x)[0]

    assert torch.autograd.gradcheck(function, (leaf, *mine.parameters()))
    for m in (mine, theirs):
        m.eval()
    near(mine(x)[0], theirs(x)[0])
    assert torch.equal(mine(x)[0], mine(x)[0])
    assert mine(x)[0].requires_grad


def test_dropout_has_its_rate():
    """An upper layer that adds up what comes from below shows the share of what was dropped."""
    mine = ours.RNN(1, 1, num_layers=2, nonlinearity="relu", dropout=0.3, bias=False)
    with torch.no_grad():
        for name, p in mine.named_parameters():
            p.fill_(float("weight_ih" in name))
    y = mine(torch.ones(200, 100, 1))[0]
    dropped = y == 0
    # a binomial share of 20000 draws: five standard deviations are 0.0162
    assert abs(dropped.float().mean() - 0.3) < 0.0162
    assert torch.allclose(y[~dropped], torch.tensor(1 / 0.7))
    mine.dropout = 1.0
    assert (mine(torch.ones(5, 2, 1))[0] == 0).all()


# ---- copies, files, processes --------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_copies(name):
    mine = getattr(ours, name)(3, 4)
    x = torch.randn(*((2, 5, 3) if name in LAYERS else (5, 3)))
    want = flat(mine(x))
    file = io.BytesIO()
    torch.save(mine, file)
    file.seek(0)
    for twin in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine)),
                 torch.load(file, weights_only=False)):  # fmt: skip
        assert type(twin) is type(mine)
        assert all(torch.equal(a, b) for a, b in zip(flat(twin(x)), want, strict=True))
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        assert all(torch.equal(a, b) for a, b in zip(flat(mine(x)), want, strict=True))
        assert not torch.equal(flat(twin(x))[0], want[0])


def test_state_dict_goes_both_ways():
    theirs, mine = pair("LSTM", 3, 4, num_layers=2, bidirectional=True, proj_size=2)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())
    assert repr(mine) == repr(theirs)
    torch.manual_seed(1)
    a = nn.LSTM(3, 4)
    torch.manual_seed(1)
    b = ours.LSTM(3, 4)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def run_process(*arguments):
    script = Path(__file__).with_name("torch_processes.py")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else None
    command = [sys.executable, "-W", "error", str(script), *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and run.stdout == "done\n", run.stderr


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers(start):
    if start not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {start}")
    run_process("workers", start)


def test_shared_memory():
    run_process("share")


def test_distributed_data_parallel(tmp_path):
    """Two processes with half of the batch each have the gradients of one with the whole."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    run_process("ddp", str(tmp_path))


# ---- what goes to torch --------------------------------------------------------------------------


def fall_back(native, text, run):
    """The result of `run`, which must say `text` once, however often it runs."""
    with pytest.warns(UserWarning, match=text):
        result = run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="torch")
        run()
    assert not native
    return result


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_other_dtypes(name, native):
    theirs, mine = pair(name, 3, 4, dtype=torch.bfloat16)
    x = torch.randn(*((2, 5, 3) if name in LAYERS else (5, 3))).bfloat16()
    got = fall_back(native, "dtype torch.bfloat16", lambda: mine(x))
    assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(theirs(x)), strict=True))


def test_the_warning_names_the_caller(native):
    mine = ours.GRU(3, 4, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="rnnfast") as seen:
        mine(torch.ones(2, 5, 3).bfloat16())
    assert seen[0].filename == __file__


def test_other_devices(native):
    mine = ours.LSTM(3, 4, device="meta")
    y = fall_back(native, "device meta", lambda: mine(torch.ones(2, 5, 3, device="meta")))[0]
    assert y.device.type == "meta"


def test_other_tensors(native):
    class Mine(torch.Tensor):
        """A subclass may do anything in __torch_function__."""

    layer = ours.GRU(3, 4)
    y = fall_back(native, "a Mine", lambda: layer(torch.ones(2, 5, 3).as_subclass(Mine)))[0]
    assert type(y) is Mine


def test_autocast(native):
    theirs, mine = pair("GRU", 3, 4, dtype=torch.float32)
    x = torch.randn(2, 5, 3)
    with torch.autocast("cpu"):
        got = fall_back(native, "autocast", lambda: mine(x))
        want = theirs(x)
    assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(want), strict=True))


def test_functional_transforms(native):
    theirs, mine = pair("GRUCell", 3, 4)
    x = torch.randn(5, 3, dtype=torch.float64)
    got = fall_back(native, "torch.func", lambda: torch.func.grad(lambda x: mine(x).sum())(x))
    near(got, torch.func.grad(lambda x: theirs(x).sum())(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forward_mode(native):
    theirs, mine = pair("RNN", 3, 4)
    x, tangent = torch.randn(2, 2, 5, 3, dtype=torch.float64)

    def derivative(m):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, tangent)
            return torch.autograd.forward_ad.unpack_dual(m(dual)[0]).tangent

    got = fall_back(native, "forward-mode", lambda: derivative(mine))
    near(got, derivative(theirs))


def test_jit_trace(native):
    theirs, mine = pair("GRU", 3, 4)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        traced = torch.jit.trace(mine, (x,), check_trace=False)
    assert sum("torch.jit" in str(w.message) and "rnnfast" in str(w.message) for w in seen) == 1
    assert not native
    near(traced(x)[0], theirs(x)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_compile(name, native):
    """torch.compile takes the cell into its graph, and steps out of it for the layer: both run
    torch's own."""
    theirs, mine = pair(name, 3, 4)
    model = nn.Sequential(mine)
    x = torch.randn(*((2, 5, 3) if name in LAYERS else (5, 3)), dtype=torch.float64)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(model, backend="eager", fullgraph=name in CELLS)
        got = fall_back(native, "torch.compile", lambda: compiled(x))
        flat(got)[0].sum().backward()
    finally:
        torch._dynamo.reset()
    for g, w in zip(flat(got), flat(theirs(x)), strict=True):
        near(g, w)
    assert flat(mine(x)) and native  # and outside of it ours again


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export(native):
    theirs, mine = pair("GRUCell", 3, 4)
    x = torch.randn(5, 3, dtype=torch.float64)
    model = nn.Sequential(mine)
    with pytest.warns(UserWarning, match=r"torch\.compile"):
        program = torch.export.export(model, (x,))
    assert not native
    near(program.module()(x), theirs(x))


BAD_LAYER = {
    "features": lambda x, s: (x[..., :2], None),
    "one dimension": lambda x, s: (x[0, 0], None),
    "four dimensions": lambda x, s: (x[None], None),
    "no step": lambda x, s: (x[:0], None),
    "dtype": lambda x, s: (x.float(), None),
    "integers": lambda x, s: (x.long(), None),
    "not a tensor": lambda x, s: (x.tolist(), None),
    "state's batch": lambda x, s: (x, tuple(a[:, :2] for a in s)),
    "state's size": lambda x, s: (x, tuple(a[..., :2] for a in s)),
    "state's layers": lambda x, s: (x, tuple(a[:0] for a in s)),
    "state's dimensions": lambda x, s: (x, tuple(a[0] for a in s)),
    "state of one sequence": lambda x, s: (x[:, 0], s),
    "state's dtype": lambda x, s: (x, tuple(a.float() for a in s)),
    "packed features": lambda x, s: (packing.pack_sequence([x[:, 0, :2]]), None),
    "packed dtype": lambda x, s: (packing.pack_sequence([x[:, 0].float()]), None),
}


def error_of(module, arguments):
    with pytest.raises(Exception) as caught:
        module(*arguments)
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("what", BAD_LAYER)
@pytest.mark.parametrize("name", LAYERS)
def test_errors_are_those_of_torch(name, what, native):
    theirs, mine = pair(name, 3, 4)
    n = 2 if name == "LSTM" else 1
    state = tuple(torch.zeros(1, 5, 4, dtype=torch.float64) for _ in range(n))
    x, state = BAD_LAYER[what](torch.ones(6, 5, 3, dtype=torch.float64), state)
    state = state[0] if state and n == 1 else state
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an error needs no warning as well
        assert error_of(mine, (x, state)) == error_of(theirs, (x, state))


@pytest.mark.parametrize("name", CELLS)
def test_errors_of_cells(name):
    theirs, mine = pair(name, 3, 4)
    x, s = torch.ones(5, 3, dtype=torch.float64), torch.ones(5, 4, dtype=torch.float64)
    two = name == "LSTMCell"
    for bad, state in [(x[:, :2], None), (x[None], None), (x.float(), None), (x, s[:, :2]),
                       (x, s[:2]), (x, s[None]), (x[0], s[None])]:  # fmt: skip
        arguments = (bad, (state, state) if two and state is not None else state)
        assert error_of(mine, arguments) == error_of(theirs, arguments)


def test_errors_of_construction():
    for arguments, options in [((0, 4), {}), ((3, 4, 0), {}), ((3, 4), {"dropout": 2}),
                               ((3, 4), {"proj_size": 4}), ((3.0, 4), {}), ((3,), {})]:  # fmt: skip
        errors = []
        for module in (ours.LSTM, nn.LSTM):
            with pytest.raises((TypeError, ValueError)) as caught:
                module(*arguments, **options)
            errors.append((type(caught.value), str(caught.value)))
        assert errors[0] == errors[1]


def test_nonsense_is_not_read():
    """Batch sizes that do not add up go to torch, whatever it makes of them."""
    _, mine = pair("GRU", 3, 4)
    rows = torch.ones(6, 3, dtype=torch.float64)
    for sizes in ([2, 3, 1], [4, 4], [6, 0], [3, 3, 3]):
        packed = packing.PackedSequence(rows, torch.tensor(sizes))
        assert mine._rows(packed) is None
    assert mine._rows(packing.PackedSequence(rows, torch.tensor([3, 2, 1]))).B == 3


# ---- whole models --------------------------------------------------------------------------------


class Own(nn.LSTM):
    """Somebody's subclass, which may do what it likes in its forward."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 4, bidirectional=True))
        self.shared = self.encoder[1]
        self.cells = nn.ModuleList([nn.GRUCell(8, 5), nn.RNNCell(5, 5), nn.LSTMCell(5, 5)])
        self.plain = nn.ModuleDict({"gru": nn.GRU(5, 4, num_layers=2), "rnn": nn.RNN(4, 2)})
        self.own = Own(2, 2)

    def forward(self, x):
        y = torch.stack([self.cells[1](self.cells[0](t)) for t in self.encoder(x)[0]])
        y = torch.stack([self.cells[2](t)[0] for t in y])
        return self.own(self.plain["rnn"](self.plain["gru"](y)[0])[0])[0]


def test_accelerate_and_restore(native):
    model = Model().double()
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    want = model(x)
    objects, parameters = list(model.modules()), list(model.parameters())
    calls = []
    model.plain["gru"].register_forward_hook(lambda *_: calls.append("gru"))
    assert ours.accelerate(model) is model
    assert all(a is b for a, b in zip(model.modules(), objects, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.shared is model.encoder[1] and type(model.shared) is ours.LSTM
    assert {type(m) for m in model.modules()} >= set(ours.SWAPS.values())
    assert type(model.own) is Own
    near(model(x), want)
    assert calls and len(native) == 3 + 3 * 6
    assert repr(model) == repr(Model())
    assert ours.accelerate(model) is model  # twice is once
    native.clear()
    assert ours.restore(model) is model
    assert not any(isinstance(m, ours.Swapped) for m in model.modules())
    assert torch.equal(model(x), want) and not native
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    pickled = pickle.dumps(ours.restore(ours.accelerate(nn.LSTM(3, 4))))
    assert b"rnnfast" not in pickled


def test_a_single_module_is_a_model_too():
    gru = nn.GRU(3, 4)
    assert ours.accelerate(gru) is gru and type(gru) is ours.GRU
    for wrong in (None, [gru], "model"):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
            ours.accelerate(wrong)
        with pytest.raises(TypeError):
            ours.restore(wrong)


def test_training_goes_on():
    """The optimiser of before goes on after the swap, as if nothing had happened."""
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    found = []
    for swap in (ours.accelerate, lambda model: model):
        torch.manual_seed(2)
        model = Model().double()
        adam = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(6):
            if step == 2:
                swap(model)
            if step == 4:
                ours.restore(model)
            adam.zero_grad()
            model(x).square().sum().backward()
            adam.step()
        found.append(list(model.parameters()))
    for p, q in zip(*found, strict=True):
        # Adam divides by the root of the gradient's square: where that is small its relative
        # error counts in full
        assert (p - q).abs().max() < 1e-9
