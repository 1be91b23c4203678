"""Numbers that can be checked by hand, for every dtype and instruction set."""

import math
from typing import Any

import numpy as np
import pytest
from cases import MAKERS

import fastopt


def approx(value: float | list[float], dtype: str) -> object:
    return pytest.approx(value, rel=4 * float(np.finfo(dtype).eps))


def descend(lr: float, steps: int, dtype: str) -> float:
    """Gradient descent on f(x) = x**2 from 5."""
    x = np.array(5.0, dtype)
    opt = fastopt.SGD(x, lr=lr)
    for _ in range(steps):
        opt.step(np.array(2 * x))
    return float(x)


def after_constant_gradient(opt: fastopt.Optimizer, steps: int, gradient: float = 1.0) -> None:
    (param,) = opt.param_groups[0]["params"]
    for _ in range(steps):
        opt.step(np.full_like(param, gradient))


def state_of(opt: fastopt.Optimizer, name: str) -> float:
    return float(opt.state_dict()["state"][0][name][0])


def test_one_step_of_gradient_descent(dtype: str, isa: str) -> None:
    w = np.array([5.0], dtype)
    info = fastopt.SGD(w, lr=0.1).step(np.array([2.0], dtype))
    assert w[0] == np.dtype(dtype).type(4.8)
    assert info == (0.1, None, False, False)


@pytest.mark.parametrize(
    ("lr", "steps", "expected"),
    [(1.1, 1, -6.0), (1.1, 2, 7.2), (0.1, 1, 4.0), (0.1, 2, 3.2), (0.001, 1000, 5 * 0.998**1000)],
)
def test_descending_a_parabola(lr: float, steps: int, expected: float, dtype: str, isa: str) -> None:
    rel = 4 * float(np.finfo(dtype).eps) * math.sqrt(steps)
    assert descend(lr, steps, dtype) == pytest.approx(expected, rel=rel)


def test_a_parabola_after_many_steps(dtype: str, isa: str) -> None:
    assert abs(descend(0.1, 50, dtype)) < 1e-4
    assert descend(0.001, 1000, dtype) == pytest.approx(0.67, abs=0.01)
    assert abs(descend(1.1, 50, dtype)) > 1e4


@pytest.mark.parametrize(("velocity", "limit"), [("sum", 10.0), ("mean", 1.0), ("step", -1.0)])
def test_velocity_under_a_constant_gradient(velocity: Any, limit: float, dtype: str, isa: str) -> None:
    opt = fastopt.SGD(np.zeros(1, dtype), lr=0.1, momentum=0.9, velocity=velocity)
    after_constant_gradient(opt, 500)
    assert state_of(opt, "momentum_buffer") == pytest.approx(limit, rel=20 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize(("velocity", "displacements"), [("sum", (1.9, 2.71)), ("mean", (0.19, 0.271))])
def test_nesterov_looks_one_step_ahead(velocity: Any, displacements: tuple[float, float], dtype: str, isa: str) -> None:
    """The displacement is what plain momentum would make of the same gradient once more."""
    w = np.zeros(1, dtype)
    opt = fastopt.SGD(w, lr=1.0, momentum=0.9, nesterov=True, velocity=velocity)
    after_constant_gradient(opt, 1)
    assert -w[0] == approx(displacements[0], dtype)
    after_constant_gradient(opt, 1)
    assert -w[0] == approx(sum(displacements), dtype)


def test_dampening_spares_the_first_gradient(dtype: str, isa: str) -> None:
    opt = fastopt.SGD(np.zeros(1, dtype), lr=0.1, momentum=0.5, dampening=0.75)
    after_constant_gradient(opt, 1)
    assert state_of(opt, "momentum_buffer") == 1.0
    after_constant_gradient(opt, 1)
    assert state_of(opt, "momentum_buffer") == 0.75


def test_a_new_rate_acts_at_once_on_sum_and_with_momentum_on_step(dtype: str, isa: str) -> None:
    found = {}
    for velocity in ("sum", "step"):
        w = np.zeros(1, dtype)
        opt = fastopt.SGD(w, lr=1.0, momentum=0.5, velocity=velocity)
        after_constant_gradient(opt, 1)
        opt.param_groups[0]["lr"] = 0.0
        after_constant_gradient(opt, 1)
        found[velocity] = float(w[0])
    assert found == {"sum": -1.0, "step": -1.5}


@pytest.mark.parametrize("gradient", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_first_step_of_adam_is_the_rate(gradient: float, amsgrad: bool, dtype: str, isa: str) -> None:
    w = np.zeros(1, dtype)
    after_constant_gradient(fastopt.Adam(w, lr=0.1, eps=0.0, amsgrad=amsgrad), 1, gradient)
    assert w[0] == approx(-0.1, dtype)


def test_adam_under_a_constant_gradient_moves_by_the_rate(dtype: str, isa: str) -> None:
    w = np.zeros(1, dtype)
    after_constant_gradient(fastopt.Adam(w, lr=0.5, eps=0.0), 100, gradient=7.0)
    assert w[0] == pytest.approx(-50.0, rel=100 * float(np.finfo(dtype).eps))


def test_amsgrad_remembers_a_large_gradient(dtype: str, isa: str) -> None:
    params = np.zeros(1, dtype), np.zeros(1, dtype)
    for w, amsgrad in zip(params, (False, True), strict=True):
        opt = fastopt.Adam(w, lr=0.1, betas=(0.0, 0.5), amsgrad=amsgrad)
        after_constant_gradient(opt, 1, gradient=100.0)
        after_constant_gradient(opt, 30)
    forgotten, remembered = (abs(float(w[0])) for w in params)
    assert forgotten > 1.0
    assert remembered < 0.15


@pytest.mark.parametrize(("decoupled", "expected"), [(True, 5.0 * 0.99), (False, 5.0 - 0.1 * 0.1 * 5.0)])
def test_weight_decay_of_sgd_is_the_same_either_way(decoupled: bool, expected: float, dtype: str, isa: str) -> None:
    w = np.array([5.0], dtype)
    opt = fastopt.SGD(w, lr=0.1, weight_decay=0.1, decoupled_weight_decay=decoupled)
    after_constant_gradient(opt, 1, gradient=0.0)
    assert w[0] == approx(expected, dtype)


def test_decoupled_decay_shrinks_alike_and_coupled_decay_steps_alike(dtype: str, isa: str) -> None:
    shrunk, stepped = np.array([1.0, 4.0], dtype), np.array([1.0, 4.0], dtype)
    after_constant_gradient(fastopt.AdamW(shrunk, lr=0.1, weight_decay=0.5), 1, gradient=0.0)
    after_constant_gradient(fastopt.Adam(stepped, lr=0.1, weight_decay=0.5, eps=0.0), 1, gradient=0.0)
    assert shrunk.tolist() == approx([0.95, 3.8], dtype)
    assert stepped.tolist() == approx([0.9, 3.9], dtype)


@pytest.mark.parametrize(("lr_decay", "expected"), [(0.0, 1 + 1 / math.sqrt(2)), (1.0, 1 + 0.5 / math.sqrt(2))])
def test_adagrad_slows_down(lr_decay: float, expected: float, dtype: str, isa: str) -> None:
    w = np.zeros(1, dtype)
    after_constant_gradient(fastopt.Adagrad(w, lr=1.0, lr_decay=lr_decay, eps=0.0), 2, gradient=3.0)
    assert -w[0] == approx(expected, dtype)


def test_adagrad_starts_from_its_initial_accumulator(dtype: str, isa: str) -> None:
    w = np.zeros(1, dtype)
    opt = fastopt.Adagrad(w, lr=1.0, initial_accumulator_value=16.0, eps=0.0)
    after_constant_gradient(opt, 1, gradient=3.0)
    assert -w[0] == approx(0.6, dtype)
    assert state_of(opt, "sum") == 25.0


def test_first_step_of_rmsprop(dtype: str, isa: str) -> None:
    w = np.zeros(1, dtype)
    after_constant_gradient(fastopt.RMSprop(w, lr=0.1, alpha=0.75, eps=0.0), 1, gradient=8.0)
    assert -w[0] == approx(0.2, dtype)


def test_centered_rmsprop_divides_by_the_standard_deviation(dtype: str, isa: str) -> None:
    w = np.zeros(1, dtype)
    after_constant_gradient(fastopt.RMSprop(w, lr=1.0, alpha=0.5, eps=0.0, centered=True), 1, gradient=8.0)
    assert -w[0] == approx(2.0, dtype)  # 8 / sqrt(32 - 16)


def test_a_variance_that_rounding_made_negative_counts_as_zero(dtype: str, isa: str) -> None:
    w = np.zeros(1000, dtype)
    gradient = np.linspace(0.1, 3.0, 1000).astype(dtype)
    opt = fastopt.RMSprop(w, lr=1e-3, alpha=0.5, eps=1.0, centered=True)
    for _ in range(200):
        opt.step(gradient)
    assert np.isfinite(w).all()


def test_maximize_climbs(dtype: str, isa: str) -> None:
    for make in MAKERS.values():
        down, up = np.zeros(3, dtype), np.zeros(3, dtype)
        gradient = np.array([1.0, -2.0, 3.0], dtype)
        for opt in (make(down), make(up, maximize=True)):
            for _ in range(2):  # (ADOPT's first step goes nowhere)
                opt.step(gradient)
        assert np.allclose(up, -down, rtol=1e-4)  # (Yogi's averages do not start at zero)
        assert (np.sign(up) == np.sign(gradient)).all()


def test_clipping_before_the_step(dtype: str, isa: str) -> None:
    """The norm of (3, 4) is 5; half of it scales by a half (but for torch's 1e-6)."""
    w = np.zeros(2, dtype)
    info = fastopt.SGD(w, lr=1.0, clip_norm=2.5).step(np.array([3.0, 4.0], dtype))
    assert info == (1.0, 5.0, True, False)
    assert w.tolist() == approx([-1.5 * 5 / (5 + 1e-6), -2 * 5 / (5 + 1e-6)], dtype)
    w = np.zeros(2, dtype)
    fastopt.SGD(w, lr=1.0, clip_value=3.5).step(np.array([3.0, -4.0], dtype))
    assert w.tolist() == [-3.0, 3.5]
