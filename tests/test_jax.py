"""fastopt.jax: the step as a pure function, compiled; its numbers are those of the NumPy face, to the last bit."""

import importlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import BLOCK
from cases import CASES, Case

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax_cases import arrays, assert_close, assert_kept, assert_same, compiled, in_jax, made, on_the_host  # noqa: E402

import fastopt.jax  # noqa: E402
from fastopt import schedules  # noqa: E402
from fastopt.backends.jax import MOST_IN_A_CALL  # noqa: E402
from fastopt.benchmark import works  # noqa: E402
from fastopt.benchmark.plan import on_task  # noqa: E402
from fastopt.benchmark.runs import Entrant, perform  # noqa: E402
from fastopt.benchmark.tasks import ACTIONS, Task, methods  # noqa: E402


@pytest.fixture
def x64() -> Iterator[None]:
    """JAX with float64."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def assert_like_numpy(case: Case, rng: np.random.Generator, dtype: str, **more: Any) -> None:
    expected = arrays(rng, dtype)
    opt, twin = made(case.optimizer, **case.options, **more), case.make(expected, **more)
    params = in_jax(expected)
    state, step = opt.init(params), compiled(opt)
    for _ in range(3):
        grads = arrays(rng, dtype)
        params, state = step(params, in_jax(grads), state)
        twin.step(grads)
    assert int(state.steps) == 3
    # Numbers are in float32 where there is no float64; products of matrices are another library's.
    exact = (jax.config.jax_enable_x64 or not opt.method.numbers) and not opt.method.between
    same = assert_same if exact else assert_close
    same(params, expected)
    assert_kept(opt, state, params, twin, same)
    assert opt.numbers_of(state) == {name: twin.param_groups[0][name] for name in opt.method.advances}


# ---- numbers ----


@pytest.mark.parametrize("case", CASES)
def test_steps_have_the_bits_of_the_numpy_face(case: Case, rng: np.random.Generator) -> None:
    assert_like_numpy(case, rng, "float32")


@pytest.mark.parametrize("case", CASES[::7])
def test_float64_has_the_bits_of_the_numpy_face(case: Case, rng: np.random.Generator, x64: None) -> None:
    assert_like_numpy(case, rng, "float64")


@pytest.mark.parametrize("case", CASES[::9])
def test_float32_is_the_same_where_there_is_float64(case: Case, rng: np.random.Generator, x64: None) -> None:
    assert_like_numpy(case, rng, "float32")


@pytest.mark.parametrize("optimizer", ["AdamW", "Lion", "Adagrad", "Yogi", "Prodigy", "Adafactor"])
@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_states_in_fewer_bits_have_the_bits_of_the_numpy_face(
    state_dtype: str, optimizer: str, rng: np.random.Generator
) -> None:
    case = next(case for case in CASES if case.optimizer == optimizer)
    assert_like_numpy(case, rng, "float32", state_dtype=state_dtype)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_float64_keeps_its_states_beside_others(state_dtype: str, rng: np.random.Generator, x64: None) -> None:
    expected = [np.array(rng.standard_normal(40), dtype) for dtype in ("float32", "float64", "float32")]
    options: dict[str, Any] = {"lr": 0.1, "state_dtype": state_dtype}
    opt, twin = fastopt.jax.Yogi(**options), fastopt.Yogi(expected, **options)
    params = in_jax(expected)
    state, step = opt.init(params), compiled(opt)
    for _ in range(3):
        grads = [np.array(rng.standard_normal(40), array.dtype) for array in expected]
        params, state = step(params, in_jax(grads), state)
        twin.step(grads)
    assert_same(params, expected)
    assert_kept(opt, state, params, twin)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_computed_in_float32_and_rounded(dtype: str, rng: np.random.Generator) -> None:
    params, grads = in_jax(arrays(rng)), in_jax(arrays(rng))
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, grads))
    wide = jax.tree.map(lambda leaf: leaf.astype("float32"), narrow)
    opt = fastopt.jax.AdamW(lr=0.1)
    found = compiled(opt)(narrow[0], narrow[1], opt.init(narrow[0]))
    expected = compiled(opt)(wide[0], wide[1], opt.init(wide[0]))
    assert jax.tree.leaves(found[1].arrays)[0].dtype == dtype
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_same(one, other.astype(one.dtype))


@pytest.mark.parametrize(
    "options", [{"clip_norm": 3.0}, {"clip_norm": lambda step: 3.0 + int(step)}, {"state_dtype": "bfloat16"}]
)
def test_many_arrays_are_stepped_as_in_one_call(options: dict[str, Any], rng: np.random.Generator) -> None:
    expected = [np.array(rng.standard_normal(size), "float32") for size in range(2 * MOST_IN_A_CALL + 2)]
    opt, twin = fastopt.jax.AdamW(lr=0.1, **options), fastopt.AdamW(expected, lr=0.1, **options)
    params = in_jax(expected)
    state, step = opt.init(params), compiled(opt)
    for _ in range(3):
        grads = [np.array(rng.standard_normal(array.shape), "float32") for array in expected]
        params, state = step(params, in_jax(grads), state)
        twin.step(grads)
    assert_same(params, expected)
    assert_kept(opt, state, params, twin, assert_same)
    assert int(state.steps) == 3


def test_the_moving_average_is_the_numpy_faces(rng: np.random.Generator) -> None:
    expected = arrays(rng)
    opt, twin = fastopt.jax.AdamW(lr=0.1, ema=0.9), fastopt.AdamW(expected, lr=0.1, ema=0.9)
    params = in_jax(expected)
    state, step = opt.init(params), compiled(opt)
    for _ in range(3):
        grads = arrays(rng)
        params, state = step(params, in_jax(grads), state)
        twin.step(grads)
    assert_same(opt.arrays_of(state, params)["ema"], [kept["ema"] for kept in twin.state])


@pytest.mark.parametrize(
    "mask", [{"a": True, "b": False, "c": False, "d": True}, lambda p: {k: p[k].ndim > 0 for k in p}]
)
@pytest.mark.parametrize("weight_decay", [0.1, lambda step: 0.1 / (1 + int(step))])
def test_a_mask_says_what_decays(mask: Any, weight_decay: Any, rng: np.random.Generator) -> None:
    expected = arrays(rng)
    flags = mask(expected) if callable(mask) else mask
    groups = [
        {"params": [expected[name]], "weight_decay": weight_decay if flag else 0.0} for name, flag in flags.items()
    ]
    opt, twin = fastopt.jax.AdamW(weight_decay=weight_decay, decay_mask=mask), fastopt.AdamW(groups)
    params = in_jax(expected)
    state, step = opt.init(params), compiled(opt)
    for _ in range(2):
        grads = arrays(rng)
        params, state = step(params, in_jax(grads), state)
        twin.step([grads[name] for name in flags])
    assert_same(params, expected)


@pytest.mark.parametrize("optimizer", ["ScheduleFreeAdamW", "Prodigy"])
def test_numbers_of_all_parameters_together_are_the_numpy_faces(optimizer: str, rng: np.random.Generator) -> None:
    expected = [np.array(rng.standard_normal(size), "float32") for size in range(MOST_IN_A_CALL + 3)]
    opt = made(optimizer, lr=0.1, weight_decay=0.1, decay_mask=[k % 2 == 0 for k in range(len(expected))])
    groups = [{"params": expected[::2]}, {"params": expected[1::2], "weight_decay": 0.0}]
    twin = getattr(fastopt, optimizer)(groups, lr=0.1, weight_decay=0.1)
    params = in_jax(expected)
    state, step = opt.init(params), compiled(opt)
    for _ in range(4):
        grads = [np.array(rng.standard_normal(array.shape), "float32") for array in expected]
        params, state = step(params, in_jax(grads), state)
        twin.step([*grads[::2], *grads[1::2]])
    assert_same(params, expected)
    for group in twin.param_groups:
        assert opt.numbers_of(state) == {name: group[name] for name in opt.method.advances}


@pytest.mark.parametrize("optimizer", ["ScheduleFreeSGD", "ScheduleFreeAdamW"])
def test_the_parameters_that_are_used_are_the_numpy_faces(optimizer: str, rng: np.random.Generator) -> None:
    expected = arrays(rng)
    opt, twin = made(optimizer, lr=0.1), getattr(fastopt, optimizer)(expected, lr=0.1)
    params = in_jax(expected)
    state, step = opt.init(params), compiled(opt)
    assert_same(opt.eval_params(params, state), params)
    for _ in range(3):
        grads = arrays(rng)
        params, state = step(params, in_jax(grads), state)
        twin.step(grads)
    twin.eval()
    assert_close(jax.jit(opt.eval_params)(params, state), expected)
    moving = {"betas": (lambda step: 0.9, 0.9)} if "betas" in opt.options else {"momentum": lambda step: 0.9}
    opt = made(optimizer, **moving)
    with pytest.raises(TypeError, match="expected a number that says how far apart"):
        opt.eval_params(params, state)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normuon": True, "momentum": on_the_host(lambda step: 0.9 + 0.01 * step)},
        {"coefficients": "polar_express", "adjust_lr_fn": "match_rms_adamw", "maximize": True, "clip_value": 0.5},
        {"clip_norm": 1.0, "weight_decay": lambda step: 0.1 * int(step), "nesterov": False, "ns_steps": 0},
        {"ema": 0.9, "state_dtype": "bfloat16", "lr": lambda step: 0.1 / (1 + int(step))},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_muon_makes_the_updates_of_the_numpy_face(
    dtype: str, options: dict[str, Any], rng: np.random.Generator, x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastopt.backends.jax.MOST_IN_A_CALL", 3)
    shapes = [(5, 3), (3, 5), (0, 2), (5, 3), (BLOCK // 4, 5)]
    expected = [np.array(rng.standard_normal(shape), dtype) for shape in shapes]
    opt, twin = fastopt.jax.Muon(**{"lr": 0.1, **options}), fastopt.Muon(expected, **{"lr": 0.1, **options})
    params = in_jax(expected)
    state, step = opt.init(params), compiled(opt)
    for _ in range(3):
        grads = [np.array(rng.standard_normal(shape), dtype) for shape in shapes]
        params, state = step(params, in_jax(grads), state)
        twin.step(grads)
    assert int(state.steps) == 3
    assert_close(params, expected, 1e-4 if dtype == "float32" else 1e-10)  # (iterations enlarge what rounding does)
    kept = opt.arrays_of(state, params)
    assert kept.keys() == twin.state[0].keys() - {"step"}
    for name in kept:
        assert_close([one.astype("float32") for one in kept[name]], [of_each[name] for of_each in twin.state])


def test_muon_steps_the_matrices_within_and_adamw_the_rest(rng: np.random.Generator) -> None:
    shapes = {"layer": {"weight": (4, 3), "bias": (4,)}, "head": (3, 4)}
    new = partial(jax.tree.map, lambda shape: np.array(rng.standard_normal(shape), "float32"), shapes)
    arrays_of_numpy = partial(new, is_leaf=lambda leaf: isinstance(leaf, tuple))
    expected = arrays_of_numpy()
    opt, twin = fastopt.jax.MuonAdamW(lr=0.1), fastopt.MuonAdamW(expected, lr=0.1)
    params = in_jax(expected)
    state = opt.init(params)
    kept = opt.arrays_of(state, params)
    assert kept["exp_avg"]["layer"]["weight"] is None is kept["momentum_buffer"]["head"]
    for _ in range(3):
        grads = arrays_of_numpy()
        params, state = jax.jit(opt.step)(params, in_jax(grads), state)
        twin.step(grads)
    assert_close(params, expected)
    assert_same((params["head"], params["layer"]["bias"]), (expected["head"], expected["layer"]["bias"]))
    with pytest.raises(ValueError, match=r"params\['layer'\]\['bias'\]: Muon steps matrices alone"):
        fastopt.jax.Muon().init(params)


@pytest.mark.parametrize("optimizer", ["AdamW", "Prodigy", "MuonAdamW"])
def test_a_step_that_is_not_finite_is_skipped(optimizer: str, rng: np.random.Generator) -> None:
    params, grads = in_jax(arrays(rng)), in_jax(arrays(rng))
    opt = made(optimizer, nonfinite="skip", **({"normuon": True} if optimizer == "MuonAdamW" else {}))
    before = opt.init(params)
    after = jax.jit(opt.step)(params, {**grads, "b": jnp.array(np.nan)}, before)
    assert_same(after, (params, before))
    assert int(jax.jit(opt.step)(params, grads, before)[1].steps) == 1


# ---- schedules and traced numbers ----


@pytest.mark.parametrize(
    "lr", [schedules.cosine(0.1, 10), lambda step: 0.1 / (1 + step), lambda step: jnp.where(step < 2, 0.1, 0.2)]
)
def test_a_schedule_is_compiled_once(lr: Any, rng: np.random.Generator) -> None:
    traced = []
    opt = fastopt.jax.SGD(lr=lr)

    def once(*given: Any) -> Any:
        traced.append(1)
        return opt.step(*given)

    step = jax.jit(once)
    params = in_jax(arrays(rng))
    state = opt.init(params)
    for k in range(4):
        before, grads = params, in_jax(arrays(rng))
        params, state = step(params, grads, state)
        expected = before["a"] - float(lr(k)) * grads["a"]
        np.testing.assert_allclose(params["a"], expected, rtol=2e-6, atol=1e-6)
    assert len(traced) == 1


def test_a_rate_may_be_traced(rng: np.random.Generator) -> None:
    params, grads = in_jax(arrays(rng)), in_jax(arrays(rng))

    def once(rate: Any) -> Any:
        opt = fastopt.jax.AdamW(rate, betas=(rate, 0.999))
        return opt.step(params, grads, opt.init(params))

    step = jax.jit(once)

    for rate in (0.5, 0.25):
        opt = fastopt.jax.AdamW(rate, betas=(rate, 0.999))
        assert_same(step(rate), jax.jit(opt.step)(params, grads, opt.init(params)))


def test_a_rate_that_is_no_number_is_an_error_of_the_step() -> None:
    params = {"w": jnp.ones(3)}
    traced = jax.jit(lambda rate: (opt := fastopt.jax.SGD(lr=rate)).step(params, params, opt.init(params)))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"scalar 'a', .* is out of the range"):
        jax.block_until_ready(traced(jnp.inf))
    opt = fastopt.jax.SGD(lr=schedules.linear(0.1, -1.0, 1))
    _, state = opt.step(params, params, opt.init(params))
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match=r"Invalid learning rate: -1\.0"):
        jax.block_until_ready(jax.jit(opt.step)(params, params, state))


# ---- how it is run ----


def test_donated_memory_is_written_in_place(rng: np.random.Generator) -> None:
    params, opt = in_jax(arrays(rng)), fastopt.jax.AdamW()
    state, step = opt.init(params), compiled(opt)
    before = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state.arrays)) if leaf.size]
    for _ in range(2):
        params, state = step(params, in_jax(arrays(rng)), state)
    assert before == [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state.arrays)) if leaf.size]


@pytest.mark.parametrize("donated", [True, False])
def test_a_copy_can_be_seen(donated: bool, rng: np.random.Generator) -> None:
    """As docs/jax.md says how."""
    params, opt = in_jax(arrays(rng)), fastopt.jax.AdamW()
    del params["c"]  # (an empty array has nothing to be copied, and a copy all the same)
    state = opt.init(params)
    step: Any = jax.jit(opt.step, donate_argnums=(0, 2) if donated else ())
    found = step.lower(params, params, state).compile()
    written = jax.tree.leaves((params, state))
    assert found.as_text().count(" copy(") == (0 if donated else len(written))
    assert found.memory_analysis().alias_size_in_bytes == (sum(leaf.nbytes for leaf in written) if donated else 0)


def test_without_donation_nothing_is_overwritten(rng: np.random.Generator) -> None:
    original = arrays(rng)
    params, opt = in_jax(original), fastopt.jax.AdamW(lr=0.1)
    state = opt.init(params)
    kept = jax.tree.map(np.array, state)
    grads = in_jax(arrays(rng))
    eager, jitted = opt.step(params, grads, state), jax.jit(opt.step)(params, grads, state)
    assert_same(eager, jitted)
    assert_same((params, state), (original, kept))
    assert not np.array_equal(eager[0]["a"], params["a"])


@pytest.mark.parametrize("optimizer", ["AdamW", "Prodigy"])
def test_a_scan_over_steps_takes_no_more_memory(optimizer: str, rng: np.random.Generator) -> None:
    size = 100_000
    params, opt = jnp.array(rng.standard_normal(size), "float32"), made(optimizer, lr=0.1)
    grads = jnp.array(rng.standard_normal((5, 1)), "float32")

    def many(params: Any, state: Any) -> Any:
        def one(carry: Any, grad: Any) -> Any:
            return opt.step(carry[0], jnp.broadcast_to(grad, params.shape), carry[1]), None

        return jax.lax.scan(one, (params, state), grads)[0]

    scanned = jax.jit(many, donate_argnums=(0, 1)).lower(params, opt.init(params)).compile()
    assert scanned.memory_analysis().temp_size_in_bytes < 4 * size * 1.5  # one gradient
    expected = params, opt.init(params)
    for grad in grads:
        expected = jax.jit(opt.step)(expected[0], jnp.broadcast_to(grad, params.shape), expected[1])
    assert_same(scanned(params, opt.init(params)), expected)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("AdamW", {"lr": 0.1}),
        ("AdamW", {"lr": schedules.cosine(0.1, 10), "clip_norm": 1.0, "state_dtype": "8bit"}),
        ("Prodigy", {"lr": 0.1}),
        ("Adafactor", {"lr": 0.1}),
    ],
)
def test_vmap_is_a_step_of_each(optimizer: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    opt = made(optimizer, **options)
    params, grads = (jnp.array(rng.standard_normal((3, 7)), "float32") for _ in range(2))
    found = jax.jit(jax.vmap(opt.step))(params, grads, jax.vmap(opt.init)(params))
    for k in range(3):
        assert_same(jax.tree.map(lambda leaf, k=k: leaf[k], found), opt.step(params[k], grads[k], opt.init(params[k])))


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}])
@pytest.mark.parametrize("place", [0, 1])
def test_the_step_has_no_derivative(place: int, options: dict[str, Any]) -> None:
    opt, params = fastopt.jax.SGD(**options), jnp.ones(3)
    state = opt.init(params)
    with pytest.raises(TypeError, match="a step has no derivative"):
        jax.jit(jax.grad(lambda params, grads: opt.step(params, grads, state)[0].sum(), place))(params, params)


def pickled(tree: Any, like: Any, folder: Path) -> Any:
    return pickle.loads(pickle.dumps(tree))


def in_a_checkpoint(tree: Any, like: Any, folder: Path) -> Any:
    orbax = pytest.importorskip("orbax.checkpoint")
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", like)


def in_bytes_of_flax(tree: Any, like: Any, folder: Path) -> Any:
    serialization = pytest.importorskip("flax.serialization")
    return serialization.from_bytes(like, serialization.to_bytes(tree))


KEEPING: dict[str, dict[str, Any]] = {
    "AdamW": {"state_dtype": "8bit", "ema": 0.9},
    "SparseAdam": {},
    "Prodigy": {},
    "Adafactor": {},
}


@pytest.mark.filterwarnings("default")  # (of orbax's libraries)
@pytest.mark.parametrize("saved", [pickled, in_a_checkpoint, in_bytes_of_flax])
@pytest.mark.parametrize("optimizer", KEEPING)
def test_a_saved_state_goes_on_with_the_same_bits(
    optimizer: str, saved: Callable[..., Any], rng: np.random.Generator, tmp_path: Path
) -> None:
    params, opt = in_jax(arrays(rng)), made(optimizer, lr=schedules.cosine(0.1, 10), **KEEPING[optimizer])
    del params["c"]  # (orbax takes no empty arrays)
    step, grads = jax.jit(opt.step), {name: in_jax(arrays(rng))[name] for name in params}
    like = params, opt.init(params)
    params, state = step(params, grads, like[1])
    loaded = saved((params, state), like, tmp_path)
    assert_same(loaded, (params, state))
    assert_same(step(loaded[0], grads, loaded[1]), step(params, grads, state))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("saved", [pickled, in_a_checkpoint, in_bytes_of_flax])
def test_a_saved_state_of_other_parameters_is_refused(saved: Callable[..., Any], tmp_path: Path) -> None:
    opt, params, others = fastopt.jax.AdamW(), {"w": jnp.ones((2, 3))}, {"w": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match=r"do not match|of other parameters"):
        opt.step(others, others, saved(opt.init(params), opt.init(others), tmp_path))


def test_an_optimizer_can_be_pickled(rng: np.random.Generator) -> None:
    params, opt = in_jax(arrays(rng)), fastopt.jax.AdamW(lr=schedules.cosine(0.1, 10), weight_decay=jnp.array(0.1))
    found = pickle.loads(pickle.dumps(opt)).step(params, params, opt.init(params))
    assert_same(found, opt.step(params, params, opt.init(params)))


def test_two_threads_step_at_once(rng: np.random.Generator) -> None:
    opt = fastopt.jax.AdamW(lr=0.1)
    step = compiled(opt)
    start, grads = rng.standard_normal((2, 300_000)).astype("float32"), rng.standard_normal(300_000).astype("float32")
    found: list[Any] = [None, None]

    def run(k: int) -> None:
        params = jnp.array(start[k])
        state = opt.init(params)
        for _ in range(5):
            params, state = step(params, jnp.array(grads), state)
        found[k] = np.asarray(params)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(2):
        expected = start[k].copy()
        twin = fastopt.AdamW(expected, lr=0.1)
        for _ in range(5):
            twin.step(grads)
        assert_same(found[k], expected)


def test_the_package_imports_no_jax() -> None:
    code = "import fastopt, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"betas": (0.9,)}, "expected two numbers"),
        ({"nonfinite": "raise"}, "Invalid nonfinite"),
        ({"momentum": 0.9}, "unexpected keyword argument 'momentum'"),
        ({"ema": lambda step: 0.9}, "ema: expected what is known before the step"),
        ({"amsgrad": lambda step: True}, "amsgrad: expected what is known before the step"),
        ({"master": lambda step: "split"}, "master: expected what is known before the step"),
        ({"nonfinite": lambda step: "skip"}, "nonfinite: expected what is known before the step"),
        ({"clip_norm": -1.0}, "Invalid clip_norm"),
        ({"lr": schedules.linear(-1.0, 0.0, 5)}, "Invalid learning rate: -1.0"),
        ({"state_dtype": "4bit"}, "Invalid state_dtype"),
        ({"master": "split16"}, "Invalid master"),
        ({"master": "split", "rounding": "stochastic"}, "rounding: 'stochastic' is for parameters without a master"),
        ({"accumulate": 2}, "unexpected keyword argument 'accumulate'"),
    ],
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fastopt.jax.AdamW(**options)


def test_a_state_of_other_precision_is_named(x64: None) -> None:
    opt, params = fastopt.jax.NAdam(), jnp.ones(3, "float32")
    state = opt.init(params)
    jax.config.update("jax_enable_x64", False)
    with pytest.raises(ValueError, match=r"state.arrays\['mu_product'\]: expected .*float32.* got .*float64"):
        opt.step(params, params, state)


def test_what_products_are_made_by_cannot_move() -> None:
    with pytest.raises(TypeError, match="eps: expected what is known before the step"):
        fastopt.jax.Muon(eps=lambda step: 1e-7)


def test_what_numbers_start_as_cannot_move() -> None:
    with pytest.raises(TypeError, match="d0: expected a number"):
        fastopt.jax.Prodigy(d0=lambda step: 1e-6)


def test_what_does_not_fit_is_named() -> None:
    opt, params = fastopt.jax.AdamW(), {"w": jnp.ones((2, 3))}
    state = opt.init(params)
    with pytest.raises(TypeError, match=r"params\['w'\]: expected one of float32, .*, got int32"):
        opt.init({"w": jnp.ones(3, int)})
    with pytest.raises(ValueError, match="params: has no arrays"):
        opt.init({})
    with pytest.raises(ValueError, match="grads: expected the structure"):
        opt.step(params, {"v": params["w"]}, state)
    with pytest.raises(ValueError, match=r"grads\['w'\]: expected the shape \(2, 3\), got \(3, 2\)"):
        opt.step(params, {"w": jnp.ones((3, 2))}, state)
    with pytest.raises(TypeError, match=r"grads\['w'\]: expected float32, got int32"):
        opt.step(params, {"w": jnp.ones((2, 3), int)}, state)
    with pytest.raises(TypeError, match="state: expected what init"):
        opt.step(params, params, fastopt.jax.Lion().init(params))
    with pytest.raises(TypeError, match="state: expected what init"):
        opt.step(params, params, state._replace(numbers=jnp.zeros(2, jnp.uint32)))
    with pytest.raises(TypeError, match=r"state\.steps: expected a whole number, got 1\.5"):
        opt.step(params, params, state._replace(steps=1.5))
    with pytest.raises(TypeError, match=r"state\.steps: expected a whole number, got Array"):
        opt.step(params, params, state._replace(steps=jnp.zeros(2, int)))
    assert int(opt.step(params, params, state._replace(steps=np.int64(4)))[1].steps) == 5
    moving = fastopt.jax.Prodigy()
    with pytest.raises(TypeError, match=r"state\.numbers: expected what init"):
        moving.step(params, params, moving.init(params)._replace(numbers=jnp.zeros(3, jnp.uint32)))
    with pytest.raises(ValueError, match=r"state: is of other parameters: .* \(2, 3\) of params\['w'\], got \(3, 2\)"):
        opt.step(params, params, opt.init({"w": jnp.ones((3, 2))}))
    with pytest.raises(ValueError, match="state: is of other parameters: expected 1, got 2"):
        opt.step(params, params, opt.init({"w": jnp.ones(3), "v": jnp.ones(3)}))
    with pytest.raises(ValueError, match="state: is of other parameters: expected 1, got 0"):
        opt.step(params, params, state._replace(shapes=None))
    apart = dict.fromkeys(state.arrays, params["w"])
    with pytest.raises(ValueError, match=r"state.arrays\['exp_avg'\]: expected .*\(6,\).* got .*\(2, 3\)"):
        opt.step(params, params, state._replace(arrays=apart))
    with pytest.raises(ValueError, match="decay_mask: "):
        fastopt.jax.AdamW(decay_mask={"v": True}).step(params, params, state)


def test_an_older_jax_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = importlib.import_module("fastopt.backends.jax")
    monkeypatch.setattr(jax, "__version_info__", (0, 4, 38))
    with pytest.raises(ImportError, match=r"needs jax 0\.5\.0 or newer"):
        importlib.reload(backend)


# ---- optax ----


@pytest.mark.parametrize(
    ("name", "options", "in_optax"),
    [
        ("Adam", {}, {}),
        ("AdamW", {"weight_decay": 0.1}, {"weight_decay": 0.1}),
        ("SGD", {}, {}),
        ("SGD", {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True}),
        ("Lion", {"weight_decay": 0.1}, {"weight_decay": 0.1}),
    ],
)
def test_states_go_from_optax_and_back(
    name: str, options: dict[str, Any], in_optax: dict[str, Any], rng: np.random.Generator
) -> None:
    optax = pytest.importorskip("optax")
    theirs = optax.chain(optax.clip_by_global_norm(1e9), getattr(optax, name.lower())(0.1, **in_optax))
    ours = getattr(fastopt.jax, name)(lr=0.1, **options)
    params = in_jax(arrays(rng))
    theirs_state = theirs.init(params)

    def step_there(params: Any, grads: Any, state: Any) -> Any:
        updates, state = theirs.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, theirs_state = step_there(params, in_jax(arrays(rng)), theirs_state)
    state = ours.from_optax(theirs_state, params)
    assert_same(ours.to_optax(state, params, theirs.init(params)), theirs_state)
    expected = params
    for _ in range(3):
        grads = in_jax(arrays(rng))
        params, state = ours.step(params, grads, state)
        expected, theirs_state = step_there(expected, grads, theirs_state)
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    back = ours.to_optax(state, params, theirs.init(params))
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(theirs_state), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_another_optimizers_state_is_refused() -> None:
    optax = pytest.importorskip("optax")
    params = jnp.ones(3)
    with pytest.raises(ValueError, match="expected one field 'nu'"):
        fastopt.jax.AdamW().from_optax(optax.lion(0.1).init(params), params)
    with pytest.raises(TypeError, match="not optax's"):
        fastopt.jax.RMSprop().from_optax(optax.rmsprop(0.1).init(params), params)


# ---- fastopt bench ----


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("action", ACTIONS)
def test_the_benchmark_compares_optax_with_this_face(action: str, x64: None) -> None:
    task = Task(methods()["adamw"], works.find("policy"), action=action)
    run = perform(on_task(task, ["optax"]), 1e-9)  # (which looks whether the answers are right)
    face = Entrant("fastopt.jax", task)
    assert face in run.seconds
    if find_spec("optax"):
        assert run.counterpart(Entrant("optax", task)) == face
    assert face not in on_task(task, ["torch"])
