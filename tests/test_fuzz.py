"""Random steps in C, under AddressSanitizer and UndefinedBehaviorSanitizer: see fuzz.c."""

import shutil
from pathlib import Path

import native
import pytest
from arrays import CSRC

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
CORE = [CSRC / name for name in ("names.c", "dispatch.c", "step.c")]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_random_steps_have_the_same_bits_everywhere_and_stay_in_their_arrays(tmp_path: Path) -> None:
    # Optimized a little only: sanitized vectors take long to compile, and an element's bits do not depend on it.
    options = ["-O1", "-g", "-fopenmp", *SANITIZERS]
    sources = [Path(__file__).with_name("fuzz.c"), *CORE]
    fuzz = native.build(tmp_path / "fuzz", sources, native.isas(), options)
    assert native.run(fuzz, "1", "400").endswith("the same bits\n")
