"""State dicts of bitsandbytes' and torchao's optimizers, which keep their states in 8 or 4 bits: from them and to them.

They are converted by way of float32, so that what comes is as exact as it was there; how an optimizer of this library
stores it is its own affair (`state_dtype`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastopt.engine import Face, Group
from fastopt.methods.base import Method

BETAS = {
    "AdEMAMix": "betas",
    "Adagrad": "",
    "Adam": "betas",
    "AdamW": "betas",
    "Lion": "betas",
    "RMSprop": "alpha",
    "SGD": "momentum",
}
"""The optimizers of bitsandbytes -> which option its `betas`, or the first of them, is here. (Without LAMB and LARS,
which in 8 bits are AdamW and SGD there.)"""

BLOCK = 256
"""So many neighbours have one scale in bitsandbytes."""
LEAST = 4096
"""Tensors with fewer elements stay in float32, there and in torchao."""
WRAPPED = "__bnb_optimizer_quant_state__"
"""Under which key bitsandbytes has what it hides from torch."""

TORCHAO = {
    "8bit": ("subclass_8bit", "OptimState8bit", 256),
    "4bit": ("subclass_4bit", "OptimState4bit", 128),
    "fp8": ("subclass_fp8", "OptimStateFp8", 256),
}
"""Format -> torchao's module and class of tensors, and how many neighbours have one scale."""

HARMLESS = {"initial_accumulator_value", "lazy", "peak_lr"}
"""Options that dense steps from a state that is there do without."""


# ---- bitsandbytes ----


def from_bitsandbytes(state_dict: Mapping[str, Any], optimizer: Face) -> dict[str, Any]:
    """Return the state dict of an optimizer of bitsandbytes as one of this library.

    Parameters
    ----------
    state_dict
        Of `bitsandbytes.optim`, in 8 or 32 bits. It needs no bitsandbytes to be read.
    optimizer
        Which is to load it: of this library and of the same name. Options that bitsandbytes has not stay as they are.

    Returns
    -------
    dict
        For ``optimizer.load_state_dict``. States are float32.

    Raises
    ------
    ValueError
        If bitsandbytes has no such optimizer, or what is there is not its state.

    Notes
    -----
    Weight decay of bitsandbytes' Adam is decoupled, and so is that of the `Adam` that loads its state. Its LAMB and
    LARS in 8 bits are not here: they step as AdamW and SGD do.
    """
    method = in_bitsandbytes(optimizer)

    def options(given: Group) -> Group:
        name = BETAS[method.__name__]
        betas = given["betas"] if name == "betas" else given["betas"][0]
        known: Group = {key: given[key] for key in ("lr", "eps", "weight_decay") if key in given}
        if method.__name__ == "AdEMAMix":
            known |= {key: given[key] for key in ("alpha", "t_alpha", "t_beta3")}
        return {**known, name: betas, "decoupled_weight_decay": name == "betas"}

    def states(entry: Mapping[str, Any], group: Group) -> dict[str, Any]:
        found = {**entry, **entry.get(WRAPPED, {})}
        result: dict[str, Any] = {"step": found["step"]} if method.counts_steps else {}
        for number, names in enumerate(pairs_of_states(method, group), start=1):
            if f"state{number}" not in found:
                raise ValueError(f"state_dict: expected state{number} ({', '.join(names)}), got {sorted(found)}")
            value = found[f"state{number}"]
            if value.dtype == torch.uint8:
                value = from_blocks(value, found[f"absmax{number}"], found[f"qmap{number}"])
            result.update(zip(names, value if len(names) > 1 else [value], strict=True))
        return result

    return converted(state_dict, optimizer, options, states)


def to_bitsandbytes(optimizer: Face) -> dict[str, Any]:
    """Return the state of an optimizer as a state dict of bitsandbytes' optimizer of that name, in 8 bits.

    Parameters
    ----------
    optimizer
        Of this library, for NumPy or torch.

    Returns
    -------
    dict
        For ``load_state_dict`` there. States of less than 4096 elements are float32, as bitsandbytes has it.

    Raises
    ------
    ValueError
        If bitsandbytes has no such optimizer, or none with these options.
    """
    method = in_bitsandbytes(optimizer)
    name = BETAS[method.__name__]
    mixed = ("alpha", "t_alpha", "t_beta3") if method.__name__ == "AdEMAMix" else ()

    def options(group: Group) -> Group:
        decay = {"decoupled_weight_decay": name == "betas"} if group["weight_decay"] else {}
        refuse_others("bitsandbytes", method, group, {"lr", "eps", "weight_decay", name, *mixed}, decay)
        betas = group["betas"] if name == "betas" else (group.get(name, 0.0), 0.0)
        kept = {key: group[key] for key in ("lr", "weight_decay", *mixed)}
        return {**kept, "eps": group.get("eps", 0.0), "betas": betas}

    def states(entry: Mapping[str, Any], group: Group) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for number, names in enumerate(pairs_of_states(method, group), start=1):
            values = [plain(entry[name]) for name in names]
            whole = torch.stack(values) if len(values) > 1 else values[0]
            result[f"state{number}"] = whole
            if values[0].numel() >= LEAST:
                codes = dynamic_map(signed=number == 1)
                blocks = [to_blocks(value, codes) for value in values]
                result[f"state{number}"] = torch.stack([block for block, _ in blocks]).reshape(whole.shape)
                scales = torch.stack([scale for _, scale in blocks])
                result |= {f"absmax{number}": scales if len(values) > 1 else scales[0], f"qmap{number}": codes}
        step = int(entry["step"]) if "step" in entry else max(1, optimizer.step_count)
        return {"step": step, WRAPPED: result}

    return exported(optimizer, options, states)


def in_bitsandbytes(optimizer: Face) -> type[Method]:
    """Return the description of an optimizer; raise unless bitsandbytes steps alike."""
    method = described(optimizer)
    if method.__name__ not in BETAS:
        raise ValueError(
            f"optimizer: expected one whose rule is bitsandbytes' too, {', '.join(BETAS)}, got {method.__name__}"
        )
    return method


def pairs_of_states(method: type[Method], options: Group) -> Iterator[list[str]]:
    """Yield the names of what is in bitsandbytes' first state, and in its second: averages, then those of squares."""
    _, names = method.rule(options)
    for kind in ("moment", "square"):
        found = [name for name in names if method.states[name].kind == kind]
        if found:
            yield found


def dynamic_map(signed: bool) -> Tensor:
    """Return the 256 numbers that codes of bitsandbytes stand for (Dettmers 2016, arXiv 1511.04561).

    They are 0, 1, and in each of seven decades twice as many as in the one below: the middles of equal parts.
    """
    magnitudes = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        magnitudes.append(10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2)
    both = [*magnitudes, *(-part for part in magnitudes)] if signed else magnitudes
    return torch.cat([*both, torch.tensor([0.0, 1.0])]).sort().values


def from_blocks(codes: Tensor, scales: Tensor, values: Tensor) -> Tensor:
    """Return what codes stand for. Where they are several arrays of one shape, each begins a block."""
    rows = scales.reshape(1, -1) if scales.ndim == 1 else scales
    whole = values.float()[codes.reshape(len(rows), -1).long()]
    repeated = rows.float().repeat_interleave(BLOCK, dim=1)
    if not whole.shape[1] <= repeated.shape[1] < whole.shape[1] + BLOCK:
        raise ValueError(f"absmax: expected one for {BLOCK} of {whole.shape[1]} elements, got {rows.shape[1]}")
    return (whole * repeated[:, : whole.shape[1]]).reshape(codes.shape)


def to_blocks(array: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes of the nearest values, and the scale of each block."""
    flat = array.reshape(-1)
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    scales = blocks.abs().amax(dim=1)
    scaled = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(scaled, (values[:-1] + values[1:]) / 2).to(torch.uint8)
    return codes.reshape(-1)[: len(flat)].reshape(array.shape), scales


# ---- torchao ----


def from_torchao(state_dict: Mapping[str, Any], optimizer: Face) -> dict[str, Any]:
    """Return the state dict of an optimizer of torchao as one of this library.

    Parameters
    ----------
    state_dict
        Of `torchao.optim`, in 8 bits, 4 bits or FP8. (To read its file torchao has to be there.)
    optimizer
        Which is to load it: `Adam` or `AdamW` of this library. Options that torchao has not stay as they are.

    Returns
    -------
    dict
        For ``optimizer.load_state_dict``. States are float32.

    Raises
    ------
    ValueError
        If torchao has no such optimizer.
    """
    in_torchao(optimizer)

    def options(given: Group) -> Group:
        return {**given, "lr": float(given["lr"])}

    def states(entry: Mapping[str, Any], group: Group) -> dict[str, Any]:
        return {
            name: value.dequantize().float() if type(value) is not Tensor else value for name, value in entry.items()
        }

    return converted(state_dict, optimizer, options, states)


def to_torchao(optimizer: Face, storage: str = "8bit") -> dict[str, Any]:
    """Return the state of an optimizer as a state dict of torchao's optimizer of that name.

    Parameters
    ----------
    optimizer
        `Adam` or `AdamW` of this library, for NumPy or torch.
    storage
        "8bit", "4bit" or "fp8", as in the name of torchao's class.

    Returns
    -------
    dict
        For ``load_state_dict`` there. States of less than 4096 elements, or that blocks do not go into, are float32, as
        torchao has it.

    Raises
    ------
    ImportError
        If torchao is not there.
    ValueError
        If torchao has no such optimizer, or none with these options.
    """
    method = in_torchao(optimizer)
    if storage not in TORCHAO:
        raise ValueError(f"storage: expected one of {tuple(TORCHAO)}, got {storage!r}")
    module, name, block = TORCHAO[storage]
    coded = getattr(import_module(f"torchao.optim.{module}"), name)

    def options(group: Group) -> Group:
        kept = {key: group[key] for key in ("betas", "eps", "weight_decay", "amsgrad")}
        decay = {"decoupled_weight_decay": method.__name__ == "AdamW"} if group["weight_decay"] else {}
        refuse_others("torchao", method, group, {"lr", *kept}, decay)
        return {**kept, "lr": torch.tensor(float(group["lr"]))}

    def states(entry: Mapping[str, Any], group: Group) -> dict[str, Any]:
        result: dict[str, Any] = {"step": torch.tensor(float(entry["step"]))}
        for key in method.rule(group)[1]:
            value = plain(entry[key])
            if value.numel() >= LEAST and value.numel() % block == 0:
                signs = {} if storage == "fp8" else {"signed": method.states[key].kind == "moment"}
                value = coded.zeros(value.shape, block_size=block, **signs).copy_(value)
            result[key] = value
        return result

    return exported(optimizer, options, states)


def in_torchao(optimizer: Face) -> type[Method]:
    """Return the description of an optimizer; raise unless torchao has it too."""
    method = described(optimizer)
    if method.__name__ not in ("Adam", "AdamW"):
        raise ValueError(f"optimizer: expected one that torchao has, Adam or AdamW, got {method.__name__}")
    return method


# ---- both ----


def described(optimizer: Face) -> type[Method]:
    """Return the description of an optimizer of this library."""
    if not isinstance(optimizer, Face):
        raise TypeError(f"optimizer: expected one of fastopt or fastopt.torch, got {type(optimizer).__name__}")
    return optimizer.method


def refuse_others(
    library: str, method: type[Method], options: Group, known: Set[str], wanted: Mapping[str, Any]
) -> None:
    """Raise `ValueError` if an option that a library does not know is not what it does without being asked."""
    defaults = {**method.defaults(), **wanted}
    for name in method.options.keys() - known - HARMLESS:
        decay = name == "decoupled_weight_decay" and name not in wanted
        if options[name] != defaults[name] and not decay:
            raise ValueError(f"{library}'s {method.__name__} has no {name}={options[name]!r}")


def converted(
    state_dict: Mapping[str, Any],
    optimizer: Face,
    options: Callable[[Group], Group],
    states: Callable[[Mapping[str, Any], Group], dict[str, Any]],
) -> dict[str, Any]:
    """Return a state dict with the options of each group and the states of each parameter as they are called here."""
    given = state_dict["param_groups"]
    if len(given) != len(optimizer.param_groups):
        raise ValueError(f"state_dict: expected {len(optimizer.param_groups)} parameter groups, got {len(given)}")
    groups = []
    for own, group in zip(optimizer.param_groups, given, strict=True):
        known = {name: value for name, value in options(group).items() if name in optimizer.method.options}
        groups.append({**own, **known, "params": list(group["params"])})
    owners = {index: group for group in groups for index in group["params"]}
    strangers = state_dict["state"].keys() - owners.keys()
    if strangers:
        raise ValueError(f"state_dict: state for unknown parameters {sorted(strangers, key=str)}")
    found = {index: states(entry, owners[index]) for index, entry in state_dict["state"].items()}
    return {"state": found, "param_groups": groups}


def exported(
    optimizer: Face,
    options: Callable[[Group], Group],
    states: Callable[[Mapping[str, Any], Group], dict[str, Any]],
) -> dict[str, Any]:
    """Return a state dict with the options of each group and the states of each parameter as they are called there."""
    method, whole = optimizer.method, cast(Any, optimizer)  # (the faces' `state_dict` differ)
    state_dict = whole.state_dict()
    found, groups = {}, []
    for group in state_dict["param_groups"]:
        values = method.at(group, optimizer.step_count)
        groups.append({**options(values), "params": list(group["params"])})
        for index in group["params"]:
            if index in state_dict["state"]:
                found[index] = states(state_dict["state"][index], values)
    return {"state": found, "param_groups": groups}


def plain(value: Any) -> Tensor:
    """Return a state as a tensor of float32 of its own, row after row."""
    if isinstance(value, np.ndarray):
        half = value.dtype.itemsize == 2 and value.dtype != np.float16  # bfloat16, of ml_dtypes or its bits
        value = torch.tensor(value.view(np.int16)).view(torch.bfloat16) if half else torch.tensor(value)
    return torch.clone(value.detach().float(), memory_format=torch.contiguous_format)
