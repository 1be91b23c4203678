"""AdamW.

Weight decay pulls every weight towards zero. Added to the gradient, as L2 regularization is, it goes through Adam's
division: weights with large gradients hardly shrink. AdamW decouples it: all weights are multiplied by the same
1 - lr · wd, whatever their gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fastopt import Adam, AdamW, Optimizer
from fastopt.lessons.drawing import line_styles, look
from fastopt.lessons.lesson import Array, Lesson, at_least, near
from fastopt.lessons.networks import random_batches, sharpness, train, weight_norm
from fastopt.training.batches import Batch
from fastopt.training.losses import SoftmaxCrossEntropy
from fastopt.training.mlp import MLP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=8,
    formula="""
        L2:      g ← g + wd · w,   then a step of Adam
        AdamW:   w ← (1 - lr · wd) · w,   and a step of Adam
    """,
)

LR, DECAY, STEPS = 1e-3, 0.1, 2000
NOISES = (0.1, 1.0, 10.0)


@cache
def shrinking(optimizer: Callable[..., Optimizer]) -> Array:
    """Return the mean weight after every step, shape (steps, noises): weights of 1 with nothing to learn.

    The gradients are random with standard deviations 0.1, 1 and 10. Half of the weights see the negative of what the
    other half sees, so that the mean shows the decay alone.
    """
    random = np.random.default_rng(0)
    w = np.ones((len(NOISES), 1000))
    descent = optimizer(w, lr=LR, weight_decay=DECAY)
    means = np.empty((STEPS, len(NOISES)))
    for step in range(STEPS):
        noise = random.standard_normal((len(NOISES), 500)) * np.array(NOISES)[:, None]
        descent.step(np.concatenate([noise, -noise], axis=1))
        means[step] = w.mean(axis=1)
    return means


@LESSON.claim(
    "Decoupled decay shrinks all weights alike",
    setting="weights of 1, random gradients of size 0.1, 1 and 10, lr 0.001, decay 0.1, 2000 steps",
    quantity="mean weight at the end for each size",
    expected=(near((1 - LR * DECAY) ** STEPS, 0.01),) * len(NOISES),
)
def decoupled() -> list[float]:
    """0.9999²⁰⁰⁰ = 0.819, whatever the gradient."""
    return list(shrinking(AdamW)[-1])


@LESSON.claim(
    "L2 inside Adam does not shrink all weights alike",
    setting="the same",
    quantity="shrinkage with gradients of size 0.1 / with size 10",
    expected=at_least(10.0),
)
def coupled() -> float:
    """The decay is divided by the size of the gradients, as all of the gradient is."""
    shrinkage = 1 - shrinking(Adam)[-1]
    return float(shrinkage[0] / shrinkage[-1])


ROWS, HELD_OUT, FEATURES, SEEDS, TRAINING_STEPS = 400, 2000, 10, 5, 400
DECAYS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def noisy_classes(seed: int) -> tuple[Batch, Batch, Batch]:
    """Return few rows to learn, many to choose the decay by, and many held out.

    A tenth of the labels is wrong, so that learning by heart is bad.
    """
    random = np.random.default_rng(seed)
    x = random.standard_normal((ROWS + 2 * HELD_OUT, FEATURES))
    y = ((x[:, 0] + x[:, 1] * x[:, 2] > 0) ^ (random.random(len(x)) < 0.1)).astype(int)
    learned, chosen_by, held_out = np.split(np.arange(len(x)), [ROWS, ROWS + HELD_OUT])
    return Batch(x[learned], y[learned]), Batch(x[chosen_by], y[chosen_by]), Batch(x[held_out], y[held_out])


@dataclass(frozen=True)
class Outcome:
    """What training with one decay came to, mean over the seeds."""

    chosen_by: float
    held_out: float
    norm: float


@cache
def trained(optimizer: Callable[..., Optimizer], decay: float, seed: int) -> tuple[MLP, Batch]:
    """Return a network that was trained with a decay, and the rows it has learned."""
    rows, _, _ = noisy_classes(seed)
    model = MLP([FEATURES, 64, 2], SoftmaxCrossEntropy(), batch_size=ROWS, dtype="float64", seed=seed)
    descent = optimizer(model.parameters, lr=0.01, weight_decay=decay)
    train(model, descent, random_batches(rows, 32, TRAINING_STEPS, seed))
    return model, rows


@cache
def outcome(optimizer: Callable[..., Optimizer], decay: float) -> Outcome:
    """Train a network with one decay and look at the losses on unseen rows and at the length of all weights."""
    found = []
    for seed in range(SEEDS):
        _, chosen_by, held_out = noisy_classes(seed)
        model, _ = trained(optimizer, decay, seed)
        found.append((model.evaluate(chosen_by)["loss"], model.evaluate(held_out)["loss"], weight_norm(model)))
    return Outcome(*map(float, np.mean(found, axis=0)))


def best(optimizer: Callable[..., Optimizer]) -> Outcome:
    """Return the outcome of the decay that is best on the rows to choose by."""
    return min((outcome(optimizer, decay) for decay in DECAYS), key=lambda outcome: outcome.chosen_by)


@LESSON.claim(
    "Decay makes smaller weights, and they generalize better",
    setting="network 10-64-2, 400 rows with a tenth of wrong labels, best of 9 decays by 2000 rows, "
    "2000 others held out, mean of 5 seeds",
    quantity="without decay / with: length of all weights, held-out loss",
    expected=(at_least(2.0), at_least(1.2)),
)
def generalizes() -> list[float]:
    """The labels that are wrong can only be learned by heart, for which large weights are needed."""
    without, decayed = outcome(AdamW, 0.0), best(AdamW)
    return [without.norm / decayed.norm, without.held_out / decayed.held_out]


WIDER = 0.3


def sharpness_with(decay: float) -> float:
    """Return the largest Hessian eigenvalue at the end of training, mean over the seeds."""
    return float(np.mean([sharpness(*trained(AdamW, decay, seed)) for seed in range(SEEDS)]))


@LESSON.claim(
    "Decay leads to wider minima",
    setting="the same, without decay and with decay 0.3",
    quantity="largest Hessian eigenvalue at the end without / with",
    expected=at_least(1.5),
    digits=2,
    varies=True,
)
def wider() -> float:
    """The curvature is one over the square of a length in weights: shorter ones bend less in what they multiply."""
    return sharpness_with(0.0) / sharpness_with(WIDER)


@LESSON.claim(
    "Decoupled decay generalizes better than L2 inside Adam",
    setting="the same, each with its best decay",
    quantity="held-out loss with L2 / with AdamW",
    expected=at_least(1.02),
)
def better_than_l2() -> float:
    """It was found on images (Loshchilov & Hutter 2019). Here, with the best decay of each, they are hardly apart."""
    return best(Adam).held_out / best(AdamW).held_out


@LESSON.draw(panels=4)
def figure(l2: Axes, decoupled: Axes, held_out: Axes, norms: Axes) -> None:
    """Above, the mean weight when only the decay acts, for three sizes of gradients. Below, a network that can learn
    wrong labels by heart: held-out loss and length of all weights by decay.
    """
    for axes, optimizer, title in ((l2, Adam, "L2 inside Adam"), (decoupled, AdamW, "AdamW")):
        for style, noise, means in zip(line_styles(), NOISES, shrinking(optimizer).T, strict=False):
            axes.plot(means, linestyle=style, label=f"gradients of size {noise:g}")
        axes.set(xlabel="step", ylabel="mean weight", title=title, ylim=(-0.05, 1.05))
    for name, optimizer in (("L2 inside Adam", Adam), ("AdamW", AdamW)):
        outcomes = [outcome(optimizer, decay) for decay in DECAYS]
        curve = {"marker": "o", "label": name, **look(optimizer.__name__)}
        held_out.plot(DECAYS, [outcome.held_out for outcome in outcomes], **curve)
        norms.plot(DECAYS, [outcome.norm for outcome in outcomes], **curve)
    for axes in (held_out, norms):
        axes.set_xscale("symlog", linthresh=DECAYS[1])
        axes.set(xlabel="weight decay")
    held_out.set(ylabel="held-out loss", title="held-out loss")
    norms.set(ylabel="length of all weights", title="weights", yscale="log")
