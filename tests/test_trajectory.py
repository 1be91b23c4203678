"""Trajectories: the library's optimizers over surfaces of known shape."""

from typing import Any

import numpy as np
import pytest
from cases import MAKERS
from numpy.typing import NDArray

from fastopt import SGD, Adam, AdamW, optimizers, schedules, surfaces
from fastopt.trajectories import trajectory


def test_gradient_descent_on_the_parabola_is_the_geometric_sequence() -> None:
    path = trajectory(surfaces.parabola(), SGD, start=[1.0], steps=4, lr=0.25)
    np.testing.assert_array_equal(path.points, 0.5 ** np.arange(5)[:, None])
    np.testing.assert_array_equal(path.loss, 0.25 ** np.arange(5))
    np.testing.assert_array_equal(path.grad_norm, 2 * 0.5 ** np.arange(5))
    np.testing.assert_array_equal(path.lr, [0.25] * 4)
    assert path.steps == 4
    assert not path.diverged


@pytest.mark.parametrize("name", MAKERS)
def test_every_optimizer_steps_as_it_does_by_hand_and_descends(name: str) -> None:
    surface = surfaces.bowl()
    optimizer: Any = optimizers.registry()[name]
    path = trajectory(surface, optimizer, surface.starts[0], steps=60, lr=0.05)
    point = surface.starts[0].copy()
    by_hand = optimizer(point, lr=0.05)
    for expected in path.points[1:]:
        by_hand.step(surface.gradient(point))
        np.testing.assert_array_equal(point, expected)
    assert path.loss[-1] < path.loss[0]
    assert not path.diverged


def test_loss_and_gradient_norm_are_those_of_the_points() -> None:
    surface = surfaces.himmelblau()
    path = trajectory(surface, Adam, [0.0, 0.0], 25, noise=3.0, lr=0.1)
    np.testing.assert_array_equal(path.loss, surface.value(path.points))
    np.testing.assert_allclose(path.grad_norm, np.linalg.norm(surface.gradient(path.points), axis=-1), rtol=1e-15)
    assert path.points.shape == (26, 2)
    assert path.lr.shape == (25,)


def test_a_factory_and_a_schedule() -> None:
    schedule = schedules.linear(0.1, 0.0, 10)
    by_factory = trajectory(surfaces.bowl(), lambda params: SGD(params, lr=schedule, momentum=0.9), [1.0, 1.0], 10)
    by_class = trajectory(surfaces.bowl(), SGD, [1.0, 1.0], 10, lr=schedule, momentum=0.9)
    np.testing.assert_array_equal(by_factory.points, by_class.points)
    np.testing.assert_array_equal(by_class.lr, [schedule(step) for step in range(10)])


def test_the_start_is_not_moved() -> None:
    start = np.array([1.0, 1.0])
    trajectory(surfaces.bowl(), SGD, start, 3, lr=0.1)
    np.testing.assert_array_equal(start, [1.0, 1.0])


@pytest.mark.parametrize("batch", [1, 100])
def test_the_noise_has_variance_one_over_the_batch(batch: int) -> None:
    # Without curvature, a step is -lr times the noise alone.
    flat = surfaces.Planar(
        name="flat",
        formula="0",
        source="here",
        domain=np.array([[-1.0, -1.0], [1.0, 1.0]]),
        starts=np.zeros(2),
        f=lambda x, y: 0 * x,
        df=lambda x, y: (0.0, 0.0),
        d2f=lambda x, y: (0.0, 0.0, 0.0),
    )
    path = trajectory(flat, SGD, [0.0, 0.0], 20_000, noise=3.0, batch=batch, lr=1.0)
    steps = np.diff(path.points, axis=0)
    # The standard error of a variance estimated from 40,000 normal samples is 0.7 %.
    assert np.var(steps) == pytest.approx(9.0 / batch, rel=0.03)
    assert abs(np.mean(steps)) < 4 * 3 / np.sqrt(40_000 * batch)


def test_the_noise_is_that_of_the_seed() -> None:
    def run(seed: int, noise: float = 1.0) -> NDArray[np.float64]:
        return trajectory(surfaces.bowl(), SGD, [1.0, 1.0], 20, noise, seed=seed, lr=0.01).points

    np.testing.assert_array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))
    np.testing.assert_array_equal(run(1, noise=0.0), run(2, noise=0.0))


def test_a_diverging_run_is_cut_and_marked() -> None:
    path = trajectory(surfaces.parabola(), SGD, [1.0], 1000, lr=1.5)
    # Every step doubles x and turns its sign; the domain is 4 wide, and 1000 widths away is 4000.
    np.testing.assert_array_equal(path.points[:, 0], (-2.0) ** np.arange(12))
    assert path.diverged
    assert path.steps == 11
    assert np.isfinite(path.loss).all()


def test_a_run_that_overflows_in_one_step_is_cut_without_a_warning() -> None:
    path = trajectory(surfaces.rosenbrock(), SGD, [-1.2, 1.0], 10, lr=1e300)
    np.testing.assert_array_equal(path.points, [[-1.2, 1.0]])
    assert path.diverged


def test_running_off_a_surface_without_lower_bound_is_divergence() -> None:
    assert trajectory(surfaces.monkey_saddle(), SGD, [-1.0, 0.0], 100, lr=0.1).diverged


def test_no_steps() -> None:
    path = trajectory(surfaces.parabola(), SGD, [1.0], 0, lr=0.1)
    assert path.points.tolist() == [[1.0]]
    assert path.lr.shape == (0,)
    assert not path.diverged


def test_a_thousand_coordinates() -> None:
    surface = surfaces.random_quadratic(1000, condition=10.0)
    path = trajectory(surface, AdamW, surface.starts[0], 100, lr=0.05)
    assert path.loss[-1] < 0.01 * path.loss[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start": [1.0]}, ValueError, r"start must have shape \(2,\) for bowl, got \(1,\)"),
        ({"start": [1.0, np.nan]}, ValueError, r"start must be finite and near the domain of bowl, got \[1\.0, nan\]"),
        ({"start": [1e9, 0.0]}, ValueError, r"start must be finite and near"),
        ({"steps": -1}, ValueError, r"steps must be an integer of at least 0, got -1"),
        ({"steps": 1.5}, ValueError, r"steps must be an integer of at least 0, got 1\.5"),
        ({"batch": 0}, ValueError, r"batch must be an integer of at least 1, got 0"),
        ({"noise": -0.1}, ValueError, r"noise must be a finite number of at least 0, got -0\.1"),
        ({"noise": float("nan")}, ValueError, r"noise must be a finite number"),
        ({"optimizer": "adam"}, TypeError, r"optimizer must be an optimizer class or a factory .* got 'adam'"),
        ({"optimizer": lambda params, lr: 3}, TypeError, r"optimizer must be .* which made an object of type int"),
        ({"lr": -1.0}, ValueError, r"learning rate"),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, error: type[Exception], message: str) -> None:
    good = {"surface": surfaces.bowl(), "optimizer": SGD, "start": [1.0, 1.0], "steps": 3, "lr": 0.1}
    with pytest.raises(error, match=message):
        trajectory(**{**good, **arguments})
