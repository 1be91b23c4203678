"""Steps of fastopt.torch against torch.optim: every option, dtype and layout; and against fastopt on NumPy arrays."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from cases import Case

torch = pytest.importorskip("torch")

from torch_cases import (  # noqa: E402
    CASES,
    FIRST_OF_EACH_RULE,
    LAYOUTS,
    SHARED,
    STEPS,
    Twins,
    assert_equal,
    knows_rows,
    nonzero,
    ours,
)

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def check_steps(case: Case, layouts: Iterable[str], dtype: Any) -> None:
    if knows_rows(case.optimizer):  # (torch divides by the number of elements)
        layouts = [layout for layout in layouts if 0 not in LAYOUTS[layout][2]]
    twins = Twins(case, layouts, dtype)
    for step in range(STEPS):
        twins.step(missing=[1, 3] if step % 7 == 3 else [2] if step == 0 else [])
    twins.assert_close()


@pytest.mark.parametrize("case", SHARED)
@both_dtypes
def test_every_option_gives_torchs_numbers(case: Case, dtype: Any) -> None:
    check_steps(case, ["contiguous", "scalar", "transposed", "contiguous, transposed gradient"], dtype)


@pytest.mark.parametrize("case", FIRST_OF_EACH_RULE)
@both_dtypes
def test_every_layout_gives_torchs_numbers(case: Case, dtype: Any) -> None:
    check_steps(case, LAYOUTS, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("case", SHARED)
@both_dtypes
def test_every_option_in_every_layout_gives_torchs_numbers(case: Case, dtype: Any) -> None:
    check_steps(case, LAYOUTS, dtype)


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.cls.method.between or case.options.get("use_muon") is False]
)
@both_dtypes
@pytest.mark.usefixtures("numbers_in_double_precision")
def test_tensors_and_arrays_give_the_same_bits(case: Case, dtype: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    params = [nonzero(shape, dtype, generator).requires_grad_() for shape in [(7, 5), (), (0,), (1000,)]]
    arrays = [param.detach().numpy().copy() for param in params]
    on_tensors, on_arrays = ours(case.optimizer)(params, **case.options), case.make(arrays)
    for step in range(5):
        for param in params:
            param.grad = nonzero(param.shape, dtype, generator)
        if step == 2:
            params[0].grad = None
        on_tensors.step()
        info = on_arrays.step([None if param.grad is None else param.grad.numpy() for param in params])
        assert on_tensors.last_step == info
    assert_equal(params, list(map(torch.from_numpy, arrays)))
    arrays_state = on_arrays.state_dict()["state"]
    for index, state in on_tensors.state_dict()["state"].items():
        assert_equal(
            {name: value.numpy().tolist() for name, value in state.items()},
            {name: np.asarray(value).tolist() for name, value in arrays_state[index].items()},
        )


@pytest.mark.parametrize("case", [case for case in FIRST_OF_EACH_RULE if not knows_rows(case.optimizer)])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_parameters_give_torchs_numbers(case: Case, dtype: Any) -> None:
    twins = Twins(
        case, ["contiguous", "scalar", "empty", "transposed", "contiguous, transposed gradient", "strided"], dtype
    )
    for step in range(STEPS):
        twins.step(missing=[1] if step == 5 else [])
    twins.assert_close()
