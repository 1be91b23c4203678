"""State: snapshots, resuming, groups, gradients that are missing, and options that are edited between steps."""

import copy
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import reference
from arrays import Array, assert_close, fingerprint, nonzero, unchanged
from cases import (
    CASES,
    FIRST_OF_EACH_RULE,
    MAKERS,
    Case,
    Maker,
    every_case,
    every_optimizer,
    first_case_of_each_rule,
    warmup,
)

import fastopt
from fastopt import Optimizer, StepInfo, schedules


def stepped(case: Case, steps: int = 2, size: int = 5) -> Optimizer:
    rng = np.random.default_rng(3)
    opt = case.make({"w": nonzero(rng, (2, size)), "b": nonzero(rng, size)})
    for _ in range(steps):
        opt.step({"w": nonzero(rng, (2, size)), "b": nonzero(rng, size)})
    return opt


def params_of(opt: Optimizer) -> list[Array]:
    return [param for group in opt.param_groups for param in group["params"]]


# ---- the snapshot ----


@every_case
def test_layout_of_the_snapshot(case: Case) -> None:
    opt = stepped(case)
    found = opt.state_dict()
    method = case.cls.method
    assert list(found) == ["state", "param_groups", "step_count", "optimizer"]
    assert found["optimizer"] == case.optimizer
    assert found["step_count"] == opt.step_count == 2
    whole = {name: case.options[name] for name in opt.whole if name in case.options}
    kept = {name: opt.param_groups[0][name] for name in case.cls.method.advances}
    assert found["param_groups"] == [{**opt.defaults, "params": [0, 1], **whole, **kept}]
    if method.rule(opt.param_groups[0])[1]:
        assert list(found["state"]) == [0, 1]
    for index, state in found["state"].items():
        param = params_of(opt)[index]
        _, names = method.rule_for(opt.param_groups[0], param.shape, str)
        assert set(state) == {*names, *case.cls.method.numbers, *(["step"] if case.cls.method.counts_steps else [])}
        assert state.get("step", 2) == 2
        for name in names:
            assert state[name].shape == method.state_shape(name, param.shape)
            assert state[name].dtype == param.dtype


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_new_optimizer_has_no_state(momentum: float) -> None:
    assert fastopt.SGD(np.zeros(2), momentum=momentum).state_dict()["state"] == {}
    assert fastopt.Adam(np.zeros(2)).state_dict()["state"] == {}


def test_the_snapshot_of_plain_sgd_is_as_empty_as_in_torch() -> None:
    opt = fastopt.SGD(np.zeros(2))
    opt.step(np.ones(2))
    assert opt.state_dict()["state"] == {}


@first_case_of_each_rule
def test_the_snapshot_is_a_copy(case: Case) -> None:
    opt = stepped(case)
    snapshot = opt.state_dict()
    with unchanged(snapshot):
        opt.step({"w": np.ones((2, 5)), "b": np.ones(5)})
    with unchanged(opt):
        for state in snapshot["state"].values():
            for value in state.values():
                if isinstance(value, np.ndarray):
                    value[...] = np.nan
        snapshot["param_groups"][0]["lr"] = 77.0
        snapshot["param_groups"][0]["params"].append(5)


@first_case_of_each_rule
def test_what_was_loaded_is_a_copy(case: Case) -> None:
    opt = stepped(case)
    snapshot = stepped(case).state_dict()
    opt.load_state_dict(snapshot)
    with unchanged(snapshot):
        opt.step({"w": np.ones((2, 5)), "b": np.ones(5)})
        opt.param_groups[0]["lr"] = 77.0


# ---- snapshots that do not fit ----


def tampered(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    snapshot = stepped(Case("Adam", "adam", {"lr": 0.1})).state_dict()
    replaced = change(snapshot)
    return snapshot if replaced is None else replaced


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that puts the last entry of `path` where the others lead."""

    def change(snapshot: dict[str, Any]) -> None:
        place: Any = snapshot
        for key in path[:-2]:
            place = place[key]
        place[path[-2]] = path[-1]

    return change


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(snapshot: dict[str, Any]) -> None:
        place: Any = snapshot
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


UNFIT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no mapping": (lambda snapshot: [snapshot], "state_dict: expected"),
    "no state": (drop("state"), "'state'"),
    "no groups": (drop("param_groups"), "'param_groups'"),
    "state is no dict": (put("state", [1]), "state_dict: expected .*'state'|state"),
    "groups are no list": (put("param_groups", 3), "param_groups|parameter groups"),
    "more groups": (lambda snapshot: snapshot["param_groups"].append({"params": []}), "1 parameter groups, got 2"),
    "fewer groups": (put("param_groups", []), "1 parameter groups, got 0"),
    "a group is no dict": (put("param_groups", 0, 5), "group 0"),
    "fewer parameters": (put("param_groups", 0, "params", [0]), "2 parameters in group 0, got 1"),
    "more parameters": (put("param_groups", 0, "params", [0, 1, 2]), "2 parameters in group 0, got 3"),
    "no list of parameters": (put("param_groups", 0, "params", 7), "group 0"),
    "no parameters": (drop("param_groups", 0, "params"), "params"),
    "no rate": (drop("param_groups", 0, "lr"), "not of Adam"),
    "option of another optimizer": (put("param_groups", 0, "momentum", 0.9), "not of Adam"),
    "option out of bounds": (put("param_groups", 0, "lr", -1), "Invalid learning rate: -1"),
    "betas out of bounds": (put("param_groups", 0, "betas", (0.9, 1.0)), "Invalid beta parameter at index 1: 1.0"),
    "unknown parameter": (put("state", 2, {}), "unknown parameters"),
    "state of a parameter is no dict": (put("state", 1, 3), r"params\['b'\]"),
    "missing array": (drop("state", 1, "exp_avg_sq"), r"params\['b'\].*exp_avg_sq"),
    "missing step": (drop("state", 0, "step"), r"params\['w'\].*step"),
    "other shape": (put("state", 0, "exp_avg", np.zeros((5, 2))), r"exp_avg of params\['w'\]: .*shape \(2, 5\), got"),
    "other dtype": (put("state", 1, "exp_avg", np.zeros(5, "float32")), r"exp_avg of params\['b'\]: .*dtype float64"),
    "no array": (put("state", 1, "exp_avg", "moment"), r"exp_avg of params\['b'\]"),
    "None for an array": (put("state", 1, "exp_avg", None), r"exp_avg of params\['b'\]"),
    "negative step": (put("state", 0, "step", -1), r"step of params\['w'\]: .*-1"),
    "half a step": (put("state", 0, "step", 1.5), r"step of params\['w'\]: .*1.5"),
    "NaN steps": (put("state", 1, "step", float("nan")), r"step of params\['b'\]: .*nan"),
    "no number of steps": (put("state", 1, "step", "two"), r"step of params\['b'\]: .*two"),
    "negative step_count": (put("step_count", -1), "step_count: .*-1"),
    "half a step_count": (put("step_count", 0.5), "step_count: .*0.5"),
    "no number as step_count": (put("step_count", "x"), "step_count: .*x"),
    "None as step_count": (put("step_count", None), "step_count: .*None"),
}


@pytest.mark.parametrize(("change", "message"), UNFIT.values(), ids=UNFIT)
def test_unfit_snapshot(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    opt = stepped(Case("Adam", "adam", {"lr": 0.2}), steps=3)
    with unchanged(opt), pytest.raises((TypeError, ValueError), match=message):
        opt.load_state_dict(tampered(change))
    opt.step({"w": np.ones((2, 5)), "b": np.ones(5)})


@every_optimizer
def test_snapshot_of_another_optimizer(make: Maker) -> None:
    opt = make(np.zeros(2))
    for make_other in MAKERS.values():
        other = make_other(np.zeros(2))
        if set(opt.defaults) != set(other.defaults):  # AdamW and Adam may have each other's
            with (
                unchanged(opt),
                pytest.raises(ValueError, match=f"is of {type(other).__name__}, not of {type(opt).__name__}"),
            ):
                opt.load_state_dict(other.state_dict())
            unnamed = {key: value for key, value in other.state_dict().items() if key != "optimizer"}
            if not set(other.defaults) <= set(opt.defaults):  # as it was written before it was named
                with unchanged(opt), pytest.raises(ValueError, match=f"group 0 is not of {type(opt).__name__}"):
                    opt.load_state_dict(unnamed)


def test_numbers_of_steps_as_torch_writes_them() -> None:
    opt = stepped(Case("Adam", "adam", {"lr": 0.1}), steps=0)
    opt.load_state_dict(tampered(put("state", 0, "step", np.array(2.0, "float32"))))
    assert opt.state_dict()["state"][0]["step"] == 2


def test_options_that_the_snapshot_has_are_taken_over() -> None:
    source = fastopt.SGD(np.zeros(2), lr=0.3, momentum=0.5, velocity="mean", maximize=True)
    opt = fastopt.SGD(np.zeros(2))
    opt.load_state_dict(source.state_dict())
    assert opt.param_groups[0]["lr"] == 0.3
    assert opt.param_groups[0]["velocity"] == "mean"
    assert opt.state_dict()["param_groups"] == source.state_dict()["param_groups"]


# ---- copies ----


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
@first_case_of_each_rule
def test_a_copy_has_parameters_of_its_own(case: Case, copied: Callable[[Optimizer], Optimizer]) -> None:
    opt = stepped(case)
    again = copied(opt)
    with unchanged(opt):
        again.step({"w": np.ones((2, 5)), "b": np.ones(5)})
    with unchanged(again):
        opt.step({"w": np.ones((2, 5)), "b": np.ones(5)})
    assert fingerprint(again) == fingerprint(opt)


def test_copying_model_and_optimizer_together_keeps_them_together() -> None:
    model = {"w": np.zeros(3)}
    other_model, other = copy.deepcopy((model, fastopt.SGD(model, lr=1.0)))
    other.step({"w": np.ones(3)})
    assert other_model["w"].tolist() == [-1.0] * 3
    assert model["w"].tolist() == [0.0] * 3


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(protocol: int) -> None:
    opt = fastopt.Adam(
        [{"params": {"w": np.ones((2, 3), order="F")}, "lr": schedules.cosine(0.1, total=10)}, {"params": np.ones(2)}],
        betas=(warmup, 0.9),
        clip_norm=warmup,
        clip_value=1.0,
        nonfinite="skip",
    )
    grads = [{"w": np.ones((2, 3), order="F")}, np.ones(2)]
    opt.step(grads)
    again = pickle.loads(pickle.dumps(opt, protocol))
    assert again.step(grads) == opt.step(grads)
    assert fingerprint(again) == fingerprint(opt)
    assert repr(again) == repr(opt)
    again.add_param_group({"params": np.ones(4)})
    assert again.step([*grads, np.ones(4)]).clipped


def test_edits_before_copying_are_kept() -> None:
    opt = fastopt.SGD(np.zeros(2), lr=1.0)
    opt.step(np.ones(2))
    opt.param_groups[0]["momentum"] = 0.9
    again = copy.deepcopy(opt)
    for _ in range(2):
        for each in (opt, again):
            each.step(np.ones(2))
        assert fingerprint(again) == fingerprint(opt)


# ---- groups ----


@pytest.mark.parametrize("case", [case for case in FIRST_OF_EACH_RULE if case.rule != "prodigy"])
def test_groups_are_as_good_as_optimizers_of_their_own(case: Case, rng: np.random.Generator) -> None:
    values = [nonzero(rng, 7) for _ in range(3)]
    other = {"lr": 0.3, **({"weight_decay": 0.02} if "weight_decay" in case.cls.method.options else {})}
    apart = [
        case.make(values[0].copy(), clip_norm=None),
        case.make([values[1].copy(), values[2].copy()], clip_norm=None, **other),
    ]
    copies = [value.copy() for value in values]
    together = case.make([{"params": copies[0]}, {"params": copies[1:], **other}], clip_norm=None)
    for _ in range(3):
        g = [nonzero(rng, 7) for _ in range(3)]
        apart[0].step(g[0])
        apart[1].step(g[1:])
        info = together.step([g[0], g[1:]])
    assert [fingerprint(value) for value in copies] == [fingerprint(p) for opt in apart for p in params_of(opt)]
    assert info.lr == case.options_at(2)["lr"]


def test_gradients_of_groups_flat_or_grouped() -> None:
    g = [np.array([float(k)]) for k in range(1, 4)]
    for grads in (g, [g[0], g[1:]], [{"params": g[0]}, {"params": g[1:]}], (g[0], tuple(g[1:])), iter(g)):
        params = [np.zeros(1) for _ in range(3)]
        fastopt.SGD([{"params": params[0]}, {"params": params[1:]}], lr=1.0).step(grads)
        assert [float(param[0]) for param in params] == [-1.0, -2.0, -3.0]


def test_one_group_of_one_array() -> None:
    for grads in ([np.ones(1)], [[np.ones(1)]], [{"params": [np.ones(1)]}]):
        w = np.zeros(1)
        fastopt.SGD([{"params": [w]}], lr=1.0).step(grads)
        assert w.tolist() == [-1.0]


def test_added_group() -> None:
    v, w = np.zeros(2), np.zeros(3)
    opt = fastopt.Adam(v, lr=0.5)
    opt.step(np.ones(2))
    opt.add_param_group({"params": w, "lr": 0.25})
    info = opt.step([np.ones(2), np.ones(3)])
    assert info.lr == 0.5
    assert opt.param_groups[1] == {**opt.defaults, "lr": 0.25, "params": [w]}
    assert v.tolist() == pytest.approx([-1.0, -1.0])
    assert w.tolist() == pytest.approx([-0.25] * 3)  # its first step, with the bias correction of one
    assert [state["step"] for state in opt.state_dict()["state"].values()] == [2, 1]


def test_group_added_with_other_rule() -> None:
    v, w = np.zeros(2), np.zeros(2)
    opt = fastopt.RMSprop(v, lr=0.1)
    opt.add_param_group({"params": w, "centered": True, "momentum": 0.9})
    opt.step([np.ones(2), np.ones(2)])
    assert [set(state) - {"step"} for state in opt.state_dict()["state"].values()] == [
        {"square_avg"},
        {"square_avg", "momentum_buffer", "grad_avg"},
    ]


def test_mixed_dtypes_in_one_optimizer(rng: np.random.Generator) -> None:
    params = [nonzero(rng, 5, "float32"), nonzero(rng, 5, "float64")]
    alone = [fastopt.Adam(param.copy()) for param in params]
    opt = fastopt.Adam(params)
    for _ in range(3):
        grads = [nonzero(rng, 5, "float32"), nonzero(rng, 5, "float64")]
        opt.step(grads)
        for single, grad in zip(alone, grads, strict=True):
            single.step(grad)
    assert [fingerprint(param) for param in params] == [fingerprint(params_of(single)[0]) for single in alone]
    assert [state["exp_avg"].dtype for state in opt.state_dict()["state"].values()] == ["float32", "float64"]


# ---- gradients that are missing ----


@pytest.mark.parametrize("case", [case for case in CASES if not case.cls.method.advances])
def test_a_parameter_without_gradient_stays_behind(case: Case, rng: np.random.Generator) -> None:
    """It takes its own steps: bias corrections, decaying rates and the first step of dampening count them."""
    p, q = nonzero(rng, 5), nonzero(rng, 5)
    opt = case.make([p, q])
    expected, state, taken = p.copy(), reference.State(), 0
    for step in range(7):
        g = nonzero(rng, 5)
        if step % 3 == 1:
            with unchanged(p):
                opt.step([None, g])
            continue
        opt.step([g, None if step == 6 else g])
        taken += 1
        norm, clip_value = case.clipping_at(step)
        total = np.linalg.norm(g) * (1 if step == 6 else np.sqrt(2))
        expected, state = reference.step(
            case.rule,
            expected,
            g,
            state,
            taken,
            case.options_at(step),
            clip_coefficient=reference.clip_coefficient(float(total), norm),
            clip_value=clip_value,
        )
    assert_close(p, expected, np.maximum(np.abs(p), 1.0), "float64", "parameter", ulps=40)
    assert opt.step_count == 7
    steps = [s.get("step") for s in opt.state_dict()["state"].values()]
    assert steps in ([5, 6], [None, None], [])


@every_optimizer
def test_no_gradients_at_all(make: Maker) -> None:
    opt = make({"w": np.ones(3), "b": np.ones(2)}, clip_norm=1.0)
    for group in opt.param_groups:
        group.update({"weight_decay": 0.1} if "weight_decay" in group else {})
    with unchanged(*params_of(opt)):
        info = opt.step({"w": None, "b": None})
    assert info == (opt.param_groups[0]["lr"], 0.0, False, False)
    assert opt.step_count == 1
    assert opt.state_dict()["state"] == {}


# ---- options edited between steps ----


@pytest.mark.parametrize(
    ("make", "before", "after"),
    [
        (fastopt.SGD, {}, {"momentum": 0.9}),
        (fastopt.SGD, {}, {"momentum": 0.9, "dampening": 0.5}),
        (fastopt.SGD, {"momentum": 0.9}, {"nesterov": True}),
        (fastopt.SGD, {"momentum": 0.9}, {"momentum": 0.0}),
        (fastopt.RMSprop, {}, {"momentum": 0.9}),
        (fastopt.RMSprop, {"momentum": 0.9}, {"centered": True}),
        (fastopt.RMSprop, {"centered": True}, {"centered": False, "momentum": 0.5}),
        (fastopt.Adam, {}, {"amsgrad": True}),
        (fastopt.Adam, {"amsgrad": True}, {"amsgrad": False}),
        (fastopt.Adam, {}, {"betas": (0.5, 0.5), "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
        (fastopt.Adagrad, {}, {"lr_decay": 0.5, "eps_root": 0.5}),
        (fastopt.AdamW, {}, {"lr": warmup, "decoupled_weight_decay": False}),
    ],
)
def test_options_edited_midway(
    make: Maker, before: dict[str, Any], after: dict[str, Any], rng: np.random.Generator
) -> None:
    """Every step goes by the options it finds; a state that is new starts as in a first step."""
    p = nonzero(rng, 7)
    opt = make(p, lr=0.1, **before)
    expected, state = p.copy(), reference.State()
    for t in range(1, 7):
        if t == 4:
            opt.param_groups[0].update(after)
        options = {name: value for name, value in opt.param_groups[0].items() if name != "params"}
        options["lr"] = warmup(t - 1) if callable(options["lr"]) else options["lr"]
        rule, _ = opt.method.rule(options)
        g = nonzero(rng, 7)
        expected, state = reference.step(rule, expected, g, state, t, options)
        opt.step(g)
        assert_close(p, expected, np.maximum(np.abs(p), 1.0), "float64", f"step {t}: parameter", ulps=20)


def test_momentum_switched_off_and_on_goes_on_from_the_old_velocity_as_in_torch() -> None:
    w = np.zeros(1)
    opt = fastopt.SGD(w, lr=1.0, momentum=0.5)
    opt.step(np.ones(1))
    opt.param_groups[0]["momentum"] = 0.0
    opt.step(np.ones(1))
    opt.param_groups[0]["momentum"] = 0.5
    opt.step(np.ones(1))
    assert w.tolist() == [-1.0 - 1.0 - 1.5]


@pytest.mark.parametrize(
    ("make", "option", "on", "off"), [(fastopt.SGD, "momentum", 0.9, 0.0), (fastopt.Adam, "amsgrad", True, False)]
)
def test_what_is_switched_off_survives_a_checkpoint(make: Maker, option: str, on: Any, off: Any) -> None:
    w = np.zeros(3)
    opt = make(w, lr=0.1, **{option: on})
    opt.step(np.full(3, 100.0))
    opt.param_groups[0][option] = off
    again = make(w.copy(), lr=0.1)
    again.load_state_dict(opt.state_dict())
    for each in (opt, again):
        each.step(np.ones(3))
        each.param_groups[0][option] = on
        each.step(np.ones(3))
    assert fingerprint(again) == fingerprint(opt)


def test_rates_are_read_at_every_step() -> None:
    w = np.zeros(1)
    opt = fastopt.SGD(w, lr=1.0)
    for lr in (1.0, 0.5, 0.25):
        opt.param_groups[0]["lr"] = lr
        assert opt.step(np.ones(1)).lr == lr
    assert w.tolist() == [-1.75]


def test_schedules_go_by_the_steps_of_the_optimizer() -> None:
    asked: list[int] = []

    def lr(step: int) -> float:
        asked.append(step)
        return 1.0 / (1 + step)

    w = np.zeros(1)
    opt = fastopt.SGD(w, lr=lr)
    asked.clear()
    assert [opt.step(np.ones(1)).lr for _ in range(3)] == [1.0, 1 / 2, 1 / 3]
    assert set(asked) == {0, 1, 2}
    again = fastopt.SGD(w, lr=lr)
    again.load_state_dict(opt.state_dict())
    assert again.step(np.ones(1)).lr == 0.25


def test_a_single_precision_rate_is_used_in_double_precision() -> None:
    """NumPy would go on in single precision: 1 - lr*weight_decay, lr/(1 - beta1**t)."""
    values = [np.ones(3), np.ones(3)]
    rates: list[Any] = [np.float32(0.1), float(np.float32(0.1))]
    for value, lr in zip(values, rates, strict=True):
        opt = fastopt.AdamW(value, lr=lr, weight_decay=0.3)
        for _ in range(3):
            opt.step(np.ones(3))
    assert fingerprint(values[0]) == fingerprint(values[1])


# ---- steps that are skipped or refused ----

NONFINITE = (np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("bad", NONFINITE)
@every_case
def test_a_skipped_step_did_not_happen(case: Case, bad: float) -> None:
    clean, interrupted = (case.make(np.linspace(1, 2, 9), nonfinite="skip") for _ in range(2))
    for step in range(3):
        good = np.linspace(-1, 2, 9) * (step + 1)
        worse = good.copy()
        worse[7] = bad
        with unchanged(interrupted, worse):
            info = interrupted.step(worse)
        assert info.skipped
        assert not info.clipped
        assert info.grad_norm is not None
        assert not np.isfinite(info.grad_norm)
        first, second = clean.step(good), interrupted.step(good)
        assert first == second
        assert not first.skipped
    assert fingerprint(clean) == fingerprint(interrupted)
    assert clean.step_count == 3


@pytest.mark.parametrize("bad", NONFINITE)
@first_case_of_each_rule
def test_a_refused_step_names_the_gradients(case: Case, bad: float, dtype: str) -> None:
    opt = case.make({"a": np.ones(3, dtype), "b": np.ones(3, dtype), "c": np.ones(2, dtype)}, nonfinite="raise")
    fine = {name: np.ones(size, dtype) for name, size in (("a", 3), ("b", 3), ("c", 2))}
    opt.step(fine)
    grads = {**fine, "b": np.array([1, bad, 1], dtype), "c": np.array([bad, 1], dtype)}
    with (
        unchanged(opt, grads),
        pytest.raises(FloatingPointError, match=r"^not finite: gradient of params\['b'\], gradient of params\['c'\]$"),
    ):
        opt.step(grads, zero_grad=True)
    assert not opt.step(fine).skipped


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_large_finite_gradients_are_finite(nonfinite: Any) -> None:
    """Their norm is beyond the largest number."""
    w = np.zeros(4)
    info = fastopt.SGD(w, lr=1.0, nonfinite=nonfinite).step(np.full(4, 1.7e308))
    assert not info.skipped
    assert w.tolist() == [-1.7e308] * 4


def test_a_skipped_step_still_zeroes_the_gradients_it_was_asked_to() -> None:
    """Gradients that are accumulated in place would stay NaN for ever."""
    opt = fastopt.SGD(np.zeros(3), nonfinite="skip")
    grads = np.array([1.0, np.nan, 1.0])
    assert opt.step(grads, zero_grad=True).skipped
    assert grads.tolist() == [0.0] * 3


@pytest.mark.parametrize("bad", NONFINITE)
def test_propagated_gradients_spoil_their_own_entries_only(bad: float, dtype: str, isa: str) -> None:
    for case in CASES:
        if case.clips_by_norm or case.measures or case.rule.startswith(("adopt", "adabelief")):
            continue  # (the last two may leave parameters alone in their first steps)
        p, clean = np.ones(67, dtype), np.ones(67, dtype)
        opt, other = case.make(p), case.make(clean)
        g = np.linspace(1, 2, 67).astype(dtype)
        worse = g.copy()
        worse[[3, 64]] = bad
        opt.step(worse)
        other.step(g)
        with np.errstate(all="ignore"):
            limit = case.clipping_at(0)[1]
            expected, _ = reference.step(
                case.rule, np.ones(67), worse.astype(np.float64), {}, 1, case.options_at(0), clip_value=limit
            )
        spoiled = ~np.isfinite(expected[[3, 64]])
        assert spoiled.all() or not np.isnan(bad), str(case)
        assert (np.isfinite(p[[3, 64]]) == ~spoiled).all(), str(case)
        keep = np.ones(67, bool)
        keep[[3, 64]] = False
        assert (p[keep] == clean[keep]).all(), str(case)


# ---- what is said about a step, and about an optimizer ----


def test_what_a_step_tells() -> None:
    g = np.array([3.0, 4.0])
    assert fastopt.SGD(np.zeros(2), lr=0.5).step(g) == StepInfo(0.5, None, False, False)
    assert fastopt.SGD(np.zeros(2), clip_norm=5.1).step(g) == StepInfo(1e-3, 5.0, False, False)
    assert fastopt.SGD(np.zeros(2), clip_norm=4.9).step(g) == StepInfo(1e-3, 5.0, True, False)
    assert fastopt.SGD(np.zeros(2), clip_norm=float("inf")).step(g) == StepInfo(1e-3, 5.0, False, False)
    assert fastopt.SGD(np.zeros(2), nonfinite="skip").step(g) == StepInfo(1e-3, 5.0, False, False)
    assert fastopt.SGD(np.zeros(2), clip_value=1.0).step(g) == StepInfo(1e-3, None, False, False)


@every_case
def test_repr_shows_every_option(case: Case) -> None:
    opt = stepped(case)
    text = repr(opt)
    assert text.startswith(f"{case.optimizer} (")
    assert "2 arrays, 15 elements" in text
    assert "steps taken: 2" in text
    for name, value in {**opt.defaults, **case.options, **opt.param_groups[0]}.items():
        assert name == "params" or f"{name}: {value}" in text


@every_case
def test_zeroed_gradients(case: Case, dtype: str) -> None:
    opt = case.make([np.ones(3, dtype), np.ones((2, 2), dtype), np.ones(1, dtype)])
    grads = [np.ones(3, dtype), np.ones((2, 2), dtype), None]
    opt.step(grads, zero_grad=True)
    assert not any(grad.any() for grad in grads if grad is not None)


# ---- options whose truth is in the groups, whatever object it is ----


class Entries:
    """A sequence that is neither list nor tuple, as a configuration's."""

    def __init__(self, *entries: float) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> float:
        return self.entries[index]

    def __iter__(self) -> Any:
        return iter(self.entries)


@pytest.mark.parametrize("late", [False, True], ids=["given", "edited"])
@pytest.mark.parametrize(
    "betas", [[0.5, 0.75], np.array([0.5, 0.75]), Entries(0.5, 0.75)], ids=lambda b: type(b).__name__
)
def test_betas_in_any_sequence(betas: Any, late: bool) -> None:
    expected, w = np.ones(2), np.ones(2)
    fastopt.Adam([expected], betas=(0.5, 0.75)).step([np.array([1.0, -2.0])])
    opt = fastopt.Adam([w]) if late else fastopt.Adam([w], betas=betas)
    opt.param_groups[0]["betas"] = betas
    opt.step([np.array([1.0, -2.0])])
    assert w.tolist() == expected.tolist()
    opt.load_state_dict(opt.state_dict())


def test_options_that_are_edited_in_place() -> None:
    w, lr = np.zeros(1), cast(Any, np.array(1.0))
    opt = fastopt.SGD([w], lr=lr)
    opt.step([np.ones(1)])
    lr[...] = 0.5
    opt.step([np.ones(1)])
    assert w.tolist() == [-1.5]
    results = []
    for in_place in (False, True):
        w = np.zeros(1)
        adam = fastopt.Adam([w])
        adam.param_groups[0]["betas"] = [0.9, 0.99]
        adam.step([np.ones(1)])
        if in_place:
            adam.param_groups[0]["betas"][0] = 0.1
        else:
            adam.param_groups[0]["betas"] = (0.1, 0.99)
        adam.step([-np.ones(1)])
        results.append(w.tolist())
    assert results[0] == results[1]


def test_a_limit_that_is_edited_in_place() -> None:
    limit: Any = np.array(1.0)
    w = np.zeros(1)
    opt = fastopt.SGD([w], lr=1.0, clip_value=limit)
    opt.step([np.full(1, 9.0)])
    limit[...] = 2.0
    opt.step([np.full(1, 9.0)])
    assert w.tolist() == [-3.0]


@pytest.mark.parametrize(("option", "bad"), [("clip_norm", -1.0), ("nonfinite", "perhaps"), ("lr", math.nan)])
def test_an_edited_option_is_refused_at_every_step_not_only_at_the_first(option: str, bad: Any) -> None:
    w = np.ones(2)
    opt = fastopt.SGD([w], lr=1.0)
    opt.step([np.ones(2)])
    good = opt.param_groups[0].get(option)
    opt.param_groups[0][option] = bad
    with unchanged(w):
        for _ in range(3):
            with pytest.raises(ValueError, match=f"^Invalid .*: .*{bad}"):
                opt.step([np.ones(2)])
    if good is None:
        del opt.param_groups[0][option]
    else:
        opt.param_groups[0][option] = good
    opt.step([np.ones(2)])
    assert w.tolist() == [-1.0] * 2


def test_groups_that_are_taken_away() -> None:
    opt = fastopt.SGD([{"params": [np.ones(1)]}, {"params": [np.ones(1)]}])
    opt.param_groups.pop()
    with pytest.raises(ValueError, match=r"^param_groups: groups were taken away"):
        opt.step([np.ones(1), np.ones(1)])


def test_a_step_takes_work_in_proportion_to_the_groups() -> None:
    """Where every rate is edited between the steps. What is counted is calls, not seconds."""

    def calls(groups: int, edit: Callable[[Any, int], None]) -> int:
        found = 0

        def count(*_: Any) -> None:
            nonlocal found
            found += 1

        opt = fastopt.SGD([{"params": [np.ones(1)]} for _ in range(groups)], momentum=0.5)
        grads = [[np.ones(1)] for _ in range(groups)]
        opt.step(grads)
        for number, group in enumerate(opt.param_groups):
            edit(group, number)
        sys.setprofile(count)
        try:
            opt.step(grads)
        finally:
            sys.setprofile(None)
        return found

    edits: list[Callable[[Any, int], None]] = [
        lambda group, number: group.update(lr=0.1 + number),
        lambda group, number: group.update(momentum=0.0),  # which is another rule
        lambda group, number: group.update(clip_norm=1.0),
    ]
    for edit in edits:
        few, many = calls(20, edit), calls(80, edit)
        assert many < 5 * few


# ---- gradients so small that their squares are none ----


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "scales", "moved"),
    [
        ("Adam", [1.0] * 200, -2.0),
        ("Adam", [10.0, 0.0, 0.0, 0.0], -0.026),
        ("RMSprop", [10.0, 0.0, 0.0, 0.0], -0.1),
        ("Adagrad", [1.0] * 100, -0.186),
    ],
)
def test_tiny_gradients_without_epsilon(name: str, scales: list[float], moved: float, dtype: str) -> None:
    """What has no scale of its own moves as with gradients of 1."""
    results = []
    for unit in (1.0, 1e-20 if dtype == "float32" else 1e-155):
        w = np.zeros(3, dtype)
        opt = getattr(fastopt, name)([w], lr=0.01, eps=0.0)
        for scale in scales:
            opt.step([np.full(3, scale * unit, dtype)])
        results.append(w)
    assert results[0] == pytest.approx(np.full(3, moved), rel=0.01)
    # (The square of such a gradient is a subnormal number or none at all: half of its digits are gone.)
    assert results[1] == pytest.approx(results[0], rel=0.01)


# ---- all or nothing ----


DAMAGE: dict[str, Callable[[Any], Any]] = {
    "no state": lambda d: d.pop("state"),
    "no groups": lambda d: d.pop("param_groups"),
    "a group too few": lambda d: d["param_groups"].pop(),
    "a parameter too few": lambda d: d["param_groups"][0]["params"].clear(),
    "a group that is none": lambda d: d["param_groups"].__setitem__(1, None),
    "a rate that is no number": lambda d: d["param_groups"][1].update(lr="x"),
    "a rate of NaN": lambda d: d["param_groups"][1].update(lr=math.nan),
    "betas of None": lambda d: d["param_groups"][1].update(betas=None),
    "a negative limit": lambda d: [group.update(clip_norm=-1.0) for group in d["param_groups"]],
    "limits that differ": lambda d: d["param_groups"][1].update(clip_norm=7.0),
    "another word": lambda d: [group.update(nonfinite="x") for group in d["param_groups"]],
    "a schedule that is wrong there": lambda d: d["param_groups"][1].update(lr=lambda step: 0.1 if step < 2 else -1.0),
    "a limit that is wrong there": lambda d: [
        group.update(clip_norm=lambda step: 1.0 if step < 2 else -1.0) for group in d["param_groups"]
    ],
    "step of NaN": lambda d: d["state"][1].update(step=math.nan),
    "step of infinity": lambda d: d["state"][1].update(step=math.inf),
    "step of None": lambda d: d["state"][1].update(step=None),
    "step of x": lambda d: d["state"][1].update(step="x"),
    "half a step": lambda d: d["state"][1].update(step=1.5),
    "several steps": lambda d: d["state"][1].update(step=np.ones(2)),
    "step_count of abc": lambda d: d.update(step_count="abc"),
    "step_count of None": lambda d: d.update(step_count=None),
    "step_count of -1": lambda d: d.update(step_count=-1),
    "another shape": lambda d: d["state"][1].update(exp_avg=np.ones(4, np.float32)),
    "another dtype": lambda d: d["state"][1].update(exp_avg=np.ones(3)),
    "no array": lambda d: d["state"][1].update(exp_avg=[[1.0], [1.0, 2.0]]),
    "a state too few": lambda d: d["state"][1].pop("exp_avg_sq"),
    "a state that is none": lambda d: d["state"].update({1: 7}),
    "a stranger": lambda d: d["state"].update({9: {}}),
    "another optimizer's": lambda d: d.update(optimizer="SGD"),
    "nobody's": lambda d: d.update(optimizer="Nobody"),
    "switched to what has no states there": lambda d: d["param_groups"][1].update(amsgrad=True),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_snapshot_that_does_not_fit_changes_nothing(damage: str) -> None:
    def trained(steps: int) -> Optimizer:
        params = [{"params": [np.ones(2)]}, {"params": [np.ones(3, np.float32)], "lr": 0.5}]
        opt = fastopt.Adam(params, lr=0.1, clip_norm=3.0)
        for _ in range(steps):
            opt.step([[np.ones(2)], [np.ones(3, np.float32)]])
        return opt

    opt, untouched = trained(1), trained(1)
    snapshot = copy.deepcopy(trained(2).state_dict())
    DAMAGE[damage](snapshot)
    with pytest.raises((TypeError, ValueError)):
        opt.load_state_dict(snapshot)
    assert repr(opt) == repr(untouched)
    for each in (opt, untouched):
        each.step([[np.ones(2)], [np.ones(3, np.float32)]])
    assert fingerprint(opt) == fingerprint(untouched)


def test_a_snapshot_says_whose_it_is() -> None:
    """No set of names of options decides it: one optimizer's may be part of another's."""
    for name, make in MAKERS.items():
        source = make([np.ones(2)])
        source.step([np.ones(2)])
        for other, make_other in MAKERS.items():
            if {name, other} in ({name}, {"Adam", "AdamW"}):
                continue
            with pytest.raises(ValueError, match=f"^state_dict: is of {name}, not of {other}$"):
                make_other([np.ones(2)]).load_state_dict(source.state_dict())
