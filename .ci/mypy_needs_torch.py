"""A plugin of mypy that does one thing: without torch it says so, where mypy would have 70 errors of what follows."""

from importlib.util import find_spec

from mypy.plugin import Plugin


def plugin(version: str) -> type[Plugin]:
    """Return the plugin, which changes nothing, if torch is there."""
    if find_spec("torch") is None:
        raise SystemExit("mypy: the types of torch are needed; install it with: pip install torch==2.13.0")
    return Plugin
