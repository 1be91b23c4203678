"""A run put together from its settings, or brought back from a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastopt
from fastopt.training.checkpoint import Checkpoint, pack, unpack
from fastopt.training.config import Config, MLPConfig, TransformerConfig, from_json
from fastopt.training.data import Batch
from fastopt.training.errors import TrainingError
from fastopt.training.loop import Run
from fastopt.training.problem import Problem
from fastopt.training.table_problem import TableProblem


class Job:
    """Everything that the settings of a run stand for.

    Parameters
    ----------
    config : Config
        The settings.

    Attributes
    ----------
    problem : Problem
        Data, model and optimizer.
    run : Run
        The training, at step 0.

    Raises
    ------
    TrainingError
        If a setting or the data makes no sense.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.problem = problem = _problem(config)
        self.run: Run[Batch] = Run(
            problem.model, problem.batches, problem.update, problem.evaluate, problem.total_steps
        )

    @classmethod
    def resume(cls, path: Path, options: dict[str, Any]) -> "Job":
        """Return the run of a checkpoint, as it was when the checkpoint was written.

        Parameters
        ----------
        path : Path
            The checkpoint.
        options : dict
            Settings that are asked for; they must be those of the run.

        Raises
        ------
        TrainingError
            If there is no checkpoint, or the options or the data are not those that the run was started with.
        """
        checkpoint = Checkpoint.load(path)
        config = from_json(checkpoint.metadata["config"])
        config.check_same(options)
        job = cls(config)
        if job.problem.fingerprint != checkpoint.metadata["data"]["sha256"]:
            raise TrainingError(f"{config.source} has changed since the run was started: it cannot be resumed")
        unpack(checkpoint, job.problem.model.parameters, job.problem.optimizer)
        job.run.step = checkpoint.metadata["step"]
        return job

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Set the threads, and whatever else decides the bits, while the block lasts."""
        before = fastopt.get_num_threads()
        fastopt.set_num_threads(self.config.threads or before)
        try:
            with self.problem.arithmetic():
                yield
        finally:
            fastopt.set_num_threads(before)

    def sample(self) -> str:
        """Return a text that the model has made up; empty for a model that makes none."""
        with self.arithmetic():
            return self.problem.sample()

    def checkpoint(self) -> Checkpoint:
        """Return all that :meth:`resume` needs, and what predictions need of the data."""
        problem = self.problem
        tensors, metadata = pack(problem.model.parameters, problem.optimizer)
        data_tensors, data_facts = problem.data_checkpoint()
        facts = {
            "epoch": self.run.step // problem.batches.steps_per_epoch,
            "config": self.config.to_json(),
            "data": {"sha256": problem.fingerprint, **data_facts},
            "versions": problem.versions(),
        }
        return Checkpoint({**tensors, **data_tensors}, {**metadata, **facts})

    def optimizer_bytes(self) -> int:
        """Return the bytes that a step of the optimizer has to move.

        Read: the gradient for its norm, then gradient, parameter and state. Written: parameter and state.
        """
        tensors, _ = pack(self.problem.model.parameters, self.problem.optimizer)
        return sum((4 if name.startswith("param.") else 2) * values.nbytes for name, values in tensors.items())


def _problem(config: Config) -> Problem:
    match config:
        case MLPConfig():
            return TableProblem(config)
        case TransformerConfig():
            try:
                from fastopt.training.text_problem import TextProblem
            except ModuleNotFoundError as error:
                if error.name != "torch":
                    raise
                raise TrainingError("--model transformer needs torch; install it with: pip install torch") from error
            return TextProblem(config)
    raise TypeError(f"config: expected the settings of a model, got {type(config).__name__}")
