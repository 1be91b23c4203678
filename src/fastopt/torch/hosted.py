"""What the host has of the parameters that are on a device, and the pieces in which these are stepped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastopt.backends.torch import is_dense, joined, local_part, same_order, split
from fastopt.backends.torch_compat import DTensor
from fastopt.engine import MASTER, REMAINDER, Group
from fastopt.torch.link import LINE, Link, buffers, done, memory

if TYPE_CHECKING:
    from fastopt.torch.masters import Masters

CHUNK = 2**24
"""Bytes of gradients that are stepped at once: few enough to begin early, enough for all threads. What has twice as
many or more is cut."""

UNIT = 2**13
"""Elements that no cut divides: the kernels' blocks, in which sums and scales are formed."""


class Piece:
    """A part of a parameter that is stepped by itself: most are all of one."""

    param: Tensor
    """What is stepped: a part of the master, or the device's own values on their way."""

    def __init__(self, hosted: Hosted, start: int, stop: int) -> None:
        self.hosted = hosted
        self.start, self.stop = start, stop
        self.arrived: Callable[[], object] = done
        """Waits until what has been asked for is there."""
        if not hosted.staged:
            self.param = self.of(hosted.master.detach())

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its parameter."""
        return self.stop - self.start == self.hosted.master.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of its gradient, as it comes."""
        return self.of(self.hosted.landing).nbytes

    @property
    def is_last(self) -> bool:
        """Whether the parameter's step ends with it."""
        return self.stop == self.hosted.master.numel()

    def of(self, tensor: Tensor) -> Tensor:
        """Return what it is of a tensor that lies in memory as the parameter does."""
        if self.is_whole:
            return tensor
        return tensor.as_strided((self.stop - self.start,), (1,), tensor.storage_offset() + self.start)

    def add(self) -> None:
        """Add the gradient to what other backward passes brought."""
        one = self.hosted
        if one.sum is None:
            one.sum = torch.empty_like(one.master, dtype=torch.float32, requires_grad=False)
        total, brought = self.of(one.sum), self.of(one.landing)
        if one.summed:
            total.add_(brought)
        else:
            total.copy_(brought)
        one.summed = one.summed or self.is_last

    def send(self, link: Link) -> Callable[[], object]:
        """Give the parameter its new values; return what waits until they have left."""
        one = self.hosted
        left = link.up(self.param if one.staged else self.of(one.copy), self.of(local_part(one.param).detach()))
        one.seen = one.look()
        one.held = False
        return left


class Slab:
    """Memory of the host for the values of staged parameters, on their way down and up again."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self.left: list[Callable[[], object]] = []
        """Wait until the values that were here have left."""

    def fetch(self, pieces: list[Piece], link: Link) -> None:
        """Ask for the values of some pieces."""
        while self.left:
            self.left.pop()()
        likes = [piece.of(piece.hosted.master) for piece in pieces]
        rooms = [-(-like.nbytes // LINE) * LINE for like in likes]
        if sum(rooms) > len(self.memory):
            self.memory = memory(sum(rooms), link.pins)
        parts = torch.split(self.memory[: sum(rooms)], rooms)
        for piece, like, part in zip(pieces, likes, parts, strict=True):
            piece.param = part[: like.nbytes].view(like.dtype).as_strided(like.shape, like.stride())
            piece.arrived = link.down(piece.of(local_part(piece.hosted.param).detach()), piece.param)


class Hosted:
    """A parameter of the device, and what the host has of it.

    Where it is `staged`, the host keeps no values of it: they come with each step. The master then has the parameter's
    dtype, and is no more than a handle to values that are there at the moment.
    """

    landing: Tensor
    """Where gradients come down. The step reads them there."""
    copy: Tensor
    """What goes up: the parameter's new values, in the place of the gradient if their dtypes agree."""

    def __init__(self, param: Tensor, number: int, staged: bool) -> None:
        self.param = param
        self.number = number
        """Its place among all parameters, which is the engine's slot."""
        self.staged = staged
        local = local_part(param).detach()
        self.can_be_cut = is_dense(local)
        dtype = param.dtype if staged else torch.float32
        self.master = torch.empty_like(local, dtype=dtype, device="cpu").requires_grad_()
        self.has_buffers = False
        self.sum: Tensor | None = None
        """Of the gradients of several backward passes, in float32."""
        self.seen: tuple[int, int] | None = None
        """What the parameter was when the master was last the same: None where it never was."""
        self.summed = False
        """Whether the gradient is in `sum`."""
        self.held = False
        """Whether there is a gradient that no step has used."""
        self.stepped = False
        """Whether the gradient of this backward pass has been used."""
        self.took: Future[None] | None = None
        """The last job that has to do with it."""

    @property
    def dtypes(self) -> list[torch.dtype]:
        """What its gradients are in, and its copy: one where they are alike, or where there is no copy."""
        of_grad = getattr(self.param, "grad_dtype", None) or self.param.dtype
        return [of_grad] if self.staged else list(dict.fromkeys((of_grad, self.param.dtype)))

    @property
    def sizes(self) -> list[int]:
        """How many bytes of buffers it needs."""
        return [self.master.numel() * dtype.itemsize for dtype in self.dtypes]

    def provide(self, parts: list[Tensor]) -> None:
        """Have buffers, and values."""
        where = self.master.shape, self.master.stride()
        views = [part.view(dtype).as_strided(*where) for part, dtype in zip(parts, self.dtypes, strict=True)]
        self.landing, self.copy, self.has_buffers = views[0], views[-1], True
        self.read()

    def pieces(self, engine: Masters) -> list[Piece]:
        """Return the pieces it is stepped in, in order: one, unless it is large and may be cut."""
        size, count = self.master.numel(), max(self.landing.nbytes // CHUNK, 1)
        if count > 1 and not (self.can_be_cut and engine.can_cut(self.number)):
            count = 1
        length = -(-size // count // UNIT) * UNIT if count > 1 else max(size, 1)
        return [Piece(self, start, min(start + length, size)) for start in range(0, max(size, 1), length)]

    def take(self, grad: Tensor, engine: Masters, link: Link) -> Iterator[Piece]:
        """Ask for a gradient, piece by piece if it lies in memory as the parameter does."""
        pieces = self.pieces(engine)
        apart = len(pieces) == 1 or same_order(grad, self.landing)
        arrived = done if apart else link.down(grad, self.landing)
        self.held = True
        for piece in pieces:
            piece.arrived = link.down(piece.of(grad), piece.of(self.landing)) if apart else arrived
            yield piece

    def is_known(self) -> bool:
        """Whether the parameter is as this optimizer left it, where that matters."""
        return self.staged or self.seen == self.look()

    def look(self) -> tuple[int, int]:
        """Return what changes whenever the parameter does."""
        local = local_part(self.param)
        return local._version, local.data_ptr()

    def read(self) -> None:
        """Take the parameter's values; but those that are the master's, rounded, it keeps as they are."""
        if self.staged:
            return
        with torch.no_grad():
            values = local_part(self.param).to("cpu")
            if self.seen is None:
                self.master.copy_(values)
            else:
                torch.where(self.master.to(values.dtype) == values, self.master, values.float(), out=self.master)
        self.seen = self.look()

    def load(self, entry: dict[str, Any], storage: str | None) -> None:
        """Take over a parameter from a state, which has it in one piece (a master) or in two (a remainder).

        A master is the parameter's new value; a remainder belongs to the value that it has. `storage` is that of two.
        """
        local, master = local_part(self.param), entry.get(MASTER)
        self.seen = None  # read with the next gradient
        if self.staged:
            entry.pop(MASTER, None)
            if master is not None and local.dtype == torch.bfloat16:
                master, entry[REMAINDER] = split(self.master.detach().float().copy_(master), str(storage))
        else:
            rest = entry.pop(REMAINDER, None)
            if rest is not None and master is None:
                self.master.copy_(joined(local.to("cpu"), rest))
                self.seen = self.look()
            elif master is not None:
                self.master.copy_(master)
        if master is not None:
            local.copy_(master.to(local.dtype))
            self.seen = self.look()

    @property
    def grad(self) -> Tensor:
        """The gradient to step with."""
        return self.sum if self.summed and self.sum is not None else self.landing

    def drop(self) -> None:
        """Have no gradient."""
        self.held = self.stepped = self.summed = False
        self.took = None


def in_chunks(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Group pieces so that the gradients of a group are large enough; no group has two of one parameter."""
    some: list[Piece] = []
    size = 0
    for piece in pieces:
        some.append(piece)
        size += piece.nbytes
        if size >= CHUNK or not piece.is_whole:
            yield some
            some, size = [], 0
    if some:
        yield some


def provide(hosted: list[Hosted], pins: bool) -> None:
    """Have buffers, cut from few slabs, and values."""
    parts = iter(buffers([size for one in hosted for size in one.sizes], pins))
    for one in hosted:
        one.provide([next(parts) for _ in one.sizes])


def check_params(groups: list[Group], known: list[Hosted], staged: bool, label: Callable[[Tensor], str]) -> None:
    """Raise `ValueError` unless the parameters of groups can be offloaded, beside those that are."""
    params: list[Tensor] = [param for group in groups for param in group["params"]]
    every = [one.param for one in known] + params
    first = local_part(every[0]).device
    dtypes = [torch.float32, torch.bfloat16] if staged else [torch.float32, torch.bfloat16, torch.float16]
    for param in params:
        device = local_part(param).device
        if device != first or device.type == "meta":
            raise ValueError(f"{label(param)}: expected a tensor on {first}, as the first, got {device}")
        if param.dtype not in dtypes or param.layout != torch.strided:
            some = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(f"{label(param)}: expected a dense tensor of {some}, got {param.dtype}, {param.layout}")
    if len({(param.device_mesh, param.placements) if isinstance(param, DTensor) else None for param in every}) > 1:
        raise ValueError("params: expected all of them sharded alike, over the same processes, or none")
