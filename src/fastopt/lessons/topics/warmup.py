"""Warmup.

In a deep network at a high rate the first steps of Adam can blow up the loss for good. Warmup, a rate that rises from
zero, prevents it. But why? Adam divides by a root mean square that it has to estimate. After a few steps the estimate
is a mean of a few squares, by chance much too small for some weights, and one explanation is that warmup waits until it
is good. Another is that the weights must first go, by short steps, to where the loss bends less. Both are tested here.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fastopt import Adam, schedules
from fastopt.lessons.characters import SETTING, Recipe, held_out_loss
from fastopt.lessons.drawing import line_styles
from fastopt.lessons.lesson import Array, Lesson, at_least, at_most, exactly, near
from fastopt.lessons.networks import random_batches, train
from fastopt.schedules import Schedule
from fastopt.training.batches import Batch
from fastopt.training.losses import SquaredError
from fastopt.training.mlp import MLP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=12,
    formula="""
        adaptive rate: 1/√(v/(1 - beta2ᵗ)),   v/(1 - beta2ᵗ) ≈ mean of t squared gradients
        for normal gradients its variance is infinite for t ≤ 2 and about 1/(2t) for large t
    """,
)

LR, STEPS, WARMUP, SEEDS = 0.06, 400, 100, 10
STARTS: dict[str, Schedule] = {
    "no warmup": schedules.cosine(LR, STEPS),
    "warmup": schedules.warmup_cosine(LR, WARMUP, STEPS),
    "rate 0 at first": schedules.join([schedules.constant(0.0), schedules.cosine(LR, STEPS - WARMUP)], [WARMUP]),
    "new Adam after warmup": schedules.warmup_cosine(LR, WARMUP, STEPS),
}


def rows(seed: int) -> Batch:
    """Return a smooth function of eight features, of variance 1."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((1024, 8))
    y = np.sin(1.5 * x[:, 0]) + x[:, 1] * x[:, 2]
    return Batch(x, (y - y.mean()) / y.std())


def begin(start: str, seed: int) -> tuple[MLP, Adam, list[Batch], Array]:
    """Train a network with ten hidden layers for the steps of the warmup.

    Return it with the optimizer and the batches to go on with and the losses so far.
    """
    model = MLP([8, *[32] * 10, 1], SquaredError(), batch_size=64, dtype="float64", seed=seed)
    batches = list(random_batches(rows(seed), 64, STEPS, seed))
    descent = Adam(model.parameters, lr=STARTS[start])
    losses = train(model, descent, batches[:WARMUP])
    if start == "new Adam after warmup":
        descent = Adam(model.parameters, lr=schedules.cosine(LR, STEPS - WARMUP))
    return model, descent, batches[WARMUP:], losses


@cache
def courses(start: str) -> Array:
    """Return the losses, shape (seeds, steps)."""
    found = []
    for seed in range(SEEDS):
        model, descent, batches, losses = begin(start, seed)
        found.append(np.concatenate([losses, train(model, descent, batches)]))
    return np.array(found)


def peak(start: str) -> float:
    """Return how many times higher than at first the loss gets in the first steps, median of the seeds."""
    losses = courses(start)[:, :WARMUP]
    return float(np.median(losses.max(axis=1) / losses[:, 0]))


def trained(losses: Array) -> int:
    """Return how many seeds end below a quarter of the variance of the targets, in the mean of the last 50 steps."""
    return int(np.sum(losses[:, -50:].mean(axis=1) < 0.25))


@LESSON.claim(
    "The first steps of Adam blow up in a deep network, and with warmup they do not",
    setting="10 hidden layers of 32, Adam, cosine from lr 0.06, 10 seeds: at once, and after rising for 100 steps",
    quantity="highest loss in the first 100 steps / first loss, median: without, with",
    expected=(at_least(3.0), at_most(1.5)),
)
def blows_up() -> list[float]:
    """Ten layers multiply what every one of them is off."""
    return [peak("no warmup"), peak("warmup")]


@LESSON.claim(
    "Without warmup most networks do not train, with warmup all do",
    setting="the same, 400 steps; the targets have variance 1",
    quantity="networks of 10 with a loss below 0.25 in the last 50 steps: without, with",
    expected=(at_most(SEEDS // 2 - 1), exactly(SEEDS)),
)
def trains() -> list[float]:
    """After the blow-up many units are dead, and some networks say little but the mean, for which the loss is 1. Others
    recover, on the way down.
    """
    return [trained(courses("no warmup")), trained(courses("warmup"))]


@cache
def spread() -> Array:
    """Return the relative standard deviation of Adam's rate over 20000 weights with random gradients, by step."""
    random = np.random.default_rng(0)
    w = np.zeros(20_000)
    descent = Adam(w)
    found = []
    for step in range(1, 1001):
        descent.step(random.standard_normal(len(w)))
        rate = 1 / np.sqrt(descent.state[0]["exp_avg_sq"] / (1 - 0.999**step))
        found.append(rate.std() / rate.mean())
    return np.array(found)


def chance(count: int) -> float:
    """Return the relative standard deviation of one over the root mean square of so many normal numbers, above 2."""
    mean = math.sqrt(count / 2) * math.exp(math.lgamma((count - 1) / 2) - math.lgamma(count / 2))
    return math.sqrt(count / (count - 2) / mean**2 - 1)


@LESSON.claim(
    "In the first steps the adaptive rate is a matter of chance",
    setting="20000 weights with normal gradients, default betas",
    quantity="standard deviation / mean of 1/√v: step 10, step 1000",
    expected=(near(chance(10), 0.05), at_most(0.04)),
)
def rate_by_chance() -> list[float]:
    """After ten steps it is the root of a mean of ten squares (Liu et al. 2020)."""
    return [float(spread()[9]), float(spread()[-1])]


@LESSON.claim(
    "Chance in the adaptive rate is why warmup helps: it would do to wait, at rate 0, for a good estimate",
    setting="the deep network, rate 0 for 100 steps in which v is collected, then the cosine from 0.06",
    quantity="highest loss / first loss, median; networks of 10 with a loss below 0.25 in the last 50 steps",
    expected=(at_most(1.5), exactly(SEEDS)),
    digits=2,
)
def waiting() -> list[float]:
    """With good estimates the first full steps blow up just the same."""
    losses = courses("rate 0 at first")
    return [float(np.median(losses.max(axis=1) / losses[:, 0])), trained(losses)]


@LESSON.claim(
    "Where the weights have got to is why warmup helps: there the full rate is borne with no estimate at all",
    setting="the deep network after the 100 steps of warmup, then a new Adam at once with the cosine from 0.06",
    quantity="highest loss / first loss, median; networks of 10 with a loss below 0.25 in the last 50 steps",
    expected=(at_most(1.5), exactly(SEEDS)),
    digits=2,
)
def starting_anew() -> list[float]:
    """That the weights go to where the loss bends less (Gilmer et al. 2021; Kalra & Barkeshli 2024) is not all, either:
    where the weights have got to does not bear the first steps of a new Adam, which are as long as steps can be.
    """
    losses = courses("new Adam after warmup")
    return [float(np.median(losses.max(axis=1) / losses[:, 0])), trained(losses)]


@cache
def next_step(start: str) -> float:
    """Return the root mean square of the weights' changes in the first step after the warmup / lr, median of seeds."""
    found = []
    for seed in range(SEEDS):
        model, descent, batches, _ = begin(start, seed)
        before = {name: values.copy() for name, values in model.parameters.items()}
        train(model, descent, batches[:1])
        changes = np.concatenate([(values - before[name]).ravel() for name, values in model.parameters.items()])
        found.append(np.sqrt(np.mean(changes**2)) / LR)
    return float(np.median(found))


@LESSON.claim(
    "After a warmup the steps of Adam are short even at the full rate",
    setting="the deep network, step 101: the same Adam after the warmup, a new Adam after it, and the one that waited",
    quantity="root mean square of the weights' changes / lr, median",
    expected=(at_most(0.2), at_least(0.5), at_least(0.5)),
    digits=2,
)
def short_steps() -> list[float]:
    """The gradients have become small, and the average of squares still remembers the large ones of the start: it
    forgets in 1000 steps. So warmup needs both, weights that have come down and an average that was there.
    """
    return [next_step(start) for start in ("warmup", "new Adam after warmup", "rate 0 at first")]


TRANSFORMER_RATES = (0.01, 0.03)
TRANSFORMER_SEEDS = range(2)


def transformer_loss(peak: float, warmup: int) -> float:
    """Return the held-out loss of the transformer, mean of two seeds."""
    return float(np.mean([held_out_loss(Recipe(peak, warmup), seed) for seed in TRANSFORMER_SEEDS]))


@LESSON.claim(
    "A transformer, too, gets further with warmup",
    setting=SETTING + ", cosine; warmup of 25 steps or none; mean of 2 seeds",
    quantity="held-out loss without warmup / with: at peak 0.03, and each with the better of 0.01 and 0.03",
    expected=(at_least(1.02), at_least(1.02)),
    digits=3,
    varies=True,
    needs="torch",
)
def transformer() -> list[float]:
    """It does not blow up as the perceptron does: what enters a layer is normalized, and gradients are clipped. A rough
    start costs a fiftieth of the loss at most, and with the higher rate nothing: that warmup cannot be left out is a
    matter of the network, and of its size.
    """
    rough, smooth = ([transformer_loss(peak, warmup) for peak in TRANSFORMER_RATES] for warmup in (0, 25))
    return [rough[-1] / smooth[-1], min(rough) / min(smooth)]


@LESSON.draw(panels=2)
def figure(training: Axes, rates: Axes) -> None:
    """Left: the loss of the deep network with four starts, median of ten seeds. Right: how much the adaptive rate
    differs between weights by chance.
    """
    for style, start in zip(line_styles(), STARTS, strict=False):
        training.semilogy(np.median(courses(start), axis=0), linestyle=style, label=start)
    training.set(xlabel="step", ylabel=f"loss, median of {SEEDS} seeds", title="ten hidden layers, Adam, lr 0.06")
    steps = np.arange(3, 1001)
    rates.loglog(steps, spread()[2:], label="measured")
    rates.loglog(steps, [chance(int(step)) for step in steps], "--", color="gray", label="mean of t squares")
    rates.set(xlabel="step t", ylabel="standard deviation / mean of 1/√v", title="adaptive rate")
