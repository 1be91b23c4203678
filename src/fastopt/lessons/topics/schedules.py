"""Schedules.

A rate for the whole of training is a compromise: high enough to get ahead, low enough to settle. A schedule needs no
compromise. It rises while the start is rough, stays high while there is way to go, and falls at the end, when the noise
of the batches is all that is left.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fastopt import SGD, Adam, schedules
from fastopt.lessons.drawing import GREY, SKY, line_styles
from fastopt.lessons.lesson import Array, Lesson, at_least, at_most
from fastopt.lessons.networks import random_batches, train
from fastopt.schedules import Schedule
from fastopt.training.batches import Batch
from fastopt.training.losses import SquaredError
from fastopt.training.mlp import MLP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=11,
    formula="""
        step:             lr(t) = start · factor^⌊t/every⌋
        exponential:      lr(t) = start · e^(-rate · t)
        cosine:           lr(t) = floor + (peak - floor)/2 · (1 + cos(π t/T))
        warmup:           lr(t) = peak · t/W  for t < W
        inverse root:     lr(t) = peak · √(W/t)  after the warmup
    """,
)

STEPS, WARMUP, SEEDS = 1000, 100, 3
EVERY = 50
PEAKS = (0.1, 0.2, 0.5, 1.0, 2.0)


def by_name(peak: float) -> dict[str, Schedule]:
    """Return the schedules with one highest rate."""
    return {
        "constant": schedules.constant(peak),
        "step": schedules.step_decay(peak, factor=0.3, every=STEPS / 4),
        "exponential": schedules.exponential_decay(peak, rate=4 / STEPS),
        "cosine": schedules.cosine(peak, STEPS),
        "warmup": schedules.linear_warmup(WARMUP, schedules.constant(peak)),
        "warmup + cosine": schedules.warmup_cosine(peak, WARMUP, STEPS),
        "1-cycle": schedules.one_cycle(peak, STEPS),
        "inverse root": schedules.inverse_sqrt(peak, WARMUP),
        "warmup-stable-decay": schedules.warmup_stable_decay(peak, WARMUP, STEPS, decay=STEPS / 5),
    }


@LESSON.claim(
    "The schedules are what is written above",
    setting="step and exponential decay, cosine to a floor, warmup, inverse root; peak 0.1, 1000 steps",
    quantity="largest difference from the formula at any step / peak",
    expected=at_most(1e-12),
)
def as_written() -> float:
    """The library's own schedules, against the five lines of this lesson."""
    t = np.arange(STEPS)
    pairs: list[tuple[Schedule, Array]] = [
        (schedules.step_decay(0.1, factor=0.3, every=250), 0.1 * 0.3 ** np.floor(t / 250)),
        (schedules.exponential_decay(0.1, rate=0.004), 0.1 * np.exp(-0.004 * t)),
        (schedules.cosine(0.1, STEPS, floor=0.01), 0.01 + 0.09 / 2 * (1 + np.cos(np.pi * t / STEPS))),
        (schedules.linear_warmup(WARMUP, schedules.constant(0.1)), 0.1 * np.minimum(t / WARMUP, 1)),
        (
            schedules.inverse_sqrt(0.1, WARMUP),
            0.1 * np.where(t < WARMUP, t / WARMUP, np.sqrt(WARMUP / np.maximum(t, 1))),
        ),
    ]
    return max(float(np.max(np.abs(schedule(t) - formula))) for schedule, formula in pairs) / 0.1


LOWERING = ("step", "exponential", "cosine", "warmup + cosine", "1-cycle", "inverse root", "warmup-stable-decay")


def rows(seed: int) -> Batch:
    """Return a smooth function of eight features with noise."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((2048, 8))
    y = np.sin(1.5 * x[:, 0]) + x[:, 1] * x[:, 2]
    return Batch(x, (y - y.mean()) / y.std() + 0.3 * random.standard_normal(len(x)))


@cache
def course(name: str, peak: float) -> Array:
    """Return the loss over all rows after every 50 steps, mean over the seeds."""
    found = []
    for seed in range(SEEDS):
        data = rows(seed)
        model = MLP([8, 32, 1], SquaredError(), batch_size=16, dtype="float64", seed=seed)
        descent = SGD(model.parameters, lr=by_name(peak)[name], clip_norm=1.0)
        batches = list(random_batches(data, 16, STEPS, seed))
        losses = [model.evaluate(data)["loss"]]
        for first in range(0, STEPS, EVERY):
            train(model, descent, batches[first : first + EVERY])
            losses.append(model.evaluate(data)["loss"])
        found.append(losses)
    return np.asarray(np.mean(found, axis=0))


@cache
def best_course(name: str) -> Array:
    """Return the course with the highest rate that ends lowest."""
    return min((course(name, peak) for peak in PEAKS), key=lambda losses: losses[-1])


@LESSON.claim(
    "Every schedule that lowers the rate ends lower than the constant one",
    setting="network 8-32-1 on noisy rows, 1000 batches of 16, SGD, best of 5 highest rates, mean of 3 seeds",
    quantity="final loss of the constant rate / of the worst and of the best of seven schedules",
    expected=(at_least(1.05), at_least(1.2)),
)
def lowering() -> list[float]:
    """A high rate can be had for the way without paying for it at the end."""
    ends = [float(best_course(name)[-1]) for name in LOWERING]
    constant = float(best_course("constant")[-1])
    return [constant / max(ends), constant / min(ends)]


def steps_to(target: float, name: str) -> float:
    """Return after how many steps a schedule's best course is at a loss for the first time, infinite if it is not."""
    reached = np.flatnonzero(best_course(name) <= target)
    return float(reached[0] * EVERY) if len(reached) else np.inf


@LESSON.claim(
    "1-cycle is fast: it is sooner where the constant rate ends",
    setting="the same runs, looked at every 50 steps",
    quantity="steps to the last loss of the constant rate, which takes 1000: 1-cycle; cosine / 1-cycle",
    expected=(at_most(750), at_least(1.0)),
    varies=True,
)
def one_cycle() -> list[float]:
    """It gets there in 600 of the 1000 steps. But the plain cosine does in 450: what is fast is a high rate that falls,
    and 1-cycle spends a third of its steps on getting up.
    """
    target = float(best_course("constant")[-1])
    return [steps_to(target, "1-cycle"), steps_to(target, "cosine") / steps_to(target, "1-cycle")]


@cache
def phases() -> tuple[float, float, float]:
    """Return by how much log(loss) falls in 100 steps: in the first 200, in between, and in the last 200, the decay."""
    fall = -np.diff(np.log(best_course("warmup-stable-decay")))
    fall *= 100 / EVERY
    first, last = 200 // EVERY, (STEPS - 200) // EVERY
    return float(fall[:first].mean()), float(fall[first:last].mean()), float(fall[last:].mean())


@LESSON.claim(
    "Training has three phases: a steep start, a long stretch of slow progress, and a fall with the rate",
    setting="the same, warmup-stable-decay: the first 200 steps, the 600 in between, the decay in the last 200",
    quantity="fall of log(loss) per step: start / middle, decay / middle",
    expected=(at_least(2.0), at_least(2.0)),
)
def three_phases() -> list[float]:
    """First the easy part is learned; then the noise hides what progress there is; the decay takes the noise away."""
    start, middle, decay = phases()
    return [start / middle, decay / middle]


TUNING_STEPS, TUNING_SEEDS = 200, 8
TUNING_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)


def tuning_rows(seed: int) -> Batch:
    """Return 128 rows from a corner of the old ones, with targets that are higher by 1."""
    data = rows(seed)
    corner = np.flatnonzero(data.features[:, 0] > 0.5)[:128]
    return Batch(data.features[corner], data.targets[corner] + 1)


@cache
def trained(seed: int) -> MLP:
    """Return a network that has learned the old rows."""
    model = MLP([8, 32, 1], SquaredError(), batch_size=32, dtype="float64", seed=seed)
    descent = Adam(model.parameters, lr=schedules.cosine(0.03, STEPS))
    train(model, descent, random_batches(rows(seed), 32, STEPS, seed))
    return model


@cache
def tuned(lr: float) -> tuple[float, float]:
    """Return the losses on old rows elsewhere and on the new ones after learning these, mean over the seeds."""
    found = []
    for seed in range(TUNING_SEEDS):
        old, new = rows(seed), tuning_rows(seed)
        model = deepcopy(trained(seed))
        train(model, Adam(model.parameters, lr=lr), random_batches(new, 32, TUNING_STEPS, seed))
        elsewhere = old.features[:, 0] < 0
        old_loss = model.evaluate(Batch(old.features[elsewhere], old.targets[elsewhere]))["loss"]
        found.append((old_loss, model.evaluate(new)["loss"]))
    old_mean, new_mean = np.mean(found, axis=0)
    return float(old_mean), float(new_mean)


@LESSON.claim(
    "A fine-tuning rate that is too high forgets",
    setting="the network after cosine training with Adam, then 200 steps on 128 rows of a corner, mean of 8 seeds",
    quantity="with lr 0.03, loss on old rows elsewhere / before, loss on the new rows",
    expected=(at_least(2.0), at_most(0.1)),
)
def forgets() -> list[float]:
    """The new rows are learned, and nothing holds the rest of the function in its place."""
    (old_before, _), (old, new) = tuned(0.0), tuned(0.03)
    return [old / old_before, new]


@LESSON.claim(
    "A rate a tenth as high learns the new rows, too, and forgets half as much",
    setting="the same, lr 0.03 and 0.003",
    quantity="loss on old rows elsewhere with 0.03 / with 0.003, loss on the new rows with 0.003",
    expected=(at_least(2.0), at_most(0.1)),
)
def forgets_less() -> list[float]:
    """It forgets less, but not by much: the new targets are higher by 1, and the shortest way there, which small steps
    take as large ones do, lifts the function everywhere.
    """
    (old_high, _), (old_low, new_low) = tuned(0.03), tuned(0.003)
    return [old_high / old_low, new_low]


@LESSON.draw(panels=4)
def figure(shapes: Axes, ends: Axes, courses: Axes, tuning: Axes) -> None:
    """The schedules; where the same network ends with each of them; three of the courses; the losses after fine-tuning
    on a corner of the rows, by learning rate.
    """
    names = list(by_name(1.0))
    colors = [SKY if name in LOWERING else GREY for name in names]
    for row, (schedule, color) in enumerate(zip(by_name(1.0).values(), colors, strict=True)):
        steps = np.arange(0, STEPS, 5)
        shapes.fill_between(steps, row + 0.4, row + 0.4 - 0.8 * schedule(steps), color=color)
    shapes.set_yticks(range(len(names)), names)
    shapes.set(xlabel="step", ylabel="rate, from 0 to the highest", title="schedules")
    ends.barh(names, [best_course(name)[-1] for name in names], color=colors)
    ends.locator_params(axis="x", nbins=5)
    ends.set(xlabel="final loss with the best highest rate", ylabel="schedule", title="the same job")
    for axes in (shapes, ends):
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    for style, name in zip(line_styles(), ("constant", "cosine", "warmup-stable-decay"), strict=False):
        courses.semilogy(np.arange(0, STEPS + 1, EVERY), best_course(name), linestyle=style, label=name)
    courses.set(xlabel="step", ylabel="loss over all rows", title="courses")
    old, new = zip(*map(tuned, TUNING_RATES), strict=True)
    tuning.loglog(TUNING_RATES, old, "o-", label="old rows elsewhere")
    tuning.loglog(TUNING_RATES, new, "s--", label="new rows")
    tuning.axhline(tuned(0.0)[0], color="gray", linestyle=":", label="old rows before")
    tuning.set(xlabel="learning rate of the fine-tuning", ylabel="loss after it", title="fine-tuning")
