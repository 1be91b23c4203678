"""Predictions of a run that was trained on a table, for new tables."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fastopt.training.checkpoint import IN_USE, Checkpoint
from fastopt.training.columns import Column, encode, known_texts, read_cells
from fastopt.training.config import MLPConfig, from_json
from fastopt.training.data import as_number, read_npz
from fastopt.training.errors import TrainingError
from fastopt.training.job import IN_A_CHECKPOINT
from fastopt.training.losses import SoftmaxCrossEntropy, SquaredError, softmax
from fastopt.training.mlp import MLP
from fastopt.training.session import CHECKPOINT
from fastopt.training.tables import RawTable, from_memory, is_table_file, read_table

Array = NDArray[Any]


@dataclass(frozen=True)
class Prepared:
    """A new table, checked against what the model has learned from.

    Attributes
    ----------
    features : ndarray, shape (rows, inputs of the perceptron)
        Encoded and standardised.
    notes : list of str
        What is not as it was in the training.
    raw : RawTable or None
        The table as it was read; None of plain arrays.
    """

    features: Array
    notes: list[str]
    raw: RawTable | None


class TrainedModel:
    """A perceptron of ``fastopt train``, with all that it has learned of its table. Made by :func:`load`.

    Attributes
    ----------
    features : tuple of str
        The columns that it predicts from; of plain arrays their numbers.
    target : str
        What it predicts; empty if that has no name.
    classes : tuple of str
        The classes in the order of their probabilities; empty if it predicts numbers.
    """

    def __init__(self, config: MLPConfig, checkpoint: Checkpoint) -> None:
        facts = checkpoint.metadata["data"]
        self._config = config
        self._mean, self._scale = (np.asarray(checkpoint.tensors[f"data.{name}"]) for name in ("mean", "scale"))
        self._target_mean, self._target_scale = facts["target_mean"], facts["target_scale"]
        self._columns = tuple(map(Column.from_json, facts["columns"]))
        self._target = Column.from_json(facts["target"]) if facts["target"] else None
        self.target = self._target.name if self._target else ""
        self._known = {*facts["left_out"], self.target}
        self.classes: tuple[str, ...] = tuple(facts["classes"])
        names = [column.name for column in self._columns] or [str(number) for number in range(len(self._mean))]
        self.features: tuple[str, ...] = tuple(names)
        widths = [len(self._mean), *config.hidden, len(self.classes) or 1]
        loss = SoftmaxCrossEntropy() if self.classes else SquaredError()
        self._model = MLP(widths, loss, batch_size=1, dtype=config.dtype, seed=config.seed)
        for name, values in self._model.parameters.items():
            trained = checkpoint.tensors[f"param.{name}"]
            np.copyto(values, checkpoint.tensors.get(f"{IN_USE}{name}", trained))

    def __repr__(self) -> str:
        """Return what it predicts, and from what."""
        predicted = f"{len(self.classes)} classes" if self.classes else "numbers"
        return f"<TrainedModel of {Path(self._config.data).name}: {len(self.features)} columns, {predicted}>"

    def predict(self, table: Any) -> Array:
        """Return the class (a str) or the number that is predicted for each row.

        Parameters
        ----------
        table : path, frame, mapping or array
            A file such as ``fastopt train`` reads, a frame of polars or pandas, columns by their names; or, if the
            model has learned from arrays, rows of numbers. The order of the columns does not matter; there may be
            others, of which a warning tells.

        Raises
        ------
        TrainingError
            If columns are missing or have cells that are not of their kind.
        """
        return self.decide(self.outputs(self._prepared(table)))

    def predict_proba(self, table: Any) -> Array:
        """Return the probability of each class, shape (rows, classes), in the order of `classes`.

        Parameters
        ----------
        table
            As for :meth:`predict`.

        Raises
        ------
        TrainingError
            As of :meth:`predict`; and if the model predicts numbers.
        """
        return self.probabilities(self.outputs(self._prepared(table)))

    def prepare(self, table: Any) -> Prepared:
        """Read a table, check it and make features of it, without a warning."""
        raw = None
        if isinstance(table, str | Path):
            path = Path(table)
            if not path.is_file():
                raise TrainingError(f"no such file: {path}")
            if not self._columns:
                return Prepared(
                    self._standardised(self._plain(str(path), read_npz(path, needs_labels=False)[0])), [], None
                )
            if not is_table_file(path):
                raise TrainingError(f"{path}: expected a table with named columns, as the run was trained on")
            raw = read_table(path, self._config.separator if path.suffix != ".parquet" else None)
        elif not self._columns:
            return Prepared(self._standardised(self._plain("table", np.asarray(table))), [], None)
        else:
            raw = from_memory("table", table)
        return self._prepare_columns(raw)

    def outputs(self, prepared: Prepared) -> Array:
        """Return what the last layer says."""
        return self._model.predict(prepared.features)

    def decide(self, outputs: Array) -> Array:
        """Return classes or numbers for outputs."""
        if self.classes:
            decided: Array = np.array(self.classes, str)[outputs.argmax(axis=1)]
            return decided
        numbers: Array = outputs[:, 0].astype(np.float64) * self._target_scale + self._target_mean
        return numbers

    def probabilities(self, outputs: Array) -> Array:
        """Return probabilities for outputs."""
        if not self.classes:
            raise TrainingError("the model predicts numbers, of which it knows no probabilities")
        return softmax(outputs.astype(np.float64))

    def compare(self, prepared: Prepared, predicted: Array) -> str:
        """Return how right predictions are, in words; empty where the table does not say the target."""
        if prepared.raw is None or self._target is None or self.target not in prepared.raw.frame.columns:
            return ""
        raw, labels = prepared.raw, prepared.raw.frame[self.target]
        if self.classes:
            names = {as_number(name): name for name in self.classes}
            texts = known_texts(labels) if labels.dtype == pl.String else labels
            spelled = [None if label is None else names.get(as_number(str(label)), str(label)) for label in texts]
            known = [row for row, label in enumerate(spelled) if label is not None]
            if not known:
                return ""
            right = np.mean([spelled[row] == predicted[row] for row in known])
            return f"{right:.1%} right of the {len(known):,} whose {self.target} is known"
        try:
            cells = read_cells(raw, self._target)
        except TrainingError:  # a column of that name that has something else
            return ""
        difference = (cells.values - predicted)[~cells.missing]
        if not len(difference):
            return ""
        error = np.sqrt(np.mean(np.square(difference)))
        return f"rmse {error:.4g} of the {len(difference):,} whose {self.target} is known"

    def _prepared(self, table: Any) -> Prepared:
        prepared = self.prepare(table)
        for note in prepared.notes:
            warnings.warn(note, UserWarning, stacklevel=3)
        return prepared

    def _prepare_columns(self, raw: RawTable) -> Prepared:
        there = raw.frame.columns
        missing = [name for name in self.features if name not in there]
        if missing:
            raise TrainingError(
                f"{raw.source}: {len(missing)} of the {len(self.features)} columns that the model needs are missing: "
                f"{', '.join(missing)}"
            )
        faults, cells = [], []
        for column in self._columns:
            try:
                cells.append(read_cells(raw, column))
            except TrainingError as error:
                faults.append(error.message)
        if faults:
            raise TrainingError(f"{raw.source}: {len(faults)} columns are not as they were in the training", faults)
        features, unknown = encode(self._columns, cells, len(raw.frame))
        extra = [name for name in there if name not in self.features and name not in self._known]
        notes = [f"columns that the model does not know are not used: {', '.join(extra)}"] if extra else []
        for column, its_cells in zip(self._columns, cells, strict=True):
            if column.kind != "category" and its_cells.missing.any() and not column.has_missing:
                count = its_cells.missing.sum()
                notes.append(
                    f"{column.name}: {count:,} missing, as none was in the training; {column.median:.6g} is taken"
                )
        notes += [f"{name}: {count:,} of kinds that the training had not" for name, count in unknown.items()]
        return Prepared(self._standardised(features), notes, raw)

    def _plain(self, source: str, samples: Array) -> Array:
        if samples.ndim < 2 or samples.dtype.kind not in "buif" or samples[0].size != len(self._mean):
            raise TrainingError(
                f"{source}: expected rows of {len(self._mean)} numbers, got {samples.dtype} {samples.shape}"
            )
        if not np.isfinite(samples).all():
            raise TrainingError(f"{source}: some of the numbers are not finite")
        rows: Array = samples.reshape(len(samples), -1)
        return rows

    def _standardised(self, features: Array) -> Array:
        scaled: Array = ((features - self._mean) / self._scale).astype(self._config.dtype)
        return scaled


def load(run: str | Path) -> TrainedModel:
    """Return the model of a run of ``fastopt train`` on a table.

    Parameters
    ----------
    run : path
        The folder of the run. Nothing else is needed.

    Raises
    ------
    TrainingError
        If there is no such run, it is damaged, or it is none of a table.
    """
    path = Path(run, CHECKPOINT)
    if not path.is_file():
        raise TrainingError(f"{run} is no folder of a run: there is no {path}")
    checkpoint = Checkpoint.load(path, IN_A_CHECKPOINT)
    config = from_json(checkpoint.metadata["config"])
    if not isinstance(config, MLPConfig):
        raise TrainingError(f"{run}: a run of the model {config.model}; only those of tables can predict")
    if "columns" not in checkpoint.metadata["data"]:
        raise TrainingError(
            f"{run}: written before runs kept what predictions need; to add it: fastopt train --resume --out {run}"
        )
    try:
        return TrainedModel(config, checkpoint)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} is damaged ({error!r})") from error
