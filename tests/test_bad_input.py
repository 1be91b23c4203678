"""Bad input: an exception that names the parameter or the argument, and nothing has been modified."""

import array
import gc
import re
import weakref
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from arrays import Array, nonzero, unchanged
from cases import MAKERS, Case, Maker, every_optimizer, first_case_of_each_rule, warmup

import fastopt
from fastopt import optimizers
from fastopt.methods.base import Maybe, Quantity


def array_of(shape: int | tuple[int, ...] = (2, 3), dtype: str = "float64") -> Array:
    return np.arange(1.0, np.prod(shape) + 1).reshape(shape).astype(dtype)


def swapped(dtype: str) -> Array:
    return array_of().astype(np.dtype(dtype).newbyteorder())


def misaligned() -> Array:
    return np.frombuffer(bytearray(6 * 8 + 1), "float64", offset=1).reshape(2, 3)


def read_only() -> Array:
    found = array_of()
    found.flags.writeable = False
    return found


UNFIT_DTYPES = {
    "int64": array_of(dtype="int64"),
    "float16": array_of(dtype="float16"),
    "longdouble": array_of(dtype="longdouble"),
    "complex128": array_of(dtype="complex128"),
    "bool": array_of(dtype="bool"),
    "object": array_of(dtype="object"),
    "byte-swapped float64": swapped("float64"),
    "byte-swapped float32": swapped("float32"),
    "records": np.zeros((2, 3), [("x", "float64")]),
}
UNFIT_LAYOUTS = {
    "every other column": array_of((2, 6))[:, ::2],
    "reversed": array_of()[:, ::-1],
    "neither order": array_of((2, 3, 4)).transpose(1, 0, 2),
    "broadcast": np.broadcast_to(np.ones(3), (2, 3)),
}
NO_ARRAYS = {
    "None": None,
    "float": 1.0,
    "NumPy scalar": np.float64(1.0),
    "string": "weights",
    "list of floats": [1.0, 2.0],
    "bytes": b"12345678",
    "masked array": np.ma.masked_array([1.0, 2.0], [True, False]),
}

unfit = pytest.mark.parametrize(
    ("unfit", "message"),
    [
        *(pytest.param(value, "expected dtype float32 or float64", id=name) for name, value in UNFIT_DTYPES.items()),
        *(pytest.param(value, "contiguous", id=name) for name, value in UNFIT_LAYOUTS.items()),
        pytest.param(misaligned(), "aligned", id="misaligned"),
    ],
)


# ---- parameters ----


@unfit
@every_optimizer
def test_unfit_parameter(make: Maker, unfit: Array, message: str) -> None:
    fit = array_of(2)
    with unchanged(unfit, fit), pytest.raises((TypeError, ValueError), match=rf"^params\[1\]: .*{message}"):
        make([fit, unfit])


@pytest.mark.parametrize("value", NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_parameter_that_is_no_array(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^params\['w'\](\[0\])?: "):
        fastopt.SGD({"v": array_of(), "w": value})


def test_read_only_parameter() -> None:
    with pytest.raises(ValueError, match=r"^params\['a'\]\[1\]: .*read-only"):
        fastopt.SGD({"a": [array_of(), read_only()]})


def test_parameter_that_became_read_only() -> None:
    w = array_of()
    opt = fastopt.SGD(w)
    w.flags.writeable = False
    with unchanged(opt), pytest.raises(ValueError, match=r"params.*read-only"):
        opt.step(array_of())


@pytest.mark.parametrize("overlap", [slice(0, 4), slice(3, 7), slice(2, 3), slice(None)])
def test_parameters_that_overlap(overlap: slice) -> None:
    w = array_of(10)
    between = array_of(3)
    for params in ([w[0:4], between, w[overlap]], [w[overlap], between, w[0:4]]):
        with pytest.raises(ValueError, match=r"^params\[0\] and params\[2\] overlap in memory$"):
            fastopt.SGD(params)


def test_the_same_array_twice() -> None:
    w = array_of()
    with pytest.raises(ValueError, match=r"^params\['a'\] and params\['b'\] overlap in memory$"):
        fastopt.SGD({"a": w, "b": w})
    with pytest.raises(ValueError, match=r"^param_groups\[0\]\['params'\] and .*\[1\]\['params'\]\[1\] overlap"):
        fastopt.SGD([{"params": w}, {"params": [array_of(), w.T]}])


def test_neighbours_do_not_overlap() -> None:
    w = array_of(10)
    fastopt.SGD([w[0:4], w[4:4], w[4:9], w[9:]]).step([np.ones(4), np.ones(0), np.ones(5), np.ones(1)])


@pytest.mark.parametrize("params", [[], {}, (), [[], {}], [{"params": []}], iter([])])
def test_no_parameters(params: Any) -> None:
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        fastopt.SGD(params)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"params": array_of(), "learning_rate": 0.1}, "learning_rate"),
        ({"params": array_of(), "lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"lr": 0.1}, "params"),
        ({"params": array_of(), "momentum": -1}, "Invalid momentum value: -1"),
        ({"params": array_of(dtype="int64")}, r"param_groups\[1\]\['params'\]: expected dtype"),
        ({"params": {"w": None}}, r"param_groups\[1\]\['params'\]\['w'\]"),
        ({"params": array_of(), "nesterov": True}, "Nesterov momentum requires"),
    ],
)
def test_unfit_group(group: dict[str, Any], message: str) -> None:
    opt = fastopt.SGD([{"params": array_of()}])
    with unchanged(opt, group), pytest.raises((TypeError, ValueError), match=message):
        opt.add_param_group(group)
    opt.step([array_of()])


@pytest.mark.parametrize("again", [array_of(4), array_of(4)[1:3]])
def test_group_with_a_parameter_that_is_already_there(again: Array) -> None:
    base = again if again.base is None else again.base
    opt = fastopt.SGD(base, momentum=0.5)
    with unchanged(opt), pytest.raises(ValueError, match="overlap in memory"):
        opt.add_param_group({"params": again})
    opt.step(np.ones(base.shape))


def test_group_beside_an_edited_one_that_has_become_invalid() -> None:
    opt = fastopt.SGD(array_of())
    opt.param_groups[0]["lr"] = -1
    with unchanged(opt), pytest.raises(ValueError, match="Invalid learning rate: -1"):
        opt.add_param_group({"params": array_of()})


# ---- gradients ----

GRADIENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "other dtype": (lambda: array_of(dtype="float32"), "expected the parameter's dtype float64, got float32"),
    "other shape": (lambda: array_of((3, 2)), r"expected the parameter's shape \(2, 3\), got \(3, 2\)"),
    "flat": (lambda: array_of(6), r"shape \(2, 3\), got \(6,\)"),
    "one dimension more": (lambda: array_of((1, 2, 3)), "shape"),
    "Fortran order": (lambda: np.asfortranarray(array_of()), "memory order"),
    "no array": (lambda: [[1.0, 2.0, 3.0]] * 2, "expected a NumPy array, got list"),
    "number": (lambda: 1.0, "expected a NumPy array, got float"),
    "zero-dimensional": (lambda: np.array(1.0), "shape"),
    **{name: (value.copy, "expected dtype") for name, value in UNFIT_DTYPES.items()},
    **{name: (value.view, "contiguous|shape") for name, value in UNFIT_LAYOUTS.items()},
    "misaligned": (misaligned, "aligned"),
}


@pytest.mark.parametrize(("make", "message"), GRADIENTS.values(), ids=GRADIENTS)
@first_case_of_each_rule
def test_unfit_gradient(case: Case, make: Callable[[], Any], message: str) -> None:
    opt = case.make({"v": array_of(), "w": array_of()})
    opt.step({"v": array_of(), "w": array_of()})
    grads = {"v": array_of(), "w": make()}
    with (
        unchanged(opt, grads),
        pytest.raises((TypeError, ValueError), match=rf"^gradient of params\['w'\]: .*({message})"),
    ):
        opt.step(grads, zero_grad=True)
    opt.step({"v": array_of(), "w": array_of()})


def test_fortran_order_is_fine_where_both_have_it() -> None:
    w = np.asfortranarray(array_of())
    fastopt.SGD(w, lr=1.0).step(np.asfortranarray(array_of()))
    assert not w.any()
    column = array_of((4, 1))
    fastopt.SGD(column, lr=1.0).step(np.asfortranarray(array_of((4, 1))))
    assert not column.any()


STRUCTURES: dict[str, tuple[Any, str]] = {
    "missing": ({"a": 1, "b": [2]}, r"grads\['b'\]: expected 2 entries, got 1"),
    "extra": ({"a": 1, "b": [2, 3, 4]}, r"grads\['b'\]: expected 2 entries, got 3"),
    "missing key": ({"a": 1}, r"grads: .*missing: \['b'\]"),
    "extra key": ({"a": 1, "b": [2, 3], "c": 4}, r"grads: .*extra: \['c'\]"),
    "list for a dict": ([1, [2, 3]], r"grads: expected a dict .* got list"),
    "dict for a list": ({"a": 1, "b": {"x": 2, "y": 3}}, r"grads\['b'\]: expected a list .* got dict"),
    "nested too deep": ({"a": [1], "b": [2, 3]}, r"gradient of params\['a'\]: expected a NumPy array, got list"),
    "not nested": ({"a": 1, "b": 2}, r"grads\['b'\]: expected a list of 2 entries, got"),
    "None for a list": ({"a": 1, "b": None}, r"grads\['b'\]: expected a list of 2 entries, got NoneType"),
    "None": (None, "grads: expected a dict .* got NoneType"),
    "array": (1, "grads: expected a dict .* got ndarray"),
}


def with_arrays(tree: Any) -> Any:
    """The structure with an array for each number."""
    if isinstance(tree, Mapping):
        return {key: with_arrays(entry) for key, entry in tree.items()}
    if isinstance(tree, list):
        return [with_arrays(entry) for entry in tree]
    return None if tree is None else array_of()


@pytest.mark.parametrize(("structure", "message"), STRUCTURES.values(), ids=STRUCTURES)
def test_wrongly_nested_gradients(structure: Any, message: str) -> None:
    opt = fastopt.Adam(with_arrays({"a": 1, "b": [2, 3]}))
    grads = with_arrays(structure)
    with unchanged(opt, grads), pytest.raises((TypeError, ValueError), match=message):
        opt.step(grads, zero_grad=True)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ([1], "expected one entry for each of 2 groups or 3 gradients, got 1"),
        ([1, 2, 3, 4], "expected one entry for each of 2 groups or 3 gradients, got 4"),
        ([1, [2]], r"grads\[1\]: expected 2 entries, got 1"),
        ([[1], [2, 3], [4]], "expected one entry for each of 2 groups"),
        ({"a": 1}, "expected a list with one entry a group, got dict"),
        (1, "expected a list with one entry a group, got ndarray"),
        (None, "expected a list with one entry a group, got NoneType"),
    ],
)
def test_wrongly_nested_gradients_of_groups(structure: Any, message: str) -> None:
    opt = fastopt.Adam([{"params": array_of()}, {"params": [array_of(), array_of()]}])
    grads = with_arrays(structure)
    with unchanged(opt, grads), pytest.raises((TypeError, ValueError), match=message):
        opt.step(grads)


@pytest.mark.parametrize("zero_grad", [False, True])
def test_gradient_that_overlaps_a_parameter(zero_grad: bool) -> None:
    memory = array_of(20)
    opt = fastopt.SGD([memory[0:4], memory[8:12]], momentum=0.9)
    apart = array_of(4)
    for begin in (0, 1, 3, 5, 7, 8, 11):
        overlapped = 0 if begin < 4 else 1
        message = rf"^gradient of params\[1\]: overlaps params\[{overlapped}\] in memory$"
        with unchanged(opt, memory, apart), pytest.raises(ValueError, match=message):
            opt.step([apart, memory[begin : begin + 4]], zero_grad=zero_grad)
    opt.step([memory[4:8], memory[12:16]], zero_grad=zero_grad)


def test_gradient_that_is_its_parameter() -> None:
    w = array_of()
    opt = fastopt.SGD(w)
    with unchanged(opt), pytest.raises(ValueError, match=r"^gradient of params: overlaps params in memory$"):
        opt.step(w)


def test_gradients_that_overlap_cannot_both_be_zeroed() -> None:
    memory, opt = array_of(7), fastopt.SGD([array_of(4), array_of(4)])
    grads = [memory[:4], memory[3:]]
    with (
        unchanged(opt, grads),
        pytest.raises(ValueError, match=r"^gradients of params\[0\] and params\[1\] overlap in memory"),
    ):
        opt.step(grads, zero_grad=True)
    opt.step(grads)


def test_read_only_gradient_is_read_but_not_zeroed() -> None:
    opt = fastopt.SGD(array_of(), lr=1.0)
    with unchanged(opt), pytest.raises(ValueError, match=r"^gradient of params: .*read-only"):
        opt.step(read_only(), zero_grad=True)
    opt.step(read_only())
    assert not opt.param_groups[0]["params"][0].any()


# ---- hyper-parameters ----

NO_NUMBERS: list[Any] = [
    *(-1, -1e-300, float("nan"), float("inf"), -float("inf")),
    *(None, "0.1", True, 1j, np.complex64(1), (0.1,), np.array([0.1]), np.array([0.1, 0.2]), 10**400, b"1"),
]


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        pytest.param(MAKERS[optimizer], name, value, id=f"{optimizer}-{name}-{repr(value)[:20]}")
        for optimizer in MAKERS
        for name, option in optimizers.registry()[optimizer].method.options.items()
        if type(option) in (Quantity, Maybe) and option.low == 0 and not option.fixed  # type: ignore[attr-defined]
        for value in NO_NUMBERS
        if not (value is None and isinstance(option, Maybe))
    ],
)
def test_number_out_of_bounds(make: Maker, name: str, value: Any) -> None:
    words = "learning rate" if name == "lr" else rf"({name}|epsilon) value"
    message = rf"^Invalid {words}: {re.escape(str(value))}"
    w = array_of()
    with pytest.raises(ValueError, match=message):
        make(w, **{name: value})
    opt = make(w)
    opt.step(array_of())
    for edited in (value, lambda step: value):
        kept = opt.param_groups[0][name]
        opt.param_groups[0][name] = edited
        with unchanged(opt), pytest.raises(ValueError, match=message):
            opt.step(array_of())
        opt.param_groups[0][name] = kept
    with unchanged(opt), pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": array_of(), name: value})
    opt.step(array_of())
    assert opt.step_count == 2


@pytest.mark.parametrize("value", [1, 1.0, -0.1, float("nan"), None, "0.9", 2])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("make", [fastopt.Adam, fastopt.AdamW])
def test_beta_out_of_bounds(make: Maker, index: int, value: Any) -> None:
    for beta in (value, lambda step: value):
        betas = (beta, 0.9) if index == 0 else (0.9, beta)
        with pytest.raises(ValueError, match=rf"^Invalid beta parameter at index {index}: {value}$"):
            make(array_of(), betas=betas)


@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.9, 0.9), None, "ab", {0.9: 0.9, 0.8: 0.8}])
def test_betas_that_are_not_two(betas: Any) -> None:
    with pytest.raises(ValueError, match=r"^Invalid betas: expected two numbers, got "):
        fastopt.Adam(array_of(), betas=betas)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "Nesterov momentum requires"),
        ({"velocity": "average"}, "Invalid velocity: .*'sum', 'mean', 'step'.*got 'average'"),
        ({"velocity": "mean", "momentum": 0.9, "dampening": 0.1}, "Invalid dampening value: 0.1; velocity='mean'"),
        ({"velocity": "step", "momentum": 0.9, "dampening": 0.1}, "Invalid dampening value: 0.1; velocity='step'"),
        ({"dampening": float("nan")}, "Invalid dampening value: nan"),
    ],
)
def test_options_of_sgd_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastopt.SGD(array_of(), **options)
    opt = fastopt.SGD(array_of())
    opt.param_groups[0].update(options)
    with unchanged(opt), pytest.raises(ValueError, match=message):
        opt.step(array_of())


@pytest.mark.parametrize(("name", "words"), [("clip_norm", "clip_norm value"), ("clip_value", "clip_value value")])
@pytest.mark.parametrize("value", [-1, float("nan"), "1", True, -float("inf"), (1.0,)], ids=repr)
def test_clipping_out_of_bounds(name: str, words: str, value: Any) -> None:
    message = rf"^Invalid {words}: {re.escape(str(value))}"
    make = MAKERS["SGD"]
    for bound in (value, lambda step: value):
        with pytest.raises(ValueError, match=message):
            make(array_of(), **{name: bound})
    opt = make(array_of(), **{name: lambda step: 1.0 if step == 0 else value})
    opt.step(array_of())
    with unchanged(opt), pytest.raises(ValueError, match=message):
        opt.step(array_of())


@pytest.mark.parametrize("nonfinite", ["ignore", None, True, 1])
def test_unknown_word_for_nonfinite(nonfinite: Any) -> None:
    with pytest.raises(ValueError, match=r"^Invalid nonfinite: .*'propagate', 'skip', 'raise'"):
        fastopt.SGD(array_of(), nonfinite=nonfinite)


@every_optimizer
def test_unknown_option(make: Maker) -> None:
    with pytest.raises(TypeError, match="learning_rate"):
        make(array_of(), learning_rate=0.1)


@pytest.mark.parametrize("value", [1, np.float32(0.5), np.int64(1), np.float64(0.5), np.array(0.5), Fraction(1, 2)])
def test_every_kind_of_number_is_one(value: Any) -> None:
    w, same = array_of(), array_of()
    info = fastopt.AdamW(w, lr=value, weight_decay=value).step(array_of())
    fastopt.AdamW(same, lr=float(value), weight_decay=float(value)).step(array_of())
    assert info.lr == float(value)
    assert w.tolist() == same.tolist()


@pytest.mark.parametrize("momentum", [1.0, 1.5])
def test_large_momentum_is_allowed_as_in_torch(momentum: float) -> None:
    fastopt.SGD(array_of(), momentum=momentum).step(array_of())


@every_optimizer
def test_failing_schedule(make: Maker) -> None:
    def fails(step: int) -> float:
        if step == 2:
            raise RuntimeError("no rate today")
        return warmup(step)

    opt = make(array_of(), lr=fails)
    opt.step(array_of())
    opt.step(array_of())
    with unchanged(opt), pytest.raises(RuntimeError, match="no rate today"):
        opt.step(array_of())
    opt.param_groups[0]["lr"] = 0.1
    assert opt.step(array_of()).lr == 0.1


# ---- structures that are edited, arrays that are held ----


def test_replaced_parameters() -> None:
    opt = fastopt.SGD(array_of(), momentum=0.9)
    opt.param_groups[0]["params"] = [array_of()]
    with pytest.raises(ValueError, match=r"^param_groups\[0\]\['params'\] was replaced; make a new optimizer"):
        opt.step(array_of())


def test_parameters_are_held() -> None:
    w = array_of(1000)
    alive = weakref.ref(w)
    opt = fastopt.SGD(w, lr=1.0)
    del w
    gc.collect()
    held = alive()
    assert held is not None
    opt.step(array_of(1000))
    assert not held.any()


def test_parameters_cannot_be_resized() -> None:
    w = array_of(8)
    opt = fastopt.SGD(w)
    with pytest.raises(ValueError, match="resize"):
        w.resize(1000)
    w.resize(1_000_000, refcheck=False)
    with pytest.raises(RuntimeError, match=r"^params: was resized"):
        opt.step(array_of(8))
    with pytest.raises(RuntimeError, match=r"^params: was resized"):
        opt.step(array_of(1_000_000))


def test_buffers_are_shared_and_held() -> None:
    w = array.array("d", [1.0, 2.0, 3.0])
    opt = fastopt.SGD(w, lr=1.0)
    opt.step(np.ones(3))
    assert w.tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(BufferError):
        w.append(4.0)
    opt.step(array.array("d", [1.0, 1.0, 1.0]))
    assert w.tolist() == [-1.0, 0.0, 1.0]


def test_state_arrays_cannot_be_taken_away_from_the_kernel() -> None:
    """It would write to freed memory."""
    opt = fastopt.SGD(array_of(100_000), momentum=0.9)
    opt.step(array_of(100_000))
    kept = opt.state[0]["momentum_buffer"]
    with pytest.raises(TypeError):
        opt.state[0]["momentum_buffer"] = np.zeros(100_000)  # type: ignore[index]
    with pytest.raises((TypeError, AttributeError)):
        opt.state = ()  # type: ignore[misc]
    kept[:] = 0  # what is in them is anybody's
    opt.step(np.ones(100_000))
    assert (kept == 1).all()


# ---- what looks odd but is right ----


@every_optimizer
def test_empty_and_zero_dimensional_arrays(make: Maker, dtype: str) -> None:
    shapes: list[tuple[int, ...]] = [(), (0,), (0, 3), (3, 0, 2), (1, 1, 1), (2,)]
    params = [np.ones(shape, dtype) for shape in shapes]
    grads = [np.ones(shape, dtype) for shape in shapes]
    opt = make(params, lr=0.5, clip_norm=1e9)
    for _ in range(2):  # (ADOPT's first step goes nowhere)
        assert opt.step(grads).grad_norm == 2.0
    assert all((param < 1).all() for param in params)
    only_empty = make(np.ones((0, 3), dtype), clip_norm=1.0)
    assert only_empty.step(np.ones((0, 3), dtype)).grad_norm == 0.0


def test_zero_dimensional_arithmetic_makes_numpy_scalars(dtype: str) -> None:
    x = np.array(5.0, dtype)
    opt = fastopt.SGD(x, lr=0.1)
    for _ in range(2):
        opt.step(2 * x)  # of type np.float64, not np.ndarray
    assert float(x) == pytest.approx(3.2, rel=1e-6)


def test_gradients_in_any_iterable_of_the_structure(rng: np.random.Generator) -> None:
    values = [nonzero(rng, 3) for _ in range(3)]
    for kind in (list, tuple, iter, lambda entries: (entry for entry in entries)):
        params = [array_of(3) for _ in range(3)]
        fastopt.SGD(kind(params), lr=1.0).step(kind(values))
        for param, value in zip(params, values, strict=True):
            assert (param == array_of(3) - value).all()


def test_keys_go_by_name_not_by_order() -> None:
    w, b = array_of(), array_of(4)
    fastopt.SGD({"w": w, "b": b}, lr=1.0).step({"b": array_of(4), "w": array_of()})
    assert not w.any()
    assert not b.any()


def test_the_same_gradient_for_two_parameters() -> None:
    v, w, g = array_of(), array_of(), array_of()
    fastopt.SGD([v, w], lr=1.0).step([g, g])
    assert not v.any()
    assert not w.any()


@pytest.mark.parametrize("of", ["params", "grads", "norm", "clip_grad_norm", "clip_grad_value"])
def test_masked_arrays(of: str) -> None:
    """What is masked is not to be read."""
    masked = np.ma.MaskedArray([1.0, 2.0, 1e9], mask=[False, False, True])
    w = np.zeros(3)
    acts: dict[str, Callable[[], Any]] = {
        "params": lambda: fastopt.SGD([masked]),
        "grads": lambda: fastopt.SGD([w], lr=1.0).step([masked]),
        "norm": lambda: fastopt.global_norm([masked]),
        "clip_grad_norm": lambda: fastopt.clip_grad_norm([masked], 1.0),
        "clip_grad_value": lambda: fastopt.clip_grad_value([masked], 1.0),
    }
    with (
        unchanged(w, masked.data),
        pytest.raises(TypeError, match=r"expected a NumPy array without a mask"),
    ):
        acts[of]()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 1e39}),
        ("SGD", {"lr": 1e30, "weight_decay": 1e30, "decoupled_weight_decay": True}),
        ("SGD", {"weight_decay": 1e39}),
        ("Adam", {"lr": 1e38}),
        ("RMSprop", {"eps": 1e39}),
        ("Adagrad", {"lr": 1e39}),
    ],
)
def test_numbers_beyond_the_parameters_dtype(name: str, options: dict[str, Any]) -> None:
    """An error, before anything is written; in double precision they are numbers like any other."""
    w = np.ones(2, np.float32)
    opt = getattr(fastopt, name)([w], **options)
    with unchanged(w, opt.state_dict()["state"]):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^param_groups\[0\]: the scalar '\w+', .* is out of the range"):
                opt.step([np.array([0.0, 1e-39], np.float32)])
    assert opt.step_count == 0
    wide = np.ones(2)
    getattr(fastopt, name)([wide], **options).step([np.array([0.0, 1e-39])])
    assert np.isfinite(wide).all()


def test_arrays_whose_class_lies() -> None:
    class Liar(np.ndarray[Any, Any]):
        size = property(lambda self: 10**9)
        shape = property(lambda self: (10**9,))
        flags = property(lambda self: np.ones(1).flags)

        def __array_function__(self, *args: Any, **kwargs: Any) -> Any:
            return np.ones(1)

    honest, w = np.ones(3), np.ones(3)
    fastopt.Adam([honest]).step([np.ones(3)])
    opt = fastopt.Adam([w.view(Liar)])
    opt.step([np.ones(3).view(Liar)])
    assert w.tolist() == honest.tolist()
    assert [state["exp_avg"].shape for state in opt.state] == [(3,)]


@pytest.mark.parametrize(
    "change", [lambda state: state.resize((10,), refcheck=False), lambda state: setattr(state, "dtype", np.float32)]
)
# (NumPy deprecates some of these ways.)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_states_are_looked_at_before_they_are_used(change: Callable[[Any], Any]) -> None:
    w = np.ones(3)
    opt = fastopt.Adam([w])
    opt.step([np.ones(3)])
    change(opt.state[0]["exp_avg"])
    with unchanged(w):
        for _ in range(2):
            with pytest.raises((TypeError, ValueError), match=r"^exp_avg of params\[0\]: expected the parameter's"):
                opt.step([np.ones(3)])
    assert opt.step_count == 1


def test_a_gradient_that_a_schedule_takes_away() -> None:
    w, g = np.ones(3), np.ones(3)

    def schedule(step: int) -> float:
        if resize:
            g.resize((10**6,), refcheck=False)
        return 0.1

    resize = False
    opt = fastopt.SGD([w])
    opt.param_groups[0]["lr"] = schedule
    opt.step([g])
    resize = True
    with unchanged(w), pytest.raises(ValueError, match=r"^gradient of params\[0\]: expected the parameter's shape"):
        opt.step([g])


def test_a_schedule_may_look_at_its_optimizer_but_not_step_it() -> None:
    seen = []

    def looking(step: int) -> float:
        seen.append(opt.state_dict()["step_count"])
        return 1.0

    def stepping(step: int) -> float:
        opt.step([np.ones(2)])
        return 1.0

    w = np.zeros(2)
    opt = fastopt.SGD([w])
    opt.param_groups[0]["lr"] = looking
    opt.step([np.ones(2)])
    assert seen == [0]
    opt.param_groups[0]["lr"] = stepping
    with pytest.raises(RuntimeError, match=r"^a step within a step of the same optimizer"):
        opt.step([np.ones(2)])
    opt.param_groups[0]["lr"] = 1.0
    opt.step([np.ones(2)])
    assert opt.step_count == 2
    assert w.tolist() == [-2.0] * 2
