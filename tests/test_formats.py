"""State dicts of bitsandbytes and torchao: files that they wrote are read, and what is written they read."""

import importlib
import io
import warnings
from typing import Any

import numpy as np
import pytest

import fastopt

torch = pytest.importorskip("torch")

import fastopt.torch  # noqa: E402
from fastopt import formats  # noqa: E402

SHAPES = ((96, 64), (70, 100), (33,))
"""Whole blocks, a block that is not full, and too small for 8 bits."""

OF_BITSANDBYTES: dict[str, dict[str, Any]] = {
    "AdEMAMix": {"weight_decay": 0.1},
    "Adagrad": {},
    "Adam": {"weight_decay": 0.1},
    "AdamW": {},
    "Lion": {},
    "RMSprop": {},
    "SGD": {"momentum": 0.9},
}


def library(name: str) -> Any:
    """The library, or a skipped test."""
    pytest.importorskip(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"{name}.optim")


def params(seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def stepped(opt: Any, given: list[Any], steps: int = 3) -> None:
    for k in range(steps):
        generator = torch.Generator().manual_seed(k)
        for param in given:
            param.grad = torch.randn(param.shape, generator=generator) * (k + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opt.step()


def in_a_file(state_dict: Any) -> Any:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def of_bitsandbytes(name: str, given: list[Any]) -> Any:
    return getattr(library("bitsandbytes"), f"{name}8bit")(given, lr=1e-3, **OF_BITSANDBYTES[name])


def largest(a: Any, b: Any) -> float:
    return float((torch.as_tensor(a) - torch.as_tensor(b)).abs().max())


def test_the_map_is_theirs() -> None:
    library("bitsandbytes")
    functional = importlib.import_module("bitsandbytes.functional")
    for signed in (True, False):
        assert torch.equal(formats.dynamic_map(signed), functional.create_dynamic_map(signed=signed))


def test_blocks_are_theirs() -> None:
    library("bitsandbytes")
    functional = importlib.import_module("bitsandbytes.functional")
    values = torch.randn(7000, generator=torch.Generator().manual_seed(0))
    codes, state = functional.quantize_blockwise(values, blocksize=256)
    ours, scales = formats.to_blocks(values, state.code)
    assert torch.equal(scales, state.absmax)
    assert (ours.int() - codes.int()).abs().max() <= 1  # (what lies in the middle)
    assert (ours != codes).float().mean() < 0.01
    assert torch.equal(formats.from_blocks(codes, scales, state.code), functional.dequantize_blockwise(codes, state))


@pytest.mark.parametrize("name", OF_BITSANDBYTES)
@pytest.mark.parametrize("face", ["numpy", "torch"])
def test_a_training_of_bitsandbytes_goes_on(name: str, face: str) -> None:
    theirs = params()
    before = of_bitsandbytes(name, theirs)
    stepped(before, theirs)
    read = in_a_file(before.state_dict())
    ours: list[Any] = [param.detach().clone() for param in theirs]
    if face == "numpy":
        arrays = [param.numpy() for param in ours]
        opt: Any = getattr(fastopt, name)(arrays, lr=0.5)
        opt.load_state_dict(formats.from_bitsandbytes(read, opt))
        grads = [torch.randn(shape, generator=torch.Generator().manual_seed(7)) for shape in SHAPES]
        opt.step([grad.numpy() for grad in grads])
    else:
        ours = [torch.nn.Parameter(param) for param in ours]
        opt = getattr(fastopt.torch, name)(ours, lr=0.5)
        opt.load_state_dict(formats.from_bitsandbytes(read, opt))
        grads = [torch.randn(shape, generator=torch.Generator().manual_seed(7)) for shape in SHAPES]
        for param, grad in zip(ours, grads, strict=True):
            param.grad = grad
        opt.step()
    assert opt.param_groups[0]["lr"] == 1e-3
    assert opt.step_count in (1, 4)
    start = [param.detach().clone() for param in theirs]
    for param, grad in zip(theirs, grads, strict=True):
        param.grad = grad.clone()
    before.step()
    for ours_now, theirs_now, there in zip(ours, theirs, start, strict=True):
        moved = largest(theirs_now.detach(), there)
        assert moved > 0
        assert largest(ours_now.detach(), theirs_now.detach()) < 1e-3 * moved + 1e-6


@pytest.mark.parametrize("name", OF_BITSANDBYTES)
def test_bitsandbytes_goes_on_with_what_is_written(name: str) -> None:
    ours = params()
    opt = getattr(fastopt.torch, name)(ours, lr=1e-3, **OF_BITSANDBYTES[name])
    if name == "Adam":
        opt.param_groups[0]["decoupled_weight_decay"] = True
    stepped(opt, ours)
    theirs = params()
    other = of_bitsandbytes(name, theirs)
    other.load_state_dict(in_a_file(formats.to_bitsandbytes(opt)))
    back = formats.from_bitsandbytes(other.state_dict(), opt)["state"]
    for index, param in enumerate(ours):
        assert back[index].keys() - {"step"} == set(opt.method.rule(opt.param_groups[0])[1])
        for key in set(back[index]) - {"step"}:
            exact = opt.state[param][key]
            assert largest(back[index][key], exact) <= 0.02 * float(exact.abs().max())
    stepped(other, theirs, 1)
    assert all(torch.isfinite(param).all() for param in theirs)


def test_numpy_states_in_bfloat16_are_written() -> None:
    values = np.ones((80, 80), np.float32)
    opt = fastopt.AdamW(values, state_dtype="bfloat16")
    opt.step(np.full_like(values, 2.0))
    state = formats.to_bitsandbytes(opt)["state"][0][formats.WRAPPED]
    found = formats.from_blocks(state["state1"], state["absmax1"], state["qmap1"])
    assert found.numpy() == pytest.approx(0.2, rel=1e-2)


def test_what_bitsandbytes_has_not_is_refused() -> None:
    one = np.ones(8, np.float32)
    with pytest.raises(ValueError, match=r"expected one whose rule is bitsandbytes' too, .* got Adan"):
        formats.to_bitsandbytes(fastopt.Adan(one))
    with pytest.raises(ValueError, match="bitsandbytes's AdamW has no amsgrad=True"):
        formats.to_bitsandbytes(fastopt.AdamW(one, amsgrad=True))
    with pytest.raises(ValueError, match=r"expected one whose rule is bitsandbytes' too, .* got LAMB"):
        formats.from_bitsandbytes({"state": {}, "param_groups": []}, fastopt.LAMB(one))
    with pytest.raises(ValueError, match="bitsandbytes's Adam has no decoupled_weight_decay=False"):
        formats.to_bitsandbytes(fastopt.Adam(one, weight_decay=0.1))
    with pytest.raises(TypeError, match=r"optimizer: expected one of fastopt or fastopt\.torch, got SGD"):
        formats.to_bitsandbytes(torch.optim.SGD(params()))
    groups = [{"params": [0], "lr": 1e-3, "betas": (0.9, 0.99)}]
    opt = fastopt.AdamW(one)
    with pytest.raises(ValueError, match=r"expected state1 \(exp_avg\), got \['exp_avg', 'step'\]"):
        formats.from_bitsandbytes({"state": {0: {"step": 1, "exp_avg": one}}, "param_groups": groups}, opt)
    with pytest.raises(ValueError, match=r"state for unknown parameters \[3\]"):
        formats.from_bitsandbytes({"state": {3: {}}, "param_groups": groups}, opt)
    with pytest.raises(ValueError, match="expected 1 parameter groups, got 2"):
        formats.from_bitsandbytes({"state": {}, "param_groups": groups * 2}, opt)
    codes = torch.zeros(8, dtype=torch.uint8)
    entry = {"step": 1, "state1": codes, "qmap1": formats.dynamic_map(True), "absmax1": torch.ones(2)}
    with pytest.raises(ValueError, match="absmax: expected one for 256 of 8 elements, got 2"):
        formats.from_bitsandbytes({"state": {0: entry}, "param_groups": groups}, opt)


# ---- torchao ----


def torchao_state(storage: str, theirs: list[Any], seed: int = 0) -> dict[str, Any]:
    """A state dict as torchao's optimizers have it, without their step, which is compiled."""
    suffix = {"8bit": "8bit", "4bit": "4bit", "fp8": "Fp8"}[storage]
    opt = getattr(library("torchao"), f"AdamW{suffix}")(theirs, lr=2e-3, betas=(0.8, 0.99))
    generator = torch.Generator().manual_seed(seed)
    for param in theirs:
        state = opt.state[param]
        state["step"] = torch.tensor(5.0)
        for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            state[name] = opt._new_buffer(param, signed)
            values = torch.randn(param.shape, generator=generator)
            state[name].copy_(values if signed else values.square())
    made: dict[str, Any] = opt.state_dict()
    return made


@pytest.mark.parametrize("storage", formats.TORCHAO)
@pytest.mark.parametrize("face", ["numpy", "torch"])
def test_a_file_of_torchao_is_read(storage: str, face: str) -> None:
    made = torchao_state(storage, params())
    read = in_a_file(made)
    ours = params()
    if face == "numpy":
        opt: Any = fastopt.AdamW([param.detach().numpy() for param in ours])
    else:
        opt = fastopt.torch.AdamW(ours)
    opt.load_state_dict(formats.from_torchao(read, opt))
    assert opt.param_groups[0]["lr"] == pytest.approx(2e-3)
    assert tuple(opt.param_groups[0]["betas"]) == (0.8, 0.99)
    assert opt.step_count == 5
    for index, param in enumerate(ours):
        found = opt.state[index if face == "numpy" else param]
        for name in ("exp_avg", "exp_avg_sq"):
            value = made["state"][index][name]
            expected = value if type(value) is torch.Tensor else value.dequantize()
            assert torch.equal(torch.as_tensor(found[name]), expected)


@pytest.mark.parametrize(("storage", "error"), [("8bit", 0.02), ("4bit", 0.2), ("fp8", 0.07)])
def test_torchao_reads_what_is_written(storage: str, error: float) -> None:
    ours, theirs = params(), params()
    opt = fastopt.torch.AdamW(ours, lr=2e-3)
    stepped(opt, ours)
    suffix = {"8bit": "8bit", "4bit": "4bit", "fp8": "Fp8"}[storage]
    other = getattr(library("torchao"), f"AdamW{suffix}")(theirs)
    other.load_state_dict(in_a_file(formats.to_torchao(opt, storage)))
    assert float(other.param_groups[0]["lr"]) == pytest.approx(2e-3)
    quantized = []
    for ours_param, param in zip(ours, theirs, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            value, exact = other.state[param][name], opt.state[ours_param][name]
            quantized.append(type(value) is not torch.Tensor)
            whole = value.dequantize() if quantized[-1] else value
            assert largest(whole, exact) <= error * float(exact.abs().max())
        assert float(other.state[param]["step"]) == 3
    assert any(quantized)
    assert not quantized[-1]


def test_what_torchao_has_not_is_refused() -> None:
    one = np.ones(8, np.float32)
    with pytest.raises(ValueError, match="expected one that torchao has, Adam or AdamW, got Lion"):
        formats.to_torchao(fastopt.Lion(one))
    with pytest.raises(ValueError, match=r"storage: expected one of \('8bit', '4bit', 'fp8'\), got '2bit'"):
        formats.to_torchao(fastopt.AdamW(one), "2bit")
    library("torchao")
    with pytest.raises(ValueError, match="torchao's Adam has no decoupled_weight_decay=True"):
        formats.to_torchao(fastopt.Adam(one, weight_decay=0.1, decoupled_weight_decay=True))
