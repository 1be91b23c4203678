"""A multilayer perceptron on a table, all in NumPy."""

from dataclasses import asdict

import numpy as np

from fastopt.training.assessment import Assessment, assess_classes, assess_numbers
from fastopt.training.batches import ShuffledBatches
from fastopt.training.checkpoint import Checkpoint
from fastopt.training.config import MLPConfig
from fastopt.training.data import Reading, Split, load, split
from fastopt.training.losses import Loss, SoftmaxCrossEntropy, SquaredError
from fastopt.training.mlp import MLP
from fastopt.training.numpy_problem import NumpyProblem


class TableProblem(NumpyProblem):
    """A perceptron that learns to predict a column of a table.

    Parameters
    ----------
    config : MLPConfig
        The settings.
    data : Split, optional
        What to learn from; by default what the settings name is read.

    Raises
    ------
    TrainingError
        If a setting or the data makes no sense.
    """

    sample_unit = "samples"
    model: MLP

    def __init__(self, config: MLPConfig, data: Split | None = None) -> None:
        super().__init__(config)
        reading = Reading(config.separator, config.drop, config.keep)
        self.data = data or split(load(config.data, config.task, config.target, reading), config.seed, config.dtype)
        train, classes, standardization = self.data.train, self.data.classes, self.data.standardization
        self.name, self.fingerprint = self.data.name, self.data.fingerprint
        loss: Loss
        if config.task == "regression":
            loss, self.main_score = SquaredError(standardization.target_scale), "r2"
            self.loss_label = "squared error (variances of the target)"
        else:
            loss, self.main_score = SoftmaxCrossEntropy(), "accuracy"
            self.loss_label = "cross-entropy (nats)"
        self.score_names = loss.score_names

        self.batches = ShuffledBatches(train, config.batch_size, config.seed, config.accumulate)
        widths = [train.features.shape[1], *config.hidden, len(classes) or 1]
        self.model = MLP(widths, loss, batch_size=self.batches.batch_size, dtype=config.dtype, seed=config.seed)
        self.optimizer = self.build_optimizer()

        targets = f"{len(classes)} classes" if classes else "numbers to predict"
        self.data_facts = (
            f"{len(train.targets):,} rows to learn, {len(self.data.test.targets):,} held out, "
            f"{train.features.shape[1]} features, {targets}"
        )
        self.model_facts = f"perceptron {'-'.join(map(str, widths))}"

    def evaluate(self) -> dict[str, float]:
        """Return the scores of the model on held-out rows by name."""
        return self.model.evaluate(self.data.test)

    def assess(self) -> Assessment:
        """Compare the model with the commonest class, or with the mean."""
        train, test, standardization = self.data.train, self.data.test, self.data.standardization
        outputs = self.model.predict(test.features)
        if self.data.classes:
            predicted = outputs.argmax(axis=1)
            return assess_classes(self.evaluate(), predicted, test.targets, train.targets, self.data.classes)
        mean, scale = standardization.target_mean, standardization.target_scale
        predicted, targets = (np.asarray(values, np.float64) * scale + mean for values in (outputs[:, 0], test.targets))
        return assess_numbers(self.evaluate(), predicted, targets, mean)

    def data_checkpoint(self) -> Checkpoint:
        """Return what was learned of the columns, the scaling and the names of the classes."""
        standardization, found = self.data.standardization, self.data.found
        return Checkpoint(
            {"data.mean": standardization.mean, "data.scale": standardization.scale},
            {
                "classes": self.data.classes,
                "target_mean": standardization.target_mean,
                "target_scale": standardization.target_scale,
                "columns": [asdict(column) for column in self.data.columns],
                "target": asdict(found.target) if found else None,
                "left_out": found.left_out if found else [],
            },
        )
