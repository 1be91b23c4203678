"""What optimizers reach: `fastopt train` with each at a rate that was searched for, and with fewer bits for AdamW.

The problems are small and the runs short, so that it takes minutes: large models and long runs may prefer others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastopt import Rows
from fastopt.benchmark.records import PLAIN, SEARCH_SEED, Quality, Trial
from fastopt.benchmark.tasks import ITEM_SIZES, moved_bytes
from fastopt.methods.base import STORED_AS, WHOLE_OF_TORCH, Choice
from fastopt.modes import TwoModes
from fastopt.training.batches import Batch
from fastopt.training.config import PYDOC_TOPICS, Config, ModelName, TransformerConfig
from fastopt.training.errors import TrainingError
from fastopt.training.job import Job
from fastopt.training.loop import train
from fastopt.training.recipes import configure, registered
from fastopt.training.text import Text, load_text

AfterTrial = Callable[[float], object]

TRIES = 6
"""Rates that each optimizer is tried at."""

GROUP = 32
"""Neighbours that have a scale together in 8 bits."""

SEEDS = (1, 2, 3)
"""Of the trainings at the rate that was chosen."""

STORAGE_SEEDS = (1, 2, 3, 4, 5)

FIND_THEIR_RATE = ("prodigy",)
"""Have the rate of their default: there is none to search for."""

LEARNED, HELD_OUT = 80_000, 16_000
"""Characters of the text."""


OTHER_SCHEDULES = {"prodigy": ("cosine", "0"), "ftrl": ("constant", "0")}
"""Schedule and warm-up of those that no warm-up is for: Prodigy's first steps find the rate, and FTRL's weights are in
proportion to it at any time."""


class Problem(NamedTuple):
    """Something to train."""

    title: str
    model: ModelName
    settings: Mapping[str, Any]
    """Of `fastopt train`, where they are not its own."""
    seconds: float
    """About how long all trials of an optimizer take."""


PROBLEMS = {
    "digits": Problem("digits, perceptron 64-256-128-10", "mlp", {"epochs": 10}, 8.0),
    "characters": Problem(
        "characters, transformer of a layer of 64",
        "transformer",
        {"layers": 1, "width": 64, "context": 32, "batch_size": 8, "epochs": 1},
        20.0,
    ),
    "interactions": Problem(
        "interactions, recommender with sparse gradients", "recommender", {"width": 32, "epochs": 2}, 20.0
    ),
}

OPTIMIZERS_ON = ("digits", "characters")
STORAGES_ON = ("characters", "interactions")

STORED = "adamw"
"""The optimizer whose storages are compared."""


class Storage(NamedTuple):
    """How numbers are kept."""

    options: Mapping[str, Any]
    half: bool = False
    """Whether the weights are in bfloat16."""


STORAGES = {
    PLAIN: Storage({}),
    **{f"states {dtype}": Storage({"state_dtype": dtype}) for dtype in STORED_AS if dtype != PLAIN},
    **{
        f"{name} {value}": Storage({"state_dtype": PLAIN, name: value}, half=True)
        for name, option in WHOLE_OF_TORCH.items()
        if name in ("master", "rounding") and isinstance(option, Choice)
        for value in option.among
        if value
    },
}
"""By what is not as usual: `state_dtype`, or, for weights in bfloat16, `master` or `rounding`."""


def search(name: str, optimizer: str, after_trial: AfterTrial = lambda share: None) -> Quality:
    """Search for an optimizer's rate on a problem, then train at it from other seeds.

    Parameters
    ----------
    name
        Of the problem.
    optimizer
        As `fastopt train` calls it.
    after_trial
        Told how much is done.
    """
    tries = 1 if optimizer in FIND_THEIR_RATE else TRIES
    return at_best_rate(name, optimizer, PLAIN, tries, SEEDS, after_trial)


def storage(name: str, of: str, plain: Quality | None, after_trial: AfterTrial = lambda share: None) -> Quality:
    """Train AdamW with numbers stored in another way, at the rate of float32, which is searched for if there is none.

    Parameters
    ----------
    name
        Of the problem.
    of
        Of the storage.
    plain
        What came of float32.
    after_trial
        Told how much is done.
    """
    if plain is None:
        return at_best_rate(name, STORED, of, TRIES, STORAGE_SEEDS, after_trial)
    return at_best_rate(name, STORED, of, 0, STORAGE_SEEDS, after_trial, plain.lr)


def at_best_rate(
    name: str,
    optimizer: str,
    stored: str,
    tries: int,
    seeds: tuple[int, ...],
    after_trial: AfterTrial,
    lr: float | None = None,
) -> Quality:
    """Try rates from the first seed, the default's or `lr` first, and train at the best of them from the others."""
    trials: list[Trial] = []
    job = None
    try:
        config = by_default(name, optimizer)
        rates = {lr or config.lr: math.inf}
        while len(trials) < tries + len(seeds):
            searching = len(trials) < tries
            best = min(rates, key=rates.__getitem__)
            rate = best if not trials or not searching else next_rate(rates)
            seed = SEARCH_SEED if searching else seeds[len(trials) - tries]
            job = assembled(replace(config, lr=rate, seed=seed), STORAGES[stored])
            trials.append(trial(job))
            if searching:
                rates[rate] = trials[-1].found
            after_trial(len(trials) / (tries + len(seeds)))
    except (TrainingError, TypeError, ValueError, RuntimeError) as error:
        why = str(error).partition("\n")[0].removeprefix(f"--optimizer {optimizer}: ")
        return Quality(name, PROBLEMS[name].title, optimizer, stored, 0, [], 0.0, 0.0, why)
    assert job is not None
    kept, moved = bytes_of(job, STORAGES[stored].half)
    return Quality(name, PROBLEMS[name].title, optimizer, stored, job.run.total_steps, trials, kept, moved)


def next_rate(tried: Mapping[float, float]) -> float:
    """Return a rate to try after some losses: beyond the best in tens, if it is at an end, else near it.

    Near is the middle, on a logarithmic scale, of the wider of the two gaps beside it.
    """
    rates = sorted(tried)
    best = min(rates, key=tried.__getitem__)
    if best == rates[-1] and math.isfinite(tried[best]):
        return best * 10
    if best == rates[0]:
        return best / 10
    place = rates.index(best)
    below, above = rates[place - 1], rates[place + 1]
    return math.sqrt(best * (below if best / below > above / best else above))


def by_default(name: str, optimizer: str) -> Config:
    """Return the settings of a problem with the class's own rate and decay, and the schedule that it is made for.

    That is a cosine after a warm-up, for Schedule-Free a constant rate after it, and for some without it.
    """
    problem = PROBLEMS[name]
    config = configure(problem.model, {**problem.settings, "optimizer": optimizer})
    defaults = registered(config).method.defaults()
    usual = ("constant" if issubclass(registered(config), TwoModes) else config.schedule, config.warmup)
    schedule, warmup = OTHER_SCHEDULES.get(optimizer, usual)
    decay = defaults.get("weight_decay", 0.0)
    return replace(config, lr=defaults["lr"], weight_decay=decay, schedule=schedule, warmup=warmup)


def assembled(config: Config, stored: Storage) -> Job:
    """Return the run of some settings, the optimizer with the defaults of its class and a storage."""
    options = {**own_defaults(config), **stored.options}
    if isinstance(config, TransformerConfig):
        from fastopt.training.text_problem import TextProblem

        problem: Any = TextProblem(config, passage(config.context))
    else:
        problem = Job(config).problem
        with_whole_groups(problem.model)
    if stored.half:
        from fastopt.benchmark.half import HalfWeights

        lazy = {"lazy": True} if "lazy" in problem.inner_optimizer.param_groups[0] else {}
        problem.optimizer = HalfWeights(problem, **lazy, **options)
        problem.update = problem.optimizer.update
    else:
        problem.optimizer = problem.build_optimizer(**options)
    return Job(config, problem)


def with_whole_groups(model: Any) -> None:
    """Let a model have dense gradients where a row is no whole group, as states in 8 bits have to have it."""
    find = model.forward_backward

    def forward_backward(batch: Batch) -> float:
        loss: float = find(batch)
        for name, found in model.gradients.items():
            if isinstance(found, Rows) and found.values[:1].size % GROUP:
                model.gradients[name] = dense = np.zeros_like(model.parameters[name])
                np.add.at(dense, found.indices, found.values)
        return loss

    model.forward_backward = forward_backward


def own_defaults(config: Config) -> dict[str, Any]:
    """Return what a class has by default where `fastopt train` may have something that suits the model better."""
    cls = registered(config)
    if config.optimizer != cls.__name__.lower():  # such as momentum, which is an option of SGD
        return {}
    given = ("lr", "weight_decay", "lazy")
    return {
        name: option.default for name, option in cls.method.options.items() if not option.fixed and name not in given
    }


@cache
def passage(context: int) -> Text:
    """Return the beginnings of the two parts of Python's own reference."""
    whole = load_text(PYDOC_TOPICS, context)
    return Text(whole.name, whole.train[:LEARNED], whole.test[:HELD_OUT])


def trial(job: Job) -> Trial:
    """Train, and evaluate."""
    run = replace(job.run, evaluate=dict)
    loss: float | None = None
    with job.arithmetic():
        try:
            train(run, observe=lambda record: None, save=lambda: None, should_stop=lambda: False)
            loss = job.evaluate()["loss"]
        except TrainingError as error:
            if not isinstance(error.__cause__, FloatingPointError):
                raise
    finite = loss is not None and math.isfinite(loss)
    return Trial(job.config.lr, job.config.seed, loss if finite else None, run.step_seconds, run.optimizer_seconds)


def bytes_of(job: Job, half: bool) -> tuple[float, float]:
    """Return what the optimizer keeps, and what a step moves, in bytes for each element of the parameters."""
    elements = sum(array.size for array in job.problem.model.parameters.values())
    kept = job.problem.inner_optimizer.state_bytes() / elements
    return kept, moved_bytes(kept, ITEM_SIZES["bfloat16" if half else "float32"])
