"""The C core on its own, under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer: see harness.c."""

import shutil
from pathlib import Path

import native
import pytest

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Optimized a little only: sanitized vectors take long to compile, and an element's bits do not depend on it.
    options = ["-O1", "-g", *SANITIZERS]
    return native.harness(tmp_path_factory.mktemp("harness"), native.isas(), options)


def test_every_rule_and_storage_is_right_beside_a_plain_loop(harness: Path) -> None:
    assert native.run(harness, "check").endswith("portable: right\n")


def test_random_steps_have_the_same_bits_everywhere_and_stay_in_their_arrays(harness: Path) -> None:
    assert native.run(harness, "fuzz", "1", "400").endswith("the same bits\n")


def test_no_two_threads_are_at_the_same_memory_at_once(tmp_path: Path) -> None:
    options = ["-O1", "-g", "-fsanitize=thread"]
    program = native.harness(tmp_path, native.isas(), options)
    runtime = tmp_path / "libgomp.so.1"
    native.run(
        "gcc", *options, *native.FLAGS, "-shared", "-pthread", native.HERE / "openmp_of_pthreads.c", "-o", runtime
    )
    searched = {"LD_LIBRARY_PATH": str(tmp_path)}
    assert native.run(program, "fuzz", "1", "100", **searched).endswith("the same bits\n")
    assert native.run(program, "together", "2", "50", **searched).count("the same bits\n") == 2
