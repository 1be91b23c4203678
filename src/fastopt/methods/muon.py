"""Muon, and Muon beside AdamW."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from fastopt.methods.base import (
    MAXIMIZE,
    MOMENT,
    SQUARE,
    Choice,
    Count,
    Decays,
    Flag,
    Method,
    Numbers,
    Quantity,
    Switch,
    learning_rate,
)

POLAR_EXPRESS = (
    (8.15655, -22.48329, 15.87877),
    (4.04293, -2.80892, 0.50002),
    (3.89167, -2.77248, 0.50606),
    (3.28575, -2.36813, 0.46449),
    (2.34654, -1.70978, 0.42324),
)
"""Coefficients of the first iterations; further ones have the last."""

CUSHION = 1.01
"""What Polar Express divides a matrix by besides its norm, so that rounding takes no singular value beyond 1."""


MOMENTUM = Quantity(0.95, "mu, at least 0.")
NESTEROV = Flag(True, "Whether w is ``mu*m + (1-mu)*g`` instead of m.")
NS_COEFFICIENTS = Numbers((3.4445, -4.7750, 2.0315), "a, b and c of the iteration.")
NS_STEPS = Count(5, "How many iterations, below 100.", high=100)
COEFFICIENTS = Choice(
    None,
    'Where a, b and c are from: `ns_coefficients` in all iterations, or others in each ("polar_express"; Amsel, '
    "Persson, Musco & Gower 2025, arXiv 2505.16932).",
    keyword_only=True,
    among=(None, "polar_express"),
)
NORMUON = Flag(
    False,
    "Whether each row of O is divided by the root of a moving average of its mean square, and all then brought to the "
    "norm that O had (NorMuon; Li, Liu, Liang, Chen & Zhao 2025, arXiv 2510.05491).",
    keyword_only=True,
)
NORMUON_BETA = Quantity(0.95, "Decay of that average, in [0, 1).", keyword_only=True, high=1.0)


class Orthogonal(Method):
    """What both have in common: how a matrix becomes orthogonal."""

    described = False
    between: ClassVar[tuple[str, ...]] = (
        "ns_coefficients",
        "ns_steps",
        "adjust_lr_fn",
        "coefficients",
        "normuon",
        "normuon_beta",
        "eps",
    )

    @classmethod
    def row_numbers(cls, rule: str, options: Mapping[str, Any]) -> tuple[str, ...]:
        return ("second_momentum_buffer",) if rule == "muon" and options["normuon"] else ()

    @classmethod
    def polynomials(cls, options: Mapping[str, Any]) -> list[tuple[float, float, float]]:
        """Return a, b and c of each iteration."""
        steps = int(options["ns_steps"])
        if options["coefficients"] is None:
            a, b, c = options["ns_coefficients"]
            return [(a, b, c)] * steps
        found = [POLAR_EXPRESS[min(step, len(POLAR_EXPRESS) - 1)] for step in range(steps)]
        return [(a / CUSHION, b / CUSHION**3, c / CUSHION**5) for a, b, c in found[:1]] + found[1:]

    @classmethod
    def ratio(cls, options: Mapping[str, Any], rows: int, columns: int) -> float:
        """Return what O is multiplied by."""
        if options["adjust_lr_fn"] == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1, rows / columns))


def check_is_matrix(shape: Sequence[int], label: Callable[[], str]) -> None:
    """Raise `ValueError` unless this is the shape of a matrix."""
    if len(shape) != 2:
        raise ValueError(f"{label()}: Muon steps matrices alone, expected 2 dimensions, got shape {tuple(shape)}")


class Muon(Orthogonal):
    """Momentum whose matrix is made orthogonal: all its directions change alike. For matrices only.

    ``m = mu*m + (1-mu)*g``, ``O = w/max(|w|, eps)`` with ``w = mu*m + (1-mu)*g``, then `ns_steps` times
    ``O = a*O + (b*A + c*A@A) @ O`` with ``A = O @ O.T`` (Newton and Schulz), ``p -= lr * ratio * O``.

    It is made for the matrices within a network: for biases, embeddings and what makes its output, use another
    (`MuonAdamW` has both). The products are NumPy's or torch's, of parameters of one shape together, in float32, or in
    float64 for such parameters, where torch's own class rounds to bfloat16: its updates differ by about a percent.
    The last bits of products depend on that library and its number of threads. An array as large as all parameters
    together is needed for them, and another for those that are worked on at a time.

    References
    ----------
    Jordan, Jin, Boza, You, Cesista, Newhouse & Bernstein 2024, "Muon: an optimizer for hidden layers in neural
    networks". Liu, Su et al. 2025, "Muon is scalable for LLM training" (`match_rms_adamw`).
    """

    twin = "Muon"
    use = "Hidden matrices of transformers and other large networks, beside another optimizer for the rest."
    counts_steps = False
    matrices = True
    states = {"momentum_buffer": MOMENT}

    lr = learning_rate(1e-3)
    weight_decay = Quantity(0.1, "At least 0: ``p *= 1 - lr*weight_decay``.")
    momentum = MOMENTUM
    nesterov = NESTEROV
    ns_coefficients = NS_COEFFICIENTS
    eps = Quantity(1e-7, "The least that w is divided by, at least 0.", words="epsilon value")
    ns_steps = NS_STEPS
    adjust_lr_fn = Choice(
        None,
        'What ratio is: ``sqrt(max(1, rows/columns))`` (None, "original"), or ``0.2*sqrt(max(rows, columns))``, which '
        'makes updates as large as AdamW\'s are ("match_rms_adamw").',
        among=(None, "original", "match_rms_adamw"),
    )
    maximize = MAXIMIZE
    coefficients = COEFFICIENTS
    normuon = NORMUON
    normuon_beta = NORMUON_BETA
    decoupled_weight_decay = Flag(True, fixed=True)

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "muon", ("momentum_buffer",)

    @classmethod
    def rule_for(
        cls, options: Mapping[str, Any], shape: Sequence[int], label: Callable[[], str]
    ) -> tuple[str, tuple[str, ...]]:
        check_is_matrix(shape, label)
        return cls.rule(options)


ENDS = {"embed", "embeds", "embedding", "embeddings", "unembed", "unembedding", "emb", "wte", "wpe", "head"}
"""Words in the names of parameters by which a network takes its input or makes its output."""


class MuonAdamW(Orthogonal):
    """Muon for the matrices within a network and AdamW for everything else, in one optimizer: see these.

    Unless `use_muon` says it, the matrices within are the parameters of two dimensions whose names have no word such as
    embedding, embed, wte or head between their dots, brackets and underscores. Names are places in the structure of
    arrays, ``{"head": {"weight": ...}}``, or in torch those given, ``MuonAdamW(model.named_parameters())``. Without
    names all matrices count as within.

    Both have one `lr` and `weight_decay`, as Muon's updates are made as large as AdamW's. Groups may have others:
    ``[{"params": hidden, "use_muon": True, "lr": 0.02}, {"params": others, "use_muon": False}]``.

    References
    ----------
    Jordan, Jin, Boza, You, Cesista, Newhouse & Bernstein 2024, "Muon: an optimizer for hidden layers in neural
    networks". Liu, Su et al. 2025, "Muon is scalable for LLM training". Loshchilov & Hutter 2019, "Decoupled weight
    decay regularization".
    """

    use = "Transformers from scratch, in fewer steps than `AdamW`, where the products cost little beside the model's."
    states = {"exp_avg": MOMENT, "exp_avg_sq": SQUARE, "momentum_buffer": MOMENT}
    between = (*Orthogonal.between, "use_muon")

    lr = learning_rate(1e-3)
    betas = Decays((0.9, 0.999), "AdamW's: decay of the moving averages of g and of its square, in [0, 1).")
    eps = Quantity(1e-8, "Added to AdamW's root; the least that Muon divides by. At least 0.", words="epsilon value")
    weight_decay = Quantity(0.1, "At least 0: ``p *= 1 - lr*weight_decay``.")
    maximize = MAXIMIZE
    use_muon = Switch(None, "Whether parameters are stepped by Muon; None: by the rule above.", keyword_only=True)
    momentum = MOMENTUM.but(keyword_only=True)
    nesterov = NESTEROV.but(keyword_only=True)
    ns_coefficients = NS_COEFFICIENTS.but(keyword_only=True)
    ns_steps = NS_STEPS.but(keyword_only=True)
    adjust_lr_fn = Choice(
        "match_rms_adamw",
        "What Muon's O is multiplied by: ``0.2*sqrt(max(rows, columns))``, or ``sqrt(max(1, rows/columns))`` "
        '("original").',
        keyword_only=True,
        among=("match_rms_adamw", "original"),
    )
    coefficients = COEFFICIENTS
    normuon = NORMUON
    normuon_beta = NORMUON_BETA
    decoupled_weight_decay = Flag(True, fixed=True)

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Return the rule of parameters that are no matrices, unless Muon steps all."""
        return ("muon", ("momentum_buffer",)) if options["use_muon"] else ("adam", ("exp_avg", "exp_avg_sq"))

    @classmethod
    def rule_for(
        cls, options: Mapping[str, Any], shape: Sequence[int], label: Callable[[], str]
    ) -> tuple[str, tuple[str, ...]]:
        use_muon = options["use_muon"]
        if use_muon is None:
            use_muon = len(shape) == 2 and not ENDS & set(re.split(r"[^a-z]+", label().lower()))
        elif use_muon:
            check_is_matrix(shape, label)
        return cls.rule({**options, "use_muon": use_muon})
