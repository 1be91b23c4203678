"""One sitting of a run, to its end or to Ctrl-C, with all that it shows and writes."""

import json
from enum import IntEnum
from pathlib import Path
from shlex import quote
from time import perf_counter

from rich.console import Console

from fastopt.files import replacing
from fastopt.training.interrupt import Interrupt
from fastopt.training.job import Job
from fastopt.training.loop import train
from fastopt.training.metrics import MetricsLog, StepRecord, read_metrics
from fastopt.training.progress import Display
from fastopt.training.report import describe, plot, show_sample, summarize

CHECKPOINT = "checkpoint.safetensors"


class Outcome(IntEnum):
    """How a sitting ends, as the status that the command exits with."""

    COMPLETE = 0
    NO_BETTER = 3
    STOPPED = 130


def run_session(job: Job, directory: Path, console: Console) -> Outcome:
    """Train to the end or to Ctrl-C.

    Parameters
    ----------
    job : Job
        The run, new or resumed.
    directory : Path
        Where ``metrics.csv``, ``scores.json``, ``training.png``, the checkpoint and, from a model of text,
        ``sample.txt`` go.
    console : Console
        Where the course of the run is shown.

    Returns
    -------
    Outcome
        Whether the run is complete, and if so, whether the model is better than one that has learned nothing.
    """
    describe(console, job)
    seconds = _train(job, directory, console)
    if not job.run.is_complete:
        console.print(
            f"Stopped after step {job.run.step:,} of {job.run.total_steps:,}; everything is saved. To continue:"
        )
        console.print(f"  fastopt train --resume --out {quote(str(directory))}", soft_wrap=True, highlight=False)
        return Outcome.STOPPED
    metrics = read_metrics(directory / "metrics.csv")
    if len(metrics["step"]):  # none if the table of a complete run was removed
        plot(directory / "training.png", metrics, job)
    assessment = job.assess()
    with replacing(directory / "scores.json") as temporary:
        temporary.write_text(json.dumps(assessment.scores, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    summarize(console, job, assessment, seconds)
    sample = job.sample()
    if sample:
        with replacing(directory / "sample.txt") as temporary:
            temporary.write_text(sample + "\n", encoding="utf-8")
        show_sample(console, sample)
    console.print(f"All files of the run are in {directory}/", soft_wrap=True, highlight=False)
    if assessment.is_better:
        return Outcome.COMPLETE
    console.print(f"The model is no better than {assessment.baseline}.", style="yellow", soft_wrap=True)
    return Outcome.NO_BETTER


def _train(job: Job, directory: Path, console: Console) -> float:
    started = perf_counter()
    with (
        job.arithmetic(),
        MetricsLog(directory / "metrics.csv", job.problem.score_names, job.run.step) as log,
        Interrupt() as interrupt,
        Display(console, job) as display,
    ):

        def observe(record: StepRecord) -> None:
            log.append(record)
            display.show(record)

        def save() -> None:
            log.sync()  # first: every step of a checkpoint has its row
            job.checkpoint().save(directory / CHECKPOINT)

        train(job.run, observe=observe, save=save, should_stop=lambda: interrupt.requested)
    return perf_counter() - started
