"""A kernel that stops vectorising, or that does more work than it did, fails here, on a machine however busy."""

import instructions
import pytest
from native import SUFFIXES

from fastopt import _core

TOLERANCE = 0.03


@pytest.mark.slow
def test_kernels_execute_as_many_instructions_as_recorded() -> None:
    if not instructions.is_possible():
        pytest.skip("nothing is counted: that needs gcc and valgrind")
    compiler = instructions.compiler()
    recorded = instructions.recorded().get(compiler)
    if recorded is None:
        pytest.skip(f"nothing is counted: nothing is recorded of {compiler}; python tests/instructions.py does that")
    actual = instructions.measure()
    changes = [
        f"{function} on {isa}: {counts.get(function, 0):,} instructions, recorded {recorded[isa].get(function, 0):,}"
        for isa, counts in actual.items()
        for function in sorted(counts.keys() | recorded[isa].keys())
        if differ(counts.get(function, 0), recorded[isa].get(function, 0))
    ]
    assert not changes, "\n".join(["python tests/instructions.py records it if this is as it should be:", *changes])
    for isa, counts in actual.items():
        print(f"{isa}: {sum(counts.values()):,} instructions in {len(counts)} functions, as recorded of {compiler}")


def differ(actual: int, recorded: int) -> bool:
    return abs(actual - recorded) > TOLERANCE * recorded


def test_every_kernel_is_recorded() -> None:
    """Those of each rule for each storage, and what else a table of kernels has."""
    names = [*(f"step_{rule}" for rule in _core.RULES), "sum_of_squares", "max_abs", "scale", "clamp"]
    kernels = {f"{name}_{suffix}" for name in names for suffix in SUFFIXES}
    for compiler, counts in instructions.recorded().items():
        for isa, functions in counts.items():
            assert functions.keys() == kernels | {"step.c"}, f"{isa} of {compiler}"


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
