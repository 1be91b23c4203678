"""One sitting of a run, to its end or to Ctrl-C, with all that it shows and writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from time import perf_counter

import numpy as np
from rich.console import Console
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import fastopt
from fastopt.training.interrupt import Interrupt
from fastopt.training.job import Job
from fastopt.training.loop import train
from fastopt.training.metrics import MetricsLog, StepRecord, read_metrics
from fastopt.training.progress import Display
from fastopt.training.report import describe, plot, summarize

CHECKPOINT = "checkpoint.safetensors"


def run_session(job: Job, directory: Path, console: Console) -> bool:
    """Train to the end or to Ctrl-C.

    Parameters
    ----------
    job : Job
        The run, new or resumed.
    directory : Path
        Where ``metrics.csv``, ``training.png`` and the checkpoint go.
    console : Console
        Where the course of the run is shown.

    Returns
    -------
    bool
        Whether the run is complete.
    """
    describe(console, job)
    seconds = _train(job, directory, console)
    if not job.run.is_complete:
        console.print(
            f"Stopped after step {job.run.step:,} of {job.run.total_steps:,}; everything is saved. To continue:"
        )
        console.print(f"  fastopt train --resume --out {quote(str(directory))}", soft_wrap=True, highlight=False)
        return False
    metrics = read_metrics(directory / "metrics.csv")
    plot(directory / "training.png", metrics, job)
    summarize(console, job, metrics, seconds)
    console.print(f"Metrics, plot and checkpoint are in {directory}/", soft_wrap=True, highlight=False)
    return True


def _train(job: Job, directory: Path, console: Console) -> float:
    started = perf_counter()
    with (
        np.errstate(over="ignore", invalid="ignore"),  # of a run that diverges the optimizer reports it
        _threads(job.config.threads),
        MetricsLog(directory / "metrics.csv", job.score_names, job.run.step) as log,
        Interrupt() as interrupt,
        Display(console, job.run) as display,
    ):

        def observe(record: StepRecord) -> None:
            log.append(record)
            display.show(record)

        def save() -> None:
            log.sync()  # first: every step of a checkpoint has its row
            job.checkpoint().save(directory / CHECKPOINT)

        train(job.run, observe=observe, save=save, should_stop=lambda: interrupt.requested)
    return perf_counter() - started


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """Set the threads of the optimizer and of the matrix products.

    The threads of BLAS wait by spinning, as those of OpenMP do. Where both have several, or another process wants a
    core, they keep each other from working: 0.4 ms for a step of the digits have been seen to become 80 ms. So the
    products get one thread unless more are asked for.
    """
    before = fastopt.get_num_threads()
    fastopt.set_num_threads(wanted or before)
    try:
        with threadpool_limits(wanted or 1, user_api="blas"):
            yield
    finally:
        fastopt.set_num_threads(before)
