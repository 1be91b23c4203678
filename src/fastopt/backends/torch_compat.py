"""What depends on torch's version."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastopt import _dlpack

OLDEST = "2.6"

if torch.__version__ < OLDEST:  # (by numbers: this is no plain string)
    raise ImportError(f"fastopt.torch needs torch {OLDEST} or newer, got {torch.__version__}")

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor as DTensor
else:

    class Sharded(type):
        """The type of `DTensor`."""

        def __instancecheck__(cls, tensor: object) -> bool:
            """Whether it is torch's `DTensor`, which is not imported for that: it takes longer than all of fastopt."""
            return isinstance(tensor, getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ()))

    class DTensor(metaclass=Sharded):
        """Stand-in for torch's, where `isinstance` asks for it."""


DLPACK_DTYPES = {torch.float32: (2, 32), torch.float64: (2, 64), torch.float16: (2, 16), torch.bfloat16: (4, 16)}
"""DLPack's (code, bits)."""


def exchange() -> Any:
    """Return what tensors are read by: DLPack's exchange in C, or the same by asking Python before torch 2.10."""
    return getattr(Tensor, "__dlpack_c_exchange_api__", None) or _dlpack.exchange_by_asking(DLPACK_DTYPES)
