"""clip_grad_norm_, clip_grad_value_ and get_total_norm against torch.nn.utils."""

import inspect
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch_cases import assert_equal, nonzero, strided, transposed  # noqa: E402

import fastopt.torch  # noqa: E402

SHAPES = [(7, 5), (), (0,), (33,), (20_000,)]
NORMS = [2.0, math.inf, 1.0, 3.0, "inf", 0.5]


def generator() -> Any:
    return torch.Generator().manual_seed(0)


def with_gradients(*grads: Any) -> list[Any]:
    params = [torch.zeros(grad.shape, dtype=grad.dtype, requires_grad=True) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return params


def make_gradients(dtype: Any) -> list[Any]:
    gen = generator()
    return [nonzero(shape, dtype, gen) for shape in SHAPES]


def both(make: Any, act: Any) -> tuple[Any, Any]:
    """Do the same with torch.nn.utils and with fastopt.torch; return what came out and the gradients."""
    results = []
    for module in (fastopt.torch, torch.nn.utils):
        params = make()
        result = act(module, params)
        results.append((result, [param.grad for param in params]))
    return results[0], results[1]


every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)


@pytest.mark.parametrize("name", ["get_total_norm", "clip_grad_norm_", "clip_grad_value_"])
def test_signatures_are_torchs(name: str) -> None:
    mine = inspect.signature(getattr(fastopt.torch, name)).parameters
    other = inspect.signature(getattr(torch.nn.utils, name)).parameters
    assert [(p.name, p.default, p.kind) for p in mine.values()] == [(p.name, p.default, p.kind) for p in other.values()]


@pytest.mark.parametrize("norm_type", NORMS)
@every_dtype
def test_norms(dtype: Any, norm_type: Any) -> None:
    grads = make_gradients(dtype)
    if float(norm_type) == math.inf:
        grads = [grad for grad in grads if grad.numel()]  # (torch has no maximum of nothing)
    actual = fastopt.torch.get_total_norm(grads, norm_type)
    expected = torch.nn.utils.get_total_norm(grads, norm_type)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape == ()
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9, math.inf, 3])
@pytest.mark.parametrize("norm_type", [2.0, math.inf, 1.0])
@every_dtype
def test_clipping_by_norm(dtype: Any, norm_type: float, max_norm: float) -> None:
    mine, other = both(
        lambda: with_gradients(*(grad for grad in make_gradients(dtype) if grad.numel())),
        lambda module, params: module.clip_grad_norm_(params, max_norm, norm_type),
    )
    torch.testing.assert_close(mine, other)


@every_dtype
def test_clipping_by_value(dtype: Any) -> None:
    mine, other = both(
        lambda: with_gradients(*make_gradients(dtype)),
        lambda module, params: module.clip_grad_value_(params, 0.7),
    )
    assert_equal(mine, other)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("norm_type", [2.0, math.inf, 1.0])
@every_dtype
def test_gradients_that_are_not_finite(dtype: Any, norm_type: float, bad: float) -> None:
    def make() -> list[Any]:
        return with_gradients(torch.tensor([1.0, bad, -2.0], dtype=dtype), torch.ones(3, dtype=dtype))

    mine, other = both(make, lambda module, params: module.clip_grad_norm_(params, 1.0, norm_type))
    assert_equal(mine, other)
    messages = []
    for module in (fastopt.torch, torch.nn.utils):
        params = make()
        with pytest.raises(RuntimeError, match="non-finite") as caught:
            module.clip_grad_norm_(params, 1.0, norm_type, error_if_nonfinite=True)
        assert params[1].grad.tolist() == [1.0] * 3
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_mixed_dtypes() -> None:
    def make() -> list[Any]:
        gen = generator()
        return with_gradients(*(nonzero((9,), dtype, gen) for dtype in (torch.bfloat16, torch.float64, torch.float16)))

    mine, other = both(make, lambda module, params: module.clip_grad_norm_(params, 0.5))
    torch.testing.assert_close(mine, other, rtol=1e-2, atol=0)
    assert mine[0].dtype == torch.float64


@pytest.mark.parametrize("kind", ["transposed", "strided", "complex", "shared", "none"])
def test_every_kind_of_gradient(kind: str) -> None:
    def make() -> list[Any]:
        gen = generator()
        values = nonzero((4, 6), torch.float64, gen)
        grads = {
            "transposed": [transposed(values)],
            "strided": [strided(values)],
            "complex": [nonzero((5,), torch.complex128, gen)],
            "shared": [values, values],
            "none": [values],
        }[kind]
        return [*with_gradients(*grads), torch.zeros(2, requires_grad=True)]

    for clip in ("clip_grad_norm_", *(["clip_grad_value_"] if kind != "complex" else [])):
        mine, other = both(make, lambda module, params, clip=clip: getattr(module, clip)(params, 0.3))
        torch.testing.assert_close(mine[1][:-1], other[1][:-1], rtol=1e-13, atol=0)
        assert mine[1][-1] is None


def test_a_gradient_in_the_list_twice_is_scaled_twice_as_in_torch() -> None:
    def act(module: Any, params: list[Any]) -> Any:
        return module.clip_grad_norm_([*params, *params], 0.3)

    mine, other = both(lambda: with_gradients(torch.ones(100_000)), act)
    torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("layout", ["plain", "complex"])
def test_generators_and_single_tensors(layout: str) -> None:
    """The parameters of a model are a generator, which can be gone through once."""

    def make() -> list[Any]:
        return with_gradients(nonzero((9,), torch.complex128 if layout == "complex" else torch.float64, generator()))

    for form in (lambda params: (param for param in params), lambda params: params[0]):
        for clip in ("clip_grad_norm_", "clip_grad_value_"):
            mine, other = both(
                make if (layout, clip) != ("complex", "clip_grad_value_") else lambda: with_gradients(torch.ones(3)),
                lambda module, params, clip=clip, form=form: getattr(module, clip)(form(params), 0.3),
            )
            torch.testing.assert_close(mine, other, rtol=1e-13, atol=0)


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("norm_type", [2.0, 3.0])
def test_foreach_changes_nothing(foreach: bool | None, norm_type: float) -> None:
    def act(module: Any, params: list[Any]) -> Any:
        norms = [module.get_total_norm([param.grad for param in params], norm_type, foreach=foreach)]
        norms.append(module.clip_grad_norm_(params, 0.5, norm_type, foreach=foreach))
        module.clip_grad_value_(params, 0.01, foreach=foreach)
        return norms

    mine, other = both(lambda: with_gradients(*make_gradients(torch.float64)), act)
    torch.testing.assert_close(mine, other, rtol=1e-13, atol=0)


def test_nothing_to_clip() -> None:
    assert_equal(fastopt.torch.clip_grad_norm_([], 1.0), torch.tensor(0.0))
    assert_equal(fastopt.torch.get_total_norm([]), torch.tensor(0.0))
    assert_equal(fastopt.torch.clip_grad_norm_([torch.zeros(2, requires_grad=True)], 1.0), torch.tensor(0.0))
    fastopt.torch.clip_grad_value_([], 1.0)


def iter_none() -> Any:
    yield from ()


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch warns since 2.7")
def test_an_empty_generator_gets_torchs_warning() -> None:
    for module in (fastopt.torch, torch.nn.utils):
        with pytest.warns(
            UserWarning, match="`parameters` is an empty generator, no gradient clipping will occur"
        ) as seen:
            module.clip_grad_norm_(iter_none(), 1.0)
        assert seen[0].filename == __file__


def test_gradients_are_written_only_when_they_change() -> None:
    (param,) = with_gradients(torch.ones(4))
    before = param.grad._version
    fastopt.torch.clip_grad_norm_([param], 10.0)
    assert param.grad._version == before
    fastopt.torch.clip_grad_norm_([param], 1.0)
    assert param.grad._version > before
    before = param.grad._version
    fastopt.torch.clip_grad_value_([param], 0.1)
    assert param.grad._version > before


def test_norms_do_not_overflow_on_the_way() -> None:
    grads = [torch.full((4,), 1e30), torch.full((4,), 1e-30)]
    torch.testing.assert_close(fastopt.torch.get_total_norm(grads), torch.tensor(2e30))


def test_norms_do_not_depend_on_the_number_of_threads() -> None:
    grads = [nonzero((300_000,), torch.float32, generator())]
    norms = set()
    for threads in (1, 2, 3):
        fastopt.set_num_threads(threads)
        norms.add(fastopt.torch.get_total_norm(grads).item())
    assert len(norms) == 1
