"""States from and to optax, whose are chains of named tuples. It is not imported: its names say enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NAMES = {
    "Adam": {"exp_avg": "mu", "exp_avg_sq": "nu"},
    "AdamW": {"exp_avg": "mu", "exp_avg_sq": "nu"},
    "Lion": {"exp_avg": "mu"},
    "SGD": {"momentum_buffer": "trace"},
}
"""Optimizer -> state -> field of a named tuple in optax."""

COUNT = "count"
"""The field that is a number of steps."""


def fields_of(state: Any, wanted: set[str]) -> dict[str, list[Any]]:
    """Return what stands in the wanted fields, wherever they are in a state of optax."""
    found: dict[str, list[Any]] = {name: [] for name in wanted}

    def note(name: str, value: Any) -> Any:
        found[name].append(value)
        return value

    replaced(state, wanted, note)
    return found


def replaced(state: Any, wanted: set[str], by: Callable[[str, Any], Any]) -> Any:
    """Return a state of optax with other values in the wanted fields."""
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        pairs = zip(state._fields, state, strict=True)
        return type(state)(*(by(name, v) if name in wanted else replaced(v, wanted, by) for name, v in pairs))
    if isinstance(state, (tuple, list)):
        return type(state)(replaced(value, wanted, by) for value in state)
    if isinstance(state, dict):
        return {name: replaced(value, wanted, by) for name, value in state.items()}
    return state
