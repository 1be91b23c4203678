"""Gradients of some rows in JAX: the bits are those of the NumPy face."""

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax.experimental.sparse import BCOO  # noqa: E402
from jax_cases import assert_kept, assert_same, compiled, in_jax, made  # noqa: E402

import fastopt  # noqa: E402
import fastopt.jax  # noqa: E402
from fastopt import methods  # noqa: E402
from fastopt.backends.jax import MOST_IN_A_CALL  # noqa: E402

SHAPES: dict[str, tuple[int, ...]] = {
    "bias": (),
    "cube": (40, 4, 8),
    "head": (32, 3),
    "line": (500,),
    "table": (300, 32),
}
TABLES = ("table", "cube", "line")

LAZY: list[tuple[str, dict[str, Any]]] = [
    *((name, {"lazy": True}) for name, method in methods.registry().items() if "lazy" in method.options),
    ("AdamW", {"lazy": True, "amsgrad": True, "weight_decay": 0.1, "clip_norm": 2.0}),
    ("AdamW", {"lazy": True, "rowwise": True, "weight_decay": 0.1}),
    ("AdamW", {"lazy": True, "state_dtype": "bfloat16", "ema": 0.9}),
    ("AdamW", {"lazy": True, "lr": lambda step: 0.1 / (1 + step), "nonfinite": "skip", "clip_value": 0.5}),
    ("Adam", {"lazy": True, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "lazy": True}),
    ("Adagrad", {"lr_decay": 0.1}),
    ("SparseAdam", {"betas": (0.8, 0.99)}),
]


def named(name: str, options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "lazy" or name != "SparseAdam"}


def whole(rng: np.random.Generator) -> dict[str, Any]:
    return {name: rng.standard_normal(shape).astype("float32") for name, shape in SHAPES.items()}


def of_rows(rng: np.random.Generator, shape: tuple[int, ...], count: int = 60) -> fastopt.Rows:
    """The gradient of some rows, of which several come more than once."""
    values = rng.standard_normal((count, *shape[1:])).astype("float32")
    return fastopt.Rows(rng.integers(0, 1 + rng.integers(0, shape[0], count)), values)


@pytest.mark.parametrize(("name", "options"), LAZY)
def test_rows_have_the_bits_of_the_numpy_face(name: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    expected, options = whole(rng), named(name, options)
    opt, twin = made(name, **options), getattr(fastopt, name)(expected, **options)
    params = in_jax(expected)
    state, step = opt.init(params), compiled(opt)
    for turn in range(5):  # (dense gradients before, between and after)
        grads: dict[str, Any] = whole(rng)
        if turn in (1, 2, 4):
            grads |= {table: of_rows(rng, SHAPES[table]) for table in TABLES}
        params, state = step(params, grads, state)
        twin.step(grads)
    assert_same(params, expected)
    assert_kept(opt, state, params, twin)


@pytest.mark.parametrize("options", [{"state_dtype": "8bit"}, {"state_dtype": "8bit", "rowwise": True}], ids=str)
def test_rows_of_whole_groups_may_have_states_in_8_bits(options: dict[str, Any], rng: np.random.Generator) -> None:
    expected = {"table": rng.standard_normal((50, 64)).astype("float32")}
    opt, twin = fastopt.jax.AdamW(lazy=True, **options), fastopt.AdamW(expected, lazy=True, **options)
    params = in_jax(expected)
    state, step = opt.init(params), compiled(opt)
    for _ in range(3):
        grads = {"table": of_rows(rng, (50, 64))}
        params, state = step(params, grads, state)
        twin.step(grads)
    assert_same(params, expected)
    assert_kept(opt, state, params, twin)


def test_tables_in_several_calls_are_as_in_one(rng: np.random.Generator) -> None:
    count = MOST_IN_A_CALL + 3
    expected = [rng.standard_normal((9, 4)).astype("float32") for _ in range(count)]
    options: dict[str, Any] = {"lazy": True, "weight_decay": 0.1, "clip_norm": 1.0}
    mask = [k % 3 > 0 for k in range(count)]
    opt = fastopt.jax.AdamW(decay_mask=mask, **options)
    groups = [{"params": [p], "weight_decay": 0.1 * flag} for p, flag in zip(expected, mask, strict=True)]
    twin = fastopt.AdamW(groups, **options)
    params = in_jax(expected)
    state, step = opt.init(params), compiled(opt)
    for _ in range(3):
        grads = [
            of_rows(rng, (9, 4), 5) if k % 2 else rng.standard_normal((9, 4)).astype("float32") for k in range(count)
        ]
        params, state = step(params, grads, state)
        twin.step(grads)
    assert_same(params, expected)


def test_the_gradient_of_looked_up_rows_is_one_of_rows(rng: np.random.Generator) -> None:
    """As a user has it: rows are looked up, and what is differentiated by is the rows."""
    opt = fastopt.jax.AdamW(lr=0.1, lazy=True)
    start = {"table": rng.standard_normal((50_000, 16)).astype("float32"), "head": np.ones(16, "float32")}

    def loss_of(rows: Any, head: Any, y: Any) -> Any:
        return jnp.mean((rows @ head - y) ** 2)

    def train(params: Any, state: Any, ids: Any, y: Any) -> Any:
        rows, head = jax.grad(loss_of, (0, 1))(params["table"][ids], params["head"], y)
        return opt.step(params, {"table": fastopt.Rows(ids, rows), "head": head}, state)

    ids, y = jnp.array(rng.integers(0, 50_000, 100)), jnp.zeros(100)
    params = in_jax(start)
    lowered = jax.jit(train, donate_argnums=(0, 1)).lower(params, opt.init(params), ids, y).compile()
    assert lowered.memory_analysis().temp_size_in_bytes < 50_000 * 4  # nothing as large as the table
    params, state = lowered(params, opt.init(params), ids, y)
    touched = np.unique(ids)
    assert (np.asarray(params["table"])[touched] != start["table"][touched]).any(1).all()
    others = np.setdiff1d(np.arange(50_000), touched)
    assert_same(np.asarray(params["table"])[others], start["table"][others])
    assert not np.asarray(opt.arrays_of(state, params)["exp_avg"]["table"])[others].any()


def test_rows_of_jaxs_sparse_arrays_are_rows(rng: np.random.Generator) -> None:
    dense = np.zeros((9, 4), "float32")
    dense[[2, 5]] = rng.standard_normal((2, 4))
    sparse = BCOO.fromdense(jnp.array(dense), nse=4, n_dense=1)  # (two places of which are no row)
    opt, params = fastopt.jax.Adagrad(lr=0.1), jnp.ones((9, 4))
    found = opt.step(params, fastopt.Rows(sparse.indices[:, 0], sparse.data), opt.init(params))
    assert_same(found, opt.step(params, dense, opt.init(params)))


def test_the_number_past_the_last_row_stands_for_none(rng: np.random.Generator) -> None:
    opt, params = (
        fastopt.jax.AdamW(lr=0.1, lazy=True, clip_norm=1e-3),
        jnp.array(rng.standard_normal((7, 3)), "float32"),
    )
    values = jnp.array(rng.standard_normal((4, 3)), "float32")
    padded = fastopt.Rows(jnp.array([2, 7, 0, 7]), values)
    alone = fastopt.Rows(jnp.array([2, 0]), values[::2])
    assert_same(opt.step(params, padded, opt.init(params)), opt.step(params, alone, opt.init(params)))
    nothing = fastopt.Rows(jnp.full(4, 7), values)
    assert_same(opt.step(params, nothing, opt.init(params))[0], params)
    empty = fastopt.Rows(jnp.zeros(0, int), values[:0])
    assert_same(opt.step(params, empty, opt.init(params))[0], params)


@pytest.mark.parametrize("number", [-1, 8])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}])
def test_numbers_of_no_row_are_an_error_of_the_step(number: int, options: dict[str, Any]) -> None:
    opt, params = fastopt.jax.SparseAdam(**options), jnp.ones((7, 3))
    grads = fastopt.Rows(jnp.array([2, number]), jnp.ones((2, 3)))
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=rf"at least 0 and below 7 \(7 itself: none\), got {number} at 1"
    ):
        jax.block_until_ready(jax.jit(opt.step)(params, grads, opt.init(params)))


def test_rows_go_through_scan_and_vmap(rng: np.random.Generator) -> None:
    opt, start = fastopt.jax.AdamW(lr=0.1, lazy=True), jnp.array(rng.standard_normal((3, 9, 4)), "float32")
    ids, values = jnp.array(rng.integers(0, 9, (3, 5))), jnp.array(rng.standard_normal((3, 5, 4)), "float32")
    found = jax.jit(jax.vmap(opt.step))(start, fastopt.Rows(ids, values), jax.vmap(opt.init)(start))
    for k in range(3):
        alone = opt.step(start[k], fastopt.Rows(ids[k], values[k]), opt.init(start[k]))
        assert_same(jax.tree.map(lambda leaf, k=k: leaf[k], found), alone)
    carry = jax.lax.scan(
        lambda c, g: (opt.step(c[0], g, c[1]), None), (start[0], opt.init(start[0])), fastopt.Rows(ids, values)
    )
    expected = start[0], opt.init(start[0])
    for k in range(3):
        expected = opt.step(expected[0], fastopt.Rows(ids[k], values[k]), expected[1])
    assert_same(carry[0], expected)


def test_what_does_not_fit_is_named() -> None:
    params = {"t": jnp.ones((7, 3)), "b": jnp.ones(())}

    def step(opt: Any, grad: Any) -> None:
        opt.step(params, {"t": grad, "b": params["b"]}, opt.init(params))

    lazy, rows = fastopt.jax.AdamW(lazy=True), fastopt.Rows(jnp.zeros(2, int), jnp.ones((2, 3)))
    with pytest.raises(TypeError, match=r"grads\['t'\]: expected an array, .* got Rows; lazy=True steps rows alone"):
        step(fastopt.jax.AdamW(), rows)
    with pytest.raises(TypeError, match=r"grads\['t'\]: expected an array, .* got Rows$"):
        step(fastopt.jax.Prodigy(), rows)
    for options in ({"momentum": 0.9}, {"ema": 0.9}, {"momentum": lambda step: 0.9}, {"weight_decay": 0.1}):
        with pytest.raises(TypeError, match=r"grads\['t'\]: expected an array, .* got Rows"):
            step(fastopt.jax.SGD(**options), rows)
    step(fastopt.jax.SGD(weight_decay=0.1, decay_mask={"t": False, "b": True}), rows)
    with pytest.raises(TypeError, match=r"indices of grads\['t'\]: expected integers in one dimension, got float32"):
        step(lazy, fastopt.Rows(jnp.zeros(2), jnp.ones((2, 3))))
    with pytest.raises(ValueError, match=r"values of grads\['t'\]: expected the shape \(2, 3\), .* got \(3, 3\)"):
        step(lazy, fastopt.Rows(jnp.zeros(2, int), jnp.ones((3, 3))))
    with pytest.raises(TypeError, match=r"values of grads\['t'\]: expected float32, got int32"):
        step(lazy, fastopt.Rows(jnp.zeros(2, int), jnp.ones((2, 3), int)))
    with pytest.raises(ValueError, match=r"values of grads\['b'\]: expected the shape"):
        lazy.step(params, {"t": params["t"], "b": fastopt.Rows(jnp.zeros(2, int), jnp.ones(2))}, lazy.init(params))
    with pytest.raises(IndexError, match=r"indices of grads\['t'\]: expected .* at most 7, got 1099511627776 at 1"):
        step(lazy, fastopt.Rows(np.array([3, 2**40]), jnp.ones((2, 3))))
    with pytest.raises(ValueError, match=r"grads\['t'\]: has rows of 3 elements, expected a multiple of 32"):
        step(fastopt.jax.AdamW(lazy=True, state_dtype="8bit"), rows)
    with pytest.raises(TypeError, match=r"grads\['t'\]: expected an array or fastopt.Rows\(.*\), got BCOO"):
        step(lazy, BCOO.fromdense(jnp.ones((7, 3)), n_dense=1))
