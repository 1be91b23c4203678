"""The figure of a record: one panel for each kind of measurement that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from itertools import cycle, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, LogLocator, NullFormatter

from fastopt.benchmark.field import CONTESTANTS, RIVALS
from fastopt.benchmark.records import Quality, Record, WholeTraining
from fastopt.benchmark.runs import Entrant, Run
from fastopt.benchmark.sheets import by_problem, digits, machine_line, speed_up, task_of
from fastopt.benchmark.tasks import Task, methods
from fastopt.files import replacing

BYTES_AN_ELEMENT = 16
"""Of AdamW's arrays in float32."""

PANEL = (7.2, 4.4)
"""Width and height in inches."""


SHOWN = ("1K", "1M", "64M", "1000x1K", "policy", "resnet50", "gpt2-small")
"""Works to compare with rivals on, where all would be too many."""


class Style(NamedTuple):
    """The look of a contestant, told apart by colour and by marker."""

    color: str
    marker: str


# Paul Tol's muted palette, which colour-blind readers can tell apart; the floor is black, NumPy grey.
COLORS = ("000000", "CC6677", "999999", "882255", "332288", "88CCEE", "44AA99", "117733", "DDCC77", "AA4499", "999933")
STYLES = {
    name: Style(f"#{color}", marker)
    for name, color, marker in zip(CONTESTANTS, cycle(COLORS), cycle("_osDv^<>Pd*"), strict=False)
}

Panel = Callable[[Axes], None]


def figure(record: Record) -> Figure:
    """Return the figure of all that a record has to show.

    Raises
    ------
    ValueError
        If it has nothing.
    """
    panels = list(panels_of(record))
    if not panels:
        raise ValueError("nothing was measured that can be drawn")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    drawn = Figure((PANEL[0] * columns, PANEL[1] * rows + 0.4), layout="constrained")
    axes = drawn.subplots(rows, columns, squeeze=False).ravel()
    for panel, ax in zip(panels, axes, strict=False):
        panel(ax)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    drawn.supxlabel(machine_line(record), fontsize="x-small", color="#555555", wrap=True)
    return drawn


def save(record: Record, path: Path) -> None:
    """Draw a record into a file, of the format that its name ends in."""
    content = BytesIO()
    figure(record).savefig(content, format=path.suffix[1:].lower(), dpi=100)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())


def panels_of(record: Record) -> Iterator[Panel]:
    """Yield what draws each panel."""
    by_size = [
        run
        for run in record.runs.get("sizes") or record.runs.get("comparison", [])
        if run.seconds and is_adamw(task_of(run)) and len(task_of(run).work.shapes) == 1
    ]
    if len(by_size) > 1:
        yield partial(draw_shares, by_size, record.facts["caches"])
        yield partial(draw_times, by_size)
    compared = [run for run in record.runs.get("comparison", []) if run.seconds and is_adamw(task_of(run))]
    compared = [run for run in compared if any(e.contestant in RIVALS for e in run.seconds)]
    if compared:
        by_task: dict[Task, list[Run]] = {}
        for run in compared:
            by_task.setdefault(task_of(run), []).append(run)
        shown = {task: runs for task, runs in by_task.items() if task.work.name in SHOWN}
        yield partial(draw_rivals, by_task if len(by_task) <= len(SHOWN) else shown)
    if record.runs.get("threads"):
        yield partial(draw_threads, [run for run in record.runs["threads"] if run.seconds])
    if record.steps:
        yield partial(draw_steps, record)
    for title, fitting in by_problem(record.qualities):
        yield partial(draw_qualities, title, fitting)
    for title, fitting in by_problem(record.storages):
        yield partial(draw_storages, title, fitting)
    for model, trainings in groupby(record.trainings, key=lambda training: training.model):
        yield partial(draw_training, model, list(trainings))


def is_adamw(task: Task) -> bool:
    """Whether it is AdamW's step in float32."""
    return (task.method, task.dtype, task.action) == (methods()["adamw"], "float32", "step") and not task.fading


# ---- by size ----


def curves(runs: list[Run], value: Callable[[Run, Entrant], float]) -> dict[str, tuple[list[int], list[float]]]:
    """Return for each contestant sizes and values; of a size that was measured twice, the last."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        for entrant in run.seconds:
            found.setdefault(entrant.contestant, {})[entrant.task.work.elements] = value(run, entrant)
    return {
        name: ([size for size, _ in sorted(points.items())], [value for _, value in sorted(points.items())])
        for name, points in sorted(found.items(), key=lambda item: list(CONTESTANTS).index(item[0]))
    }


def plot_curves(ax: Axes, found: dict[str, tuple[list[int], list[float]]]) -> None:
    """Draw a line for each contestant."""
    for name, (sizes, values) in found.items():
        style = STYLES[name]
        dashes = "--" if name == "floor" else "-"
        ax.plot(sizes, values, dashes, color=style.color, marker=style.marker, markersize=4, linewidth=1.4, label=name)
    ax.set_xscale("log")
    ax.set_xlabel("elements of one array")


def draw_shares(runs: list[Run], caches: dict[str, int], ax: Axes) -> None:
    """Draw each contestant's speed as a share of the floor's, by size."""

    def share_in_percent(run: Run, entrant: Entrant) -> float:
        share = run.share_of_floor(entrant)
        return 100 * share.median if share else np.nan

    plot_curves(ax, curves(runs, share_in_percent))
    ax.set_ylim(0, 125)
    for level, capacity in caches.items():
        ax.axvline(capacity / BYTES_AN_ELEMENT, color="#BBBBBB", linewidth=0.8, zorder=0)
        limit = capacity / BYTES_AN_ELEMENT
        ax.annotate(f"{level} ", (limit, 124), ha="right", va="top", color="#777777", fontsize="small")
    ax.set_ylabel("share of the floor's speed, %")
    ax.set_title("AdamW, float32: how close to the floor")
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_times(runs: list[Run], ax: Axes) -> None:
    """Draw the time of a step, by size."""
    plot_curves(ax, curves(runs, lambda run, entrant: 1e6 * float(np.median(run.seconds[entrant]))))
    ax.set_yscale("log")
    ax.set_ylabel("time of a step, µs")
    ax.set_title("AdamW, float32: overhead, then a straight line")
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


# ---- rivals ----


def draw_rivals(tasks: dict[Task, list[Run]], ax: Axes) -> None:
    """Draw how many times as long the rivals take as fastopt, for each work."""
    present = {entrant.contestant for runs in tasks.values() for run in runs for entrant in run.seconds}
    rivals = [name for name in RIVALS if name in present]
    height = 0.8 / len(rivals)
    for row, name in enumerate(rivals):
        ratios = [speed_up(runs, Entrant(name, task)) for task, runs in tasks.items()]
        places = [place + (row - (len(rivals) - 1) / 2) * height for place, ratio in enumerate(ratios) if ratio]
        known = [ratio for ratio in ratios if ratio]
        middles = np.array([ratio.median for ratio in known])
        errors = np.abs(np.array([[ratio.low for ratio in known], [ratio.high for ratio in known]]) - middles)
        ax.barh(places, middles - 1, height, 1, color=STYLES[name].color, label=name)
        ax.errorbar(middles, places, xerr=errors, fmt="none", ecolor="#333333", elinewidth=0.7)
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if np.divide(*ax.get_xlim()) > 1e-2 else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(range(len(tasks)), [task.work.name for task in tasks])
    ax.set_ylim(len(tasks) - 0.5, -0.5)
    ax.set_xlabel("time of a step, in those of fastopt's")
    ax.set_title("AdamW, float32: rivals")
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


# ---- threads ----


def draw_threads(runs: list[Run], ax: Axes) -> None:
    """Draw the speed by number of threads, in that of one."""
    most = 1
    for run, dashes in zip(runs, cycle(("-", "--", ":")), strict=False):
        for name in dict.fromkeys(entrant.contestant for entrant in run.seconds):
            own = {e.task.threads: e for e in run.seconds if e.contestant == name}
            most = max(most, *own)
            speeds = [run.ratio(own[1], own[count]).median for count in own]
            style = STYLES[name]
            label = f"{name}, {task_of(run).work}"
            ax.plot(list(own), speeds, dashes, color=style.color, marker=style.marker, markersize=5, label=label)
    ax.plot((1, most), (1, most), color="#BBBBBB", linewidth=0.8, zorder=0)
    ax.set_xticks(range(1, most + 1) if most <= 16 else np.linspace(1, most, 9, dtype=int))
    ax.set_xlabel("threads")
    ax.set_ylabel("speed, in that of one thread")
    ax.set_title("AdamW, float32: threads")
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


# ---- whole steps and trainings ----


def draw_steps(record: Record, ax: Axes) -> None:
    """Draw the time of training steps and the optimizers' parts, in torch's default."""
    place = 0.0
    ticks, labels = [], []
    optimizers = dict.fromkeys(step.optimizer for step in record.steps)
    colors = {name: f"#{color}" for name, color in zip({**STYLES, **optimizers}, cycle(COLORS), strict=False)}
    for model, group in groupby(record.steps, key=lambda step: step.model):
        steps = list(group)
        unit = float(np.median(steps[0].seconds))
        for step in steps:
            whole = float(np.median(step.seconds)) / unit
            ax.barh(place, whole * (1 - step.share), 0.8, color="#DDDDDD")
            ax.barh(place, whole * step.share, 0.8, whole * (1 - step.share), color=colors[step.optimizer])
            ax.annotate(f" {digits(1e3 * unit * whole)} ms", (whole, place), va="center", fontsize="x-small")
            place += 1
        ticks.append(place - (len(steps) + 1) / 2)
        labels.append(model.replace(" ", "\n", 1))
        place += 0.7
    for optimizer in optimizers:
        ax.barh(0, 0, color=colors[optimizer], label=optimizer)
    ax.barh(0, 0, color="#DDDDDD", label="forward and backward")
    ax.set_yticks(ticks, labels, fontsize="small")
    ax.set_ylim(place - 0.7, -0.6)
    ax.margins(x=0.15)
    ax.set_xlabel("time of a training step, in torch's default")
    ax.set_title("Training steps: what the optimizer takes")
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_training(model: str, trainings: list[WholeTraining], ax: Axes) -> None:
    """Draw the loss against the seconds."""
    for training in trainings:
        ax.plot(training.seconds, training.losses, color=STYLES[training.optimizer].color, label=training.optimizer)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(LogFormatter())
    ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    ax.set_xlabel("seconds")
    ax.set_ylabel("training loss, smoothed")
    ax.set_title(f"fastopt train: {model}")
    ax.legend(fontsize="small", frameon=False)


# ---- what optimizers reach ----


def draw_qualities(title: str, qualities: list[Quality], ax: Axes) -> None:
    """Draw each optimizer's losses, best above; the tries at other rates behind them, in grey."""
    ordered = sorted(qualities, key=lambda quality: float(quality.losses.mean()))
    for row, quality in enumerate(ordered):
        tries = [trial.found for trial in quality.trials if np.isfinite(trial.found)]
        ax.plot(tries, [row] * len(tries), "|", color="#BBBBBB", markersize=5)
        ax.plot(quality.losses, [row] * len(quality.losses), "o", color="#332288", markersize=2.5)
        ax.plot(quality.losses.mean(), row, "d", color="#CC6677", markersize=5)
    ax.plot([], [], "d", color="#CC6677", label="mean of the seeds")
    ax.plot([], [], "o", color="#332288", markersize=2.5, label="a seed at the best rate")
    ax.plot([], [], "|", color="#BBBBBB", label="rates tried, another seed")
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(range(len(ordered)), [quality.optimizer for quality in ordered], fontsize="x-small")
    ax.set_ylim(len(ordered) - 0.5, -0.5)
    ax.grid(axis="y", color="#EEEEEE")
    ax.set_xlabel("held-out loss")
    ax.set_title(title)


def draw_storages(title: str, qualities: list[Quality], ax: Axes) -> None:
    """Draw each storage's losses less those of float32 from the same seeds, and how far those lie apart."""
    plain = qualities[0].losses
    ax.axvspan(plain.min() - plain.mean(), plain.max() - plain.mean(), color="#EEEEEE", label="seeds of float32")
    ax.axvline(0, color="black", linewidth=0.8)
    for row, quality in enumerate(qualities[1:]):
        differences = quality.losses - plain
        ax.plot(differences, [row] * len(differences), "o", color="#332288", markersize=3)
        ax.plot(differences.mean(), row, "d", color="#CC6677", markersize=6)
    ax.plot([], [], "o", color="#332288", markersize=3, label="a seed")
    ax.plot([], [], "d", color="#CC6677", label="mean of the seeds")
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.set_yticks(range(len(qualities) - 1), [quality.storage for quality in qualities[1:]])
    ax.set_ylim(len(qualities) - 1.5, -0.5)
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel("held-out loss, less that of float32")
    ax.set_title(f"{qualities[0].optimizer}: {title}")
