"""Train a small network with Accelerate: fastopt's optimizer is prepared and used as torch's is.

pip install accelerate
python examples/torch_accelerate.py
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from fastopt.torch import AdamW

EPOCHS = 20
ACCUMULATION = 2


def make_data() -> TensorDataset:
    """Return points and the sum of the sines of their coordinates."""
    x = torch.rand(512, 8, generator=torch.Generator().manual_seed(0)) * 4 - 2
    return TensorDataset(x, x.sin().sum(dim=1, keepdim=True))


def train(optimizer_class: Callable[..., torch.optim.Optimizer] = AdamW) -> list[float]:
    """Return the mean loss of every epoch."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
    network = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    adam = optimizer_class(network.parameters(), lr=1e-2)
    data = DataLoader(make_data(), batch_size=32, shuffle=True)
    one_cycle = OneCycleLR(adam, max_lr=3e-2, total_steps=EPOCHS * len(data) // ACCUMULATION)
    model, optimizer, loader, scheduler = accelerator.prepare(network, adam, data, one_cycle)
    losses = []
    for _ in range(EPOCHS):
        total = 0.0
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            total += float(loss.detach())
        losses.append(total / len(loader))
    return losses


if __name__ == "__main__":
    for epoch, loss in enumerate(train(), start=1):
        print(f"epoch {epoch:2d}  loss {loss:.5f}")
