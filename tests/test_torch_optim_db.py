"""torch's own table of what to test its optimizers with (`optim_db`), applied to ours."""

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest", reason="torch's test helpers need it")

from torch.testing._internal.common_optimizers import (  # noqa: E402
    OptimizerErrorEnum,
    _get_optim_inputs_including_global_cliquey_kwargs,
    optim_db,
)
from torch_cases import NAMES, assert_equal, knows_rows, nonzero, ours  # noqa: E402

INFOS: dict[str, Any] = {info.name: info for info in optim_db if info.name in NAMES}
SPARSE = [name for name, info in INFOS.items() if info.supports_sparse]

ROWS = [
    pytest.param(name, row, id=f"{name}-{row.desc}")
    for name, info in INFOS.items()
    for row in _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float64, info, skip=("differentiable",))
]
every_row = pytest.mark.parametrize(("name", "row"), ROWS)

ERRORS = [
    pytest.param(name, row, id=f"{name}-{row.optimizer_error_input.desc}")
    for name, info in INFOS.items()
    for row in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
]


def options_of(row: Any) -> dict[str, Any]:
    """Return the options of a row, its own tensors (schedulers change a learning rate in place)."""
    return copy.deepcopy(row.kwargs)


def test_the_table_has_all_that_torch_has() -> None:
    assert sorted(INFOS) == sorted(NAMES)
    assert SPARSE == ["Adagrad", "SGD"]


# ---- numbers ----


def make_model(dtype: Any) -> Any:
    torch.manual_seed(1)
    layers = [torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid()]
    return torch.nn.Sequential(*layers).to(dtype)


def trained(cls: Any, row: Any, dtype: Any) -> Any:
    """Train with a step without gradients, a layer that is frozen for a while, and a parameter without dimensions."""
    model = make_model(dtype)
    scalar = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    opt = cls([*model.parameters(), scalar], **options_of(row))
    x = torch.linspace(0.1, 0.6, 6, dtype=dtype).view(3, 2)
    for step in range(7):
        model[2].requires_grad_(step not in (3, 4))
        opt.zero_grad()
        if step != 2:
            (model(x).sum() * scalar).backward()
        opt.step()
    return [*model.parameters(), scalar], opt.state_dict()["state"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_row
def test_the_same_numbers_as_torch(name: str, row: Any, dtype: Any) -> None:
    reference = copy.deepcopy(row)
    reference.kwargs.update(dict.fromkeys({"fused", "foreach"} & row.kwargs.keys(), False))
    tolerance = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        trained(ours(name), row, dtype),
        trained(INFOS[name].optim_cls, reference, dtype),
        rtol=tolerance,
        atol=tolerance,
    )


@every_row
def test_complex_parameters_step_as_pairs_of_real_ones(name: str, row: Any) -> None:
    if knows_rows(name):
        pytest.skip("refuses complex parameters")
    generator = torch.Generator().manual_seed(0)
    dtypes = [torch.complex64, torch.complex64, torch.float32]
    params = [
        nonzero(shape, dtype, generator).requires_grad_()
        for shape, dtype in zip([(10, 5), (10,), (10, 5)], dtypes, strict=True)
    ]

    def as_real(tensor: Any) -> Any:
        return torch.view_as_real(tensor) if tensor.is_complex() else tensor

    twins = [as_real(param.detach()).clone().requires_grad_() for param in params]
    opt, other = ours(name)(params, **options_of(row)), ours(name)(twins, **options_of(row))
    for _ in range(3):
        for param, twin in zip(params, twins, strict=True):
            param.grad = nonzero(param.shape, param.dtype, generator)
            twin.grad = as_real(param.grad).clone()
        opt.step()
        other.step()
    # Adagrad's first sum belongs to the real part and to the imaginary one.
    assert_equal(list(map(as_real, params)), twins)


def rosenbrock(tensor: Any) -> Any:
    x, y = tensor
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
@pytest.mark.parametrize(("name", "row"), [row for row in ROWS if row.values[0] in SPARSE])
def test_rosenbrock_with_uncoalesced_gradients(name: str, row: Any) -> None:
    """Coordinate descent under schedulers; sparse gradients go where dense ones go."""
    overrides, schedulers = INFOS[name].metadata_for_sparse
    options = {**options_of(row), **overrides}
    if name == "SGD":
        options["lr"] = min(float(options.get("lr", 1e-3)), 1e-4)
    params = [torch.tensor([1.5, 1.5], dtype=torch.float64, requires_grad=True) for _ in range(2)]
    opts = [ours(name)([param], **copy.deepcopy(options)) for param in params]
    followers = [[make(opt) for make in schedulers] for opt in opts]
    for step in range(50):
        coordinate = step % 2
        for param, opt, sparse, following in zip(params, opts, (True, False), followers, strict=True):
            (grad,) = torch.autograd.grad(rosenbrock(param), param)
            g = grad[coordinate]
            where = torch.tensor([[coordinate, coordinate]])
            entries = torch.sparse_coo_tensor(where, torch.stack([g / 4, g - g / 4]), (2,))
            param.grad = entries if sparse else entries.to_dense()
            opt.step()
            for scheduler in following:
                if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                    scheduler.step(rosenbrock(param).detach())
                else:
                    scheduler.step()
    assert_equal(params[0], params[1])
    start = rosenbrock(torch.tensor([1.5, 1.5], dtype=torch.float64))
    assert (rosenbrock(params[0]) > start) == options.get("maximize", False)


@pytest.mark.parametrize("make_schedulers", range(8))
@pytest.mark.parametrize("name", INFOS)
def test_schedulers_in_combination(name: str, make_schedulers: int) -> None:
    """Two groups, with learning rates of their own, under the combinations of schedulers in the table."""
    combinations: Any = INFOS[name].scheduler_inputs
    if make_schedulers >= len(combinations):
        return

    def script(cls: Any) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 10).double()
        opt = cls([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.01}])
        schedulers = [make(opt) for make in combinations[make_schedulers]]
        x, rates = torch.rand(5, dtype=torch.float64), []
        for _ in range(20):
            opt.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            opt.step()
            for scheduler in schedulers:
                plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                scheduler.step(*([loss.detach()] if plateau else []))
            rates.append([group["lr"] for group in opt.param_groups])
        return list(model.parameters()), rates

    (mine, rates), (other, expected) = script(ours(name)), script(INFOS[name].optim_cls)
    assert rates == expected
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


# ---- errors and checkpoints ----


@pytest.mark.parametrize(("name", "row"), ERRORS)
def test_what_torch_refuses_or_warns_of(name: str, row: Any) -> None:
    given = row.optimizer_error_input
    if row.error_on is OptimizerErrorEnum.STEP_ERROR:
        opt = ours(name)(given.params, **given.kwargs)
        with pytest.raises(row.error_type, match=row.error_regex):
            opt.step()
        return
    with pytest.raises(row.error_type, match=row.error_regex):  # (warnings are errors in these tests)
        ours(name)(given.params, **given.kwargs)


@every_row
def test_checkpoints_from_before_a_flag_was_known(name: str, row: Any) -> None:
    results = []
    for cls in (ours(name), INFOS[name].optim_cls):
        model = make_model(torch.float64)
        opt = cls(model.parameters(), **options_of(row))
        x = torch.linspace(0.1, 0.6, 6, dtype=torch.float64).view(3, 2)
        for step in range(4):
            opt.zero_grad()
            model(x).sum().backward()
            if step == 3:
                old = copy.deepcopy(opt.state_dict())
                for group in old["param_groups"]:
                    for flag in INFOS[name].not_og_supported_flags:
                        group.pop(flag, None)
                opt.load_state_dict(old)
            opt.step()
        results.append(list(model.parameters()))
    # (torch goes on with numbers in the parameter's dtype, here in theirs.)
    tolerance = 1e-9 if ours(name).method.numbers else 1e-12
    torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=tolerance)
