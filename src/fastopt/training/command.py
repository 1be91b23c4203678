"""The command ``fastopt train``."""

import json
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fastopt.console import fail
from fastopt.files import replacing
from fastopt.training.config import ModelName, Precision, defaults, parse_options
from fastopt.training.data import Task
from fastopt.training.errors import TrainingError
from fastopt.training.job import Job
from fastopt.training.recipes import RIVALS, SHAPES, configure, optimizer_names
from fastopt.training.session import CHECKPOINT, run_session

# The panels of the help.
MLP, TRANSFORMER, OPTIMIZER, RUN = "Perceptron on a table", "Transformer on a text", "Optimizer", "Run"


def train(
    call: typer.Context,
    model: Annotated[
        ModelName | None,
        typer.Option(
            help="A perceptron on a table, in NumPy; or a transformer on the characters of a text, in torch.",
            show_default="mlp",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="digits|FILE.npz|FILE.csv",
            help="The handwritten digits of scikit-learn; or arrays X and y; or numeric columns under a header.",
            show_default=defaults("data"),
            rich_help_panel=MLP,
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column of the CSV file to predict.", rich_help_panel=MLP)
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
            min=1,
            help="Blocks of attention and perceptron.",
            show_default=defaults("layers"),
            rich_help_panel=TRANSFORMER,
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            min=1, help="Units, a multiple of 32.", show_default=defaults("width"), rich_help_panel=TRANSFORMER
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Characters from which the next one is predicted, at most.",
            show_default=defaults("context"),
            rich_help_panel=TRANSFORMER,
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
        typer.Option(
            min=0, help="The highest learning rate.", show_default="fits the optimizer", rich_help_panel=OPTIMIZER
        ),
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
            min=0,
            help="Strength of the pull to zero: of all weights of a perceptron, of the matrices of a transformer.",
            show_default="fits the optimizer",
            rich_help_panel=OPTIMIZER,
        ),
    ] = None,
    clip_norm: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Largest norm of the gradient; 0 never clips.",
            show_default=defaults("clip_norm"),
            rich_help_panel=OPTIMIZER,
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|full",
            help="Rows, or pieces of text, for one step; 'full' for all (gradient descent), "
            "1 for stochastic gradient descent.",
            show_default=defaults("batch_size"),
            rich_help_panel=RUN,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Passes over the training data.", show_default=defaults("epochs"), rich_help_panel=RUN
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
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
            min=1,
            help="Threads of the optimizer and of the matrix products; more pay for wide layers on idle cores.",
            show_default="1; for the optimizer of a perceptron all cores",
            rich_help_panel=RUN,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where metrics.csv, config.json, training.png, the checkpoint and the sample of a text go.",
            show_default="a new directory in runs/",
            rich_help_panel=RUN,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out to the same bits.", rich_help_panel=RUN),
    ] = False,
) -> None:
    """Train a small model on the CPU and show its course.

    With no options a perceptron learns to read handwritten digits, in seconds.

    With --model transformer a small GPT learns to write like Python's reference, in a minute or two.

    Ctrl-C saves the run; --resume continues it.
    """
    try:
        options = parse_options({name: value for name, value in call.params.items() if name not in ("out", "resume")})
        job, directory = _resumed(options, out) if resume else _started(options, out)
        complete = run_session(job, directory, Console())
    except (TrainingError, OSError) as error:
        fail(str(error))
    if not complete:
        raise typer.Exit(130)


def _started(options: dict[str, Any], out: Path | None) -> tuple[Job, Path]:
    config = configure(options.pop("model", "mlp"), options)
    directory = out or _new_directory(config.source)
    if (directory / CHECKPOINT).exists():
        raise TrainingError(f"{directory} holds a run already: add --resume to continue it, or choose another --out")
    job = Job(config)
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / "config.json") as temporary:
        temporary.write_text(json.dumps(config.to_json(), indent=2) + "\n", encoding="utf-8")
    return job, directory


def _resumed(options: dict[str, Any], out: Path | None) -> tuple[Job, Path]:
    if out is None:
        raise TrainingError("--resume needs --out DIR, the directory of the run")
    return Job.resume(out / CHECKPOINT, options), out


def _new_directory(source: str) -> Path:
    name = Path(source).stem
    return next(path for number in count(1) if not (path := Path("runs", f"{name}-{number}")).exists())
