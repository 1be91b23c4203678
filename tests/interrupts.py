"""KeyboardInterrupt wherever Python looks for signals: when a function of Python begins and when one of C returns."""

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import fastopt

OURS = str(Path(fastopt.__file__).parent)


def is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(OURS)


def interrupted(work: Callable[[], Any], point: int) -> KeyboardInterrupt | None:
    """Do some work, with an interrupt at its nth point, in our functions or in what they call; return the interrupt,
    with all the frames that it keeps, or None if there are fewer points.
    """
    passed = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal passed
        if event not in ("call", "c_return") or not (is_ours(frame) or is_ours(frame.f_back)):
            return
        if event == "call" and frame.f_code.co_flags & inspect.CO_GENERATOR:
            return  # (also when one is closed, where no signals are looked for)
        passed += 1
        if passed == point:
            raise KeyboardInterrupt  # whereupon Python goes on without this function

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    except KeyboardInterrupt as interrupt:
        return interrupt
    finally:
        sys.setprofile(before)
    assert passed < point, "the interrupt was lost"
    return None


def at_every_point(make: Callable[[], tuple[Any, Callable[[], Any]]]) -> Iterator[tuple[Any, KeyboardInterrupt]]:
    """Yield what `make` makes anew, beside some work, after the work was interrupted: at each of its points in turn."""
    point = 1
    while True:
        made, work = make()
        interrupt = interrupted(work, point)
        if interrupt is None:
            break
        yield made, interrupt
        point += 1
    assert point > 10, "there were no points to interrupt the work at"
