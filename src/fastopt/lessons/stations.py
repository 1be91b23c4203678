"""The stations of the walk: the words, and the runs that their pictures show.

The numbers in the words are computed by the library. `walk.py` makes a page of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fastopt import SGD, Adam, AdamW, schedules
from fastopt.lessons.lesson import number_text
from fastopt.surfaces import Surface, bowl, himmelblau, parabola, ravine, saddle
from fastopt.trajectories import Trajectory, trajectory


@dataclass(frozen=True)
class Station:
    """A stop of the walk.

    Attributes
    ----------
    title, analogy, worked, insight, question, answer : str
        The words. The numbers in `worked` are what the library says.
    surface : Surface
        What the picture shows.
    paths : dict of str to Trajectory
        Who moves over it, by label.
    lessons : sequence of str
        Names of the lessons that say more.
    landscape : str
        The choice to make on the page of landscapes, ``surface=saddle&lr=0.1``.
    """

    title: str
    analogy: str
    worked: str
    insight: str
    question: str
    answer: str
    surface: Surface
    paths: dict[str, Trajectory]
    lessons: Sequence[str]
    landscape: str


def stations() -> list[Station]:
    """Run what is shown and return the stations in their order."""
    return [
        blindfolded(),
        learning_rate(),
        stochastic_gradients(),
        momentum(),
        adam(),
        convex_or_not(),
        traps(),
        recipe(),
    ]


def _stepped(optimizer: Callable[..., Any], w: float, *gradients: float) -> str:
    """Return where a weight is after steps with these gradients."""
    weight = np.array([w])
    descent = optimizer(weight)
    for gradient in gradients:
        descent.step(np.array([gradient]))
    return number_text(float(weight[0]))


def _seen(surface: Surface, x: tuple[float, float], y: tuple[float, float]) -> Surface:
    """Return the surface with what is in the picture as its domain."""
    return replace(surface, domain=np.array([x, y]).T)


def blindfolded() -> Station:
    """Show what a gradient is."""
    surface = bowl(condition=4.0)
    return Station(
        title="Blindfolded on a mountain",
        analogy="You stand on a mountain, blindfolded, and want to get down. Your foot feels how the ground slopes "
        "right here; so you take a step the steepest way down, and feel again.",
        worked="On f(x) = x² the slope at x = 3 is 2 · 3 = 6. A step with rate 0.1 leads to 3 - 0.1 · 6 = "
        f"{_stepped(partial(SGD, lr=0.1), 3.0, 6.0)}.",
        insight="The gradient says which way is up and how steep it is, here and nowhere else. Descent needs nothing "
        "more.",
        question="A weight is w = 5, its gradient g = 2, the rate 0.1. Where is the weight after one step?",
        answer=f"5 - 0.1 · 2 = {_stepped(partial(SGD, lr=0.1), 5.0, 2.0)}. It goes against the gradient, by the "
        "gradient times the rate.",
        surface=_seen(surface, (-2.2, 2.0), (-1.2, 1.8)),
        paths={"descent, rate 0.1": trajectory(surface, SGD, surface.starts[0], 30, lr=0.1)},
        lessons=["gradient-descent"],
        landscape="surface=bowl&lr=0.1",
    )


def learning_rate() -> Station:
    """Show what a rate does."""
    surface = parabola()
    first, second = (_stepped(partial(SGD, lr=1.1), 5.0, *gradients) for gradients in ((10.0,), (10.0, -12.0)))
    return Station(
        title="The learning rate",
        analogy="The rate is the length of your stride. With baby steps it is dark before you are down; with giant "
        "leaps you land on the opposite slope, higher up than you were.",
        worked=f"On x² from 5 with rate 1.1: the slope is 10, and 5 - 1.1 · 10 = {first}. There it is -12, and {first} "
        f"+ 1.1 · 12 = {second}. Every step ends further out.",
        insight="A rate that is too small crawls. Above 2 / curvature every step overshoots by more than it had to go. "
        "The best one is often just below the one that is too large.",
        question="At which rate does descent on x² arrive in a single step, wherever it starts?",
        answer=f"At 0.5: x - 0.5 · 2x = 0. From 5 it gets to {_stepped(partial(SGD, lr=0.5), 5.0, 10.0)}.",
        surface=surface,
        paths={f"rate {lr:g}": trajectory(surface, SGD, [-1.0], 20, lr=lr) for lr in (0.02, 0.3, 1.05)},
        lessons=["gradient-descent"],
        landscape="surface=parabola&lr=1.1",
    )


def stochastic_gradients() -> Station:
    """Show what a batch is good for."""
    surface = bowl(condition=3.0)
    run = partial(trajectory, surface, SGD, surface.starts[0], 80, lr=0.1)
    return Station(
        title="Stochastic gradients",
        analogy="To learn what a town thinks you can ask everybody, or a few passers-by. The few are often a little "
        "wrong, but you can ask a few a thousand times while everybody is asked once.",
        worked="If the gradient of one row is off by 1 (its standard deviation), the mean of 16 rows is off by 1 / √16 "
        f"= {number_text(1 / np.sqrt(16))}: four times better, for 16 times the work.",
        insight="Many rough steps beat a few exact ones. But near the minimum the slope is gone and only the noise is "
        "left: the weights jitter, the wider the larger the rate.",
        question="Why is the rate lowered as training goes on?",
        answer="Far from the minimum the slope is larger than the noise, and long steps save time. Near it only the "
        "noise is left, and its share of the loss is proportional to the rate: half the rate, half of it.",
        surface=_seen(surface, (-2.2, 2.0), (-1.2, 1.8)),
        paths={"all rows": run(0.0), "1 row a step": run(3.0, batch=1), "16 rows a step": run(3.0, batch=16)},
        lessons=["batches", "noise"],
        landscape="surface=bowl&lr=0.01",
    )


def momentum() -> Station:
    """Show what a velocity does in a ravine."""
    surface = ravine(100.0)
    run = partial(trajectory, surface, SGD, surface.starts[0], 127, lr=0.019)
    speeds = np.cumsum(0.9 ** np.arange(3))
    return Station(
        title="Momentum",
        analogy="A walker in a ravine bounces from wall to wall. A heavy ball rolls: the pushes from the two walls "
        "cancel, and the gentle pull along the valley adds up.",
        worked=f"With beta 0.9 and a gradient that stays 1, the velocity is 1, then 0.9 · 1 + 1 = "
        f"{number_text(speeds[1])}, then 0.9 · {number_text(speeds[1])} + 1 = {number_text(speeds[2])}.",
        insight="Where gradients agree, they build up speed; where they alternate, they cancel. In the worst ravines "
        "that saves most of the steps.",
        question="The gradient stays 1 and beta is 0.9. What does the velocity go to?",
        answer=f"To {number_text(1 / (1 - 0.9))}: it stops growing when v = 0.9 · v + 1. In general to 1 / (1 - beta) "
        "times the gradient.",
        surface=_seen(surface, (-2.0, 0.7), (-1.35, 0.6)),
        paths={"without momentum": run(), "with, beta 0.8": run(momentum=0.8)},
        lessons=["momentum"],
        landscape="surface=ravine&lr=0.01",
    )


def adam() -> Station:
    """Show what a rate for every weight does."""
    surface = bowl(condition=100.0)
    small, large = (_stepped(partial(Adam, lr=0.1), 5.0, gradient) for gradient in (0.01, 100.0))
    return Station(
        title="Adam",
        analogy="This hiker has a stride of its own for every direction: short where the ground has lately been steep, "
        "long where it has been flat. And it has momentum, too.",
        worked="At the first step the average gradient is g and its root mean square |g|, so that the step is rate · g "
        f"/ |g|. With w = 5 and rate 0.1 that leads to {small} for g = 0.01, and to {large} for g = 100.",
        insight="Dividing by what the gradients usually are takes their units away: one rate suits all weights.",
        question="You multiply the loss by 10. What becomes of Adam's path, and of that of plain descent?",
        answer="Adam's stays the same: both averages grow tenfold, and their ratio does not. Plain descent takes steps "
        "that are ten times as long, as if the rate were ten times as high, and here it would diverge.",
        surface=_seen(surface, (-2.1, 0.8), (-0.5, 1.65)),
        paths={
            "plain descent, rate 0.019": trajectory(surface, SGD, surface.starts[0], 100, lr=0.019),
            "Adam, rate 0.1": trajectory(surface, Adam, surface.starts[0], 100, lr=0.1),
        },
        lessons=["adagrad", "rmsprop", "adam"],
        landscape="surface=bowl&lr=0.1",
    )


def convex_or_not() -> Station:
    """Show that there may be many minima."""
    surface = himmelblau()
    hilltop = np.array([-0.27, -0.92])
    starts = [hilltop + np.array([x, y]) for x in (-0.5, 0.5) for y in (-0.5, 0.5)]
    middle, mean = (number_text(float(value)) for value in (2.0**2, (1.0**2 + 3.0**2) / 2))
    return Station(
        title="Convex and non-convex",
        analogy="A marble in a bowl ends at the bottom, wherever it is let go. In a mountain range there are many "
        "valleys, and where you end depends on where you set out.",
        worked=f"x² is convex: half way between 1 and 3 it is 2² = {middle}, which is not above the mean of 1² and 3², "
        f"{mean}. A curve that lies below all of its chords has no second valley.",
        insight="On a convex loss every start leads to the same minimum. The loss of a network is not convex: it has "
        "many minima, and the start, the rate and the noise choose among them.",
        question="f(x) = (x² - 1)² has a hilltop at 0. Where does descent by short steps end from 0.1, and where "
        "from -0.1?",
        answer="At 1 and at -1. The slope is 4x (x² - 1), which at 0.1 is -0.396: downhill is to the right, until x = "
        "1. On the left it is the mirror image.",
        surface=_seen(surface, (-5.2, 5.2), (-4.1, 3.9)),
        paths={f"start {k}": trajectory(surface, SGD, start, 60, lr=0.01) for k, start in enumerate(starts, 1)},
        lessons=["landscapes"],
        landscape="surface=himmelblau&lr=0.01",
    )


def traps() -> Station:
    """Show where the gradient vanishes without a minimum."""
    surface = saddle()
    needed = int(np.ceil(np.log(1 / 0.01) / np.log(1.2)))
    run = partial(trajectory, surface, SGD, lr=0.1)
    return Station(
        title="Traps",
        analogy="On a mountain pass the ground is flat: left and right it rises, ahead and behind it falls. Who feels "
        "only the slope underfoot stops there, unless a gust of wind helps.",
        worked="On x² - y² a step with rate 0.1 multiplies y by 1 + 2 · 0.1 = 1.2. From y = 0.01 it takes "
        f"{needed} steps to get beyond 1: 0.01 · 1.2^{needed} = {number_text(0.01 * 1.2**needed, 3)}.",
        insight="In many dimensions a flat point is hardly ever a minimum: some directions go up, some down. The noise "
        "of the batches is enough to find one that goes down.",
        question="Descent starts exactly on the ridge, at y = 0. Where does it end, and what helps?",
        answer="At the saddle itself: the gradient in y is -2y = 0, so that y stays 0. Any noise helps, and ten times "
        "less of it costs only 13 steps more at this rate, since 1.2^13 is about 10.",
        surface=_seen(surface, (-1.2, 1.8), (-1.0, 1.2)),
        paths={
            "from the ridge": run([1.5, 0.0], 40),
            "from 0.01 beside it": run([1.5, 0.01], 40),
            "from the ridge, with noise": run([1.5, 0.0], 40, 0.3, seed=2),
        },
        lessons=["landscapes", "depth"],
        landscape="surface=saddle&lr=0.1",
    )


def recipe() -> Station:
    """Show everything together."""
    surface = bowl(condition=3.0)
    steps = 150
    rate = schedules.warmup_cosine(3e-4, 2000, 100_000)
    options: dict[str, Any] = {"weight_decay": 0.01, "clip_norm": 1.0}
    run = partial(trajectory, surface, AdamW, surface.starts[0], steps, 2.0)
    return Station(
        title="The recipe",
        analogy="You start slowly until your legs are warm, keep a good pace on the long stretch, and take smaller and "
        "smaller steps while you look for the very lowest spot. And however steep it looks, you never leap.",
        worked="With a peak of 3e-4, 2000 steps of warmup and 100000 in all, the rate at step 1000 is half way up, "
        f"{number_text(float(rate(1000)))}, and at step 51000 half way down, {number_text(float(rate(51_000)))}.",
        insight="Warmup, a high rate, cosine decay, weight decay and clipping: each has a job of its own, and the last "
        "lesson measures what it costs to leave one out.",
        question="A gradient of norm 5 is clipped to norm 1. By what is it multiplied, and does it still point the "
        "same way?",
        answer=f"By 1/5 = {number_text(1 / 5)}, all of its entries alike, so that the direction stays.",
        surface=_seen(surface, (-2.2, 2.0), (-1.2, 1.8)),
        paths={
            "constant rate 0.2": run(lr=0.2, **options),
            "warmup to 0.2, cosine to 0": run(lr=schedules.warmup_cosine(0.2, 15, steps), **options),
        },
        lessons=["schedules", "warmup", "clipping", "adamw", "precision", "recipe"],
        landscape="surface=cliff&lr=0.1",
    )
