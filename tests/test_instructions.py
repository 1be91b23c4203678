"""A kernel that stops vectorising, or that does more work than it did, fails here, on a machine however busy."""

import instructions
import pytest

from fastopt import _core

TOLERANCE = 0.03


@pytest.mark.slow
@pytest.mark.skipif(not instructions.is_possible(), reason="needs gcc and valgrind, and x86-64")
def test_kernels_execute_as_many_instructions_as_recorded() -> None:
    compiler = instructions.compiler()
    if compiler not in instructions.recorded():
        pytest.skip(f"nothing is recorded for {compiler}: python tests/instructions.py does that")
    expected = instructions.recorded()[compiler]
    actual = instructions.measure()
    changed = {
        f"{function} on {isa}": (expected[isa].get(function), actual[isa].get(function))
        for isa in expected
        for function in expected[isa].keys() | actual[isa].keys()
        if differ(expected[isa].get(function), actual[isa].get(function))
    }
    assert not changed, "if that is as it should be: python tests/instructions.py records it"


def differ(expected: int | None, actual: int | None) -> bool:
    return expected is None or actual is None or abs(actual - expected) > TOLERANCE * expected


def test_every_kernel_is_recorded() -> None:
    for counts in instructions.recorded().values():
        for functions in counts.values():
            assert {f"step_{rule}_f32" for rule in _core.RULES} <= functions.keys()


PROFILE = """
fl=(1) /somewhere/csrc/step.c
fn=(1) run
12 5
+1 7
cfi=(2) /somewhere/csrc/kernels.c
cfn=(2) step_sgd_f32
calls=3 40
13 1000
* 2
fl=(2)
fn=(2)
40 900
+2 100
"""


def test_own_costs_leave_out_what_is_called() -> None:
    costs = instructions.own_costs(PROFILE)
    assert costs == {("/somewhere/csrc/step.c", "run"): 14, ("/somewhere/csrc/kernels.c", "step_sgd_f32"): 1000}
