"""What the lessons on a transformer share: a small one that learns the next character of Python's reference.

It needs torch, which is imported where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from fastopt import schedules
from fastopt.schedules import Schedule
from fastopt.training.batches import Batch, ShuffledBatches
from fastopt.training.config import PYDOC_TOPICS
from fastopt.training.text import load_text

CONTEXT, LAYERS, WIDTH, ROWS, STEPS = 32, 2, 32, 8, 250
SETTING = (
    f"transformer of {LAYERS} layers of {WIDTH}, characters of Python's reference, {STEPS} batches of {ROWS}, AdamW"
)


@dataclass(frozen=True)
class Recipe:
    """What the transformer is trained with: the usual numbers, but the peak."""

    peak: float
    warmup: int = STEPS // 50
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0

    @property
    def schedule(self) -> Schedule:
        """The course of the rate; cosine from the first step on where there is no warmup."""
        if self.warmup == 0:
            return schedules.cosine(self.peak, STEPS)
        return schedules.warmup_cosine(self.peak, self.warmup, STEPS)


@cache
def parts() -> tuple[int, Batch, Batch]:
    """Return the number of different characters, pieces to learn, and pieces held out, of which an eighth will do."""
    text = load_text(PYDOC_TOPICS, CONTEXT)
    learned, held_out = (text.pieces(part, CONTEXT) for part in (text.train, text.test))
    return len(text.vocabulary), learned, Batch(held_out.features[::8], held_out.targets[::8])


@cache
def held_out_loss(recipe: Recipe, seed: int = 0) -> float:
    """Return the loss on text that was not learned, in nats per character, after training."""
    import torch

    from fastopt.torch import AdamW
    from fastopt.training.transformer import Transformer

    characters, learned, held_out = parts()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are small
    try:
        model = Transformer(characters, layers=LAYERS, width=WIDTH, context=CONTEXT, dtype="float32", seed=seed)
        options: dict[str, Any] = {} if recipe.clip_norm is None else {"clip_norm": recipe.clip_norm}
        descent = AdamW(
            model.network.parameters(),
            lr=recipe.schedule,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            **options,
        )
        batches = ShuffledBatches(learned, ROWS, seed).from_step(0)
        for _ in range(STEPS):
            model.forward_backward(next(batches))
            descent.step()
            descent.zero_grad()
        return model.evaluate(held_out)["loss"]
    finally:
        torch.set_num_threads(threads)
