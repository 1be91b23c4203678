"""Half-precision parameters and states in fewer bits in JAX: the bits are those of the face for torch."""

from typing import Any

import numpy as np
import pytest
from arrays import BLOCK

jax = pytest.importorskip("jax")
torch = pytest.importorskip("torch")

import jax.numpy as jnp  # noqa: E402
from jax_cases import assert_close, assert_same, compiled, in_jax  # noqa: E402

import fastopt.jax  # noqa: E402
import fastopt.torch  # noqa: E402

SHAPES = [(8, 40), (), (BLOCK + 37,), (0, 3), (3, 5)]

OPTIONS: list[dict[str, Any]] = [
    {"master": "split"},
    {"master": "split8"},
    {"master": "float32"},
    {"rounding": "stochastic"},
    {"state_dtype": "8bit"},
    {"state_dtype": "bfloat16", "rounding": "stochastic"},
    {"state_dtype": "8bit", "master": "split8", "ema": 0.9, "clip_norm": 3.0},
    {"state_dtype": "float32", "master": "float32", "ema": 0.9, "nonfinite": "skip"},
]


def random(rng: np.random.Generator, dtype: str) -> list[Any]:
    """Arrays of JAX that are not all of one dtype."""
    dtypes = [dtype, "float32", dtype, dtype, dtype]
    return [jnp.array(rng.standard_normal(s), d) for s, d in zip(SHAPES, dtypes, strict=True)]


def in_torch(array: Any) -> Any:
    values = torch.tensor(np.array(array, "float32"))
    return torch.empty(array.shape, dtype=getattr(torch, array.dtype.name)).copy_(values)


def bits_of(array: Any) -> Any:
    """An array's or a tensor's."""
    if isinstance(array, torch.Tensor):
        array = array.detach()
        array = array.view(torch.int16) if array.dtype in (torch.bfloat16, torch.float16) else array
        return array.numpy()
    array = np.asarray(array)
    return array.view(np.int16) if array.dtype.itemsize == 2 else array


def assert_like_torch(optimizer: str, dtype: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    params = random(rng, dtype)
    tensors = [torch.nn.Parameter(in_torch(param)) for param in params]
    opt = getattr(fastopt.jax, optimizer)(lr=0.1, **options)
    twin = getattr(fastopt.torch, optimizer)(tensors, lr=0.1, **options)
    state, step = opt.init(params), compiled(opt)
    for _ in range(3):
        grads = random(rng, dtype)
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = in_torch(grad)
        params, state = step(params, grads, state)
        twin.step()
    assert_same([*map(bits_of, params)], [*map(bits_of, tensors)])
    fields = {name for entry in twin.state.values() for name in entry if "::" not in name} - {"step"}
    kept = opt.arrays_of(state, params)
    assert fields == kept.keys()
    loaded = twin.state_dict()["state"]  # (what is in 8 bits there is in float32 here)
    for name in fields:
        for slot, array in enumerate(kept[name]):
            other = loaded.get(slot, {}).get(name)
            assert (array is None) == (other is None), name
            if array is not None:
                assert_same(bits_of(array), bits_of(other))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
def test_bfloat16_has_the_bits_of_the_face_for_torch(
    optimizer: str, options: dict[str, Any], rng: np.random.Generator
) -> None:
    assert_like_torch(optimizer, "bfloat16", options, rng)


@pytest.mark.parametrize("optimizer", ["Adagrad", "Yogi", "LAMB", "ScheduleFreeAdamW", "Prodigy", "SGD"])
def test_so_have_other_optimizers(optimizer: str, rng: np.random.Generator) -> None:
    assert_like_torch(optimizer, "bfloat16", {"master": "split8", "state_dtype": "8bit"}, rng)


@pytest.mark.parametrize("options", [{"master": "float32"}, {"master": "split"}, {"rounding": "stochastic"}], ids=str)
def test_float16_may_have_a_master(options: dict[str, Any], rng: np.random.Generator) -> None:
    assert_like_torch("AdamW", "float16", options, rng)


@pytest.mark.parametrize("options", [{"master": "split"}, {"master": "float32"}, {"rounding": "stochastic"}], ids=str)
def test_muon_steps_bfloat16(options: dict[str, Any], rng: np.random.Generator) -> None:
    params = [jnp.array(rng.standard_normal((32, 6)), "bfloat16") for _ in range(2)]
    wide = [param.astype("float32") for param in params]
    opt, exact = fastopt.jax.Muon(lr=1e-3, state_dtype="float32", **options), fastopt.jax.Muon(lr=1e-3)
    state, step, wide_state, wide_step = opt.init(params), compiled(opt), exact.init(wide), compiled(exact)
    for _ in range(20):
        grads = [jnp.array(rng.standard_normal((32, 6)), "bfloat16") for _ in range(2)]
        params, state = step(params, grads, state)
        wide, wide_state = wide_step(wide, [grad.astype("float32") for grad in grads], wide_state)
    place = 2.0**-7
    assert_close([param.astype("float32") for param in params], wide, 2 * place if "rounding" in options else place)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("master", ["float32", "split"])
def test_what_is_written_into_a_parameter_counts(dtype: str, master: Any, rng: np.random.Generator) -> None:
    param = jnp.array(rng.standard_normal(3000), dtype)
    tensor = torch.nn.Parameter(in_torch(param))
    opt, twin = fastopt.jax.AdamW(lr=0.1, master=master), fastopt.torch.AdamW([tensor], lr=0.1, master=master)
    state, step = opt.init(param), compiled(opt)
    for _ in range(3):
        grad = jnp.array(rng.standard_normal(3000), dtype)
        tensor.grad = in_torch(grad)
        param, state = step(param, grad, state)
        twin.step()
        param = param.at[700:900].multiply(0.5)  # (exact)
        with torch.no_grad():
            tensor[700:900] *= 0.5
    assert_same(bits_of(param), bits_of(tensor))


def test_rows_of_a_master_alone_are_taken_over(rng: np.random.Generator) -> None:
    opt = fastopt.jax.AdamW(lr=0.1, lazy=True, master="float32", weight_decay=0.0)
    param, rows = jnp.ones((5, 3), "bfloat16"), fastopt.Rows(jnp.array([1, 3]), jnp.ones((2, 3), "bfloat16"))
    state, step = opt.init(param), compiled(opt)
    param, state = step(2 * param, rows, state)
    assert np.asarray(param[:, 0], "float32").tolist() == [2, 1.8984375, 2, 1.8984375, 2]
    param, state = step(param, jnp.zeros((5, 3), "bfloat16"), state)
    assert np.asarray(param[::2], "float32").tolist() == [[2] * 3] * 3


def test_matrices_that_no_remainder_goes_with_are_named() -> None:
    opt, params = fastopt.jax.Adafactor(master="split"), {"w": jnp.ones((2, 3, 5), "bfloat16")}
    with pytest.raises(ValueError, match=r"params\['w'\]: has matrices of 15 elements, expected a multiple of 32"):
        opt.step(params, params, opt.init(params))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_they_are_written_in_place(options: dict[str, Any], rng: np.random.Generator) -> None:
    params, opt = [jnp.array(rng.standard_normal((64, 64)), "bfloat16")], fastopt.jax.AdamW(**options)
    state, step = opt.init(params), compiled(opt)
    before = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state.arrays))]
    for _ in range(2):
        params, state = step(params, [jnp.ones((64, 64), "bfloat16")], state)
    assert before == [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state.arrays))]


@pytest.mark.parametrize("options", [{"rounding": "stochastic"}, {"state_dtype": "8bit", "master": "split"}], ids=str)
def test_what_is_rounded_does_not_depend_on_calls(
    options: dict[str, Any], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, grads = random(rng, "bfloat16"), random(rng, "bfloat16")
    found = []
    for most in (2, 64):
        monkeypatch.setattr("fastopt.backends.jax.MOST_IN_A_CALL", most)
        opt = fastopt.jax.AdamW(lr=0.1, **options)
        found.append(opt.step(start, grads, opt.init(start)))
    assert_same(*found)


def test_states_in_8_bits_come_from_optax_and_go_there(rng: np.random.Generator) -> None:
    optax = pytest.importorskip("optax")
    params = in_jax({"a": rng.standard_normal((7, 5)).astype("float32"), "b": np.ones((), "float32")})
    theirs, ours = optax.adamw(0.1), fastopt.jax.AdamW(lr=0.1, state_dtype="8bit")
    _, known = theirs.update(params, theirs.init(params), params)
    state = ours.from_optax(known, params)
    back = ours.to_optax(state, params, theirs.init(params))
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(known), strict=True):
        np.testing.assert_allclose(one, other, rtol=0.02, atol=np.max(np.abs(other)) / 100)
    traced = jax.jit(ours.from_optax)(known, params)
    assert_same(traced, state)
