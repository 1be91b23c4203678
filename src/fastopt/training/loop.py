"""The training loop: the whole recipe, whatever the model."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter
from typing import Any, Generic, Protocol, Self, TypeVar

from numpy.typing import NDArray

from fastopt import StepInfo
from fastopt.training.errors import TrainingError
from fastopt.training.metrics import StepRecord

# The most work that a kill can undo: epochs may take milliseconds, or hours, and a durable file takes a while.
CHECKPOINT_SECONDS = 1.0
CHECKPOINT_SECONDS_WITHIN_EPOCH = 30.0


class Batch(Protocol):
    """Some samples of the training data, in whatever form the model takes them."""

    @property
    def samples(self) -> int:
        """Number of samples."""

    def pieces(self, most: int) -> Sequence[Self]:
        """Return it cut into pieces of at most so many rows."""


AnyBatch = TypeVar("AnyBatch", bound=Batch)
BatchOut = TypeVar("BatchOut", bound=Batch, covariant=True)
BatchIn = TypeVar("BatchIn", bound=Batch, contravariant=True)


class Batches(Protocol[BatchOut]):
    """The training data in its order, a pure function of the step: to resume, the number of steps taken is enough."""

    batch_size: int
    """Rows that the model is given at once, at most."""
    steps_per_epoch: int

    def from_step(self, step: int) -> Iterator[BatchOut]:
        """Yield the samples of `step` (the first is 0), of the step after it, and so on without end."""


class Model(Protocol[BatchIn]):
    """Named parameters, and how to find their gradients."""

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        """The parameters in the order in which the optimizer has them; it changes them in place."""

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent on the parts of :meth:`forward_backward`."""

    def forward_backward(self, batch: BatchIn) -> float:
        """Return the loss of a batch and leave its gradient where the optimizer finds it."""


@dataclass
class Run(Generic[AnyBatch]):
    """A training run on its way.

    Attributes
    ----------
    model, batches
        What is trained, and on what.
    update : callable
        Called with the number of pieces of a step after each of them: adds the gradients that the model has found to
        their mean, and takes the optimizer's step by that after the last.
    evaluate : callable
        Returns the scores of the model on held-out data by name.
    total_steps : int
        Where the run ends.
    step : int
        Steps taken so far, those before a resumption included.
    new_steps, new_samples : int
        Steps taken and samples seen in this process.
    optimizer_seconds : float
        Time spent in the optimizer in this process.
    """

    model: Model[AnyBatch]
    batches: Batches[AnyBatch]
    update: Callable[[int], StepInfo]
    evaluate: Callable[[], dict[str, float]]
    total_steps: int
    step: int = 0
    new_steps: int = field(default=0, init=False)
    new_samples: int = field(default=0, init=False)
    optimizer_seconds: float = field(default=0.0, init=False)

    @property
    def step_seconds(self) -> float:
        """Time spent on steps in this process: by the model and by the optimizer."""
        return sum(self.model.seconds.values()) + self.optimizer_seconds

    @property
    def is_complete(self) -> bool:
        """Whether there is no step left."""
        return self.step >= self.total_steps


def train(
    run: Run[AnyBatch],
    *,
    observe: Callable[[StepRecord], None],
    save: Callable[[], None],
    should_stop: Callable[[], bool],
) -> None:
    """Take the remaining steps of a run.

    Parameters
    ----------
    run : Run
        The run; its model and counters change.
    observe : callable
        Called with the record of every step.
    save : callable
        Called when the run is to be made durable: when it starts, after an epoch if the last time is a second ago,
        within an epoch if it is half a minute ago, and when it ends.
    should_stop : callable
        Asked after every step; True ends the run early, saved and ready to be resumed.

    Raises
    ------
    TrainingError
        If a gradient is not finite; the parameters are those of the step before.
    """
    save()
    saved_at = perf_counter()
    for batch in islice(run.batches.from_step(run.step), run.total_steps - run.step):
        loss = 0.0
        for piece in (pieces := batch.pieces(run.batches.batch_size)):
            loss += run.model.forward_backward(piece) * (piece.samples / batch.samples)
            info = _timed_update(run, len(pieces))
        run.step += 1
        run.new_steps += 1
        run.new_samples += batch.samples

        epoch, position = divmod(run.step - 1, run.batches.steps_per_epoch)
        ends_epoch = position == run.batches.steps_per_epoch - 1
        scores = run.evaluate() if ends_epoch else {}
        norm = math.nan if info.grad_norm is None else info.grad_norm
        observe(StepRecord(run.step, epoch + 1, loss, info.lr, norm, scores))

        stops = run.is_complete or should_stop()
        patience = CHECKPOINT_SECONDS if ends_epoch else CHECKPOINT_SECONDS_WITHIN_EPOCH
        if stops or perf_counter() - saved_at > patience:
            save()
            saved_at = perf_counter()
        if stops:
            break


def _timed_update(run: Run[Any], pieces: int) -> StepInfo:
    started = perf_counter()
    try:
        info = run.update(pieces)
    except FloatingPointError as error:
        raise TrainingError(
            f"the training diverged at step {run.step + 1} ({error}); try a lower --lr or a lower --clip-norm"
        ) from error
    except ValueError as error:  # (each option is within its bounds, but not what the step makes of them)
        raise TrainingError(
            f"the optimizer cannot take step {run.step + 1} ({error}); try a lower --lr or a lower --weight-decay"
        ) from error
    run.optimizer_seconds += perf_counter() - started
    return info
