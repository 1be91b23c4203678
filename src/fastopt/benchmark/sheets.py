"""The tables: what was measured as titles and rows of text, for the terminal and for the documents alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from fastopt.benchmark import works
from fastopt.benchmark.field import CONTESTANTS, OURS, RIVALS
from fastopt.benchmark.machine import level_of
from fastopt.benchmark.measure import Ratio, Seconds
from fastopt.benchmark.records import PLAIN, Change, Quality, Record, WholeStep, WholeTraining
from fastopt.benchmark.runs import Absence, Entrant, Run
from fastopt.benchmark.targets import Outcome, Target
from fastopt.benchmark.tasks import ITEM_SIZES, Task, methods, moved_bytes, state_bytes
from fastopt.methods.base import STORED_AS

ACTION_NAMES = {
    "step": "step",
    "clip": "clip by norm and step",
    "clip+zero": "clip by norm, step, zero the gradients",
}


@dataclass(frozen=True)
class Sheet:
    """A table."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]]
    notes: list[str] = field(default_factory=list)
    """What is to be said below it."""


def all_sheets(record: Record, targets: Sequence[Target], changes: Sequence[Change] | None) -> Iterator[Sheet]:
    """Yield a table of everything that a record has, of targets, and of what changed if there is a baseline."""
    yield from comparisons(record)
    if record.runs.get("sizes"):
        yield size_sheet(record)
    if record.runs.get("threads"):
        yield thread_sheet(record)
    if record.steps:
        yield step_sheet(record.steps)
    if record.trainings:
        yield training_sheet(record.trainings)
    if record.qualities:
        yield quality_sheet(record)
    if record.storages:
        yield storage_sheet(record)
    if targets:
        yield target_sheet(record, targets)
    if changes is not None:
        yield change_sheet(changes)


# ---- cells ----

PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def digits(number: float) -> str:
    """Return a number with three digits and no exponent."""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def si(number: float) -> str:
    """Return a number with the prefix of a power of 1000."""
    unit, name = next(((u, n) for u, n in PREFIXES if number >= u), PREFIXES[-1])
    return f"{digits(number / unit)} {name}"


def time(seconds: float) -> str:
    """Return a time."""
    return f"{si(seconds)}s"


def size(count: float) -> str:
    """Return a number of bytes."""
    return f"{si(count)}B"


def times(ratio: Ratio) -> str:
    """Return a ratio with the interval that it lies in."""
    return f"{digits(ratio.median)}x ({digits(ratio.low)} to {digits(ratio.high)})"


def ranking(ratio: Ratio) -> str:
    """Return how many times as fast, where the interval allows to say which is faster."""
    return times(ratio) if ratio.is_decided else f"unclear ({digits(ratio.low)} to {digits(ratio.high)})"


def percent(share: float) -> str:
    """Return a share."""
    return f"{100 * share:.0f} %"


def spread(seconds: Seconds) -> str:
    """Return half the distance of the quartiles, as a part of the median."""
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    return f"±{percent((high - low) / 2 / middle)}"


# ---- comparisons ----

COMPARISON_COLUMNS = ("", "step", "spread", "elem/s", "GB/s", "of floor", "fastopt's speed-up")


def comparisons(record: Record) -> list[Sheet]:
    """Return a table for each optimizer, dtype, action and number of threads, with all its works."""
    by_kind: dict[str, list[Run]] = {}
    for run in record.runs.get("comparison", []):
        if run.seconds:
            by_kind.setdefault(kind(task_of(run)), []).append(run)
    return [comparison(title, runs, record.facts["caches"]) for title, runs in by_kind.items()]


def task_of(run: Run) -> Task:
    """Return the task of a run that has one."""
    return next(iter(run.seconds)).task


def kind(task: Task) -> str:
    """Return what a task is, without its work."""
    threads = "1 thread" if task.threads == 1 else f"{task.threads} threads"
    return f"{task.method}, {task.dtype}: {ACTION_NAMES[task.action]}, {threads}"


def comparison(title: str, runs: Sequence[Run], caches: dict[str, int]) -> Sheet:
    """Return the table of some works."""
    rows: list[Sequence[str]] = []
    for run in runs:
        rows.append([load(task_of(run), caches)])
        rows += [comparison_row(run, entrant) for entrant in run.seconds]
    absences = left_out(absence for run in runs for absence in run.absences)
    return Sheet(title, COMPARISON_COLUMNS, rows, [storages_line(task_of(runs[0])), *absences])


def storages_line(task: Task) -> str:
    """Return what a step moves and what states keep, for each way to store them."""
    cls, options, item_size = task.method.cls, task.method.options, ITEM_SIZES[task.dtype]
    own = state_bytes(cls, **options) * item_size / ITEM_SIZES["float32"]
    found = (
        {"": own} if task.dtype == "float64" else {"": own, **{d: state_bytes(cls, d, **options) for d in STORED_AS}}
    )
    cells = [
        f"{f'with states in {dtype} ' if dtype else 'a step moves '}{moved_bytes(kept, item_size):.3g} and "
        f"{'' if dtype else 'states keep '}{kept:.3g}"
        for dtype, kept in found.items()
        if not dtype or kept != own
    ]
    return f"Bytes an element of a matrix: {'; '.join(cells)}"


def load(task: Task, caches: dict[str, int]) -> str:
    """Return what a task works on, how much that is, and where it lies."""
    level = level_of(task.footprint, caches)
    arrays = len(task.work.shapes)
    names = [task.work.name, f"{arrays} arrays" if arrays > 1 and task.work.name in works.MODELS else ""]
    return ", ".join(filter(None, [*names, size(task.footprint), level]))


def comparison_row(run: Run, entrant: Entrant) -> list[str]:
    """Return the row of a contestant."""
    seconds = run.seconds[entrant]
    median = float(np.median(seconds))
    counterpart = run.counterpart(entrant)
    return [
        entrant.contestant,
        time(median),
        spread(seconds),
        si(entrant.task.work.elements / median),
        digits(moved_by(entrant) / median / 1e9),
        share(run, entrant),
        ranking(run.ratio(entrant, counterpart)) if counterpart and entrant.contestant not in OURS else "",
    ]


def moved_by(entrant: Entrant) -> float:
    """Return how many bytes an entrant's step has to move."""
    task, stored = entrant.task, CONTESTANTS[entrant.contestant].state_dtype
    if stored is None:
        return task.bytes
    kept = state_bytes(task.method.cls, stored, **task.method.options)
    return moved_bytes(kept, ITEM_SIZES[task.dtype]) * task.work.elements


def share(run: Run, entrant: Entrant) -> str:
    """Return an entrant's share of the floor's speed."""
    found = run.share_of_floor(entrant)
    return percent(found.median) if found else ""


def left_out(absences: Iterable[Absence]) -> list[str]:
    """Return a line for each contestant and reason."""
    return list(dict.fromkeys(f"{absence.entrant.contestant}: {absence.reason}" for absence in absences))


# ---- targets ----


def target_sheet(record: Record, targets: Sequence[Target]) -> Sheet:
    """Return the table of targets."""
    outcomes = [target.judge(record) for target in targets]
    rows: list[Sequence[str]] = []
    for against, group in groupby(outcomes, key=lambda outcome: outcome.target.against):
        rows.append([f"Against {against}"])
        rows += [target_row(outcome) for outcome in group]
    absences = (absence for run in record.runs.get("targets", []) for absence in run.absences)
    return Sheet("Targets", ("", "wanted", "measured", "time", ""), rows, left_out(absences))


def target_row(outcome: Outcome) -> list[str]:
    """Return what was wanted and what came of it."""
    figures = [times(outcome.measured.ratio), time(outcome.measured.seconds)] if outcome.measured else ["", ""]
    return [outcome.target.what, outcome.target.wanted, *figures, outcome.verdict]


# ---- sizes, threads ----


def size_sheet(record: Record) -> Sheet:
    """Return the cost of a step against the size of one array, and how many times as long rivals take."""
    runs = [run for run in record.runs.get("sizes", []) if run.seconds]
    rivals = [name for name in RIVALS if any(name == entrant.contestant for run in runs for entrant in run.seconds)]
    return Sheet(
        "AdamW, float32: cost against size",
        ("elements", "", "fastopt", "an element", "of floor", *rivals),
        [size_row(run, rivals, record.facts["caches"]) for run in runs],
    )


def size_row(run: Run, rivals: Sequence[str], caches: dict[str, int]) -> list[str]:
    """Return the row of a size."""
    task = task_of(run)
    ours = Entrant("fastopt", task)
    seconds = float(np.median(run.seconds[ours]))
    return [
        si(task.work.elements).strip(),
        level_of(task.footprint, caches),
        time(seconds),
        time(seconds / task.work.elements),
        share(run, ours),
        *(headline_cell([run], Entrant(name, task)) for name in rivals),
    ]


def thread_sheet(record: Record) -> Sheet:
    """Return what more threads gain."""
    rows: list[Sequence[str]] = []
    for run in record.runs.get("threads", []):
        if run.seconds:
            rows.append([load(task_of(run), record.facts["caches"])])
            rows += [thread_row(run, entrant) for entrant in run.seconds]
    return Sheet("AdamW, float32: threads", ("", "threads", "step", "of floor", "in speed of one thread"), rows)


def thread_row(run: Run, entrant: Entrant) -> list[str]:
    """Return the row of a contestant with some threads."""
    alone = replace(entrant, task=replace(entrant.task, threads=1))
    return [
        entrant.contestant,
        str(entrant.task.threads),
        time(float(np.median(run.seconds[entrant]))),
        share(run, entrant),
        times(run.ratio(alone, entrant)) if alone in run.seconds and alone != entrant else "",
    ]


# ---- whole steps, whole trainings ----


def step_sheet(steps: Sequence[WholeStep]) -> Sheet:
    """Return the table of whole training steps."""
    rows: list[Sequence[str]] = []
    for model, group in groupby(steps, key=lambda step: step.model):
        by_optimizer = {step.optimizer: step for step in group}
        ours = [step.seconds for step in by_optimizer.values() if step.optimizer.startswith("fastopt")]
        best = min(ours, key=lambda seconds: float(np.median(seconds)))
        rows.append([model])
        rows += [
            [
                step.optimizer,
                time(float(np.median(step.seconds))),
                percent(step.share),
                size(step.peak_memory) if step.peak_memory else "",
                "" if step.optimizer.startswith("fastopt") else ranking(Ratio.of(step.seconds, best)),
            ]
            for step in by_optimizer.values()
        ]
    columns = ("", "step", "optimizer", "memory", "fastopt's speed-up")
    return Sheet("Training steps: forward, backward, clip, step, zero_grad", columns, rows)


def training_sheet(trainings: Sequence[WholeTraining]) -> Sheet:
    """Return the table of whole trainings."""
    rows: list[Sequence[str]] = []
    for model, group in groupby(trainings, key=lambda training: training.model):
        several = list(group)
        loss = common_loss(several)
        rows.append([f"{model}, to a loss of {loss:.3g}"])
        rows += [[t.optimizer, time(t.seconds_to(loss)), percent(t.share)] for t in several]
    return Sheet("Trainings: fastopt train", ("", "time", "optimizer"), rows)


def common_loss(trainings: Sequence[WholeTraining]) -> float:
    """Return the lowest loss that every one of them reached."""
    return max(float(training.losses.min()) for training in trainings)


# ---- what optimizers reach ----


def by_problem(qualities: Sequence[Quality]) -> Iterator[tuple[str, list[Quality]]]:
    """Yield each problem's title, and those that fit it."""
    for _, group in groupby(qualities, key=lambda quality: quality.problem):
        fitting = [quality for quality in group if quality.trials]
        if fitting:
            yield f"{fitting[0].title}, {fitting[0].steps} steps", fitting


def quality_sheet(record: Record) -> Sheet:
    """Return what optimizers reach with the same number of steps, best first."""
    rows: list[Sequence[str]] = []
    for title, fitting in by_problem(record.qualities):
        rows.append([title])
        rows += [quality_row(quality) for quality in sorted(fitting, key=lambda quality: float(quality.losses.mean()))]
    return Sheet(
        "Quality: held-out loss at the best rate",
        ("", "loss", "seeds", "rate", "optimizer", "run", "states"),
        rows,
        [
            "loss: mean of seeds that did not choose the rate; seeds: half of what lies between them. Losses nearer to "
            "each other than that are not told apart.",
            f"rate: the best of {most_tries(record.qualities)} for each, from the default in tens, then between; "
            "*: it is the least or the largest of them.",
            "optimizer: its part of a step; run: all steps; the least of all runs, which did not take turns.",
            "states: bytes kept beside each element of the parameters. All other options are the class's defaults.",
            *without_trials(record.qualities),
        ],
    )


def quality_row(quality: Quality) -> list[str]:
    """Return the row of an optimizer."""
    whole = [trial for trial in quality.trials if trial.loss is not None]
    return [
        quality.optimizer,
        *loss_cells(quality),
        f"{'*' if quality.is_at_edge else ''}{quality.lr:.2g}",
        time(min(trial.optimizer_seconds for trial in whole) / quality.steps) if whole else "",
        time(min(trial.seconds for trial in whole)) if whole else "",
        f"{quality.state_bytes:.3g}",
    ]


def loss_cells(quality: Quality) -> list[str]:
    """Return the mean loss, and how far the seeds are apart."""
    losses = quality.losses
    if not np.isfinite(losses).all():
        return ["diverged", ""]
    return [f"{losses.mean():.4f}", f"±{np.ptp(losses) / 2:.4f}"]


def most_tries(qualities: Sequence[Quality]) -> int:
    """Return at how many rates an optimizer was tried."""
    return max((len({trial.lr for trial in quality.trials}) for quality in qualities), default=0)


def without_trials(qualities: Sequence[Quality]) -> list[str]:
    """Return a line for each that does not fit a problem, and why."""
    left = (quality for quality in qualities if not quality.trials)
    return list(dict.fromkeys(f"{q.problem}: without {name_of(q)}: {q.obstacle}" for q in left))


def name_of(quality: Quality) -> str:
    """Return what tells it from the others of its table."""
    return quality.optimizer if quality.storage == PLAIN else quality.storage


def storage_sheet(record: Record) -> Sheet:
    """Return what becomes of the loss with numbers stored in fewer bits."""
    rows: list[Sequence[str]] = []
    for title, fitting in by_problem(record.storages):
        rows.append([f"{title}, rate {fitting[0].lr:.2g}"])
        rows += [storage_row(quality, fitting[0]) for quality in fitting]
    optimizer = record.storages[0].optimizer
    return Sheet(
        f"Storages: held-out loss of {optimizer}",
        ("", "loss", "seeds", "difference", "within", "states", "moved"),
        rows,
        [
            "states ...: weights in float32; master ..., rounding ...: weights in bfloat16, states in float32.",
            "difference: to float32 with the same start and batches, mean of the seeds ± half of what lies between.",
            "within: whether the mean lies between the least and the largest of float32's seeds; all +: each is worse.",
            "states: bytes kept beside each element of the parameters; moved: what a step reads and writes for it.",
            *without_trials(record.storages),
        ],
    )


def storage_row(quality: Quality, plain: Quality) -> list[str]:
    """Return the row of a storage."""
    differences = quality.losses - plain.losses
    low, high = plain.losses.min(), plain.losses.max()
    compared = [
        f"{differences.mean():+.4f} ±{np.ptp(differences) / 2:.4f}",
        ("yes" if low <= quality.losses.mean() <= high else "no") + (", all +" if differences.min() > 0 else ""),
    ]
    return [
        quality.storage,
        *loss_cells(quality),
        *(["", ""] if quality is plain else compared),
        f"{quality.state_bytes:.3g}",
        f"{quality.moved_bytes:.3g}",
    ]


# ---- what became slower ----


def change_sheet(changes: Sequence[Change]) -> Sheet:
    """Return the table of what became slower, by the share of the floor's speed."""
    slower = [change for change in changes if change.is_slower]
    rows: list[Sequence[str]] = [
        [
            change.entrant.contestant,
            f"{kind(change.entrant.task)}, {change.entrant.task.work}",
            percent(change.before.median),
            percent(change.now.median),
        ]
        for change in sorted(slower, key=lambda change: change.now.median / change.before.median)
    ]
    note = f"{len(slower)} of {len(changes)} figures that both have became slower than before."
    return Sheet("Slower than the baseline, as a share of the floor's speed", ("", "", "before", "now"), rows, [note])


# ---- for the documents ----

HEADLINE = (
    ("1K", "step"),
    ("1M", "step"),
    ("64M", "step"),
    ("1000x1K", "step"),
    ("policy", "clip"),
    ("resnet50", "clip"),
    ("gpt2-small", "clip"),
)


def headline(record: Record) -> Sheet:
    """Return AdamW in float32: times of fastopt, and how many times as long others take."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in record.runs.get("comparison", []):
        task = task_of(run) if run.seconds else None
        if task and (task.method, task.dtype) == (methods()["adamw"], "float32"):
            found.setdefault((task.work.name, task.action), []).append(run)
    by_task = [found[key] for key in HEADLINE if key in found]
    rivals = [name for name in RIVALS if any(name == e.contestant for runs in by_task for r in runs for e in r.seconds)]
    return Sheet(
        "AdamW, float32", ("", "fastopt", "of the floor", *rivals), [headline_row(runs, rivals) for runs in by_task]
    )


def headline_row(runs: Sequence[Run], rivals: Sequence[str]) -> list[str]:
    """Return the row of a task, whose rivals may be in several runs."""
    first = runs[0]
    task = task_of(first)
    ours = Entrant("fastopt", task)
    return [
        f"{task.work.name}, {ACTION_NAMES[task.action]}",
        time(float(np.median(first.seconds[ours]))),
        share(first, ours),
        *(headline_cell(runs, Entrant(name, task)) for name in rivals),
    ]


def headline_cell(runs: Sequence[Run], entrant: Entrant) -> str:
    """Return how many times as long a rival takes, in parentheses where that is not sure to be more or less."""
    ratio = speed_up(runs, entrant)
    if ratio is None:
        return ""
    return f"{digits(ratio.median)}x" if ratio.is_decided else f"({digits(ratio.median)}x)"


def speed_up(runs: Sequence[Run], entrant: Entrant) -> Ratio | None:
    """Return how many times as long an entrant takes as ours, in the first run that has both."""
    for run in runs:
        ours = run.counterpart(entrant)
        if ours and entrant in run.seconds:
            return run.ratio(entrant, ours)
    return None


RULE_WORKS = (("64M", "float32"), ("64M", "float64"), ("1M", "float32"), ("1M", "float64"))


def rule_sheet(record: Record) -> Sheet:
    """Return every kernel's share of the floor's speed, from memory and from the cache, and NumPy's time."""
    runs: dict[tuple[str, str, str], Run] = {}
    for run in [*record.runs.get("comparison", []), *record.runs.get("targets", [])]:
        for entrant in run.seconds:
            if entrant.contestant == "floor" and entrant.task.action == "step":
                runs[entrant.task.method.rule, entrant.task.work.name, entrant.task.dtype] = run
    recorded = {rule for rule, _, _ in runs}
    rules = dict.fromkeys(method.rule for method in methods().values() if method.rule in recorded)
    columns = ["", *(f"{work}, {dtype}" for work, dtype in RULE_WORKS), "NumPy, 1M, float32"]
    return Sheet("Share of the floor's speed", columns, [rule_row(rule, runs) for rule in rules])


def rule_row(rule: str, runs: dict[tuple[str, str, str], Run]) -> list[str]:
    """Return the row of a kernel."""
    row = [rule]
    for work, dtype in RULE_WORKS:
        run = runs.get((rule, work, dtype))
        ours = next((e for e in run.seconds if e.contestant == "fastopt"), None) if run else None
        row.append(share(run, ours) if run and ours else "")
    run = runs.get((rule, "1M", "float32"))
    numpy = next((e for e in run.seconds if e.contestant == "NumPy"), None) if run else None
    return [*row, headline_cell([run], numpy) if run and numpy else ""]


BUSY = 0.5
"""A load at the start of a run from which on others take time from it."""


def machine_line(record: Record) -> str:
    """Return what was measured where."""
    facts: dict[str, Any] = record.facts
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    caches = ", ".join(f"{size} {level}" for level, size in readable_caches(facts))
    load = facts.get("load") or 0.0  # (earlier records have none)
    busy = f" shared with others (load {load:.1f} before)" if load > BUSY else ""
    return (
        f"{facts['cpu']}, {facts['cores']} cores ({caches}){busy}, {facts['isa']}; fastopt {facts['fastopt']}, "
        f"Python {facts['python']}, {libraries}; {record.date}"
    )


def readable_caches(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield level and size of the caches."""
    for level, count in facts["caches"].items():
        yield level, f"{count / 2**20:.3g} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
