"""The targets of the project, as data, and what a run says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastopt import _core
from fastopt.benchmark import works
from fastopt.benchmark.measure import Ratio
from fastopt.benchmark.runs import Entrant, Run
from fastopt.benchmark.tasks import Method, Task, methods

Verdict = Literal["reached", "missed", "unclear", "not run"]

TORCH = ("torch", "torch foreach", "torch fused")


@dataclass(frozen=True)
class Target:
    """A bound on an entrant's speed, or on its time, relative to another's."""

    what: str
    entrant: Entrant
    against: str
    """What the others are, in words."""
    others: tuple[Entrant, ...]
    """The fastest of them counts."""
    bound: float
    sense: Literal["speed", "time"] = "speed"
    """What the bound is of: how many times as fast it is at least, or how many times as long it takes at most."""
    or_seconds: float = 0.0
    """A time that is fast enough whatever the ratio."""

    @property
    def entrants(self) -> tuple[Entrant, ...]:
        """All who have to take turns."""
        return (self.entrant, *self.others)

    @property
    def wanted(self) -> str:
        """The bound in signs."""
        sign = ">=" if self.sense == "speed" else "<="
        absolute = f" or {self.or_seconds * 1e6:g} µs" if self.or_seconds else ""
        return f"{sign} {self.bound:g}x{absolute}"

    def judge(self, runs: Sequence[Run]) -> Outcome:
        """Return what the run that has all entrants says."""
        run = next((run for run in runs if self.is_in(run)), None)
        if run is None:
            return Outcome(self, None, 0.0, "not run")
        rival = min((e for e in self.others if e in run.seconds), key=lambda e: float(np.median(run.seconds[e])))
        ratio = run.ratio(rival, self.entrant) if self.sense == "speed" else run.ratio(self.entrant, rival)
        seconds = float(np.median(run.seconds[self.entrant]))
        return Outcome(self, ratio, seconds, self.verdict(ratio, seconds))

    def is_in(self, run: Run) -> bool:
        """Whether the run was made for this: all entrants took part, or there was a reason why not."""
        known = {*run.seconds, *(absence.entrant for absence in run.absences)}
        return {*self.entrants} <= known and self.entrant in run.seconds and any(e in run.seconds for e in self.others)

    def verdict(self, ratio: Ratio, seconds: float) -> Verdict:
        """Return whether the bound is reached, if the whole interval that the ratio lies in says the same."""
        if seconds < self.or_seconds:
            return "reached"
        ends = (ratio.low, ratio.high)
        good = [end >= self.bound if self.sense == "speed" else end <= self.bound for end in ends]
        return "reached" if all(good) else "unclear" if any(good) else "missed"


@dataclass(frozen=True)
class Outcome:
    """A target and what was measured."""

    target: Target
    ratio: Ratio | None
    seconds: float
    """The entrant's time of a step."""
    verdict: Verdict


def all_targets(threads: int) -> list[Target]:
    """Return all targets, for steps of that many threads."""
    return [*of_the_core(threads), *of_torch(threads)]


def rules() -> dict[str, Method]:
    """Return a method for every kernel that is a rule."""
    by_rule = {method.rule: method for method in reversed(methods().values())}
    return {rule: by_rule[rule] for rule in _core.RULES if rule in by_rule}


def of_the_core(threads: int) -> Iterator[Target]:
    """Yield the targets of `fastopt` on NumPy arrays."""

    def task(method: str, work: str, **options: Any) -> Task:
        return Task(methods()[method], works.find(work), threads=threads, **options)

    def target(what: str, one: Task, rival: str, other: Task, bound: float, **options: Any) -> Target:
        against = {"floor": "the floor", "NumPy": "textbook NumPy", "fastopt": "fastopt otherwise"}[rival]
        return Target(what, Entrant("fastopt", one), against, (Entrant(rival, other),), bound, **options)

    for dtype, bound in (("float32", 0.95), ("float64", 0.8)):
        for rule, method in rules().items():
            own = Task(method, works.find("64M"), dtype, threads=threads)
            yield target(f"{rule}, {dtype}, 64M", own, "floor", own, bound)
    million, large, single = (task("adamw", work) for work in ("1M", "64M", "1K"))
    yield target("AdamW, 1M", million, "floor", million, 0.8)
    yield target("AdamW, 64M", large, "NumPy", large, 15)
    yield target("AdamW, one array of 1000", single, "NumPy", single, 0.25, sense="time", or_seconds=6e-6)
    lists = task("adamw", "1000x1K")
    yield target("AdamW, 1000x1K to 1M", lists, "fastopt", million, 2.5, sense="time")
    clipped = task("adamw", "64M", action="clip")
    yield target("AdamW, 64M, clipping to not", clipped, "fastopt", large, 1.2, sense="time")
    fading = task("adamw", "1M", fading=True)
    yield target("AdamW, 1M, denormals to normal", fading, "fastopt", million, 1.1, sense="time")


def of_torch(threads: int) -> Iterator[Target]:
    """Yield the targets of `fastopt.torch`."""

    def target(what: str, method: str, work: str, rivals: tuple[str, ...], bound: float, **options: Any) -> Target:
        task = Task(methods()[method], works.find(work), threads=threads, **options)
        against = rivals[0] if len(rivals) == 1 else "torch's fastest"
        return Target(what, Entrant("fastopt.torch", task), against, tuple(Entrant(r, task) for r in rivals), bound)

    default, fused = ("torch",), ("torch fused",)
    yield target("AdamW, 64M", "adamw", "64M", default, 4)
    yield target("AdamW, 64M", "adamw", "64M", fused, 1)
    yield target("AdamW, 1M", "adamw", "1M", fused, 1.3)
    yield target("AdamW, GPT-2 small, clipping", "adamw", "gpt2-small", fused, 1.4, action="clip")
    yield target("AdamW, 1000x1K", "adamw", "1000x1K", fused, 8)
    yield target("AdamW, 1000x1K, clipping", "adamw", "1000x1K", fused, 10, action="clip")
    yield target("AdamW, one tensor of 1000", "adamw", "1K", fused, 2)
    yield target("Adam, bfloat16, 64M", "adam", "64M", fused, 1, dtype="bfloat16")
    yield target("RMSprop, 64M", "rmsprop", "64M", TORCH, 3)
    yield target("SGD, momentum, 64M", "sgd-momentum", "64M", TORCH, 1)
    yield target("Adagrad, 64M", "adagrad", "64M", TORCH, 1)
    yield target("AdamW, ResNet-50, clipping", "adamw", "resnet50", TORCH, 1.3, action="clip")
    yield target("AdamW, small policy, clipping", "adamw", "policy", TORCH, 3, action="clip")


def runs_for(wanted: Sequence[Target]) -> list[list[Entrant]]:
    """Return who has to take turns with whom: targets of the same entrant share a run."""
    groups: dict[Entrant, dict[Entrant, None]] = {}
    for target in wanted:
        groups.setdefault(target.entrant, {}).update(dict.fromkeys(target.entrants))
    return [list(group) for group in groups.values()]
