"""The command line: each area of fastopt brings its command, this module lists them."""

import warnings
from typing import Annotated, Any

import typer
from rich.table import Table

import fastopt
from fastopt.benchmark.command import bench
from fastopt.console import plain_console
from fastopt.landscape.command import landscape
from fastopt.lessons.command import lessons
from fastopt.training.command import train
from fastopt.training.predict_command import predict

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (train, predict, landscape, lessons, bench):
    app.command()(command)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastopt {fastopt.__version__}")
        raise typer.Exit


@app.callback()
def fastopt_command(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Optimizer steps on the CPU, at the speed of the memory."""


@app.command()
def info() -> None:
    """Show the version, the instruction set, the threads and the OpenMP runtimes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        facts = fastopt.info()
    console = plain_console()
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _readable(value))
    console.print(table, soft_wrap=True, highlight=False)
    for warning in caught:
        console.print(f"warning: {warning.message}", style="yellow", soft_wrap=True, highlight=False)


def _readable(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)
