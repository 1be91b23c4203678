"""The optimizers for torch, each made from its description in `fastopt.methods`."""

from __future__ import annotations

from fastopt.classes import when_asked_for
from fastopt.optimizers import described
from fastopt.torch.optimizer import Optimizer, made_from


def registry() -> dict[str, type[Optimizer]]:
    """Return the optimizers by name, in the order of `fastopt.optimizers.registry`."""
    return {name: globals().get(name) or __getattr__(name) for name in described()}


__getattr__, __dir__ = when_asked_for(globals(), described, lambda name: made_from(described()[name]))
