"""The settings of a run, as they are given on the command line and kept in the checkpoint."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from fastopt.training.data import Task
from fastopt.training.errors import TrainingError

Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class Config:
    """Everything that decides the bits of a run.

    Attributes
    ----------
    data : str
        ``"digits"`` or the absolute path of a file.
    target : str or None
        The column of a CSV file to predict.
    task : {"classification", "regression"}
        What the targets are.
    hidden : tuple of int
        Units of the hidden layers; empty for a linear model.
    optimizer, schedule : str
        Names in :mod:`fastopt.training.recipes`.
    lr : float
        The highest learning rate of the schedule.
    warmup : str
        A number of steps, or a share of all steps such as ``"5%"``.
    weight_decay : float or None
        None takes the default of the optimizer.
    clip_norm : float
        The largest norm of the gradient; 0 never clips.
    batch_size : int or "full"
        Rows in a batch.
    epochs : int
        Passes over the training rows.
    seed : int
        Decides the held-out rows, the initial weights and the order of the batches.
    dtype : {"float32", "float64"}
        The precision of the model.
    threads : int or None
        Threads of the optimizer and of the matrix products. None: those of :func:`fastopt.get_num_threads` for the
        optimizer, whose bits do not depend on it, and one for the products.
    """

    data: str
    target: str | None
    task: Task
    hidden: tuple[int, ...]
    optimizer: str
    lr: float
    schedule: str
    warmup: str
    weight_decay: float | None
    clip_norm: float
    batch_size: int | Literal["full"]
    epochs: int
    seed: int
    dtype: Precision
    threads: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> Self:
        """Return what :meth:`to_json` was made from."""
        try:
            return cls(**{**settings, "hidden": tuple(settings["hidden"])})
        except (TypeError, KeyError) as error:
            raise TrainingError(f"the settings are of another version of fastopt ({error})") from error

    def check_same(self, options: dict[str, Any]) -> None:
        """Refuse options that differ from the settings: a resumed run keeps those it was started with.

        Raises
        ------
        TrainingError
            Naming the first option that differs.
        """
        for name, value in options.items():
            if value != getattr(self, name):
                raise TrainingError(
                    f"--{name.replace('_', '-')} {_as_typed(value)} contradicts the run to resume, "
                    f"which was started with {_as_typed(getattr(self, name))}"
                )


def parse_options(options: dict[str, Any]) -> dict[str, Any]:
    """Turn options as they are typed into settings; those that are no settings are left out.

    Raises
    ------
    TrainingError
        Naming the option whose text cannot be understood.
    """
    known = {field.name for field in fields(Config)}
    settings = {name: value for name, value in options.items() if name in known}
    return {name: _PARSERS[name](value) if name in _PARSERS else value for name, value in settings.items()}


def _as_typed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _data(source: str) -> str:
    return source if source == "digits" else str(Path(source).absolute())


def _hidden(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(width) for width in text.split(",")) if text.strip() else ()
    except ValueError:
        widths = (0,)
    if any(width < 1 for width in widths):
        raise TrainingError(f"--hidden: expected numbers of units such as 256,128, got {text!r}")
    return widths


def _batch_size(text: str) -> int | str:
    if text == "full":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise TrainingError(f"--batch-size: expected a number of rows, 1 or more, or 'full', got {text!r}")
    return int(text)


_PARSERS: dict[str, Callable[[str], Any]] = {
    "data": _data,
    "hidden": _hidden,
    "batch_size": _batch_size,
    "optimizer": str.lower,
    "schedule": str.lower,
}
