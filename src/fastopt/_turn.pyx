# cython: language_level=3, embedsignature=True
"""Who may use an optimizer. In C, where no interrupt comes between taking the turn and noting that it was taken: Python
looks for signals only when a function of its own begins and when a call returns.
"""

import os
import threading

cdef unsigned long forks = 0


def _count_fork() -> None:
    global forks
    forks += 1


os.register_at_fork(after_in_child=_count_fork)


cdef class Turn:
    """One thread at a time.

    The same one may come again (a schedule or a signal handler that reads the state), but not for a step within a step:
    that is `with turn.to_step`. In a forked child nobody has the turn, whoever had it in the parent.
    """

    cdef object lock
    cdef unsigned long born
    cdef bint stepping

    def __init__(self):
        self.start()

    cdef start(self):
        self.lock, self.born, self.stepping = threading.RLock(), forks, False

    def __enter__(self) -> None:
        if self.born != forks:
            self.start()
        self.lock.acquire()

    def __exit__(self, *exception) -> None:
        self.lock.release()

    @property
    def to_step(self) -> StepTurn:
        """The turn to step."""
        return StepTurn(self)

    def __reduce__(self):
        """Give a copy a turn of its own."""
        return Turn, ()


cdef class StepTurn:
    """The turn to step."""

    cdef Turn turn

    def __init__(self, Turn turn not None):
        self.turn = turn

    def __enter__(self) -> None:
        self.turn.__enter__()
        if self.turn.stepping:
            self.turn.__exit__()
            raise RuntimeError("a step within a step of the same optimizer (by a schedule, a hook or a signal handler)")
        self.turn.stepping = True

    def __exit__(self, *exception) -> None:
        self.turn.stepping = False
        self.turn.__exit__()
