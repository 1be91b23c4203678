"""Surfaces: derivatives against finite differences, known points, shapes, validation."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from fastopt import surfaces

Array = NDArray[np.float64]

CASES = {
    **{name: make() for name, make in surfaces.registry().items()},
    "bowl-5": surfaces.bowl(condition=1000.0, n=5),
    "ravine-steep": surfaces.ravine(condition=1e4, angle=75.0),
    "random_quadratic-7": surfaces.random_quadratic(7, condition=50.0, seed=3),
    "cliff-50": surfaces.cliff(steps=50),
    "rastrigin-1": surfaces.rastrigin(1),
    "rastrigin-3": surfaces.rastrigin(3),
    "ackley-1": surfaces.ackley(1),
    "ackley-4": surfaces.ackley(4),
    "styblinski_tang-3": surfaces.styblinski_tang(3),
}
each_surface = pytest.mark.parametrize("surface", CASES.values(), ids=CASES.keys())


def points_in(surface: surfaces.Surface, count: int, seed: int = 0) -> Array:
    lower, upper = surface.domain
    return np.random.default_rng(seed).uniform(lower, upper, size=(count, surface.n))


def finite_difference(function: Callable[[Array], Array], x: Array, step: float = 1e-4) -> Array:
    """Fourth-order central differences along every axis, as the last axis of the result."""
    weights = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    columns = [
        sum(weight * function(x + k * step * axis) for k, weight in weights.items()) / step
        for axis in np.eye(x.shape[-1])
    ]
    return np.stack(columns, axis=-1)


def test_the_registry_lists_every_surface_by_its_own_name() -> None:
    expected = {
        "bowl", "ravine", "parabola", "saddle", "monkey_saddle", "plateau", "cliff", "rosenbrock", "beale",
        "himmelblau", "rastrigin", "ackley", "styblinski_tang", "sharp_and_flat", "random_quadratic",
    }  # fmt: skip
    registry = surfaces.registry()
    assert set(registry) == expected
    for name, make in registry.items():
        assert make is getattr(surfaces, name)
        assert make().name == name
        assert make().look_for.endswith((".", "?"))
    registry.clear()
    assert surfaces.registry(), "the caller's copy is not the registry itself"


@each_surface
def test_gradient_is_the_finite_difference_of_the_value(surface: surfaces.Surface) -> None:
    x = points_in(surface, 200)
    gradient = surface.gradient(x)
    scale = 1 + np.abs(gradient).max(axis=-1, keepdims=True) + np.abs(surface.value(x))[:, None]
    assert np.max(np.abs(finite_difference(surface.value, x) - gradient) / scale) < 1e-7


@each_surface
def test_hessian_is_the_finite_difference_of_the_gradient(surface: surfaces.Surface) -> None:
    x = points_in(surface, 200, seed=1)
    hessian = surface.hessian(x)
    np.testing.assert_array_equal(hessian, np.swapaxes(hessian, -1, -2))
    scale = (
        1 + np.abs(hessian).max(axis=(-1, -2), keepdims=True) + np.abs(surface.gradient(x)).max(axis=-1)[:, None, None]
    )
    assert np.max(np.abs(finite_difference(surface.gradient, x) - hessian) / scale) < 1e-6


@each_surface
def test_known_minima_are_minima(surface: surfaces.Surface) -> None:
    for minimum in surface.minima:
        around = minimum + 1e-3 * np.random.default_rng(2).standard_normal((200, surface.n))
        assert np.max(np.abs(surface.gradient(minimum))) < 1e-8
        assert np.all(surface.value(around) >= surface.value(minimum) - 1e-12)
    values = surface.value(surface.minima)
    if len(values):
        assert surface.lowest == values[0]
        assert values[0] <= values.min() + 1e-12
        assert np.all(surface.value(points_in(surface, 2000, seed=4)) >= values[0])
    else:
        assert surface.lowest is None


@each_surface
def test_known_saddles_are_stationary_and_neither_minima_nor_maxima(surface: surfaces.Surface) -> None:
    for point in surface.saddles:
        around = point + 1e-3 * np.random.default_rng(3).standard_normal((500, surface.n))
        change = surface.value(around) - surface.value(point)
        assert np.max(np.abs(surface.gradient(point))) < 1e-8
        assert change.min() < 0 < change.max()


@pytest.mark.parametrize(
    ("surface", "point", "value"),
    [
        (surfaces.parabola(), [3.0], 9.0),
        (surfaces.bowl(condition=4.0), [1.0, 1.0], 2.5),
        (surfaces.ravine(condition=100.0, angle=90.0), [0.0, 2.0], 2.0),
        (surfaces.saddle(), [2.0, 1.0], 3.0),
        (surfaces.monkey_saddle(), [1.0, 2.0], -11.0),
        (surfaces.plateau(), [1.0, 0.0], 0.5),
        (surfaces.rosenbrock(), [-1.2, 1.0], 24.2),
        (surfaces.beale(), [1.0, 1.0], 14.203125),
        (surfaces.beale(), [3.0, 0.5], 0.0),
        (surfaces.himmelblau(), [0.0, 0.0], 170.0),
        (surfaces.rastrigin(), [0.0, 0.0], 0.0),
        (surfaces.rastrigin(3), [1.0, 1.0, 1.0], 3.0),
        (surfaces.ackley(5), np.zeros(5), 0.0),
        (surfaces.ackley(), [1.0, 1.0], 20 - 20 * np.exp(-0.2)),
        (surfaces.styblinski_tang(), [-2.903534027771177] * 2, 2 * -39.16616570377141),
        (surfaces.sharp_and_flat(), [1.5, 0.0], 0.0),
        (surfaces.cliff(steps=50), [2.0, np.log(0.7 / 0.3) - 1.4], 0.0),
        (surfaces.cliff(steps=1), [0.0, 0.0], 0.04),
    ],
    ids=lambda part: getattr(part, "name", ""),
)
def test_published_values(surface: surfaces.Surface, point: ArrayLike, value: float) -> None:
    assert surface.value(point) == pytest.approx(value, rel=1e-14, abs=1e-14)


@each_surface
def test_any_batch_shape(surface: surfaces.Surface) -> None:
    x = points_in(surface, 6).reshape(2, 3, surface.n)
    value, gradient, hessian = surface.value(x), surface.gradient(x), surface.hessian(x)
    assert value.shape == (2, 3)
    assert gradient.shape == (2, 3, surface.n)
    assert hessian.shape == (2, 3, surface.n, surface.n)
    for array in (value, gradient, hessian):
        assert array.dtype == np.float64
    one = (1, 2)
    np.testing.assert_allclose(surface.value(x[one].tolist()), value[one], rtol=1e-13)
    np.testing.assert_allclose(surface.gradient(x[one]), gradient[one], rtol=1e-13)
    np.testing.assert_allclose(surface.hessian(x[one]), hessian[one], rtol=1e-13)
    assert surface.value(x[:0]).shape == (0, 3)


@each_surface
def test_known_points_lie_in_the_domain_and_are_read_only(surface: surfaces.Surface) -> None:
    lower, upper = surface.domain
    assert np.all(lower < upper)
    assert len(surface.starts) >= 1
    assert surface.formula
    assert surface.source
    for points in (surface.starts, surface.minima, surface.saddles):
        assert points.shape[1] == surface.n
        assert np.all((lower <= points) & (points <= upper))
        assert not points.flags.writeable


def test_random_quadratic_has_the_promised_spectrum_up_to_a_thousand_coordinates() -> None:
    surface = surfaces.random_quadratic(1000, condition=1e3, seed=5)
    matrix = surface.hessian(np.zeros(1000))
    curvatures = np.linalg.eigvalsh(matrix)
    assert curvatures[0] == pytest.approx(1.0, rel=1e-9)
    assert curvatures[-1] == pytest.approx(1e3, rel=1e-9)
    # Log-uniform: the median curvature is near the geometric middle.
    assert 20 < np.median(curvatures) < 50
    np.testing.assert_array_equal(surface.hessian(np.ones(1000)), matrix)


def test_random_quadratic_depends_on_the_seed_alone() -> None:
    first, again, other = (surfaces.random_quadratic(5, seed=seed).hessian(np.zeros(5)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("condition", [1.0, 7.0, 1e6])
def test_condition_numbers_are_as_asked(condition: float) -> None:
    for surface in (surfaces.bowl(condition, n=4), surfaces.ravine(condition), surfaces.random_quadratic(4, condition)):
        assert np.linalg.cond(surface.hessian(np.zeros(surface.n))) == pytest.approx(condition, rel=1e-6)


def test_the_wall_of_the_cliff_explodes_the_gradient() -> None:
    surface = surfaces.cliff()
    b = np.linspace(-3.5, -2.5, 20001)

    def steepest(w: float) -> float:
        norms = np.linalg.norm(surface.gradient(np.stack([np.full_like(b, w), b], axis=-1)), axis=-1)
        return float(norms.max())

    assert steepest(6.0) > 10 * steepest(5.0) > 100 * steepest(3.0)


def test_the_plateau_is_flat_and_the_sharp_minimum_is_sharper() -> None:
    far = surfaces.plateau()
    assert np.linalg.norm(far.gradient([4.0, 4.0])) < 0.02
    both = surfaces.sharp_and_flat()
    sharp, flat = (np.linalg.eigvalsh(both.hessian(minimum)) for minimum in both.minima)
    assert sharp.min() > 20 * flat.max()


def test_the_tip_of_ackley() -> None:
    tip = surfaces.ackley()
    np.testing.assert_array_equal(tip.gradient([0.0, 0.0]), [0.0, 0.0])
    assert np.isnan(tip.hessian([0.0, 0.0])).all()
    # Next to the tip the value still has all its digits: the cone rises by 4 times the root mean square of x.
    assert tip.value([1e-12, 1e-12]) == pytest.approx(4e-12, rel=1e-9)


@pytest.mark.parametrize("x", [1.0, [1.0], [1.0, 2.0, 3.0], np.zeros((2, 3))])
@pytest.mark.parametrize("method", ["value", "gradient", "hessian"])
def test_points_of_the_wrong_length_are_refused(method: str, x: ArrayLike) -> None:
    with pytest.raises(ValueError, match=r"rosenbrock: x must have a last axis of length 2, got shape"):
        getattr(surfaces.rosenbrock(), method)(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: surfaces.bowl(condition=0.5), r"bowl: condition must be a finite number of at least 1, got 0\.5"),
        (lambda: surfaces.bowl(condition=float("nan")), r"bowl: condition must be .* got nan"),
        (lambda: surfaces.ravine(condition=-1), r"ravine: condition must be .* got -1"),
        (lambda: surfaces.bowl(n=1), r"bowl: n must be an integer of at least 2, got 1"),
        (
            lambda: surfaces.registry()["random_quadratic"](2.5),
            r"random_quadratic: n must be an integer of at least 2, got 2\.5",
        ),
        (lambda: surfaces.cliff(steps=0), r"cliff: steps must be an integer of at least 1, got 0"),
        (lambda: surfaces.rastrigin(0), r"rastrigin: n must be an integer of at least 1, got 0"),
    ],
)
def test_parameters_out_of_range_are_refused(make: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_surface_of_ones_own() -> None:
    def make(domain: Array) -> surfaces.Surface:
        return surfaces.Planar(
            name="plane",
            formula="f(x, y) = x + 2y",
            source="here",
            domain=domain,
            starts=np.zeros(2),
            f=lambda x, y: x + 2 * y,
            df=lambda x, y: (1.0, 2.0),
            d2f=lambda x, y: (0.0, 0.0, 0.0),
        )

    plane = make(np.array([[-1.0, -1.0], [1.0, 1.0]]))
    np.testing.assert_array_equal(plane.gradient(np.ones((3, 2))), [[1.0, 2.0]] * 3)
    assert plane.lowest is None
    with pytest.raises(ValueError, match="plane: domain must be a lower and an upper corner"):
        make(np.array([[1.0, 1.0], [-1.0, -1.0]]))


def test_surfaces_need_numpy_alone() -> None:
    code = "import sys, fastopt.surfaces; print({'matplotlib', 'plotly', 'typer', 'torch', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
