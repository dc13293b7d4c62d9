"""What tests/test_torch.py runs in processes of their own: python torch_processes.py TASK [FOLDER].
A script, so that processes started by "spawn" find what they unpickle."""

import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader, Dataset

import rnnfast.torch


class Features(Dataset):
    """What a layer, which travels to the worker, makes of random sequences."""

    def __init__(self, layer, x):
        self.layer, self.x = layer, x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, k):
        with torch.no_grad():
            return self.layer(self.x[k])[0]


def workers(start):
    torch.manual_seed(0)
    layer, x = rnnfast.torch.GRU(3, 4, bidirectional=True), torch.randn(8, 6, 3)
    layer.share_memory()
    loader = DataLoader(Features(layer, x), batch_size=2, num_workers=1,
                        multiprocessing_context=start)  # fmt: skip
    for _ in range(2):  # the second time with other weights
        here = torch.stack([Features(layer, x)[k] for k in range(8)])
        assert torch.equal(torch.cat(list(loader)), here)
        with torch.no_grad():
            layer.weight_hh_l0.mul_(2)
    # training goes on beside the workers
    for batch in loader:
        rnnfast.torch.LSTM(8, 2)(batch)[0].sum().backward()


def halve(layer, seen):
    y = layer(torch.ones(2, 1, 3))[0]
    seen.put(y.tolist())
    with torch.no_grad():
        layer.weight_ih_l0.mul_(0.5)


def share():
    context = mp.get_context("spawn")
    layer = rnnfast.torch.LSTM(3, 4)
    x = torch.ones(2, 1, 3)
    layer(x)  # bound to the memory it had before
    layer.share_memory()
    before, seen = layer(x)[0], context.Queue()
    child = context.Process(target=halve, args=(layer, seen))
    child.start()
    assert seen.get(timeout=60) == before.tolist()
    child.join(60)
    assert child.exitcode == 0
    own = torch.nn.LSTM(3, 4)
    own.load_state_dict(layer.state_dict())
    after = layer(x)[0]
    assert not torch.equal(after, before)
    assert torch.allclose(after, own(x)[0], atol=1e-6)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
        self.cell = nn.GRUCell(8, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(torch.stack([self.cell(y) for y in self.rnn(x)[0]]))


def tagger():
    torch.manual_seed(0)
    return rnnfast.torch.accelerate(Tagger().double())


def data():
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(7, 6, 3, generator=generator, dtype=torch.float64),
            torch.randn(7, 6, 2, generator=generator, dtype=torch.float64))  # fmt: skip


def train(model, x, target):
    """Three steps of SGD; the gradients of each."""
    sgd, seen = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), []
    for _ in range(3):
        sgd.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        seen.append([p.grad.clone() for p in model.parameters()])
        sgd.step()
    return seen


def member(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(tagger())
    x, target = data()
    mine = slice(3 * rank, 3 * rank + 3)
    for got, want in zip(train(model, x[:, mine], target[:, mine]), train(tagger(), x, target),
                         strict=True):  # fmt: skip
        for g, w in zip(got, want, strict=True):
            assert (g - w).abs().max() <= 1e-12 * max(1, w.abs().max()), rank
    dist.destroy_process_group()


def ddp(folder):
    mp.spawn(member, (folder,), nprocs=2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"workers": workers, "share": share, "ddp": ddp}[sys.argv[1]](*sys.argv[2:])
    print("done")
