"""Test functions whose shape is known: loss surfaces on which optimizers can be watched and tested.

Every surface is a `Surface`: ``value``, ``gradient`` and ``hessian`` for one point or any batch of points, together
with its domain, its known minima and saddles, points to start from and where it comes from.

>>> from fastopt import surfaces
>>> valley = surfaces.rosenbrock()
>>> valley.value([0.0, 1.0])
array(101.)
>>> valley.gradient([[0.0, 0.0], [0.0, 1.0]])
array([[ -2.,   0.],
       [ -2., 200.]])

`registry` lists them all by name. All derivatives are written out by hand; nothing but NumPy is needed.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Ackley",
    "Planar",
    "Quadratic",
    "Separable",
    "Surface",
    "ackley",
    "beale",
    "bowl",
    "cliff",
    "himmelblau",
    "monkey_saddle",
    "parabola",
    "plateau",
    "random_quadratic",
    "rastrigin",
    "ravine",
    "registry",
    "rosenbrock",
    "saddle",
    "sharp_and_flat",
    "styblinski_tang",
]

Array = NDArray[np.float64]
P = ParamSpec("P")

_MOST_KNOWN_POINTS = 16
"""A separable surface has exponentially many stationary points; this many of them are listed."""


def _points(*rows: ArrayLike) -> Array:
    return np.array(rows, dtype=np.float64)


# --- The shapes of surface ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Surface(ABC):
    """A twice differentiable function of n coordinates, with what is known about it.

    Attributes
    ----------
    name : str
        The name under which `registry` finds it.
    formula : str
        The function in one line, to be shown beside a plot.
    source : str
        Where the function comes from.
    look_for : str
        What to watch when optimizers go over it, in a sentence.
    domain : ndarray, shape (2, n)
        Lower and upper corner of the box in which the function is usually looked at. It is defined outside, too.
    starts : ndarray, shape (s, n)
        Points to start from, the usual one first.
    minima : ndarray, shape (m, n)
        Known local minimisers, the lowest first; none when the function has no lower bound.
    saddles : ndarray, shape (k, n)
        Known saddle points.
    """

    name: str
    formula: str
    source: str = field(repr=False)
    domain: Array = field(repr=False)
    starts: Array = field(repr=False)
    look_for: str = field(repr=False, default="")
    minima: Array = field(repr=False, default_factory=_points)
    saddles: Array = field(repr=False, default_factory=_points)

    def __post_init__(self) -> None:
        n = np.shape(self.domain)[-1]
        for name in ("domain", "starts", "minima", "saddles"):
            points = np.array(getattr(self, name), dtype=np.float64).reshape(-1, n)
            points.flags.writeable = False
            object.__setattr__(self, name, points)
        if len(self.domain) != 2 or not np.all(self.domain[0] < self.domain[1]):
            raise ValueError(f"{self.name}: domain must be a lower and an upper corner, got {self.domain.tolist()}")

    @property
    def n(self) -> int:
        """Number of coordinates."""
        return int(self.domain.shape[1])

    @property
    def lowest(self) -> float | None:
        """Value at the lowest known minimum; None without a known minimum."""
        return float(self.value(self.minima[0])) if len(self.minima) else None

    def value(self, x: ArrayLike) -> Array:
        """Return the function value.

        Parameters
        ----------
        x : array_like, shape (..., n)
            One point or a batch of points.

        Returns
        -------
        ndarray of float64, shape (...)

        Raises
        ------
        ValueError
            If the last axis of `x` is not n long.
        """
        return np.asarray(self._value(self._batch(x)))

    def gradient(self, x: ArrayLike) -> Array:
        """Return the first derivatives.

        Parameters
        ----------
        x : array_like, shape (..., n)
            One point or a batch of points.

        Returns
        -------
        ndarray of float64, shape (..., n)

        Raises
        ------
        ValueError
            If the last axis of `x` is not n long.
        """
        return self._gradient(self._batch(x))

    def hessian(self, x: ArrayLike) -> Array:
        """Return the second derivatives: a symmetric matrix for every point.

        Parameters
        ----------
        x : array_like, shape (..., n)
            One point or a batch of points.

        Returns
        -------
        ndarray of float64, shape (..., n, n)

        Raises
        ------
        ValueError
            If the last axis of `x` is not n long.
        """
        return self._hessian(self._batch(x))

    def _batch(self, x: ArrayLike) -> Array:
        points = np.asarray(x, dtype=np.float64)
        if points.ndim == 0 or points.shape[-1] != self.n:
            raise ValueError(f"{self.name}: x must have a last axis of length {self.n}, got shape {points.shape}")
        return points

    @abstractmethod
    def _value(self, x: Array) -> Array: ...

    @abstractmethod
    def _gradient(self, x: Array) -> Array: ...

    @abstractmethod
    def _hessian(self, x: Array) -> Array: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Quadratic(Surface):
    """``f(x) = (x - c)' A (x - c) / 2`` with a symmetric matrix A, which is the Hessian, and the centre c."""

    matrix: Array = field(repr=False)
    center: Array = field(repr=False)

    def _value(self, x: Array) -> Array:
        offset = x - self.center
        return np.asarray(0.5 * np.sum(offset * (offset @ self.matrix), axis=-1))

    def _gradient(self, x: Array) -> Array:
        return (x - self.center) @ self.matrix

    def _hessian(self, x: Array) -> Array:
        return np.broadcast_to(self.matrix, (*x.shape, self.n)).copy()


@dataclass(frozen=True, eq=False, kw_only=True)
class Separable(Surface):
    """``f(x) = sum_i t(x_i)``: the same term t for every coordinate, given with its derivatives t' and t''."""

    term: Callable[[Array], Array] = field(repr=False)
    slope: Callable[[Array], Array] = field(repr=False)
    curvature: Callable[[Array], Array] = field(repr=False)

    def _value(self, x: Array) -> Array:
        return np.asarray(np.sum(self.term(x), axis=-1))

    def _gradient(self, x: Array) -> Array:
        return self.slope(x)

    def _hessian(self, x: Array) -> Array:
        return _diagonal(self.curvature(x))


@dataclass(frozen=True, eq=False, kw_only=True)
class Planar(Surface):
    """``f(x, y)``, given with its derivatives ``(f_x, f_y)`` and ``(f_xx, f_xy, f_yy)``, all elementwise."""

    f: Callable[[Array, Array], Array] = field(repr=False)
    df: Callable[[Array, Array], tuple[ArrayLike, ArrayLike]] = field(repr=False)
    d2f: Callable[[Array, Array], tuple[ArrayLike, ArrayLike, ArrayLike]] = field(repr=False)

    def _value(self, x: Array) -> Array:
        return self.f(x[..., 0], x[..., 1])

    def _gradient(self, x: Array) -> Array:
        gradient = np.empty_like(x)
        gradient[..., 0], gradient[..., 1] = self.df(x[..., 0], x[..., 1])
        return gradient

    def _hessian(self, x: Array) -> Array:
        hessian = np.empty((*x.shape, 2))
        hessian[..., 0, 0], hessian[..., 0, 1], hessian[..., 1, 1] = self.d2f(x[..., 0], x[..., 1])
        hessian[..., 1, 0] = hessian[..., 0, 1]
        return hessian


@dataclass(frozen=True, eq=False, kw_only=True)
class Ackley(Surface):
    """``f(x) = -20 exp(-r / 5) - exp(c) + 20 + e``: r is the root mean square of x, c the mean of cos(2 pi x_i)."""

    def _value(self, x: Array) -> Array:
        r, c = self._radius_and_ripple(x)
        return -20 * np.expm1(-r / 5) - np.e * np.expm1(c - 1)

    def _gradient(self, x: Array) -> Array:
        r, c = (part[..., None] for part in self._radius_and_ripple(x))
        # The cone has a tip at r = 0. Its gradient is taken as 0 there, the middle of all directions.
        radial = np.divide(x, r, out=np.zeros_like(x), where=r > 0)
        return (4 * np.exp(-r / 5) * radial + 2 * np.pi * np.exp(c) * np.sin(2 * np.pi * x)) / self.n

    def _hessian(self, x: Array) -> Array:
        r, c = (part[..., None, None] for part in self._radius_and_ripple(x))
        sine = np.sin(2 * np.pi * x)
        with np.errstate(divide="ignore", invalid="ignore"):  # nan at the tip, which has no curvature
            cone = 4 / r * (np.eye(self.n) - (1 / 5 + 1 / r) / (self.n * r) * _outer(x))
        waves = 2 * np.pi * _diagonal(np.cos(2 * np.pi * x)) - 2 * np.pi / self.n * _outer(sine)
        return (np.exp(-r / 5) * cone + 2 * np.pi * np.exp(c) * waves) / self.n

    @staticmethod
    def _radius_and_ripple(x: Array) -> tuple[Array, Array]:
        return np.sqrt(np.mean(x * x, axis=-1)), np.mean(np.cos(2 * np.pi * x), axis=-1)


def _diagonal(entries: Array) -> Array:
    return entries[..., None] * np.eye(entries.shape[-1])


def _outer(vectors: Array) -> Array:
    return vectors[..., :, None] * vectors[..., None, :]


# --- The list of surfaces -------------------------------------------------------------------------------------------

_REGISTRY: dict[str, Callable[..., Surface]] = {}


def registry() -> dict[str, Callable[..., Surface]]:
    """All surfaces by name.

    Returns
    -------
    dict of str to callable
        ``registry()["bowl"]`` is `bowl`. Every one can be called without arguments.
    """
    return dict(_REGISTRY)


def _registered(make: Callable[P, Surface]) -> Callable[P, Surface]:
    _REGISTRY[make.__name__] = make
    return make


def _box(half_width: float, n: int) -> Array:
    """Cube around the origin, as a domain."""
    return np.array([[-half_width] * n, [half_width] * n])


def _check_count(name: str, argument: str, count: int, least: int = 1) -> None:
    if not isinstance(count, (int, np.integer)) or count < least:
        raise ValueError(f"{name}: {argument} must be an integer of at least {least}, got {count!r}")


def _check_condition(name: str, condition: float) -> None:
    if not 1 <= condition < np.inf:
        raise ValueError(f"{name}: condition must be a finite number of at least 1, got {condition!r}")


# --- Quadratics -----------------------------------------------------------------------------------------------------


@_registered
def parabola() -> Surface:
    """One coordinate, ``f(x) = x^2``: the smallest surface there is.

    Gradient descent multiplies x by ``1 - 2 lr`` in every step, so it converges for ``0 < lr < 1``.

    Returns
    -------
    Surface
        n = 1.
    """
    return Quadratic(
        name="parabola",
        formula="f(x) = x²",
        source="elementary",
        look_for="A step multiplies x by 1 - 2 lr: a small rate crawls, 0.5 arrives at once, a rate above 1 climbs.",
        matrix=np.array([[2.0]]),
        center=np.zeros(1),
        domain=_box(2, 1),
        starts=_points([-1.5]),
        minima=_points([0.0]),
    )


@_registered
def bowl(condition: float = 10.0, n: int = 2) -> Surface:
    """Convex quadratic along the axes, ``f(x) = sum_i k_i x_i^2 / 2``, with curvatures from 1 to `condition`.

    Parameters
    ----------
    condition : float, default 10
        Largest curvature over smallest, at least 1; the curvatures between are spaced geometrically. Gradient descent
        converges for ``0 < lr < 2 / condition``.
    n : int, default 2
        Number of coordinates, at least 2.

    Returns
    -------
    Surface

    Raises
    ------
    ValueError
        If `condition` or `n` is out of range.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", USSR Comput. Math. Math. Phys. 4, 1964.
    """
    _check_condition("bowl", condition)
    _check_count("bowl", "n", n, least=2)
    return Quadratic(
        name="bowl",
        formula=f"f(x) = ½ Σ kᵢ xᵢ², k from 1 to {condition:g}",
        source="Polyak 1964",
        look_for="The steep direction bounds the rate, the flat one then takes long: who gets on in both?",
        matrix=np.diag(np.geomspace(1.0, condition, n)),
        center=np.zeros(n),
        domain=_box(2, n),
        starts=_points(np.linspace(-1.8, 1.5, n)),
        minima=_points(np.zeros(n)),
    )


@_registered
def ravine(condition: float = 100.0, angle: float = 30.0) -> Surface:
    """Narrow straight valley, ``f = (u^2 + condition v^2) / 2``, that runs askew to the axes.

    u is the coordinate along the valley, v the one across. Because the valley is turned, rescaling the coordinates one
    by one, as RMSprop and Adam do, does not make it round.

    Parameters
    ----------
    condition : float, default 100
        Curvature across the valley over the curvature along it, at least 1.
    angle : float, default 30
        Direction of the valley, in degrees from the first axis.

    Returns
    -------
    Surface
        n = 2.

    Raises
    ------
    ValueError
        If `condition` is out of range.

    References
    ----------
    Sutton, "Two problems with backpropagation and other steepest-descent learning procedures for networks", 1986.
    """
    _check_condition("ravine", condition)
    along = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    across = np.array([-along[1], along[0]])
    return Quadratic(
        name="ravine",
        formula=f"f = ½ (u² + {condition:g} v²), turned by {angle:g}°",
        source="Sutton 1986",
        look_for="Plain descent bounces from wall to wall; momentum cancels that, rescaling coordinates does not.",
        matrix=np.outer(along, along) + condition * np.outer(across, across),
        center=np.zeros(2),
        domain=_box(2, 2),
        starts=_points(-1.6 * along + 0.5 * across),
        minima=_points(np.zeros(2)),
    )


@_registered
def saddle() -> Surface:
    """Down along one axis, up along the other: ``f(x, y) = x^2 - y^2``, without lower bound.

    Returns
    -------
    Surface
        n = 2.

    References
    ----------
    Dauphin et al., "Identifying and attacking the saddle point problem in high-dimensional non-convex optimization",
    2014.
    """
    return Quadratic(
        name="saddle",
        formula="f(x, y) = x² - y²",
        source="Dauphin et al. 2014",
        look_for="All are drawn to the middle, where it is flat: who gets off the ridge, and how soon?",
        matrix=np.diag([2.0, -2.0]),
        center=np.zeros(2),
        domain=_box(2, 2),
        starts=_points([1.5, 0.01]),
        saddles=_points([0.0, 0.0]),
    )


@_registered
def random_quadratic(n: int = 2, condition: float = 100.0, seed: int = 0) -> Surface:
    """Convex quadratic with a random spectrum, random directions and a random minimum.

    The curvatures are log-uniform between 1 and `condition`, both ends included; the directions are the columns of a
    random orthogonal matrix; the minimum is uniform in the cube from -1 to 1.

    Parameters
    ----------
    n : int, default 2
        Number of coordinates. The Hessian takes ``8 n^2`` bytes.
    condition : float, default 100
        Largest curvature over smallest, at least 1.
    seed : int, default 0
        The same seed gives the same surface.

    Returns
    -------
    Surface

    Raises
    ------
    ValueError
        If `n` or `condition` is out of range.

    References
    ----------
    Stewart, "The efficient generation of random orthogonal matrices", SIAM J. Numer. Anal. 17, 1980.
    """
    _check_count("random_quadratic", "n", n, least=2)
    _check_condition("random_quadratic", condition)
    random = np.random.default_rng(seed)
    curvatures = np.concatenate([[1.0, condition], condition ** random.uniform(size=n - 2)])
    directions, triangle = np.linalg.qr(random.standard_normal((n, n)))
    directions *= np.sign(np.diag(triangle))  # without the signs the directions would not be uniform
    matrix = (directions * curvatures) @ directions.T
    center = random.uniform(-1, 1, size=n)
    return Quadratic(
        name="random_quadratic",
        formula=f"f(x) = ½ (x - c)ᵀ A (x - c), n = {n}, condition {condition:g}",
        source="random directions after Stewart 1980",
        look_for="Steep and flat directions lie askew, so that no coordinate by itself says where the valley leads.",
        matrix=(matrix + matrix.T) / 2,
        center=center,
        domain=_box(2, n),
        starts=_points(np.where(center > 0, -1.5, 1.5)),
        minima=_points(center),
    )


# --- Flat, steep and undecided --------------------------------------------------------------------------------------


@_registered
def monkey_saddle() -> Surface:
    """Three valleys meet at a point without curvature: ``f(x, y) = x^3 - 3 x y^2``, without lower bound.

    Returns
    -------
    Surface
        n = 2.

    References
    ----------
    Hilbert and Cohn-Vossen, "Anschauliche Geometrie", 1932.
    """
    return Planar(
        name="monkey_saddle",
        formula="f(x, y) = x³ - 3xy²",
        source="Hilbert and Cohn-Vossen 1932",
        look_for="In the middle even the curvature vanishes: steps that follow the gradient fade, others do not.",
        f=lambda x, y: x**3 - 3 * x * y**2,
        df=lambda x, y: (3 * x**2 - 3 * y**2, -6 * x * y),
        d2f=lambda x, y: (6 * x, -6 * y, -6 * x),
        domain=_box(1.5, 2),
        starts=_points([1.2, 0.02]),
        saddles=_points([0.0, 0.0]),
    )


@_registered
def plateau() -> Surface:
    """Wide flat region around a well: ``f(x, y) = s / (1 + s)``, ``s = x^2 + y^2``.

    Far out the gradient dies as the third power of the distance.

    Returns
    -------
    Surface
        n = 2.

    References
    ----------
    Geman and McClure, "Bayesian image analysis: an application to single photon emission tomography", 1985.
    """

    def f(x: Array, y: Array) -> Array:
        s = x**2 + y**2
        return s / (1 + s)

    def df(x: Array, y: Array) -> tuple[Array, Array]:
        slope = 2 / (1 + x**2 + y**2) ** 2
        return slope * x, slope * y

    def d2f(x: Array, y: Array) -> tuple[Array, Array, Array]:
        w = 1 + x**2 + y**2
        return 2 / w**2 - 8 * x**2 / w**3, -8 * x * y / w**3, 2 / w**2 - 8 * y**2 / w**3

    return Planar(
        name="plateau",
        formula="f(x, y) = s / (1 + s), s = x² + y²",
        source="Geman and McClure 1985",
        look_for="Far out there is hardly a gradient: steps in proportion to it stand still, scaled ones walk.",
        f=f,
        df=df,
        d2f=d2f,
        domain=_box(5, 2),
        starts=_points([-4.0, 3.0]),
        minima=_points([0.0, 0.0]),
    )


@_registered
def cliff(steps: int = 20) -> Surface:
    """Wall on which the gradient explodes: one recurrent unit, unrolled in time.

    ``f(w, b) = (sigmoid(z_T) - 0.7)^2`` with ``z_{t+1} = w sigmoid(z_t) + b`` and ``z_0 = 0.5``. For w > 4 the unit
    has two states to settle in. Where it changes from one to the other the loss jumps. The minima fill a curve that
    ends at the foot of this wall; three of them are listed.

    Parameters
    ----------
    steps : int, default 20
        Number of steps T, at least 1. The wall grows steeper and thinner exponentially with it: at the 50 steps of the
        paper it is so thin that a path of finite steps hardly ever lands on it.

    Returns
    -------
    Surface
        n = 2; the coordinates are the weight w and the bias b.

    Raises
    ------
    ValueError
        If `steps` is out of range.

    References
    ----------
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013, figure 6.
    """
    _check_count("cliff", "steps", steps)
    target = 0.7

    def sigmoid(z: Array) -> Array:
        return 0.5 * (1 + np.tanh(z / 2))

    def unrolled(w: Array, b: Array) -> tuple[Array, ...]:
        """Return the last z with z_w, z_b, z_ww, z_wb, z_bb, all carried forward through time."""
        z = np.full_like(w, 0.5)
        z_w, z_b, z_ww, z_wb, z_bb = (np.zeros_like(w) for _ in range(5))
        for _ in range(steps):
            s = sigmoid(z)
            s1 = s * (1 - s)
            s2 = s1 * (1 - 2 * s)
            z_ww = 2 * s1 * z_w + w * (s2 * z_w**2 + s1 * z_ww)
            z_wb = s1 * z_b + w * (s2 * z_w * z_b + s1 * z_wb)
            z_bb = w * (s2 * z_b**2 + s1 * z_bb)
            z_w = s + w * s1 * z_w
            z_b = 1 + w * s1 * z_b
            z = w * s + b
        return z, z_w, z_b, z_ww, z_wb, z_bb

    def f(w: Array, b: Array) -> Array:
        return (sigmoid(unrolled(w, b)[0]) - target) ** 2

    def df(w: Array, b: Array) -> tuple[Array, Array]:
        z, z_w, z_b, *_ = unrolled(w, b)
        s = sigmoid(z)
        by_z = 2 * (s - target) * s * (1 - s)
        return by_z * z_w, by_z * z_b

    def d2f(w: Array, b: Array) -> tuple[Array, Array, Array]:
        z, z_w, z_b, z_ww, z_wb, z_bb = unrolled(w, b)
        s = sigmoid(z)
        s1 = s * (1 - s)
        by_z = 2 * (s - target) * s1
        by_zz = 2 * s1**2 + by_z * (1 - 2 * s)
        return by_zz * z_w**2 + by_z * z_ww, by_zz * z_w * z_b + by_z * z_wb, by_zz * z_b**2 + by_z * z_bb

    # The unit rests at the target for b = goal - 0.7 w; Newton's method finds where it passes the target at step T.
    goal = np.log(target / (1 - target))
    w = np.array([2.0, 3.0, 4.0])
    b = goal - target * w
    for _ in range(10):
        z, _, z_b, *_ = unrolled(w, b)
        b = b - (z - goal) / z_b

    return Planar(
        name="cliff",
        formula=f"f(x, y) = (sigmoid(z) - 0.7)², {steps} times z = x sigmoid(z) + y",
        source="Pascanu, Mikolov and Bengio 2013, figure 6",
        look_for="The loss is flat until the wall: see how far one step from it is thrown, unless the rate is small.",
        f=f,
        df=df,
        d2f=d2f,
        domain=_points([1.5, -4.5], [7.0, 0.0]),
        starts=_points([5.5, -2.0]),
        minima=np.stack([w, b], axis=-1),
    )


@_registered
def sharp_and_flat() -> Surface:
    """Narrow minimum beside a wide one, about equally deep.

    ``f(x) = -log(exp(-q_1) + exp(-q_2))``, a soft minimum of the two bowls ``q_i = k_i |x - c_i|^2 / 2`` with the
    curvatures ``k = (25, 1)`` and the centres ``c = (-1.5, 0), (1.5, 0)``. Gradient descent with ``lr > 2 / 25`` cannot
    stay in the narrow one.

    Returns
    -------
    Surface
        n = 2.

    References
    ----------
    Hochreiter and Schmidhuber, "Flat minima", Neural Computation 9, 1997.
    Keskar et al., "On large-batch training for deep learning: generalization gap and sharp minima", 2017.
    """
    sharp, flat = (25.0, -1.5), (1.0, 1.5)  # curvature, place on the x axis

    def bowls(x: Array, y: Array) -> tuple[Array, Array]:
        first, second = (0.5 * k * ((x - c) ** 2 + y**2) for k, c in (sharp, flat))
        return first, second

    def f(x: Array, y: Array) -> Array:
        first, second = bowls(x, y)
        return np.asarray(-np.logaddexp(-first, -second))

    def sharp_share(x: Array, y: Array) -> Array:
        """Weight of the narrow bowl in the derivatives; that of the wide one is the rest."""
        first, second = bowls(x, y)
        return 0.5 * (1 + np.tanh((second - first) / 2))

    def df(x: Array, y: Array) -> tuple[Array, Array]:
        p = sharp_share(x, y)
        (k1, c1), (k2, c2) = sharp, flat
        return p * k1 * (x - c1) + (1 - p) * k2 * (x - c2), (p * k1 + (1 - p) * k2) * y

    def d2f(x: Array, y: Array) -> tuple[Array, Array, Array]:
        p = sharp_share(x, y)
        (k1, c1), (k2, c2) = sharp, flat
        mean = p * k1 + (1 - p) * k2
        gap_x, gap_y = k1 * (x - c1) - k2 * (x - c2), (k1 - k2) * y
        spread = p * (1 - p)
        return mean - spread * gap_x**2, -spread * gap_x * gap_y, mean - spread * gap_y**2

    return Planar(
        name="sharp_and_flat",
        formula="f(x) = -log(exp(-25|x - c₁|²/2) + exp(-|x - c₂|²/2))",
        source="Hochreiter and Schmidhuber 1997; Keskar et al. 2017",
        look_for="Two minima of about one depth: a rate above 2/25 cannot stay in the narrow one.",
        f=f,
        df=df,
        d2f=d2f,
        domain=_points([-3.0, -2.5], [4.0, 2.5]),
        starts=_points([-1.75, 0.35]),
        minima=_points([-1.4986621273436245, 0.0], [1.5, 0.0]),
        saddles=_points([-0.8862840294511151, 0.0]),
    )


# --- Classic test functions -----------------------------------------------------------------------------------------


@_registered
def rosenbrock() -> Surface:
    """Curved valley with a nearly flat floor: ``f(x, y) = (1 - x)^2 + 100 (y - x^2)^2``.

    Returns
    -------
    Surface
        n = 2.

    References
    ----------
    Rosenbrock, "An automatic method for finding the greatest or least value of a function", Comput. J. 3, 1960.
    """
    return Planar(
        name="rosenbrock",
        formula="f(x, y) = (1 - x)² + 100 (y - x²)²",
        source="Rosenbrock 1960",
        look_for="The valley is found at once; then its flat, curved floor takes nearly all of the steps.",
        f=lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        df=lambda x, y: (-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)),
        d2f=lambda x, y: (2 - 400 * y + 1200 * x**2, -400 * x, 200),
        domain=_points([-2.0, -1.0], [2.0, 3.0]),
        starts=_points([-1.2, 1.0]),
        minima=_points([1.0, 1.0]),
    )


@_registered
def beale() -> Surface:
    """Sharp peaks at the corners around a flat floor: ``f(x, y) = sum_i (c_i - x (1 - y^i))^2``, i = 1, 2, 3.

    The constants are ``c = (1.5, 2.25, 2.625)``.

    Returns
    -------
    Surface
        n = 2.

    References
    ----------
    Beale, "On an iterative method for finding a local minimum of a function of more than one variable", 1958.
    Moré, Garbow and Hillstrom, "Testing unconstrained optimization software", ACM TOMS 7, 1981 (the start).
    """
    terms = ((1, 1.5), (2, 2.25), (3, 2.625))

    def f(x: Array, y: Array) -> Array:
        return sum(((c - x * (1 - y**i)) ** 2 for i, c in terms), start=np.zeros_like(x))

    def df(x: Array, y: Array) -> tuple[Array, Array]:
        by_x, by_y = np.zeros_like(x), np.zeros_like(x)
        for i, c in terms:
            residual, slope_x, slope_y = c - x * (1 - y**i), y**i - 1, i * x * y ** (i - 1)
            by_x += 2 * residual * slope_x
            by_y += 2 * residual * slope_y
        return by_x, by_y

    def d2f(x: Array, y: Array) -> tuple[Array, Array, Array]:
        by_xx, by_xy, by_yy = (np.zeros_like(x) for _ in range(3))
        for i, c in terms:
            residual, slope_x, slope_y = c - x * (1 - y**i), y**i - 1, i * x * y ** (i - 1)
            bend_xy, bend_yy = i * y ** (i - 1), i * (i - 1) * x * y ** max(i - 2, 0)
            by_xx += 2 * slope_x**2
            by_xy += 2 * (slope_x * slope_y + residual * bend_xy)
            by_yy += 2 * (slope_y**2 + residual * bend_yy)
        return by_xx, by_xy, by_yy

    return Planar(
        name="beale",
        formula="f(x, y) = Σ (cᵢ - x(1 - yⁱ))², c = (1.5, 2.25, 2.625)",
        source="Beale 1958",
        look_for="Flat floor, high corners: a rate that is safe in the corners crawls on the floor.",
        f=f,
        df=df,
        d2f=d2f,
        domain=_box(4.5, 2),
        starts=_points([1.0, 1.0]),
        minima=_points([3.0, 0.5]),
        saddles=_points([0.0, 1.0]),
    )


@_registered
def himmelblau() -> Surface:
    """Four minima of equal depth: ``f(x, y) = (x^2 + y - 11)^2 + (x + y^2 - 7)^2``.

    Returns
    -------
    Surface
        n = 2.

    References
    ----------
    Himmelblau, "Applied Nonlinear Programming", 1972.
    """

    def df(x: Array, y: Array) -> tuple[Array, Array]:
        first, second = x**2 + y - 11, x + y**2 - 7
        return 4 * x * first + 2 * second, 2 * first + 4 * y * second

    return Planar(
        name="himmelblau",
        formula="f(x, y) = (x² + y - 11)² + (x + y² - 7)²",
        source="Himmelblau 1972",
        look_for="Four minima of one depth: which one a path ends in depends on the start, the rate and the velocity.",
        f=lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2,
        df=df,
        d2f=lambda x, y: (12 * x**2 + 4 * y - 42, 4 * (x + y), 4 * x + 12 * y**2 - 26),
        domain=_box(5, 2),
        starts=_points([-0.5, -1.0], [0.0, 0.0], [-4.0, 0.5]),
        minima=_points(
            [3.0, 2.0],
            [-2.805118086952745, 3.131312518250573],
            [-3.779310253377747, -3.283185991286169],
            [3.5844283403304917, -1.8481265269644034],
        ),
        saddles=_points(
            [0.08667750455539634, 2.884254701174776],
            [-3.0730257507643897, -0.08135304428796751],
            [3.385154183607021, 0.07385187983774928],
            [-0.12796134673068005, -1.9537149802445766],
        ),
    )


@_registered
def rastrigin(n: int = 2) -> Surface:
    """Bowl covered with equal dents: ``f(x) = sum_i (x_i^2 - 10 cos(2 pi x_i) + 10)``.

    Parameters
    ----------
    n : int, default 2
        Number of coordinates.

    Returns
    -------
    Surface
        The lowest minimum is the origin; of the many others those next to it are listed.

    Raises
    ------
    ValueError
        If `n` is out of range.

    References
    ----------
    Rastrigin, "Systems of extremal control", 1974.
    """
    _check_count("rastrigin", "n", n)
    valleys, peaks = (0.0, 0.9949586376523348, -0.9949586376523348), (0.5025460365546747, -0.5025460365546747)
    return Separable(
        name="rastrigin",
        formula="f(x) = Σ (xᵢ² - 10 cos 2πxᵢ + 10)",
        source="Rastrigin 1974",
        look_for="Dents everywhere: most paths end in the first; only a long step or a velocity gets over rims.",
        term=lambda x: x**2 + 20 * np.sin(np.pi * x) ** 2,  # 1 - cos 2a = 2 sin^2 a: no cancellation at the minimum
        slope=lambda x: 2 * x + 20 * np.pi * np.sin(2 * np.pi * x),
        curvature=lambda x: 2 + 40 * np.pi**2 * np.cos(2 * np.pi * x),
        domain=_box(5.12, n),
        starts=_points(np.linspace(-3.2, 2.2, n)),
        minima=_combinations(valleys, (), n),
        saddles=_combinations(valleys, peaks, n),
    )


@_registered
def ackley(n: int = 2) -> Surface:
    """Cone covered with dents: ``f(x) = -20 exp(-0.2 r) - exp(mean_i cos(2 pi x_i)) + 20 + e``.

    r is the root mean square of x. At the minimum the cone has a tip: the gradient is given as 0 there, the Hessian
    as nan.

    Parameters
    ----------
    n : int, default 2
        Number of coordinates.

    Returns
    -------
    Surface
        The lowest minimum is the origin; the others are not listed.

    Raises
    ------
    ValueError
        If `n` is out of range.

    References
    ----------
    Ackley, "A Connectionist Machine for Genetic Hillclimbing", 1987; in this form for any n: Bäck, 1996.
    """
    _check_count("ackley", "n", n)
    return Ackley(
        name="ackley",
        formula="f(x) = -20 exp(-0.2 r) - exp(mean cos 2πxᵢ) + 20 + e",
        source="Ackley 1987",
        look_for="Ripples on a cone: far out the slope is so slight that the first ripple holds a path.",
        domain=_box(5, n),
        starts=_points(np.linspace(-3.2, 2.2, n)),
        minima=_points(np.zeros(n)),
    )


@_registered
def styblinski_tang(n: int = 2) -> Surface:
    """Two valleys along every axis, ``2^n`` minima in all: ``f(x) = sum_i (x_i^4 - 16 x_i^2 + 5 x_i) / 2``.

    Parameters
    ----------
    n : int, default 2
        Number of coordinates.

    Returns
    -------
    Surface
        At most 16 of the minima and of the saddles are listed.

    Raises
    ------
    ValueError
        If `n` is out of range.

    References
    ----------
    Styblinski and Tang, "Experiments in nonconvex optimization: stochastic approximation with function smoothing and
    simulated annealing", Neural Networks 3, 1990.
    """
    _check_count("styblinski_tang", "n", n)
    valleys, peaks = (-2.903534027771177, 2.746802770990837), (0.15673125678034008,)
    return Separable(
        name="styblinski_tang",
        formula="f(x) = ½ Σ (xᵢ⁴ - 16xᵢ² + 5xᵢ)",
        source="Styblinski and Tang 1990",
        look_for="Four valleys of unequal depth: the nearest one is seldom the deepest.",
        term=lambda x: (x**4 - 16 * x**2 + 5 * x) / 2,
        slope=lambda x: 2 * x**3 - 16 * x + 2.5,
        curvature=lambda x: 6 * x**2 - 16,
        domain=_box(5, n),
        starts=_points(np.linspace(0.0, 0.5, n)),
        minima=_combinations(valleys, (), n),
        saddles=_combinations(valleys, peaks, n),
    )


def _combinations(valleys: tuple[float, ...], peaks: tuple[float, ...], n: int) -> Array:
    """Points whose coordinates are valleys of a separable surface, or, when peaks are given, both valleys and peaks."""

    def wanted(point: tuple[float, ...]) -> bool:
        return not peaks or 0 < sum(coordinate in peaks for coordinate in point) < n

    points = filter(wanted, itertools.product(valleys + peaks, repeat=n))
    return np.array(list(itertools.islice(points, _MOST_KNOWN_POINTS))).reshape(-1, n)
