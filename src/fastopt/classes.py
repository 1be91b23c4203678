"""The optimizers' classes, which a module has from when somebody asks for one first.

An import of fastopt makes none and reads no description: together that takes longer than all else in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def when_asked_for(
    module: dict[str, Any], names: Callable[[], Iterable[str]], find: Callable[[str], Any]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a module that has classes from when they are asked for first.

    Parameters
    ----------
    module
        What is in the module so far. Its `__all__`, if it has one, is taken out: asked for, it has the classes, too.
    names
        Returns the names of the classes. They begin with a capital, by which they are told from modules without reading
        a description: ``from fastopt import trees`` looks here first.
    find
        Returns the class of a name.
    """
    others = tuple(module.pop("__all__", ()))

    def __getattr__(name: str) -> Any:
        """Find a class, or what is public."""
        if name == "__all__":
            found: Any = (*names(), *others)
        elif name[:1].isupper() and name in names():
            found = find(name)
        else:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        return module.setdefault(name, found)  # (another thread may have been first)

    def __dir__() -> list[str]:
        """Name what there is, found already or not."""
        return sorted({*module, *__getattr__("__all__")})

    return __getattr__, __dir__
