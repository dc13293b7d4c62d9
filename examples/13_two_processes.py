"""Training in two processes, each with half of every batch: PyTorch's DistributedDataParallel, on
gloo, around a model whose GRU rnnfast computes; against one process with the whole batch. Data: the
next character of Python's own help pages."""

import tempfile
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import rnnfast.torch

STEPS, ROWS = 60, 32  # ROWS readers, side by side


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(128, 16), nn.GRU(16, 64), nn.Linear(64, 128)

    def forward(self, ids):
        return self.head(self.rnn(self.embed(ids))[0])


def train(rank, processes, folder):
    """Leave the losses and the weights in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/{processes}", rank=rank, world_size=processes)
    text = "".join(topics[key] for key in sorted(topics)).encode("ascii", "replace")[:200_000]
    rows = torch.tensor(list(text[: len(text) // ROWS * ROWS])).reshape(ROWS, -1).T
    mine = rows[:, rank::processes]  # (time, this process's share)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(rnnfast.torch.accelerate(Reader()))
    adam, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    for step in range(STEPS):
        x = mine[50 * step : 50 * step + 51]
        adam.zero_grad()
        loss = nn.functional.cross_entropy(model(x[:-1]).flatten(0, 1), x[1:].flatten())
        loss.backward()  # the processes' gradients are averaged here
        adam.step()
        dist.all_reduce(mean := loss.detach() / processes)
        losses.append(mean.item() / 0.693147)
    if rank == 0:
        torch.save([torch.tensor(losses), *model.module.state_dict().values()], f"{folder}/result")
    dist.destroy_process_group()


if __name__ == "__main__":  # the processes import this file
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for processes in (1, 2):
            mp.spawn(train, (processes, folder), nprocs=processes)
            results.append(torch.load(f"{folder}/result"))
            losses = results[-1][0]
            print(f"{processes} at work: loss {losses[0]:.2f}, then {losses[-10:].mean():.2f} bits")
    apart = max((a - b).abs().max().item() for a, b in zip(*results, strict=True))
    print(f"largest difference of losses and weights: {apart:.1e}")
