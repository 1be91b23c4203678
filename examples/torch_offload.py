"""Train a small model with its optimizer on the host: `python examples/torch_offload.py`.

On a machine without an accelerator the processor stands in for it, so that this can be tried anywhere.
"""

import torch
from torch import nn

from fastopt.torch import AdamW, Offload


def main(steps: int = 200) -> float:
    """Fit a sine; return the last loss."""
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1)).to(device, torch.bfloat16)
    optimizer = Offload(model.parameters(), AdamW, lr=1e-2, clip_norm=1.0)
    x = torch.linspace(-3, 3, 256, device=device).unsqueeze(1)
    for step in range(steps):
        loss = (model(x.bfloat16()).float() - x.sin()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step:3d}  loss {loss.item():.4f}")
    print(f"on {device}: loss {loss.item():.4f}")
    return loss.item()


if __name__ == "__main__":
    main()
