"""A small character-level transformer in torch."""

import math
from time import perf_counter
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fastopt.training.batches import Batch
from fastopt.training.randomness import Stream, generator

Array = NDArray[Any]

HEAD_WIDTH = 32
EVALUATION_ROWS = 64  # bounds the memory of an evaluation
EMBEDDING_SCALE = 0.02  # as in GPT-2


class Block(nn.Module):
    """Attention to what came before, then a perceptron; each is added to what it was given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, positions, width) to the same shape."""
        x = x + self._attend(self.attention_norm(x))
        hidden = functional.gelu(self.mlp_in(self.mlp_norm(x)))
        return x + cast(Tensor, self.mlp_out(hidden))

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = self.query_key_value(x).unflatten(-1, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return cast(Tensor, self.attention_out(attended.transpose(1, 2).flatten(2)))


class Network(nn.Module):
    """From the numbers of characters to a score of each character that may come next."""

    def __init__(self, characters: int, layers: int, width: int, context: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, numbers: Tensor) -> Tensor:
        """Map (rows, positions) to (rows, positions, characters)."""
        x = self.characters(numbers) + self.positions.weight[: numbers.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.characters.weight)


class Transformer:
    r"""A decoder that predicts the next character [1]_, normalised before each layer [2]_.

    The embedding of the characters also scores them [3]_. Weights start from a normal distribution: embeddings with
    standard deviation 0.02, matrices with :math:`1 / \sqrt{\mathrm{inputs}}`, divided by
    :math:`\sqrt{2\,\mathrm{layers}}` where their output is added to what the layer was given [2]_. Biases start from
    zero.

    Parameters
    ----------
    characters : int
        How many there are.
    layers, width, context : int
        Blocks, units (a multiple of 32, the width of a head of the attention) and the longest piece of text.
    dtype : {"float32", "float64"}
        The precision of parameters and arithmetic.
    seed : int
        Decides the initial weights.

    Attributes
    ----------
    network : torch.nn.Module
        The network itself.
    matrices, vectors : list of (str, torch.nn.Parameter)
        Its parameters by name: those with two dimensions, and the biases and the scales of the normalisation.
    parameters : dict of str to ndarray
        All of them, matrices first, as views that share their memory.
    seconds : dict of str to float
        Time spent in ``"forward"`` and ``"backward"`` during training.

    References
    ----------
    .. [1] Vaswani et al.: Attention Is All You Need, NeurIPS 2017.
    .. [2] Radford et al.: Language Models are Unsupervised Multitask Learners, 2019.
    .. [3] Press, Wolf: Using the Output Embedding to Improve Language Models, EACL 2017.
    """

    def __init__(self, characters: int, *, layers: int, width: int, context: int, dtype: str, seed: int) -> None:
        with torch.device("meta"):  # without memory, and without a use of torch's random numbers
            network = Network(characters, layers, width, context)
        try:
            self.network = network.to(getattr(torch, dtype)).to_empty(device="cpu")
        except RuntimeError as error:  # torch's own name for it
            raise MemoryError(f"{layers} layers of {width}") from error
        self.context = context
        named = list(self.network.named_parameters())
        self.matrices = [(name, parameter) for name, parameter in named if parameter.ndim == 2]
        self.vectors = [(name, parameter) for name, parameter in named if parameter.ndim == 1]
        self.parameters: dict[str, Array] = {
            name: parameter.detach().numpy() for name, parameter in (*self.matrices, *self.vectors)
        }
        self.seconds = {"forward": 0.0, "backward": 0.0}
        self._initialize(layers, seed)

    def _initialize(self, layers: int, seed: int) -> None:
        for index, (name, parameter) in enumerate(self.matrices):
            scale = EMBEDDING_SCALE if name in ("characters.weight", "positions.weight") else parameter.shape[1] ** -0.5
            if name.endswith(("attention_out.weight", "mlp_out.weight")):
                scale /= math.sqrt(2 * layers)
            values = self.parameters[name]
            values[...] = scale * generator(seed, Stream.WEIGHTS, index).standard_normal(values.shape)
        for name, _ in self.vectors:
            self.parameters[name].fill(1 if name.endswith("norm.weight") else 0)

    @property
    def gradients(self) -> dict[str, Array]:
        """What :meth:`forward_backward` has added up, by name, as views that share its memory."""
        return {
            name: parameter.grad.numpy()
            for name, parameter in (*self.matrices, *self.vectors)
            if parameter.grad is not None
        }

    def forward_backward(self, batch: Batch) -> float:
        """Return the mean loss of a batch in nats per character and add its gradient to that of the parameters."""
        started = perf_counter()
        loss = self._loss(batch, "mean")
        halfway = perf_counter()
        loss.backward()  # type: ignore[no-untyped-call]
        self.seconds["forward"] += halfway - started
        self.seconds["backward"] += perf_counter() - halfway
        return loss.item()

    @torch.inference_mode()
    def evaluate(self, pieces: Batch) -> dict[str, float]:
        """Return the mean loss over pieces of text in nats, and in bits, per character."""
        total = math.fsum(
            self._loss(Batch(*(part[start : start + EVALUATION_ROWS] for part in pieces)), "sum").item()
            for start in range(0, len(pieces.targets), EVALUATION_ROWS)
        )
        loss = total / pieces.samples
        return {"loss": loss, "bits_per_character": loss / math.log(2)}

    @torch.inference_mode()
    def sample(self, start: int, length: int, seed: int) -> list[int]:
        """Return `length` characters as numbers, each drawn with the probability that the model gives it.

        Parameters
        ----------
        start : int
            The number of the character before the first.
        length : int
            How many.
        seed : int
            Decides the draws.
        """
        numbers = [start]
        for draw in generator(seed, Stream.SAMPLE).random(length):
            scores = self.network(torch.tensor([numbers[-self.context :]]))[0, -1].double()
            steps = scores.softmax(0).cumsum(0)
            numbers.append(int(torch.searchsorted(steps, draw * steps[-1], right=True)))
        return numbers[1:]

    def _loss(self, batch: Batch, reduction: str) -> Tensor:
        scores = self.network(torch.from_numpy(batch.features))
        return functional.cross_entropy(
            scores.flatten(0, 1), torch.from_numpy(batch.targets).flatten(), reduction=reduction
        )
