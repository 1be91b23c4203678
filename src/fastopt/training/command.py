"""The command ``fastopt train``."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fastopt.console import fail, plain_console
from fastopt.files import check_writable, locked, replacing
from fastopt.training.config import ModelName, Precision, defaults, parse_options
from fastopt.training.data import Task
from fastopt.training.errors import TrainingError
from fastopt.training.job import Job
from fastopt.training.progress import reading
from fastopt.training.recipes import RIVALS, SHAPES, configure, optimizer_names
from fastopt.training.report import show_columns
from fastopt.training.session import CHECKPOINT, run_session

# The panels of the help.
MLP, TRANSFORMER, RECOMMENDER = "Perceptron on a table", "Transformer on a text", "Recommender on interactions"
OPTIMIZER, RUN = "Optimizer", "Run"


def train(
    call: typer.Context,
    model: Annotated[
        ModelName | None,
        typer.Option(
            help="A perceptron on a table or a recommender on interactions, in NumPy; or a transformer on the "
            "characters of a text, in torch.",
            show_default="mlp",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="digits|FILE",
            help="The handwritten digits of scikit-learn; a table with a header (.csv, .tsv, both also .gz, .parquet); "
            "or arrays X and y (.npz).",
            show_default=defaults("data"),
            rich_help_panel=MLP,
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column of the table to predict.", rich_help_panel=MLP)
    ] = None,
    drop: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Columns of the table to leave out.", rich_help_panel=MLP),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Columns to use that look like identifiers, or like numbers with mistakes: as kinds.",
            rich_help_panel=MLP,
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            metavar="CHARACTER",
            help="What stands between the cells, such as ';' or tab.",
            show_default="found out",
            rich_help_panel=MLP,
        ),
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(help="Predict classes, or numbers.", show_default=defaults("task"), rich_help_panel=MLP),
    ] = None,
    hidden: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Units of each hidden layer; '' for none.",
            show_default=defaults("hidden"),
            rich_help_panel=MLP,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A text in UTF-8, its last tenth held out.",
            show_default="Python's own reference, pydoc_data.topics",
            rich_help_panel=TRANSFORMER,
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            help="Blocks of attention and perceptron.",
            show_default=defaults("layers"),
            rich_help_panel=TRANSFORMER,
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            help="Units, a multiple of 32; of a recommender the numbers in an embedding.",
            show_default=defaults("width"),
            rich_help_panel=TRANSFORMER,
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Characters from which the next one is predicted, at most.",
            show_default=defaults("context"),
            rich_help_panel=TRANSFORMER,
        ),
    ] = None,
    interactions: Annotated[
        str | None,
        typer.Option(
            metavar="generated|FILE",
            help="A table with the columns user and item, each row an interaction; or 400,000 that are made up: Zipf "
            "popularity and planted tastes.",
            show_default=defaults("interactions"),
            rich_help_panel=RECOMMENDER,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"One of {', '.join(optimizer_names())}. For a transformer also torch's own, to compare: "
            f"{' or '.join(f'{rival}:NAME' for rival in RIVALS)}.",
            show_default=defaults("optimizer"),
            rich_help_panel=OPTIMIZER,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="The highest learning rate.", show_default="fits the optimizer", rich_help_panel=OPTIMIZER),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Course of the learning rate: {', '.join(SHAPES)}.",
            show_default=defaults("schedule"),
            rich_help_panel=OPTIMIZER,
        ),
    ] = None,
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
            help="Strength of the pull to zero: of all weights of a perceptron, of the matrices of a transformer.",
            show_default="fits the optimizer",
            rich_help_panel=OPTIMIZER,
        ),
    ] = None,
    clip_norm: Annotated[
        float | None,
        typer.Option(
            help="Largest norm of the gradient; 0 never clips.",
            show_default=defaults("clip_norm"),
            rich_help_panel=OPTIMIZER,
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|full",
            help="Rows, pieces of text, or interactions at once; 'full' for all (gradient descent), "
            "1 for stochastic gradient descent.",
            show_default=defaults("batch_size"),
            rich_help_panel=RUN,
        ),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            help="Batches whose gradients are added up for one step: a larger batch in the memory of a small one.",
            show_default=defaults("accumulate"),
            rich_help_panel=RUN,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the training data.", show_default=defaults("epochs"), rich_help_panel=RUN),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Decides the first weights, the order, the held-out rows and the sample of a text.",
            show_default=defaults("seed"),
            rich_help_panel=RUN,
        ),
    ] = None,
    dtype: Annotated[
        Precision | None,
        typer.Option(help="Precision of all arithmetic.", show_default=defaults("dtype"), rich_help_panel=RUN),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads of the optimizer and of the matrix products; more pay for wide layers on idle cores.",
            show_default="1; for the optimizer of a perceptron all cores",
            rich_help_panel=RUN,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where metrics.csv, scores.json, config.json, training.png, the checkpoint and the sample of a text "
            "go.",
            show_default="a new directory in runs/",
            rich_help_panel=RUN,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out to the same bits; with more --epochs, for longer.",
            rich_help_panel=RUN,
        ),
    ] = False,
) -> None:
    """Train a small model on the CPU and show its course.

    With no options a perceptron learns to read handwritten digits, in seconds.

    With --model transformer a small GPT learns to write like Python's reference, in a minute or two.

    With --model recommender two towers learn what users like; a step changes only the rows of their batch.

    Ctrl-C saves the run; --resume continues it.

    A model that is no better than always saying the same ends with status 3.
    """
    console = plain_console()
    try:
        options = parse_options({name: value for name, value in call.params.items() if name not in ("out", "resume")})
        with _resumed(options, out, console) if resume else _started(options, out, console) as (job, directory):
            outcome = run_session(job, directory, console)
    except TrainingError as error:
        fail(error.message, error.details)
    except OSError as error:
        fail(str(error))
    if outcome:
        raise typer.Exit(outcome)


@contextmanager
def _started(options: dict[str, Any], out: Path | None, console: Console) -> Iterator[tuple[Job, Path]]:
    config = configure(options.pop("model", "mlp"), options)
    runs = Path("runs", Path(config.source).stem)
    check_writable((out or runs) / CHECKPOINT)  # before the data is read, which may take long
    if out:
        _check_new(out)
    with reading(console, Path(config.source).name):
        job = Job(config)
    directory = out or _new_directory(runs)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        _check_new(directory)  # again: another process may have come first
        _write_settings(directory, job)
        show_columns(console, job)
        yield job, directory


@contextmanager
def _resumed(options: dict[str, Any], out: Path | None, console: Console) -> Iterator[tuple[Job, Path]]:
    if out is None:
        raise TrainingError("--resume needs --out DIR, the directory of the run")
    if not out.is_dir():
        raise TrainingError(f"there is no directory {out}: nothing to resume")
    check_writable(out / CHECKPOINT)
    with locked(out):
        with reading(console, "the run"):
            job = Job.resume(out / CHECKPOINT, options)
        if "epochs" in options:
            _write_settings(out, job)
        yield job, out


def _write_settings(directory: Path, job: Job) -> None:
    with replacing(directory / "config.json") as temporary:
        temporary.write_text(json.dumps(job.config.to_json(), indent=2) + "\n", encoding="utf-8")


def _check_new(directory: Path) -> None:
    if (directory / CHECKPOINT).exists():
        raise TrainingError(f"{directory} holds a run already: add --resume to continue it, or choose another --out")


def _new_directory(runs: Path) -> Path:
    """Make the first directory of a series that is not there yet."""
    runs.parent.mkdir(exist_ok=True)
    return next(path for number in count(1) if _made(path := runs.with_name(f"{runs.name}-{number}")))


def _made(directory: Path) -> bool:
    try:
        directory.mkdir()
    except FileExistsError:
        return False
    return True
