"""Adding an optimizer is four small edits: the kernels' list, the class, the oracle and the cases must agree."""

import inspect
import re

import numpy as np
import pytest
import reference
from arrays import CSRC
from cases import ALL_CASES, Case

import fastopt
from fastopt import Optimizer, _core, optimizers
from fastopt.methods.base import Flag, Method, learning_rate

LISTS = (CSRC / "rules.def").read_text()
RULES = {name: int(states) for name, states in re.findall(r"^(?:RULE|FLOOR)\((\w+), (\d)\)$", LISTS, re.M)}
OF_MATRICES = set(re.findall(r"^FACTORED\((\w+), \d, \d\)$", LISTS, re.M))  # whose cases are in test_small_states.py
FLOORS = re.findall(r"^FLOOR\((\w+), \d\)$", LISTS, re.M)

every_case = pytest.mark.parametrize("case", ALL_CASES)
every_name = pytest.mark.parametrize("name", optimizers.registry())


def options_of(cls: type[Optimizer]) -> list[str]:
    """The options that a class's own signature names."""
    return [name for name in inspect.signature(cls).parameters if name != "params" and name not in cls.whole]


def test_every_rule_has_an_oracle() -> None:
    assert list(reference.RULES) == [name for name in RULES if name not in FLOORS]


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in ALL_CASES} == set(reference.RULES) - OF_MATRICES


def test_every_optimizer_has_a_case() -> None:
    assert {case.optimizer for case in ALL_CASES} == set(optimizers.registry())


def test_every_optimizer_is_public() -> None:
    public = {name: getattr(fastopt, name) for name in fastopt.__all__}
    found = {name for name, value in public.items() if inspect.isclass(value) and issubclass(value, Optimizer)}
    assert found - {"Optimizer"} == set(optimizers.registry())
    assert all(name[0].isupper() for name in optimizers.registry())  # by which they are told from modules


def test_the_core_has_the_rules_in_order_and_the_floors_last() -> None:
    assert {name: states for name, (_, states) in _core.RULES.items()} == RULES
    assert [index for index, _ in _core.RULES.values()] == list(range(len(RULES)))
    assert list(RULES)[-len(FLOORS) :] == FLOORS == [f"floor{states}" for states in range(5)]


@every_case
def test_options_lead_to_the_rule_and_its_states(case: Case) -> None:
    rule, states = case.cls.method.rule(case.options_at(0))
    assert rule == case.rule
    assert len(states) == RULES[rule] - (rule in _core.HANDED_OVER)
    array = np.ones((3, 3))
    _, expected = reference.step(rule, array, array, {}, 1, case.options_at(0))
    method = case.cls.method
    assert {*states, *method.numbers, *method.row_numbers(rule, case.options_at(0))} == set(expected)


@every_name
def test_every_option_has_a_case(name: str) -> None:
    tried = {option for case in ALL_CASES if case.optimizer == name for option in case.options}
    assert set(options_of(optimizers.registry()[name])) <= tried | {
        "lazy"
    }  # which is for sparse gradients: test_rows.py


@every_name
def test_every_state_that_a_rule_names_is_described(name: str) -> None:
    method = optimizers.registry()[name].method
    for case in ALL_CASES:
        if case.optimizer == name:
            _, states = method.rule(case.options_at(0))
            assert set(states) <= set(method.states)


@every_name
def test_every_option_but_those_that_choose_the_rule_or_a_start_reaches_the_kernels(name: str) -> None:
    method = optimizers.registry()[name].method
    numbers = {
        option: value.numbers(option, value.default) for option, value in method.options.items() if not value.fixed
    }
    silent = {option for option, found in numbers.items() if not found.keys() <= _core.OPTIONS.keys()}
    begun = (*(state.start for state in method.states.values()), *method.numbers.values())
    starts = {start for start in begun if isinstance(start, str)}
    elsewhere = {"lazy", *method.between}  # what a sparse gradient is for; what products are made of
    switches = {option for option in silent - elsewhere if isinstance(method.options[option], Flag)}
    assert silent <= starts | switches | elsewhere
    for switch in switches:
        kernels = {method.rule({**method.defaults(), switch: on})[0] for on in (False, True)}
        assert len(kernels) == 2, switch


def test_what_several_have_in_common_follows_their_own() -> None:
    class Common(Method):
        described = False
        careful = Flag(False, keyword_only=True)

    class Own(Common):
        lr = learning_rate(1.0)

    class Derived(Own):
        lr = learning_rate(2.0)
        more = Flag(False)

    assert list(Derived.signature({}).parameters) == ["params", "lr", "more", "careful"]
    assert Derived.defaults() == {"lr": 2.0, "careful": False, "more": False}
    assert {"Common", "Own", "Derived"}.isdisjoint(optimizers.registry())


@every_name
def test_every_argument_is_explained_in_the_docstring(name: str) -> None:
    cls = optimizers.registry()[name]
    text = inspect.getdoc(cls)
    assert text
    for option in inspect.signature(cls).parameters:
        assert re.search(rf"^{option}$\n    \S", text, re.M), option
    assert "References" in text


@every_name
def test_the_description_says_when_to_use_it(name: str) -> None:
    cls = optimizers.registry()[name]
    assert re.fullmatch(r"[A-Z][^.]+\.", vars(cls.method)["use"])
    assert cls.method.use in (inspect.getdoc(cls) or "")


@every_name
def test_the_signature_is_checked_and_made_from_the_description(name: str) -> None:
    cls = optimizers.registry()[name]
    with pytest.raises(TypeError, match=rf"^{name}.__init__\(\) got an unexpected keyword argument 'learning_rate'"):
        optimizers.registry()[name](np.zeros(1), learning_rate=0.1)
    with pytest.raises(TypeError, match=rf"^{name}.__init__\(\) missing a required argument: 'params'"):
        optimizers.registry()[name]()
    for option, parameter in inspect.signature(cls).parameters.items():
        if option in cls.method.options:
            assert parameter.default == cls.method.options[option].default


def test_every_option_and_scalar_of_the_lists_is_the_cores() -> None:
    assert list(_core.OPTIONS) == re.findall(r"^OPTION\((\w+)\)$", LISTS, re.M)
    assert list(_core.SCALARS) == re.findall(r"^SCALAR\((\w+)\)$", LISTS, re.M)
