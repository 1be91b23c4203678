"""The error that is shown to the user as one line."""


class TrainingError(Exception):
    """Something the user can mend: a bad option, bad data, a run that cannot be resumed or that diverged."""
