"""The command ``fastopt train``."""

import json
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastopt.console import fail
from fastopt.files import replacing
from fastopt.training.config import Config, Precision, parse_options
from fastopt.training.data import Task
from fastopt.training.errors import TrainingError
from fastopt.training.job import Job
from fastopt.training.recipes import SHAPES, default_lr, default_warmup, optimizer_names
from fastopt.training.session import CHECKPOINT, run_session

DATA, MODEL, OPTIMIZER, RUN = "Data", "Model", "Optimizer", "Run"  # the panels of the help


def train(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            metavar="digits|FILE.npz|FILE.csv",
            help="The handwritten digits of scikit-learn; or arrays X and y; or numeric columns under a header.",
            rich_help_panel=DATA,
        ),
    ] = "digits",
    target: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column of the CSV file to predict.", rich_help_panel=DATA)
    ] = None,
    task: Annotated[Task, typer.Option(help="Predict classes, or numbers.", rich_help_panel=DATA)] = "classification",
    hidden: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Units of each hidden layer; '' for none.", rich_help_panel=MODEL),
    ] = "256,128",
    dtype: Annotated[Precision, typer.Option(help="Precision of all arithmetic.", rich_help_panel=MODEL)] = "float32",
    optimizer: Annotated[
        str, typer.Option(metavar="NAME", help=f"One of {', '.join(optimizer_names())}.", rich_help_panel=OPTIMIZER)
    ] = "adamw",
    lr: Annotated[
        float | None,
        typer.Option(
            min=0, help="The highest learning rate.", show_default="fits the optimizer", rich_help_panel=OPTIMIZER
        ),
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            metavar="NAME", help=f"Course of the learning rate: {', '.join(SHAPES)}.", rich_help_panel=OPTIMIZER
        ),
    ] = "warmup-cosine",
    warmup: Annotated[
        str | None,
        typer.Option(
            metavar="N|N%",
            help="Steps, or share of all steps, in which the learning rate rises.",
            show_default="fits the schedule",
            rich_help_panel=OPTIMIZER,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Strength of the pull of all weights to zero.",
            show_default="that of the optimizer",
            rich_help_panel=OPTIMIZER,
        ),
    ] = None,
    clip_norm: Annotated[
        float,
        typer.Option(min=0, help="Largest norm of the gradient; 0 never clips.", rich_help_panel=OPTIMIZER),
    ] = 1.0,
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N|full",
            help="Rows for one step; 'full' for all (gradient descent), 1 for stochastic gradient descent.",
            rich_help_panel=RUN,
        ),
    ] = "32",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows.", rich_help_panel=RUN)] = 30,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Decides the held-out rows, the first weights and the order.", rich_help_panel=RUN),
    ] = 0,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Threads of the optimizer and of the matrix products; more pay for wide layers on idle cores.",
            show_default="all cores, and one for the products",
            rich_help_panel=RUN,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where metrics.csv, config.json, training.png and the checkpoint go.",
            show_default="a new directory in runs/",
            rich_help_panel=RUN,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out to the same bits.", rich_help_panel=RUN),
    ] = False,
) -> None:
    """Train a perceptron on a table of numbers, a fifth of its rows held out.

    With no options it learns to read handwritten digits in a few seconds. Ctrl-C saves the run; --resume continues it.
    """
    try:
        job, directory = _resumed(context, out) if resume else _started(context, out)
        complete = run_session(job, directory, Console())
    except (TrainingError, OSError) as error:
        fail(str(error))
    if not complete:
        raise typer.Exit(130)


def _started(context: typer.Context, out: Path | None) -> tuple[Job, Path]:
    settings = parse_options(context.params)
    settings["lr"] = default_lr(settings["optimizer"]) if settings["lr"] is None else settings["lr"]
    settings["warmup"] = settings["warmup"] or default_warmup(settings["schedule"])
    config = Config(**settings)
    directory = out or _new_directory(config.data)
    if (directory / CHECKPOINT).exists():
        raise TrainingError(f"{directory} holds a run already: add --resume to continue it, or choose another --out")
    job = Job(config)
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / "config.json") as temporary:
        temporary.write_text(json.dumps(config.to_json(), indent=2) + "\n", encoding="utf-8")
    return job, directory


def _resumed(context: typer.Context, out: Path | None) -> tuple[Job, Path]:
    if out is None:
        raise TrainingError("--resume needs --out DIR, the directory of the run")
    typed = {name: value for name, value in context.params.items() if _was_typed(context, name)}
    return Job.resume(out / CHECKPOINT, parse_options(typed)), out


def _was_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _new_directory(data: str) -> Path:
    name = Path(data).stem
    return next(path for number in count(1) if not (path := Path("runs", f"{name}-{number}")).exists())
