"""States in another precision than the parameter's, for NumPy and for torch."""

import copy
from typing import Any

import numpy as np
import pytest
from cases import FIRST_OF_EACH_RULE, Case

import fastopt
from fastopt import _core

SIZES = [(3, 5), (70_001,), (0,), (1,)]


def arrays(rng: np.random.Generator) -> list[Any]:
    return [rng.normal(size=shape).astype(np.float32) for shape in SIZES]


def decoded(state: Any) -> Any:
    """The float32 numbers of a state."""
    if state.dtype == np.float32:
        return state
    return (state.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def nearest(values: Any) -> Any:
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize("case", [case for case in FIRST_OF_EACH_RULE if not case.measures])
def test_a_step_is_the_float32_step_of_what_is_stored(case: Case, rng: np.random.Generator) -> None:
    """The parameter sees the new states before they are rounded."""
    params = arrays(rng)
    half = case.make(params, state_dtype="bfloat16")
    names = half.method.states
    for _ in range(3):
        grads = arrays(rng)
        plain = case.make([param.copy() for param in params])
        state = half.state_dict()
        for entry in state["state"].values():
            entry.update({name: decoded(entry[name]) for name in entry if name in names})
        for group in state["param_groups"]:
            del group["state_dtype"]
        plain.load_state_dict(state)
        plain.step(grads)
        half.step(grads)
        for ours, theirs, kept, whole in zip(
            params, plain.param_groups[0]["params"], half.state, plain.state, strict=True
        ):
            assert ours.tobytes() == theirs.tobytes()
            for name in kept.keys() & names.keys():
                if names[name].kind == "exact":
                    assert kept[name].dtype == np.float32
                    assert kept[name].tobytes() == whole[name].tobytes()
                elif names[name].kind == "moment":
                    assert decoded(kept[name]).tobytes() == nearest(whole[name]).tobytes()
                else:
                    below = (whole[name].view(np.uint32) & 0xFFFF0000).view(np.float32)
                    above = ((whole[name].view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
                    found = decoded(kept[name])
                    assert ((found == below) | (found == above)).all(), name


def test_an_average_of_squares_decays_as_it_should() -> None:
    """Rounded to nearest it would stay where it is: a thousandth is less than half a place."""
    p = np.ones(10_000, np.float32)
    opt = fastopt.Adam(p, lr=0.0, state_dtype="bfloat16")
    opt.step(np.ones_like(p))
    for _ in range(1000):
        opt.step(np.zeros_like(p))
    mean = decoded(opt.state[0]["exp_avg_sq"]).mean()
    assert mean == pytest.approx(0.001 * 0.999**1000, rel=0.01)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("state_dtype", "snapshot"),
    [("bfloat16", {}), ("8bit", {"compressed": True}), ("8bit", {"compressed": False})],
)
def test_the_bits_are_the_same_on_any_threads_and_after_resuming(
    state_dtype: str, snapshot: dict[str, Any], threads: int, rng: np.random.Generator
) -> None:
    first = rng.normal(size=300_001).astype(np.float32)
    grads = [rng.normal(size=first.shape).astype(np.float32) for _ in range(3)]
    expected = first.copy()
    opt = fastopt.AdamW(expected, lr=0.1, state_dtype=state_dtype)
    for grad in grads:
        opt.step(grad)
    before = fastopt.get_num_threads()
    p, state = first.copy(), None
    fastopt.set_num_threads(threads)
    try:
        for grad in grads:  # a new optimizer each step
            other = fastopt.AdamW(p, lr=0.1, state_dtype=state_dtype)
            if state is not None:
                other.load_state_dict(state)
            other.step(grad)
            state = copy.deepcopy(other.state_dict(**snapshot))
    finally:
        fastopt.set_num_threads(before)
    assert p.tobytes() == expected.tobytes()
    assert {"exp_avg", "exp_avg_sq"} <= opt.state[0].keys()
    for name in opt.state[0]:
        assert other.state[0][name].tobytes() == opt.state[0][name].tobytes()


def test_bits_stand_for_bfloat16_where_ml_dtypes_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from fastopt.backends import numpy as backend

    with_package = fastopt.Adam(np.ones(5, np.float32), state_dtype="bfloat16")
    backend.bfloat16.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    p = np.ones(5, np.float32)
    opt = fastopt.Adam(p, state_dtype="bfloat16")
    backend.bfloat16.cache_clear()
    assert opt.state[0]["exp_avg"].dtype == np.uint16
    for each in (opt, with_package):
        each.step(np.arange(5, dtype=np.float32))
    assert opt.state[0]["exp_avg"].tobytes() == with_package.state[0]["exp_avg"].tobytes()
    monkeypatch.undo()
    with_package.load_state_dict(opt.state_dict())
    for each in (opt, with_package):
        each.step(np.arange(5, dtype=np.float32))
    assert p.tobytes() == with_package.param_groups[0]["params"][0].tobytes()


def test_float64_keeps_its_states_and_an_edit_converts_them() -> None:
    p, q = np.ones(3), np.ones(3, np.float32)
    opt = fastopt.Adam([p, q], state_dtype="bfloat16")
    opt.step([np.ones(3), np.ones(3, np.float32)])
    assert opt.state[0]["exp_avg"].dtype == np.float64
    assert opt.state[1]["exp_avg"].itemsize == 2
    opt.state_dtype = None
    opt.step([np.ones(3), np.ones(3, np.float32)])
    assert opt.state[1]["exp_avg"].dtype == np.float32


@pytest.mark.parametrize("bad", ["float64", "bf16", 16, np.float32, True])
def test_another_precision_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="Invalid state_dtype: expected None, 'float32', 'bfloat16', '8bit'"):
        fastopt.Adam(np.ones(3, np.float32), state_dtype=bad)


# ---- torch ----


def test_torch_has_the_same_bits(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    p = rng.normal(size=9000).astype(np.float32)
    ours = torch.nn.Parameter(torch.tensor(p))
    opt, other = fastopt.Adam(p, state_dtype="bfloat16"), fastopt.torch.Adam([ours], state_dtype=torch.bfloat16)
    for _ in range(3):
        grad = rng.normal(size=p.shape).astype(np.float32)
        ours.grad = torch.tensor(grad)
        opt.step(grad)
        other.step()
    assert ours.detach().numpy().tobytes() == p.tobytes()
    entry = other.state_dict()["state"][0]
    for name in ("exp_avg", "exp_avg_sq"):
        assert entry[name].dtype == torch.bfloat16
        assert entry[name].view(torch.int16).numpy().tobytes() == opt.state[0][name].tobytes()
    again = fastopt.Adam(p, state_dtype="bfloat16")
    again.load_state_dict(other.state_dict())
    assert again.state[0]["exp_avg_sq"].tobytes() == opt.state[0]["exp_avg_sq"].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
def test_torch_keeps_states_in_bfloat16_beside_any_dtype(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    import fastopt.torch

    param = torch.nn.Parameter(torch.ones(40, dtype=getattr(torch, dtype)))
    opt = fastopt.torch.RMSprop([param], momentum=0.9, state_dtype="bfloat16")
    for _ in range(2):
        param.grad = torch.ones_like(param)
        opt.step()
    wanted = torch.complex64 if dtype == "complex64" else torch.bfloat16
    assert opt.state[param]["square_avg"].dtype == opt.state[param]["momentum_buffer"].dtype == wanted
    assert torch.isfinite(param).all()
    assert (param != 1).all()


def test_every_kind_of_state_has_a_storage() -> None:
    from fastopt.methods.base import STORED_AS

    for storages in STORED_AS.values():
        assert storages.keys() == {"moment", "square", "exact"}
        assert set(storages.values()) <= _core.STORAGES.keys()


@pytest.mark.parametrize("n", [7, 32, 45, 700, 1500])
def test_roots_that_a_rule_hands_over_give_the_bits_of_squares(n: int, rng: np.random.Generator) -> None:
    """Of gradients of every magnitude: Adam's own root is stored, and a state that is loaded has to be rooted."""
    grad = (rng.choice([-1, 1], n) * 10.0 ** rng.uniform(-38, 18, n)).astype(np.float32)
    grad[::5] = 0
    for eps in (1e-8, 0.0):  # (with the second, fading states are kept)
        exact, stored = (fastopt.AdamW(np.ones(n, np.float32), eps=eps, state_dtype=d) for d in (None, "8bit"))
        for opt in (exact, stored):
            opt.step(grad)
        loaded = fastopt.AdamW(np.ones(n, np.float32), eps=eps, state_dtype="8bit")
        loaded.load_state_dict(exact.state_dict())
        found, expected = (opt.state_dict(compressed=True)["state"][0] for opt in (stored, loaded))
        assert found.keys() == expected.keys()
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
