"""How the commands speak: to the terminal, and of errors in one line."""

from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text


def fail(message: str) -> NoReturn:
    """Print ``error: message`` in red and leave with status 2."""
    Console(stderr=True).print(Text(f"error: {message}", style="red"), soft_wrap=True)
    raise typer.Exit(2)
