"""THE ROWS of the tests: every rule with every option of its optimizer. Tests loop over `CASES`; none lists its own."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest

from fastopt import Optimizer, _core, optimizers

Maker = Callable[..., Optimizer]
"""A class of optimizers, as something that is called with options of its own."""

MAKERS: dict[str, Maker] = {name: cls for name, cls in optimizers.registry().items() if not cls.method.matrices}
"""Those that step arrays of any shape."""


def warmup(step: int) -> float:
    return 0.1 * min(1.0, (step + 1) / 4)


def cooling(step: int) -> float:
    return 0.9 / (1 + 0.1 * step)


def at(value: Any, step: int) -> Any:
    """Return an option's value after `step` steps."""
    if isinstance(value, tuple):
        return tuple(at(entry, step) for entry in value)
    return value(step) if callable(value) else value


@dataclass(frozen=True)
class Case:
    """An optimizer with some options, and the rule of csrc/rules.def that they must lead to."""

    optimizer: str
    rule: str
    options: Mapping[str, Any]

    @property
    def cls(self) -> type[Optimizer]:
        return optimizers.registry()[self.optimizer]

    @property
    def clips_by_norm(self) -> bool:
        return self.clipping_at(0)[0] < math.inf

    @property
    def measures(self) -> bool:
        """Whether an element's update depends on the others of its tensor."""
        return self.rule in _core.SCOPES or bool(self.options.get("cautious"))

    @property
    def cancels(self) -> bool:
        """Whether a state adds up what may be a difference that nearly cancels: of gradients, or times a ratio."""
        return self.measures or self.rule == "adan"

    def make(self, params: Any, **more: Any) -> Optimizer:
        return self.cls(params, **{**self.options, **more})

    def options_at(self, step: int) -> dict[str, Any]:
        """Return all options, defaults filled in and schedules evaluated after `step` steps."""
        return {name: at(value, step) for name, value in self.all_options.items()}

    @cached_property
    def all_options(self) -> dict[str, Any]:
        return self.make(np.zeros((1, 1))).defaults

    def clipping_at(self, step: int) -> tuple[float, float]:
        """Return the bounds of the norm and of the entries, infinite where there is none."""
        names = "clip_norm", "clip_value"
        given = (at(self.options.get(name, self.cls.whole[name].default), step) for name in names)
        norm, value = (math.inf if bound is None else bound for bound in given)
        return norm, value

    def __str__(self) -> str:
        return "-".join([self.optimizer, *(f"{name}={spelled(value)}" for name, value in self.options.items())])


def spelled(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(spelled(entry) for entry in value)
    return value.__name__ if callable(value) else str(value)


CAREFUL = {
    "cautious": True,
    "cautious_decay": True,
    "weight_decay": 0.3,
    "corrected_weight_decay": True,
    "peak_lr": 0.2,
}

ROWS: list[tuple[str, str, dict[str, Any]]] = [
    ("SGD", "sgd", {}),
    ("SGD", "momentum", {"momentum": 0.9}),
    ("SGD", "momentum", {"momentum": 0.9, "dampening": 0.3}),
    ("SGD", "momentum", {"momentum": 0.9, "nesterov": True}),
    ("SGD", "momentum", {"momentum": cooling}),
    ("SGD", "momentum", {"momentum": 0.9, "velocity": "mean"}),
    ("SGD", "momentum", {"momentum": 0.9, "velocity": "mean", "nesterov": True}),
    ("SGD", "momentum", {"momentum": cooling, "velocity": "mean", "lr": warmup}),
    ("SGD", "momentum", {"momentum": 0.9, "velocity": "step"}),
    ("SGD", "momentum", {"momentum": 0.9, "velocity": "step", "nesterov": True}),
    ("SGD", "momentum", {"momentum": 0.9, "velocity": "step", "lr": warmup}),
    ("Adagrad", "adagrad", {}),
    ("Adagrad", "adagrad", {"lr_decay": 0.1}),
    ("Adagrad", "adagrad", {"lr_decay": 0.1, "weight_decay": 0.01, "decoupled_weight_decay": True}),
    ("Adagrad", "adagrad", {"initial_accumulator_value": 0.7}),
    ("Adagrad", "adagrad", {"eps": 1e-2, "eps_root": 1e-2}),
    ("Adagrad", "adagrad_rowwise", {"rowwise": True}),
    ("Adagrad", "adagrad_rowwise", {"rowwise": True, "initial_accumulator_value": 0.7, "eps": 1e-2, "lr_decay": 0.1}),
    ("RMSprop", "rmsprop", {}),
    ("RMSprop", "rmsprop", {"alpha": 0.9, "eps": 1e-2, "eps_root": 1e-2}),
    ("RMSprop", "rmsprop", {"weight_decay": 0.01, "decoupled_weight_decay": True}),
    ("RMSprop", "rmsprop_momentum", {"momentum": 0.9}),
    ("RMSprop", "rmsprop_momentum", {"momentum": cooling, "alpha": cooling}),
    ("RMSprop", "rmsprop_centered", {"centered": True}),
    ("RMSprop", "rmsprop_centered", {"centered": True, "eps": 1e-2, "eps_root": 1e-2}),
    ("RMSprop", "rmsprop_centered_momentum", {"centered": True, "momentum": 0.9}),
    ("Adam", "adam", {}),
    ("Adam", "adam", {"betas": (0.8, 0.99), "eps": 1e-2, "eps_root": 1e-2}),
    ("Adam", "adam", {"betas": (cooling, 0.99)}),
    ("Adam", "adam", {"betas": (0.0, 0.0)}),
    ("Adam", "adam", {"decoupled_weight_decay": True, **CAREFUL}),
    ("Adam", "amsgrad", {"amsgrad": True}),
    ("Adam", "amsgrad", {"amsgrad": True, "betas": (0.8, 0.5), "eps": 1e-2, "eps_root": 1e-2}),
    ("SparseAdam", "adam", {}),
    ("SparseAdam", "adam", {"betas": (0.8, cooling), "eps": 1e-2, "maximize": True, "lr": warmup}),
    ("AdamW", "adam", {}),
    ("AdamW", "adam", {"betas": (0.8, 0.99), "eps": 1e-2, "eps_root": 1e-2}),
    ("AdamW", "amsgrad", {"amsgrad": True, "weight_decay": 0.01}),
    ("AdamW", "adam", {"cautious": True}),
    ("AdamW", "adam", {"cautious_decay": True, "weight_decay": 0.3}),
    ("AdamW", "adam", {"corrected_weight_decay": True, "peak_lr": 0.2, "lr": warmup}),
    ("AdamW", "amsgrad", {"amsgrad": True, **CAREFUL}),
    ("Adam", "adam_rowwise", {"rowwise": True}),
    (
        "AdamW",
        "adam_rowwise",
        {"rowwise": True, "betas": (0.8, 0.9), "eps": 1e-2, "eps_root": 1e-2, "weight_decay": 0.3},
    ),
    ("NAdam", "nadam", {}),
    ("NAdam", "nadam", {"betas": (0.8, 0.99), "eps": 1e-2, "momentum_decay": 0.3}),
    ("NAdam", "nadam", {"weight_decay": 0.01, "decoupled_weight_decay": True}),
    ("NAdam", "nadam", {"betas": (cooling, 0.99), "lr": warmup}),
    ("RAdam", "radam", {}),
    ("RAdam", "radam", {"betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.01, "decoupled_weight_decay": True}),
    ("Adamax", "adamax", {}),
    ("Adamax", "adamax", {"betas": (0.8, 0.5), "eps": 1e-2}),
    ("Adamax", "adamax", {"weight_decay": 0.01, "decoupled_weight_decay": True}),
    ("Adadelta", "adadelta", {}),
    ("Adadelta", "adadelta", {"rho": 0.5, "eps": 1e-2}),
    ("Adadelta", "adadelta", {"rho": 1.0, "weight_decay": 0.01, "decoupled_weight_decay": True}),
    ("ASGD", "asgd", {}),
    ("ASGD", "asgd", {"lambd": 0.1, "alpha": 0.5, "t0": 2.0}),
    ("Rprop", "rprop", {}),
    ("Rprop", "rprop", {"etas": (0.3, 1.7), "step_sizes": (0.05, 0.15)}),
    ("Lion", "lion", {}),
    ("Lion", "lion", {"betas": (0.8, 0.9)}),
    ("Lion", "lion", CAREFUL),
    ("Signum", "signum", {}),
    ("Signum", "signum", {"momentum": cooling, "weight_decay": 0.01, "decoupled_weight_decay": False}),
    ("Signum", "signsgd", {"momentum": 0.0, "weight_decay": 0.01}),
    ("AdEMAMix", "ademamix", {}),
    ("AdEMAMix", "ademamix", {"betas": (0.8, 0.9, 0.99), "alpha": 2.0, "t_alpha": 4.0, "t_beta3": 3.0, "eps": 1e-2}),
    ("ADOPT", "adopt", {}),
    ("ADOPT", "adopt", {"betas": (0.8, 0.9), "eps": 1.0, "clip_exp": None}),
    ("ADOPT", "adopt", {"clip_exp": 0.1, "weight_decay": 0.01, "decoupled_weight_decay": True}),
    ("LaProp", "laprop", {}),
    ("LaProp", "laprop", {"betas": (0.8, cooling), "eps": 1e-2, "lr": warmup, "weight_decay": 0.01}),
    ("AdaBelief", "adabelief", {}),
    ("AdaBelief", "adabelief", {"betas": (0.8, 0.9), "degenerated_to_sgd": False}),
    ("AdaBelief", "adabelief", {"rectify": False, "eps": 1e-2, "weight_decay": 0.01, "decoupled_weight_decay": False}),
    ("AdaBelief", "adabelief", {"weight_decay": 0.01, "fixed_decay": True}),
    ("AdaBelief", "adabelief_amsgrad", {"amsgrad": True}),
    ("AdaBelief", "adabelief_amsgrad", {"amsgrad": True, "rectify": False, "betas": (0.8, 0.5)}),
    ("Adan", "adan", {}),
    ("Adan", "adan", {"betas": (0.8, 0.7, 0.9), "eps": 1e-2, "weight_decay": 0.01, "lr": warmup}),
    ("Adan", "adan", {"weight_decay": 0.01, "no_prox": True}),
    ("Yogi", "yogi", {"initial_accumulator": 2.0**-20}),
    ("Yogi", "yogi", {"betas": (0.8, 0.5), "eps": 1e-2, "initial_accumulator": 0.75}),
    ("Yogi", "yogi", {"initial_accumulator": 0.5, "weight_decay": 0.01, "decoupled_weight_decay": False}),
    ("Yogi", "yogi", {"initial_accumulator": 0.5, "weight_decay": 0.01, "fixed_decay": True}),
    ("FTRL", "ftrl", {}),
    ("FTRL", "ftrl", {"beta": 1.0, "lambda_1": 0.1, "lambda_2": 0.1}),
    ("LARS", "lars", {}),
    ("LARS", "lars", {"weight_decay": 0.01, "trust_clip": True, "trust_coeff": 0.5, "lr": 0.3}),
    ("LARS", "lars_momentum", {"momentum": 0.9, "weight_decay": 0.01}),
    ("LARS", "lars_momentum", {"momentum": 0.9, "always_adapt": True, "dampening": 0.3, "eps": 1e-2}),
    ("LARS", "lars_momentum", {"momentum": 0.9, "always_adapt": True, "nesterov": True, "trust_coeff": 0.1}),
    ("LAMB", "lamb", {}),
    ("LAMB", "lamb", {"clip_norm": None, "betas": (0.8, 0.99), "eps": 1e-2, "trust_clip": True, "weight_decay": 0.3}),
    ("LAMB", "lamb", {"cautious": True, "clip_norm": None}),
    ("LAMB", "lamb", {"decoupled_weight_decay": True, **CAREFUL}),
    ("LAMB", "lamb", {"always_adapt": True, "weight_decay": 0.0, "bias_correction": False, "grad_averaging": False}),
    ("StableAdamW", "stable_adamw", {}),
    ("StableAdamW", "stable_adamw", {"betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.3}),
    ("StableAdamW", "stable_adamw", CAREFUL),
    ("StableAdamW", "stable_adamw", {"decoupled_weight_decay": False, "lr": warmup}),
    ("ScheduleFreeSGD", "schedule_free_sgd", {}),
    ("ScheduleFreeSGD", "schedule_free_sgd", {"momentum": 0.7, "warmup_steps": 4, "r": 1.0, "weight_lr_power": 1.0}),
    ("ScheduleFreeAdamW", "schedule_free_adamw", {}),
    ("ScheduleFreeAdamW", "schedule_free_adamw", {"betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.3}),
    ("ScheduleFreeAdamW", "schedule_free_adamw", {"warmup_steps": 4, "r": 1.0, "weight_lr_power": 1.0}),
    ("Prodigy", "prodigy", {"lr": 1.0}),
    ("Prodigy", "prodigy", {"lr": 1.0, "d0": 0.03, "beta3": 0.9, "eps": 1e-2, "betas": (0.8, 0.99)}),
    ("Prodigy", "prodigy", {"d0": 0.3, "use_bias_correction": True, "safeguard_warmup": True, "growth_rate": 1.1}),
    ("Prodigy", "prodigy", {"d0": 0.3, "betas": (0.0, 0.9), "d_coef": 2.0}),
    ("Prodigy", "prodigy", {"d0": 0.3, "weight_decay": 0.01, "decoupled_weight_decay": False}),
    ("MuonAdamW", "adam", {}),
    ("MuonAdamW", "adam", {"use_muon": False, "betas": (0.8, 0.99), "eps": 1e-2, "weight_decay": 0.3}),
    ("Muon", "muon", {}),
    ("Muon", "muon", {"momentum": 0.8, "nesterov": False, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}),
    ("Muon", "muon", {"ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 10, "eps": 20.0, "adjust_lr_fn": "original"}),
    ("Muon", "muon", {"ns_steps": 0, "momentum": cooling, "lr": warmup}),
    ("Muon", "muon", {"coefficients": "polar_express"}),
    ("Muon", "muon", {"coefficients": "polar_express", "ns_steps": 7, "normuon": True, "normuon_beta": 0.8}),
    ("Muon", "muon", {"normuon": True, "eps": 1e-3, "ns_steps": 0, "weight_decay": 0.3}),
    ("MuonAdamW", "muon", {"use_muon": True}),
    ("MuonAdamW", "muon", {"use_muon": True, "momentum": 0.8, "nesterov": False, "adjust_lr_fn": "original"}),
    ("MuonAdamW", "muon", {"use_muon": True, "coefficients": "polar_express", "ns_steps": 3, "normuon": True}),
    ("MuonAdamW", "muon", {"use_muon": True, "ns_coefficients": (2.0, -1.5, 0.5), "normuon_beta": 0.8, "lr": warmup}),
    ("Adafactor", "adafactor_vector", {}),
    ("Adafactor", "adafactor_vector", {"eps": (0.3, 0.5), "d": 1.5, "beta2_decay": -0.5, "weight_decay": 0.01}),
    ("Adafactor", "adafactor_vector", {"eps": (1e-30, 1e-3), "lr": warmup}),
]
"""Optimizer, rule, options."""

VARIATIONS: list[dict[str, Any]] = [
    {"weight_decay": 0.01},
    {"weight_decay": 0.01, "decoupled_weight_decay": True},
    {"weight_decay": 0.01, "maximize": True},
    {"lr": warmup},
    {"clip_value": 0.7},
    {"clip_norm": 3.0},
]
"""What is done around every rule, by the same code for all: tried one by one with those that are varied `IN_FULL`."""

COMBINED: list[dict[str, Any]] = [
    {"weight_decay": 0.01, "maximize": True, "clip_value": 0.7},
    {"lr": warmup, "clip_norm": 3.0},
]
"""What every other rule is tried with, on the first row that has it: what its optimizer has of these."""

IN_FULL = (("SGD", "sgd"), ("SGD", "momentum"), ("Adam", "adam"))


def all_cases() -> Iterator[Case]:
    seen = set()
    for optimizer, rule, options in ROWS:
        method = optimizers.registry()[optimizer].method
        free = {name for name, option in {**method.options, **Optimizer.whole}.items() if not option.fixed}
        # Large enough that the update shows in the last places of the parameter.
        base = {"lr": 0.1, **options}
        yield Case(optimizer, rule, base)
        if (optimizer, rule) not in seen:
            seen.add((optimizer, rule))
            for variation in VARIATIONS if (optimizer, rule) in IN_FULL else COMBINED:
                yield Case(optimizer, rule, {**base, **{name: variation[name] for name in variation if name in free}})


ALL_CASES = list(all_cases())
CASES = [case for case in ALL_CASES if case.rule not in _core.HANDED_OVER]
MATRIX_CASES = [case for case in ALL_CASES if case.rule in _core.HANDED_OVER]
"""What depends on products of matrices, whose last bits nobody promises: test_muon.py."""

every_case = pytest.mark.parametrize("case", CASES)
FIRST_OF_EACH_RULE = {case.rule: case for case in reversed(CASES)}.values()
first_case_of_each_rule = pytest.mark.parametrize("case", FIRST_OF_EACH_RULE)
every_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
