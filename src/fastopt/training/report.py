"""What is said of a run before and after, and the picture of its course."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.panel import Panel
from rich.table import Table as Grid
from rich.text import Text

from fastopt.files import replacing
from fastopt.training.job import Job
from fastopt.training.metrics import TEST_PREFIX
from fastopt.training.progress import score_text

SMOOTHED_PARTS = 50  # the smooth curve averages over this part of the run
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#888888"  # told apart by colour-blind readers

Metrics = dict[str, NDArray[Any]]


def describe(console: Console, job: Job) -> None:
    """Print what is about to be trained, on what and by what."""
    config, run, problem = job.config, job.run, job.problem
    size = sum(values.size for values in run.model.parameters.values())
    clipping = f"clipped to norm {config.clip_norm:g}" if config.clip_norm else "not clipped"
    grid = Grid.grid(padding=(0, 2))
    grid.add_row("data", f"{problem.name}: {problem.data_facts}")
    grid.add_row("model", f"{problem.model_facts}, {size:,} parameters, {config.dtype}")
    grid.add_row("optimizer", f"{config.optimizer}, lr {config.lr:g}, {config.schedule}, {clipping}")
    if run.step:
        grid.add_row("resumed", f"after step {run.step:,} of {run.total_steps:,}")
    console.print(grid, soft_wrap=True)


def plot(path: Path, metrics: Metrics, job: Job) -> None:
    """Draw loss, learning rate and gradient norm over the steps into a PNG file.

    Parameters
    ----------
    path : Path
        The file, replaced as a whole.
    metrics : dict
        The columns of ``metrics.csv``.
    job : Job
        The run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(8, 8), layout="constrained")
    FigureCanvasAgg(figure)
    title = f"{job.problem.name}, {job.config.optimizer}, {job.config.schedule}"
    figure.suptitle(title, parse_math=False)  # the name of a file may have dollars
    loss, rate, norm = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    steps = metrics["step"]

    _noisy_curve(loss, steps, metrics["loss"], "training")
    held_out = metrics[TEST_PREFIX + "loss"]
    known = np.isfinite(held_out)
    loss.plot(steps[known], held_out[known], color=ORANGE, marker=".", label="held out")
    loss.set(ylabel=job.problem.loss_label, yscale="log")

    rate.plot(steps, metrics["lr"], color=BLUE)
    rate.set(ylabel="learning rate", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)

    _noisy_curve(norm, steps, metrics["grad_norm"], "gradient norm")
    if job.config.clip_norm > 0:
        norm.axhline(job.config.clip_norm, color=ORANGE, linestyle="--", label=f"clipped to {job.config.clip_norm:g}")
    norm.set(ylabel="gradient norm", xlabel="step", yscale="log")

    for axes in (loss, rate, norm):
        axes.grid(alpha=0.3)
    for axes in (loss, norm):
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))  # where few decades leave room
        # Beside the axes: a legend inside would hide a part of the curves
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.align_ylabels()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _noisy_curve(axes: Any, steps: NDArray[Any], values: NDArray[Any], label: str) -> None:
    """Draw every value in grey, and in front their running mean."""
    axes.plot(steps, values, color=GREY, linewidth=0.5, alpha=0.5)
    window = max(1, len(values) // SMOOTHED_PARTS)
    mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
    centre = steps[window // 2 :][: len(mean)]
    axes.plot(centre, mean, color=BLUE, label=label)


def summarize(console: Console, job: Job, metrics: Metrics, seconds: float) -> None:
    """Print how well the model does on held-out data, where the time went, and what the optimizer moved.

    Parameters
    ----------
    console : Console
        Where to.
    job : Job
        The complete run.
    metrics : dict
        The columns of ``metrics.csv``.
    seconds : float
        Length of the training in this process.
    """
    table = Grid.grid(padding=(0, 2))
    for column, values in metrics.items():
        if column.startswith(TEST_PREFIX):
            name = column.removeprefix(TEST_PREFIX)
            table.add_row(f"held-out {name.replace('_', ' ')}", score_text(name, values[-1]))
    if job.run.new_steps:
        _add_costs(table, job, seconds)
    console.print(table, soft_wrap=True)


def _add_costs(table: Grid, job: Job, seconds: float) -> None:
    run = job.run
    parts = {**run.model.seconds, "optimizer": run.optimizer_seconds}
    parts["data, scores, files"] = seconds - run.step_seconds
    speed = f"{run.new_samples / seconds:,.0f} {job.problem.sample_unit}/s"
    table.add_row("time", f"{seconds:.2f} s for {run.new_steps:,} steps, {speed}")
    for name, part in parts.items():
        table.add_row(f"  {name}", f"{part:.2f} s {part / seconds:5.0%}")
    optimizer, step = (1e3 * part / run.new_steps for part in (run.optimizer_seconds, run.step_seconds))
    table.add_row("optimizer's share", f"{optimizer / step:.1%} of a step, {optimizer:.3g} of {step:.3g} ms")
    moved = job.optimizer_bytes() * run.new_steps
    table.add_row("optimizer traffic", f"{moved / 1e9:.3g} GB, {moved / run.optimizer_seconds / 1e9:.3g} GB/s")


def show_sample(console: Console, sample: str) -> None:
    """Print a text that the model has made up."""
    console.print(Panel(Text(sample), title="sample", title_align="left"))
