"""A run of a perceptron on a table: put together from its settings, or brought back from a checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np

import fastopt
from fastopt.training.checkpoint import Checkpoint, pack, unpack
from fastopt.training.config import Config
from fastopt.training.data import Batch, ShuffledBatches, Task, load, split
from fastopt.training.errors import TrainingError
from fastopt.training.loop import Run
from fastopt.training.losses import Loss, SoftmaxCrossEntropy, SquaredError
from fastopt.training.mlp import MLP
from fastopt.training.recipes import build_optimizer


class Job:
    """Everything that the settings of a run stand for.

    Parameters
    ----------
    config : Config
        The settings.

    Attributes
    ----------
    table : Table
        The data.
    split : Split
        The data in two parts, standardised.
    run : Run
        Model, batches and optimizer, at step 0.
    widths : list of int
        Units of the layers, from the features to the outputs.
    score_names : tuple of str
        What the run is scored by on held-out data.

    Raises
    ------
    TrainingError
        If a setting or the data makes no sense.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.table = load(config.data, config.task, config.target)
        self.split = split(self.table, config.seed, config.dtype)
        rows = self.split.train.samples if config.batch_size == "full" else config.batch_size
        batches = ShuffledBatches(self.split.train, rows, config.seed)
        loss = self._loss(config.task)
        self.score_names = loss.score_names
        self.widths = [self.split.train.features.shape[1], *config.hidden, len(self.table.classes) or 1]
        model = MLP(self.widths, loss, batch_size=batches.batch_size, dtype=config.dtype, seed=config.seed)
        total_steps = config.epochs * batches.steps_per_epoch
        optimizer = build_optimizer(config, model.parameters, total_steps)
        self.run: Run[Batch] = Run(model, batches, optimizer, lambda: model.evaluate(self.split.test), total_steps)

    def _loss(self, task: Task) -> Loss:
        if task == "regression":
            return SquaredError(self.split.standardization.target_scale)
        return SoftmaxCrossEntropy()

    @classmethod
    def resume(cls, path: Path, options: dict[str, Any]) -> "Job":
        """Return the run of a checkpoint, as it was when the checkpoint was written.

        Parameters
        ----------
        path : Path
            The checkpoint.
        options : dict
            Settings that are asked for; they must be those of the run.

        Raises
        ------
        TrainingError
            If there is no checkpoint, or the options or the data are not those that the run was started with.
        """
        checkpoint = Checkpoint.load(path)
        config = Config.from_json(checkpoint.metadata["config"])
        config.check_same(options)
        job = cls(config)
        if job.table.fingerprint != checkpoint.metadata["data"]["sha256"]:
            raise TrainingError(f"{config.data} has changed since the run was started: it cannot be resumed")
        unpack(checkpoint, job.run.model.parameters, job.run.optimizer)
        job.run.step = checkpoint.metadata["step"]
        return job

    def checkpoint(self) -> Checkpoint:
        """Return all that :meth:`resume` needs, and for predictions the scaling and the names of the classes."""
        tensors, metadata = pack(self.run.model.parameters, self.run.optimizer)
        standardization = self.split.standardization
        tensors = {**tensors, "data.mean": standardization.mean, "data.scale": standardization.scale}
        data = {
            "sha256": self.table.fingerprint,
            "classes": self.table.classes,
            "target_mean": standardization.target_mean,
            "target_scale": standardization.target_scale,
        }
        versions = {"fastopt": fastopt.__version__, "numpy": np.__version__}
        epoch = self.run.step // self.run.batches.steps_per_epoch
        return Checkpoint(
            tensors, {**metadata, "epoch": epoch, "config": self.config.to_json(), "data": data, "versions": versions}
        )

    def optimizer_bytes(self) -> int:
        """Return the bytes that a step of the optimizer moves.

        Read: the gradient for its norm, then gradient, parameter and state. Written: parameter and state.
        """
        parameters = self.run.model.parameters.values()
        streams = [4 + 2 * len(state) for state in self.run.optimizer.state]
        return sum(count * values.nbytes for count, values in zip(streams, parameters, strict=True))
