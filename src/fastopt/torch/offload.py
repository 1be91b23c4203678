"""The step on the host, of a model that is trained on an accelerator.

The user's parameters stay on the device, in their precision. On the host an ordinary optimizer of fastopt steps float32
copies of them, the masters; its states are never on the device. Gradients come down one by one in the backward pass,
each as soon as it is complete, and are freed. One thread waits for them, steps a handful at a time, and sends the
parameters up again. Nothing is stale: `step` returns when all that belongs to it is under way, and what reads a
parameter then waits for it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastopt import _core, environment
from fastopt.backends.torch import Tensors, local_part
from fastopt.backends.torch_compat import DTensor
from fastopt.clipping import clip_coefficient
from fastopt.engine import Group, Request, StepInfo
from fastopt.torch.clipping import gradient_plan
from fastopt.torch.hosted import Hosted
from fastopt.torch.link import buffers, link_to, move_near, share_of_processors
from fastopt.torch.optimizer import Optimizer

CHUNK = 2**24
"""Bytes of gradients that are stepped at once: few enough to begin early, enough for all threads."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Masters(Tensors):
    """The step of some masters at a time: what needs the gradients of all is known before."""

    def run(self, grads: list[Any], request: Request) -> tuple[float, float, bool]:
        """Step without a norm."""
        return super().run(grads, request._replace(clip_norm=math.inf, want_norm=False, nonfinite="propagate"))

    def param_place(self, slot: int, place: tuple[int, int], entry: dict[str, Any]) -> tuple[int, ...]:
        """Leave the entry "master", which shows the parameter itself, where it is."""
        return place

    def threads(self) -> int:
        """Return as many as for any step; where several processes share the machine, at least this one's share."""
        usual = super().threads()
        return usual if self.serial or environment.chosen_threads() else -max(-usual, share_of_processors())


class Arrival(NamedTuple):
    """A gradient on its way."""

    hosted: Hosted
    wait: Callable[[], object]


class Offload(torch.optim.Optimizer):
    """Train on an accelerator, step on the host: masters in float32 and all states are there.

    The numbers are those of `optimizer` on float32 copies of the parameters, to the last bit. After each step a
    parameter is its master, rounded.

    Parameters
    ----------
    params
        Parameters of one device, or groups of them, as for any optimizer: bfloat16, float16 or float32.
    optimizer
        A class of `fastopt.torch`.
    in_backward
        Whether gradients go to the host in the backward pass, each as soon as it is complete, and are freed on the
        device; what changes gradients afterwards comes too late then. Otherwise `step` takes them, as in any optimizer,
        which is what `torch.amp.GradScaler` needs. None: unless a parameter is float16.
    options
        Of `optimizer`. With `clip_norm`, and where `nonfinite` is to be noticed, the step waits for all gradients.
        Otherwise the first parameters are stepped while the backward pass computes the gradients of the others.

    Attributes
    ----------
    host : Optimizer
        The optimizer of the masters.
    last_step : StepInfo or None
        As in `fastopt.torch.Optimizer`.

    Raises
    ------
    TypeError
        If `optimizer` is no class of `fastopt.torch`.
    ValueError
        If parameters are on several devices or of another dtype, if the optimizer keeps numbers of all parameters
        together (Schedule-Free, Prodigy), or an option makes no sense.

    Notes
    -----
    Whatever writes a parameter between steps is noticed (but not through `.data`), and its master follows.
    """

    _step_supports_amp_scaling = True  # (GradScaler passes its scale to `step`)
    _label: Callable[[Tensor], str] = Optimizer._label  # type: ignore[assignment]

    host: Optimizer
    last_step: StepInfo | None
    defaults: dict[str, Any]

    def __init__(
        self,
        params: Iterable[Any],
        optimizer: type[Optimizer],
        *,
        in_backward: bool | None = None,
        **options: Any,
    ) -> None:
        if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
            raise TypeError(f"optimizer: expected a class of fastopt.torch, got {optimizer!r}")
        method = optimizer.method
        unfit = {
            "keeps numbers of all parameters, which are stepped in parts here": method.advances,
            "needs products of whole matrices, and parameters are stepped in parts here": method.between,
            "is for sparse gradients, and gradients are dense here": method.refusal_of_dense,
        }
        for why, holds in unfit.items():
            if holds:
                raise ValueError(f"optimizer: {optimizer.__name__} {why}")
        super().__init__(params, {})
        self._given = {"optimizer": optimizer, "in_backward": in_backward, **options}
        self.last_step = None
        self._hosted: list[Hosted] = []
        self._coming: list[Arrival] = []
        self._coming_bytes = 0
        self._jobs: list[Future[Any]] = []
        self._accumulating = self._begun = self._whole = False
        self._unscale = 1.0
        groups = self.param_groups
        self._check(groups)
        device = local_part(groups[0]["params"][0]).device
        every = [param for group in groups for param in group["params"]]
        self._in_backward = torch.float16 not in {p.dtype for p in every} if in_backward is None else in_backward
        self._link = link_to(device)
        self._worker = ThreadPoolExecutor(1, "fastopt-offload", move_near, (device,))
        self.host = optimizer([self._admitted(group) for group in groups], **options)
        self._engine = self._new_engine()
        self.defaults = self.host.defaults
        for group, twin in zip(groups, self.host.param_groups, strict=True):
            adopt(group, twin)
        self._begin()
        self._begun = False

    # ---- parameters ----

    def _check(self, groups: list[Group]) -> None:
        """Raise `ValueError` if there is a parameter that cannot be offloaded."""
        every = [param for group in groups for param in group["params"]]
        first = local_part((self.param_groups[0]["params"] or every)[0]).device
        for param in every:
            device = local_part(param).device
            if device != first or device.type == "meta":
                raise ValueError(f"{self._label(param)}: expected a tensor on {first}, as the first, got {device}")
            if param.dtype not in DTYPES or param.layout != torch.strided:
                raise ValueError(
                    f"{self._label(param)}: expected a dense tensor of float32, bfloat16 or float16, "
                    f"got {param.dtype}, {param.layout}"
                )
        every += [one.param for one in self._hosted]
        if len({(param.device_mesh, param.placements) if isinstance(param, DTensor) else None for param in every}) > 1:
            raise ValueError("params: expected all of them sharded alike, over the same processes, or none")

    def _admitted(self, group: Group) -> Group:
        """Return a group of the masters of a group's parameters."""
        hosted = self._worker.submit(lambda: [Hosted(param) for param in group["params"]]).result()
        used = [one for one in hosted if one.param.requires_grad]
        self._worker.submit(self._provide, used).result()
        for one in hosted:
            if one.param.requires_grad and self._in_backward:
                hook = hook_of(self, len(self._hosted))
                one.param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            self._hosted.append(one)
        return {**group, "params": [one.master for one in hosted]}

    def _provide(self, hosted: list[Hosted]) -> None:
        """Have buffers, and masters with values (where the thread is that will use them)."""
        sizes = [size for one in hosted for size in one.sizes]
        memory = iter(buffers(sizes, self._link.pins))
        for one in hosted:
            one.take([next(memory) for _ in one.sizes])

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters, with options of their own where the group has them."""
        if "host" not in self.__dict__:  # these are the first
            super().add_param_group(param_group)
            return
        self._drop()
        super().add_param_group(param_group)
        group, count = self.param_groups[-1], len(self._hosted)
        try:
            self._check([group])
            self.host.add_param_group(self._admitted(group))
        except BaseException:
            self.param_groups.pop()
            del self._hosted[count:]
            raise
        adopt(group, self.host.param_groups[-1])

    def _new_engine(self) -> Masters:
        """Return the engine of the masters' groups of now."""
        self.host._copies = {one.master: one.copy for one in self._hosted if one.has_buffers}
        return Masters(self.host, [(group, group["params"]) for group in self.host.param_groups])

    # ---- the way of a gradient ----

    def _begin(self) -> None:
        """Find out, before the first gradient of a step, what the options are."""
        for group, twin in zip(self.param_groups, self.host.param_groups, strict=True):
            twin.update((name, value) for name, value in group.items() if name != "params")
        if not self._engine.is_current(self.host.param_groups):
            self._engine = self._new_engine()
        whole = self._engine.options()
        if whole["accumulate"] != 1:
            raise ValueError("accumulate: is not for Offload, which adds the gradients of backward passes by itself")
        if whole["zero_grad_in_step"]:
            raise ValueError("zero_grad_in_step: Offload keeps no gradient that could be zeroed")
        for name, usual in (("master", None), ("rounding", "nearest")):
            if whole[name] != usual:
                raise ValueError(f"{name}: Offload has masters in float32, expected {usual!r}, got {whole[name]!r}")
        self._together = any(_core.SCOPES.get(rule) == "plan" for rule, _ in self._engine.rules)
        self._whole = whole["clip_norm"] is not None or whole["nonfinite"] != "propagate" or self._together
        self._begun = True

    def _take(self, number: int) -> None:
        """Send a parameter's gradient down, and free it."""
        one = self._hosted[number]
        grad = one.param.grad
        if grad is None:
            return
        if grad.layout != torch.strided:
            raise RuntimeError(f"gradient of {self._label(one.param)}: expected a dense tensor, got {grad.layout}")
        if not self._begun:
            self._begin()
        if one.stepped:
            raise RuntimeError(
                f"{self._label(one.param)}: a second gradient, but the step with the first is done; run all but the "
                "last backward pass of a step within `with optimizer.accumulate():`"
            )
        if one.held:  # by an earlier backward pass of this step
            self._flush(step=False)
            if one.took is not None:
                one.took.result()
            if not one.summed:
                self._worker.submit(one.add).result()
        if not one.has_buffers:
            self._provide([one])
            self.host._copies[one.master] = one.copy  # (it is bound with the first gradient)
        elif not one.is_known():
            one.read()
        self._coming.append(Arrival(one, self._link.down(local_part(grad).detach(), one.landing)))
        self._coming_bytes += one.landing.nbytes
        one.held = True
        if self._in_backward:
            one.param.grad = None
        if self._coming_bytes >= CHUNK:
            self._flush()

    def _flush(self, step: bool = True) -> None:
        """Hand the gradients that are on their way to the thread."""
        if not self._coming:
            return
        step = step and not (self._accumulating or self._whole)
        coming, self._coming, self._coming_bytes = self._coming, [], 0
        job = self._worker.submit(self._receive, coming, self._accumulating, step)
        self._jobs.append(job)
        for one, _ in coming:
            one.took = job
            one.held, one.stepped = not step, step

    def _receive(self, coming: list[Arrival], add: bool, step: bool) -> None:
        """Wait for gradients, and step."""
        for _, arrived in coming:
            arrived()
        hosted = [one for one, _ in coming]
        for one in hosted:
            if add or one.has_to_add():
                one.add()
        if step:
            self._step_some(hosted, self._unscale)

    def _step_some(self, hosted: list[Hosted], unscale: float) -> None:
        """Step these masters, and send the parameters up."""
        for one in hosted:
            one.master.grad = None
            one.master.grad_dtype = one.grad.dtype
            one.master.grad = one.grad
        try:
            self._engine.step([None] * len(self._engine.params), zero=False, unscale=unscale)
        finally:
            for one in hosted:
                one.master.grad = None
        with torch.no_grad():
            for one in hosted:
                one.send(self._link)

    def _finish(self) -> StepInfo:
        """Step what is not stepped yet; with the norm of all, where it is needed."""
        held = [one for one in self._hosted if one.held]
        whole = self._engine.whole
        norm, coefficient = None, 1.0
        if whole["clip_norm"] is not None or whole["nonfinite"] != "propagate":
            plan = gradient_plan([one.grad for one in held])
            threads = self._engine.threads()
            norm = self._unscale * self._over_processes(plan.norm(threads) if plan else 0.0)
            finite = math.isfinite(norm) or (plan is not None and math.isfinite(plan.max_abs(threads)))
            if whole["nonfinite"] != "propagate" and not finite:
                if whole["nonfinite"] == "raise":
                    names = [self._label(one.param) for one in held if not bool(one.grad.isfinite().all())]
                    raise FloatingPointError(f"not finite: {', '.join(f'gradient of {name}' for name in names)}")
                return StepInfo(self._lr(), norm, False, True)
            if whole["clip_norm"] is not None:
                coefficient = clip_coefficient(norm, whole["clip_norm"])
        for some in [held] if self._together and held else in_chunks(held):
            self._step_some(some, self._unscale * coefficient)
        return StepInfo(self._lr(), norm, coefficient != 1.0, False)

    def _lr(self) -> float:
        return float(self._engine.values[0]["lr"])

    def _over_processes(self, norm: float) -> float:
        """Return the norm of the gradients of all processes that have parts of the parameters."""
        param = self._hosted[0].param
        if not isinstance(param, DTensor):
            return norm
        square = torch.tensor(norm * norm, dtype=torch.float64, device=local_part(param).device)
        for dim, kind in enumerate(param.placements):
            if kind.is_shard():
                torch.distributed.all_reduce(square, group=param.device_mesh.get_group(dim))
        return math.sqrt(float(square))

    # ---- the step ----

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that got a gradient since the last step; wait until they are on their way up.

        Parameters
        ----------
        closure
            Computes the loss and the gradients anew; optional.

        Returns
        -------
        The closure's result, or None.

        Raises
        ------
        RuntimeError
            If a gradient is not dense, or a `GradScaler` comes too late.
        FloatingPointError
            If a gradient is not finite and `nonfinite="raise"`. Nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = getattr(self, "grad_scale", None)
        if scale is not None and self._in_backward:
            raise RuntimeError("GradScaler: it looks at gradients before the step; use Offload(..., in_backward=False)")
        try:
            if not self._begun:
                self._begin()
            if float(getattr(self, "found_inf", None) or 0.0):
                self.last_step = StepInfo(self._lr(), None, False, True)
                return loss
            self._unscale = 1.0 / float(scale or 1.0)
            for number in range(len(self._hosted)):
                self._take(number)
            self._flush()
            self._jobs.append(self._worker.submit(self._finish))
            *_, self.last_step = [job.result() for job in self._jobs]
            if not self.last_step.skipped:
                self.host.step_count += 1
                self._show_states()
        finally:
            self._drop()
        return loss

    def _show_states(self) -> None:
        """Show the states beside the user's parameters, and the masters among them."""
        for one in self._hosted:
            if one.took is not None and one.param not in self.state:
                self._show_state(one)

    def _show_state(self, one: Hosted) -> None:
        entry = self.host.state[one.master]
        entry["master"] = one.master.detach()
        self.state[one.param] = entry

    def _drop(self) -> None:
        """Wait for what is under way; have no gradients then."""
        wait(self._jobs)
        self._jobs.clear()
        self._coming, self._coming_bytes = [], 0
        for one in self._hosted:
            one.drop()
        self._begun = False
        self._link.join()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients that no step has used, also those that are on the host."""
        super().zero_grad(set_to_none)
        self._drop()

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Add the gradients of backward passes within this to those of the pass after it, on the host, in float32.

        With `clip_norm`, and with `in_backward=False`, it is not needed: there `step` ends the sum.
        """
        self._accumulating = True
        try:
            yield
            self._flush()
        finally:
            self._accumulating = False

    # ---- state ----

    @property
    def step_count(self) -> int:
        """How many steps were taken, which is what schedules go by."""
        return self.host.step_count

    def state_dict(self) -> dict[str, Any]:
        """Return the state as `optimizer` does, with the masters as `"master"`; steps under way are waited for."""
        wait(self._jobs)
        known = self.host.state_dict()
        return {**super().state_dict(), **{name: known[name] for name in ("step_count",) if name in known}}

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state dict of this class, or of the optimizer, of fastopt or torch, without it.

        Where it has masters, the parameters become these, rounded; otherwise the masters become the parameters.
        """
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, dict(state_dict)) or state_dict
        self._drop()
        self.host.load_state_dict(state_dict)
        for group, twin in zip(self.param_groups, self.host.param_groups, strict=True):
            adopt(group, twin)
        self.state.clear()
        for one in self._hosted:
            master = self.host.state.get(one.master, {}).get("master")
            if one.master in self.host.state:
                self._show_state(one)
            with torch.no_grad():
                if master is None:
                    one.seen = None  # read with the next gradient
                else:
                    one.master.copy_(master)
                    local_part(one.param).copy_(one.master.to(one.param.dtype))
                    one.seen = one.look()
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "given": self._given,
            "param_groups": self.param_groups,
            "state_dict": self.state_dict(),
            "last_step": self.last_step,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        Offload.__init__(self, state["param_groups"], **state["given"])
        self.load_state_dict(state["state_dict"])
        self.last_step = state["last_step"]


def adopt(group: Group, twin: Group) -> None:
    """Have a group's options be those of its twin."""
    kept = dict(group)
    group.clear()
    group.update(twin)
    group.update((name, kept[name]) for name in ("params", "param_names") if name in kept)


def in_chunks(hosted: list[Hosted]) -> Iterator[list[Hosted]]:
    """Cut a list where the gradients of a part are large enough."""
    some: list[Hosted] = []
    size = 0
    for one in hosted:
        some.append(one)
        size += one.grad.nbytes
        if size >= CHUNK:
            yield some
            some, size = [], 0
    if some:
        yield some


def hook_of(offload: Offload, number: int) -> Callable[[Tensor], None]:
    """Return what a parameter is to call: it keeps nothing alive, as Python's collector does not look into hooks."""
    known = weakref.ref(offload)

    def hook(param: Tensor) -> None:
        found = known()
        if found is not None:
            found._take(number)

    return hook
