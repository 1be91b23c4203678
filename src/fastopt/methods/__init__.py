"""The descriptions of the optimizers, one file a family: options, states, which rule. No step in here.

`registry` finds them by itself: an optimizer is there when a file of this folder describes it.
"""

from __future__ import annotations

from functools import cache

from fastopt.methods.base import Method


def registry() -> dict[str, type[Method]]:
    """Return the descriptions by name. The first call reads the files, which `import fastopt` leaves for later."""
    return dict(_found())


@cache
def _found() -> dict[str, type[Method]]:
    from importlib import import_module
    from pkgutil import iter_modules

    for module in iter_modules(__path__, f"{__name__}."):
        import_module(module.name)
    # (Others may have derived classes of their own already, or have read some of the files first.)
    ours = [cls for cls in _descendants(Method) if cls.__module__.startswith(f"{__name__}.")]
    ours.sort(key=lambda cls: cls.__module__)
    return {cls.__name__: cls for cls in ours if vars(cls).get("described", True)}


def _descendants(cls: type[Method]) -> list[type[Method]]:
    return [found for child in cls.__subclasses__() for found in (child, *_descendants(child))]
