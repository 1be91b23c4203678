"""The field: all contestants, by name, in the order of the tables."""

from __future__ import annotations

from collections.abc import Iterable

from fastopt.benchmark import rivals
from fastopt.benchmark.contestants import Contestant, Fastopt, Fastopt8bit, FastoptBfloat16, Floor, Textbook

CONTESTANTS: dict[str, type[Contestant]] = {
    contestant.name: contestant
    for contestant in (
        Floor,
        Fastopt,
        FastoptBfloat16,
        Fastopt8bit,
        Textbook,
        rivals.FastoptTorch,
        rivals.Torch,
        rivals.TorchForeach,
        rivals.TorchFused,
        rivals.DeepSpeed,
        rivals.FastoptJax,
        rivals.Optax,
        rivals.TorchAO,
        rivals.BitsAndBytes,
        rivals.Package,
    )
}

OURS = ("floor", "fastopt", "fastopt.torch", "fastopt.jax")
"""The others are rivals, of which two are our own: with states in fewer bits."""

RIVALS = tuple(name for name in CONTESTANTS if name not in OURS)


def counterparts(contestant: str) -> tuple[str, ...]:
    """Return which of ours a contestant is compared with, best first: the one on tensors, or on JAX."""
    cls = CONTESTANTS[contestant]
    if issubclass(cls, rivals.OnTensors):
        return "fastopt.torch", "fastopt"
    return (*(["fastopt.jax"] if issubclass(cls, rivals.OnJax) else []), "fastopt", "fastopt.torch")


def company(contestants: Iterable[str]) -> set[str]:
    """Return which of ours take part beside others: `fastopt.jax` only where it is compared with one."""
    compared = {counterparts(name)[0] for name in contestants}
    return {*OURS} - ({"fastopt.jax"} - compared)
