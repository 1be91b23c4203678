"""Every kind of parameter and gradient that there is: stepped as torch does it, or refused by name."""

import ctypes
import math
import re
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch_cases import (  # noqa: E402
    assert_equal,
    every_optimizer,
    give_gradients,
    nonzero,
    ours,
    takes_grad_dtype,
    theirs,
)

import fastopt.torch  # noqa: E402
from fastopt import _dlpack  # noqa: E402
from fastopt.backends.torch import Tensors  # noqa: E402
from fastopt.backends.torch_compat import exchange  # noqa: E402
from fastopt.torch import get_total_norm  # noqa: E402


def generator() -> Any:
    return torch.Generator().manual_seed(0)


def sparse_gradient(shape: tuple[int, ...], rows: list[int], gen: Any, dtype: Any = torch.float64) -> Any:
    """Uncoalesced if a row comes twice."""
    values = nonzero((len(rows), *shape[1:]), dtype, gen)
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, shape, check_invariants=True)


# ---- sparse gradients ----

SPARSE: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"maximize": True}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"momentum": 0.9, "velocity": "step"}),
    ("SGD", {"weight_decay": 0.1}),
    ("SGD", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("SGD", {"clip_norm": 0.5}),
    ("SGD", {"clip_value": 0.5}),
    ("Adagrad", {}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("Adagrad", {"maximize": True, "clip_norm": 0.5}),
]

ROWS = [[1, 4, 1], [0], [], [5, 5, 5, 2], [3, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize(("name", "options"), SPARSE)
def test_sparse_gradients_step_as_dense_ones(name: str, options: dict[str, Any], dtype: Any) -> None:
    gen, shape = generator(), (6, 3)
    params = [nonzero(shape, dtype, gen).requires_grad_() for _ in range(2)]
    twins = [param.detach().clone().requires_grad_() for param in params]
    opt, other = ours(name)(params, lr=0.1, **options), ours(name)(twins, lr=0.1, **options)
    for step, rows in enumerate(ROWS):
        params[0].grad = sparse_gradient(shape, rows, gen, dtype)
        params[1].grad = nonzero(shape, dtype, gen) if step != 1 else None
        for param, twin in zip(params, twins, strict=True):
            twin.grad = None if param.grad is None else param.grad.to_dense()
        opt.step()
        other.step()
        if dtype == torch.bfloat16:  # rows are summed in float32
            torch.testing.assert_close(params, twins)
            continue
        assert_equal(opt.last_step, other.last_step)
        assert_equal(params, twins)
    if dtype != torch.bfloat16:
        assert_equal(opt.state_dict()["state"], other.state_dict()["state"])


TORCHS = {"maximize", "momentum", "nesterov", "lr_decay", "initial_accumulator_value"}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
@pytest.mark.parametrize(("name", "options"), [row for row in SPARSE if row[1].keys() <= TORCHS])
def test_sparse_gradients_give_torchs_numbers(name: str, options: dict[str, Any]) -> None:
    def script(cls: Any) -> Any:
        gen = generator()
        param = nonzero((6, 3), torch.float64, gen).requires_grad_()
        opt = cls([param], lr=0.1, **options)
        for rows in ROWS:
            param.grad = sparse_gradient((6, 3), rows, gen)
            opt.step()
        return param

    torch.testing.assert_close(script(ours(name)), script(theirs(name)), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_sparse_gradients_touch_only_their_rows(name: str) -> None:
    param = torch.full((4, 2), math.nan, requires_grad=True)
    param.data[2] = 1.0
    opt = ours(name)([param], lr=0.5)
    param.grad = sparse_gradient((4, 2), [2, 2], generator(), torch.float32)
    version = param._version
    opt.step()
    assert param[2].isfinite().all()
    assert param[[0, 1, 3]].isnan().all()
    assert param._version > version


def test_an_embedding_learns_from_sparse_gradients() -> None:
    torch.manual_seed(0)
    tables = [torch.nn.Embedding(50, 4, sparse=sparse) for sparse in (True, False)]
    tables[1].load_state_dict(tables[0].state_dict())
    for table in tables:
        opt = fastopt.torch.Adagrad(table.parameters(), lr=0.1)
        for batch in ([1, 2, 3], [3, 3, 9]):
            opt.zero_grad()
            table(torch.tensor(batch)).square().sum().backward()
            opt.step()
    assert_equal(tables[0].weight, tables[1].weight)


def test_gradients_sparse_in_all_dimensions_and_parameters_in_any_order() -> None:
    param = torch.zeros(3, 4).t().requires_grad_()
    param.grad = torch.eye(4)[:, :3].to_sparse()
    fastopt.torch.SGD([param], lr=1.0).step()
    assert_equal(param, -torch.eye(4)[:, :3])


@pytest.mark.parametrize("entries", [1, 2, 0])
@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_gradients_sparse_in_no_dimension(name: str, shape: tuple[int, ...], entries: int) -> None:
    params = [torch.ones(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    indices = torch.empty(0, entries, dtype=torch.int64)
    values = nonzero((entries, *shape), torch.float64, generator())
    params[0].grad = torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)
    params[1].grad = values.sum(dim=0)
    for param in params:
        ours(name)([param], lr=0.5).step()
    assert_equal(params[0], params[1])


@pytest.mark.parametrize("decoupled", [False, True])
def test_adagrad_has_torchs_words_for_sparse_gradients_with_weight_decay(decoupled: bool) -> None:
    param = torch.ones(6, 3, requires_grad=True)
    opt = fastopt.torch.Adagrad([param], weight_decay=0.1, decoupled_weight_decay=decoupled)
    param.grad = sparse_gradient((6, 3), [1], generator(), torch.float32)
    with pytest.raises(RuntimeError, match=r"^weight_decay option is not compatible with sparse gradients$"):
        opt.step()
    assert_equal(param, torch.ones(6, 3))


@pytest.mark.parametrize("name", ["RMSprop", "Adam", "AdamW"])
def test_other_optimizers_refuse_sparse_gradients_by_name(name: str) -> None:
    model = torch.nn.ModuleDict({"table": torch.nn.Embedding(6, 3, sparse=True), "head": torch.nn.Linear(3, 1)})
    opt = ours(name)(model.named_parameters())
    model["head"](model["table"](torch.tensor([1, 2]))).sum().backward()
    before = [param.detach().clone() for param in model.parameters()]
    with pytest.raises(RuntimeError) as caught:
        opt.step()
    assert str(caught.value) == (
        "gradient of parameter 'table.weight' is of layout torch.sparse_coo, which is not supported; make it dense "
        "(for an embedding: sparse=False), or step only its rows (lazy=True)"
    )
    assert_equal(list(model.parameters()), before)
    assert opt.state_dict()["state"] == {}


def test_a_dense_layout_of_another_library_is_refused() -> None:
    param = torch.ones(3, 3).to_mkldnn().requires_grad_()
    opt = fastopt.torch.SGD([("w", param)])
    param.grad = torch.ones(3, 3).to_mkldnn()
    with pytest.raises(RuntimeError, match=r"^parameter 'w' is of layout torch\._mkldnn, which is not supported; make"):
        opt.step()


@every_optimizer
def test_sparse_parameters_are_refused(name: str) -> None:
    param = torch.eye(3).to_sparse().requires_grad_()
    param.grad = torch.eye(3).to_sparse()
    if name == "Adagrad":  # torch makes the states in the constructor
        with pytest.raises(RuntimeError):
            ours(name)([param])
        return
    with pytest.raises(RuntimeError, match=r"^param_groups\[0\]\['params'\]\[0\] is of layout torch\.sparse_coo"):
        ours(name)([param]).step()


# ---- what is not supported ----


@every_optimizer
def test_parameters_on_another_device_are_refused(name: str) -> None:
    params = [torch.ones(2, requires_grad=True), torch.ones(2, device="meta", requires_grad=True)]
    opt = ours(name)([("here", params[0]), ("there", params[1])])
    params[0].grad = torch.ones(2)
    opt.step()  # the other one has no gradient
    before = params[0].detach().clone()
    params[1].grad = torch.ones(2, device="meta")
    message = (
        "parameter 'there' is on device meta, which is not supported; fastopt steps on the CPU: move the model there"
    )
    with pytest.raises(RuntimeError, match=message):
        opt.step()
    assert_equal(params[0], before)


def test_other_dtypes_are_refused() -> None:
    param = torch.ones(2, requires_grad=True)
    opt = fastopt.torch.SGD([param])
    param.data = torch.ones(2).to(torch.float8_e4m3fn)
    param.grad = torch.ones(2).to(torch.float8_e4m3fn)
    with pytest.raises(RuntimeError, match=r"is of dtype torch\.float8_e4m3fn, which is not supported; use float32"):
        opt.step()


def wrapper(values: Any) -> Any:
    """A subclass of tensor whose numbers are in tensors inside it."""
    from torch.testing._internal.two_tensor import TwoTensor

    make: Any = TwoTensor
    return make(values.clone(), values.clone())


def test_wrappers_without_memory_of_their_own_are_refused() -> None:
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(wrapper(torch.ones(3)))]
    opt = fastopt.torch.SGD([("plain", params[0]), ("wrapped", params[1])])
    params[0].grad, params[1].grad = torch.ones(3), wrapper(torch.ones(3))
    with pytest.raises(RuntimeError, match=r"^parameter 'wrapped' is a TwoTensor without memory of its own"):
        opt.step()
    assert_equal(params[0].detach(), torch.ones(3))
    # Clipping outside the step leaves them to torch.
    norms: list[Any] = [get_norm([params[1].grad]) for get_norm in (torch.nn.utils.get_total_norm, get_total_norm)]
    assert norms[0].a.item() == norms[1].a.item() == pytest.approx(math.sqrt(3))


def test_a_gradient_of_another_shape_is_refused() -> None:
    param = torch.ones(6, requires_grad=True)
    opt = fastopt.torch.SGD([param])
    param.grad = torch.ones(6)
    opt.step()
    param.data = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"^gradient of .* has shape \(6,\), expected \(4,\)$"):
        opt.step()


def test_parameters_whose_elements_share_memory_are_refused() -> None:
    param = torch.ones(1).expand(5).requires_grad_()
    opt = fastopt.torch.SGD([param], momentum=0.9)
    param.grad = torch.ones(5)
    with pytest.raises(RuntimeError, match="has elements that share memory"):
        opt.step()
    assert opt.state_dict()["state"] == {}


# ---- lazy signs, conjugates, expanded gradients, other dtypes of gradients ----


@every_optimizer
def test_lazy_signs_and_conjugates(name: str) -> None:
    gen = generator()
    z, w = nonzero((4,), torch.complex128, gen), nonzero((), torch.complex128, gen)
    params = [nonzero((4,), torch.float64, gen), nonzero((), torch.float64, gen), nonzero((4,), torch.complex128, gen)]
    params = [param.requires_grad_() for param in params]
    twins = [param.detach().clone().requires_grad_() for param in params]
    lazy = [z.conj().imag, w.conj().imag, z.conj()]
    assert [grad.is_neg() or grad.is_conj() for grad in lazy] == [True] * 3
    opt, other = ours(name)(params, lr=0.1), ours(name)(twins, lr=0.1)
    for _ in range(2):
        for param, twin, grad in zip(params, twins, lazy, strict=True):
            param.grad, twin.grad = grad, grad.resolve_conj().resolve_neg().clone()
        opt.step()
        other.step()
    assert_equal(params, twins)
    assert_equal(lazy[0], -z.imag)


@every_optimizer
def test_parameters_that_are_lazy_themselves(name: str) -> None:
    values = nonzero((4,), torch.complex128, generator())
    for lazy in (values.clone().conj(), values.clone().conj().imag, values.clone()[0].conj().imag):
        param, twin = lazy.detach().requires_grad_(), lazy.resolve_conj().resolve_neg().clone().requires_grad_()
        assert param.is_conj() or param.is_neg()
        opt, other = ours(name)([param], lr=0.1), ours(name)([twin], lr=0.1)
        for _ in range(2):
            param.grad = torch.ones_like(twin)
            twin.grad = torch.ones_like(twin)
            opt.step()
            other.step()
        assert_equal(param.resolve_conj().resolve_neg(), twin)


@every_optimizer
def test_expanded_gradients(name: str) -> None:
    params = [torch.zeros(3, 4, requires_grad=True) for _ in range(2)]
    opt = ours(name)(params)
    params[0].grad, params[1].grad = torch.ones(1, 4).expand(3, 4), torch.ones(3, 4)
    opt.step()
    assert_equal(params[0], params[1])


@takes_grad_dtype
def test_gradients_of_another_dtype() -> None:
    """torch lets a parameter accumulate in a wider dtype."""
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.bfloat16, torch.float16)):
        param = torch.ones(4, dtype=dtype, requires_grad=True)
        param.grad_dtype = wide
        opt = fastopt.torch.SGD([param], lr=0.5)
        for _ in range(2):
            param.grad = torch.ones(4, dtype=wide)
            opt.step()
        assert_equal(param, torch.zeros(4, dtype=dtype))


def test_gradients_that_are_part_of_a_graph() -> None:
    param = torch.ones(3, requires_grad=True)
    (param.grad,) = torch.autograd.grad((param**3).sum(), param, create_graph=True)
    strided = torch.ones(3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad((strided**3).sum(), strided, create_graph=True)
    strided.grad = gradient.t()
    for zero in (False, True):
        fastopt.torch.SGD([param, strided], lr=0.1, zero_grad_in_step=zero).step()
    assert not param.grad.any()
    assert not strided.grad.any()


@every_optimizer
def test_many_dtypes_at_once(name: str) -> None:
    gen = generator()
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
    params = [nonzero((5,), dtype, gen).requires_grad_() for dtype in dtypes]
    opts = [ours(name)(params)]
    twins = [param.detach().clone().requires_grad_() for param in params]
    opts += [ours(name)([twin]) for twin in twins]
    for _ in range(3):
        give_gradients(params, gen)
        for param, twin in zip(params, twins, strict=True):
            twin.grad = None if param.grad is None else param.grad.clone()
        for opt in opts:
            opt.step()
    assert_equal(params, twins)


# ---- memory that is shared ----


def test_parameters_that_share_memory_are_stepped_one_after_the_other() -> None:
    """Weights tied by their data: each update counts, as in torch, on any number of threads."""
    size = 200_000
    memory = torch.zeros(size)
    params = [memory.view(-1).requires_grad_() for _ in range(4)]
    opt = fastopt.torch.SGD([param.detach().requires_grad_() for param in params], lr=1.0)
    tied = opt.param_groups[0]["params"]
    fastopt.set_num_threads(4)
    for param in tied:
        param.grad = torch.ones(size)
    opt.step()
    assert_equal(memory, torch.full((size,), -4.0))


def test_parameters_in_one_buffer_side_by_side() -> None:
    memory = torch.zeros(10)
    params = [part.requires_grad_() for part in memory.detach().split(3)]
    opt = fastopt.torch.SGD(params, lr=1.0)
    for param in params:
        param.grad = torch.ones_like(param)
    opt.step()
    assert_equal(memory, torch.full((10,), -1.0))


# ---- autograd ----


@every_optimizer
def test_a_parameter_saved_for_backward_cannot_be_used_after_a_step(name: str) -> None:
    messages = []
    for cls in (ours(name), theirs(name)):
        param = torch.ones(3, dtype=torch.float64, requires_grad=True)
        loss = (param**2).sum()
        opt = cls([param])
        param.grad = torch.ones_like(param)
        opt.step()
        with pytest.raises(RuntimeError, match="has been modified by an inplace operation") as caught:
            loss.backward()
        messages.append(re.sub(r"version \d+", "version", str(caught.value)))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("place", ["contiguous", "strided", "complex", "sparse"])
def test_version_counters_are_bumped_for_every_kind_of_tensor(place: str) -> None:
    values = {"strided": torch.ones(4, 2)[:, 0], "complex": torch.ones(4, dtype=torch.complex64)}
    param = values.get(place, torch.ones(4)).detach().requires_grad_()
    untouched = torch.ones(2, requires_grad=True)
    opt = fastopt.torch.SGD([param, untouched], lr=0.1, zero_grad_in_step=True)
    for _ in range(2):
        param.grad = torch.ones_like(param).to_sparse() if place == "sparse" else torch.ones_like(param)
        before = param._version, param.grad._version, untouched._version
        opt.step()
        assert param._version > before[0]
        assert param.grad._version > before[1]
        assert untouched._version == before[2]


@every_optimizer
def test_the_step_is_not_recorded(name: str) -> None:
    param = torch.ones(3, requires_grad=True)
    opt = ours(name)([param])
    with torch.enable_grad():
        for _ in range(2):
            param.grad = torch.ones(3)
            opt.step()
    assert param.is_leaf
    assert param.grad_fn is None
    assert not any(state.requires_grad for state in opt.state[param].values())


def test_leaves_that_were_made_later_than_the_graph() -> None:
    """A tensor that retains its gradient may be optimized, as in torch."""
    source = torch.ones(3, requires_grad=True)
    param = source * 1
    param.retain_grad()
    opt = fastopt.torch.SGD([param], lr=0.5)
    (param * 2).sum().backward()
    opt.step()
    assert param.tolist() == [0.0] * 3


@every_optimizer
def test_steps_in_inference_mode_and_after_it(name: str) -> None:
    """(torch's states would be of no use outside.)"""
    param = torch.ones(3, dtype=torch.float64, requires_grad=True)
    twin = param.detach().clone().requires_grad_()
    opt, other = ours(name)([param]), ours(name)([twin])
    for inference in (True, False, True):
        for p in (param, twin):
            p.grad = None
            p.square().sum().backward()
        with torch.inference_mode(inference):
            opt.step()
        other.step()
    assert_equal(param, twin)
    assert_equal(opt.state_dict()["state"], other.state_dict()["state"])
    assert not any(state.is_inference() for state in opt.state[param].values())


def test_frozen_layers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    opt = fastopt.torch.AdamW(model.parameters(), lr=0.1)
    before = [param.detach().clone() for param in model.parameters()]
    for frozen in (True, False):
        model[0].requires_grad_(not frozen)
        for _ in range(2):
            opt.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            opt.step()
        changed = [not torch.equal(param, value) for param, value in zip(model.parameters(), before, strict=True)]
        assert changed == [not frozen, not frozen, True, True]
    assert [int(opt.state[param]["step"]) for param in model.parameters()] == [2, 2, 4, 4]


def test_gradients_are_not_kept_alive() -> None:
    """zero_grad frees them for the next forward pass, also those that had to be copied."""
    params = [torch.ones(100, requires_grad=True), torch.ones(10, 10, requires_grad=True)]
    opt = fastopt.torch.AdamW(params)
    params[0].grad, params[1].grad = torch.ones(100), torch.ones(10, 10).t()
    storages = [weakref.ref(param.grad) for param in params]
    opt.step()
    opt.zero_grad()
    assert [storage() for storage in storages] == [None, None]


# ---- what is odd about one costs nothing to the others ----


def odd_parameter(kind: str) -> Any:
    if kind == "strided":
        return torch.ones(6)[::2]
    return torch.ones(3, dtype={"complex": torch.complex64, "of another dtype": torch.bfloat16}.get(kind))


@pytest.mark.parametrize(
    ("kind", "bound_anew"),
    [
        ("strided", True),
        ("complex", True),
        ("sparse gradient", True),
        ("gradient in another order", True),
        ("of another dtype", False),
        ("moved", False),
    ],
)
def test_one_odd_tensor_leaves_the_others_where_they_are(
    kind: str, bound_anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = [torch.ones(3, requires_grad=True) for _ in range(200)]
    odd = (torch.ones(2, 3) if "order" in kind else odd_parameter(kind)).requires_grad_()
    params.insert(100, odd)
    opt = fastopt.torch.SGD(params, lr=0.5, momentum=0.0 if "sparse" in kind else 0.9)
    bound: list[int] = []
    bind = Tensors.bind

    def counted(self: Any, slot: int, *args: Any) -> Any:
        bound.append(slot)
        return bind(self, slot, *args)

    monkeypatch.setattr(Tensors, "bind", counted)
    for step in range(4):
        for param in params:
            if kind == "moved" and step:
                param.data = param.detach().clone()
            param.grad = torch.ones_like(param)
        if "sparse" in kind:
            odd.grad = torch.ones(3).to_sparse()
        if "order" in kind:
            odd.grad = torch.ones(3, 2).t()
        opt.step()
        assert bound == ([*range(201)] if step == 0 else [100] * bound_anew)
        bound.clear()
    assert all((param.detach() == params[0].detach()[0]).all() for param in params if param.dtype == torch.float32)


TensorFrom = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)


class DLPackExchangeAPI(ctypes.Structure):
    """As in csrc/dlpack.h."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocator", ctypes.c_void_p),
        ("managed_tensor_from", ctypes.c_void_p),
        ("managed_tensor_to", ctypes.c_void_p),
        ("tensor_from", TensorFrom),
    )


def test_tensors_without_memory_of_their_own_are_never_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """To describe one makes torch throw an exception, which takes longer than many steps."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    name = b"dlpack_exchange_api"
    api = DLPackExchangeAPI.from_address(pointer(exchange(), name))
    described: list[bool] = []

    def describe(tensor: Any, out: int) -> int:
        described.append(tensor.is_sparse)
        status: int = api.tensor_from(tensor, out)
        return status

    watched = DLPackExchangeAPI.from_buffer_copy(api)
    watched.previous, watched.tensor_from = None, TensorFrom(describe)
    watch = _dlpack.Watch
    watching = SimpleNamespace(Watch=lambda _, *args: watch(capsule(ctypes.addressof(watched), name, None), *args))
    monkeypatch.setattr("fastopt.backends.torch._dlpack", watching)
    params = [torch.ones(6, 2, requires_grad=True) for _ in range(3)]
    opt = fastopt.torch.Adagrad(params, lr=0.1)
    for rows in ROWS:
        for param in params[:2]:
            param.grad = torch.ones(6, 2)
        params[2].grad = sparse_gradient((6, 2), rows, generator(), torch.float32)
        opt.step()
    assert len(described) > 10
    assert not any(described)
