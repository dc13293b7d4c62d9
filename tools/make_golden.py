"""Write tests/golden/*.npz: values and gradients from PyTorch, in float64, on one thread.

Run from the root of the repository, in an environment that has torch 2.13.0 and NumPy:

    python -m tools.make_golden

The tests read the files and draw the inputs again (tests/golden_cases.py); PyTorch is needed only
here. The variants that torch.nn does not have are written out below in torch operations, straight
from their equations, and differentiated by autograd.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests import golden_cases as g

HERE = Path(__file__).resolve().parent.parent / "tests" / "golden"


def leaf(a):
    return torch.tensor(a, dtype=torch.float64, requires_grad=True)


def set_parameters(module, params):
    """Put `params` in; the module must have just these names."""
    own = dict(module.named_parameters())
    assert own.keys() == params.keys(), (own.keys(), params.keys())
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(torch.tensor(params[name]))


def numpy(tensors):
    return [t.detach().numpy() for t in tensors]


def network(kind, index, case):
    name, keywords, states = g.NETWORKS[kind]
    inputs = g.network_inputs(kind, index, case)
    options = {k: v for k, v in case.items() if k != "ragged" and (k != "proj_size" or v)}
    net = getattr(torch.nn, name)(g.I, g.H, **options, **keywords).double()
    set_parameters(net, inputs["params"])
    x, *state = (leaf(inputs[n]) for n in ("x", "h0", "c0")[: states + 1])
    fed = x
    if case["ragged"]:
        fed = pack_padded_sequence(x, torch.tensor(g.LENGTHS), case["batch_first"], False)
    y, last = net(fed, tuple(state) if states == 2 else state[0])
    if case["ragged"]:
        y, _ = pad_packed_sequence(y, case["batch_first"], total_length=g.T)
    out = [y, *(last if states == 2 else [last])]
    weights = ("dy", "dh_n", "dc_n")
    sum((a * torch.tensor(inputs[w])).sum() for a, w in zip(out, weights, strict=False)).backward()
    gradients = [x.grad, *(s.grad for s in state)]
    order = g.network_shapes(kind, case)
    gradients += [dict(net.named_parameters())[n].grad for n in order]
    return g.pack(inputs, numpy(out + gradients))


GATES = {
    "sigmoid": torch.sigmoid,
    # not F.hardsigmoid: its derivative in float64 is the float32 number nearest to 1/6
    "hard_sigmoid": lambda a: (a + 3).clamp(0, 6) / 6,
    "hard_sigmoid_onnx": lambda a: (0.2 * a + 0.5).clamp(0, 1),
}


def norm(a, gain):
    return F.layer_norm(a, a.shape[-1:], gain)


def lstm_variant(case, p, x, h, c):
    gate, ys = GATES[case["gate"]], []
    bias = p["bias_ih"] + p["bias_hh"] if case["bias"] else 0
    for x_t in x:
        ax, ah = x_t @ p["weight_ih"].T, h @ p["weight_hh"].T
        if case["layer_norm"]:
            ax, ah = norm(ax, p["gain_ih"]), norm(ah, p["gain_hh"])
        a = (ax + ah + bias).chunk(3 if case["coupled"] else 4, dim=1)
        a_i, a_g, a_o = a[0], a[-2], a[-1]
        if case["peephole"]:
            a_i = a_i + p["peephole"][0] * c
        i = gate(a_i)
        if case["coupled"]:
            f = 1 - i
        else:
            f = gate(a[1] + p["peephole"][1] * c if case["peephole"] else a[1])
        c = f * c + i * torch.tanh(a_g)
        if case["cell_clip"]:
            c = c.clamp(-case["cell_clip"], case["cell_clip"])
        if case["peephole"]:
            a_o = a_o + p["peephole"][2] * c
        seen = norm(c, p["gain_c"]) + p["bias_c"] if case["layer_norm"] else c
        h = gate(a_o) * torch.tanh(seen)
        if case["proj_size"]:
            h = h @ p["weight_hr"].T
        ys.append(h)
    return [torch.stack(ys), h, c]


def gru_variant(case, p, x, h, _):
    gate, ys = GATES[case["gate"]], []
    b_i = p["bias_ih"].chunk(3) if case["bias"] else (0, 0, 0)
    b_h = p["bias_hh"].chunk(3) if case["bias"] else (0, 0, 0)
    for x_t in x:
        ax, ah = x_t @ p["weight_ih"].T, h @ p["weight_hh"].T
        if case["kind"] == "norm":
            ax, ah = norm(ax, p["gain_ih"]), norm(ah, p["gain_hh"])
        (x_r, x_z, x_n), (h_r, h_z, h_n) = ax.chunk(3, dim=1), ah.chunk(3, dim=1)
        r, z = gate(x_r + b_i[0] + h_r + b_h[0]), gate(x_z + b_i[1] + h_z + b_h[1])
        if case["kind"] == "before":
            n = torch.tanh(x_n + b_i[2] + (r * h) @ p["weight_hh"].chunk(3)[2].T + b_h[2])
        else:
            n = torch.tanh(x_n + b_i[2] + r * (h_n + b_h[2]))
        h = (1 - z) * n + z * h
        ys.append(h)
    return [torch.stack(ys), h]


def variant(cell, index, case):
    inputs = g.variant_inputs(cell, index, case)
    p = {name: leaf(a) for name, a in inputs["params"].items()}
    x, h0, c0 = (leaf(inputs[n]) for n in ("x", "h0", "c0"))
    run = lstm_variant if cell == "lstm" else gru_variant
    out = run(case, {n.removesuffix("_l0"): a for n, a in p.items()}, x, h0[0], c0[0])
    weights = [inputs["dy"], inputs["dh_n"][0], inputs["dc_n"][0]]
    sum((a * torch.tensor(w)).sum() for a, w in zip(out, weights, strict=False)).backward()
    gradients = [x.grad, *(s.grad for s in (h0, c0)[: len(out) - 1])]
    return g.pack(inputs, numpy(out + gradients + [a.grad for a in p.values()]))


def cell(kind, bias):
    name, keywords = g.CELLS[kind]
    inputs = g.cell_inputs(kind, bias)
    module = getattr(torch.nn, name)(g.I, g.H, bias=bias, **keywords).double()
    set_parameters(module, inputs["params"])
    x, h, c = (leaf(inputs[n]) for n in ("x", "h0", "c0"))
    state = [h, c] if kind == "lstm" else [h]
    out = module(x, tuple(state) if kind == "lstm" else h)
    out = list(out) if kind == "lstm" else [out]
    weights = ("dh", "dc")
    sum((a * torch.tensor(inputs[w])).sum() for a, w in zip(out, weights, strict=False)).backward()
    own = dict(module.named_parameters())
    return g.pack(inputs, numpy([*out, x.grad, *(s.grad for s in state),
                                 *(own[n].grad for n in inputs["params"])]))  # fmt: skip


def functions():
    """Losses, embedding, layer norm, clipping."""
    arrays = {}
    logits, targets, classes = g.softmax_inputs()
    for k, case in enumerate(g.SOFTMAX_CASES):
        z = leaf(logits)
        loss = F.cross_entropy(
            z.reshape(-1, 5),
            torch.tensor(np.where(targets < 0, case["ignore_index"], targets)).reshape(-1),
            weight=torch.tensor(classes) if case["weighted"] else None,
            ignore_index=case["ignore_index"],
            reduction=case["reduction"],
            label_smoothing=case["smoothing"],
        )
        loss.sum().backward()
        arrays[f"softmax_{k}"] = g.pack((logits, classes), numpy([loss, z.grad]))
    logits, target = g.sigmoid_inputs()
    z = leaf(logits)
    loss = F.binary_cross_entropy_with_logits(z, torch.tensor(target), reduction="none").sum(-1)
    loss.sum().backward()
    arrays["sigmoid"] = g.pack((logits, target), numpy([loss, z.grad]))
    z = leaf(logits)
    loss = 0.5 * F.mse_loss(z, torch.tensor(target), reduction="none").sum(-1)
    loss.sum().backward()
    arrays["quadratic"] = g.pack((logits, target), numpy([loss, z.grad]))
    table, ids, dy = g.embedding_inputs()
    module = torch.nn.Embedding(*table.shape).double()
    set_parameters(module, {"weight": table})
    y = module(torch.tensor(ids))
    (y * torch.tensor(dy)).sum().backward()
    arrays["embedding"] = g.pack((table, dy), numpy([y, module.weight.grad]))
    x, gain, bias, dy = inputs = g.layer_norm_inputs()
    leaves = [leaf(a) for a in (x, gain, bias)]
    y = F.layer_norm(leaves[0], x.shape[-1:], *leaves[1:])
    (y * torch.tensor(dy)).sum().backward()
    arrays["layer_norm"] = g.pack(inputs, numpy([y, *(a.grad for a in leaves)]))
    for k, limit in enumerate(g.CLIP_LIMITS):
        for name, clip in (("norm", clip_grad_norm_), ("value", clip_grad_value_)):
            params = [torch.nn.Parameter(torch.zeros(a.shape).double()) for a in g.clip_inputs()]
            for p, a in zip(params, g.clip_inputs(), strict=True):
                p.grad = torch.tensor(a)
            total = clip(params, limit)
            total = torch.zeros(()) if total is None else total
            arrays[f"clip_{name}_{k}"] = g.pack(
                g.clip_inputs(), numpy([total, *(p.grad for p in params)]))
    return arrays


def optimiser(name):
    kind, options = g.OPTIMISERS[name]
    params, gradients = g.optimiser_inputs()
    tensors = {n: torch.nn.Parameter(torch.tensor(a)) for n, a in params.items()}
    opt = getattr(torch.optim, kind)(list(tensors.values()), **options)
    path = []
    for step in gradients:
        for n, p in tensors.items():
            p.grad = torch.tensor(step[n])
        opt.step()
        path += [p.detach().numpy().copy() for p in tensors.values()]
    return g.pack((params, *gradients), path)


def main():
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    files = {
        kind: {str(k): network(kind, k, case) for k, case in enumerate(g.network_cases(kind))}
        for kind in g.NETWORKS
    }
    files["variants"] = {
        f"{cell}_{k}": variant(cell, k, case)
        for cell in g.VARIANTS
        for k, case in enumerate(g.variant_cases(cell))
    }
    files["cells"] = {f"{kind}_{b}": cell(kind, bool(b)) for kind in g.CELLS for b in (0, 1)}
    files["functions"] = functions()
    files["optimisers"] = {name: optimiser(name) for name in g.OPTIMISERS}
    for name, arrays in files.items():
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
        print(f"{name}: {len(arrays)} cases, {(HERE / f'{name}.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
