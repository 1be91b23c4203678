"""Which measurements there are to be: who takes turns with whom, on what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from fastopt.benchmark import works
from fastopt.benchmark.field import CONTESTANTS, OURS, RIVALS, company
from fastopt.benchmark.records import Record
from fastopt.benchmark.runs import Entrant, perform, room
from fastopt.benchmark.targets import TORCH, Target, runs_for
from fastopt.benchmark.tasks import ACTIONS, Method, Task, methods
from fastopt.optimizers import registry

if TYPE_CHECKING:
    from fastopt.training.config import ModelName

QUICK_WORKS = ("1K", "1M", "16M", "1000x1K", "policy")

MATRICES = "block"
"""What is stepped by optimizers for matrices alone."""

SIZES = tuple(str(round(10 ** (half / 2))) for half in range(4, 17))
"""From 1e2 to 1e8 elements, two a decade."""

LARGE = 20_000_000
"""Elements from which the slowest rivals take many seconds a round, or minutes to be compiled for many shapes."""

SLOW_RIVALS = ("NumPy", "torchao 8 bit")

FAST_RIVALS = ("torch", "torch fused", "DeepSpeed", "optax")
"""Who clips such as well, where time is short."""

STREAM_SPEED = 3e8
"""About how many bytes a second of all entrants' arrays together a run gets through, from building them to the end."""

AfterRound = Callable[[float], object]


class Job(NamedTuple):
    """Something to be measured."""

    title: str
    seconds: float
    """About how long it takes."""
    measure: Callable[[Record, AfterRound], None]
    """Measures, adds it to the record, and tells how much is done meanwhile."""


# ---- runs ----


def run_of(section: str, entrants: Sequence[Entrant], seconds: float, divisible: bool = False) -> Job:
    """Return the job of a run; a divisible one becomes several where not all fit into memory at once."""
    task = entrants[0].task
    title = ", ".join([f"{section}: {task.method}", task.work.name, task.dtype, *([task.action] if task.clips else [])])
    whole = seconds + sum(entrant.task.footprint for entrant in entrants) / STREAM_SPEED
    return Job(title, whole, partial(add_runs if divisible else add_run, section, entrants, seconds))


def add_run(section: str, entrants: Sequence[Entrant], seconds: float, record: Record, after_round: AfterRound) -> None:
    """Make a run."""
    record.runs.setdefault(section, []).append(perform(entrants, seconds, after_round))


def add_runs(
    section: str, entrants: Sequence[Entrant], seconds: float, record: Record, after_round: AfterRound
) -> None:
    """Make as many runs, each with ours, as it takes with the memory that earlier ones have left."""
    task = entrants[0].task
    rivals = [entrant.contestant for entrant in entrants if entrant.contestant not in OURS]
    for batch in batches(rivals, room(task)):
        add_run(section, on_task(task, batch), seconds, record, after_round)


def on_task(task: Task, rivals: Sequence[str]) -> list[Entrant]:
    """Return entrants on one task, ours and rivals, in the order of the field."""
    wanted = {*company(rivals), *rivals}
    return [Entrant(name, task) for name in CONTESTANTS if name in wanted]


def comparison(
    chosen: Sequence[Method],
    work_names: Sequence[str],
    dtypes: Sequence[str],
    actions: Sequence[str],
    rivals: Sequence[str],
    threads: int,
    seconds: float = 1.0,
) -> Iterator[Job]:
    """Yield runs of fastopt and rivals on every combination."""
    for method, dtype, action in product(chosen, dtypes, actions):
        for name in fitting(method, work_names):
            task = Task(method, works.find(name), dtype, action, threads)
            yield run_of("comparison", on_task(task, rivals), seconds, divisible=True)


def fitting(method: Method, names: Sequence[str]) -> Sequence[str]:
    """Return the works that a method can step; if none of them, the matrices of a block."""
    return [name for name in names if method.obstacle(works.find(name)) is None] or [MATRICES]


def batches(rivals: Sequence[str], places: int | None) -> Iterator[Sequence[str]]:
    """Cut rivals into as few runs as there is memory for, each of which has ours as well."""
    count = len(rivals) if places is None else max(1, places - len(OURS))
    for start in range(0, max(1, len(rivals)), max(1, count)):
        yield rivals[start : start + count]


def of_targets(wanted: Sequence[Target]) -> Iterator[Job]:
    """Yield what decides targets."""
    for entrants in runs_for(wanted):
        yield run_of("targets", entrants, 1.5)
    if find_spec("torch"):
        threads = max(entrant.task.threads for entrants in runs_for(wanted) for entrant in entrants)
        yield from of_training_steps(threads)
        yield from of_trainings()


def of_sizes(threads: int) -> Iterator[Job]:
    """Yield runs of AdamW from 1e2 to 1e8 elements."""
    for name in SIZES:
        task = Task(methods()["adamw"], works.find(name), threads=threads)
        rivals = ("torch fused",) if task.work.elements > LARGE else ("torch fused", "NumPy")
        yield run_of("sizes", on_task(task, rivals), 1.0)


def of_threads(most: int) -> Iterator[Job]:
    """Yield runs of AdamW on 1, 2, 4, ... and `most` threads, from a cache and from memory."""
    counts = sorted({most, *(2**k for k in range(most.bit_length()))})
    for name in ("1M", "16M"):
        task = Task(methods()["adamw"], works.find(name))
        by_count = [on_task(replace(task, threads=count), ["torch fused"]) for count in counts]
        yield run_of("threads", [entrant for entrants in by_count for entrant in entrants], 1.5)


# ---- what needs torch ----


def of_training_steps(threads: int) -> Iterator[Job]:
    """Yield whole training steps of several models."""
    from fastopt.benchmark import whole
    from fastopt.benchmark.models import MODELS

    for model in MODELS:

        def measure(record: Record, after_round: AfterRound, model: str = model) -> None:
            record.steps += whole.whole_steps(model, threads, 2.0, after_round)

        yield Job(f"training step: {model}", 20.0, measure)


def of_trainings() -> Iterator[Job]:
    """Yield `fastopt train`, once for each of its models."""
    from fastopt.benchmark import trainings

    for model in trainings.STEPS:

        def measure(record: Record, after_round: AfterRound, model: ModelName = model) -> None:
            record.trainings += trainings.trainings(model, after_round)

        yield Job(f"training: {model}", 60.0, measure)


def trained_optimizers() -> list[str]:
    """Return what `fastopt train` calls the optimizers, and those that it refuses, which is told."""
    from fastopt.training.recipes import optimizer_names

    return sorted({*optimizer_names(), *map(str.lower, registry())})


def of_quality(optimizers: Sequence[str]) -> Iterator[Job]:
    """Yield what optimizers reach, and what AdamW does with its numbers stored in fewer bits if it is among them."""
    from fastopt.benchmark import quality

    for name, optimizer in product(quality.OPTIMIZERS_ON, optimizers):

        def search(record: Record, after_trial: AfterRound, name: str = name, optimizer: str = optimizer) -> None:
            record.qualities.append(quality.search(name, optimizer, after_trial))

        yield Job(f"quality: {optimizer}, {name}", quality.PROBLEMS[name].seconds, search)
    for name, of in product(quality.STORAGES_ON if quality.STORED in optimizers else (), quality.STORAGES):

        def store(record: Record, after_trial: AfterRound, name: str = name, of: str = of) -> None:
            plain = next((found for found in record.storages if found.problem == name and found.trials), None)
            record.storages.append(quality.storage(name, of, plain, after_trial))

        yield Job(f"storage: {of}, {name}", quality.PROBLEMS[name].seconds, store)


def everything(threads: int, wanted: Sequence[Target]) -> Iterator[Job]:
    """Yield all there is."""
    yield from of_targets(wanted)
    # Every kernel, from the caches and from memory.
    usual = ("NumPy", *TORCH)
    every = list(methods().values())
    others = [method for name, method in methods().items() if name != "adamw"]
    yield from comparison(every, ("1K", "1M"), ("float64",), ("step",), usual, threads, 0.5)
    yield from comparison(others, ("1K", "1M", "16M"), ("float32",), ("step",), usual, threads, 0.5)
    # AdamW: every work and action with every rival.
    for action, name in product(ACTIONS, works.STANDARD):
        in_time = works.find(name).elements < LARGE or (name, action) == ("64M", "step")
        large = [rival for rival in RIVALS if rival not in SLOW_RIVALS] if action == "step" else FAST_RIVALS
        rivals = RIVALS if in_time else large
        yield from comparison([methods()["adamw"]], (name,), ("float32",), (action,), rivals, threads, 0.7)
    # The other dtype, where NumPy is out.
    half = {method.optimizer: method for method in reversed(methods().values()) if method.cls.method.states}
    yield from comparison(list(half.values())[::-1], ("1M", "16M"), ("bfloat16",), ("step",), RIVALS, threads, 0.7)
    yield from of_sizes(threads)
    yield from of_threads(threads)
