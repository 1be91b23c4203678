"""What the host has of a parameter that is on a device."""

from __future__ import annotations

from concurrent.futures import Future

import torch
from torch import Tensor

from fastopt.backends.torch import local_part
from fastopt.torch.link import Link


class Hosted:
    """A parameter of the device, and what the host has of it."""

    landing: Tensor
    """Where gradients come down. The step reads them there."""
    copy: Tensor
    """What goes up: the parameter's new values, in the place of the gradient if their dtypes agree."""

    def __init__(self, param: Tensor) -> None:
        self.param = param
        local = local_part(param).detach()
        self.master = torch.empty_like(local, dtype=torch.float32, device="cpu").requires_grad_()
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
    def grad_dtype(self) -> torch.dtype:
        """The dtype that its gradients are in."""
        return getattr(self.param, "grad_dtype", None) or self.param.dtype

    @property
    def sizes(self) -> list[int]:
        """How many bytes its gradient and its copy need: one buffer where they are alike."""
        dtypes = dict.fromkeys((self.grad_dtype, self.param.dtype))
        return [self.master.numel() * dtype.itemsize for dtype in dtypes]

    def take(self, memory: list[Tensor]) -> None:
        """Have buffers, and values."""
        where = self.master.shape, self.master.stride()
        dtypes = dict.fromkeys((self.grad_dtype, self.param.dtype))
        views = [part.view(dtype).as_strided(*where) for part, dtype in zip(memory, dtypes, strict=True)]
        self.landing, self.copy, self.has_buffers = views[0], views[-1], True
        self.read()

    def is_known(self) -> bool:
        """Whether the parameter is as this optimizer left it."""
        return self.seen == self.look()

    def look(self) -> tuple[int, int]:
        """Return what changes whenever the parameter does."""
        local = local_part(self.param)
        return local._version, local.data_ptr()

    def read(self) -> None:
        """Take the parameter's values; but those that are the master's, rounded, it keeps as they are."""
        with torch.no_grad():
            values = local_part(self.param).to("cpu")
            if self.seen is None:
                self.master.copy_(values)
            else:
                torch.where(self.master.to(values.dtype) == values, self.master, values.float(), out=self.master)
        self.seen = self.look()

    def send(self, link: Link) -> None:
        """Give the parameter its new values."""
        link.up(self.copy, local_part(self.param).detach())
        self.seen = self.look()
        self.held = False

    def add(self) -> None:
        """Add the gradient to what other backward passes brought."""
        if self.sum is None:
            self.sum = torch.zeros_like(self.master, requires_grad=False)
        if not self.summed:
            self.sum.zero_()
        self.sum.add_(self.landing)
        self.summed = True

    def has_to_add(self) -> bool:
        """Whether the gradient is needed in float32: it belongs to a sum, or torch has no other for the master."""
        return self.summed or not (hasattr(Tensor, "grad_dtype") or self.landing.dtype == torch.float32)

    @property
    def grad(self) -> Tensor:
        """The gradient to step with."""
        return self.sum if self.summed and self.sum is not None else self.landing

    def drop(self) -> None:
        """Have no gradient."""
        self.held = self.stepped = self.summed = False
        self.took = None
