"""What a run is about, behind one face: data, model and optimizer, put together from the settings."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from fastopt import StepInfo
from fastopt.modes import TwoModes
from fastopt.training.assessment import Assessment
from fastopt.training.batches import Batch, ShuffledBatches
from fastopt.training.checkpoint import Checkpoint
from fastopt.training.config import Config
from fastopt.training.loop import Model


class Problem(ABC):
    """Data, model and optimizer of a run.

    Attributes
    ----------
    config : Config
        The settings.
    name : str
        What to call the data.
    fingerprint : str
        SHA-256 of the data.
    data_facts, model_facts : str
        What to say of the data and of the model in a line.
    model : Model
        What is trained.
    batches : ShuffledBatches
        The training data in its order.
    optimizer
        What trains it, with `state_dict` and `load_state_dict`.
    score_names : tuple of str
        What the model is scored by on held-out data.
    main_score : str
        The one of them that is shown during the training.
    loss_label : str
        The name of the loss with its unit.
    sample_unit : str
        What the targets are, in the plural and short.
    steps_all : bool
        Whether a step of the optimizer is one of all parameters, and not of some rows of tables.
    """

    config: Config
    name: str
    fingerprint: str
    data_facts: str
    model_facts: str
    model: Model[Batch]
    batches: ShuffledBatches
    optimizer: Any
    score_names: tuple[str, ...]
    main_score: str
    loss_label: str
    sample_unit: str
    steps_all: bool = True

    @property
    def total_steps(self) -> int:
        """Where the run ends."""
        return self.config.epochs * self.batches.steps_per_epoch

    @abstractmethod
    def build_optimizer(self, **options: Any) -> Any:
        """Return the optimizer of the settings, with further options, for the model's parameters."""

    @abstractmethod
    def update(self, of: int = 1) -> StepInfo:
        """Add the gradients that the model has found to the mean of so many; take the step once it has them all."""

    @property
    def has_two_modes(self) -> bool:
        """Whether the parameters are trained in another place than they are used in (Schedule-Free)."""
        return isinstance(self.inner_optimizer, TwoModes)

    @property
    def inner_optimizer(self) -> Any:
        """The optimizer itself: in torch it is within what follows a backward pass."""
        return getattr(self.optimizer, "inner", self.optimizer)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Have the parameters where they are used, while the block lasts; then where they were, to the bit."""
        if not self.has_two_modes:
            yield
            return
        arrays = list(self.model.parameters.values())
        trained = [array.copy() for array in arrays]
        self.inner_optimizer.eval()
        try:
            yield
        finally:
            self.inner_optimizer.train()
            for array, values in zip(arrays, trained, strict=True):
                array[...] = values

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Return the scores of the model on held-out data by name."""

    @abstractmethod
    def assess(self) -> Assessment:
        """Return all that can be said of the model on held-out data, and how it compares with learning nothing."""

    @abstractmethod
    def arithmetic(self) -> AbstractContextManager[object]:
        """Set the threads of the model's library, and whatever else decides its bits, while the block lasts."""

    @abstractmethod
    def data_checkpoint(self) -> Checkpoint:
        """Return what a user of the model needs to know of the data."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that the bits depend on."""

    def sample(self) -> str:
        """Return a text that the model has made up; empty for a model that makes none."""
        return ""
