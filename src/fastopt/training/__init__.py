"""Training of small models on the CPU: the recipe behind ``fastopt train``, and the models that it makes.

``load(RUN)`` returns the model of a run, to predict with. ``Classifier`` and ``Regressor`` are trained in Python as
models of scikit-learn are.

To see how it works read :mod:`fastopt.training.loop` first: it is the whole recipe. The other modules bring what it
uses: the data, a multilayer perceptron, the optimizer and its schedule, the checkpoint and the report. All of it needs
the extra ``fastopt[cli]``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastopt.training.estimators import Classifier, Regressor
    from fastopt.training.prediction import load

__all__ = ["Classifier", "Regressor", "load"]

_MODULES = {"Classifier": "estimators", "Regressor": "estimators", "load": "prediction"}


def __getattr__(name: str) -> Any:
    """Import what is asked for: scikit-learn takes a second to import, and the command line does not need it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
