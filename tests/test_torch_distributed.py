"""Two processes over gloo, to the bits of one: ZeroRedundancyOptimizer under DDP, FSDP2 on a CPU mesh, checkpoints."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available():
    pytest.skip("this torch was built without torch.distributed", allow_module_level=True)

import torch_distributed_checks as checks  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor  # noqa: E402
from torch_cases import NAMES, assert_equal, knows_rows, nonzero, ours  # noqa: E402

import fastopt.torch  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """All of `torch_distributed_checks`; the checkpoints go from one process to two and back."""
    checks.train_in_one_process(tmp_path)
    torch.multiprocessing.spawn(checks.run, args=(tmp_path,), nprocs=checks.WORLD)
    checks.check_in_one_process(tmp_path)


def test_the_example_runs_under_torchrun() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*command, str(EXAMPLES / "torch_distributed.py")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "ZeroRedundancyOptimizer" in run.stdout
    assert "fully_shard" in run.stdout


# ---- DTensors in one process ----


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()])
@pytest.mark.parametrize("name", [name for name in NAMES if not knows_rows(name)])
def test_sharded_tensors_step_as_their_parts_do(name: str, placement: Any, mesh: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [nonzero((6, 4), torch.float32, generator) for _ in range(2)]
    params = [torch.nn.Parameter(distribute_tensor(value.clone(), mesh, [placement])) for value in values]
    twins = [value.clone().requires_grad_() for value in values]
    opt, other = ours(name)(params, lr=0.1, clip_value=0.5), ours(name)(twins, lr=0.1, clip_value=0.5)
    for step in range(4):
        for param, twin in zip(params, twins, strict=True):
            twin.grad = nonzero((6, 4), torch.float32, generator)
            grad = distribute_tensor(twin.grad, mesh, [placement])
            # (A gradient may come in another placement.)
            param.grad = grad.redistribute(placements=[Replicate()]) if step == 1 else grad
        if step == 2:
            params[0].grad = twins[0].grad = None
        opt.step()
        other.step()
    assert_equal([param.full_tensor().detach() for param in params], [twin.detach() for twin in twins])
    for param, twin in zip(params, twins, strict=True):
        for key, state in opt.state[param].items():
            assert isinstance(state, DTensor) == (state.ndim > 0)
            assert_equal(state.full_tensor() if isinstance(state, DTensor) else state, other.state[twin][key])


def test_what_is_replaced_on_sharded_tensors_counts(mesh: Any) -> None:
    param = torch.nn.Parameter(distribute_tensor(torch.zeros(4), mesh, [Shard(0)]))
    opt = fastopt.torch.SGD([param], lr=1.0, momentum=0.5)
    param.grad = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    opt.step()
    opt.state[param]["momentum_buffer"] = distribute_tensor(torch.full((4,), 4.0), mesh, [Shard(0)])
    opt.step()
    assert param.full_tensor().tolist() == [-4.0] * 4
    opt.state[param]["momentum_buffer"].mul_(0)
    param.to_local().data.fill_(1.0)
    opt.step()
    assert param.full_tensor().tolist() == [0.0] * 4


def test_a_gradient_that_is_not_finite_on_a_shard_is_named(mesh: Any) -> None:
    param = torch.nn.Parameter(distribute_tensor(torch.zeros(4), mesh, [Shard(0)]))
    opt = fastopt.torch.SGD([("w", param)], nonfinite="raise")
    param.grad = distribute_tensor(torch.tensor([1.0, float("nan"), 0.0, 0.0]), mesh, [Shard(0)])
    with pytest.raises(FloatingPointError, match=r"^not finite: gradient of parameter 'w'$"):
        opt.step()
    assert not param.full_tensor().any()


@pytest.mark.parametrize("master", [None, "split"])
def test_the_host_steps_the_parts_of_sharded_tensors(master: Any, mesh: Any) -> None:
    values = torch.linspace(-1, 1, 24, dtype=torch.bfloat16).reshape(6, 4)
    param = torch.nn.Parameter(distribute_tensor(values.clone(), mesh, [Shard(0)]))
    twin = values.clone().requires_grad_()
    options: dict[str, Any] = {"lr": 0.1, "clip_norm": 1.0, "state_dtype": "float32"}
    opt = fastopt.torch.Offload([param], fastopt.torch.AdamW, master=master, **options)
    plain = fastopt.torch.AdamW([twin], master=master or "float32", **options)
    for step in range(4):
        twin.grad = (values + step).clone()
        param.grad = distribute_tensor(twin.grad, mesh, [Shard(0)])
        opt.step()
        opt.zero_grad()
        plain.step()
        assert_equal(param.full_tensor().detach(), twin.detach())


@pytest.mark.parametrize(("name", "options"), [("LAMB", {}), ("Adafactor", {}), ("AdamW", {"cautious": True})])
def test_the_host_cannot_sum_over_parts(name: str, options: dict[str, Any], mesh: Any) -> None:
    param = torch.nn.Parameter(distribute_tensor(torch.ones(6, 4), mesh, [Shard(0)]))
    with pytest.raises(ValueError, match=r"parameter 'w': is sharded among processes, but what .* depends on sums"):
        fastopt.torch.Offload([("w", param)], ours(name), **options)


def test_autograd_notices_steps_of_sharded_parameters(mesh: Any) -> None:
    param = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    loss = (param**2).sum()
    opt = fastopt.torch.SGD([param])
    param.grad = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    opt.step()
    with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
        loss.backward()
