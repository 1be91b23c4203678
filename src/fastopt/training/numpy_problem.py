"""What the runs have in common whose models are in NumPy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import fastopt
from fastopt import StepInfo, optimizers
from fastopt.training.config import Config
from fastopt.training.errors import TrainingError
from fastopt.training.problem import Problem
from fastopt.training.recipes import build_optimizer, rival


class NumpyProblem(Problem):
    """A model in NumPy, with `gradients`, and an optimizer of this library.

    Parameters
    ----------
    config : Config
        The settings.

    Raises
    ------
    TrainingError
        If the optimizer is one of torch's.
    """

    model: Any

    def __init__(self, config: Config) -> None:
        if rival(config.optimizer):
            raise TrainingError(f"--optimizer {config.optimizer} needs a model in torch: --model transformer")
        self.config = config

    def build_optimizer(self, **options: Any) -> Any:
        """Return the optimizer of the settings, with further options, for the model's parameters."""
        return build_optimizer(
            self.config,
            optimizers.registry(),
            self.model.parameters,
            self.total_steps,
            clip_norm=self.config.max_norm,
            nonfinite="raise",
            **options,
        )

    def update(self, of: int = 1) -> StepInfo:
        """Add the gradients that the model has found to the mean of so many; take the step once it has them all."""
        if self.optimizer.accumulate != of:
            self.optimizer.accumulate = of
        info: StepInfo = self.optimizer.step(self.model.gradients)
        return info

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Set the threads of the matrix products while the block lasts.

        The threads of BLAS wait by spinning, as those of OpenMP do. Where both have several, or another process wants a
        core, they keep each other from working: 0.4 ms for a step of the digits have been seen to become 80 ms. So the
        products get one thread unless more are asked for.
        """
        with (
            threadpool_limits(self.config.threads or 1, user_api="blas"),
            np.errstate(over="ignore", invalid="ignore"),  # of a run that diverges the optimizer reports it
        ):
            yield

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that the bits depend on."""
        return {"fastopt": fastopt.__version__, "numpy": np.__version__}
