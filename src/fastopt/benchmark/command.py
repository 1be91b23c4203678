"""The command ``fastopt bench``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

import fastopt
from fastopt.benchmark import plan, sheets, works
from fastopt.benchmark.display import bar, show
from fastopt.benchmark.field import RIVALS
from fastopt.benchmark.records import Record, changes
from fastopt.benchmark.targets import all_targets
from fastopt.benchmark.tasks import ACTIONS, ITEM_SIZES, Method, methods
from fastopt.console import fail, plain_console
from fastopt.files import check_writable

PICTURES = (".png", ".svg")

SELECTIONS = ("optimizer", "work", "rivals", "dtype", "action")
"""Options that say what is measured."""


def bench(
    context: typer.Context,
    optimizer: Annotated[
        str, typer.Option(metavar="NAME,...", help=f"Out of {', '.join(methods())}; or 'all'.")
    ] = "adamw",
    work: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help=f"Shapes of {', '.join(works.MODELS)}, or arrays such as 1K, 64M or 1000x1K; or 'all'.",
        ),
    ] = ",".join(plan.QUICK_WORKS),
    rivals: Annotated[
        str, typer.Option(metavar="NAME,...", help=f"Out of {', '.join(RIVALS)}; or 'all', or '' for none.")
    ] = "all",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that everybody may take.", show_default="fastopt's own choice")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="NAME,...", help=f"Out of {', '.join(ITEM_SIZES)}; or 'all'.")
    ] = "float32",
    action: Annotated[str, typer.Option(metavar="NAME,...", help=f"Out of {', '.join(ACTIONS)}; or 'all'.")] = "step",
    targets: Annotated[bool, typer.Option("--targets", help="Check the project's targets, and nothing else.")] = False,
    quality: Annotated[
        bool,
        typer.Option(
            "--quality",
            help="What optimizers reach in training, all or those of --optimizer, each at a rate that is searched for; "
            "and AdamW with weights and states in fewer bits. About twenty minutes.",
        ),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Everything: targets, all works, sizes, threads, training steps, trainings.")
    ] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep all figures in a file.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the figures, as .png or .svg.")] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Say what became slower since a run with --json, by the share of the floor's speed."
        ),
    ] = None,
) -> None:
    """Time optimizer steps against the floor, and against what else is installed.

    The floor is a loop with the same streams of reads and writes and one addition each.

    All take turns on the same data, and their answers are checked before. A ratio has the interval that it lies in.

    Ctrl-C ends it early and shows what there is.
    """
    try:
        check_alone(context, full=full, targets=targets, quality=quality)
        check_files(baseline, json, plot)
        before = Record.load(baseline) if baseline else None
        known = plan.trained_optimizers() if quality else list(methods())
        named = "all" if quality and not is_given(context, "optimizer") else optimizer
        names = listed(named, known, "--optimizer")
        comparison: dict[str, Any] = {
            "chosen": [] if quality else [methods()[name] for name in names],
            "work_names": (work_names := works_of(work)),
            "dtypes": listed(dtype, ITEM_SIZES, "--dtype"),
            "actions": listed(action, ACTIONS, "--action"),
            "rivals": listed(rivals, RIVALS, "--rivals"),
        }
        if is_given(context, "work") and "all" not in (optimizer, work):  # (of all, those that fit are meant)
            check_fit(comparison["chosen"], work_names)
    except (ValueError, OSError) as error:
        fail(str(error))
    fastopt.set_num_threads(threads or fastopt.get_num_threads())
    count = fastopt.get_num_threads()
    wanted = all_targets(count)
    jobs: list[plan.Job]
    if full:
        jobs = list(plan.everything(count, wanted))
    elif quality:
        jobs = list(plan.of_quality(names))
    elif targets:
        jobs = list(plan.of_targets(wanted))
    else:
        jobs = list(plan.comparison(**comparison, threads=count))
    console = plain_console()
    record, is_whole = measured(console, jobs, json)
    for sheet in sheets.all_sheets(
        record, wanted if targets or full else [], changes(before, record) if before else None
    ):
        show(console, sheet)
    for failure in record.failures:
        console.print(Text(f"Failed: {failure}", style="red"), soft_wrap=True)
    console.print(sheets.machine_line(record), style="dim", soft_wrap=True, highlight=False)
    write(console, record, json, plot)
    if not is_whole:
        raise typer.Exit(130)


def measured(console: Console, jobs: Sequence[plan.Job], json: Path | None) -> tuple[Record, bool]:
    """Do all jobs, or those up to Ctrl-C, and say which. What is done is kept in the file each time."""
    record = Record()
    done = 0
    try:
        with bar(console, sum(job.seconds for job in jobs)) as progress:
            for job in jobs:
                progress.start(f"{done + 1} of {len(jobs)}, {job.title}", job.seconds)
                try:
                    job.measure(record, progress.advance)
                except Exception as error:  # is told, and not the end of the other jobs
                    record.failures.append(f"{job.title}: {type(error).__name__}: {error}".partition("\n")[0])
                done += 1
                if json:
                    with suppress(OSError):  # as of a full disk; it is told at the end, when it is tried again
                        record.save(json)
    except KeyboardInterrupt:
        console.print(Text(f"Stopped after {done} of {len(jobs)} runs.", style="yellow"))
        return record, False
    return record, True


def write(console: Console, record: Record, json: Path | None, plot: Path | None) -> None:
    """Write the files that were asked for."""
    try:
        if json:
            record.save(json)
            console.print(f"All figures are in {json}", soft_wrap=True, highlight=False)
        if plot:
            from fastopt.benchmark.plots import save

            save(record, plot)
            console.print(f"The plot is in {plot}", soft_wrap=True, highlight=False)
    except (ValueError, OSError) as error:
        fail(str(error))


def listed(text: str, known: Collection[str], option: str) -> list[str]:
    """Return the names in a list with commas.

    Raises
    ------
    ValueError
        If one is unknown.
    """
    names = list(known) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: expected names out of {', '.join(known)}, got {name!r}")
    return list(dict.fromkeys(names))


def works_of(text: str) -> list[str]:
    """Return the names of works in a list with commas.

    Raises
    ------
    ValueError
        If one is not a work's.
    """
    names = list(works.STANDARD) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        try:
            works.find(name)
        except ValueError as error:
            raise ValueError(f"--work: {error}") from None
    return list(dict.fromkeys(names))


def check_fit(chosen: Sequence[Method], work_names: Sequence[str]) -> None:
    """Refuse works that an optimizer cannot step.

    Raises
    ------
    ValueError
        Naming the first of them.
    """
    for method, name in product(chosen, work_names):
        obstacle = method.obstacle(works.find(name))
        if obstacle:
            raise ValueError(f"--work {name}: {obstacle}")


def check_alone(context: typer.Context, **fixed: bool) -> None:
    """Refuse options that say what to measure beside one that has said it already.

    Raises
    ------
    ValueError
        If both are given.
    """
    given = [f"--{name}" for name, is_set in fixed.items() if is_set]
    given += [f"--{name}" for name in SELECTIONS if is_given(context, name)]
    if given[:1] == ["--quality"] and "--optimizer" in given:
        given.remove("--optimizer")
    if any(fixed.values()) and len(given) > 1:
        raise ValueError(f"{given[0]} says what is measured: it cannot be given with {given[1]}")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def check_files(baseline: Path | None, json: Path | None, plot: Path | None) -> None:
    """Find out before everything is measured that it could not be read or written.

    Raises
    ------
    ValueError, OSError
        If there is no such file or directory, or no such kind of picture, or it cannot be written.
    """
    if baseline and not baseline.is_file():
        raise ValueError(f"--baseline: there is no file {baseline}")
    for option, path in (("--json", json), ("--plot", plot)):
        if path and not path.parent.is_dir():
            raise ValueError(f"{option}: there is no directory {path.parent}")
        if path:
            check_writable(path)
    if plot and plot.suffix.lower() not in PICTURES:
        raise ValueError(f"--plot must end in {' or '.join(PICTURES)}, got {plot}")
