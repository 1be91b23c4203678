"""The command ``fastopt landscape``."""

import inspect
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fastopt import surfaces
from fastopt.console import fail, plain_console
from fastopt.files import check_writable, replacing
from fastopt.landscape import Run, best, figure, optimizer_names, page, run
from fastopt.landscape.curves import without_dust

RATES = (0.001, 0.01, 0.1)
"""Tried where no rates are asked for."""

MOST_STEPS = 1_000_000
"""Of a run, all of which is kept: more would be seen by nobody, and take for ever."""


def _conditioned() -> list[str]:
    """Return the names of the surfaces that have a condition number to choose."""
    return [name for name, make in surfaces.registry().items() if "condition" in inspect.signature(make).parameters]


def landscape(
    surface: Annotated[list[str], typer.Argument(metavar="SURFACE", help=f"Out of {', '.join(surfaces.registry())}.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="A picture, .png or .svg, or a page to play the runs on, .html.")
    ],
    optimizers: Annotated[
        str, typer.Option(metavar="NAME,...", help=f"Out of {', '.join(optimizer_names())}.")
    ] = "gd,momentum,nesterov,rmsprop,adam",
    lr: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER,...",
            help="Learning rates; a path is drawn for each of them.",
            show_default=f"the best of {', '.join(map(str, RATES))} for each optimizer",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="NUMBER", help=f"Steps of every run, from 1 to {MOST_STEPS}.")] = 200,
    start: Annotated[
        str | None,
        typer.Option(metavar="NUMBER,...", help="Coordinates of the first point.", show_default="by surface"),
    ] = None,
    noise: Annotated[
        float,
        typer.Option(
            metavar="NUMBER", help="Standard deviation of the noise in each gradient; gd alone has the exact one."
        ),
    ] = 0.0,
    momentum: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="What momentum and nesterov keep of the velocity.", show_default="0.9"),
    ] = None,
    betas: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER,NUMBER",
            help="Decays of the averages of optimizers that have two.",
            show_default="by optimizer",
        ),
    ] = None,
    condition: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help=f"Condition number of {', '.join(_conditioned())}, at least 1.",
            show_default="by surface",
        ),
    ] = None,
) -> None:
    """Draw the paths of optimizers over test surfaces."""
    try:
        content_of = _writer(out)
        runs = run(
            _surfaces(surface, condition),
            _unique(optimizers),
            RATES if lr is None else _numbers("--lr", lr),
            _count(steps),
            start=None if start is None else _numbers("--start", start, distinct=False),
            noise=noise,
            momentum=momentum,
            betas=None if betas is None else _pair(betas),
        )
        shown = best(runs) if lr is None else runs
        content = content_of(runs, shown)
        with replacing(out) as temporary:
            temporary.write_bytes(content)
    except ImportError as error:
        fail(f"{out.suffix} files need {error.name}: pip install 'fastopt[cli]'")
    except (ValueError, OSError) as error:
        fail(str(error))
    _report(shown, out)


def _writer(out: Path) -> Callable[[Sequence[Run], Sequence[Run]], bytes]:
    """Return what makes the file's content of all runs and of those to be shown; a page lets the reader choose."""
    writers: dict[str, Callable[[Sequence[Run], Sequence[Run]], bytes]] = {
        ".png": lambda runs, shown: _picture(shown, "png"),
        ".svg": lambda runs, shown: _picture(shown, "svg"),
        ".html": lambda runs, shown: page(runs, rates="all" if shown is runs else "best").encode(),
    }
    if out.suffix.lower() not in writers:
        raise ValueError(f"--out must end in {', '.join(writers)}, got {out}")
    if not out.parent.is_dir():
        raise ValueError(f"--out: there is no directory {out.parent}")
    check_writable(out)
    return writers[out.suffix.lower()]


def _picture(runs: Sequence[Run], kind: str) -> bytes:
    from matplotlib import rc_context

    content = BytesIO()
    # Without a date and with fixed names inside, the same runs give the same file.
    with rc_context({"svg.hashsalt": "fastopt"}):
        figure(runs).savefig(content, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def _surfaces(names: Sequence[str], condition: float | None) -> list[surfaces.Surface]:
    registry = surfaces.registry()
    for name in names:
        if name not in registry:
            raise ValueError(f"SURFACE must be out of {', '.join(registry)}, got {name!r}")
        if condition is not None and name not in _conditioned():
            raise ValueError(f"--condition is for {', '.join(_conditioned())}, not for {name}")
    options = {} if condition is None else {"condition": condition}
    return [registry[name](**options) for name in dict.fromkeys(names)]


def _unique(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def _numbers(option: str, text: str, *, distinct: bool = True) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be a number or several with commas between, got {text!r}") from None
    return list(dict.fromkeys(numbers)) if distinct else numbers


def _pair(text: str) -> tuple[float, float]:
    numbers = _numbers("--betas", text, distinct=False)
    if len(numbers) != 2:
        raise ValueError(f"--betas must be two numbers with a comma between, got {text!r}")
    return numbers[0], numbers[1]


def _count(steps: int) -> int:
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"--steps must be from 1 to {MOST_STEPS}, got {steps}")
    return steps


def _report(runs: Sequence[Run], out: Path) -> None:
    console = plain_console()
    table = Table("surface", "optimizer", "lr", "loss", "gradient norm", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for shown in runs:
        loss, grad_norm = without_dust([shown.path.loss[-1], shown.path.grad_norm[-1]])
        table.add_row(
            shown.surface.name,
            shown.optimizer + (shown.ending and f" ({shown.ending})"),
            f"{shown.lr:g}",
            f"{loss:.4g}",
            f"{grad_norm:.4g}",
        )
    console.print(table)
    console.print(f"{len(runs)} paths of up to {max(run.path.steps for run in runs)} steps in {out}", soft_wrap=True)
