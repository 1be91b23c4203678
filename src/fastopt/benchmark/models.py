"""Small models of torch to train, for what an optimizer is worth in a whole training step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Model = tuple[nn.Module, Callable[[], Tensor]]
"""The parameters, and the loss of a batch."""


def perceptron(*units: int) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(units):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Decoder(nn.Module):
    """A transformer that predicts the next token; with GPT-2's numbers its parameters have GPT-2's shapes."""

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores of each next token; the embedding is used both ways."""
        length = tokens.shape[1]
        x = self.tokens(tokens) + self.positions(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        for layer in self.layers:
            x = layer(x, mask, is_causal=True)
        scores: Tensor = functional.linear(self.norm(x), self.tokens.weight)
        return scores

    def loss_on(self, batch: int, length: int) -> Callable[[], Tensor]:
        """Return the loss on random tokens."""
        tokens = torch.randint(self.tokens.num_embeddings, (batch, length + 1))

        def loss() -> Tensor:
            return functional.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

        return loss


def policy() -> Model:
    """Actor and critic of 64 and 64 units, batch 64."""
    actor, critic = perceptron(8, 64, 64, 4), perceptron(8, 64, 64, 1)
    observations, returns = torch.randn(64, 8), torch.randn(64)
    actions = torch.randint(4, (64,))

    def loss() -> Tensor:
        values: Tensor = critic(observations).squeeze(1)
        log_likelihood = -functional.cross_entropy(actor(observations), actions, reduction="none")
        return functional.mse_loss(values, returns) - ((returns - values.detach()) * log_likelihood).mean()

    return nn.ModuleList([actor, critic]), loss


def classifier() -> Model:
    """784-512-512-10, batch 64."""
    model = perceptron(784, 512, 512, 10)
    images, labels = torch.randn(64, 784), torch.randint(10, (64,))
    return model, lambda: functional.cross_entropy(model(images), labels)


def characters() -> Model:
    """4 layers of 256, batch 8x64."""
    model = Decoder(vocabulary=96, context=64, width=256, layers=4, heads=4)
    return model, model.loss_on(8, 64)


def recommender() -> Model:
    """Embeddings of 8 features out of a table of 500K x 16, and a perceptron; batch 1024."""
    table, head = nn.Embedding(500_000, 16), perceptron(8 * 16, 64, 1)
    items, clicks = torch.randint(500_000, (1024, 8)), torch.rand(1024)
    return (
        nn.ModuleList([table, head]),
        lambda: functional.binary_cross_entropy_with_logits(head(table(items).flatten(1)).squeeze(1), clicks),
    )


def gpt2_small() -> Model:
    """12 layers of 768, batch 1x64."""
    model = Decoder(vocabulary=50257, context=1024, width=768, layers=12, heads=12)
    return model, model.loss_on(1, 64)


MODELS: dict[str, Callable[[], Model]] = {
    "policy": policy,
    "perceptron": classifier,
    "character transformer": characters,
    "recommender": recommender,
    "GPT-2 small": gpt2_small,
}

WITH_TABLES = ("recommender",)
"""Models whose batches need few rows of their tables."""
