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
from fastopt.training.assessment import Assessment
from fastopt.training.job import Job
from fastopt.training.metrics import TEST_PREFIX
from fastopt.training.progress import score_text
from fastopt.training.table_problem import TableProblem

SMOOTHED_PARTS = 50  # the smooth curve averages over this part of the run
MANY_COLUMNS = 20  # of which a table shows each
MISTAKES = 5  # the commonest ones are shown
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
    added = f", {config.accumulate} batches a step" if config.accumulate > 1 else ""
    grid.add_row("optimizer", f"{config.optimizer}, lr {config.lr:g}, {config.schedule}, {clipping}{added}")
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


def show_columns(console: Console, job: Job) -> None:
    """Print what was made of each column of a table: its type, what is missing, how many kinds, and what was done."""
    data = job.problem.data if isinstance(job.problem, TableProblem) else None
    if data is None or data.found is None:
        return
    found, learned = data.found, {column.name: column for column in data.columns}
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("column", "taken as"):
        grid.add_column(heading, overflow="fold")
    for heading in ("missing", "different"):
        grid.add_column(heading, justify="right")
    grid.add_column("", overflow="fold", ratio=1)
    plain = []
    for name, finding in found.findings.items():
        column = learned.get(name)
        notes = [finding.note] if finding.note else []
        if column and column.has_missing and column.kind != "category":
            notes.append(f"missing cells: {column.median:.6g}, and a feature that tells where")
        if column and column.has_other:
            notes.append(f"the {len(column.kinds)} commonest, and one for all others")
        if column and column.kind == "number" and not notes and not finding.missing:
            plain.append(name)
            if len(found.findings) > MANY_COLUMNS:
                continue
        missing, kinds = (f"{count:,}" if count else "-" for count in (finding.missing, finding.kinds))
        grid.add_row(Text(name), column.kind if column else "left out", missing, kinds, Text("; ".join(notes)))
    for name in found.reading.drop:
        grid.add_row(Text(name), "left out", "", "", "as asked")
    if grid.row_count:
        console.print(grid)
    if len(found.findings) > MANY_COLUMNS and plain:
        more = " more" if grid.row_count else ""
        console.print(f"{len(plain):,}{more} columns of numbers, none of them missing", highlight=False)
    if found.unlabelled:
        console.print(
            f"{found.unlabelled:,} rows without {found.target.name} are left out", markup=False, highlight=False
        )
    console.print()


def summarize(console: Console, job: Job, assessment: Assessment, seconds: float) -> None:
    """Print how well the model does on held-out data, where the time went, and what the optimizer moved.

    Parameters
    ----------
    console : Console
        Where to.
    job : Job
        The complete run.
    assessment : Assessment
        How good the model is.
    seconds : float
        Length of the training in this process.
    """
    table = Grid.grid(padding=(0, 2))
    for name, value in assessment.scores.items():
        if isinstance(value, float):
            table.add_row(f"held-out {name.replace('_', ' ')}", score_text(name, value))
    table.add_row("without learning", Text(assessment.baseline))
    if job.run.new_steps:
        _add_costs(table, job, seconds)
    if "classes" in assessment.scores:
        _show_classes(console, assessment.scores["classes"], np.array(assessment.scores["confusion"]))
    console.print()
    console.print(table, soft_wrap=True)


def _show_classes(console: Console, classes: dict[str, dict[str, Any]], confusion: NDArray[Any]) -> None:
    """Print precision and recall of each class, and beside them the confusion matrix where it fits."""
    for has_matrix in (True, False):
        grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold")
        grid.add_column("class")
        headings = [*classes] * has_matrix + ["rows", "precision", "recall"]
        for heading in headings:
            grid.add_column(Text(heading), justify="right", no_wrap=True)
        for (name, facts), counts in list(zip(classes.items(), confusion, strict=True))[:MANY_COLUMNS]:
            cells = [str(count) if count else "." for count in counts] * has_matrix
            shares = ["-" if facts[key] is None else f"{facts[key]:.1%}" for key in ("precision", "recall")]
            grid.add_row(Text(name), *cells, f"{facts['rows']:,}", *shares)
        if not has_matrix or (len(classes) <= MANY_COLUMNS and console.measure(grid).minimum <= console.width):
            break
    console.print()
    if has_matrix:
        console.print("held-out rows of each class, by what they were taken for", highlight=False)
    console.print(grid)
    if len(classes) > MANY_COLUMNS:
        console.print(f"... and {len(classes) - MANY_COLUMNS} more classes, in scores.json", highlight=False)
    mistakes = [(count, row, column) for (row, column), count in np.ndenumerate(confusion) if row != column and count]
    if not has_matrix and mistakes:
        names = list(classes)
        worst = sorted(mistakes, key=lambda mistake: (-mistake[0], mistake[1:]))[:MISTAKES]
        said = ", ".join(f"{names[row]} for {names[column]} ({count})" for count, row, column in worst)
        console.print(f"most often taken wrongly: {said}", highlight=False)


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
    if not job.problem.steps_all:
        return
    moved = job.optimizer_bytes() * run.new_steps
    table.add_row("optimizer traffic", f"{moved / 1e9:.3g} GB, {moved / run.optimizer_seconds / 1e9:.3g} GB/s")


def show_sample(console: Console, sample: str) -> None:
    """Print a text that the model has made up."""
    console.print(Panel(Text(sample), title="sample", title_align="left"))
