"""The step on the host, of a model that is trained on an accelerator.

The user's parameters stay on the device, in their precision. On the host an ordinary optimizer of fastopt steps float32
copies of them, the masters; its states are never on the device. Gradients come down one by one in the backward pass,
each as soon as it is complete, and are freed. One thread waits for them, steps a handful at a time, and sends the
parameters up again. Nothing is stale: `step` returns when all that belongs to it is under way, and what reads a
parameter then waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastopt.backends.torch import REMAINDERS, is_sharded, local_part
from fastopt.engine import MASTER, Group, StepInfo
from fastopt.torch import hosted as chunks
from fastopt.torch.hosted import Hosted, Piece, Slab, check_params, in_chunks, provide
from fastopt.torch.in_backward import hook_of
from fastopt.torch.link import link_to, move_near
from fastopt.torch.masters import Masters, check_method
from fastopt.torch.optimizer import Optimizer

AHEAD = 3
"""Chunks whose parameters' values are on the host at once, where it does not keep them."""


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
    master
        None: float32 copies of the parameters are on the host. "split": no copies are; what a float32 has beyond a
        bfloat16 parameter is (16 bits; "split8": 8 of them, to which it is rounded), and the parameter comes down with
        each step. Takes 2 bytes a parameter less (3), and twice as many come down.
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
        If parameters are on several devices or of another dtype (also float16 with `master`), if the optimizer keeps
        numbers of all parameters together (Schedule-Free, Prodigy), or an option makes no sense.

    Notes
    -----
    Whatever writes a parameter between steps is noticed (but not through `.data`), and its master follows; a remainder
    stays. A parameter whose gradient has 32 MiB or more comes down, is stepped and goes up in pieces, unless the rule
    has sums over it (LAMB, Adafactor, `cautious`) or states are rounded at random (`state_dtype="bfloat16"`).
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
        master: str | None = None,
        **options: Any,
    ) -> None:
        if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
            raise TypeError(f"optimizer: expected a class of fastopt.torch, got {optimizer!r}")
        check_method(optimizer)
        if master not in (None, *REMAINDERS):
            raise ValueError(f"master: expected None (which is float32 here) or one of {[*REMAINDERS]}, got {master!r}")
        super().__init__(params, {})
        self._given = {"optimizer": optimizer, "in_backward": in_backward, "master": master, **options}
        self._staged = master is not None
        self.last_step = None
        self._hosted: list[Hosted] = []
        self._coming: list[Piece] = []
        self._coming_bytes = 0
        self._jobs: list[Future[Any]] = []
        self._slabs = deque(Slab() for _ in range(AHEAD))
        self._accumulating = self._begun = self._whole = False
        self._unscale = 1.0
        groups = self.param_groups
        check_params(groups, self._hosted, self._staged, self._label)
        every = [param for group in groups for param in group["params"]]
        device = local_part(every[0]).device
        self._in_backward = torch.float16 not in {p.dtype for p in every} if in_backward is None else in_backward
        self._link = link_to(device)
        self._worker = ThreadPoolExecutor(1, "fastopt-offload", move_near, (device,))
        self.host = optimizer([self._admitted(group) for group in groups], master=master, **options)
        self._engine = self._new_engine()
        self.defaults = self.host.defaults
        self._adopt()
        self._begin()
        self._begun = False

    # ---- parameters ----

    def _admitted(self, group: Group) -> Group:
        """Return a group of the masters of a group's parameters."""
        hosted = [
            Hosted(param, number, self._staged) for number, param in enumerate(group["params"], len(self._hosted))
        ]
        used = [one for one in hosted if one.param.requires_grad]
        self._worker.submit(provide, used, self._link.pins).result()  # (the memory is near the thread that fills it)
        for one in used if self._in_backward else ():
            hook = hook_of(self, partial(Offload._take, number=one.number))
            one.param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        self._hosted += hosted
        return {**group, "params": [one.master for one in hosted]}

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters, with options of their own where the group has them."""
        if "host" not in self.__dict__:  # these are the first
            super().add_param_group(param_group)
            return
        self._drop()
        super().add_param_group(param_group)
        group, count = self.param_groups[-1], len(self._hosted)
        try:
            check_params([group], self._hosted, self._staged, self._label)
            self.host.add_param_group(self._admitted(group))
        except BaseException:
            self.param_groups.pop()
            del self._hosted[count:]
            raise
        self._adopt()

    def _adopt(self) -> None:
        """Have the groups' options be those of the host's groups."""
        for group, twin in zip(self.param_groups, self.host.param_groups, strict=True):
            kept = {name: group[name] for name in ("params", "param_names") if name in group}
            group.clear()
            group.update(twin | kept)

    def _new_engine(self) -> Masters:
        """Return the engine of the masters' groups of now."""
        self.host._copies = {one.master: one.copy for one in self._hosted if one.has_buffers and not one.staged}
        return Masters(self.host, [(group, group["params"]) for group in self.host.param_groups], self._given["master"])

    # ---- the way of a gradient ----

    def _begin(self) -> None:
        """Find out, before the first gradient of a step, what the options are."""
        for group, twin in zip(self.param_groups, self.host.param_groups, strict=True):
            twin.update((name, value) for name, value in group.items() if name != "params")
        if not self._engine.is_current(self.host.param_groups):
            self._engine = self._new_engine()
        whole = self._engine.options()
        for one in self._hosted:
            if is_sharded(one.param) and self._engine.has_sums(one.number):
                what = f"what {self.host.method.__name__} does depends on sums over whole tensors"
                raise ValueError(f"{self._label(one.param)}: is sharded among processes, but {what}")
        self._together = self._engine.goes_together()
        self._whole = whole["clip_norm"] is not None or whole["nonfinite"] != "propagate" or self._together
        self._begun = True

    def _take(self, param: Tensor, number: int) -> None:
        """Send a parameter's gradient down, and free it."""
        one, grad = self._hosted[number], param.grad
        if grad is None:
            return
        if grad.layout != torch.strided:
            raise RuntimeError(f"gradient of {self._label(param)}: expected a dense tensor, got {grad.layout}")
        if not self._begun:
            self._begin()
        if one.stepped:
            raise RuntimeError(
                f"{self._label(param)}: a second gradient, but the step with the first is done; run all but the "
                "last backward pass of a step within `with optimizer.accumulate():`"
            )
        if one.held:  # by an earlier backward pass of this step
            self._flush(step=False)
            if one.took is not None:
                one.took.result()
            if not one.summed:
                self._worker.submit(Piece(one, 0, one.master.numel()).add).result()
        if not one.has_buffers:
            provide([one], self._link.pins)
            if not one.staged:
                self.host._copies[one.master] = one.copy  # (it is bound with the first gradient)
        elif not one.is_known():
            one.read()
        for piece in one.take(local_part(grad).detach(), self._engine, self._link):
            self._coming.append(piece)
            self._coming_bytes += piece.nbytes
            if self._coming_bytes >= chunks.CHUNK or not piece.is_whole:  # (so that none is left with half a step)
                self._flush()
        if self._in_backward:
            param.grad = None

    def _flush(self, step: bool = True) -> None:
        """Hand the gradients that are on their way to the thread."""
        if not self._coming:
            return
        step = step and not (self._accumulating or self._whole)
        coming, self._coming, self._coming_bytes = self._coming, [], 0
        if step and self._staged:
            wait(self._jobs[: 1 - AHEAD])
        slab = self._fetch(coming) if step else None
        job = self._worker.submit(self._receive, coming, self._accumulating, slab)
        self._jobs.append(job)
        for piece in coming:
            piece.hosted.took = job
            piece.hosted.held, piece.hosted.stepped = not step, step

    def _fetch(self, pieces: list[Piece]) -> Slab:
        """Ask for the values that the host does not keep."""
        self._slabs.rotate()
        if self._staged:
            self._slabs[0].fetch(pieces, self._link)
        return self._slabs[0]

    def _receive(self, pieces: list[Piece], add: bool, slab: Slab | None) -> None:
        """Wait for gradients, and step."""
        for piece in pieces:
            piece.arrived()
            if add or piece.hosted.summed:
                piece.add()
        if slab is not None:
            self._step_some(pieces, slab, self._unscale)

    def _step_some(self, pieces: list[Piece], slab: Slab, unscale: float) -> None:
        """Step these, and send the parameters up."""
        for piece in pieces:
            piece.arrived()
        self._engine.step_pieces(pieces, unscale)
        left = [piece.send(self._link) for piece in pieces]
        slab.left += left if self._staged else []

    def _finish(self) -> StepInfo:
        """Step what is not stepped yet, with the norm of all where it is needed."""
        held = [one for one in self._hosted if one.held]
        norm, coefficient, skipped = self._engine.measure(held, self._unscale, self._hosted[0].param)
        if skipped:
            return StepInfo(self._lr(), norm, False, True)
        pieces = [piece for one in held for piece in one.pieces(self._engine)]
        fetched: deque[tuple[list[Piece], Slab]] = deque()
        for some in [pieces] if self._together and held else in_chunks(pieces):
            fetched.append((some, self._fetch(some)))
            if len(fetched) == AHEAD:
                self._step_some(*fetched.popleft(), self._unscale * coefficient)
        for found in fetched:
            self._step_some(*found, self._unscale * coefficient)
        return StepInfo(self._lr(), norm, coefficient != 1.0, False)

    def _lr(self) -> float:
        return float(self._engine.values[0]["lr"])

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
            for one in self._hosted:
                self._take(one.param, one.number)
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
        if not one.staged:
            entry[MASTER] = one.master.detach()
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
        self._flush()
        wait(self._jobs)
        known = self.host.state_dict()
        return {**super().state_dict(), **{name: known[name] for name in ("step_count",) if name in known}}

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state dict of this class, or of the optimizer, of fastopt or torch, without it.

        Where it has masters, the parameters become these, rounded; remainders belong to the parameters of now. Where it
        has neither, the masters become the parameters.
        """
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, dict(state_dict)) or state_dict
        self._drop()
        self.host.load_state_dict(state_dict)
        self.host.master = self._given["master"]
        self._adopt()
        self.state.clear()
        for one in self._hosted:
            if one.master in self.host.state:
                with torch.no_grad():
                    one.load(self.host.state[one.master], self.host.master)
                self._show_state(one)
            else:
                one.seen = None  # read with the next gradient
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
