"""Muon, alone and beside AdamW: orthogonal updates, by products of matrices."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import reference
from arrays import nonzero, unchanged
from cases import MATRIX_CASES, Case

import fastopt
from fastopt import products

SHAPES = ((7, 5), (5, 7), (7, 5), (4, 4), (1, 6), (6, 1), (7, 5))

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}

matrix_case = pytest.mark.parametrize("case", MATRIX_CASES)
first_cases = pytest.mark.parametrize("case", [MATRIX_CASES[0], MATRIX_CASES[5], MATRIX_CASES[-1]])


def matrices(rng: np.random.Generator, dtype: str) -> list[Any]:
    found = [nonzero(rng, shape, dtype) for shape in SHAPES]
    return [*found[:-1], np.asfortranarray(found[-1])]


def states_of(opt: Any, index: int) -> reference.State:
    entry = opt.state_dict()["state"].get(index, {})
    return {name: np.asarray(value, float) for name, value in entry.items() if name != "step"}


# ---- the numbers ----


@matrix_case
def test_steps_match_the_oracle(case: Case, dtype: str, rng: np.random.Generator) -> None:
    params = matrices(rng, dtype)
    opt = case.make(params)
    for step in range(6):
        grads = matrices(rng, dtype)
        if step == 3:
            grads[2] = None  # (the others of its shape are worked on without it)
        clip_norm, clip_value = case.clipping_at(step)
        norm = math.sqrt(sum(float((grad.astype(float) ** 2).sum()) for grad in grads if grad is not None))
        expected = [
            reference.step(
                case.rule,
                param.astype(float),
                grad.astype(float),
                states_of(opt, index),
                step + 1,
                case.options_at(step),
                clip_coefficient=reference.clip_coefficient(norm, clip_norm),
                clip_value=clip_value,
            )
            if grad is not None
            else (param.astype(float), states_of(opt, index))
            for index, (param, grad) in enumerate(zip(params, grads, strict=True))
        ]
        opt.step(grads)
        for index, (param, (value, state)) in enumerate(zip(params, expected, strict=True)):
            tolerance = TOLERANCE[dtype]
            np.testing.assert_allclose(param, value, rtol=tolerance, atol=tolerance, err_msg=f"{index} after {step}")
            found = states_of(opt, index)
            assert found.keys() == state.keys()
            for name in state:
                np.testing.assert_allclose(found[name], state[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", [None, "polar_express"])
def test_updates_are_nearly_orthogonal(name: Any, rng: np.random.Generator) -> None:
    """Of any matrix with singular values of at least a hundredth of its norm."""
    left, right = (np.linalg.qr(rng.normal(size=(n, 12)))[0] for n in (20, 31))
    grad = left @ np.diag(np.geomspace(0.02, 1, 12)) @ right.T
    param = np.zeros((20, 31))
    fastopt.Muon(param, lr=1.0, weight_decay=0.0, momentum=0.0, coefficients=name).step(grad)
    values = np.linalg.svd(param)[1][:12]
    assert ((values > 0.6) & (values < 1.25)).all()


def test_updates_do_not_depend_on_the_size_of_gradients(rng: np.random.Generator) -> None:
    grad, moved = rng.normal(size=(6, 4)).astype("float32"), []
    for factor in (1e-15, 1.0, 1e15):
        param = np.zeros((6, 4), "float32")
        fastopt.Muon(param, lr=1.0, eps=0.0).step((factor * grad).astype("float32"))
        moved.append(param)
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved[2], moved[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normuon", [False, True])
@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_a_gradient_of_zero_moves_nothing(normuon: bool, eps: float) -> None:
    param = np.ones((3, 2))
    fastopt.Muon(param, lr=0.1, weight_decay=0.0, normuon=normuon, eps=eps).step(np.zeros((3, 2)))
    assert (param == 1).all()


@first_cases
def test_empty_matrices(case: Case) -> None:
    params = [np.ones((3, 0)), np.ones((3, 2)), np.ones((0, 0))]
    opt = case.make(params)
    opt.step([np.ones(param.shape) for param in params])
    assert opt.step_count == 1


def test_rates_and_iterations_may_be_edited_between_steps(rng: np.random.Generator) -> None:
    param = rng.normal(size=(4, 3))
    opt = fastopt.Muon(param, weight_decay=0.0)
    opt.step(rng.normal(size=(4, 3)))
    for edit in ({"lr": 0.0}, {"lr": 0.1, "ns_coefficients": (0.0, 0.0, 0.0)}):
        opt.param_groups[0].update(edit)
        before = param.copy()
        opt.step(rng.normal(size=(4, 3)))
        np.testing.assert_array_equal(param, before)
    opt.param_groups[0].update(ns_coefficients=(3.4445, -4.7750, 2.0315), normuon=True)
    opt.step(rng.normal(size=(4, 3)))
    assert (param != before).all()
    assert opt.state_dict()["state"][0]["second_momentum_buffer"].shape == (4,)


def test_an_error_in_the_products_leaves_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    param = np.ones((3, 2))
    opt = fastopt.Muon(param)
    monkeypatch.setattr(products.Products, "calls", lambda *_: [(int, "no number")])
    with pytest.raises(ValueError, match="no number"):
        opt.step(np.ones((3, 2)))
    assert (param == 1).all()
    assert opt.step_count == 0


# ---- around them ----


@first_cases
def test_snapshots_go_on(case: Case, dtype: str, rng: np.random.Generator) -> None:
    params = matrices(rng, dtype)
    opt = case.make(params)
    opt.step(matrices(rng, dtype))
    others = [param.copy(order="K") for param in params]
    resumed, pickled = case.make(others), pickle.loads(pickle.dumps(opt))
    resumed.load_state_dict(opt.state_dict())
    grads = matrices(rng, dtype)
    opt.step(grads)
    resumed.step(grads)
    pickled.step(grads)
    copies = [param for group in pickled.param_groups for param in group["params"]]
    for param, other, copied in zip(params, others, copies, strict=True):
        np.testing.assert_array_equal(param, other)
        np.testing.assert_array_equal(param, copied)


def test_what_is_around_every_rule_is_around_these(rng: np.random.Generator) -> None:
    """Clipping by norm, an average, states in fewer bits, skipped steps, zeroed gradients."""
    params = [rng.normal(size=(8, 4)).astype("float32") for _ in range(2)]
    opt = fastopt.Muon(params, lr=0.1, clip_norm=1.0, ema=0.5, state_dtype="8bit", nonfinite="skip")
    start = copy.deepcopy(params)
    grads = [rng.normal(size=(8, 4)).astype("float32") for _ in range(2)]
    assert opt.step(grads, zero_grad=True).clipped
    assert not any(grad.any() for grad in grads)
    for average, param, first in zip(opt.ema_state(), params, start, strict=True):
        np.testing.assert_allclose(average, (param + first) / 2, rtol=1e-5, atol=1e-6)
    grads[1][0, 0] = np.nan
    before = copy.deepcopy(params)
    assert opt.step(grads).skipped
    np.testing.assert_array_equal(params, before)
    assert "momentum_buffer::scales" in opt.state_dict(compressed=True)["state"][0]


@pytest.mark.parametrize("shape", [(3,), (), (2, 2, 2)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    message = r"^params\[1\]: Muon steps matrices alone, expected 2 dimensions, got shape"
    with pytest.raises(ValueError, match=message):
        fastopt.Muon([np.ones((2, 2)), np.ones(shape)])
    with pytest.raises(ValueError, match=message):
        fastopt.MuonAdamW([np.ones((2, 2)), np.ones(shape)], use_muon=True)
    opt = fastopt.Muon(np.ones((2, 2)))
    with unchanged(opt), pytest.raises(ValueError, match=r"^param_groups\[1\]\['params'\]: Muon steps matrices alone"):
        opt.add_param_group({"params": np.ones(shape)})


@pytest.mark.parametrize("value", [-1, 100, 2.5, math.nan, None, "5"])
def test_numbers_of_iterations_out_of_bounds(value: Any) -> None:
    with pytest.raises(ValueError, match="ns_steps"):
        fastopt.Muon(np.ones((2, 2)), ns_steps=value)


# ---- beside AdamW ----


def network(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "wte": rng.normal(size=(9, 4)),
        "blocks": [{"attn_heads": rng.normal(size=(4, 4)), "bias": rng.normal(size=4)} for _ in range(2)],
        "lm_head": {"weight": rng.normal(size=(9, 4))},
    }


def leaves(tree: dict[str, Any]) -> list[Any]:
    return [tree["wte"], *(leaf for block in tree["blocks"] for leaf in block.values()), tree["lm_head"]["weight"]]


def test_muon_steps_the_matrices_within_and_adamw_the_rest(rng: np.random.Generator) -> None:
    params = network(rng)
    twins = copy.deepcopy(params)
    hidden, others = [1, 3], [0, 2, 4, 5]
    options: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.2}
    both = fastopt.MuonAdamW(params, **options)
    muon = fastopt.Muon([leaves(twins)[k] for k in hidden], adjust_lr_fn="match_rms_adamw", **options)
    adamw = fastopt.AdamW([leaves(twins)[k] for k in others], **options)
    for _ in range(4):
        grads = network(rng)
        both.step(grads)
        muon.step([leaves(grads)[k] for k in hidden])
        adamw.step([leaves(grads)[k] for k in others])
    for param, twin in zip(leaves(params), leaves(twins), strict=True):
        np.testing.assert_array_equal(param, twin)
    states = both.state_dict()["state"]
    assert [("momentum_buffer" in states[k], "exp_avg" in states[k]) for k in range(6)] == [
        (k in hidden, k in others) for k in range(6)
    ]


def test_groups_say_which_is_which(rng: np.random.Generator) -> None:
    head, hidden, bias = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), rng.normal(size=3)
    opt = fastopt.MuonAdamW(
        [{"params": [head, bias], "use_muon": False}, {"params": hidden, "use_muon": True, "lr": 0.02}]
    )
    opt.step([[np.ones((4, 3)), np.ones(3)], np.ones((4, 3))])
    states = opt.state_dict()["state"]
    assert [sorted(states[k]) for k in range(3)] == [
        ["exp_avg", "exp_avg_sq", "step"],
        ["exp_avg", "exp_avg_sq", "step"],
        ["momentum_buffer", "step"],
    ]
    opt.param_groups[1]["use_muon"] = False
    opt.step([[np.ones((4, 3)), np.ones(3)], np.ones((4, 3))])
    assert "exp_avg" in opt.state_dict()["state"][2]


def test_clipping_is_by_the_norm_of_all_gradients_together(rng: np.random.Generator) -> None:
    opt = fastopt.MuonAdamW([np.ones((3, 3)), np.ones(3)], clip_norm=1.0)
    info = opt.step([np.full((3, 3), 2.0), np.full(3, 2.0)])
    assert info.grad_norm == pytest.approx(math.sqrt(48))
    np.testing.assert_allclose(opt.state[0]["momentum_buffer"], 0.05 * 2 / math.sqrt(48), rtol=1e-6)
    np.testing.assert_allclose(opt.state[1]["exp_avg"], 0.1 * 2 / math.sqrt(48), rtol=1e-6)
