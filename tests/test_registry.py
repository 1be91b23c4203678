"""Adding an optimizer is four small edits: the kernels' list, the class, the oracle and the cases must agree."""

import inspect
import re

import numpy as np
import pytest
import reference
from arrays import CSRC
from cases import CASES, MAKERS, Case, every_case

import fastopt
from fastopt import Optimizer, _core, optimizers

RULES = {
    name: int(states) for name, states in re.findall(r"^RULE\((\w+), (\d)\)$", (CSRC / "rules.def").read_text(), re.M)
}
FLOORS = [name for name in RULES if name.startswith("floor")]

every_name = pytest.mark.parametrize("name", optimizers.registry())


def options_of(cls: type[Optimizer]) -> list[str]:
    """The options that a class's own signature names."""
    return [name for name in inspect.signature(cls).parameters if name not in ("params", "clipping")]


def test_every_rule_has_an_oracle() -> None:
    assert list(reference.RULES) == [name for name in RULES if name not in FLOORS]


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in CASES} == set(reference.RULES)


def test_every_optimizer_has_a_case() -> None:
    assert {case.optimizer for case in CASES} == set(optimizers.registry())


def test_every_optimizer_is_public() -> None:
    public = {name: getattr(fastopt, name) for name in fastopt.__all__}
    found = {name for name, value in public.items() if inspect.isclass(value) and issubclass(value, Optimizer)}
    assert found - {"Optimizer"} == set(optimizers.registry())


def test_the_core_has_the_rules_in_order_and_the_floors_last() -> None:
    assert {name: states for name, (_, states) in _core.RULES.items()} == RULES
    assert [index for index, _ in _core.RULES.values()] == list(range(len(RULES)))
    assert list(RULES)[-len(FLOORS) :] == FLOORS == ["floor0", "floor1", "floor2", "floor3"]


@every_case
def test_options_lead_to_the_rule_and_its_states(case: Case) -> None:
    rule, states = case.cls.rule(case.options_at(0))
    assert rule == case.rule
    assert len(states) == RULES[rule]
    array = np.ones(3)
    _, expected = reference.step(rule, array, array, {}, 1, case.options_at(0))
    assert set(states) == set(expected)


@every_name
def test_every_option_has_a_case(name: str) -> None:
    tried = {option for case in CASES if case.optimizer == name for option in case.options}
    assert set(options_of(optimizers.registry()[name])) <= tried


@every_name
def test_every_number_has_a_bound(name: str) -> None:
    cls = optimizers.registry()[name]
    defaults = MAKERS[name](np.zeros(1)).defaults
    numbers = [option for option, value in defaults.items() if isinstance(value, float | tuple)]
    assert set(cls.bounds) == set(numbers)


@every_name
def test_every_argument_is_explained_in_the_docstring(name: str) -> None:
    cls = optimizers.registry()[name]
    text = inspect.getdoc(cls if cls.__mro__[1] is Optimizer else cls.__mro__[1])
    assert text
    for option in ("params", *options_of(cls), "clip_norm", "clip_value", "nonfinite"):
        assert re.search(rf"\b{option}\b", text), option


@every_name
def test_every_scalar_is_one_of_the_kernels(name: str) -> None:
    opt = MAKERS[name](np.zeros(1))
    assert set(opt.all_scalars(opt.defaults, 1)) <= set(_core.HYPERS)
