"""The command ``fastopt landscape``."""

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


def landscape(
    surface: Annotated[
        list[str], typer.Argument(metavar="SURFACE...", help=f"Out of {', '.join(surfaces.registry())}.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="A picture, .png or .svg, or a page to play the runs on, .html.")
    ],
    optimizers: Annotated[
        str, typer.Option(metavar="NAME,...", help=f"Out of {', '.join(optimizer_names())}.")
    ] = "gd,momentum,nesterov,rmsprop,adam",
    lr: Annotated[
        str,
        typer.Option(
            metavar="NUMBER,...",
            help="Learning rates. A picture shows the best of them for each optimizer; a page lets you choose.",
        ),
    ] = "0.001,0.01,0.1",
    steps: Annotated[int, typer.Option(metavar="NUMBER", help="Steps of every run, at least 1.")] = 200,
) -> None:
    """Draw the paths of optimizers over test surfaces."""
    try:
        content_of = _writer(out)
        runs = run(_surfaces(surface), _unique(optimizers), _rates(lr), _count(steps))
        content = content_of(runs)
        with replacing(out) as temporary:
            temporary.write_bytes(content)
    except ImportError as error:
        fail(f"{out.suffix} files need {error.name}: pip install 'fastopt[cli]'")
    except (ValueError, OSError) as error:
        fail(str(error))
    _report(runs, out)


def _writer(out: Path) -> Callable[[Sequence[Run]], bytes]:
    writers: dict[str, Callable[[Sequence[Run]], bytes]] = {
        ".png": lambda runs: _picture(runs, "png"),
        ".svg": lambda runs: _picture(runs, "svg"),
        ".html": lambda runs: page(runs).encode(),
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


def _surfaces(names: Sequence[str]) -> list[surfaces.Surface]:
    registry = surfaces.registry()
    for name in names:
        if name not in registry:
            raise ValueError(f"SURFACE must be out of {', '.join(registry)}, got {name!r}")
    return [registry[name]() for name in dict.fromkeys(names)]


def _unique(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def _rates(text: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(part) for part in _unique(text)))
    except ValueError:
        raise ValueError(f"--lr must be a number or several with commas between, got {text!r}") from None


def _count(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    return steps


def _report(runs: Sequence[Run], out: Path) -> None:
    console = plain_console()
    table = Table("surface", "optimizer", "best lr", "loss", "gradient norm", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for winner in best(runs):
        path = winner.path
        end = f" (diverged after step {path.steps})" if path.diverged else ""
        table.add_row(
            winner.surface.name,
            winner.optimizer + end,
            f"{winner.lr:g}",
            f"{path.loss[-1]:.4g}",
            f"{path.grad_norm[-1]:.4g}",
        )
    console.print(table)
    console.print(f"{len(runs)} runs of up to {max(run.path.steps for run in runs)} steps in {out}", soft_wrap=True)
