"""Checkpoints come back bit for bit, are whole or not there, and say what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import MAKERS
from safetensors import safe_open
from safetensors.numpy import save_file

import fastopt
from fastopt.training.checkpoint import Checkpoint, pack, unpack
from fastopt.training.errors import TrainingError

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "momentum": {"momentum": 0.9, "nesterov": True},
    **{name: {} for name in MAKERS if name != "SGD"},
}


def new(name: str, dtype: str) -> tuple[dict[str, np.ndarray], fastopt.Optimizer]:
    parameters = {"layers.0.weight": np.ones((3, 2), dtype), "layers.0.bias": np.ones(3, dtype)}
    make = fastopt.optimizers.registry().get(name, fastopt.SGD)
    lr = fastopt.schedules.cosine(0.1, total=10)
    return parameters, make(parameters, lr=lr, **OPTIMIZERS[name])


def advance(parameters: dict[str, np.ndarray], optimizer: fastopt.Optimizer, steps: range) -> None:
    for step in steps:
        random = np.random.default_rng(step)
        optimizer.step({name: random.normal(size=p.shape).astype(p.dtype) for name, p in parameters.items()})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("saved_after", [0, 1, 4])
def test_continues_to_the_same_bits(tmp_path: Path, name: str, dtype: str, saved_after: int) -> None:
    parameters, optimizer = new(name, dtype)
    advance(parameters, optimizer, range(saved_after))
    pack(parameters, optimizer).save(tmp_path / "c.safetensors")
    advance(parameters, optimizer, range(saved_after, 8))

    resumed, other = new(name, dtype)
    unpack(Checkpoint.load(tmp_path / "c.safetensors"), resumed, other)
    assert other.step_count == saved_after
    advance(resumed, other, range(saved_after, 8))
    for key, values in parameters.items():
        np.testing.assert_array_equal(resumed[key], values)


def test_file_is_plain_safetensors_with_json(tmp_path: Path) -> None:
    parameters, optimizer = new("AdamW", "float32")
    advance(parameters, optimizer, range(3))
    pack(parameters, optimizer).save(tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", framework="numpy") as file:
        names = ["param.{}", "state.{}.exp_avg", "state.{}.exp_avg_sq"]
        assert set(file.keys()) == {name.format(key) for key in parameters for name in names}
        np.testing.assert_array_equal(file.get_tensor("param.layers.0.bias"), parameters["layers.0.bias"])
        metadata = json.loads(file.metadata()["fastopt"])
    assert metadata["step"] == 3
    assert metadata["state"] == {key: {"step": 3} for key in parameters}
    assert metadata["param_groups"][0]["lr"] == "cosine(peak=0.1, total=10, floor=0.0)"
    assert metadata["param_groups"][0]["betas"] == [0.9, 0.999]


def test_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for file in ("a", "b"):
        parameters, optimizer = new("Adam", "float64")
        advance(parameters, optimizer, range(3))
        pack(parameters, optimizer).save(tmp_path / file)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", (8).to_bytes(8, "little") + b"{}      "])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(TrainingError, match=r"there is no checkpoint .*c\.safetensors: nothing to resume"):
        Checkpoint.load(path)
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"c\.safetensors is not a checkpoint of fastopt train, or is damaged"):
        Checkpoint.load(path)


def test_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    pack(*new("AdamW", "float32")).save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TrainingError, match="damaged"):
        Checkpoint.load(path)


def test_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    saved = pack(*new("AdamW", "float32"))
    save_file(dict(saved.tensors), path, metadata={"fastopt": json.dumps(saved.metadata)})
    loaded = Checkpoint.load(path)
    assert loaded.metadata == json.loads(json.dumps(saved.metadata))
    assert loaded.checksum == saved.checksum


def test_what_a_file_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    Checkpoint({}, {"step": "3"}).save(path)
    for name, found in (("epoch", "None"), ("step", "'3'")):
        with pytest.raises(TrainingError, match=rf"c\.safetensors is not a .*expected int '{name}', got {found}"):
            Checkpoint.load(path, {name: int})


def test_a_full_disk_takes_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "c.safetensors"
    parameters, optimizer = new("AdamW", "float64")
    pack(parameters, optimizer).save(path)
    before = path.read_bytes()
    advance(parameters, optimizer, range(3))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"c\.safetensors could not be written: .*File too large") as raised:
            pack(parameters, optimizer).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
