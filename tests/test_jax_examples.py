"""The examples for JAX's users run, and learn."""

import json
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

jax = pytest.importorskip("jax")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("library", ["flax", "equinox"])
def test_the_loss_falls(library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    train: Any = runpy.run_path(str(EXAMPLES / f"jax_{library}.py"))["train"]
    losses = train()
    assert losses[-1] < losses[0] / 10


SHARDED = """
import json, runpy, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
example = runpy.run_path(sys.argv[1])
example["train"].__globals__.update(DEVICES=int(sys.argv[2]), STEPS=40)
losses, params = example["train"]()
print(json.dumps([losses, len(params["hidden"].addressable_shards), params["hidden"].ravel().tolist()]))
"""


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="this JAX has no jax.shard_map")
def test_two_devices_learn_what_one_does() -> None:
    found = []
    for devices in (1, 2):  # (in processes of their own: their number is fixed once JAX has looked for them)
        command = [sys.executable, "-c", SHARDED, str(EXAMPLES / "jax_sharded.py"), str(devices)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        losses, shards, params = json.loads(run.stdout)
        assert shards == devices
        assert losses[-1] < losses[0] / 10
        found.append(params)
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-4)
