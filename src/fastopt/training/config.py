"""The settings of a run, as they are given on the command line and kept in the checkpoint."""

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from fastopt.training.data import Task
from fastopt.training.errors import TrainingError

ModelName = Literal["mlp", "transformer", "recommender"]
Precision = Literal["float32", "float64"]

PYDOC_TOPICS = "pydoc_data.topics"

GENERATED = "generated"

MOST_THREADS = 1024
"""OpenMP ends the process when it cannot make as many as it is asked for."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides the bits of a run, whatever the model.

    Attributes
    ----------
    model : {"mlp", "transformer", "recommender"}
        What is trained; of the class.
    optimizer, schedule : str
        Names in :mod:`fastopt.training.recipes`.
    lr : float
        The highest learning rate of the schedule.
    warmup : str
        A number of steps, or a share of all steps such as ``"5%"``.
    weight_decay : float
        Strength of the pull to zero.
    clip_norm : float
        The largest norm of the gradient; 0 never clips.
    batch_size : int or "full"
        Rows of a table, pieces of a text, or interactions in a batch.
    accumulate : int
        Batches whose gradients are added up for one step.
    epochs : int
        Passes over the training data.
    seed : int
        Decides the initial weights, the order of the batches, the held-out rows of a table or interactions, and the
        sample of a text.
    dtype : {"float32", "float64"}
        The precision of the model.
    threads : int or None
        Threads of the optimizer and of the matrix products. None: those of :func:`fastopt.get_num_threads` for the
        optimizer, and one for the products.

    Raises
    ------
    TrainingError
        If a value is of the wrong type or out of bounds.
    """

    model: ClassVar[ModelName]

    optimizer: str = "adamw"
    lr: float
    schedule: str = "warmup-cosine"
    warmup: str
    weight_decay: float
    clip_norm: float = 1.0
    batch_size: int | Literal["full"]
    accumulate: int = 1
    epochs: int
    seed: int = 0
    dtype: Precision = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check every value: they come from the command line, or out of a file."""
        for field in fields(self):
            value, (is_fit, expected) = getattr(self, field.name), _FIT[field.name]
            if not is_fit(value):
                raise TrainingError(f"--{_dashed(field.name)}: expected {expected}, got {_as_typed(value)}")
        if self.batch_size == "full" and self.accumulate > 1:
            raise TrainingError(
                f"--accumulate {self.accumulate}: a full batch has all rows, there are no others to add"
            )

    @property
    def source(self) -> str:
        """Where the data comes from."""
        raise NotImplementedError

    @property
    def max_norm(self) -> float:
        """The bound of clipping; infinite where nothing is clipped, so that the norm is still measured."""
        return self.clip_norm or math.inf

    def to_json(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        return {"model": self.model, **asdict(self)}

    def check_same(self, options: dict[str, Any]) -> None:
        """Refuse options that differ from the settings: a resumed run keeps those it was started with.

        Raises
        ------
        TrainingError
            Naming the first option that differs.
        """
        for name, value in options.items():
            check_known(self.model, [name])
            if value != getattr(self, name):
                raise TrainingError(
                    f"--{_dashed(name)} {_as_typed(value)} contradicts the run to resume, "
                    f"which was started with {_as_typed(getattr(self, name))}"
                )


@dataclass(frozen=True, kw_only=True)
class MLPConfig(Config):
    """A multilayer perceptron on a table.

    Attributes
    ----------
    data : str
        ``"digits"`` or the absolute path of a file.
    target : str or None
        The column to predict, of a table with named columns.
    drop, keep : tuple of str
        Columns of such a table to leave out, and columns to use that look like identifiers.
    separator : str or None
        What stands between the cells of a text file; None finds out.
    task : {"classification", "regression"}
        What the targets are.
    hidden : tuple of int
        Units of the hidden layers; empty for a linear model.
    """

    model = "mlp"

    data: str = "digits"
    target: str | None = None
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    separator: str | None = None
    task: Task = "classification"
    hidden: tuple[int, ...] = (256, 128)
    batch_size: int | Literal["full"] = 32
    epochs: int = 30

    @property
    def source(self) -> str:
        """The table."""
        return self.data


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Config):
    """A transformer that predicts the next character of a text.

    Attributes
    ----------
    text : str
        ``"pydoc_data.topics"`` or the absolute path of a file.
    layers : int
        Blocks of attention and perceptron.
    width : int
        Units of every layer.
    context : int
        The number of characters from which the next is predicted, at most; also the length of a piece of text.
    """

    model = "transformer"

    text: str = PYDOC_TOPICS
    layers: int = 4
    width: int = 128
    context: int = 64
    batch_size: int | Literal["full"] = 4
    epochs: int = 3
    threads: int | None = 1  # torch's bits depend on it

    @property
    def source(self) -> str:
        """The text."""
        return self.text


@dataclass(frozen=True, kw_only=True)
class RecommenderConfig(Config):
    """Two towers that rank items for users.

    Attributes
    ----------
    interactions : str
        ``"generated"`` or the absolute path of a table.
    width : int
        Numbers in an embedding.
    """

    model = "recommender"

    interactions: str = GENERATED
    width: int = 8
    batch_size: int | Literal["full"] = 1024
    epochs: int = 8

    @property
    def source(self) -> str:
        """The interactions."""
        return self.interactions


CONFIGS: dict[ModelName, type[Config]] = {
    "mlp": MLPConfig,
    "transformer": TransformerConfig,
    "recommender": RecommenderConfig,
}


def from_json(settings: Mapping[str, Any]) -> Config:
    """Return the settings that :meth:`Config.to_json` was made from.

    Raises
    ------
    TrainingError
        If they are not of this version.
    """
    given = dict(settings)
    try:
        for name in ("hidden", "drop", "keep"):
            if isinstance(given.get(name), list | str):
                given[name] = tuple(given[name])  # JSON has made a list of it
        return CONFIGS[given.pop("model")](**given)
    except (TypeError, KeyError) as error:
        raise TrainingError(f"the settings are of another version of fastopt ({error})") from error


def check_known(model: ModelName, options: Iterable[str]) -> None:
    """Refuse options that the model does not have.

    Raises
    ------
    TrainingError
        Naming the first of them, and the model that it is for.
    """
    for name in options:
        if name not in _names(model):
            others = [other for other in CONFIGS if name in _names(other)]
            raise TrainingError(f"--{_dashed(name)} is for --model {' or '.join(others)}, but the model is {model}")


def defaults(name: str) -> str:
    """Return what to say of the default of an option: what each model has, where it differs."""
    by_model = {
        model: _as_typed(field.default)
        for model, kind in CONFIGS.items()
        for field in fields(kind)
        if field.name == name
    }
    if len(set(by_model.values())) == 1:
        return next(iter(by_model.values()))
    return ", ".join(f"{model} {value}" for model, value in by_model.items())


def parse_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Turn options as they are typed into settings; those not typed, which are None, are left out.

    Raises
    ------
    TrainingError
        Naming the option whose text cannot be understood.
    """
    typed = {name: value for name, value in options.items() if value is not None}
    return {name: _PARSERS[name](value) if name in _PARSERS else value for name, value in typed.items()}


def _names(model: ModelName) -> set[str]:
    return {"model", *(field.name for field in fields(CONFIGS[model]))}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _as_typed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


Fit = tuple[Callable[[Any], bool], str]
"""Whether a value is fit for a setting, and what is, in words."""


def _whole(least: int, most: int) -> Fit:
    return lambda value: type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"


def _or(first: Any, fit: Fit, word: str) -> Fit:
    is_fit, expected = fit
    return lambda value: value == first or is_fit(value), f"{expected}, or {word}"


def _among(kind: Any) -> Fit:
    return lambda value: value in get_args(kind), f"one of {', '.join(get_args(kind))}"


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


_TEXT: Fit = (lambda value: isinstance(value, str), "a text")
_AMOUNT: Fit = (_is_amount, "a finite number, 0 or more")
_NAMES: Fit = (
    lambda value: isinstance(value, tuple) and all(isinstance(name, str) for name in value),
    "names of columns",
)
_COUNT, _SIZE = _whole(1, 10**9), _whole(1, 10**6)

_FIT: dict[str, Fit] = {
    "optimizer": _TEXT,
    "lr": _AMOUNT,
    "schedule": _TEXT,
    "warmup": _TEXT,
    "weight_decay": _AMOUNT,
    "clip_norm": _AMOUNT,
    "batch_size": _or("full", _COUNT, "'full'"),
    "accumulate": _COUNT,
    "epochs": _COUNT,
    "seed": _whole(0, 2**63 - 1),
    "dtype": _among(Precision),
    "threads": _or(None, _whole(1, MOST_THREADS), "none"),
    "data": _TEXT,
    "target": _or(None, _TEXT, "none"),
    "drop": _NAMES,
    "keep": _NAMES,
    "separator": (
        lambda value: value is None or (isinstance(value, str) and len(value.encode()) == 1 and value not in '"\r\n'),
        "one character, or none",
    ),
    "task": _among(Task),
    "hidden": (
        lambda value: isinstance(value, tuple) and all(map(_SIZE[0], value)),
        "numbers of units such as 256,128, each from 1 to 1000000",
    ),
    "text": _TEXT,
    "interactions": _TEXT,
    "layers": _whole(1, 1000),
    "width": _SIZE,
    "context": _SIZE,
}


def _file_unless(name: str) -> Callable[[str], str]:
    return lambda source: source if source == name else str(Path(source).absolute())


def _hidden(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in text.split(",")) if text.strip() else ()
    except ValueError as error:
        raise TrainingError(f"--hidden: expected {_FIT['hidden'][1]}, got {text!r}") from error


def _columns(text: str) -> tuple[str, ...]:
    """Return the names in a list; one that has a comma is put in quotes."""
    return tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True), []))


def _separator(text: str) -> str:
    return {"tab": "\t", "\\t": "\t"}.get(text, text)


def _batch_size(text: str) -> int | str:
    try:
        return "full" if text == "full" else int(text)
    except ValueError as error:
        raise TrainingError(f"--batch-size: expected {_FIT['batch_size'][1]}, got {text!r}") from error


_PARSERS: dict[str, Callable[[str], Any]] = {
    "data": _file_unless("digits"),
    "text": _file_unless(PYDOC_TOPICS),
    "interactions": _file_unless(GENERATED),
    "hidden": _hidden,
    "drop": _columns,
    "keep": _columns,
    "separator": _separator,
    "batch_size": _batch_size,
    "optimizer": str.lower,
    "schedule": str.lower,
}
