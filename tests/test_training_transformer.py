"""The transformer, and what fastopt's optimizers and torch's own do to it."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainings import Course, trained

import fastopt
from fastopt.training.batches import Batch
from fastopt.training.config import TransformerConfig
from fastopt.training.errors import TrainingError
from fastopt.training.job import Job
from fastopt.training.loop import train
from fastopt.training.recipes import RULES, configure, optimizer_names

torch = pytest.importorskip("torch")

from fastopt.training.transformer import Transformer  # noqa: E402

CHARACTERS, CONTEXT = 7, 8


def new_model(seed: int = 0, **settings: Any) -> Transformer:
    return Transformer(
        CHARACTERS, **{"layers": 2, "width": 64, "context": CONTEXT, "dtype": "float64", "seed": seed, **settings}
    )


def pieces(rows: int, seed: int = 0) -> Batch:
    numbers = np.random.default_rng(seed).integers(0, CHARACTERS, (rows, CONTEXT + 1))
    return Batch(numbers[:, :-1].copy(), numbers[:, 1:].copy())


def scores(model: Transformer, numbers: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model.network(torch.from_numpy(numbers)).numpy()
    return found


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch from waiting for cores that other processes want."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- the model ----


def test_no_character_sees_a_later_one() -> None:
    model, numbers = new_model(), pieces(1).features
    before = scores(model, numbers)
    for position in range(CONTEXT):
        changed = numbers.copy()
        changed[0, position] = (changed[0, position] + 1) % CHARACTERS
        after = scores(model, changed)
        np.testing.assert_array_equal(after[0, :position], before[0, :position])
        assert (np.abs(after[0, position:] - before[0, position:]).max(axis=1) > 1e-6).all()


def test_a_shorter_piece_has_the_scores_of_the_beginning() -> None:
    model, numbers = new_model(), pieces(2).features
    np.testing.assert_allclose(scores(model, numbers[:, :3].copy()), scores(model, numbers)[:, :3], rtol=1e-12)


def test_order_matters() -> None:
    model = new_model()
    one, other = scores(model, np.array([[1, 2, 3]])), scores(model, np.array([[2, 1, 3]]))
    assert np.abs(one[0, 2] - other[0, 2]).max() > 1e-6


def test_loss_is_the_mean_negative_log_likelihood() -> None:
    model, batch = new_model(), pieces(5)
    found = scores(model, batch.features)
    likelihood = np.exp(found) / np.exp(found).sum(axis=-1, keepdims=True)
    chosen = np.take_along_axis(likelihood, batch.targets[..., None], axis=-1)
    assert model.forward_backward(batch) == pytest.approx(-np.log(chosen).mean(), rel=1e-12)
    assert model.evaluate(batch) == {
        "loss": pytest.approx(-np.log(chosen).mean(), rel=1e-12),
        "bits_per_character": pytest.approx(-np.log2(chosen).mean(), rel=1e-12),
    }


def test_evaluation_in_blocks_is_that_of_all_pieces() -> None:
    model, batch = new_model(), pieces(150)
    assert model.evaluate(batch)["loss"] == pytest.approx(model.forward_backward(batch), rel=1e-12)


def test_initial_weights() -> None:
    model = new_model(width=128, layers=3)
    assert {name for name, _ in model.vectors} | {name for name, _ in model.matrices} == model.parameters.keys()
    for name, values in model.parameters.items():
        if values.ndim == 1:
            assert (values == (1 if name.endswith("norm.weight") else 0)).all()
            continue
        expected = 0.02 if name in ("characters.weight", "positions.weight") else values.shape[1] ** -0.5
        if name.endswith(("attention_out.weight", "mlp_out.weight")):
            expected /= math.sqrt(6)
        assert np.std(values) == pytest.approx(expected, rel=5 * (2 * values.size) ** -0.5), name
    shapes = [values.shape for values in model.parameters.values()]
    block = [(384, 128), (128, 128), (512, 128), (128, 512)]
    assert shapes[:14] == [(CHARACTERS, 128), (CONTEXT, 128), *block * 3]


def test_initial_weights_are_of_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = new_model(), new_model(), new_model(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for name, values in first.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], values)
        assert values.ndim == 1 or not np.array_equal(other.parameters[name], values)


def test_parameters_share_the_memory_of_the_network() -> None:
    model, batch = new_model(), pieces(3)
    before = model.forward_backward(batch)
    for values in model.parameters.values():
        values *= 1.5
    assert model.forward_backward(batch) != before


def test_sample_is_drawn_from_the_likelihoods() -> None:
    likelihood = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02])
    model = new_model(layers=1, width=32)
    model.parameters["norm.weight"][:] = 0  # so that the network says the same after every text
    model.parameters["norm.bias"][:] = np.eye(32)[0]
    model.parameters["characters.weight"][:, 0] = np.log(likelihood)
    drawn = model.sample(0, 3000, seed=5)
    shares = np.bincount(drawn, minlength=CHARACTERS) / 3000
    np.testing.assert_allclose(shares, likelihood, atol=4 * np.sqrt(likelihood / 3000).max())
    assert drawn == model.sample(0, 3000, seed=5)
    assert drawn != model.sample(0, 3000, seed=6)


# ---- a whole run ----


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "t.txt"
    words = np.random.default_rng(0).choice(["one", "two", "three", "four"], 800)
    path.write_text(" ".join(words))
    return path


def settings(text: Path, **others: Any) -> dict[str, Any]:
    return {"text": str(text), "layers": 2, "width": 32, "context": 16, "lr": 3e-3, "epochs": 2, **others}


def course(text: Path, **others: Any) -> Course:
    return trained("transformer", **settings(text, **others))


def test_learns_what_there_is_to_learn(text: Path) -> None:
    learned = course(text, epochs=4)
    # A word is one of four, 2 bits, and has 4.75 characters with its blank on average.
    assert 2 / 4.75 < learned.scores["bits_per_character"] < 0.75
    assert learned.losses[0] == pytest.approx(math.log(11), rel=0.02)


SAME_FORMULA = 1e-9
"""How far losses in float64 may be apart: rounding makes 1e-14 of them in a short training, whatever the processor, and
the least difference of a formula, epsilon inside the root instead of outside, 1e-6."""


@pytest.mark.parametrize("rival", ["torch", "torch-fused"])
def test_torch_gives_the_same_curve(text: Path, rival: str) -> None:
    ours, theirs = (course(text, optimizer=name, dtype="float64") for name in ("adamw", f"{rival}:adamw"))
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=SAME_FORMULA)
    assert ours.losses[-1] < 0.6 * ours.losses[0]
    assert ours.scores == pytest.approx(theirs.scores, rel=SAME_FORMULA)


def test_in_float32_the_curves_differ_by_its_rounding(text: Path) -> None:
    """As much as torch's own curve differs from that in float64: what rounding makes depends on the processor."""
    exact = course(text, optimizer="torch:adamw", dtype="float64").losses
    theirs, ours = (course(text, optimizer=name).losses for name in ("torch:adamw", "adamw"))
    assert np.abs(ours - exact).max() < 10 * np.abs(theirs - exact).max()


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_learns_and_agrees_with_torch(text: Path, name: str) -> None:
    lr = configure("transformer", {"optimizer": name}).lr
    try:
        theirs = course(text, optimizer=f"torch:{name}", lr=lr, dtype="float64", epochs=1)
    except TrainingError as error:
        assert re.search("there is no|is for sparse gradients", str(error))  # noqa: PT017
        if "sparse" in str(error):
            return
    else:
        ours = course(text, optimizer=name, lr=lr, dtype="float64", epochs=1)
        np.testing.assert_allclose(ours.losses, theirs.losses, rtol=SAME_FORMULA)
    if name == "ftrl":
        return  # its parameters begin at zero, wherever they were: of several layers none learns from there
    enough = 0.9 if name in RULES["transformer"] else 0.97  # the rate of a recipe, or the optimizer's own
    assert course(text, optimizer=name, lr=lr).scores["loss"] < enough * math.log(11)


@contextmanager
def job(text: Path, **others: Any) -> Iterator[Job]:
    new = Job(configure("transformer", settings(text, **others)))
    with new.arithmetic():
        yield new


def backward(new: Job) -> dict[str, np.ndarray]:
    """Find the gradients of the first batch and return copies of the parameters before the step."""
    new.problem.model.forward_backward(next(new.problem.batches.from_step(0)))
    return {name: values.copy() for name, values in new.problem.model.parameters.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "torch:adamw", "torch-fused:adamw"])
def test_weights_decay_in_matrices_only(text: Path, optimizer: str) -> None:
    with job(text, optimizer=optimizer, schedule="constant", weight_decay=0.5, lr=0.25) as new:
        model: Any = new.problem.model
        before = backward(new)
        for parameter in model.network.parameters():
            parameter.grad.zero_()
        assert new.problem.update() == (0.25, 0.0, False, False)
        for name, values in model.parameters.items():
            expected = before[name] * np.float32(1 - 0.25 * 0.5) if values.ndim == 2 else before[name]
            np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("clip_norm", [0.5, 0.0, 1e6])
def test_steps_tell_the_same(text: Path, clip_norm: float) -> None:
    told = []
    for optimizer in ("adamw", "torch:adamw"):
        with job(text, optimizer=optimizer, clip_norm=clip_norm, warmup="10") as new:
            infos = []
            for _ in range(3):
                backward(new)
                infos.append(new.problem.update())
            told.append(infos)
    for ours, theirs in zip(*told, strict=True):
        assert (ours.lr, ours.clipped, ours.skipped) == (theirs.lr, theirs.clipped, theirs.skipped)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
        assert ours.clipped == (clip_norm == 0.5)
    assert [info.lr for info in told[0]] == pytest.approx([0, 3e-4, 6e-4])


@pytest.mark.parametrize("optimizer", ["adamw", "torch:adamw"])
def test_divergence_is_an_error_before_the_parameters_are_touched(text: Path, optimizer: str) -> None:
    with job(text, optimizer=optimizer) as new:
        new.problem.model.parameters["norm.bias"][3] = np.inf
        before = {name: values.copy() for name, values in new.problem.model.parameters.items()}
        with pytest.raises(TrainingError, match=r"the training diverged at step 1 .*; try a lower --lr"):
            train(new.run, observe=lambda record: None, save=lambda: None, should_stop=lambda: False)
        for name, values in new.problem.model.parameters.items():
            np.testing.assert_array_equal(values, before[name])


def test_batches_and_held_out_pieces_are_whole(text: Path) -> None:
    with job(text, batch_size="full") as new:
        length = len(text.read_text())
        learned, held_out = length - round(length / 10), round(length / 10)
        assert new.problem.batches.steps_per_epoch == 1
        batch = next(new.problem.batches.from_step(0))
        assert batch.features.shape == batch.targets.shape == ((learned - 1) // 16, 16)
        assert batch.samples == (learned - 1) // 16 * 16
        assert f"{learned:,} characters to learn, {held_out:,} held out, 10 different" in new.problem.data_facts


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_algorithms_while_it_trains(text: Path, threads: int) -> None:
    outside = (fastopt.get_num_threads(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    with job(text, threads=threads):
        assert fastopt.get_num_threads() == torch.get_num_threads() == threads
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert outside == (fastopt.get_num_threads(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_traffic_counts_every_read_and_write(text: Path) -> None:
    with job(text) as new:
        backward(new)
        new.problem.update()
        elements = sum(values.size for values in new.problem.model.parameters.values())
        assert new.optimizer_bytes() == 4 * (1 + 7) * elements  # the norm; p, g, m, v; p, m, v


@pytest.mark.parametrize("optimizer", ["torch:best", "torch-fused:rmsprop", "jax:adamw"])
def test_unfit_optimizers(text: Path, optimizer: str) -> None:
    config = configure("transformer", settings(text))
    assert isinstance(config, TransformerConfig)
    with pytest.raises(TrainingError, match="--optimizer"):
        Job(replace(config, optimizer=optimizer))


def test_width_is_a_multiple_of_that_of_a_head(text: Path) -> None:
    with pytest.raises(TrainingError, match=r"--width: expected a multiple of 32, .*, got 48"):
        course(text, width=48)
