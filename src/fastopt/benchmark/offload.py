"""Training steps on an accelerator with the optimizer on the host, against what else does that.

Needs torch with CUDA. All contestants train a model of their own, alike, and take turns.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastopt
from fastopt import _core
from fastopt.torch import AdamW, Offload
from fastopt.torch.hosted import in_chunks

WIDTH, LAYERS, HEADS, BATCH, LENGTH = 2048, 24, 16, 8, 1024
"""1.21G parameters; 8192 tokens a step."""

MEGABYTES = 2**20


class Block(nn.Module):
    """A layer of a transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.project = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Attend to what is before, then transform each place."""
        batch, length, width = x.shape
        several = self.project(self.norms[0](x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = several.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.perceptron(self.norms[1](x))  # type: ignore[no-any-return]


class Trained:
    """A model, and what is fed to it."""

    def __init__(self, layers: int = LAYERS, width: int = WIDTH, length: int = LENGTH) -> None:
        torch.manual_seed(0)
        with torch.device("cuda"):
            self.model = nn.Sequential(*(Block(width, HEADS) for _ in range(layers))).to(torch.bfloat16)
            self.x = torch.randn(BATCH, length, width, dtype=torch.bfloat16)
        self.params = list(self.model.parameters())

    def forward(self) -> Tensor:
        """Return the loss."""
        return self.model(self.x).float().square().mean()  # type: ignore[no-any-return]

    def backward(self) -> None:
        """Compute the gradients."""
        self.forward().backward()  # type: ignore[no-untyped-call]


class Contestant(NamedTuple):
    """A way to take a whole training step."""

    step: Callable[[], object]
    trained: Trained
    before: Callable[[], object] = int
    """Is called before its turn."""


class Watched:
    """Notes when the host steps, and how long."""

    def __init__(self, opt: Offload) -> None:
        self.spans: list[tuple[float, float]] = []
        self.inner = opt._step_some
        opt._step_some = self  # type: ignore[method-assign, assignment]

    def __call__(self, *args: Any) -> None:
        """Step."""
        start = time.perf_counter()
        self.inner(*args)
        self.spans.append((start, time.perf_counter()))

    def busy(self) -> float:
        """Return for how long the host stepped since the last call."""
        seconds = sum(end - start for start, end in self.spans)
        self.spans.clear()
        return seconds


def trainer(trained: Trained, optimizer: Any) -> Callable[[], None]:
    """Return a training step."""

    def step() -> None:
        trained.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def free(trained: Trained) -> None:
    """Compute gradients, and use them for nothing."""
    trained.backward()
    for param in trained.params:
        param.grad = None


def seconds(call: Callable[[], object]) -> float:
    """Return how long something takes, with all that it asks the device for."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(call: Callable[[], object]) -> float:
    """Return how much more memory of the device something needs on its way, in MB."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MEGABYTES


def floor_bandwidth(elements: int = 2**28) -> float:
    """Return the bytes a second that the floor of AdamW in float32 moves from and to memory: 28 an element."""
    param, grad, *states = [torch.zeros(elements) for _ in range(4)]
    plan = _core.Plan([0], 1)
    places = [(array.data_ptr(), _core.STORAGES["float32"]) for array in (param, grad, *states)]
    plan.bind(0, "floor2", elements, places[0], places[2:])
    plan.set_gradient(0, places[1])
    threads = torch.get_num_threads()
    run = partial(plan.step, threads, [], 1.0, math.inf, math.inf, False, "propagate", False, 0.0, [], [], None)
    return 28 * elements / min(seconds(run) for _ in range(8))


def link_bandwidth(down: bool, size: int = 2**28) -> float:
    """Return the bytes a second that can be copied one way."""
    there = torch.empty(size, dtype=torch.uint8, device="cuda")
    here = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    copy = partial(here.copy_ if down else there.copy_, there if down else here, non_blocking=True)
    return size / min(seconds(copy) for _ in range(5))


def host_step(opt: Offload) -> Callable[[], object]:
    """Return the host's part alone: all masters stepped, no copies to or from the device."""
    for one in opt._hosted:
        one.landing.fill_(1e-3)  # (the copies have taken the gradients' place)
    chunks = [*in_chunks(piece for one in opt._hosted for piece in one.pieces(opt._engine))]

    def step() -> None:
        for pieces in chunks:
            opt._engine.step_pieces(pieces, 1.0)

    return lambda: opt._worker.submit(step).result()  # in the thread whose threads are warm


def check_bits() -> None:
    """Raise unless the device's parameters are, after some steps, those of the plain optimizer, rounded."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for clip_norm in (None, 0.5):
            torch.manual_seed(0)
            layers = [nn.Linear(512, 512) if k % 2 == 0 else nn.Tanh() for k in range(40)]
            model = nn.Sequential(*layers).to("cuda", dtype)
            params = list(model.parameters())
            masters = [param.detach().cpu().float().clone().requires_grad_() for param in params]
            plain = AdamW(masters, lr=0.01, clip_norm=clip_norm)
            taken: dict[Tensor, Tensor] = {}
            for param in params:
                param.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda param, taken=taken: taken.update({param: param.grad.clone()})
                )
            opt = Offload(params, AdamW, in_backward=True, lr=0.01, clip_norm=clip_norm)
            for _ in range(5):
                model(torch.randn(64, 512, device="cuda", dtype=dtype)).float().square().sum().backward()
                opt.step()
                for param, master in zip(params, masters, strict=True):
                    master.grad = taken[param].cpu().float()
                plain.step()
                for param, master in zip(params, masters, strict=True):
                    if not torch.equal(param.detach().cpu(), master.detach().to(dtype)):
                        raise AssertionError(f"other bits than the plain optimizer's: {dtype}, clip_norm={clip_norm}")


def contestants(failures: list[str]) -> tuple[dict[str, Contestant], dict[str, Any]]:
    """Return all that can take part."""
    found: dict[str, Contestant] = {}
    ours: dict[str, Any] = {}
    first = Trained()
    found["forward"] = Contestant(first.forward, first)
    found["forward + backward"] = Contestant(partial(free, first), first)

    def clip(opt: Offload, norm: float | None) -> None:
        for group in opt.param_groups:
            group["clip_norm"] = norm

    for state_dtype, master in (("float32", None), ("bfloat16", None), ("8bit", None), ("8bit", "split")):
        trained = Trained()
        opt = Offload(trained.params, AdamW, lr=1e-5, state_dtype=state_dtype, master=master)
        name = f"{state_dtype}, {master}" if master else state_dtype
        ours[name] = opt
        step = trainer(trained, opt)
        found[f"Offload, {name} states"] = Contestant(step, trained, partial(clip, opt, None))
        if name == "float32":
            found["Offload, float32 states, clip_norm"] = Contestant(step, trained, partial(clip, opt, 1.0))
    try:
        from torchao.optim import CPUOffloadOptimizer
    except ImportError as error:
        failures.append(f"torchao: {error}")
        return found, ours
    for name, inner, options in (
        ("torchao, torch fused, all bfloat16", torch.optim.AdamW, {"fused": True}),
        ("torchao, fastopt inside, all bfloat16", AdamW, {"minimal_size": 0}),
    ):
        try:
            trained = Trained()
            rival = CPUOffloadOptimizer(trained.params, inner, offload_gradients=True, lr=1e-5, **options)
            found[name] = Contestant(trainer(trained, rival), trained)
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
    return found, ours


def measure(rounds: int = 9, say: Callable[[str], object] = print) -> dict[str, Any]:
    """Return all figures: times in seconds, memory in MB, bandwidths in bytes a second."""
    failures: list[str] = []
    check_bits()
    say("bits: those of the plain optimizer on float32 masters, in bfloat16, float16 and float32, clipped and not")
    bandwidth = {"host floor": floor_bandwidth(), "down": link_bandwidth(True), "up": link_bandwidth(False)}
    say("bandwidth: " + ", ".join(f"{name} {value / 1e9:.0f} GB/s" for name, value in bandwidth.items()))
    found, ours = contestants(failures)
    watched = {name: Watched(opt) for name, opt in ours.items()}
    times: dict[str, list[float]] = {name: [] for name in found}
    busy: dict[str, list[float]] = {name: [] for name in found}
    memory: dict[str, float] = {}
    for turn in range(rounds + 2):
        for name, contestant in list(found.items()):
            contestant.before()
            try:
                if turn == 1:
                    memory[name] = peak(contestant.step)
                    continue
                took = seconds(contestant.step)
            except Exception as error:
                failures.append(f"{name}: {type(error).__name__}: {error}")
                del found[name], times[name]
                continue
            stepped = sum(one.busy() for one in watched.values())
            if turn:
                times[name].append(took)
                busy[name].append(stepped)
    elements = sum(param.numel() for param in found["forward"].trained.params)
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "fastopt": fastopt.info(),
        "threads": torch.get_num_threads(),
        "elements": elements,
        "bandwidth": bandwidth,
        "times": times,
        "host_busy": {name: median(some) for name, some in busy.items() if name in times and any(some)},
        "memory": memory,
        "failures": failures,
        "threads_times": {},
        "host_step": {},
    }
    say("threads of the host's step")
    opt_name = "Offload, float32 states"
    for threads in sorted({max(1, torch.get_num_threads() * part // 8) for part in (4, 6, 7, 8)}):
        fastopt.set_num_threads(threads)
        found[opt_name].before()
        found[opt_name].step()
        results["threads_times"][threads] = [seconds(found[opt_name].step) for _ in range(3)]
    fastopt.set_num_threads(None)
    for name, opt in ours.items():
        if opt._staged:  # (has nothing to step without the device)
            continue
        call = host_step(opt)
        call()
        results["host_step"][name] = min(seconds(call) for _ in range(5))
    del found, ours
    gc.collect()
    return results


def table(results: dict[str, Any]) -> str:
    """Return what was measured, and what the targets say."""
    middle = {name: median(some) for name, some in results["times"].items()}
    forward, both = middle["forward"], middle["forward + backward"]
    floor = results["bandwidth"]["host floor"]
    lines = [
        f"{results['device']}, torch {results['torch']}, {results['threads']} threads, "
        f"{results['elements'] / 1e9:.2f}G parameters in bfloat16, batch {BATCH} x {LENGTH}",
        ", ".join(f"{name} {value / 1e9:.0f} GB/s" for name, value in results["bandwidth"].items()),
        "",
        f"{'':42s} {'median':>8s} {'least':>8s} {'host':>8s} {'memory':>9s}",
    ]
    for name, some in results["times"].items():
        host = results["host_busy"].get(name)
        lines.append(
            f"{name:42s} {median(some) * 1e3:5.0f} ms {min(some) * 1e3:5.0f} ms "
            f"{f'{host * 1e3:5.0f} ms' if host else '':>8s} {results['memory'].get(name, math.nan):6.0f} MB"
        )
    lines += ["", "whole step by threads of the host (Offload, float32 states):"]
    lines += [f"{t:>6} threads {min(some) * 1e3:6.0f} ms" for t, some in results["threads_times"].items()]
    lines += ["", "host's step alone, of the floor's bandwidth (bytes: gradient 2, parameter 8, states, copy 2):"]
    states = {"float32": 16, "bfloat16": 8, "8bit": 4.06}
    for name, took in results["host_step"].items():
        share = (12 + states[name]) * results["elements"] / took / floor
        lines.append(f"  {name:12s} {took * 1e3:5.0f} ms, {share:.2f} of the floor")
    lines += ["", "targets:"]

    def target(words: str, value: float, bound: float) -> None:
        lines.append(f"  {words:72s} {value:5.2f} of {bound:.2f}  {'reached' if value <= bound else 'MISSED'}")

    plain = middle.get("Offload, float32 states", math.nan)
    bound = max(both, forward + 28 * results["elements"] / floor)
    target("float32 / max(forward + backward, forward + bytes / bandwidth)", plain / bound, 1.15)
    rival = middle.get("torchao, torch fused, all bfloat16", math.nan)
    target("float32 / torchao with torch fused", plain / rival, 1.0)
    target("8bit / torchao with torch fused", middle.get("Offload, 8bit states", math.nan) / rival, 0.7)
    target("clip_norm / without", middle.get("Offload, float32 states, clip_norm", math.nan) / plain, 1.25)
    extra = results["memory"].get("Offload, float32 states", math.nan) - results["memory"]["forward"]
    target("MB of memory beyond the activations", extra, 256)
    lines += [f"failed: {failure}" for failure in results["failures"]]
    return "\n".join(lines)


def obstacle() -> str | None:
    """Return why nothing can be measured here, None if it can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    free_memory, _ = torch.cuda.mem_get_info()
    if free_memory < 48e9:
        return f"the device has {free_memory / 1e9:.0f} GB free, expected 48"
    return None
