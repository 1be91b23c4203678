"""The command ``fastopt predict``."""

import csv
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from fastopt.console import fail, plain_console
from fastopt.files import check_writable, replacing
from fastopt.training.errors import TrainingError
from fastopt.training.prediction import load
from fastopt.training.progress import reading


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of fastopt train on a table.")],
    data: Annotated[
        Path,
        typer.Option(metavar="FILE", help="A table with the columns that the run was trained on, in any order."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.csv", help="Where the predictions go, a row for each.")],
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Add the probability of each class.")] = False,
) -> None:
    """Predict with a trained model, for each row of a new table."""
    console = plain_console()
    try:
        check_writable(out)
        if out.exists() and data.exists() and out.samefile(data):
            raise TrainingError(f"--out {out} is the table itself")
        model = load(run)
        if probabilities and not model.classes:
            raise TrainingError("--probabilities: the run predicts numbers, of which it knows no probabilities")
        with reading(console, str(data)):
            prepared = model.prepare(data)
            outputs = model.outputs(prepared)
        predicted = model.decide(outputs)
        names, columns = [model.target or "prediction"], [predicted.tolist()]
        if probabilities:
            names += [f"probability of {name}" for name in model.classes]
            columns += model.probabilities(outputs).T.tolist()
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            writer.writerows(zip(*columns, strict=True))
    except TrainingError as error:
        fail(error.message, error.details)
    except OSError as error:
        fail(str(error))
    for note in prepared.notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True, highlight=False)
    compared = model.compare(prepared, predicted)
    console.print(f"{len(predicted):,} predictions are in {out}", soft_wrap=True, highlight=False)
    if compared:
        console.print(compared, soft_wrap=True, highlight=False)
    if not len(predicted):
        return
    if model.classes:
        shares = [f"{name} {np.mean(predicted == name):.1%}" for name in model.classes]
        console.print(", ".join(shares), soft_wrap=True, highlight=False)
    else:
        console.print(
            f"from {predicted.min():.4g} to {predicted.max():.4g}, mean {predicted.mean():.4g}", highlight=False
        )
