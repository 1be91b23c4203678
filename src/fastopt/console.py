"""How the commands speak: to the terminal, and of errors in one line."""

from collections.abc import Sequence
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text


def plain_console(stderr: bool = False) -> Console:
    """Return a console that shows text as it is: paths and names may have brackets and colons, which are no markup."""
    return Console(stderr=stderr, markup=False, emoji=False)


def fail(message: str, details: Sequence[str] = ()) -> NoReturn:
    """Print ``error: message`` in red, as one line, and leave with status 2; details get a line each."""
    lines = [f"error: {' '.join(message.splitlines())}", *(f"  {' '.join(detail.splitlines())}" for detail in details)]
    plain_console(stderr=True).print(Text("\n".join(lines), style="red"), soft_wrap=True)
    raise typer.Exit(2)
