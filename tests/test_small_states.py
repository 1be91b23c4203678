"""States that have one number for each row or column: they are right, small, and have the same bits everywhere."""

from typing import Any, cast

import numpy as np
import pytest
import reference
from arrays import BLOCK, BYTES_A_THREAD, DTYPES, Array, assert_close, bits, nonzero, unchanged

import fastopt
from fastopt import Adafactor, Adagrad, Adam, AdamW, Optimizer, _core

FMA_ISAS = [name for name in fastopt.available_isas() if name != "portable"]

SHAPES = [
    (3, 5),
    (1, 9),
    (9, 1),
    (130, 300),
    (2, 3, 4, 5),
    (700, 3, 3),  # several matrices in a block
    (3, 200, 70),  # several blocks in a matrix
    (2, 3, BLOCK),
    (2, BLOCK + 5),  # rows longer than a block
    (70, 1, 200),
    (33, 1000),
]

CASES: list[tuple[type[Optimizer], str, dict[str, Any]]] = [
    (Adafactor, "adafactor", {}),
    (Adafactor, "adafactor", {"weight_decay": 0.1, "d": 1.5, "beta2_decay": -0.5, "maximize": True}),
    (Adafactor, "adafactor", {"eps": (0.7, 0.5), "lr": 0.3}),
    (Adafactor, "adafactor", {"eps": (1e-30, 1e-3), "clip_value": 0.7}),
    (Adagrad, "adagrad_rowwise", {"rowwise": True}),
    (Adagrad, "adagrad_rowwise", {"rowwise": True, "weight_decay": 0.1, "initial_accumulator_value": 0.7}),
    (Adam, "adam_rowwise", {"rowwise": True, "weight_decay": 0.1, "maximize": True, "clip_value": 0.7}),
    (AdamW, "adam_rowwise", {"rowwise": True, "eps": 1e-2, "eps_root": 1e-2}),
]

every_case = pytest.mark.parametrize(
    ("cls", "rule", "options"), CASES, ids=[f"{rule}-{k}" for k, (_, rule, _) in enumerate(CASES)]
)


def data(shapes: list[tuple[int, ...]], dtype: str, steps: int = 4) -> tuple[list[Array], list[list[Array]]]:
    rng = np.random.default_rng(7)
    params, *grads = [[nonzero(rng, shape, dtype) for shape in shapes] for _ in range(1 + steps)]
    return params, grads


@every_case
def test_steps_match_the_oracle(cls: type[Optimizer], rule: str, options: dict[str, Any], dtype: str, isa: str) -> None:
    params, all_grads = data(SHAPES, dtype)
    opt = cls(params, **options)
    for t, grads in enumerate(all_grads, start=1):
        before = [
            (p.astype(float), {name: state.astype(float) for name, state in entry.items()} if t > 1 else {})
            for p, entry in zip(params, opt.state, strict=True)
        ]
        opt.step(grads)
        for (p, state), g, after, entry in zip(before, grads, params, opt.state, strict=True):
            clip = options.get("clip_value", np.inf)
            expected, states = reference.step(rule, p, g.astype(float), state, t, opt.defaults, clip_value=clip)
            assert_close(after.ravel(), expected.ravel(), np.maximum(np.abs(p), 2.0).ravel(), dtype, f"step {t}")
            assert entry.keys() == states.keys()
            for name, values in states.items():
                assert entry[name].shape == values.shape
                assert_close(entry[name].ravel(), values.ravel(), np.abs(values).max(), dtype, f"step {t}: {name}", 64)


@every_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_and_any_company(
    cls: type[Optimizer], rule: str, options: dict[str, Any], dtype: str
) -> None:
    long = BYTES_A_THREAD // 100
    shapes = [(long // 7, 100), (5, 2), (3, long, 10), (4, 0), (20, BLOCK + 1)]
    found = []
    for threads in (1, 2, 7):
        fastopt.set_num_threads(threads)
        params, all_grads = data(shapes, dtype, 2)
        opt = cls(params, **options)
        for grads in all_grads:
            opt.step(grads)
        found.append(bits([*params, *(state for entry in opt.state for state in entry.values())]))
    params, all_grads = data(shapes, dtype, 2)
    alone = [cls(param, **options) for param in params]
    for grads in all_grads:
        for opt, grad in zip(alone, grads, strict=True):
            opt.step(grad)
    found.append(bits([*params, *(state for opt in alone for state in opt.state[0].values())]))
    assert all(other == found[0] for other in found[1:])


@every_case
@pytest.mark.skipif(len(FMA_ISAS) < 2, reason="one instruction set with FMA")
def test_any_instruction_set_with_fma(cls: type[Optimizer], rule: str, options: dict[str, Any], dtype: str) -> None:
    found = []
    for isa in FMA_ISAS:
        _core.use_isa(isa)
        params, all_grads = data(SHAPES, dtype)
        opt = cls(params, **options)
        for grads in all_grads:
            opt.step(grads)
        found.append(bits([*params, *(state for entry in opt.state for state in entry.values())]))
    assert all(other == found[0] for other in found[1:])


def test_states_are_one_number_a_row_or_column() -> None:
    table = np.zeros((1000, 64), np.float32)
    assert Adagrad([table], rowwise=True).state_bytes() == Adagrad([table]).state_bytes() // 64
    assert Adam([table], rowwise=True).state_bytes() == table.nbytes + 4 * 1000
    assert Adafactor([table]).state_bytes() == 4 * (1000 + 64)


def test_rows_are_of_the_first_dimension_and_a_vector_has_one_number_an_element() -> None:
    rng = np.random.default_rng(1)
    tensor, vector, number = rng.standard_normal((6, 2, 5)), rng.standard_normal(6), np.array(2.0)
    flat, plain = [tensor.reshape(6, 10).copy(), vector.copy(), number.copy()], [vector.copy(), number.copy()]
    grads = [rng.standard_normal((6, 2, 5)), rng.standard_normal(6), np.array(3.0)]
    opt, other = Adagrad([tensor, vector, number], rowwise=True), Adagrad(flat, rowwise=True)
    dense = Adagrad(plain)
    opt.step(grads)
    other.step([grads[0].reshape(6, 10), *grads[1:]])
    dense.step(grads[1:])
    assert opt.state[0]["row_sum"].shape == (6, 1, 1)
    assert (tensor.reshape(6, 10) == flat[0]).all()
    np.testing.assert_allclose([*vector, number], [*plain[0], plain[1]], rtol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 3, 16, 300, BLOCK + 1])
def test_sparse_rows_are_stepped_as_dense_ones(width: int, dtype: str) -> None:
    rng = np.random.default_rng(3)
    table, values = nonzero(rng, (50, width), dtype), nonzero(rng, (6, width), dtype)
    indices = np.array([7, 3, 49, 7, 0, 7])
    kinds: list[tuple[Any, dict[str, Any]]] = [(Adagrad, {}), (Adam, {"lazy": True}), (AdamW, {"lazy": True})]
    for cls, options in kinds:
        sparse, dense = table.copy(), table.copy()
        grad = np.zeros_like(table)
        np.add.at(grad, indices, values)
        opt, other = cls([sparse], rowwise=True, **options), cls([dense], rowwise=True, weight_decay=0.0)
        for _ in range(3):
            opt.step([fastopt.Rows(indices, values)])
            other.step([grad])
        touched = np.unique(indices)
        if cls is AdamW:
            dense *= (1 - 1e-5) ** 3  # (all are of rows that were touched in each step)
            np.testing.assert_allclose(sparse[touched], dense[touched], rtol=1e-4)
        else:
            assert sparse[touched].tobytes() == dense[touched].tobytes()
        rest = np.setdiff1d(np.arange(50), touched)
        assert (sparse[rest] == table[rest]).all()
        name = "row_sum" if cls is Adagrad else "row_exp_avg_sq"
        assert not opt.state[0][name][rest].any()
        assert opt.state[0][name][touched].all()


@every_case
def test_a_snapshot_resumes(cls: type[Optimizer], rule: str, options: dict[str, Any]) -> None:
    params, all_grads = data(SHAPES[:4], "float32")
    opt = cls(params, **options)
    for grads in all_grads[:2]:
        opt.step(grads)
    copies = [param.copy() for param in params]
    other = cls(copies, **options)
    other.load_state_dict(opt.state_dict())
    for grads in all_grads[2:]:
        opt.step(grads)
        other.step(grads)
    assert bits(params) == bits(copies)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
@pytest.mark.parametrize("shape", [(40, 3), (5, 3, 7), (3, BLOCK + 7)])
def test_moments_in_fewer_bits_beside_small_states(state_dtype: str, shape: tuple[int, ...]) -> None:
    params, all_grads = data([shape, shape], "float32")
    opt, exact = Adam(params[:1], rowwise=True, state_dtype=state_dtype), Adam(params[1:], rowwise=True)
    params[1][...] = params[0]
    for grad, _ in all_grads:
        opt.step([grad])
        exact.step([grad])
    assert opt.state[0]["row_exp_avg_sq"].dtype == np.float32
    assert (opt.state[0]["row_exp_avg_sq"] == exact.state[0]["row_exp_avg_sq"]).all()
    np.testing.assert_allclose(params[0], params[1], atol=1e-3)


def test_a_zero_or_nonfinite_gradient() -> None:
    matrix = np.ones((4, 6))
    opt = Adafactor([matrix])
    opt.step([np.zeros((4, 6))])
    assert (matrix == 1).all()
    grad = np.ones((4, 6))
    grad[1, 2] = np.nan
    opt = Adafactor([matrix], nonfinite="skip")
    with unchanged(opt):
        assert opt.step([grad]).skipped
    table = np.ones((4, 6))
    Adagrad([table], rowwise=True).step([grad])
    assert np.isnan(table[1]).all()
    assert np.isfinite(table[[0, 2, 3]]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adam([np.ones((2, 2))], rowwise=True, amsgrad=True), "rowwise=True excludes amsgrad=True"),
        (lambda: AdamW([np.ones((2, 2))], rowwise=True, cautious=True), "rowwise=True excludes cautious=True"),
        (lambda: Adafactor([np.asfortranarray(np.ones((2, 3)))]), "expected a C-contiguous array"),
        (lambda: Adagrad([np.asfortranarray(np.ones((2, 3)))], rowwise=True), "expected a C-contiguous array"),
        (lambda: Adafactor([np.ones((2, 3))], beta2_decay=0.1), "beta2_decay"),
        (lambda: Adafactor([np.ones((2, 3))], d=0.5), "Invalid d value: 0.5"),
        (lambda: Adafactor([np.ones((2, 3))], eps=(-1.0, 1e-3)), "Invalid epsilon1: -1.0"),
        (lambda: Adafactor([np.ones((2, 3))], eps=(None, -1e-3)), "Invalid epsilon2: -0.001"),
        (lambda: Adafactor([np.ones((2, 3))], eps=cast(Any, 1e-3)), "Invalid eps: expected two numbers, got 0.001"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_state_of_another_shape_is_refused() -> None:
    opt = Adafactor([np.ones((2, 3))])
    opt.step([np.ones((2, 3))])
    snapshot = opt.state_dict()
    snapshot["state"][0]["row_var"] = np.ones((2, 3))
    with unchanged(opt), pytest.raises(ValueError, match=r"row_var of params.*expected shape \(2, 1\), got \(2, 3\)"):
        opt.load_state_dict(snapshot)
