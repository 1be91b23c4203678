"""Precision.

A step from memory takes as long as its bytes take, so fewer bytes are a gain, if the numbers survive it. bfloat16 has
eight significant bits: rounded to nearest, whatever changes a number by less than half a place changes nothing, however
often it comes. A second moment shrinks by a thousandth a step, and late in a training most updates are as small.
Rounded at random, up or down with the odds of what is left over, a number is wrong each time and right on average.
Eight bits with a scale for every 32 neighbours are enough for the moments.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastopt import Adam, AdamW, schedules
from fastopt.lessons.drawing import BLUE, line_styles
from fastopt.lessons.lesson import Array, Lesson, between, exactly, near
from fastopt.lessons.networks import random_batches, train
from fastopt.lessons.topics.recipe import rows
from fastopt.training.losses import SquaredError
from fastopt.training.mlp import MLP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=15,
    formula="""
        bfloat16: 8 significant bits, so that neighbours around x are up to |x|/128 apart
        to nearest:  x + u = x  for |u| < half a place
        at random:   up with probability (what is left over)/(a place), so that the mean is x + u
    """,
)

COPIES = 10_000
DECAY_STEPS, BETA2 = 1000, 0.999
WAY_STEPS, UPDATE = 500, 0.001


def to_nearest(values: NDArray[np.float32]) -> None:
    """Round to bfloat16, in place."""
    bits = values.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    bits &= 0xFFFF0000


@cache
def second_moments() -> dict[str, Array]:
    """Return the mean of Adam's second moment, divided by its start, while the gradient is zero."""
    courses = {}
    for label, state_dtype in (("float32", "float32"), ("to nearest", "float32"), ("at random", "bfloat16")):
        weights = np.zeros(COPIES, np.float32)
        descent = Adam(weights, lr=0.0, betas=(0.9, BETA2), state_dtype=state_dtype)
        means = []
        for step in range(DECAY_STEPS + 1):
            descent.step(np.full_like(weights, step == 0))
            state: Any = descent.state[0]["exp_avg_sq"]
            if label == "to nearest":
                to_nearest(state)
            whole = state if state_dtype == "float32" else (state.view(np.uint16).astype(np.uint32) << 16).view("f4")
            means.append(whole.mean(dtype=float))
        courses[label] = np.array(means) / means[0]
    return courses


@LESSON.claim(
    "Rounded to nearest, the second moment freezes; rounded at random it decays as it should",
    setting=f"Adam, beta2 {BETA2}, one gradient of 1 and {DECAY_STEPS} of 0, {COPIES} weights, the state in bfloat16",
    quantity="second moment at the end / at the start: float32, to nearest, at random",
    expected=(near(BETA2**DECAY_STEPS, 0.001), exactly(1.0), near(BETA2**DECAY_STEPS, 0.01)),
)
def freezes() -> list[float]:
    """A thousandth less is an eighth to a quarter of a place less: the nearest number is the old one. One large
    gradient would make all later steps short, for ever.
    """
    return [float(course[-1]) for course in second_moments().values()]


@cache
def ways() -> dict[str, Array]:
    """Return bfloat16 weights after every step of descent with an update of 0.001, shape (steps + 1, weights)."""
    import torch

    from fastopt.torch import SGD

    courses = {}
    options: dict[str, dict[str, Any]] = {
        "to nearest": {},
        "at random": {"rounding": "stochastic"},
        "16 bits more": {"master": "split"},
    }
    for label, option in options.items():
        weights = torch.ones(COPIES, dtype=torch.bfloat16, requires_grad=True)
        weights.grad = torch.ones_like(weights)
        descent = SGD([weights], lr=UPDATE, **option)
        course = [weights.detach().double().numpy()]
        for _ in range(WAY_STEPS):
            descent.step()
            course.append(weights.detach().double().numpy())
        courses[label] = np.array(course)
    return courses


END = 1 - UPDATE * WAY_STEPS
WAY = f"{COPIES} weights in bfloat16 from 1, {WAY_STEPS} updates of {UPDATE}"


@LESSON.claim(
    "Rounded to nearest, small updates are lost; at random, or with 16 bits more, they are not",
    setting=WAY,
    quantity="mean weight at the end: to nearest, at random, with the other 16 bits beside it",
    expected=(exactly(1.0), near(END, 0.01), near(END, 0.005)),
    needs="torch",
)
def lost() -> list[float]:
    """Half a place below 1 is 0.002: no update is that large, and five hundred are none either."""
    return [float(course[-1].mean()) for course in ways().values()]


@LESSON.claim(
    "Rounding at random is right on average, and off by chance for each weight",
    setting=WAY,
    quantity="mean error at the end in standard errors; spread of the weights / what the odds say",
    expected=(between(-3.0, 3.0), near(1.0, 0.05)),
    digits=2,
    needs="torch",
)
def right_on_average() -> list[float]:
    """Between 1/2 and 1 a place is 1/256. A step goes it with odds of 0.256, so that its variance is 0.001 times what
    is missing to a place. The errors of a weight are a random walk: they grow as the root of the steps.
    """
    ends = ways()["at random"][-1]
    odds = np.sqrt(WAY_STEPS * UPDATE * (1 / 256 - UPDATE))
    return [float((ends.mean() - END) / (odds / np.sqrt(COPIES))), float(ends.std() / odds)]


SEEDS, BATCHES = range(5), 400
STORAGES = ("float32", "bfloat16", "8bit")


@cache
def unseen_losses() -> dict[str, Array]:
    """Return the losses of a network on unseen rows by how AdamW's states were stored, one for each seed."""
    losses = {}
    for storage in STORAGES:
        found = []
        for seed in SEEDS:
            learned, unseen = rows(seed)
            model = MLP([8, 32, 32, 1], SquaredError(), batch_size=32, dtype="float32", seed=seed)
            rate = schedules.warmup_cosine(0.01, 20, BATCHES)
            descent = AdamW(model.parameters, lr=rate, weight_decay=0.1, state_dtype=storage)
            train(model, descent, random_batches(learned, 32, BATCHES, seed))
            found.append(model.evaluate(unseen)["loss"])
        losses[storage] = np.array(found)
    return losses


@LESSON.claim(
    "Moments in 16 or 8 bits cost nothing in loss",
    setting=f"network 8-32-32-1, 1024 noisy rows, {BATCHES} batches of 32, AdamW, mean of {len(SEEDS)} seeds",
    quantity="unseen loss with bfloat16, with 8 bits / with float32",
    expected=(between(0.97, 1.03), between(0.97, 1.03)),
    digits=3,
    varies=True,
)
def costs_nothing() -> list[float]:
    """A moment is an average of noisy gradients: an error of half a percent of the largest beside it is far below the
    noise. The seeds differ by much more.
    """
    whole, *others = (losses.mean() for losses in unseen_losses().values())
    return [float(other / whole) for other in others]


@LESSON.claim(
    "AdamW's moments take 8, 4 or 2.25 bytes a weight",
    setting="a matrix of 256 times 256",
    quantity="bytes a weight with float32, bfloat16, 8 bits",
    expected=(exactly(8.0), exactly(4.0), exactly(2.25)),
)
def bytes_a_weight() -> list[float]:
    """In 8 bits each moment has a float32 scale for every 32 neighbours: 4/32 of a byte."""
    weights = np.zeros((256, 256), np.float32)
    return [AdamW(weights, state_dtype=storage).state_bytes() / weights.size for storage in STORAGES]


@LESSON.draw(panels=3)
def figure(moment: Axes, way: Axes, loss: Axes) -> None:
    """Adam's second moment after the gradient has vanished; where weights in bfloat16 get to, with the middle 95 % of
    those rounded at random; the loss on unseen rows, a line for each seed.
    """
    for style, (label, course) in zip(("-", "--", "o"), second_moments().items(), strict=True):
        moment.plot(course, style, label=label, markevery=50)
    moment.set(xlabel="step", ylabel="second moment / its start", title="no gradient any more", ylim=(0, None))
    try:
        courses = ways()
    except ImportError:
        way.text(0.5, 0.5, "needs torch", ha="center")
    else:
        for style, (label, course) in zip(line_styles(), courses.items(), strict=False):
            (line,) = way.plot(course.mean(axis=1), linestyle=style, label=label)
            if label == "at random":
                low, high = np.quantile(course, (0.025, 0.975), axis=1)
                way.fill_between(np.arange(len(course)), low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    way.set(xlabel="step", ylabel="mean weight", title=f"updates of {UPDATE} on bfloat16")
    for seed, losses in zip(SEEDS, np.transpose(list(unseen_losses().values())), strict=True):
        loss.plot(STORAGES, losses, "osD^v"[seed] + "-", color=BLUE, linewidth=0.8, label=f"seed {seed}")
    loss.set(xlabel="AdamW's moments", ylabel="loss on unseen rows", title="a network, five seeds", ylim=(0, 0.3))
