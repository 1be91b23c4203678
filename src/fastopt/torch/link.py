"""The way between a device and the host: copies on streams of their own, pinned memory, processors that are near."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SLAB = 2**28
"""Bytes of pinned memory that are asked for at once: every request takes long, and is rounded up to a power of two."""

LINE = 64
"""Buffers begin at multiples of this."""


class Link:
    """Copies between the host and a device that is the host itself: they are made at once."""

    pins = False
    """Whether buffers of the host are to be pinned."""

    def down(self, source: Tensor, target: Tensor) -> Callable[[], object]:
        """Copy what the device computes to the host; return what waits until it is there."""
        target.copy_(source)
        return done

    def up(self, source: Tensor, target: Tensor) -> Callable[[], object]:
        """Copy to the device; return what waits until the source has left.

        Nothing there may still be about to read the target, but in work begun after `join`.
        """
        target.copy_(source)
        return done

    def join(self) -> None:
        """Have what the device is asked for from now on see all that went up."""


class StreamLink(Link):
    """Copies on two streams of an accelerator, one each way, beside the stream that computes."""

    pins = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.accelerator.synchronize(device)  # parameters may just have been made, on any stream
        self.way_down, self.way_up = torch.Stream(device=device), torch.Stream(device=device)

    def down(self, source: Tensor, target: Tensor) -> Callable[[], object]:
        """Copy after what the current stream has to do so far; the source may be freed at once."""
        self.way_down.wait_stream(torch.accelerator.current_stream(self.device))
        with self.way_down:
            target.copy_(source, non_blocking=True)
        source.record_stream(self.way_down)
        return self.end_of(self.way_down)

    def up(self, source: Tensor, target: Tensor) -> Callable[[], object]:
        """Copy, on the stream for this."""
        with self.way_up:
            target.copy_(source, non_blocking=True)
        return self.end_of(self.way_up)

    def end_of(self, way: torch.Stream) -> Callable[[], object]:
        """Return what waits for all that a stream has been asked for so far."""
        event = torch.Event(device=self.device, blocking=True)  # (who waits for it leaves the processor to others)
        event.record(way)
        return event.synchronize

    def join(self) -> None:
        """Have the current stream wait for what went up."""
        torch.accelerator.current_stream(self.device).wait_stream(self.way_up)


def done() -> None:
    """Wait for nothing."""


def link_to(device: torch.device) -> Link:
    """Return the way to a device."""
    return Link() if device.type == "cpu" else StreamLink(device)


def buffers(sizes: list[int], pin: bool) -> list[Tensor]:
    """Return a buffer of each number of bytes, cut from few slabs, pinned if there is so much memory to pin."""
    slabs: list[list[int]] = []
    left = -1
    for size in sizes:
        room = -(-size // LINE) * LINE
        if room > left:
            slabs.append([])
            left = max(SLAB, room)
        slabs[-1].append(room)
        left -= room
    parts = [part for rooms in slabs for part in torch.split(memory(sum(rooms), pin), rooms)]
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def memory(size: int, pin: bool) -> Tensor:
    """Return so many bytes of the host, pinned if that is possible."""
    if pin and size:
        try:
            return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
        except RuntimeError as error:
            warnings.warn(
                f"Offload: no more memory can be pinned, so that copies to and from the device are slow ({error})",
                RuntimeWarning,
                stacklevel=2,
            )
    return torch.empty(size, dtype=torch.uint8, device="cpu")


# ---- processors ----


def move_near(device: torch.device) -> None:
    """Keep the calling thread, and threads that it starts, on the processors at the memory a device is attached to."""
    near = processors_near(device) & processors()
    if near and near != processors():
        os.sched_setaffinity(0, near)


def processors() -> set[int]:
    """Return the processors that the calling thread may use."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def processors_near(device: torch.device) -> set[int]:
    """Return the processors of a device's node; none where that is not known, or all are as near."""
    if device.type != "cuda" or not hasattr(os, "sched_setaffinity"):
        return set()
    card: Any = torch.cuda.get_device_properties(device)
    place = f"{card.pci_domain_id:04x}:{card.pci_bus_id:02x}:{card.pci_device_id:02x}.0"
    file = Path(f"/sys/bus/pci/devices/{place}/local_cpulist")
    return in_list(file.read_text().strip()) if file.exists() else set()


def in_list(words: str) -> set[int]:
    """Return the numbers in a list such as 0-3,8."""
    ends = [part.split("-") for part in words.split(",") if part]
    return {number for first, *last in ends for number in range(int(first), int((last or [first])[0]) + 1)}


def share_of_processors() -> int:
    """Return how many processors are for this process, if a launcher has started several on this machine; else 1.

    (`torchrun` allows each of them one thread.)
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(processors()) // processes) if processes > 1 else 1
