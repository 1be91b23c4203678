"""Nested structures of arrays: lists, tuples and dicts of them, to any depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

LEAF = None
"""The shape of what is not a container."""

Shape = None | list["Shape"] | dict[Any, "Shape"]
"""A structure without its leaves."""


def is_container(value: Any) -> bool:
    """Whether the value has entries to look into: a dict, a list, a tuple or any other iterable of them."""
    if type(value) is np.ndarray:  # nearly all are, and it is quick to see
        return False
    if isinstance(value, (Mapping, list, tuple)):
        return True
    return isinstance(value, Iterable) and not (
        isinstance(value, str) or hasattr(value, "__array__") or hasattr(value, "tocsr") or is_buffer(value)
    )


def is_buffer(value: Any) -> bool:
    """Whether the value is memory (`bytearray`, `array.array`, `memoryview`, ...)."""
    try:
        memoryview(value)
    except TypeError:
        return False
    return True


def flatten(tree: Any, label: str) -> tuple[list[Any], list[str], Shape]:
    """Return the leaves of a structure, a label for each (`params['w'][0]`), and the shape."""
    if not is_container(tree):
        return [tree], [label], LEAF
    keyed = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    leaves: list[Any] = []
    labels: list[str] = []
    shape: dict[Any, Shape] = {}
    for key, entry in keyed:
        entry_leaves, entry_labels, shape[key] = flatten(entry, f"{label}[{key!r}]")
        leaves += entry_leaves
        labels += entry_labels
    return leaves, labels, shape if isinstance(tree, Mapping) else list(shape.values())


def leaves_of(shape: Shape, tree: Any, label: str) -> list[Any]:
    """Return the leaves of a structure that must have the given shape, in the shape's order.

    Raises
    ------
    TypeError
        If an entry is of another kind than the shape has there.
    ValueError
        If entries are missing or too many.
    """
    if shape is LEAF:
        return [tree]
    if isinstance(shape, dict):
        entries = entries_of_dict(shape, tree, label)
    else:
        entries = entries_of_list(shape, tree, label)
        if shape.count(LEAF) == len(shape):  # what nearly every call has
            return entries
    keyed = shape.items() if isinstance(shape, dict) else enumerate(shape)
    return [
        leaf
        for (key, inner), entry in zip(keyed, entries, strict=True)
        for leaf in leaves_of(inner, entry, f"{label}[{key!r}]")
    ]


def entries_of_dict(shape: dict[Any, Shape], tree: Any, label: str) -> list[Any]:
    """Return a dict's values in the order of the shape's keys."""
    if not isinstance(tree, Mapping):
        raise TypeError(f"{label}: expected a dict with the keys {list(shape)}, got {type(tree).__name__}")
    if tree.keys() != shape.keys():
        missing = [key for key in shape if key not in tree]
        extra = [key for key in tree if key not in shape]
        raise ValueError(f"{label}: expected the keys {list(shape)}; missing: {missing}, extra: {extra}")
    return [tree[key] for key in shape]


def entries_of_list(shape: list[Shape], tree: Any, label: str) -> list[Any]:
    """Return the entries of a list, a tuple or another iterable."""
    if isinstance(tree, Mapping) or not is_container(tree):
        raise TypeError(f"{label}: expected a list of {len(shape)} entries, got {type(tree).__name__}")
    entries = list(tree)
    if len(entries) != len(shape):
        raise ValueError(f"{label}: expected {len(shape)} entries, got {len(entries)}")
    return entries
