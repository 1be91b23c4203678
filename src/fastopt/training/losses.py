"""What the last layer of a network is trained for, and how it is scored."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Loss(Protocol):
    """A mean loss over the rows of a batch, and the scores shown to people."""

    score_names: tuple[str, ...]

    def to_gradient(self, outputs: Array, targets: Array) -> float:
        """Return the loss and overwrite `outputs`, shape (rows, outputs), with its gradient."""

    def scores(self, outputs: Array, targets: Array) -> dict[str, float]:
        """Return the loss and the scores of the rows by name; `outputs` may be overwritten."""


def softmax(outputs: Array) -> Array:
    """Turn outputs, shape (rows, classes), into probabilities in place."""
    outputs -= outputs.max(axis=1, keepdims=True)  # so that no exponential overflows
    np.exp(outputs, out=outputs)
    outputs /= outputs.sum(axis=1, keepdims=True)
    return outputs


class SoftmaxCrossEntropy:
    r"""Mean of :math:`-\log p_y` with :math:`p = \mathrm{softmax}(z)`.

    The gradient is :math:`(p - \mathrm{onehot}(y)) / n`. The largest output of a row is subtracted first, so no
    exponential overflows.
    """

    score_names: tuple[str, ...] = ("loss", "accuracy")

    def to_gradient(self, outputs: Array, targets: Array) -> float:
        """Return the loss and overwrite `outputs` with its gradient; `targets` are indices of classes."""
        rows = np.arange(len(targets))
        outputs -= outputs.max(axis=1, keepdims=True)
        chosen = outputs[rows, targets]
        np.exp(outputs, out=outputs)
        total = outputs.sum(axis=1, keepdims=True)
        loss = np.mean(np.log(total[:, 0]) - chosen, dtype=np.float64)
        outputs /= total
        outputs[rows, targets] -= 1
        outputs /= len(targets)
        return float(loss)

    def scores(self, outputs: Array, targets: Array) -> dict[str, float]:
        """Return the loss and the accuracy, a fraction between 0 and 1."""
        accuracy = float(np.mean(outputs.argmax(axis=1) == targets))
        return {"loss": self.to_gradient(outputs, targets), "accuracy": accuracy}


class SquaredError:
    r"""Mean of :math:`(z - y)^2`; the gradient is :math:`2 (z - y) / n`.

    Parameters
    ----------
    target_scale : float
        One standardised unit of the target in its own units: the root mean squared error is reported in the latter.
    """

    score_names: tuple[str, ...] = ("loss", "r2", "rmse")

    def __init__(self, target_scale: float = 1.0) -> None:
        self.target_scale = target_scale

    def to_gradient(self, outputs: Array, targets: Array) -> float:
        """Return the loss and overwrite `outputs`, shape (rows, 1), with its gradient."""
        outputs[:, 0] -= targets
        loss = np.mean(np.square(outputs), dtype=np.float64)
        outputs *= 2 / len(targets)
        return float(loss)

    def scores(self, outputs: Array, targets: Array) -> dict[str, float]:
        """Return the loss, the coefficient of determination and the root mean squared error."""
        loss = self.to_gradient(outputs, targets)
        variance = float(np.var(targets, dtype=np.float64))
        r2 = 1 - loss / variance if variance else float("nan")
        return {"loss": loss, "r2": r2, "rmse": loss**0.5 * self.target_scale}
