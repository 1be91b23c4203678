"""The course of a run: a live bar on a terminal, plain lines in a file or a pipe."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastopt.training.job import Job
from fastopt.training.metrics import StepRecord

REFRESH_SECONDS = 0.1
WIDE = 100  # columns of a terminal that has room for everything
PLAIN_LINES = 20  # for a run of any length


def score_text(name: str, value: float) -> str:
    """Return a held-out score as people write it."""
    return f"{value:.1%}" if name == "accuracy" else f"{value:.4g}"


@contextmanager
def reading(console: Console, source: str) -> Iterator[None]:
    """Show while the block lasts that data is read, with the seconds that it has taken."""
    if not console.is_terminal:
        yield
        return
    text = TextColumn(f"reading {source}", markup=False)
    with Progress(SpinnerColumn(), text, TimeElapsedColumn(), console=console, transient=True) as progress:
        progress.add_task("", total=None)
        yield


def _compact(number: float) -> str:
    return f"{number / 1000:,.0f}k" if number >= 10_000 else f"{number:,.0f}"


class Display:
    """Shows the steps of a run while its ``with`` block lasts.

    Parameters
    ----------
    console : Console
        Where to; decides between the bar and the lines.
    job : Job
        The run that the steps are of.
    """

    def __init__(self, console: Console, job: Job) -> None:
        self._console = console
        self._job = job
        self._run = job.run
        self._score = ""
        self._started = self._refreshed = perf_counter()
        self._bar = self._make_bar() if console.is_terminal else None

    def __enter__(self) -> "Display":
        self._bar_or_nothing.__enter__()
        self._started = perf_counter()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar_or_nothing.__exit__(*exception)

    def show(self, record: StepRecord) -> None:
        """Take note of a step, and show it if it is time to."""
        name = self._job.problem.main_score
        if name in record.scores:
            self._score = f"{name.replace('_', ' ')} {score_text(name, record.scores[name])}"
        if self._bar is not None:
            self._refresh_bar(self._bar, record)
        elif (
            record.step * PLAIN_LINES // self._run.total_steps
            > (record.step - 1) * PLAIN_LINES // self._run.total_steps
        ):
            self._console.print(*self._facts(record), sep="  ", soft_wrap=True, highlight=False)

    def _facts(self, record: StepRecord) -> list[str]:
        speed = self._run.new_samples / (perf_counter() - self._started)
        return [
            f"epoch {record.epoch}/{self._job.config.epochs}",
            f"loss {record.loss:.3g}",
            f"lr {record.lr:.1e}",
            f"|g| {record.grad_norm:.2g}",
            f"{_compact(speed)} {self._job.problem.sample_unit}/s",
            self._score,
        ]

    @property
    def _bar_or_nothing(self) -> AbstractContextManager[Any]:
        return self._bar or nullcontext()

    def _make_bar(self) -> Progress:
        description, facts = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[facts]}"))
        columns = [description, BarColumn(bar_width=None), facts]
        bar = Progress(*columns, TimeRemainingColumn(), console=self._console, auto_refresh=False, expand=True)
        bar.add_task("", total=self._run.total_steps, completed=self._run.step, facts="")
        return bar

    def _refresh_bar(self, bar: Progress, record: StepRecord) -> None:
        now = perf_counter()
        if now - self._refreshed < REFRESH_SECONDS and record.step < self._run.total_steps:
            return
        self._refreshed = now
        epoch, *facts = self._facts(record)
        *facts, speed, score = facts
        shown = [score, *facts] if self._console.width < WIDE else [score, *facts, speed]
        bar.update(
            bar.task_ids[0], description=epoch, completed=record.step, facts=" ".join(filter(None, shown)), refresh=True
        )
