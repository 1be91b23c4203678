"""The targets of the project, as data, and what a run says of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from fastopt import _core
from fastopt.benchmark import works
from fastopt.benchmark.measure import Ratio, Seconds
from fastopt.benchmark.records import Record, WholeTraining
from fastopt.benchmark.runs import Entrant, Run
from fastopt.benchmark.tasks import Method, Task, methods

Verdict = Literal["reached", "missed", "unclear", "not run"]

TORCH = ("torch", "torch foreach", "torch fused")


class Measured(NamedTuple):
    """What a record says of a target."""

    ratio: Ratio
    seconds: float
    """The time of ours."""


@dataclass(frozen=True)
class Target(ABC):
    """A bound on our speed, or on our time, relative to another's."""

    what: str
    against: str
    """What the other is, in words."""
    bound: float
    sense: Literal["speed", "time"] = "speed"
    """What the bound is of: how many times as fast it is at least, or how many times as long it takes at most."""
    or_seconds: float = 0.0
    """A time that is fast enough whatever the ratio."""

    @abstractmethod
    def measured(self, record: Record) -> Measured | None:
        """Return what a record has of it, None if it has nothing."""

    @property
    def wanted(self) -> str:
        """The bound in signs."""
        sign = ">=" if self.sense == "speed" else "<="
        absolute = f" or {self.or_seconds * 1e6:g} µs" if self.or_seconds else ""
        return f"{sign} {self.bound:g}x{absolute}"

    def judge(self, record: Record) -> Outcome:
        """Return what a record says of it."""
        found = self.measured(record)
        return Outcome(self, found, self.verdict(*found) if found else "not run")

    def ratio(self, own: Seconds, other: Seconds) -> Ratio:
        """Return the ratio of times that the bound is of."""
        return Ratio.of(other, own) if self.sense == "speed" else Ratio.of(own, other)

    def verdict(self, ratio: Ratio, seconds: float) -> Verdict:
        """Return whether the bound is reached, if the whole interval that the ratio lies in says the same."""
        if seconds < self.or_seconds:
            return "reached"
        ends = (ratio.low, ratio.high)
        good = [end >= self.bound if self.sense == "speed" else end <= self.bound for end in ends]
        return "reached" if all(good) else "unclear" if any(good) else "missed"


@dataclass(frozen=True, kw_only=True)
class OfRun(Target):
    """A bound on an optimizer's step."""

    entrant: Entrant
    others: tuple[Entrant, ...]
    """The fastest of them counts."""

    @property
    def entrants(self) -> tuple[Entrant, ...]:
        """All who have to take turns."""
        return (self.entrant, *self.others)

    def measured(self, record: Record) -> Measured | None:
        """Return what the first run that has all entrants says."""
        run = next((run for run in record.runs.get("targets", []) if self.is_in(run)), None)
        if run is None:
            return None
        rival = min((e for e in self.others if e in run.seconds), key=lambda e: float(np.median(run.seconds[e])))
        own = run.seconds[self.entrant]
        return Measured(self.ratio(own, run.seconds[rival]), float(np.median(own)))

    def is_in(self, run: Run) -> bool:
        """Whether the run was made for this: all entrants took part, or there was a reason why not."""
        known = {*run.seconds, *(absence.entrant for absence in run.absences)}
        return {*self.entrants} <= known and self.entrant in run.seconds and any(e in run.seconds for e in self.others)


@dataclass(frozen=True, kw_only=True)
class OfTrainingStep(Target):
    """A bound on a model's whole training step against torch's default, or others."""

    model: str
    own: str = "fastopt.torch"
    other: str = "torch"

    def measured(self, record: Record) -> Measured | None:
        """Return what the steps of the model say."""
        seconds = {step.optimizer: step.seconds for step in record.steps if step.model == self.model}
        if not {self.own, self.other} <= seconds.keys():
            return None
        own = seconds[self.own]
        return Measured(self.ratio(own, seconds[self.other]), float(np.median(own)))


@dataclass(frozen=True, kw_only=True)
class OfTraining(Target):
    """A bound on a whole training against torch's default: between one kept point of its course and the next."""

    model: str
    quantity: Literal["time", "share of the optimizer"]

    def measured(self, record: Record) -> Measured | None:
        """Return what the courses of the model say."""
        courses = {training.optimizer: training for training in record.trainings if training.model == self.model}
        if not courses:
            return None
        own = courses["fastopt.torch"]
        return Measured(self.ratio(self.pieces(own), self.pieces(courses["torch"])), float(own.seconds[-1]))

    def pieces(self, training: WholeTraining) -> Seconds:
        """Return the quantity, piece by piece."""
        whole = np.diff(training.seconds)
        return whole if self.quantity == "time" else np.diff(training.optimizer_seconds) / whole


@dataclass(frozen=True)
class Outcome:
    """A target and what was measured."""

    target: Target
    measured: Measured | None
    verdict: Verdict


def all_targets(threads: int) -> list[Target]:
    """Return all targets, for steps of that many threads."""
    return [*of_the_core(threads), *of_torch(threads), *of_libraries(threads), *of_whole_trainings()]


def rules() -> dict[str, Method]:
    """Return a method for every kernel that is a rule."""
    by_rule = {method.rule: method for method in reversed(methods().values())}
    return {rule: by_rule[rule] for rule in _core.RULES if rule in by_rule}


def of_the_core(threads: int) -> Iterator[Target]:
    """Yield the targets of `fastopt` on NumPy arrays."""

    def task(method: str, work: str, **options: Any) -> Task:
        return Task(methods()[method], works.find(work), threads=threads, **options)

    def target(what: str, one: Task, rival: str, other: Task, bound: float, **options: Any) -> Target:
        against = {
            "floor": f"the floor, {one.work}, {one.dtype}",
            "NumPy": "textbook NumPy",
            "fastopt": "fastopt otherwise",
        }[rival]
        return OfRun(what, against, bound, entrant=Entrant("fastopt", one), others=(Entrant(rival, other),), **options)

    for dtype, bound in (("float32", 0.95), ("float64", 0.8)):
        for rule, method in rules().items():
            own = Task(method, works.find("64M"), dtype, threads=threads)
            yield target(rule, own, "floor", own, bound)
    million, large, single = (task("adamw", work) for work in ("1M", "64M", "1K"))
    yield target("adam (as AdamW)", million, "floor", million, 0.8)
    yield target("AdamW, 64M", large, "NumPy", large, 15)
    yield target("AdamW, one array of 1000", single, "NumPy", single, 0.25, sense="time", or_seconds=6e-6)
    lists = task("adamw", "1000x1K")
    yield target("AdamW, 1000x1K to 1M", lists, "fastopt", million, 2.5, sense="time")
    clipped = task("adamw", "64M", action="clip")
    yield target("AdamW, 64M, clipping to not", clipped, "fastopt", large, 1.2, sense="time")
    fading = task("adamw", "1M", fading=True)
    yield target("AdamW, 1M, denormals to normal", fading, "fastopt", million, 1.1, sense="time")
    if threads >= 2:
        one, two = replace(million, threads=1), replace(million, threads=2)
        yield target("AdamW, 1M, 2 threads to 1", two, "fastopt", one, 1.8)


def of_torch(threads: int) -> Iterator[Target]:
    """Yield the targets of `fastopt.torch`."""

    def target(what: str, method: str, work: str, rivals: tuple[str, ...], bound: float, **options: Any) -> Target:
        task = Task(methods()[method], works.find(work), threads=threads, **options)
        against = rivals[0] if len(rivals) == 1 else "torch's fastest"
        others = tuple(Entrant(rival, task) for rival in rivals)
        return OfRun(what, against, bound, entrant=Entrant("fastopt.torch", task), others=others)

    default, fused = ("torch",), ("torch fused",)
    yield target("AdamW, 64M", "adamw", "64M", default, 4)
    yield target("AdamW, 64M", "adamw", "64M", fused, 1)
    yield target("AdamW, 1M", "adamw", "1M", fused, 1.3)
    yield target("AdamW, GPT-2 small, clipping", "adamw", "gpt2-small", fused, 1.4, action="clip")
    yield target("AdamW, GPT-2 small, clipping and zeroing", "adamw", "gpt2-small", fused, 1.5, action="clip+zero")
    yield target("AdamW, 1000x1K", "adamw", "1000x1K", fused, 8)
    yield target("AdamW, 1000x1K, clipping", "adamw", "1000x1K", fused, 10, action="clip")
    yield target("AdamW, one tensor of 1000", "adamw", "1K", fused, 2)
    yield target("Adam, bfloat16, 64M", "adam", "64M", fused, 1, dtype="bfloat16")
    yield target("RMSprop, 64M", "rmsprop", "64M", TORCH, 3)
    yield target("SGD, momentum, 64M", "sgd-momentum", "64M", TORCH, 1)
    yield target("Adagrad, 64M", "adagrad", "64M", TORCH, 1)
    yield target("AdamW, ResNet-50, clipping", "adamw", "resnet50", TORCH, 1.3, action="clip")
    yield target("AdamW, small policy, clipping", "adamw", "policy", TORCH, 3, action="clip")


def of_libraries(threads: int) -> Iterator[Target]:
    """Yield the targets of `fastopt` against libraries other than torch, each on its own kind of arrays."""
    for own, rival, work, bound in (
        ("fastopt.torch", "DeepSpeed", "64M", 1.0),
        ("fastopt.torch", "DeepSpeed", "gpt2-small", 1.3),
        ("fastopt.torch", "DeepSpeed", "1000x1K", 5.0),
        ("fastopt", "optax", "64M", 2.0),
    ):
        task = Task(methods()["adamw"], works.find(work), threads=threads)
        what = f"AdamW, {'GPT-2 small' if work == 'gpt2-small' else work}"
        yield OfRun(what, rival, bound, entrant=Entrant(own, task), others=(Entrant(rival, task),))


def of_whole_trainings() -> Iterator[Target]:
    """Yield the targets of whole training steps and whole trainings."""
    against = "torch and its clipping, in a whole training step"
    for model, bound in (("policy", 1.6), ("perceptron", 1.3), ("recommender", 4.0), ("GPT-2 small", 1.6)):
        yield OfTrainingStep(model, against, bound, model=model)
    for other, bound in (("torch", 8.0), ("torch SparseAdam", 1.5)):
        what = f"recommender by rows, against {other}"
        yield OfTrainingStep(what, against, bound, model="recommender", own="fastopt.torch lazy", other=other)
    against = "torch and its clipping, in a whole training"
    yield OfTraining(
        "transformer, share of the optimizer", against, 4.0, model="transformer", quantity="share of the optimizer"
    )
    yield OfTraining("transformer, time", against, 1.0, model="transformer", quantity="time")


def runs_for(wanted: Sequence[Target]) -> list[list[Entrant]]:
    """Return who has to take turns with whom: targets of the same entrant share a run."""
    groups: dict[Entrant, dict[Entrant, None]] = {}
    for target in wanted:
        if isinstance(target, OfRun):
            groups.setdefault(target.entrant, {}).update(dict.fromkeys(target.entrants))
    return [list(group) for group in groups.values()]
