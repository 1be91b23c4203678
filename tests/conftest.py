"""Fixtures of all tests, and the settings of hypothesis."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from arrays import DTYPES
from hypothesis import settings

import fastopt
from fastopt import _core
from fastopt.benchmark import measure

settings.register_profile("fastopt", deadline=None, max_examples=100)
settings.load_profile("fastopt")


@pytest.fixture(autouse=True)
def restored_environment() -> Iterator[None]:
    """Leave instruction set and number of threads as a test found them."""
    isa, threads = fastopt.isa(), _core.threads_asked()
    yield
    _core.use_isa(isa)
    _core.ask_for_threads(threads)


@pytest.fixture
def numbers_in_double_precision() -> Iterator[None]:
    """Those that torch keeps from step to step, as ours for arrays are. By default they are in single precision."""
    torch = pytest.importorskip("torch")
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=fastopt.available_isas())
def isa(request: pytest.FixtureRequest, restored_environment: None) -> str:
    """Each instruction set that this machine can run, in use."""
    name: str = request.param
    _core.use_isa(name)
    return name


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    """Each dtype of the NumPy face."""
    name: str = request.param
    return name


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240229)


def pytest_make_parametrize_id(val: Any) -> str | None:
    """Name a test after its case."""
    return str(val) if type(val).__name__ == "Case" else None


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks that measure as little as possible."""
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 1e-7)
    monkeypatch.setattr(measure, "REST_SECONDS", 0.0)
    monkeypatch.setattr("fastopt.benchmark.measure.gc.collect", lambda: 0)
    monkeypatch.setattr(measure, "MOST_ROUNDS", measure.LEAST_ROUNDS)
