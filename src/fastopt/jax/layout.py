"""What is kept of all parameters lies end to end, in one array of each dtype.

Under `jax.jit` each array of a pytree costs several microseconds, whatever is in it: more than the step of a small one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp


class Form(NamedTuple):
    """What an array is."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


def shapes_of(params: Sequence[Any]) -> dict[str, None]:
    """Return the shapes of parameters as the key of a dict: part of a pytree's structure, wherever that is kept."""
    return {"; ".join(str(param.shape) for param in params): None}


def check_shapes(given: Any, params: Sequence[Any], labels: Sequence[str]) -> None:
    """Raise `ValueError` unless a state says that it is of parameters of these shapes."""
    if given == shapes_of(params):
        return
    found = next(iter(given), "").split("; ") if isinstance(given, dict) else []
    if len(found) != len(params):
        raise ValueError(f"state: is of other parameters: expected {len(params)}, got {len(found)}")
    for shape, param, label in zip(found, params, labels, strict=True):
        if shape != str(param.shape):
            raise ValueError(
                f"state: is of other parameters: expected the shape {param.shape} of params{label}, got {shape}"
            )


class Layout:
    """Where what is kept of the parameters lies.

    `forms` has, by name, what is kept of each parameter: None of one that has no such.
    """

    def __init__(self, forms: dict[str, list[Form | None]]) -> None:
        self.forms = forms
        self.lengths: dict[str, dict[str, int]] = {}
        """By name and dtype, how long the arrays are."""
        self.first: dict[str, list[int]] = {}
        """By name, where in its array what is kept of each parameter begins."""
        for name, of_each in forms.items():
            lengths = self.lengths[name] = {}
            first = self.first[name] = []
            for form in of_each:
                dtype = "" if form is None else form.dtype.name
                first.append(lengths.get(dtype, 0))
                if form is not None:
                    lengths[dtype] = first[-1] + form.size

        self.order = [(name, dtype) for name, lengths in self.lengths.items() for dtype in lengths]
        """Name and dtype of each array, in the order in which they go into a step."""
        self.places = {key: place for place, key in enumerate(self.order)}

    def at(self, name: str, i: int) -> tuple[int, int] | None:
        """Return in which array that goes into a step a parameter has this, and from which element on; or None."""
        form = self.forms[name][i] if name in self.forms else None
        return None if form is None else (self.places[name, form.dtype.name], self.first[name][i])

    def check(self, arrays: Any) -> None:
        """Raise `ValueError` unless the arrays are laid out so."""
        for name, lengths in self.lengths.items():
            given = arrays[name] if isinstance(arrays[name], dict) else {"": arrays[name]}
            found = {key: (str(getattr(array, "dtype", type(array))), jnp.shape(array)) for key, array in given.items()}
            expected = {dtype: (dtype, (length,)) for dtype, length in lengths.items()}
            if found != expected:
                raise ValueError(
                    f"state.arrays[{name!r}]: expected arrays of (dtype, shape) {[*expected.values()]}, as init() "
                    f"makes them of these parameters, got {[*found.values()]}"
                )

    def filled(self, name: str, value: Any) -> dict[str, Any]:
        """Return arrays that are everywhere the same."""
        return {dtype: jnp.full(length, value, dtype) for dtype, length in self.lengths[name].items()}

    def packed(self, name: str, values: Iterable[Any]) -> dict[str, Any]:
        """Return arrays with what is to be kept of each parameter."""
        parts: dict[str, list[Any]] = {dtype: [] for dtype in self.lengths[name]}
        for form, value in zip(self.forms[name], values, strict=True):
            if form is not None:
                parts[form.dtype.name].append(jnp.ravel(jnp.asarray(value, form.dtype)))
        # (A copy also of one alone: that of a parameter must not be in its memory, where both are donated.)
        return {dtype: jnp.array(jnp.concatenate(arrays), copy=True) for dtype, arrays in parts.items()}

    def unpacked(self, name: str, arrays: dict[str, Any]) -> list[Any]:
        """Return what is kept of each parameter, in its shape."""
        return [
            None if form is None else arrays[form.dtype.name][first : first + form.size].reshape(form.shape)
            for form, first in zip(self.forms[name], self.first[name], strict=True)
        ]
