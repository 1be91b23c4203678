"""What two processes check of fastopt.torch; each check is called in both, with the rank."""

import gc
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import StepLR
from torch_cases import assert_equal, nonzero

import fastopt.torch
from fastopt.schedules import linear
from fastopt.torch import SGD, Adagrad, Adam, AdamW, RMSprop

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.* is deprecated", DeprecationWarning)
    from torch.distributed.optim import ZeroRedundancyOptimizer  # (its package uses what torch deprecates)

dist: Any = torch.distributed
dcp: Any = torch.distributed.checkpoint

WORLD = 2

SCHEDULE = linear(start=0.1, end=0.0, total=10)

OPTIMIZERS: list[tuple[type[fastopt.torch.Optimizer], dict[str, Any]]] = [
    (SGD, {"momentum": 0.9, "nesterov": True}),
    (Adagrad, {"lr_decay": 0.1}),
    (RMSprop, {"momentum": 0.9, "centered": True}),
    (Adam, {"amsgrad": True, "weight_decay": 0.1}),
    (AdamW, {}),
]


def make_model() -> nn.Module:
    """Layers that two processes cannot share evenly: of the last one, the second gets nothing."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1))


def batches(rank: int, count: int) -> Iterator[Tensor]:
    """Other data in each process."""
    generator = torch.Generator().manual_seed(rank)
    return iter([nonzero((6, 4), torch.float32, generator) for _ in range(count)])


def whole(tensor: Tensor | None) -> Tensor | None:
    """Return a copy of all of a tensor, wherever its parts are."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor().detach().clone()
    return None if tensor is None else tensor.detach().clone()


class Reference:
    """One process that steps a model of its own with the gradients of the others."""

    def __init__(self, model: nn.Module, cls: type[fastopt.torch.Optimizer], **options: Any) -> None:
        self.params = [nn.Parameter(value) for value in map(whole, model.parameters()) if value is not None]
        self.opt = cls(self.params, **options)
        self.scheduler = StepLR(self.opt, 2, 0.1)

    def step(self, model: nn.Module) -> None:
        for param, sharded in zip(self.params, model.parameters(), strict=True):
            param.grad = whole(sharded.grad)
        self.opt.step()
        self.scheduler.step()

    def assert_equals(self, model: nn.Module) -> None:
        assert_equal(list(map(whole, model.parameters())), [param.detach() for param in self.params])


def resumed(scheduler: StepLR, opt: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> StepLR:
    """A scheduler like another for an optimizer that goes on where these groups are; a new one sets the first rate."""
    new = StepLR(opt, 2, 0.1)
    new.load_state_dict(scheduler.state_dict())
    for group, other in zip(opt.param_groups, groups, strict=True):
        group["lr"] = other["lr"]
    return new


def check_zero_redundancy(rank: int, path: Path) -> None:
    """ZeroRedundancyOptimizer under DDP: steps, schedulers, a checkpoint; to the bits of one process."""
    for cls, options in OPTIMIZERS:
        model = DistributedDataParallel(make_model())
        reference = Reference(model, cls, lr=0.1, **options)

        def make_optimizer(model: nn.Module, cls: Any = cls, options: Any = options) -> Any:
            return ZeroRedundancyOptimizer(model.parameters(), optimizer_class=cls, lr=0.1, **options)

        opt = make_optimizer(model)
        scheduler = StepLR(opt, 2, 0.1)
        for step, x in enumerate(batches(rank, 5)):
            if step == 3:
                opt.consolidate_state_dict(to=0)
                checkpoint: list[Any] = [opt.state_dict() if rank == 0 else None]
                dist.broadcast_object_list(checkpoint, src=0)
                opt = make_optimizer(model)
                opt.load_state_dict(checkpoint[0])
                scheduler = resumed(scheduler, opt, checkpoint[0]["param_groups"])
            opt.zero_grad()
            model(x).square().mean().backward()
            reference.step(model)
            opt.step()
            scheduler.step()
            reference.assert_equals(model)
        assert isinstance(opt.optim, cls)


def check_zero_redundancy_in_buckets(rank: int, path: Path) -> None:
    """ZeroRedundancyOptimizer puts the parameters into buffers of its own; groups, one of them added; closures."""
    model = DistributedDataParallel(make_model())
    first, *others, last = model.parameters()
    opt = ZeroRedundancyOptimizer(
        [{"params": [first]}, {"params": others, "lr": 0.05}], AdamW, parameters_as_bucket_view=True, lr=0.1
    )
    opt.add_param_group({"params": [last], "weight_decay": 0.5})
    twins = [nn.Parameter(param.detach().clone()) for param in model.parameters()]
    groups: list[dict[str, Any]] = [{"params": twins[:1]}, {"params": twins[1:-1], "lr": 0.05}]
    expected = AdamW(groups, lr=0.1)
    expected.add_param_group({"params": twins[-1:], "weight_decay": 0.5})
    for x in batches(rank, 4):

        def closure(x: Tensor = x) -> float:
            opt.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            for twin, param in zip(twins, model.parameters(), strict=True):
                twin.grad = whole(param.grad)
            return float(loss)

        assert opt.step(closure) is not None
        expected.step()
        assert_equal(list(map(whole, model.parameters())), [twin.detach() for twin in twins])


def check_more_processes_than_parameters(rank: int, path: Path) -> None:
    """A process may get no parameters at all."""
    model = DistributedDataParallel(nn.Linear(2, 1, bias=False))
    reference = Reference(model, AdamW, lr=0.1)
    opt = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=AdamW, lr=0.1)
    for _ in range(3):
        opt.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        reference.step(model)
        opt.step()
        for group in opt.param_groups:
            group["lr"] = reference.opt.param_groups[0]["lr"]
        reference.assert_equals(model)


def sharded_model() -> Any:
    model = make_model()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def save(model: nn.Module, opt: torch.optim.Optimizer, place: Path) -> None:
    """Save through torch.distributed.checkpoint, from any number of processes."""
    model_state, opt_state = get_state_dict(model, opt)
    dcp.save({"model": model_state, "opt": opt_state}, checkpoint_id=place)


def load(model: nn.Module, opt: torch.optim.Optimizer, place: Path) -> None:
    model_state, opt_state = get_state_dict(model, opt)
    loaded: Any = {"model": model_state, "opt": opt_state}
    dcp.load(loaded, checkpoint_id=place)
    set_state_dict(model, opt, model_state_dict=loaded["model"], optim_state_dict=loaded["opt"])


def check_fully_shard(rank: int, path: Path) -> None:
    """FSDP2 on a CPU mesh: steps, schedulers, a checkpoint through torch.distributed.checkpoint; to the same bits."""
    for cls, options in OPTIMIZERS:
        model = sharded_model()
        shards = [param.to_local().numel() for param in model.parameters() if isinstance(param, DTensor)]
        assert 0 in shards or rank == 0
        reference = Reference(model, cls, lr=0.1, **options)
        opt = cls(model.parameters(), lr=0.1, **options)
        scheduler = StepLR(opt, 2, 0.1)
        for step, x in enumerate(batches(rank, 5)):
            if step == 3:
                save(model, opt, path / cls.__name__)
                model = sharded_model()
                opt = cls(model.parameters(), lr=0.5, **options)
                load(model, opt, path / cls.__name__)
                scheduler = resumed(scheduler, opt, reference.opt.param_groups)
            opt.zero_grad()
            model(x).square().mean().backward()
            reference.step(model)
            opt.step()
            scheduler.step()
            reference.assert_equals(model)
        state = opt.state[next(model.parameters())]
        assert all(isinstance(value, DTensor) for name, value in state.items() if name != "step")


def train_in_one_process(path: Path) -> None:
    """Write what `check_resharding` goes on from: as a checkpoint, and the optimizer's state as it is."""
    model = make_model()
    opt = AdamW(model.parameters(), lr=SCHEDULE)
    for x in batches(0, 3):
        opt.zero_grad()
        model(x).square().mean().backward()
        opt.step()
    save(model, opt, path / "of one process")
    torch.save(opt.state_dict(), path / "of one process.pt")


def check_resharding(rank: int, path: Path) -> None:
    """What one process has saved goes on in two; they save it for `check_in_one_process`."""
    model = sharded_model()
    opt = AdamW(model.parameters(), lr=SCHEDULE)
    load(model, opt, path / "of one process")
    twins = [nn.Parameter(value) for value in map(whole, model.parameters()) if value is not None]
    expected = AdamW(twins, lr=SCHEDULE)
    expected.load_state_dict(torch.load(path / "of one process.pt"))
    for x in batches(rank, 3):
        opt.zero_grad()
        model(x).square().mean().backward()
        for twin, param in zip(twins, model.parameters(), strict=True):
            twin.grad = whole(param.grad)
        opt.step()
        expected.step()
    assert opt.step_count == expected.step_count == 6
    assert_equal(list(map(whole, model.parameters())), [twin.detach() for twin in twins])
    save(model, opt, path / "of two processes")
    if rank == 0:
        torch.save((twins, expected.state_dict()), path / "of two processes.pt")


def check_in_one_process(path: Path) -> None:
    model = make_model()
    opt = AdamW(model.parameters(), lr=SCHEDULE)
    load(model, opt, path / "of two processes")
    twins, expected = torch.load(path / "of two processes.pt")
    assert_equal(list(model.parameters()), twins)
    assert_equal(opt.state_dict()["state"], expected["state"])
    assert opt.step_count == expected["step_count"]


def check_options_beyond_torch_on_shards(rank: int, path: Path) -> None:
    """The norm is that of all gradients of all processes; either all of them skip a step or none."""
    model = sharded_model()
    reference = Reference(model, AdamW, lr=0.1, clip_norm=0.01, nonfinite="skip")
    opt = AdamW(model.parameters(), lr=0.1, clip_norm=0.01, nonfinite="skip", zero_grad_in_step=True)
    for step, x in enumerate(batches(rank, 5)):
        loss = model(x).square().mean()
        (loss * math.inf if step == 2 and rank == 1 else loss).backward()
        reference.step(model)
        opt.step()
        for group, other in zip(opt.param_groups, reference.opt.param_groups, strict=True):
            group["lr"] = other["lr"]
        mine, expected = opt.last_step, reference.opt.last_step
        assert mine is not None
        assert expected is not None
        assert mine.skipped == expected.skipped == (step == 2)
        if step != 2:
            assert mine.clipped
            torch.testing.assert_close(mine.grad_norm, expected.grad_norm, rtol=1e-6, atol=0)
        assert not any(
            grad.any() for grad in map(whole, (param.grad for param in model.parameters())) if grad is not None
        )
    for param, twin in zip(model.parameters(), reference.params, strict=True):
        torch.testing.assert_close(whole(param), twin.detach(), rtol=1e-5, atol=1e-6)


def check_step_in_backward_on_shards(rank: int, path: Path) -> None:
    results = []
    for in_backward in (False, True):
        model = sharded_model()
        opt = AdamW(model.parameters(), lr=0.1)
        if in_backward:
            fastopt.torch.step_in_backward(opt)
        for x in batches(rank, 3):
            opt.zero_grad()
            model(x).square().mean().backward()
            assert all((param.grad is None) == in_backward for param in model.parameters())
            opt.step()
        results.append(list(map(whole, model.parameters())))
    assert_equal(results[1], results[0])


def check_clipping_of_shards(rank: int, path: Path) -> None:
    """clip_grad_norm_ leaves sharded gradients to torch, also those of a generator."""
    norms = []
    for module in (fastopt.torch, torch.nn.utils):
        model = sharded_model()
        model(next(batches(rank, 1))).square().mean().backward()
        norm = module.clip_grad_norm_(model.parameters(), 1e-3)
        norms.append((whole(norm), [whole(param.grad) for param in model.parameters()]))
    assert_equal(norms[0], norms[1])
    (_, grads) = norms[0]
    assert torch.nn.utils.get_total_norm([grad for grad in grads if grad is not None]) < 1.1e-3


CHECKS: list[Callable[[int, Path], None]] = [
    check_zero_redundancy,
    check_zero_redundancy_in_buckets,
    check_more_processes_than_parameters,
    check_fully_shard,
    check_resharding,
    check_options_beyond_torch_on_shards,
    check_step_in_backward_on_shards,
    check_clipping_of_shards,
]


def run(rank: int, path: Path) -> None:
    """Run all checks in one of the processes."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(path / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    try:
        for check in CHECKS:
            check(rank, path)
            dist.barrier()
    finally:
        gc.collect()  # models in reference cycles would keep the group's threads running into the interpreter's end
        dist.destroy_process_group()
