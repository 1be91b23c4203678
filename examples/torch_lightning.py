"""Train a small network with Lightning: a module returns fastopt's optimizer as it would torch's.

pip install lightning
python examples/torch_lightning.py
"""

import logging
from collections.abc import Callable

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastopt.torch import AdamW

EPOCHS = 20


class Sines(lightning.LightningModule):
    """Learns the sum of the sines of the coordinates of a point."""

    def __init__(self, optimizer_class: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.optimizer_class = optimizer_class
        self.network = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        loss: Tensor = nn.functional.mse_loss(self.network(x), y)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        """Return the optimizer and torch's scheduler, as Lightning wants them."""
        optimizer = self.optimizer_class(self.parameters(), lr=3e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-2, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_data() -> TensorDataset:
    """Return points and the sum of the sines of their coordinates."""
    x = torch.rand(512, 8, generator=torch.Generator().manual_seed(0)) * 4 - 2
    return TensorDataset(x, x.sin().sum(dim=1, keepdim=True))


def train(optimizer_class: Callable[..., torch.optim.Optimizer] = AdamW) -> list[float]:
    """Return the mean loss of every epoch."""
    lightning.seed_everything(0, verbose=False)
    module = Sines(optimizer_class)
    loader = DataLoader(make_data(), batch_size=32, shuffle=True)
    # Lightning clips before the step; `clip_norm=` of the optimizer would do it within.
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return torch.tensor(module.losses).view(EPOCHS, -1).mean(dim=1).tolist()


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for epoch, loss in enumerate(train(), start=1):
        print(f"epoch {epoch:2d}  loss {loss:.5f}")
