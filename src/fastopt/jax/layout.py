"""What is kept of all parameters lies end to end, in one array of each dtype.

Under `jax.jit` each array of a pytree costs several microseconds, whatever is in it: more than the step of a small one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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

    @property
    def order(self) -> list[tuple[str, str]]:
        """Name and dtype of each array, in the order in which they go into a step."""
        return [(name, dtype) for name, lengths in self.lengths.items() for dtype in lengths]

    def check(self, arrays: Any) -> None:
        """Raise `ValueError` unless the arrays are laid out so."""
        for name, lengths in self.lengths.items():
            given = arrays[name] if isinstance(arrays[name], dict) else {"": arrays[name]}
            found = {dtype: (jnp.result_type(array).name, jnp.shape(array)) for dtype, array in given.items()}
            expected = {dtype: (dtype, (length,)) for dtype, length in lengths.items()}
            if found != expected:
                raise ValueError(
                    f"state.arrays[{name!r}]: expected arrays of (dtype, shape) {[*expected.values()]}, as init() "
                    f"makes them of these parameters, got {[*found.values()]}"
                )

    def filled(self, name: str, value: float) -> dict[str, Any]:
        """Return arrays that are everywhere the same."""
        return {dtype: jnp.full(length, value, dtype) for dtype, length in self.lengths[name].items()}

    def packed(self, name: str, values: Sequence[Any]) -> dict[str, Any]:
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
