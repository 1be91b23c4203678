"""A recommender on interactions, all in NumPy."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastopt.training.assessment import Assessment, assess_ranking
from fastopt.training.batches import Batch, ShuffledBatches
from fastopt.training.checkpoint import Checkpoint
from fastopt.training.config import RecommenderConfig
from fastopt.training.errors import TrainingError
from fastopt.training.interactions import load_interactions
from fastopt.training.numpy_problem import NumpyProblem
from fastopt.training.randomness import Stream, generator
from fastopt.training.recipes import registered
from fastopt.training.recommender import Recommender

OTHERS, HIT = 99, 10
"""A held-out item is ranked among so many others at random; among the first so many it is a hit (He et al. 2017)."""
EVALUATED = 20_000
"""Held-out interactions that are looked at, at most."""


class PairedBatches(ShuffledBatches):
    """Batches of users and the items that they took, each with another item at random: columns of the features."""

    def __init__(self, pairs: NDArray[np.int64], items: int, batch_size: int | Literal["full"], seed: int) -> None:
        super().__init__(Batch(pairs, np.zeros(len(pairs), np.int8)), batch_size, seed)
        self._items = items

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yield the batch of `step`, and so on; what is drawn is a pure function of the step, too."""
        for number, batch in enumerate(super().from_step(step), start=step):
            others = generator(self._seed, Stream.NEGATIVES, number).integers(self._items, size=(len(batch.targets), 1))
            yield Batch(np.concatenate([batch.features, others], axis=1), batch.targets)


class RecommenderProblem(NumpyProblem):
    """A recommender that learns what users take.

    Parameters
    ----------
    config : RecommenderConfig
        The settings.

    Raises
    ------
    TrainingError
        If a setting or the data makes no sense.
    """

    sample_unit = "pairs"
    score_names = ("loss", "auc", "hit_rate")
    main_score = "auc"
    loss_label = "pairwise cross-entropy (nats)"
    steps_all = False
    model: Recommender

    def __init__(self, config: RecommenderConfig) -> None:
        super().__init__(config)
        if "lazy" not in registered(config).method.options:
            raise TrainingError(f"--optimizer {config.optimizer}: steps no rows alone, as --model recommender needs")
        if config.accumulate > 1:
            raise TrainingError("--accumulate: --model recommender steps rows alone, whose gradients are not added up")
        self.data = data = load_interactions(config.interactions, config.seed)
        self.name, self.fingerprint = data.name, data.fingerprint
        self.batches = PairedBatches(data.train, data.items, config.batch_size, config.seed)
        self.model = Recommender(data.users, data.items, width=config.width, dtype=config.dtype, seed=config.seed)
        self.optimizer = self.build_optimizer()
        test = data.test[:EVALUATED]
        others = generator(config.seed, Stream.NEGATIVES).integers(data.items, size=(len(test), OTHERS))
        self._users, self._ranked = test[:, 0], np.concatenate([test[:, 1:], others], axis=1)
        self.data_facts = (
            f"{len(data.train):,} interactions to learn, {len(data.test):,} held out, {data.users:,} users, "
            f"{data.items:,} items"
        )
        self.model_facts = f"two towers over embeddings of {config.width}"

    def build_optimizer(self, **options: Any) -> Any:
        """Return the optimizer of the settings, with further options, which steps rows alone."""
        lazy = {} if registered(self.config).method.options["lazy"].fixed else {"lazy": True}
        return super().build_optimizer(**lazy, **options)

    def evaluate(self) -> dict[str, float]:
        """Return the scores of the model on held-out interactions by name."""
        users, items, bias = self.model.vectors()
        scores = np.einsum("nw,nrw->nr", users[self._users], items[self._ranked]) + bias[self._ranked]
        loss = float(np.mean(np.logaddexp(0, scores[:, 1:] - scores[:, :1]), dtype=np.float64))
        return {"loss": loss, **ranking(scores)}

    def assess(self) -> Assessment:
        """Compare the model with what is popular."""
        return assess_ranking(self.evaluate(), ranking(self.data.popularity[self._ranked]))

    def data_checkpoint(self) -> Checkpoint:
        """Return how many users and items there are."""
        return Checkpoint({}, {"users": self.data.users, "items": self.data.items})


def ranking(scores: NDArray[np.floating]) -> dict[str, float]:
    """Return how well the first of each row is ranked among the others; equal scores count half."""
    first, others = scores[:, :1], scores[:, 1:]
    above = (others > first).sum(axis=1) + 0.5 * (others == first).sum(axis=1)
    return {"auc": float(1 - np.mean(above) / others.shape[1]), "hit_rate": float(np.mean(above < HIT))}
