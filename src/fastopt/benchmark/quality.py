"""What optimizers reach: `fastopt train` with each at a rate that was searched for, and with fewer bits for AdamW.

The problems are small enough for all of it to take minutes; what large models prefer they do not tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from fastopt.benchmark.records import PLAIN, SEARCH_SEED, Quality, Trial
from fastopt.hyperparameters import at_step
from fastopt.methods.base import STORED_AS, WHOLE_OF_TORCH
from fastopt.modes import TwoModes
from fastopt.training.config import PYDOC_TOPICS, Config, ModelName, TransformerConfig
from fastopt.training.errors import TrainingError
from fastopt.training.job import Job
from fastopt.training.loop import train
from fastopt.training.recipes import configure, registered
from fastopt.training.text import Text, load_text

AfterTrial = Callable[[float], object]

TRIES = 7
"""Rates that each optimizer is tried at."""

SEEDS = (1, 2, 3)
"""Of the trainings at the rate that was chosen."""

STORAGE_SEEDS = (1, 2, 3, 4, 5)

FIND_THEIR_RATE = ("prodigy",)
"""Have the rate of their default: there is none to search for."""

LEARNED, HELD_OUT = 160_000, 16_000
"""Characters of the text."""


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
        "characters, transformer of 2 layers of 64",
        "transformer",
        {"layers": 2, "width": 64, "context": 32, "batch_size": 16, "epochs": 1},
        20.0,
    ),
    "interactions": Problem(
        "interactions, recommender with sparse gradients", "recommender", {"epochs": 4}, 20.0
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
        for name in ("master", "rounding")
        for value in WHOLE_OF_TORCH[name].among
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
            trials.append(trial(job, half=STORAGES[stored].half))
            if searching:
                rates[rate] = trials[-1].found
            after_trial(len(trials) / (tries + len(seeds)))
    except (TrainingError, TypeError, ValueError, RuntimeError) as error:
        return Quality(name, PROBLEMS[name].title, optimizer, stored, 0, [], 0.0, 0.0, str(error).partition("\n")[0])
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
    """Return the settings of a problem with the class's own rate and decay, and the schedule that it is made for."""
    problem = PROBLEMS[name]
    config = configure(problem.model, {**problem.settings, "optimizer": optimizer})
    defaults = registered(config).method.defaults()
    schedule = {"schedule": "constant", "warmup": "5%"} if issubclass(registered(config), TwoModes) else {}
    lr, decay = at_step(defaults["lr"], 0), defaults.get("weight_decay", 0.0)
    return replace(config, lr=lr, weight_decay=decay, **schedule)


def assembled(config: Config, stored: Storage) -> Job:
    """Return the run of some settings, the optimizer with the defaults of its class and a storage."""
    if isinstance(config, TransformerConfig):
        from fastopt.training.text_problem import TextProblem

        job = Job(config, TextProblem(config, passage(config.context)))
        if stored.half:
            job.problem.model.network.bfloat16()
    elif stored.half:
        raise TrainingError("NumPy, in which the model is, has no bfloat16")
    else:
        job = Job(config)
    job.problem.optimizer = job.problem.build_optimizer(**own_defaults(config), **stored.options)
    return job


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


def trial(job: Job, half: bool = False) -> Trial:
    """Train, and evaluate; weights in bfloat16 are evaluated in float32."""
    run = replace(job.run, evaluate=dict)
    loss: float | None = None
    with job.arithmetic():
        try:
            train(run, observe=lambda record: None, save=lambda: None, should_stop=lambda: False)
            if half:
                job.problem.model.network.float()
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
    return kept, 3 * (2 if half else 4) + 2 * kept
