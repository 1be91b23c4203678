"""A run put together from its settings, or brought back from a checkpoint."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastopt
from fastopt import environment
from fastopt.training.assessment import Assessment
from fastopt.training.batches import Batch
from fastopt.training.checkpoint import IN_USE, Checkpoint, pack, unpack
from fastopt.training.config import Config, MLPConfig, RecommenderConfig, TransformerConfig, from_json
from fastopt.training.errors import TrainingError
from fastopt.training.loop import Run, train
from fastopt.training.problem import Problem
from fastopt.training.recommender_problem import RecommenderProblem
from fastopt.training.table_problem import TableProblem

IN_A_CHECKPOINT = {"step": int, "epoch": int, "state": dict, "config": dict, "data": dict, "versions": dict}
"""What the metadata of a run's checkpoint must have."""

NOT_IN_OLD_CHECKPOINTS = {
    "config": {"drop", "keep", "separator", "accumulate"},
    "data": {"columns", "target", "left_out"},
}
"""What runs did not write that were started before there was such a thing."""


class Job:
    """Everything that the settings of a run stand for.

    Parameters
    ----------
    config : Config
        The settings.
    problem : Problem, optional
        What they stand for; by default it is put together from them.

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

    def __init__(self, config: Config, problem: Problem | None = None) -> None:
        self.config = config
        try:
            self.problem = problem = problem or _problem(config)
        except MemoryError as error:
            raise TrainingError(f"the data and the model do not fit into the memory ({error})") from error
        self.run: Run[Batch] = Run(problem.model, problem.batches, problem.update, self.evaluate, problem.total_steps)

    @classmethod
    def resume(cls, path: Path, options: dict[str, Any]) -> "Job":
        """Return the run of a checkpoint, as it was when the checkpoint was written.

        All of the checkpoint is checked before anything of it is used.

        Parameters
        ----------
        path : Path
            The checkpoint.
        options : dict
            Settings that are asked for. They must be those of the run, except that it may become longer: more epochs
            continue it as if it had been that long from the start, on a schedule of the new length.

        Raises
        ------
        TrainingError
            If there is no checkpoint or it is damaged, or the options, the data or the versions of the libraries are
            not those that the run was started with.
        """
        checkpoint = Checkpoint.load(path, IN_A_CHECKPOINT)
        saved = checkpoint.metadata
        try:
            config = from_json(saved["config"])
        except TrainingError as error:
            raise TrainingError(f"{path}: {error}") from error
        epochs = options.get("epochs", config.epochs)
        if type(epochs) is int and epochs > config.epochs:
            config = replace(config, epochs=epochs)
            saved["config"]["epochs"] = epochs
        config.check_same(options)
        job = cls(config)
        job._check_same_bits(path, saved)
        if saved["step"]:
            job._take_first_step()
        now = job.checkpoint()
        for part, names in NOT_IN_OLD_CHECKPOINTS.items():
            for name in names & now.metadata[part].keys():
                saved[part].setdefault(name, now.metadata[part][name])
        difference = checkpoint.difference(now)
        if difference:
            raise TrainingError(f"{path} does not fit the run that it is of, or is damaged ({difference})")
        try:
            unpack(checkpoint, job.problem.model.parameters, job.problem.optimizer)
        except (TypeError, ValueError, KeyError) as error:
            raise TrainingError(f"{path} does not fit the optimizer of the run, or is damaged ({error})") from error
        job.run.step = saved["step"]
        return job

    def _check_same_bits(self, path: Path, saved: Mapping[str, Any]) -> None:
        """Refuse what would not continue to the same bits: other data, other libraries, steps that there are not."""
        problem, step = self.problem, saved["step"]
        if problem.fingerprint != saved["data"].get("sha256"):
            raise TrainingError(f"{self.config.source} has changed since the run was started: it cannot be resumed")
        for library, version in problem.versions().items():
            before = saved["versions"].get(library)
            if before != version:
                raise TrainingError(
                    f"{path} was written with {library} {before}, but here is {version}: "
                    "the run cannot be continued to the same bits"
                )
        if not 0 <= step <= problem.total_steps or saved["epoch"] != step // problem.batches.steps_per_epoch:
            raise TrainingError(
                f"{path} is damaged (step {step}, epoch {saved['epoch']} of a run of {problem.total_steps} steps)"
            )

    def _take_first_step(self) -> None:
        """Take the first step of the run, after which the optimizer has all the state that it will ever have."""
        with self.arithmetic():
            train(replace(self.run), observe=lambda record: None, save=lambda: None, should_stop=lambda: True)
        seconds = self.run.model.seconds
        seconds.update(dict.fromkeys(seconds, 0.0))

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Set the threads, and whatever else decides the bits, while the block lasts."""
        before = environment.chosen_threads()
        fastopt.set_num_threads(self.config.threads or before)
        try:
            with self.problem.arithmetic():
                yield
        finally:
            fastopt.set_num_threads(before)

    def evaluate(self) -> dict[str, float]:
        """Return the scores of the model on held-out data by name."""
        with self.problem.in_use():
            return self.problem.evaluate()

    def assess(self) -> Assessment:
        """Return all that can be said of the model on held-out data, and how it compares with learning nothing."""
        with self.arithmetic(), self.problem.in_use():
            return self.problem.assess()

    def sample(self) -> str:
        """Return a text that the model has made up; empty for a model that makes none."""
        with self.arithmetic(), self.problem.in_use():
            return self.problem.sample()

    def checkpoint(self) -> Checkpoint:
        """Return all that :meth:`resume` needs, and what predictions need of the data."""
        problem = self.problem
        tensors, metadata = pack(problem.model.parameters, problem.optimizer)
        data_tensors, data_facts = problem.data_checkpoint()
        if problem.has_two_modes:
            with problem.in_use():
                used = {f"{IN_USE}{name}": array.copy() for name, array in problem.model.parameters.items()}
            data_tensors = {**data_tensors, **used}
        facts = {
            "epoch": self.run.step // problem.batches.steps_per_epoch,
            "config": self.config.to_json(),
            "data": {"sha256": problem.fingerprint, **data_facts},
            "versions": problem.versions(),
        }
        return Checkpoint({**tensors, **data_tensors}, {**metadata, **facts})

    def optimizer_bytes(self) -> int:
        """Return the bytes that a step of the optimizer has to move.

        Read: the gradient for its norm, then gradient, parameter and state. Written: parameter and state. Where
        gradients are added up, each one and their mean are read and the mean is written besides.
        """
        tensors, _ = pack(self.problem.model.parameters, self.problem.optimizer)
        pieces = self.config.accumulate
        passes = {"param": 4 + 3 * pieces * (pieces > 1), "state": 2}
        return sum(passes[name.partition(".")[0]] * values.nbytes for name, values in tensors.items())


def _problem(config: Config) -> Problem:
    match config:
        case MLPConfig():
            return TableProblem(config)
        case RecommenderConfig():
            return RecommenderProblem(config)
        case TransformerConfig():
            try:
                from fastopt.training.text_problem import TextProblem
            except ModuleNotFoundError as error:
                if error.name != "torch":
                    raise
                raise TrainingError("--model transformer needs torch; install it with: pip install torch") from error
            return TextProblem(config)
    raise TypeError(f"config: expected the settings of a model, got {type(config).__name__}")
