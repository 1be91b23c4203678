"""The descriptions of the optimizers, one file a family: options, states, which rule. No step in here.

`registry` finds them by itself: an optimizer is there when a file of this folder describes it.
"""

from __future__ import annotations

import importlib
import pkgutil

from fastopt.methods.base import Method


def registry() -> dict[str, type[Method]]:
    """Return the descriptions by name."""
    return dict(_found)


def _descendants(cls: type[Method]) -> list[type[Method]]:
    return [found for child in cls.__subclasses__() for found in (child, *_descendants(child))]


for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
_found = {cls.__name__: cls for cls in _descendants(Method) if vars(cls).get("described", True)}
