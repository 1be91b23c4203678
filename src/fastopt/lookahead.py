"""Lookahead: slow weights beside those that an optimizer steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fastopt.engine import Face
from fastopt.hyperparameters import Bound, Number, as_count, at_step

OWN = ("optimizer", "k", "alpha", "counter", "slow_params")
"""What a `Lookahead` has of its own; all else is read and written in its optimizer."""


class Lookahead:
    """Every k steps of an optimizer, go from slow weights a part of the way to it, and let it go on from there.

    ``slow += alpha * (p - slow)``, ``p = slow``, in two passes over memory; slow starts as a copy of the parameters.

    Parameters
    ----------
    optimizer
        Any of this library. What is not here is there, to read and to write: `param_groups`, `clip_norm`, ...
    k
        Steps in between, at least 1.
    alpha
        In [0, 1], or a schedule.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these.

    References
    ----------
    Zhang, Lucas, Hinton & Ba 2019, "Lookahead optimizer: k steps forward, 1 step back".
    """

    def __init__(self, optimizer: Any, k: int = 5, alpha: Number = 0.5) -> None:
        if not isinstance(optimizer, Face):
            raise TypeError(f"optimizer: expected one of fastopt, got {type(optimizer).__name__}")
        if as_count(k, "k") < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        self.optimizer: Any = optimizer
        self.k = int(k)
        self.alpha = alpha
        self.counter = 0
        self.slow_params: list[Any] = []
        self._alpha()
        self._follow()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            setattr(self.optimizer, name, value)

    def __delattr__(self, name: str) -> None:
        if name in vars(self):
            super().__delattr__(name)
        else:
            delattr(self.optimizer, name)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Let the optimizer step; the k-th time, go on from the slow weights. A step that it skips does not count.

        Parameters
        ----------
        args, kwargs
            The optimizer's.

        Returns
        -------
        What the optimizer returns.
        """
        alpha, before = self._alpha(), self.optimizer.step_count
        result = self.optimizer.step(*args, **kwargs)
        self.counter += self.optimizer.step_count - before
        if self.counter >= self.k:
            self._synchronize(alpha)
            self.counter = 0
        return result

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, as the optimizer does; their slow weights begin as they are."""
        self.optimizer.add_param_group(param_group)
        self._follow()

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Zero the gradients, where the optimizer does that (in torch)."""
        self.optimizer.zero_grad(*args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state dict with an entry `"lookahead"`: slow weights, steps since the last time."""
        ours = {"slow_params": copy.deepcopy(self.slow_params), "counter": self.counter}
        return {**self.optimizer.state_dict(), "lookahead": ours}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; in one of the optimizer alone, slow weights are the parameters.

        Raises
        ------
        TypeError, ValueError
            If it does not fit.
        """
        ours = state_dict.get("lookahead")
        counter = 0 if ours is None else as_count(ours["counter"], "state_dict: lookahead counter")
        engine = self.optimizer._current_engine()
        slow = engine.params if ours is None else ours["slow_params"]
        if [tuple(array.shape) for array in slow] != [tuple(param.shape) for param in engine.params]:
            raise ValueError("state_dict: expected slow weights of the parameters' shapes")
        self.optimizer.load_state_dict({name: state_dict[name] for name in state_dict if name != "lookahead"})
        self.optimizer._lerp(self.slow_params, slow, 1.0)
        self.counter = counter

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return f"Lookahead (k: {self.k}, alpha: {self.alpha})\n{self.optimizer!r}"

    def _alpha(self) -> float:
        alpha = at_step(self.alpha, self.optimizer.step_count)
        Bound("alpha value").check(alpha)
        if alpha > 1:
            raise ValueError(f"Invalid alpha value: {alpha}")
        return float(alpha)

    def _follow(self) -> None:
        """Begin slow weights of parameters that have none."""
        engine = self.optimizer._current_engine()
        self.slow_params += [engine.duplicate(slot) for slot in range(len(self.slow_params), len(engine.params))]

    def _synchronize(self, alpha: float) -> None:
        with self.optimizer._turn.to_step:
            self._follow()
            params = self.optimizer._current_engine().params
            self.optimizer._lerp(self.slow_params, params, alpha)
            self.optimizer._lerp(params, self.slow_params, 1.0)
