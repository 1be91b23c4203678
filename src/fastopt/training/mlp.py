"""A multilayer perceptron in NumPy with a hand-written backward pass."""

from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt.training.batches import Batch
from fastopt.training.losses import Loss
from fastopt.training.randomness import Stream, generator

Array = NDArray[Any]

EVALUATION_ROWS = 1024  # bounds the memory of an evaluation


class MLP:
    r"""Layers :math:`a_{l+1} = \mathrm{relu}(a_l W_l^T + b_l)`, without the relu in the last one.

    Weights start from a normal distribution of variance 2 / inputs [1]_, biases from zero. All buffers of a training
    step are made once: a step writes into them and allocates nothing that grows with the network.

    Parameters
    ----------
    widths : sequence of int
        The number of inputs, of units in each hidden layer, and of outputs.
    loss : Loss
        What to minimise.
    batch_size : int
        The largest number of rows in a training batch.
    dtype : {"float32", "float64"}
        The precision of parameters and arithmetic.
    seed : int
        Decides the initial weights.

    Attributes
    ----------
    parameters, gradients : dict of str to ndarray
        ``layers.0.weight`` of shape (outputs, inputs), as in ``torch.nn.Linear``, ``layers.0.bias`` and so on.
        `gradients` holds what the last :meth:`forward_backward` found.
    seconds : dict of str to float
        Time spent in ``"forward"`` and ``"backward"`` during training.

    References
    ----------
    .. [1] He, Zhang, Ren, Sun: Delving Deep into Rectifiers, ICCV 2015.
    """

    def __init__(self, widths: list[int], loss: Loss, *, batch_size: int, dtype: str, seed: int) -> None:
        self.loss = loss
        self.parameters: dict[str, Array] = {}
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            normal = generator(seed, Stream.WEIGHTS, layer).standard_normal((outputs, inputs))
            self.parameters[f"layers.{layer}.weight"] = (normal * np.sqrt(2 / inputs)).astype(dtype)
            self.parameters[f"layers.{layer}.bias"] = np.zeros(outputs, dtype)
        self.gradients = {name: np.zeros_like(value) for name, value in self.parameters.items()}
        self.seconds = {"forward": 0.0, "backward": 0.0}
        self._weights, self._biases = _by_layer(self.parameters)
        self._weight_gradients, self._bias_gradients = _by_layer(self.gradients)
        self._outputs = _buffers(batch_size, widths[1:], dtype)
        self._hidden_gradients = _buffers(batch_size, widths[1:-1], dtype)

    def forward_backward(self, batch: Batch) -> float:
        """Return the mean loss of a batch and leave its gradient in `gradients`."""
        started = perf_counter()
        rows = batch.samples
        activations = [batch.features, *(buffer[:rows] for buffer in self._outputs)]
        self._forward(activations)
        halfway = perf_counter()
        loss = self.loss.to_gradient(activations[-1], batch.targets)
        self._backward(activations, rows)
        self.seconds["forward"] += halfway - started
        self.seconds["backward"] += perf_counter() - halfway
        return loss

    def predict(self, features: Array) -> Array:
        """Return the outputs of the last layer, shape (rows, outputs), for standardised features."""
        outputs = np.empty((len(features), len(self._biases[-1])), self._biases[-1].dtype)
        for start in range(0, len(features), EVALUATION_ROWS):
            rows = slice(start, start + EVALUATION_ROWS)
            block = features[rows]
            hidden = _buffers(len(block), [len(bias) for bias in self._biases[:-1]], outputs.dtype)
            self._forward([block, *hidden, outputs[rows]])
        return outputs

    def evaluate(self, rows: Batch) -> dict[str, float]:
        """Return the loss and the scores of rows that were not trained on."""
        return self.loss.scores(self.predict(rows.features), rows.targets)

    def _forward(self, activations: list[Array]) -> None:
        for weight, bias, (inputs, outputs) in zip(self._weights, self._biases, pairwise(activations), strict=True):
            np.matmul(inputs, weight.T, out=outputs)
            outputs += bias
            if outputs is not activations[-1]:
                np.maximum(outputs, 0, out=outputs)

    def _backward(self, activations: list[Array], rows: int) -> None:
        delta = activations[-1]  # by now the gradient of the loss
        for layer in reversed(range(len(self._weights))):
            inputs = activations[layer]
            np.matmul(delta.T, inputs, out=self._weight_gradients[layer])
            np.sum(delta, axis=0, out=self._bias_gradients[layer])
            if layer > 0:
                previous = self._hidden_gradients[layer - 1][:rows]
                np.matmul(delta, self._weights[layer], out=previous)
                previous *= np.sign(inputs, out=inputs)  # the slope of relu: 1 where it let the value through, else 0
                delta = previous


def _by_layer(values: dict[str, Array]) -> tuple[list[Array], list[Array]]:
    arrays = list(values.values())
    return arrays[::2], arrays[1::2]


def _buffers(rows: int, widths: list[int], dtype: Any) -> list[Array]:
    return [np.empty((rows, width), dtype) for width in widths]
