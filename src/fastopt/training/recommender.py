"""A two-tower recommender in NumPy, whose tables have gradients of a batch's rows alone."""

from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import Rows
from fastopt.training.batches import Batch
from fastopt.training.randomness import Stream, generator

Array = NDArray[Any]

SPREAD = 0.1
"""Standard deviation of the first embeddings."""
WIDER = 2
"""Units of a tower's hidden layer, in widths of the embedding."""


class Recommender:
    r"""Scores :math:`z_u \cdot z_i + c_i` of two towers :math:`z = e + W_2\,\mathrm{relu}(W_1 e + b)` over embeddings.

    It is trained so that what a user took scores higher than what she did not take [1]_: the mean of
    :math:`\log(1 + \exp(-(s_+ - s_-)))` over pairs of an item that she took and one at random.

    Parameters
    ----------
    users, items : int
        How many there are.
    width : int
        Numbers in an embedding.
    dtype : {"float32", "float64"}
        The precision of parameters and arithmetic.
    seed : int
        Decides the initial weights.

    Attributes
    ----------
    parameters : dict of str to ndarray
        The tables ``users.weight``, ``items.weight`` and ``items.bias``, then the towers.
    gradients : dict of str to ndarray or Rows
        What the last :meth:`forward_backward` found.
    seconds : dict of str to float
        Time spent in ``"forward"`` and ``"backward"`` during training.

    References
    ----------
    .. [1] Rendle, Freudenthaler, Gantner, Schmidt-Thieme: BPR: Bayesian personalized ranking from implicit feedback,
       UAI 2009.
    """

    def __init__(self, users: int, items: int, *, width: int, dtype: str, seed: int) -> None:
        def normal(index: int, shape: tuple[int, int], spread: float) -> Array:
            return (spread * generator(seed, Stream.WEIGHTS, index).standard_normal(shape)).astype(dtype)

        self.parameters: dict[str, Array] = {
            "users.weight": normal(0, (users, width), SPREAD),
            "items.weight": normal(1, (items, width), SPREAD),
            "items.bias": np.zeros((items, 1), dtype),
        }
        hidden = WIDER * width
        for index, tower in enumerate(("user", "item"), start=2):
            self.parameters[f"{tower}.0.weight"] = normal(index, (hidden, width), (2 / width) ** 0.5)
            self.parameters[f"{tower}.0.bias"] = np.zeros(hidden, dtype)
            self.parameters[f"{tower}.1.weight"] = np.zeros((width, hidden), dtype)
        self.gradients: dict[str, Any] = {}
        self.seconds = {"forward": 0.0, "backward": 0.0}

    def forward_backward(self, batch: Batch) -> float:
        """Return the mean loss of users, the items that they took, and others; leave its gradient in `gradients`."""
        started = perf_counter()
        users, *both = batch.features.T
        items = np.concatenate(both)
        of_users, of_items = self.parameters["users.weight"][users], self.parameters["items.weight"][items]
        (z, hidden), (zs, hiddens) = self._tower("user", of_users), self._tower("item", of_items)
        taken, other = np.split(zs, 2)
        bias = self.parameters["items.bias"][items, 0]
        margin = np.einsum("bw,bw->b", z, taken - other) + bias[: len(users)] - bias[len(users) :]
        loss = float(np.mean(np.logaddexp(0, -margin), dtype=np.float64))
        halfway = perf_counter()

        slope = (-0.5 * (1 - np.tanh(margin / 2)) / len(users)).astype(z.dtype)[:, None]
        slopes = np.concatenate([slope, -slope])
        self.gradients = {
            "users.weight": Rows(users, self._down("user", slope * (taken - other), of_users, hidden)),
            "items.weight": Rows(items, self._down("item", slopes * np.tile(z, (2, 1)), of_items, hiddens)),
            "items.bias": Rows(items, slopes),
            **{name: self.gradients[name] for name in list(self.parameters)[3:]},
        }
        self.seconds["forward"] += halfway - started
        self.seconds["backward"] += perf_counter() - halfway
        return loss

    def vectors(self) -> tuple[Array, Array, Array]:
        """Return what the towers make of all users and of all items, and the items' biases."""
        users, items = (self._tower(name, self.parameters[f"{name}s.weight"])[0] for name in ("user", "item"))
        return users, items, self.parameters["items.bias"][:, 0]

    def _tower(self, name: str, embeddings: Array) -> tuple[Array, Array]:
        """Return what a tower makes of embeddings, and its hidden layer."""
        hidden = embeddings @ self.parameters[f"{name}.0.weight"].T + self.parameters[f"{name}.0.bias"]
        np.maximum(hidden, 0, out=hidden)
        return embeddings + hidden @ self.parameters[f"{name}.1.weight"].T, hidden

    def _down(self, name: str, slope: Array, embeddings: Array, hidden: Array) -> Array:
        """Leave a tower's gradients; return that of its embeddings."""
        below = slope @ self.parameters[f"{name}.1.weight"]
        below *= hidden > 0
        self.gradients[f"{name}.1.weight"] = slope.T @ hidden
        self.gradients[f"{name}.0.weight"] = below.T @ embeddings
        self.gradients[f"{name}.0.bias"] = below.sum(axis=0)
        return np.asarray(slope + below @ self.parameters[f"{name}.0.weight"])
