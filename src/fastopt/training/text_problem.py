"""A transformer on a text, in torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

import fastopt
from fastopt import StepInfo
from fastopt.training.assessment import Assessment, assess_text
from fastopt.training.batches import ShuffledBatches
from fastopt.training.checkpoint import Checkpoint
from fastopt.training.config import TransformerConfig
from fastopt.training.errors import TrainingError
from fastopt.training.problem import Problem
from fastopt.training.recipes import rival
from fastopt.training.text import Text, load_text
from fastopt.training.torch_optimizers import Fastopt, Group, Torch
from fastopt.training.transformer import HEAD_WIDTH, Transformer

SAMPLE_LENGTH = 500


class TextProblem(Problem):
    """A transformer that learns to predict the next character of a text.

    Parameters
    ----------
    config : TransformerConfig
        The settings.
    text : Text, optional
        What to learn; by default what the settings name is read.

    Raises
    ------
    TrainingError
        If a setting or the text makes no sense.
    """

    sample_unit = "chars"
    score_names = ("loss", "bits_per_character")
    main_score = "bits_per_character"
    loss_label = "cross-entropy (nats per character)"
    model: Transformer
    optimizer: Fastopt | Torch

    def __init__(self, config: TransformerConfig, text: Text | None = None) -> None:
        if config.width % HEAD_WIDTH:
            raise TrainingError(
                f"--width: expected a multiple of {HEAD_WIDTH}, the width of an attention head, got {config.width}"
            )
        self.config = config
        text = text or load_text(config.text, config.context)
        train, self._test = (text.pieces(part, config.context) for part in (text.train, text.test))
        self._vocabulary, self._entropy = text.vocabulary, text.entropy
        self.name, self.fingerprint = text.name, text.fingerprint

        self.batches = ShuffledBatches(train, config.batch_size, config.seed, config.accumulate)
        self.model = Transformer(
            len(text.vocabulary),
            layers=config.layers,
            width=config.width,
            context=config.context,
            dtype=config.dtype,
            seed=config.seed,
        )
        self.optimizer = self.build_optimizer()

        self.data_facts = (
            f"{len(text.train):,} characters to learn, {len(text.test):,} held out, {len(text.vocabulary) - 1} "
            f"different; by their frequency alone {text.entropy:.2f} bits per character"
        )
        self.model_facts = f"transformer, {config.layers} layers of {config.width}, context {config.context}"

    def build_optimizer(self, **options: Any) -> Fastopt | Torch:
        """Return the optimizer of the settings, with further options, for the model's parameters."""
        groups: list[Group] = [{"params": self.model.matrices}, {"params": self.model.vectors, "weight_decay": 0.0}]
        kind = Torch if rival(self.config.optimizer) else Fastopt
        return kind(self.config, groups, self.total_steps, **options)

    def update(self, of: int = 1) -> StepInfo:
        """Add the gradients that the model has found to the mean of so many; take the step once it has them all."""
        return self.optimizer.step(of)

    def evaluate(self) -> dict[str, float]:
        """Return the scores of the model on held-out text by name."""
        return self.model.evaluate(self._test)

    def assess(self) -> Assessment:
        """Compare the model with the frequency of the characters."""
        return assess_text(self.evaluate(), self._entropy)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Set torch's threads, and have it use algorithms that give the same bits every time, while the block lasts."""
        memory: Any = torch.utils.deterministic
        threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        fills = memory.fill_uninitialized_memory
        torch.set_num_threads(self.config.threads or threads)
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # nothing is read here that was not written, and it takes time
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
            memory.fill_uninitialized_memory = fills

    def data_checkpoint(self) -> Checkpoint:
        """Return the characters in the order of their numbers."""
        return Checkpoint({}, {"vocabulary": self._vocabulary})

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that the bits depend on."""
        return {"fastopt": fastopt.__version__, "numpy": np.__version__, "torch": torch.__version__}

    def sample(self) -> str:
        """Return a text that the model has made up, as what follows a line's end."""
        start = max(0, self._vocabulary.find("\n"))
        numbers = self.model.sample(start, SAMPLE_LENGTH, self.config.seed)
        return "".join(self._vocabulary[number] for number in numbers)
