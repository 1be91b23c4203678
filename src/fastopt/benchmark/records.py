"""All that one call of the benchmark measured: kept as JSON, and compared with what an earlier call measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastopt.benchmark import machine
from fastopt.benchmark.measure import Ratio, Seconds
from fastopt.benchmark.runs import Entrant, Run, rounded
from fastopt.files import replacing

FORMAT = 2

PLAIN = "float32"
"""How numbers are stored if nothing else is asked for."""

SEARCH_SEED = 0
"""Of the trials that search for a rate."""

SLOWER = 0.95
"""A share of the floor's speed that is at least this part of the earlier one is no news."""


@dataclass(frozen=True)
class WholeStep:
    """What a model's training step costs with one optimizer."""

    model: str
    optimizer: str
    seconds: Seconds
    """Of a step, round by round; the optimizers of a model take turns."""
    share: float
    """The optimizer's part of it, from clipping to zeroing."""
    peak_memory: int | None
    """How much memory the process grew by at most, in bytes; None where the system cannot tell."""

    def to_json(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return {**asdict(self), "seconds": rounded(self.seconds)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> WholeStep:
        """Return what `to_json` was made from."""
        return cls(**{**entry, "seconds": np.array(entry["seconds"])})


@dataclass(frozen=True)
class WholeTraining:
    """The course of `fastopt train` with one optimizer."""

    CURVES: ClassVar[tuple[str, ...]] = ("seconds", "losses", "optimizer_seconds")

    model: str
    optimizer: str
    seconds: Seconds
    """Since the start, at some points of the run."""
    losses: Seconds
    """There, smoothed."""
    optimizer_seconds: Seconds
    """What the optimizer took of it."""

    @property
    def share(self) -> float:
        """The optimizer's part of the time."""
        return float(self.optimizer_seconds[-1] / self.seconds[-1])

    def seconds_to(self, loss: float) -> float:
        """Return when the loss was reached first."""
        return float(self.seconds[np.argmax(self.losses <= loss)])

    def to_json(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return {**asdict(self), **{name: rounded(getattr(self, name)) for name in self.CURVES}}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> WholeTraining:
        """Return what `to_json` was made from."""
        return cls(**{**entry, **{name: np.array(entry[name]) for name in cls.CURVES}})


@dataclass(frozen=True)
class Trial:
    """What came of a training at one rate, from one seed."""

    lr: float
    seed: int
    loss: float | None
    """On what was held out, at the end; None if the training diverged."""
    seconds: float
    """Of all steps, without loading and evaluating."""
    optimizer_seconds: float
    """What the optimizer took of it."""

    @property
    def found(self) -> float:
        """The loss, infinite if the training diverged."""
        return math.inf if self.loss is None else self.loss


@dataclass(frozen=True)
class Quality:
    """What an optimizer reaches on a problem: trials of the first seed search for the rate, at which the others are."""

    problem: str
    title: str
    """Of the problem, with what is trained."""
    optimizer: str
    storage: str
    """Of weights and states."""
    steps: int
    trials: list[Trial]
    state_bytes: float
    """Kept beside the parameters, for each of their elements."""
    moved_bytes: float
    """What a step has to read and write, for each element."""
    obstacle: str = ""
    """Why there are no trials: the optimizer does not fit the problem."""

    @property
    def lr(self) -> float:
        """The rate that was chosen."""
        return self.measured[0].lr

    @property
    def measured(self) -> list[Trial]:
        """The trials at the chosen rate, of seeds that did not choose it."""
        return [trial for trial in self.trials if trial.seed != SEARCH_SEED]

    @property
    def losses(self) -> Seconds:
        """The losses at the chosen rate, in the order of the seeds."""
        return np.array([trial.found for trial in self.measured])

    @property
    def is_at_edge(self) -> bool:
        """Whether the chosen rate is the least or the largest of several that were tried."""
        rates = {trial.lr for trial in self.trials}
        return len(rates) > 1 and self.lr in (min(rates), max(rates))

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Quality:
        """Return what `asdict` made an entry of."""
        return cls(**{**entry, "trials": [Trial(**trial) for trial in entry["trials"]]})


@dataclass
class Record:
    """Figures, and the machine that they were measured on."""

    facts: dict[str, Any] = field(default_factory=machine.facts)
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    runs: dict[str, list[Run]] = field(default_factory=dict)
    """By section: comparison, targets, sizes, threads."""
    steps: list[WholeStep] = field(default_factory=list)
    trainings: list[WholeTraining] = field(default_factory=list)
    qualities: list[Quality] = field(default_factory=list)
    """Of all optimizers, with their numbers in float32."""
    storages: list[Quality] = field(default_factory=list)
    """Of one optimizer, with its numbers stored in different ways; float32 is the first of a problem."""
    failures: list[str] = field(default_factory=list)
    """What could not be measured at all, and why."""

    @property
    def all_runs(self) -> list[Run]:
        """The runs of all sections."""
        return [run for section in self.runs.values() for run in section]

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        content = {
            "format": FORMAT,
            "date": self.date,
            "facts": self.facts,
            "runs": {section: [run.to_json() for run in runs] for section, runs in self.runs.items()},
            "steps": [step.to_json() for step in self.steps],
            "trainings": [training.to_json() for training in self.trainings],
            "qualities": [asdict(quality) for quality in self.qualities],
            "storages": [asdict(quality) for quality in self.storages],
            "failures": self.failures,
        }
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read what `save` wrote.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is not such a file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content["format"]
            record = cls.from_json(content) if found == FORMAT else None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a file that fastopt bench --json wrote ({error})") from error
        if record is None:
            raise ValueError(f"{path} is of another version of fastopt: expected format {FORMAT}, got {found}")
        return record

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Record:
        """Return what `save` made the content of a file from."""
        return cls(
            content["facts"],
            content["date"],
            {section: [Run.from_json(run) for run in runs] for section, runs in content["runs"].items()},
            [WholeStep.from_json(step) for step in content["steps"]],
            [WholeTraining.from_json(training) for training in content["trainings"]],
            # (Earlier files have none.)
            [Quality.from_json(quality) for quality in content.get("qualities", [])],
            [Quality.from_json(quality) for quality in content.get("storages", [])],
            content["failures"],
        )


class Change(NamedTuple):
    """An entrant's share of the floor's speed, before and now."""

    entrant: Entrant
    before: Ratio
    now: Ratio

    @property
    def is_slower(self) -> bool:
        """Whether it is, beyond what the spreads explain."""
        return self.now.high < self.before.low and self.now.median < SLOWER * self.before.median


def changes(before: Record, now: Record) -> list[Change]:
    """Return what both have measured, by the share of the floor, so that machines compare."""
    old = dict(shares(before))
    return [Change(entrant, old[entrant], share) for entrant, share in shares(now) if entrant in old]


def shares(record: Record) -> Iterator[tuple[Entrant, Ratio]]:
    """Yield the share of the floor's speed of every entrant that was timed in turns with a floor."""
    seen = set()
    for run in record.all_runs:
        for entrant in run.seconds:
            share = run.share_of_floor(entrant)
            if entrant.contestant != "floor" and share and entrant not in seen:
                seen.add(entrant)
                yield entrant, share
