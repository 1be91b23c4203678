"""Runs: contestants are built, checked and timed; what is wrong is not timed."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt.benchmark import machine, measure, runs, textbook, works
from fastopt.benchmark.contestants import Fastopt, Floor, Textbook
from fastopt.benchmark.field import CONTESTANTS
from fastopt.benchmark.rivals import OnTensors
from fastopt.benchmark.runs import Entrant, Run, perform
from fastopt.benchmark.tasks import ACTIONS, Arrays, Method, Task, fading, methods
from fastopt.benchmark.works import Work

TASK = Task(methods()["adamw"], works.find("3x50"))
WITHOUT_LIBRARIES = ("floor", "fastopt", "NumPy")


pytestmark = pytest.mark.usefixtures("hasty")


def run_of(task: Task, *contestants: str) -> Run:
    return perform([Entrant(name, task) for name in contestants], 1e-9)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", methods().values(), ids=methods())
def test_our_answers_and_the_textbooks_are_right(method: Method, dtype: str, action: str) -> None:
    task = replace(TASK, method=method, dtype=dtype, action=action)
    if method.obstacle(task.work):
        task = replace(task, work=Work("matrices", ((5, 7), (8, 3))))
    contestants = [name for name in WITHOUT_LIBRARIES if name != "NumPy" or method.optimizer in textbook.STEPS]
    run = run_of(task, *contestants)
    assert not run.absences
    assert [entrant.contestant for entrant in run.seconds] == contestants
    for seconds in run.seconds.values():
        assert seconds.shape == (measure.LEAST_ROUNDS,)
        assert (seconds > 0).all()


@pytest.mark.parametrize("name", ["fastopt bfloat16", "fastopt 8bit"])
def test_states_in_fewer_bits_take_part_where_there_are_some(name: str) -> None:
    run = run_of(TASK, "floor", "fastopt", name)
    assert [entrant.contestant for entrant in run.seconds] == ["floor", "fastopt", name]
    assert run.counterpart(Entrant(name, TASK)) == Entrant("fastopt", TASK)
    assert run.share_of_floor(Entrant(name, TASK)) is None  # (the floor moves other bytes)
    stateless, double = replace(TASK, method=methods()["sgd"]), replace(TASK, dtype="float64")
    for task, reason in (
        (stateless, "SGD has no states to store so"),
        (double, "states of float64 parameters are float64"),
    ):
        (absence,) = run_of(task, name).absences
        assert absence.reason == reason


class Idle(Fastopt):
    name = "idle"

    def __init__(self, task: Task, arrays: Arrays) -> None:
        super().__init__(task, arrays)
        self.step = lambda: None


class Hasty(Fastopt):
    """Leaves out the last element."""

    name = "hasty"

    def __init__(self, task: Task, arrays: Arrays) -> None:
        super().__init__(task, arrays)
        step, params = self.step, self.params

        def most_of_it() -> None:
            last = params[-1][-1]
            step()
            params[-1][-1] = last

        self.step = most_of_it


class Biased(Fastopt):
    """Has a rate that is wrong by a hundredth."""

    name = "biased"

    def __init__(self, task: Task, arrays: Arrays) -> None:
        options = {**task.method.options, "lr": 0.0101}
        super().__init__(replace(task, method=Method(task.method.optimizer, options)), arrays)


class Coarse(Fastopt):
    """Is far off in some elements, and not in all of them together, as it says."""

    name = "coarse"
    precision = 0.1

    def __init__(self, task: Task, arrays: Arrays) -> None:
        super().__init__(task, arrays)
        step, params = self.step, self.params

        def coarse() -> None:
            step()
            params[0][0] += 0.003

        self.step = coarse


class Noisy(Fastopt):
    """Writes on the terminal, past Python."""

    name = "noisy"

    def __init__(self, task: Task, arrays: Arrays) -> None:
        super().__init__(task, arrays)
        for stream in (1, 2):
            os.write(stream, b"noise")


class Broken(Fastopt):
    name = "broken"

    def __init__(self, task: Task, arrays: Arrays) -> None:
        raise RuntimeError("does not build\nfor many reasons")


def test_without_a_textbook_ours_in_float64_is_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(textbook.STEPS, "AdamW")
    monkeypatch.setitem(CONTESTANTS, "biased", Biased)
    run = run_of(TASK, *WITHOUT_LIBRARIES, "biased")
    assert [entrant.contestant for entrant in run.seconds] == ["floor", "fastopt"]
    numpy, biased = (absence.reason for absence in run.absences)
    assert numpy == "has no AdamW"
    assert biased.startswith("wrong answer")


@pytest.mark.parametrize("wrong", [Idle, Hasty, Biased])
def test_wrong_answers_are_not_timed(wrong: type[Fastopt], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTESTANTS, wrong.name, wrong)
    run = run_of(TASK, "fastopt", wrong.name)
    assert [entrant.contestant for entrant in run.seconds] == ["fastopt"]
    (absence,) = run.absences
    assert absence.entrant.contestant == wrong.name
    assert absence.reason.startswith("wrong answer: after 3 steps from ")


def test_what_is_coarse_by_design_is_judged_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTESTANTS, "coarse", Coarse)
    assert not run_of(TASK, "coarse").absences
    monkeypatch.setattr(Coarse, "precision", 0.01)
    (absence,) = run_of(TASK, "coarse").absences
    assert absence.reason.startswith("wrong answer")


def test_what_libraries_write_does_not_get_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CONTESTANTS, "noisy", Noisy)
    assert run_of(TASK, "noisy").seconds
    os.write(1, b"after")
    assert capfd.readouterr() == ("after", "")


def test_a_contestant_that_fails_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTESTANTS, "broken", Broken)
    run = run_of(TASK, "broken", "fastopt")
    assert [entrant.contestant for entrant in run.seconds] == ["fastopt"]
    assert [absence.reason for absence in run.absences] == ["does not build"]


def test_a_library_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unloadable(Fastopt):
        name = "unloadable"

        @classmethod
        def obstacle(cls, task: Task) -> str | None:
            raise ImportError("libmissing.so")

    monkeypatch.setitem(CONTESTANTS, "unloadable", Unloadable)
    run = run_of(TASK, "unloadable", "fastopt")
    assert [absence.reason for absence in run.absences] == ["libmissing.so"]
    assert len(run.seconds) == 1


def test_what_is_not_installed_is_left_out_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(Floor):
        name = "elsewhere"
        modules = ("no_such_module",)

    monkeypatch.setitem(CONTESTANTS, "elsewhere", Elsewhere)
    run = run_of(TASK, "elsewhere")
    assert not run.seconds
    assert [absence.reason for absence in run.absences] == ["no_such_module is not installed"]


def test_numpy_has_no_bfloat16_but_the_floor_has() -> None:
    run = run_of(replace(TASK, dtype="bfloat16"), *WITHOUT_LIBRARIES)
    assert [entrant.contestant for entrant in run.seconds] == ["floor"]
    assert {absence.reason for absence in run.absences} == {"NumPy has no bfloat16"}


def test_who_does_not_fit_in_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    room = 3.5 * TASK.footprint / runs.MEMORY_SHARE  # what they start from, and two of them
    monkeypatch.setattr(machine, "memory", lambda entry: int(room))
    run = run_of(TASK, *WITHOUT_LIBRARIES)
    assert [entrant.contestant for entrant in run.seconds] == ["floor", "fastopt"]
    assert "memory" in run.absences[0].reason


@pytest.mark.parametrize("states", range(4))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_floor_writes_what_it_has_read(states: int, dtype: str) -> None:
    method = next(
        found for found in methods().values() if not found.cls.method.matrices and found.states((20,)) == states
    )
    task = Task(method, works.find("2x20"), dtype)
    arrays = Arrays.of(task)
    floor = Floor(task, arrays)
    streams = [*floor.params, *floor.grads, *(state for several in floor.states for state in several)]
    assert len(streams) == 2 * (2 + states)
    for number, array in enumerate(streams):
        array[...] = number + 1
    floor.step()
    for number, array in enumerate(streams):
        assert (array == number + 1).all()


def test_threads_are_those_of_the_task_and_then_those_from_before() -> None:
    seen = []

    class Watching(Fastopt):
        def __init__(self, task: Task, arrays: Arrays) -> None:
            super().__init__(task, arrays)
            step = self.step

            def watched() -> None:
                seen.append(fastopt.get_num_threads())
                step()

            self.step = watched

    fastopt.set_num_threads(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONTESTANTS, "fastopt", Watching)
        run_of(replace(TASK, threads=1), "fastopt")
        assert set(seen) == {1}
        run_of(replace(TASK, threads=3), "fastopt")
        assert set(seen) == {1, 3}
    assert fastopt.get_num_threads() == 2


def test_clipping_starts_every_sample_from_the_same_gradients() -> None:
    task = replace(TASK, action="clip+zero")
    arrays = Arrays.of(task)
    contestant = Textbook(task, arrays)
    ready = runs.Ready(Entrant("NumPy", task), contestant, arrays)
    for _ in range(2):
        ready.before_sample()
        assert all((own == given).all() for own, given in zip(contestant.grads, arrays.grads, strict=True))
        ready.step()
        assert not any(own.any() for own in contestant.grads)


def test_fading_moments_reach_down_to_the_denormals() -> None:
    task = replace(TASK, work=works.find("1000"), fading=True)
    ready = runs.prepare(Entrant("NumPy", task), {})
    assert isinstance(ready.contestant, Textbook)
    assert not ready.contestant.grads[0].any()
    moments = ready.contestant.states[0]["m"]
    assert moments.max() > 1e-3
    assert 0 < moments.min() < 2 * np.finfo(np.float32).smallest_normal
    assert all(np.isfinite(gradient).all() for gradient in fading(task))


def test_shares_and_counterparts_are_of_the_same_run() -> None:
    floor, ours, numpy = (Entrant(name, TASK) for name in WITHOUT_LIBRARIES)
    times = {floor: np.full(9, 1.0), ours: np.full(9, 2.0), numpy: np.full(9, 8.0)}
    run = Run(times, [])
    share = run.share_of_floor(ours)
    assert share is not None
    assert share.median == 0.5
    assert run.counterpart(numpy) == ours
    assert run.ratio(numpy, ours).median == 4
    clipped = Entrant("fastopt", replace(TASK, action="clip"))
    assert run.counterpart(clipped) is None
    assert Run({floor: times[floor], clipped: times[ours]}, []).share_of_floor(clipped) is not None
    other = Entrant("fastopt", replace(TASK, dtype="float64"))
    assert Run({floor: times[floor], other: times[ours]}, []).share_of_floor(other) is None


def test_runs_survive_json() -> None:
    run = run_of(replace(TASK, dtype="bfloat16"), *WITHOUT_LIBRARIES)
    again = Run.from_json(run.to_json())
    assert again.absences == run.absences
    assert list(again.seconds) == list(run.seconds)
    for entrant, seconds in run.seconds.items():
        assert np.allclose(again.seconds[entrant], seconds, rtol=1e-4)


def test_contestants_are_named_as_they_are_listed() -> None:
    assert all(contestant.name == name for name, contestant in CONTESTANTS.items())
    assert {name for name, contestant in CONTESTANTS.items() if issubclass(contestant, OnTensors)} >= {"torch"}


def test_caches_of_this_machine_grow_with_the_level() -> None:
    sizes = list(machine.caches().values())
    assert sizes == sorted(sizes)
    if not Path("/sys/devices/system/cpu/cpu0/cache").exists():
        assert not sizes
