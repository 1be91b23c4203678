"""Optimizers and learning-rate schedules by name, with settings that work."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import fastopt
from fastopt import schedules
from fastopt.schedules import Schedule
from fastopt.training.config import Config
from fastopt.training.errors import TrainingError


class Rule(NamedTuple):
    """An optimizer as people call it: a class of the registry and arguments for it."""

    class_name: str
    arguments: Mapping[str, Any]


class Shape(NamedTuple):
    """A learning rate over a run: the warm-up it usually has, and the schedule for (peak, warm-up steps, all steps)."""

    warmup: str
    schedule: Callable[[float, int, int], Schedule]


# Momentum by its usual names, and learning rates where the default of the class does not suit a perceptron.
RULES = {
    "sgd": Rule("SGD", {"lr": 0.1}),
    "momentum": Rule("SGD", {"lr": 0.05, "momentum": 0.9}),
    "nesterov": Rule("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "rmsprop": Rule("RMSprop", {"lr": 1e-3}),
    "adam": Rule("Adam", {"lr": 2e-3}),
    "adamw": Rule("AdamW", {"lr": 2e-3}),
}

SHAPES = {
    "constant": Shape("0", lambda lr, warmup, total: schedules.linear_warmup(warmup, schedules.constant(lr))),
    "linear": Shape("0", lambda lr, warmup, total: schedules.warmup_stable_decay(lr, warmup, total, total - warmup)),
    "cosine": Shape("0", lambda lr, warmup, total: schedules.warmup_cosine(lr, warmup, total)),
    "warmup-cosine": Shape("5%", lambda lr, warmup, total: schedules.warmup_cosine(lr, warmup, total)),
    "warmup-stable-decay": Shape(
        "5%", lambda lr, warmup, total: schedules.warmup_stable_decay(lr, warmup, total, (total - warmup) / 4)
    ),
    "one-cycle": Shape("30%", lambda lr, warmup, total: schedules.one_cycle(lr, total, pct_start=warmup / total)),
    "inverse-sqrt": Shape("5%", lambda lr, warmup, total: schedules.inverse_sqrt(lr, warmup)),
    "step": Shape(  # a tenth after each third
        "0",
        lambda lr, warmup, total: schedules.linear_warmup(
            warmup, schedules.step_decay(lr, 0.1, max(1, (total - warmup) / 3))
        ),
    ),
    "exponential": Shape(  # down to a hundredth
        "0",
        lambda lr, warmup, total: schedules.linear_warmup(
            warmup, schedules.exponential_decay(lr, math.log(100) / (total - warmup))
        ),
    ),
}


def optimizer_names() -> list[str]:
    """Return the names that `--optimizer` takes."""
    return sorted({*RULES, *map(str.lower, fastopt.optimizers.registry())})


def default_lr(optimizer: str) -> float:
    """Return the learning rate of an optimizer where none is asked for."""
    make, arguments = _rule(optimizer)
    default = inspect.signature(make).parameters["lr"].default
    return float(arguments.get("lr", default))


def default_warmup(schedule: str) -> str:
    """Return the warm-up of a schedule where none is asked for."""
    return _shape(schedule).warmup


def build_schedule(config: Config, total_steps: int) -> Schedule:
    """Return the learning rate over a run of `total_steps` steps."""
    try:
        return _shape(config.schedule).schedule(config.lr, _warmup_steps(config.warmup, total_steps), total_steps)
    except ValueError as error:
        raise TrainingError(
            f"--schedule {config.schedule} with --warmup {config.warmup} does not fit {total_steps} steps: {error}"
        ) from error


def build_optimizer(config: Config, parameters: Any, total_steps: int) -> Any:
    """Return the optimizer of `parameters`, its learning rate scheduled over a run of `total_steps` steps."""
    make, arguments = _rule(config.optimizer)
    settings = {
        **arguments,
        "lr": build_schedule(config, total_steps),
        "clip_norm": config.clip_norm or math.inf,  # without a bound the norm is still measured
        "nonfinite": "raise",
    }
    if config.weight_decay is not None:
        settings["weight_decay"] = config.weight_decay
    try:
        return make(parameters, **settings)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"--optimizer {config.optimizer}: {error}") from error


def _rule(name: str) -> tuple[Any, Mapping[str, Any]]:
    classes = {key.lower(): value for key, value in fastopt.optimizers.registry().items()}
    rule = RULES.get(name, Rule(name, {}))
    if rule.class_name.lower() not in classes:
        raise TrainingError(f"--optimizer: expected one of {', '.join(optimizer_names())}, got {name!r}")
    return classes[rule.class_name.lower()], rule.arguments


def _shape(name: str) -> Shape:
    if name not in SHAPES:
        raise TrainingError(f"--schedule: expected one of {', '.join(SHAPES)}, got {name!r}")
    return SHAPES[name]


def _warmup_steps(text: str, total_steps: int) -> int:
    is_share = text.endswith("%")
    try:
        amount = float(text.removesuffix("%"))
    except ValueError:
        amount = math.nan
    steps = math.ceil(amount / 100 * total_steps) if is_share and math.isfinite(amount) else amount
    if not 0 <= steps < math.inf or steps != int(steps):
        raise TrainingError(f"--warmup: expected a number of steps or a share of all such as 5%, got {text!r}")
    if steps >= total_steps and not is_share:
        raise TrainingError(f"--warmup: expected less than the {total_steps} steps of the run, got {text}")
    return min(int(steps), total_steps - 1)
