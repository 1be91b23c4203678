"""The field: all contestants, by name, in the order of the tables."""

from __future__ import annotations

from fastopt.benchmark import rivals
from fastopt.benchmark.contestants import Contestant, Fastopt, Floor, Textbook

CONTESTANTS: dict[str, type[Contestant]] = {
    contestant.name: contestant
    for contestant in (
        Floor,
        Fastopt,
        Textbook,
        rivals.FastoptTorch,
        rivals.Torch,
        rivals.TorchForeach,
        rivals.TorchFused,
        rivals.DeepSpeed,
        rivals.Optax,
        rivals.TorchAO,
        rivals.BitsAndBytes,
    )
}

OURS = ("floor", "fastopt", "fastopt.torch")
"""What is always in: the others are rivals."""

RIVALS = tuple(name for name in CONTESTANTS if name not in OURS)


def counterparts(contestant: str) -> tuple[str, ...]:
    """Return which of ours a contestant is compared with, best first: on tensors those for tensors."""
    on_tensors = issubclass(CONTESTANTS[contestant], rivals.OnTensors)
    return ("fastopt.torch", "fastopt") if on_tensors else ("fastopt", "fastopt.torch")
