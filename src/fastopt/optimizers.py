"""The optimizers: their options, what they check, and the scalars they hand to the kernel of the same name.

Names, order and defaults of the arguments are those of `torch.optim`; what torch has not is keyword-only. Wherever a
formula says g, it is the gradient after `maximize` (its sign), clipping and L2 weight decay. Each step first multiplies
the parameters by `1 - lr*weight_decay` where `decoupled_weight_decay` is set, and otherwise adds `weight_decay*p`
to the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from fastopt.hyperparameters import BetaBounds, Bound, Bounds, Schedule
from fastopt.optimizer import Optimizer

Number = float | Schedule
"""A number, or a schedule: a callable that maps the number of steps taken so far to it."""

COMMON_BOUNDS = {"lr": Bound("learning rate"), "weight_decay": Bound("weight_decay value")}
EPSILON_BOUNDS = {"eps": Bound("epsilon value"), "eps_root": Bound("eps_root value")}

VELOCITIES = ("sum", "mean", "step")


class SGD(Optimizer):
    """(Stochastic) gradient descent, with momentum in its three published forms, and Nesterov's.

    Without momentum, ``p -= lr * g``. With it, by `velocity`:

    ========  ================================  ==========================================================
    "sum"     ``v = mu*v + (1-dampening)*g``,   PyTorch; heavy ball (Polyak 1964). v sums up gradients: for
              ``p -= lr*v``                     a constant one it goes to g/(1-mu). The first v is g.
    "mean"    ``v = mu*v + (1-mu)*g``,          exponential average: v goes to g
              ``p -= lr*v``
    "step"    ``v = mu*v - lr*g``,              Sutskever, Martens, Dahl & Hinton 2013; Keras. v is the
              ``p += v``                        displacement, so that a new lr acts as fast as momentum lets it
    ========  ================================  ==========================================================

    `nesterov` takes the step from where the momentum is about to carry the parameter: the displacement is made from
    ``mu*v + c*g`` instead of ``v``, c being the factor of g above.

    Parameters
    ----------
    params
        Arrays, or groups of them; see `Optimizer`.
    lr
        Learning rate, at least 0.
    momentum
        mu, at least 0.
    dampening
        With `velocity="sum"` only.
    weight_decay
        At least 0.
    nesterov
        Needs momentum and no dampening.
    velocity
        What v is: "sum", "mean" or "step".
    decoupled_weight_decay, maximize, clip_norm, clip_value, nonfinite
        See `Optimizer` and this module.

    Raises
    ------
    TypeError, ValueError
        If an option is out of bounds or an array unfit.

    References
    ----------
    Robbins & Monro 1951, "A stochastic approximation method". Polyak 1964, "Some methods of speeding up the convergence
    of iteration methods". Nesterov 1983. Sutskever, Martens, Dahl & Hinton 2013, "On the importance of initialization
    and momentum in deep learning".
    """

    bounds: ClassVar[Bounds] = {
        **COMMON_BOUNDS,
        "momentum": Bound("momentum value"),
        "dampening": Bound("dampening value", low=-math.inf),
    }
    counts_steps = False

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-3,
        momentum: Number = 0.0,
        dampening: Number = 0.0,
        weight_decay: Number = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        velocity: str = "sum",
        decoupled_weight_decay: bool = False,
        **clipping: Any,
    ) -> None:
        options = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "velocity": velocity,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, options, **clipping)

    @classmethod
    def check(cls, group: Mapping[str, Any]) -> None:
        """Raise `ValueError` unless a group's options make sense, also together."""
        super().check(group)
        if group["velocity"] not in VELOCITIES:
            raise ValueError(f"Invalid velocity: expected one of {VELOCITIES}, got {group['velocity']!r}")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        if group["dampening"] != 0 and group["velocity"] != "sum":
            raise ValueError(f"Invalid dampening value: {group['dampening']}; velocity={group['velocity']!r} has none")

    @staticmethod
    def rule(group: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Return the kernel and the names of its states."""
        return ("sgd", ()) if group["momentum"] == 0 else ("momentum", ("momentum_buffer",))

    @staticmethod
    def scalars(group: Mapping[str, Any], step: int) -> dict[str, float]:
        """Return the factors of ``v = mu*v + c*g, u = k1*v + k2*g, p += a*u``."""
        lr, mu = group["lr"], group["momentum"]
        if group["velocity"] == "sum":
            a, c = -lr, 1.0 if step == 1 else 1.0 - group["dampening"]
        elif group["velocity"] == "mean" or mu == 0:
            a, c = -lr, 1.0 - mu
        else:
            a, c = 1.0, -lr
        k1, k2 = (mu, c) if group["nesterov"] else (1.0, 0.0)
        return {"mu": mu, "c": c, "k1": k1, "k2": k2, "a": a}


class Adagrad(Optimizer):
    """AdaGrad: rates that fall with the sum of squared gradients, entry by entry.

    ``s += g**2``, ``p -= lr/(1 + (t-1)*lr_decay) * g / (sqrt(s + eps_root) + eps)``, t = 1, 2, ...

    Parameters
    ----------
    params
        Arrays, or groups of them; see `Optimizer`.
    lr, lr_decay
        Learning rate and its decay, at least 0.
    weight_decay
        At least 0.
    initial_accumulator_value
        Where s starts, at least 0.
    eps, eps_root
        Added to the root (PyTorch) and inside it (Keras, optax), at least 0.
    decoupled_weight_decay, maximize, clip_norm, clip_value, nonfinite
        See `Optimizer` and this module.

    Raises
    ------
    TypeError, ValueError
        If an option is out of bounds or an array unfit.

    References
    ----------
    Duchi, Hazan & Singer 2011, "Adaptive subgradient methods for online learning and stochastic optimization".
    """

    bounds: ClassVar[Bounds] = {
        **COMMON_BOUNDS,
        **EPSILON_BOUNDS,
        "lr_decay": Bound("lr_decay value"),
        "initial_accumulator_value": Bound("initial_accumulator_value value"),
    }

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-2,
        lr_decay: Number = 0.0,
        weight_decay: Number = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: Number = 1e-10,
        *,
        maximize: bool = False,
        eps_root: Number = 0.0,
        decoupled_weight_decay: bool = False,
        **clipping: Any,
    ) -> None:
        options = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "maximize": maximize,
            "eps_root": eps_root,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, options, **clipping)

    @staticmethod
    def rule(group: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Return the kernel and the names of its states."""
        return "adagrad", ("sum",)

    @staticmethod
    def initial_state(group: Mapping[str, Any]) -> float:
        """Return where the sum of squares starts."""
        return float(group["initial_accumulator_value"])

    @staticmethod
    def scalars(group: Mapping[str, Any], step: int) -> dict[str, float]:
        """Return the decayed rate and the epsilons."""
        return {
            "a": -group["lr"] / (1.0 + (step - 1) * group["lr_decay"]),
            "eps": group["eps"],
            "eps_root": group["eps_root"],
        }


class RMSprop(Optimizer):
    """RMSprop: the gradient divided by a moving root mean square of itself, entry by entry.

    ``s = alpha*s + (1-alpha)*g**2``, ``u = g / (sqrt(s + eps_root) + eps)``, ``p -= lr*u``. `centered` takes the
    variance ``s - a**2`` (0 where rounding makes it negative) in place of s, with ``a = alpha*a + (1-alpha)*g``;
    momentum makes it ``b = momentum*b + u``, ``p -= lr*b``.

    Parameters
    ----------
    params
        Arrays, or groups of them; see `Optimizer`.
    lr
        Learning rate, at least 0.
    alpha
        Decay of the moving averages, in [0, 1).
    eps, eps_root
        Added to the root (PyTorch) and inside it (Keras, optax), at least 0.
    weight_decay, momentum
        At least 0.
    centered
        Whether to divide by the standard deviation instead.
    decoupled_weight_decay, maximize, clip_norm, clip_value, nonfinite
        See `Optimizer` and this module.

    Raises
    ------
    TypeError, ValueError
        If an option is out of bounds or an array unfit.

    References
    ----------
    Tieleman & Hinton 2012, "Lecture 6.5, rmsprop". Graves 2013, "Generating sequences with recurrent neural networks"
    (centered).
    """

    bounds: ClassVar[Bounds] = {
        **COMMON_BOUNDS,
        **EPSILON_BOUNDS,
        "alpha": Bound("alpha value"),
        "momentum": Bound("momentum value"),
    }

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-2,
        alpha: Number = 0.99,
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        momentum: Number = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        eps_root: Number = 0.0,
        decoupled_weight_decay: bool = False,
        **clipping: Any,
    ) -> None:
        options = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "maximize": maximize,
            "eps_root": eps_root,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, options, **clipping)

    @staticmethod
    def rule(group: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Return the kernel and the names of its states."""
        centered = ("_centered", ("grad_avg",)) if group["centered"] else ("", ())
        momentum = ("_momentum", ("momentum_buffer",)) if group["momentum"] != 0 else ("", ())
        return "rmsprop" + centered[0] + momentum[0], ("square_avg", *momentum[1], *centered[1])

    @staticmethod
    def scalars(group: Mapping[str, Any], step: int) -> dict[str, float]:
        """Return the rate, the moving averages' factors and the epsilons."""
        return {
            "a": -group["lr"],
            "alpha": group["alpha"],
            "alphac": 1.0 - group["alpha"],
            "mu": group["momentum"],
            "eps": group["eps"],
            "eps_root": group["eps_root"],
        }


class Adam(Optimizer):
    """Adam: a moving average of the gradient, divided by the root of a moving average of its square.

    ``m = beta1*m + (1-beta1)*g``, ``v = beta2*v + (1-beta2)*g**2``,
    ``p -= lr * m/(1-beta1**t) / (sqrt(v/(1-beta2**t) + eps_root) + eps)``, t = 1, 2, ...

    `amsgrad` takes the largest v so far in place of v.

    Parameters
    ----------
    params
        Arrays, or groups of them; see `Optimizer`.
    lr
        Learning rate, at least 0.
    betas
        Decay of the moving averages, in [0, 1).
    eps, eps_root
        Added to the root and inside it (optax), at least 0.
    weight_decay
        At least 0.
    amsgrad
        Whether rates may only fall.
    decoupled_weight_decay, maximize, clip_norm, clip_value, nonfinite
        See `Optimizer` and this module.

    Raises
    ------
    TypeError, ValueError
        If an option is out of bounds or an array unfit.

    References
    ----------
    Kingma & Ba 2015, "Adam: a method for stochastic optimization". Reddi, Kale & Kumar 2018, "On the convergence of
    Adam and beyond" (amsgrad).
    """

    bounds: ClassVar[Bounds] = {**COMMON_BOUNDS, **EPSILON_BOUNDS, "betas": BetaBounds()}

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        eps_root: Number = 0.0,
        **clipping: Any,
    ) -> None:
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "eps_root": eps_root,
        }
        super().__init__(params, options, **clipping)

    @staticmethod
    def rule(group: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Return the kernel and the names of its states."""
        if group["amsgrad"]:
            return "amsgrad", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        return "adam", ("exp_avg", "exp_avg_sq")

    @staticmethod
    def scalars(group: Mapping[str, Any], step: int) -> dict[str, float]:
        """Return the moving averages' factors, the epsilons, and both bias corrections as factors."""
        beta1, beta2 = group["betas"]
        correction2 = 1.0 - beta2**step
        return {
            "a": -group["lr"] / (1.0 - beta1**step),
            "beta1": beta1,
            "beta1c": 1.0 - beta1,
            "beta2": beta2,
            "beta2c": 1.0 - beta2,
            "rbc2": 1.0 / math.sqrt(correction2),
            "eps": group["eps"],
            "eps_root": group["eps_root"] * correction2,
        }


class AdamW(Adam):
    """Adam with decoupled weight decay: all parameters shrink alike, ``p *= 1 - lr*weight_decay``, before the update.

    Parameters, errors and formula are `Adam`'s.

    References
    ----------
    Loshchilov & Hutter 2019, "Decoupled weight decay regularization".
    """

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        eps_root: Number = 0.0,
        **clipping: Any,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            eps_root=eps_root,
            **clipping,
        )


def registry() -> dict[str, type[Optimizer]]:
    """Return the optimizers by name."""
    return {name: value for name, value in globals().items() if isinstance(value, type) and _is_optimizer(value)}


def _is_optimizer(value: type) -> bool:
    return issubclass(value, Optimizer) and value is not Optimizer
