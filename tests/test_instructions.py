"""A kernel that stops vectorising, or that does more work than it did, fails here, on a machine however busy."""

import instructions
import pytest

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
        f"{kernel} on {isa}: {counts[kernel]:,} instructions, recorded {recorded[isa][kernel]:,}"
        for isa, counts in actual.items()
        for kernel in counts.keys() & recorded[isa].keys()
        if abs(counts[kernel] - recorded[isa][kernel]) > TOLERANCE * recorded[isa][kernel]
    ]
    assert not changes, "\n".join(["python tests/instructions.py records it if this is as it should be:", *changes])
    for isa, counts in actual.items():
        print(f"{isa}: {sum(counts.values()):,} instructions in {len(counts)} kernels, as recorded of {compiler}")


PROFILE = """
fl=(1) /somewhere/csrc/step.c
fn=(1) run
12 5
+1 7
cfi=(2) /somewhere/csrc/kernels.c
cfn=(2) loop_sgd_f32
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
    assert costs == {("/somewhere/csrc/step.c", "run"): 14, ("/somewhere/csrc/kernels.c", "loop_sgd_f32"): 1000}
