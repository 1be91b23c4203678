"""Gradients that are added up over several calls of `step`."""

import copy
import math
from typing import Any

import numpy as np
import pytest
from arrays import unchanged
from cases import FIRST_OF_EACH_RULE, MATRIX_CASES, Case

import fastopt

SHAPES = ((3, 4), (4, 3))

EVERY = 3

case_of_each_rule = pytest.mark.parametrize("case", [*FIRST_OF_EACH_RULE, MATRIX_CASES[0]])


def arrays(rng: np.random.Generator, dtype: str = "float64") -> list[Any]:
    return [rng.normal(size=shape).astype(dtype) for shape in SHAPES]


def mean_of(several: list[list[Any]]) -> list[Any]:
    return [sum(grads[k] for grads in several if grads[k] is not None) / len(several) for k in range(len(SHAPES))]


@case_of_each_rule
def test_a_step_is_by_the_mean_of_the_gradients(case: Case, rng: np.random.Generator) -> None:
    params = arrays(rng)
    twins = copy.deepcopy(params)
    opt, other = case.make(params, accumulate=EVERY), case.make(twins)
    for step in range(1, 5):
        several = [arrays(rng) for _ in range(EVERY)]
        several[1][0] = None  # as if it were zero
        before = copy.deepcopy(params)
        for grads in several[:-1]:
            info = opt.step(grads)
            assert (info.grad_norm, info.clipped, info.skipped) == (None, False, False)
            assert opt.step_count == step - 1
            for param, kept in zip(params, before, strict=True):
                np.testing.assert_array_equal(param, kept)
        opt.step(several[-1])
        other.step(mean_of(several))
        assert opt.step_count == step
        for param, twin in zip(params, twins, strict=True):
            np.testing.assert_allclose(param, twin, rtol=1e-6, atol=1e-8)
            twin[...] = param


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_snapshot_between_goes_on(dtype: str, rng: np.random.Generator) -> None:
    for name, before in (("AdamW", 1), ("AdamW", 4), ("SGD", 2), ("NAdam", 5)):
        options: dict[str, Any] = {"momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}
        params = arrays(rng, dtype)
        make = fastopt.optimizers.registry()[name]
        opt: Any = make(params, lr=0.1, accumulate=EVERY, **options)
        for _ in range(before):
            opt.step(arrays(rng, dtype))
        others = copy.deepcopy(params)
        resumed: Any = make(others, lr=0.1, accumulate=EVERY, **options)
        resumed.step(arrays(rng, dtype))  # (of which nothing is left)
        for other, param in zip(others, params, strict=True):
            other[...] = param
        resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
        for _ in range(4):
            grads = arrays(rng, dtype)
            opt.step(grads)
            resumed.step(grads)
        for param, other in zip(params, others, strict=True):
            np.testing.assert_array_equal(param, other)


def test_between_steps_a_snapshot_has_no_gradients(rng: np.random.Generator) -> None:
    opt = fastopt.Adam(arrays(rng), accumulate=2)
    opt.step(arrays(rng))
    assert [*opt.state_dict()["state"][0]] == ["mean_gradient"]
    assert opt.state_dict()["param_groups"][0]["gradients_added"] == 1
    opt.step(arrays(rng))
    assert "mean_gradient" not in opt.state_dict()["state"][0]
    assert "gradients_added" not in opt.state_dict()["param_groups"][0]


def test_a_parameter_without_any_gradient_is_not_stepped(rng: np.random.Generator) -> None:
    params = arrays(rng)
    opt = fastopt.AdamW(params, lr=0.1, accumulate=2)
    for _ in range(2):
        opt.step(arrays(rng))
    before = copy.deepcopy(params)
    for _ in range(2):
        opt.step([None, arrays(rng)[1]])
    np.testing.assert_array_equal(params[0], before[0])
    assert (params[1] != before[1]).all()


def test_another_number_begins_anew() -> None:
    param = np.zeros(2)
    opt = fastopt.SGD(param, lr=1.0, accumulate=2)
    opt.step(np.full(2, 100.0))
    for times in (1, 2):
        opt.accumulate = times
        for _ in range(times):
            opt.step(np.ones(2))
        np.testing.assert_array_equal(param, -times)


def test_clipping_and_its_norm_are_of_the_mean() -> None:
    opt = fastopt.SGD([np.zeros(2)], lr=1.0, accumulate=2, clip_norm=1.0)
    opt.step([np.array([6.0, 0.0])])
    info = opt.step([np.array([0.0, 8.0])])
    assert info.grad_norm == pytest.approx(5.0)
    np.testing.assert_allclose(opt.param_groups[0]["params"][0], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("what", ["skip", "raise"])
def test_a_mean_that_is_not_finite_is_dropped(place: int, what: Any, rng: np.random.Generator) -> None:
    params = arrays(rng)
    opt = fastopt.AdamW(params, accumulate=2, nonfinite=what)
    before = copy.deepcopy(params)
    bad = [np.full(shape, math.nan) for shape in SHAPES]
    for k in range(2):
        if what == "raise" and k == 1:
            with pytest.raises(FloatingPointError, match=r"not finite: gradient of params\[0\]"):
                opt.step(bad if k == place else arrays(rng))
        else:
            assert opt.step(bad if k == place else arrays(rng)).skipped is (k == 1)
    for param, kept in zip(params, before, strict=True):
        np.testing.assert_array_equal(param, kept)
    for _ in range(2):
        opt.step(arrays(rng))
    assert opt.step_count == 1
    assert all(np.isfinite(param).all() for param in params)


def test_gradients_are_zeroed_once_they_are_added(rng: np.random.Generator) -> None:
    opt = fastopt.AdamW(arrays(rng), accumulate=2)
    for _ in range(4):
        grads = arrays(rng)
        opt.step(grads, zero_grad=True)
        assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("value", [0, -1, 1.5, None, "2", math.inf])
def test_numbers_of_calls_out_of_bounds(value: Any) -> None:
    with pytest.raises(ValueError, match="accumulate"):
        fastopt.SGD(np.ones(2), accumulate=value)
    opt = fastopt.SGD(np.ones(2))
    with pytest.raises(ValueError, match="accumulate"):
        opt.accumulate = value


def test_an_unfit_gradient_is_not_added(rng: np.random.Generator) -> None:
    opt = fastopt.AdamW(arrays(rng), accumulate=3)
    opt.step(arrays(rng))
    with unchanged(opt), pytest.raises(ValueError, match=r"gradient of params\[1\]: expected the parameter's shape"):
        opt.step([np.ones((3, 4)), np.ones((3, 4))])
    rows = fastopt.Rows(np.array([0]), np.ones((1, 4)))
    plain = fastopt.SGD([np.ones((3, 4))], accumulate=2)
    with unchanged(plain), pytest.raises(TypeError, match=r"^gradient of params\[0\]: is of some rows"):
        plain.step([rows])
