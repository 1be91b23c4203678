"""Train the same small model in two processes on the CPU in the two ways that share the optimizer's state.

    torchrun --standalone --nproc-per-node 2 examples/torch_distributed.py

With `ZeroRedundancyOptimizer` every process has the whole model and a part of the optimizer's state; with `fully_shard`
(FSDP2) it has a part of both. fastopt's optimizers work in either as torch's do.
"""

import gc
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from fastopt.schedules import warmup_cosine
from fastopt.torch import AdamW, clip_grad_norm_

STEPS = 60


def make_model() -> nn.Sequential:
    """Return the same model in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, clip: bool) -> float:
    """Fit a sum of sines, each process on data of its own; return the mean of the last losses."""
    data = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(STEPS):
        x = torch.rand(64, 16, generator=data) * 4 - 2
        loss = nn.functional.mse_loss(model(x), x.sin().sum(dim=1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        if clip:
            clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    mean = loss.detach()
    dist.all_reduce(mean)
    return float(mean / dist.get_world_size())


def with_a_part_of_the_state() -> float:
    """Train with the optimizer's state divided among the processes."""
    model = DistributedDataParallel(make_model())
    lr = warmup_cosine(peak=1e-2, warmup=10, total=STEPS)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=AdamW, lr=lr)
    # Each process steps some parameters only, so the norm of all of them has to be clipped outside.
    return train(model, optimizer, clip=True)


def with_a_part_of_everything() -> float:
    """Train with parameters, gradients and state divided among the processes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = make_model()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # Of sharded parameters, clip_norm is the norm over all processes.
    lr = warmup_cosine(peak=1e-2, warmup=10, total=STEPS)
    optimizer = AdamW(model.parameters(), lr=lr, clip_norm=1.0)
    return train(model, optimizer, clip=False)


def main() -> None:
    """Train both ways and print the losses, from the first process."""
    dist.init_process_group("gloo")
    try:
        losses = {
            "ZeroRedundancyOptimizer": with_a_part_of_the_state(),
            "fully_shard": with_a_part_of_everything(),
        }
        if dist.get_rank() == 0:
            print(f"{dist.get_world_size()} processes, {os.environ.get('OMP_NUM_THREADS', '?')} thread(s) each")
            for name, loss in losses.items():
                print(f"{name:24s} loss after {STEPS} steps: {loss:.4f}")
    finally:
        gc.collect()  # models in reference cycles would keep the group's threads running into the interpreter's end
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
