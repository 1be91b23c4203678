"""The same numbers as the packages that the optimizers follow which torch has not, over fifty steps in float64."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from cases import CASES

torch = pytest.importorskip("torch")

from torch_cases import STEPS, nonzero, ours, package_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("numbers_in_double_precision")


@dataclass(frozen=True)
class Reference:
    """A class of another package."""

    module: str
    name: str
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Options that have another name there."""
    unless: Mapping[str, Any] = field(default_factory=dict)
    """What makes it ours where nothing else is said."""

    def make(self, params: Any, options: Mapping[str, Any]) -> Any:
        cls = getattr(package_of(self.module), self.name)
        return cls(
            params, **{**self.unless, **{self.renamed.get(name, name): value for name, value in options.items()}}
        )


def of_timm(module: str, name: str, **more: Any) -> Reference:
    return Reference(f"timm.optim.{module}", name, **more)


def of_pytorch_optimizer(name: str, **more: Any) -> Reference:
    renamed = {"decoupled_weight_decay": "weight_decouple", **more.pop("renamed", {})}
    return Reference("pytorch_optimizer", name, renamed, {"foreach": False, **more})


REFERENCES = {
    "Lion": of_timm("lion", "Lion"),
    "Signum": of_pytorch_optimizer("SignSGD"),
    "AdEMAMix": of_pytorch_optimizer(
        "AdEMAMix", renamed={"t_alpha": "t_alpha_beta3"}, weight_decouple=True, weight_decay=1e-2
    ),
    "ADOPT": of_timm("adopt", "Adopt", renamed={"decoupled_weight_decay": "decoupled"}),
    "LaProp": of_timm("laprop", "LaProp"),
    "AdaBelief": of_timm("adabelief", "AdaBelief", renamed={"decoupled_weight_decay": "decoupled_decay"}),
    "Adan": of_timm("adan", "Adan"),
    "Yogi": of_pytorch_optimizer("Yogi"),
    "FTRL": of_pytorch_optimizer("FTRL"),
    "LARS": of_timm("lars", "Lars"),
}

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("Lion", {"weight_decay": 0.1}),
    ("Signum", {"maximize": True}),
    ("AdEMAMix", {"weight_decay": 0.1}),
    (
        "AdEMAMix",
        {"betas": (0.8, 0.9, 0.99), "alpha": 3.0, "t_alpha": 20, "t_beta3": 20, "eps": 1e-3, "maximize": True},
    ),
    ("ADOPT", {"maximize": True, "weight_decay": 0.1}),
    ("LaProp", {"weight_decay": 0.1}),
    ("AdaBelief", {"weight_decay": 0.1}),
    ("Yogi", {"maximize": True}),
    ("FTRL", {"maximize": True, "lambda_2": 0.1}),
]
"""Options beside those of the cases."""

CALLED: list[tuple[str, dict[str, Any]]] = [
    (name, options)
    for name, options in [*((case.optimizer, dict(case.options)) for case in CASES), *ROWS]
    if name in REFERENCES
    and not any(map(callable, options.values()))
    and not any(callable(value) for value in options.get("betas", ()))
    and not {"clip_norm", "clip_value", "cautious", "cautious_decay"} & options.keys()  # (test_reference_packages.py)
    and options.get("t_alpha") == options.get("t_beta3")
]


@pytest.mark.parametrize(("name", "options"), CALLED, ids=lambda value: str(value).replace(" ", ""))
def test_same_numbers(name: str, options: dict[str, Any]) -> None:
    """With a rate that rises and falls, as it does in training."""
    reference, generator = REFERENCES[name], torch.Generator().manual_seed(0)
    start = [nonzero(shape, torch.float64, generator) for shape in ((7, 5), (33,), ())]
    params, twins = ([values.clone().requires_grad_() for values in start] for _ in range(2))
    opt = ours(name)(params, **options)
    theirs = reference.make(twins, {key: value for key, value in options.items() if key != "t_beta3"})
    rate = opt.param_groups[0]["lr"]
    for step in range(STEPS):
        for group in (*opt.param_groups, *theirs.param_groups):
            group["lr"] = rate * min((step + 1) / 10, 1.0) * (1 - step / 100)
        for param, twin in zip(params, twins, strict=True):
            param.grad = nonzero(param.shape, param.dtype, generator)
            twin.grad = param.grad.clone()
        opt.step()
        theirs.step()
    close = {"rtol": 1e-11, "atol": 1e-13}
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param, twin, **close)
        mine, other = opt.state[param], theirs.state[twin]
        assert mine.keys() - {"step"} <= other.keys()
        for key in mine.keys() - {"step"}:
            torch.testing.assert_close(mine[key], torch.as_tensor(other[key], dtype=torch.float64), **close)
