"""How good a trained model is on held-out data, beside what is right without learning anything."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ROUNDING = 1e-6
"""By what part two errors must differ to be two: models compute in float32."""


class Assessment(NamedTuple):
    """What is known of a model at the end.

    Attributes
    ----------
    scores : dict
        Everything, as values that JSON can hold.
    baseline : str
        What is right without learning anything, in words.
    is_better : bool
        Whether the model is.
    """

    scores: dict[str, Any]
    baseline: str
    is_better: bool


def assess_classes(
    scores: dict[str, float], predicted: Array, targets: Array, train: Array, classes: Sequence[str]
) -> Assessment:
    """Assess a classifier: confusion matrix, precision and recall of each class, the commonest class as a baseline.

    Parameters
    ----------
    scores : dict
        Loss and accuracy.
    predicted, targets : ndarray of int
        Classes of the held-out rows.
    train : ndarray of int
        Classes of the training rows: what is the commonest goes by them.
    classes : sequence of str
        Their names.
    """
    count = len(classes)
    confusion = np.bincount(targets * count + predicted, minlength=count * count).reshape(count, count)
    right, of_class, as_class = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    commonest = int(np.bincount(train, minlength=count).argmax())
    share = of_class[commonest] / len(targets)
    by_class = {
        name: {
            "precision": _ratio(right[index], as_class[index]),
            "recall": _ratio(right[index], of_class[index]),
            "rows": int(of_class[index]),
        }
        for index, name in enumerate(classes)
    }
    facts = {
        "rows": len(targets),
        **scores,
        "baseline": {"class": classes[commonest], "accuracy": float(share)},
        "classes": by_class,
        "confusion": confusion.tolist(),
    }
    text = f"{share:.1%} by always saying {classes[commonest]!r}, the commonest class"
    return Assessment(facts, text, scores["accuracy"] > share)


def assess_numbers(scores: dict[str, float], predicted: Array, targets: Array, mean: float) -> Assessment:
    """Assess a regression: mean absolute error, and the mean of the training rows as a baseline.

    Parameters
    ----------
    scores : dict
        Loss, coefficient of determination and root mean squared error.
    predicted, targets : ndarray
        Of the held-out rows, in their own units.
    mean : float
        The mean target of the training rows.
    """
    rmse = float(np.sqrt(np.mean(np.square(targets - mean))))
    facts = {
        "rows": len(targets),
        **scores,
        "mean_absolute_error": float(np.mean(np.abs(predicted - targets))),
        "baseline": {
            "prediction": mean,
            "rmse": rmse,
            "mean_absolute_error": float(np.mean(np.abs(targets - mean))),
        },
    }
    text = f"rmse {rmse:.4g} by always saying {mean:.4g}, the mean"
    return Assessment(facts, text, scores["rmse"] < rmse * (1 - ROUNDING))


def assess_text(scores: dict[str, float], entropy: float) -> Assessment:
    """Assess a model of a text; the baseline knows how frequent each character is."""
    facts = {**scores, "baseline": {"bits_per_character": entropy}}
    text = f"{entropy:.4g} bits per character by their frequency alone"
    return Assessment(facts, text, scores["bits_per_character"] < entropy)


def assess_ranking(scores: dict[str, float], popular: dict[str, float]) -> Assessment:
    """Assess a recommender; the baseline ranks items by how often they were taken."""
    text = f"auc {popular['auc']:.4g}, hit rate {popular['hit_rate']:.4g} by the popularity of items"
    return Assessment({**scores, "baseline": popular}, text, scores["auc"] > popular["auc"])


def _ratio(part: int, whole: int) -> float | None:
    """Return a share; None of nothing."""
    return float(part / whole) if whole else None
