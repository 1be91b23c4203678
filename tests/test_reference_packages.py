"""The same numbers as the packages that an optimizer is known from, and checkpoints of theirs."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from cases import MAKERS

from fastopt import optimizers

torch = pytest.importorskip("torch")

from torch_cases import package_of  # noqa: E402

import fastopt.torch  # noqa: E402

STEPS = 50

SHAPES = ((7, 5), (33,), (), (2, 3, 4))


@dataclass(frozen=True)
class Reference:
    """An optimizer of a package: where it is, and which options it is compared with, in our names."""

    ours: str
    module: str
    theirs: str
    options: list[dict[str, Any]]
    fixed: dict[str, Any] = field(default_factory=dict)
    """Options of theirs alone."""
    tolerance: float = 1e-11

    def cls(self) -> Any:
        return getattr(package_of(self.module), self.theirs)

    def translated(self, options: dict[str, Any]) -> dict[str, Any]:
        names = {ours: theirs for theirs, ours in optimizers.registry()[self.ours].method.renamed.items()}
        found = {names.get(name, name): value for name, value in options.items()}
        found.pop("max_lr_snapshot", None)
        return {**found, **self.fixed}


REFERENCES = [
    Reference(
        "LAMB",
        "timm.optim.lamb",
        "Lamb",
        [
            {},
            {"weight_decay": 0.3, "trust_clip": True, "betas": (0.8, 0.99)},
            {"weight_decay": 0.0, "always_adapt": True},
            {"weight_decay": 0.0},
            {"bias_correction": False, "grad_averaging": False, "eps": 1e-3},
            {"decoupled_weight_decay": True, "corrected_weight_decay": True, "weight_decay": 0.1},
            {"cautious": True, "weight_decay": 0.1},
            {"cautious": True, "weight_decay": 0.1, "decoupled_weight_decay": True, "trust_clip": True},
        ],
        {"max_grad_norm": None},
    ),
    Reference("LAMB", "timm.optim.lamb", "Lamb", [{}], tolerance=1e-6),  # (torch adds 1e-6 to the norm)
    Reference(
        "StableAdamW",
        "pytorch_optimizer",
        "StableAdamW",
        [
            {},
            {"betas": (0.8, 0.9), "weight_decay": 0.3, "eps": 1e-3},
            {"decoupled_weight_decay": False, "weight_decay": 0.1},
            {"maximize": True},
        ],
    ),
    Reference(
        "AdamW",
        "timm.optim.adamw",
        "AdamWLegacy",
        [
            {"cautious": True, "weight_decay": 0.1},
            {"cautious": True, "amsgrad": True, "maximize": True},
            {"corrected_weight_decay": True, "weight_decay": 0.1},
        ],
    ),
    Reference(
        "Lion",
        "timm.optim.lion",
        "Lion",
        [{"cautious": True, "weight_decay": 0.1}, {"corrected_weight_decay": True, "weight_decay": 0.1}],
    ),
]

WARMED = {"warmup_steps": 10, "r": 0.5, "weight_lr_power": 1.0}

REFERENCES += [
    Reference(
        "ScheduleFreeAdamW",
        "schedulefree",
        "AdamWScheduleFree",
        [{}, {"weight_decay": 0.1, "betas": (0.95, 0.99)}, WARMED],
    ),
    Reference(
        "ScheduleFreeSGD", "schedulefree", "SGDScheduleFree", [{}, {"weight_decay": 0.1, "momentum": 0.7}, WARMED]
    ),
    Reference(
        "Prodigy",
        "prodigyopt",
        "Prodigy",
        [
            {"lr": 1.0},
            {"lr": 1.0, "weight_decay": 0.1, "use_bias_correction": True},
            {"lr": 1.0, "weight_decay": 0.1, "decoupled_weight_decay": False, "d0": 1e-3, "d_coef": 0.5},
            {"lr": 1.0, "safeguard_warmup": True, "growth_rate": 1.02, "beta3": 0.9, "d0": 1e-2},
        ],
        tolerance=1e-9,
    ),
]

COMPARISONS = [
    pytest.param(row, options, id=f"{row.ours}-{number}")
    for row in REFERENCES
    for number, options in enumerate(row.options)
]


class Pair:
    """The same parameters with theirs, with ours for tensors and with ours for arrays."""

    def __init__(self, row: Reference, options: dict[str, Any]) -> None:
        self.row, self.options = row, {"lr": 0.05, **options}
        self.rng = np.random.default_rng(20240229)
        start = [np.asarray(self.rng.normal(size=shape)) for shape in SHAPES]
        self.theirs_params = [torch.tensor(values, requires_grad=True) for values in start]
        self.params = [torch.tensor(values, requires_grad=True) for values in start]
        self.arrays = [values.copy() for values in start]
        self.theirs = row.cls()(self.theirs_params, **row.translated(self.options))
        self.ours_options = {
            **self.options,
            **({"clip_norm": None} if row.fixed.get("max_grad_norm", 0) is None else {}),
        }
        self.ours = getattr(fastopt.torch, row.ours)(self.params, **self.ours_options)
        self.numpy: Any = MAKERS[row.ours](self.arrays, **self.ours_options)
        if hasattr(self.theirs, "train"):
            self.theirs.train()
        self.steps = 0

    def step(self, lr: float | None = None) -> None:
        grads = [np.asarray(self.rng.normal(size=shape)) for shape in SHAPES]
        if lr is not None:
            for opt in (self.theirs, self.ours, self.numpy):
                opt.param_groups[0]["lr"] = lr
        for params in (self.theirs_params, self.params):
            for param, grad in zip(params, grads, strict=True):
                param.grad = torch.tensor(grad)
        self.theirs.step()
        self.ours.step()
        self.numpy.step(grads)
        self.steps += 1

    def assert_close(self) -> None:
        for mine, other, array in zip(self.params, self.theirs_params, self.arrays, strict=True):
            self.assert_alike(mine.detach().numpy(), other.detach().numpy())
            np.testing.assert_array_equal(array, mine.detach().numpy())
            states, others = self.ours.state[mine], self.theirs.state[other]
            for name in self.numpy.method.rule(self.numpy.method.at(self.numpy.param_groups[0], 0))[1]:
                np.testing.assert_allclose(
                    states[name].numpy(),
                    others[name].numpy().reshape(mine.shape),
                    rtol=self.row.tolerance,
                    atol=self.row.tolerance,
                )

    def assert_alike(self, actual: Any, expected: Any) -> None:
        np.testing.assert_allclose(actual, expected, rtol=self.row.tolerance, atol=self.row.tolerance)


@pytest.mark.parametrize(("row", "options"), COMPARISONS)
def test_same_numbers(row: Reference, options: dict[str, Any]) -> None:
    pair = Pair(row, options)
    for step in range(STEPS):
        pair.step(lr=pair.options["lr"] * (1 - step / 100))
    pair.assert_close()


@pytest.mark.parametrize(("row", "options"), COMPARISONS)
def test_their_checkpoint_goes_on_here(row: Reference, options: dict[str, Any]) -> None:
    pair = Pair(row, options)
    for _ in range(5):
        pair.step()
    checkpoint = pair.theirs.state_dict()
    more = {name: value for name, value in pair.ours_options.items() if name in ("clip_norm", "maximize")}
    fresh = getattr(fastopt.torch, row.ours)(pair.params, lr=0.05, **more)
    on_arrays = MAKERS[row.ours](pair.arrays, lr=0.05, **more)
    fresh.load_state_dict(checkpoint)
    on_arrays.load_state_dict(checkpoint)
    pair.ours, pair.numpy = fresh, on_arrays
    for _ in range(5):
        pair.step()
    pair.assert_close()


MODES = [
    pytest.param(row, options, id=f"{row.ours}-{number}")
    for row in REFERENCES
    if row.module == "schedulefree"
    for number, options in enumerate(row.options)
]


@pytest.mark.parametrize(("row", "options"), MODES)
def test_the_same_places_for_training_and_for_use(row: Reference, options: dict[str, Any]) -> None:
    pair = Pair(row, options)
    every = (pair.theirs, pair.ours, pair.numpy)
    for opt in every:
        opt.eval()  # nothing has been stepped yet
        opt.train()
    for step in range(12):
        if step % 4 == 3:
            for opt in every:
                opt.eval()
                opt.eval()
            pair.assert_close()
            for opt in (pair.ours, pair.numpy):
                assert opt.param_groups[0]["train_mode"] is False
            with pytest.raises(RuntimeError, match=r"call train\(\) first"):
                pair.ours.step()
            with pytest.raises(RuntimeError, match=r"call train\(\) first"):
                pair.numpy.step([np.ones(shape) for shape in SHAPES])
            for opt in every:
                opt.train()
        pair.step()
    pair.assert_close()
    for opt in (pair.ours, pair.numpy):
        for name in ("k", "weight_sum", "lr_max", "scheduled_lr", "train_mode"):
            assert opt.param_groups[0][name] == pytest.approx(pair.theirs.param_groups[0][name]), name


@pytest.mark.parametrize("options", next(row.options for row in REFERENCES if row.ours == "Prodigy"))
def test_prodigy_finds_the_same_rate(options: dict[str, Any]) -> None:
    pair = Pair(next(row for row in REFERENCES if row.ours == "Prodigy"), options)
    for _ in range(20):
        pair.step()
    assert pair.theirs.param_groups[0]["d_numerator"] != 0
    for opt in (pair.ours, pair.numpy):
        for name in opt.method.advances:
            assert opt.param_groups[0][name] == pytest.approx(pair.theirs.param_groups[0][name], rel=1e-6), name


@pytest.mark.parametrize("name", ["Prodigy", "ScheduleFreeAdamW", "ScheduleFreeSGD"])
def test_what_depends_on_all_parameters_is_not_stepped_in_the_backward_pass(name: str) -> None:
    opt = getattr(fastopt.torch, name)([torch.ones(3, requires_grad=True)])
    with pytest.raises(ValueError, match=f"what {name} does depends on all parameters together"):
        fastopt.torch.step_in_backward(opt)
    assert not opt.state


def test_groups_of_prodigy_have_one_rate() -> None:
    params = [np.ones(3), np.ones(3)]
    opt = MAKERS["Prodigy"]([{"params": params[0]}, {"params": params[1], "lr": 0.5}])
    with pytest.raises(ValueError, match="lr: expected the same in every group"):
        opt.step([np.ones(3), np.ones(3)])
    opt.param_groups[1]["lr"] = 0.0
    opt.step([np.ones(3), np.ones(3)])
    assert (params[0] != 1).all()
    assert (params[1] == 1).all()
