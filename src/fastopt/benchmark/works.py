"""The parameter lists that optimizers are timed on: plain arrays, many small ones, and the shapes of known models."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

Shape = tuple[int, ...]

UNITS = {"": 1, "K": 1_000, "M": 1_000_000}


@dataclass(frozen=True)
class Work:
    """A list of parameters."""

    name: str
    shapes: tuple[Shape, ...]

    @property
    def elements(self) -> int:
        """Number of elements of all parameters together."""
        return sum(map(math.prod, self.shapes))

    def __str__(self) -> str:
        return self.name


def policy() -> list[Shape]:
    """Actor and critic of a small reinforcement-learning agent: two perceptrons of 8, 64, 64 and 4 or 1 units."""
    return [
        shape
        for outputs in (4, 1)
        for inputs, units in ((8, 64), (64, 64), (64, outputs))
        for shape in ((units, inputs), (units,))
    ]


def resnet50() -> list[Shape]:
    """He, Zhang, Ren & Sun 2016: 161 tensors."""
    convolutions: list[Shape] = [(64, 3, 7, 7)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        outputs = 4 * width
        for block in range(blocks):
            convolutions += [(width, inputs, 1, 1), (width, width, 3, 3), (outputs, width, 1, 1)]
            convolutions += [(outputs, inputs, 1, 1)] if block == 0 else []
            inputs = outputs
    # After each convolution, the scale and shift of its batch normalization.
    shapes = [shape for kernel in convolutions for shape in (kernel, (kernel[0],), (kernel[0],))]
    return [*shapes, (1000, inputs), (1000,)]


def bert_base() -> list[Shape]:
    """Devlin, Chang, Lee & Toutanova 2019: 199 tensors."""
    square, norm = [(768, 768), (768,)], [(768,), (768,)]
    layer: list[Shape] = [*square * 4, *norm, (3072, 768), (3072,), (768, 3072), (768,), *norm]
    return [(30522, 768), (512, 768), (2, 768), *norm, *layer * 12, *square]


def gpt2_small() -> list[Shape]:
    """Radford et al. 2019: 148 tensors."""
    norm: list[Shape] = [(768,), (768,)]
    attention: list[Shape] = [(768, 2304), (2304,), (768, 768), (768,)]
    perceptron: list[Shape] = [(768, 3072), (3072,), (3072, 768), (768,)]
    return [(50257, 768), (1024, 768), *(norm + attention + norm + perceptron) * 12, *norm]


def block() -> list[Shape]:
    """Vaswani et al. 2017, with a width of 256: the 4 matrices of a block."""
    return [(256, 768), (256, 256), (256, 1024), (1024, 256)]


MODELS: dict[str, Callable[[], list[Shape]]] = {
    "policy": policy,
    "resnet50": resnet50,
    "bert-base": bert_base,
    "gpt2-small": gpt2_small,
    "block": block,
}

ARRAYS = ("1K", "64K", "1M", "16M", "64M")
LISTS = ("1000x1K", "1000x100")
STANDARD = (*ARRAYS, *LISTS, *MODELS)
"""What is measured where nothing else is asked for, by name."""


def find(name: str) -> Work:
    """Return the work of a name: a model, or a number of elements such as 300, 64K or 1M, or several as in 1000x1K.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if name in MODELS:
        return Work(name, tuple(MODELS[name]()))
    found = re.fullmatch(r"(?:(\d+)x)?(\d+)([KM]?)", name)
    count, length = (int(found[1] or 1), int(found[2]) * UNITS[found[3]]) if found else (0, 0)
    if count * length == 0:
        raise ValueError(
            f"expected one of {', '.join(MODELS)}, or numbers of elements such as 300, 64K, 1M or 1000x1K; got {name!r}"
        )
    return Work(name, ((length,),) * count)
