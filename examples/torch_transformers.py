"""Train a small GPT-2 from scratch with the Trainer of transformers: it takes fastopt's optimizer by its class.

pip install transformers accelerate
python examples/torch_transformers.py
"""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging

from fastopt.torch import AdamW

CONTEXT = 32
STEPS = 120
TEXT = "the quick brown fox jumps over the lazy dog and runs away. " * 40


class Pieces(Dataset[dict[str, torch.Tensor]]):
    """Pieces of a text, each to be continued by a character."""

    def __init__(self, text: str) -> None:
        self.letters = sorted(set(text))
        self.numbers = torch.tensor([self.letters.index(letter) for letter in text])

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self.numbers) - CONTEXT

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return a piece, which is also what is to be predicted: the model shifts it by itself."""
        piece = self.numbers[index : index + CONTEXT]
        return {"input_ids": piece, "labels": piece}


def train(optimizer_class: Callable[..., torch.optim.Optimizer] = AdamW) -> list[float]:
    """Return the loss of every step that is logged."""
    torch.manual_seed(0)
    logging.set_verbosity_error()
    pieces = Pieces(TEXT)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(pieces.letters), n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=2)
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            max_steps=STEPS,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            max_grad_norm=1.0,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=0,
        )
        settings: dict[str, Any] = {"lr": arguments.learning_rate, "weight_decay": 0.1}
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=pieces,
            optimizer_cls_and_kwargs=(optimizer_class, settings),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    for number, loss in enumerate(train(), start=1):
        print(f"step {10 * number:3d}  loss {loss:.4f}")
