"""Optimizers and learning-rate schedules by name, with settings that work."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastopt import Optimizer, optimizers, schedules
from fastopt.schedules import Schedule
from fastopt.training.config import CONFIGS, Config, ModelName, check_known
from fastopt.training.errors import TrainingError


class Rule(NamedTuple):
    """An optimizer as people call it: a class of the registry and arguments for it."""

    class_name: str
    arguments: Mapping[str, Any]


class Shape(NamedTuple):
    """A learning rate over a run: the warm-up it usually has, and the schedule for (peak, warm-up steps, all steps)."""

    warmup: str
    schedule: Callable[[float, int, int], Schedule]


# Momentum by its usual names, and settings where the defaults of a class do not suit the model. Optimizers that are
# not here have the defaults of their class.
RULES: dict[ModelName, dict[str, Rule]] = {
    "mlp": {
        "sgd": Rule("SGD", {"lr": 0.1}),
        "momentum": Rule("SGD", {"lr": 0.05, "momentum": 0.9}),
        "nesterov": Rule("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
        "rmsprop": Rule("RMSprop", {"lr": 1e-3}),
        "adam": Rule("Adam", {"lr": 2e-3}),
        "adamw": Rule("AdamW", {"lr": 2e-3}),
    },
    "transformer": {
        "sgd": Rule("SGD", {"lr": 0.5}),
        "momentum": Rule("SGD", {"lr": 0.1, "momentum": 0.9}),
        "nesterov": Rule("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        "rmsprop": Rule("RMSprop", {"lr": 3e-4}),
        "adam": Rule("Adam", {"lr": 3e-4, "betas": (0.9, 0.95)}),
        "adamw": Rule("AdamW", {"lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}),
    },
    "recommender": {
        "sgd": Rule("SGD", {"lr": 100.0}),
        "momentum": Rule("SGD", {"lr": 30.0, "momentum": 0.9}),
        "nesterov": Rule("SGD", {"lr": 30.0, "momentum": 0.9, "nesterov": True}),
        "adagrad": Rule("Adagrad", {"lr": 0.05}),
        "rmsprop": Rule("RMSprop", {"lr": 2e-2}),
        "adam": Rule("Adam", {"lr": 2e-2}),
        "adamw": Rule("AdamW", {"lr": 2e-2}),
        "sparseadam": Rule("SparseAdam", {"lr": 2e-2}),
    },
}

RIVALS: dict[str, dict[str, Any]] = {"torch": {}, "torch-fused": {"fused": True}}
"""What to put before an optimizer, as in ``torch:adamw``, to run torch's own; and its arguments for that."""

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


def configure(model: ModelName, settings: Mapping[str, Any]) -> Config:
    """Return the settings of a run, with what fits the model, its optimizer and its schedule where nothing is given.

    Parameters
    ----------
    model : {"mlp", "transformer", "recommender"}
        What is trained.
    settings : mapping
        Of the attributes of its class in :mod:`fastopt.training.config`, those that are to differ.

    Raises
    ------
    TrainingError
        If the model has no such setting, or there is no such optimizer or schedule.
    """
    check_known(model, settings)
    kind = CONFIGS[model]
    name = settings.get("optimizer", kind.optimizer)
    fitting: dict[str, Any] = {
        "lr": _argument(model, name, "lr"),
        "weight_decay": _argument(model, name, "weight_decay"),
        "warmup": _shape(settings.get("schedule", kind.schedule)).warmup,
    }
    return kind(**{**fitting, **settings})


def optimizer_names() -> list[str]:
    """Return the names that `--optimizer` takes."""
    return sorted({name for rules in RULES.values() for name in rules} | set(_classes()))


def build_schedule(config: Config, total_steps: int) -> Schedule:
    """Return the learning rate over a run of `total_steps` steps."""
    try:
        return _shape(config.schedule).schedule(config.lr, _warmup_steps(config.warmup, total_steps), total_steps)
    except ValueError as error:
        raise TrainingError(
            f"--schedule {config.schedule} with --warmup {config.warmup} does not fit {total_steps} steps: {error}"
        ) from error


def rival(optimizer: str) -> str:
    """Return whose optimizer is named: ``""`` for fastopt's, else what stands before the colon.

    Raises
    ------
    TrainingError
        If there is none of that name.
    """
    prefix, colon, _ = optimizer.rpartition(":")
    if colon and prefix not in RIVALS:
        expected = ", ".join(f"{name}:NAME" for name in RIVALS)
        raise TrainingError(f"--optimizer: expected NAME or one of {expected}, got {optimizer!r}")
    return prefix


def registered(config: Config) -> type[Optimizer]:
    """Return the class of the registry that the settings name."""
    return optimizers.registry()[_rule(config.model, config.optimizer).class_name]


def build_optimizer(
    config: Config, classes: Mapping[str, Any], parameters: Any, total_steps: int, **arguments: Any
) -> Any:
    """Return the optimizer of `parameters`, with its schedule over a run of `total_steps` steps.

    Parameters
    ----------
    config : Config
        Says which.
    classes : mapping of str to class
        Where the class is found by its name: a registry, or what is in :mod:`torch.optim`.
    parameters
        As the class takes them.
    total_steps : int
        Steps of the whole run.
    **arguments
        More arguments for the class, or others in place of those that the settings give.

    Raises
    ------
    TrainingError
        If the optimizer is not known or not there, or a setting is out of bounds for it.
    """
    rule = _rule(config.model, config.optimizer)
    if rule.class_name not in classes:
        raise TrainingError(f"--optimizer {config.optimizer}: there is no {rule.class_name} for --model {config.model}")
    if config.model == "transformer" and registered(config).method.refusal_of_dense:
        raise TrainingError(
            f"--optimizer {config.optimizer}: is for sparse gradients, those of a transformer are dense"
        )
    kind = classes[rule.class_name]
    settings = {**rule.arguments, "lr": build_schedule(config, total_steps)}
    if "weight_decay" in _defaults(rule):
        settings["weight_decay"] = config.weight_decay
    elif config.weight_decay:
        raise TrainingError(f"--weight-decay: --optimizer {config.optimizer} has none")
    try:
        return kind(parameters, **{**settings, **arguments})
    except (TypeError, ValueError) as error:
        raise TrainingError(f"--optimizer {config.optimizer}: {error}") from error


def _classes() -> dict[str, str]:
    return {name.lower(): name for name, cls in optimizers.registry().items() if not cls.method.matrices}


def _rule(model: ModelName, optimizer: str) -> Rule:
    name = optimizer.removeprefix(rival(optimizer)).removeprefix(":")
    if name not in optimizer_names() and name in map(str.lower, optimizers.registry()):
        raise TrainingError(f"--optimizer {optimizer}: steps matrices alone; muonadamw steps the rest too")
    if name not in optimizer_names():
        raise TrainingError(f"--optimizer: expected one of {', '.join(optimizer_names())}, got {name!r}")
    return RULES[model].get(name) or Rule(_classes()[name], {})


def _argument(model: ModelName, optimizer: str, name: str) -> float:
    """Return what an argument of an optimizer is where nothing else is asked for."""
    rule = _rule(model, optimizer)
    return float(rule.arguments.get(name, _defaults(rule).get(name, 0.0)))


def _defaults(rule: Rule) -> Mapping[str, Any]:
    """Return the options of a rule's class, with the values that they have where nothing else is said."""
    kind: Callable[..., Optimizer] = optimizers.registry()[rule.class_name]
    return kind(np.zeros(1)).defaults


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
