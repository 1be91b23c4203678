"""The error that is shown to the user."""

from collections.abc import Sequence


class TrainingError(Exception):
    """Something the user can mend: a bad option, bad data, a run that cannot be resumed or that diverged.

    Parameters
    ----------
    message : str
        What is wrong, in a line.
    details : sequence of str, optional
        Where several things are wrong: each of them, in a line.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *(f"  {detail}" for detail in details)]))
        self.message, self.details = message, tuple(details)
