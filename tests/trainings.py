"""Whole trainings by the recipes of ``fastopt train``, without files and display."""

from typing import Any, NamedTuple

import numpy as np

from fastopt.training.config import ModelName
from fastopt.training.job import Job
from fastopt.training.loop import train
from fastopt.training.metrics import StepRecord
from fastopt.training.recipes import configure


class Course(NamedTuple):
    losses: np.ndarray
    scores: dict[str, float]
    """On held-out data, at the end."""


def trained(model: ModelName, **settings: Any) -> Course:
    job = Job(configure(model, settings))
    records: list[StepRecord] = []
    with job.arithmetic():
        train(job.run, observe=records.append, save=lambda: None, should_stop=lambda: False)
    return Course(np.array([record.loss for record in records]), records[-1].scores)
