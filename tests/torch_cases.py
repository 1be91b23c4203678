"""What the tests of fastopt.torch share: the same parameters with torch's optimizer and with ours, in any layout."""

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import CASES as ALL_CASES
from cases import MAKERS, Case
from torch import Tensor

import fastopt.torch
from fastopt import _core, optimizers

NAMES = [
    name
    for name, cls in optimizers.registry().items()
    if vars(cls.method).get("twin") and name in MAKERS and not cls.method.refusal_of_dense
]
"""Those that torch has too, for dense gradients of tensors of any shape."""

CASES = [case for case in ALL_CASES if not case.cls.method.refusal_of_dense]
"""Those of which torch takes dense gradients."""

every_optimizer = pytest.mark.parametrize("name", NAMES)


def ours(name: str) -> Any:
    return getattr(fastopt.torch, name)


def theirs(name: str) -> Any:
    return getattr(torch.optim, name)


def torch_has(case: Case) -> bool:
    """Whether torch has all options of a case; gradients can be clipped before its step."""
    if case.optimizer not in NAMES:
        return False
    return case.options.keys() <= {*inspect.signature(theirs(case.optimizer)).parameters, "clip_norm", "clip_value"}


SHARED = [case for case in CASES if torch_has(case)]


def knows_rows(name: str) -> bool:
    """Whether an optimizer's states of a matrix are of its rows: it steps plain real tensors alone."""
    method = optimizers.registry()[name].method
    return method.rule_for(method.defaults(), (2, 2), str)[0] in _core.SMALL


takes_grad_dtype = pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has gradients of the parameter's dtype only"
)

FIRST_OF_EACH_RULE = list({case.rule: case for case in reversed(SHARED)}.values())

STEPS = 50

ULPS = STEPS / 2
"""Half an ulp a step, in the unit of the largest number on the way: torch's numbers are rounded as ours are."""


# ---- layouts: a tensor of these values in some place and order in memory ----


def contiguous(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.contiguous_format)


def transposed(values: Tensor) -> Tensor:
    return values.transpose(0, -1).clone(memory_format=torch.contiguous_format).transpose(0, -1)


def channels_last(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.channels_last)


def strided(values: Tensor) -> Tensor:
    """Every second element of something larger."""
    return values.repeat_interleave(2, dim=-1)[..., ::2]


def aligned_to_elements(values: Tensor) -> Tensor:
    """At an address that is a multiple of nothing more than the size of an element."""
    buffer = torch.empty(values.numel() + 64, dtype=values.dtype)
    start = (1 - buffer.data_ptr() // values.itemsize) % 16
    return buffer[start : start + values.numel()].view(values.shape).copy_(values)


Layout = Callable[[Tensor], Tensor]

LAYOUTS: dict[str, tuple[Layout, Layout, tuple[int, ...]]] = {
    "contiguous": (contiguous, contiguous, (7, 5)),
    "scalar": (contiguous, contiguous, ()),
    "empty": (contiguous, contiguous, (3, 0)),
    "channels last": (channels_last, channels_last, (3, 4, 2, 5)),
    "channels last, one pixel": (channels_last, contiguous, (3, 4, 1, 1)),
    "channels last, contiguous gradient": (channels_last, contiguous, (3, 4, 2, 5)),
    "contiguous, channels-last gradient": (contiguous, channels_last, (3, 4, 2, 5)),
    "transposed": (transposed, transposed, (6, 4)),
    "transposed, contiguous gradient": (transposed, contiguous, (6, 4)),
    "contiguous, transposed gradient": (contiguous, transposed, (6, 6)),
    "strided": (strided, strided, (4, 9)),
    "strided, contiguous gradient": (strided, contiguous, (4, 9)),
    "contiguous, strided gradient": (contiguous, strided, (4, 9)),
    "aligned to elements": (aligned_to_elements, aligned_to_elements, (67,)),
}
"""Name: layout of the parameter, layout of its gradient, shape."""


# ---- parameters and twins ----


def nonzero(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Random numbers of either sign, of magnitude 0.25 to 2."""
    if dtype.is_complex:
        return torch.complex(*(nonzero(shape, dtype.to_real(), generator) for _ in range(2)))
    uniform = torch.rand(shape, dtype=torch.float64, generator=generator)
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return ((0.25 + 1.75 * uniform) * signs).to(dtype)


def parameters(
    layouts: Iterable[str], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], list[Layout]]:
    """Leaves that require a gradient in these layouts, and how their gradients are to be laid out."""
    rows = [LAYOUTS[layout] for layout in layouts]
    params = [place(nonzero(shape, dtype, generator)).requires_grad_() for place, _, shape in rows]
    return params, [place for _, place, _ in rows]


def copied(params: Iterable[Tensor]) -> list[Tensor]:
    """Leaves of the same values in torch's own default layout."""
    return [contiguous(param.detach()).requires_grad_() for param in params]


def errors_in_ulps(actual: Tensor, expected: Tensor, largest: Tensor) -> Tensor:
    unit = largest.double() * torch.finfo(actual.dtype).eps
    return (actual.double() - expected.double()).abs() / unit


def assert_close(actual: Tensor, expected: Tensor, largest: Tensor, what: str, ulps: float) -> None:
    """Assert that two tensors differ by few units in the last place of the largest number on the way."""
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    errors = errors_in_ulps(actual, expected, largest)
    worst = float(errors.max()) if errors.numel() else 0.0
    assert worst <= ulps, f"{what}: {worst:.1f} ulps from torch's, allowed are {ulps}"


def torch_options(case: Case, step: int = 0) -> dict[str, Any]:
    """Return the options of a case that torch has too, schedules evaluated."""
    known = inspect.signature(theirs(case.optimizer)).parameters
    return {name: value for name, value in case.options_at(step).items() if name in known}


class OnArrays:
    """An optimizer for arrays, on the memory of tensors and driven as torch's are."""

    def __init__(self, case: Case, params: list[Tensor]) -> None:
        self.params = params
        self.opt = case.make([param.detach().numpy() for param in params])

    def step(self) -> None:
        self.opt.step([None if param.grad is None else param.grad.numpy() for param in self.params])

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """The states in tensors, and the numbers of steps as torch has them."""
        return {
            self.params[index]: {
                name: torch.tensor(float(value)) if name == "step" else torch.from_numpy(value)
                for name, value in state.items()
            }
            for index, state in self.opt.state_dict()["state"].items()
        }


class Twins:
    """The same parameters with torch's optimizer (contiguous ones, in the slowest and surest way) and with ours."""

    def __init__(
        self,
        case: Case,
        layouts: Iterable[str] = LAYOUTS,
        dtype: torch.dtype = torch.float32,
        on_arrays: bool = False,
        **more: Any,
    ) -> None:
        self.case = case
        self.generator = torch.Generator().manual_seed(20240229)
        self.params, self.places = parameters(layouts, dtype, self.generator)
        self.twins = copied(self.params)
        options = {**case.options, **more}
        self.ours: Any = OnArrays(case, self.params) if on_arrays else ours(case.optimizer)(self.params, **options)
        self.theirs = theirs(case.optimizer)(self.twins, **torch_options(case))
        self.steps = 0
        # The largest numbers on the way, of each element. (Gradients are of order one.)
        self.largest = [absolute(twin).clamp(min=1) for twin in self.twins]
        self.tops: dict[tuple[int, str], Tensor] = {}

    def step(self, missing: Iterable[int] = ()) -> None:
        """Step both with the same random gradients."""
        for index, (param, twin, place) in enumerate(zip(self.params, self.twins, self.places, strict=True)):
            grad = nonzero(param.shape, param.dtype, self.generator)
            param.grad = None if index in missing else place(grad)
            twin.grad = None if index in missing else grad
        clip_norm, clip_value = self.case.clipping_at(self.steps)
        if math.isfinite(clip_norm):
            torch.nn.utils.clip_grad_norm_(self.twins, clip_norm)
        if math.isfinite(clip_value):
            torch.nn.utils.clip_grad_value_(self.twins, clip_value)
        self.theirs.param_groups[0].update(torch_options(self.case, self.steps))
        self.theirs.step()
        self.ours.step()
        self.steps += 1
        for index, twin in enumerate(self.twins):
            self.largest[index] = torch.maximum(self.largest[index], absolute(twin))
            for name, value in self.theirs.state.get(twin, {}).items():
                top = self.tops.get((index, name), torch.ones(()))
                self.tops[index, name] = torch.maximum(top, absolute(value))

    def assert_close(self, what: str = "", ulps: float = ULPS) -> None:
        """Compare parameters and states."""
        for index, (param, twin, largest) in enumerate(zip(self.params, self.twins, self.largest, strict=True)):
            label = f"{what} parameter {index}"
            assert_close(real(param), real(twin), largest, label, ulps)
            mine, other = self.ours.state.get(param, {}), self.theirs.state.get(twin, {})
            assert mine.keys() == other.keys(), label
            for name in other:
                assert_close(real(mine[name]), real(other[name]), self.tops[index, name], f"{label}: {name}", ulps)


def real(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor, complex ones as pairs."""
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()


def absolute(tensor: Tensor) -> Tensor:
    return real(tensor).abs()


def give_gradients(params: Iterable[Tensor], generator: torch.Generator) -> None:
    for param in params:
        param.grad = nonzero(param.shape, param.dtype, generator)


def snapshot(opt: torch.optim.Optimizer) -> Any:
    """Everything that a step may change, copied."""
    params = [param for group in opt.param_groups for param in group["params"]]
    state = [{name: copy_of(value) for name, value in opt.state.get(param, {}).items()} for param in params]
    return [param.detach().clone() for param in params], state


def copy_of(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def assert_equal(actual: Any, expected: Any) -> None:
    """Assert equality to the last bit, through any structure; NaN equals NaN."""
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor)
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, Mapping):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_equal(actual[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_equal(one, other)
    else:
        assert actual == expected


def package_of(module: str) -> ModuleType:
    """Return a module of a package, or skip; of timm without what is above its optimizers, which wants torchvision."""
    package, *parts = module.split(".")
    if package not in sys.modules:
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            pytest.skip(f"{package} is not installed")
        for depth in range(1, len(parts) + 1):
            bare = ModuleType(".".join([package, *parts[: depth - 1]]))
            bare.__path__ = ["/".join([found.submodule_search_locations[0], *parts[: depth - 1]])]
            bare.__spec__ = found
            sys.modules[bare.__name__] = bare
    return importlib.import_module(module)
