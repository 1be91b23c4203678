"""The perceptron of ``fastopt train`` as models of scikit-learn."""

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin  # type: ignore[import-untyped]
from sklearn.utils.multiclass import check_classification_targets  # type: ignore[import-untyped]
from sklearn.utils.validation import check_is_fitted, validate_data  # type: ignore[import-untyped]

from fastopt.training.batches import Batch
from fastopt.training.config import MLPConfig
from fastopt.training.data import Split, Standardization, Task
from fastopt.training.job import Job
from fastopt.training.loop import train
from fastopt.training.losses import softmax
from fastopt.training.recipes import configure
from fastopt.training.table_problem import TableProblem

Array = NDArray[Any]


class _Perceptron(BaseEstimator):  # type: ignore[misc]
    _task: ClassVar[Task]

    def __init__(
        self,
        hidden: tuple[int, ...] = MLPConfig.hidden,
        *,
        optimizer: str = MLPConfig.optimizer,
        lr: float | None = None,
        schedule: str = MLPConfig.schedule,
        warmup: str | None = None,
        weight_decay: float | None = None,
        clip_norm: float = MLPConfig.clip_norm,
        batch_size: int | str = MLPConfig.batch_size,
        epochs: int = MLPConfig.epochs,
        seed: int = MLPConfig.seed,
        dtype: str = "float64",
        threads: int | None = None,
    ) -> None:
        self.hidden = hidden
        self.optimizer = optimizer
        self.lr = lr
        self.schedule = schedule
        self.warmup = warmup
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.batch_size = batch_size
        self.epochs = epochs
        self.seed = seed
        self.dtype = dtype
        self.threads = threads

    def _fit(self, samples: Array, targets: Array, classes: tuple[str, ...]) -> Self:
        settings = {name: value for name, value in self.get_params().items() if value is not None}
        config = configure("mlp", {**settings, "hidden": tuple(self.hidden), "task": self._task})
        assert isinstance(config, MLPConfig)
        scaling = Standardization.fit(samples, targets, one_unit=False)
        rows = scaling.apply(samples, targets, config.dtype)
        nothing = Batch(rows.features[:0], rows.targets[:0])
        problem = TableProblem(config, Split(rows, nothing, scaling, classes))
        job = Job(config, problem)
        job.run.evaluate = dict
        with job.arithmetic():
            train(job.run, observe=lambda record: None, save=lambda: None, should_stop=lambda: False)
        if problem.has_two_modes:
            problem.optimizer.eval()
        self.standardization_, self.model_ = scaling, problem.model
        self.n_iter_ = config.epochs
        return self

    def _outputs(self, samples: Any) -> Array:
        check_is_fitted(self)
        samples = validate_data(self, samples, reset=False, dtype=np.float64)
        outputs: Array = self.model_.predict(
            self.standardization_.apply(samples, np.zeros(0, int), self.dtype).features
        )
        return outputs


class Classifier(ClassifierMixin, _Perceptron):  # type: ignore[misc]
    """The perceptron of ``fastopt train`` as a classifier of scikit-learn.

    Features are standardised by the rows that it is fitted to, all of which are learned from: to hold rows out is
    scikit-learn's part.

    Parameters
    ----------
    hidden : tuple of int, default (256, 128)
        Units of the hidden layers; empty for a linear model.
    optimizer, schedule : str, default "adamw", "warmup-cosine"
        Names that ``fastopt train --help`` lists.
    lr, weight_decay : float, optional
        The highest learning rate, and the strength of the pull to zero. By default what fits the optimizer.
    warmup : str, optional
        Steps, or share of all such as ``"5%"``, in which the learning rate rises. By default what fits the schedule.
    clip_norm : float, default 1.0
        The largest norm of the gradient; 0 never clips.
    batch_size : int or "full", default 32
        Rows for one step.
    epochs : int, default 30
        Passes over the rows.
    seed : int, default 0
        Decides the first weights and the order of the rows.
    dtype : {"float32", "float64"}, default "float64"
        The precision of all arithmetic. In float32 the prediction for a row may depend in its last places on the rows
        beside it, which scikit-learn's checks do not accept.
    threads : int, optional
        Threads of the optimizer and of the matrix products. By default one for the products, and for the optimizer
        those of :func:`fastopt.get_num_threads`.

    Attributes
    ----------
    classes_ : ndarray
        The classes in the order of their probabilities.
    """

    _task = "classification"

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the classes `y` of the rows `X`, shape (rows, features), numbers that are finite.

        Raises
        ------
        ValueError
            If they are not, or there is one class only.
        TrainingError
            If a parameter makes no sense.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: expected two classes or more, got one class only: {self.classes_[0]!r}")
        return self._fit(X, targets.astype(np.int64), tuple(map(str, self.classes_)))

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, shape (rows, classes)."""
        return softmax(self._outputs(X).astype(np.float64))

    def predict(self, X: Any) -> Array:
        """Return the likeliest class of each row."""
        decided = self._outputs(X).argmax(axis=1)
        classes: Array = self.classes_[decided]
        return classes


class Regressor(RegressorMixin, _Perceptron):  # type: ignore[misc]
    """The perceptron of ``fastopt train`` as a regressor of scikit-learn.

    Features and targets are standardised by the rows that it is fitted to, all of which are learned from: to hold rows
    out is scikit-learn's part.

    Parameters
    ----------
    hidden, optimizer, lr, schedule, warmup, weight_decay, clip_norm, batch_size, epochs, seed, dtype, threads
        As of :class:`Classifier`.
    """

    _task = "regression"

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the numbers `y` of the rows `X`, shape (rows, features), all of them finite.

        Raises
        ------
        ValueError
            If they are not.
        TrainingError
            If a parameter makes no sense.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        return self._fit(X, np.asarray(y, np.float64), ())

    def predict(self, X: Any) -> Array:
        """Return the number that is predicted for each row."""
        outputs = self._outputs(X)[:, 0].astype(np.float64)
        scaling = self.standardization_
        numbers: Array = outputs * scaling.target_scale + scaling.target_mean
        return numbers
