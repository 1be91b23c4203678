"""The base of the optimizers for JAX: options and states of a pytree, and the step as a pure function."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastopt import _core
from fastopt.backends.jax import AVERAGE_WEIGHT, CLIP_VALUE, ROWS, Numbers, Program, Tensor, Written
from fastopt.backends.jax import step as run
from fastopt.engine import AVERAGE
from fastopt.hyperparameters import at_step
from fastopt.jax import exchange
from fastopt.jax.layout import Form, Layout
from fastopt.jax.products import orthogonal
from fastopt.methods.base import STORED_AS, WHOLE_OF_JAX, Maybe, Method, Option, StateDtype
from fastopt.schedules import Schedule

DTYPES = ("float32", "float64", "bfloat16", "float16")

CLIP_NORM = -1
"""Where `clip_norm` belongs: not among the options, as it is measured by before."""


class State(NamedTuple):
    """What an optimizer keeps from step to step: a pytree."""

    steps: jax.Array
    """How many steps were taken: a whole number, which is what schedules go by."""
    arrays: dict[str, dict[str, jax.Array]]
    """By name and dtype, the states of all parameters, end to end; of `ema`, their moving average. `arrays_of` returns
    them in the structure of the parameters."""
    numbers: jax.Array | None = None
    """What Prodigy and Schedule-Free keep for all parameters together: the halves of numbers in double precision, as
    JAX may have no such (`Optimizer.numbers_of`)."""


class Moving(NamedTuple):
    """A number that is known at the step only: traced, or from a schedule."""

    name: str
    value: Any
    check: Callable[[Any], None]
    """Raises unless a number fits."""
    places: list[int]
    """Where it belongs among the options."""

    def at(self, count: Any) -> Any:
        """Return the number for a step, as an array of no dimension or as the two halves of one in double precision."""
        if callable(self.value) and not is_traceable(self.value):
            return jax.pure_callback(self.halves, jax.ShapeDtypeStruct((2,), jnp.uint32), count)
        number = jnp.asarray(self.value(count) if callable(self.value) else self.value)
        if number.shape != ():
            raise ValueError(f"{self.name}: expected a number, got an array of the shape {number.shape}")
        return number if number.dtype in (jnp.float32, jnp.float64) else number.astype(jnp.float32)

    def halves(self, count: Any) -> Any:
        """Return the bits of a schedule's value, which is computed in Python."""
        number = at_step(self.value, int(count))
        self.check(number)
        return np.array([number], np.float64).view(np.uint32)


class Optimizer:
    """What every optimizer has in common. Its classes are made from their descriptions (`fastopt.methods`).

    It has options alone: everything else goes through `init` and `step`, which are pure functions of pytrees.

    Parameters
    ----------
    args, options
        As in `fastopt.Optimizer`, but for the parameters. In the place of a number there may be a schedule, or an array
        of no dimension, which may be traced: it is an operand of the compiled step, so that none is compiled anew when
        it changes. A schedule is a function of the number of steps taken so far: one of JAX's operations, or any other,
        which is called on the host and computes in double precision (`fastopt.schedules`).

    Raises
    ------
    TypeError, ValueError
        If an option is unknown or out of bounds.
    """

    method: ClassVar[type[Method]]
    """The optimizer's description."""

    __signature__: ClassVar[inspect.Signature]

    def __init__(self, *args: Any, **options: Any) -> None:
        try:
            bound = self.__signature__.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}.__init__() {error}") from None
        bound.apply_defaults()
        self.options = self.completed({**self.method.defaults(), **bound.arguments})
        if self.options.get("lazy"):
            raise ValueError("lazy: is for sparse gradients, which there are none of here")
        if StateDtype.named(self.options["state_dtype"]) == "8bit":
            raise ValueError('state_dtype: "8bit" is not supported here; expected None, "float32" or "bfloat16"')
        for name in self.method.between:
            value = self.options[name]
            if any(map(is_moving, value if isinstance(value, (tuple, list)) else [value])):
                raise TypeError(f"{name}: expected what is known before the step, got {value!r}")
        known = {**self.method.options, **WHOLE_OF_JAX}
        with jax.ensure_compile_time_eval():  # (schedules; an optimizer may be made while a step is traced)
            start = {name: at_start(name, option, self.options[name]) for name, option in known.items()}
        self.method.check(start)
        for name, option in WHOLE_OF_JAX.items():
            option.check(name, start[name])
        for name in self.method.advances:
            option = self.method.options[name]
            if isinstance(option, Maybe) and start[name] is None:
                raise TypeError(f"{option.start}: expected a number, got {self.options[option.start]!r}")
        self.start = start
        self.moving: list[Moving] = []
        rows = np.zeros((ROWS, len(_core.OPTIONS)))
        for name, option in self.method.options.items():
            numbers = option.numbers(name, start[name])
            for part, (key, number) in enumerate(numbers.items()):
                if key in _core.OPTIONS:
                    rows[:, _core.OPTIONS[key]] = number
                    places = [row * rows.shape[1] + _core.OPTIONS[key] for row in (0, 1)]
                    self.note(name, option, part, places[:1] if key == "weight_decay" else places)
        rows[1, _core.OPTIONS["weight_decay"]] = 0.0
        for name, place in {"clip_norm": CLIP_NORM, "clip_value": CLIP_VALUE, AVERAGE: AVERAGE_WEIGHT}.items():
            self.note(name, WHOLE_OF_JAX[name], 0, [place])
        clip_norm, clip_value = (
            math.inf if start[name] is None else float(start[name]) for name in ("clip_norm", "clip_value")
        )
        self.clip_norm = np.array([clip_norm])
        average_weight, unmeasured = 0.0 if start[AVERAGE] is None else 1.0 - start[AVERAGE], (1.0, 0.0)
        self.numbers = np.array([*rows.ravel(), clip_value, average_weight, *unmeasured])
        # A number that moves may be zero at the start alone.
        moving = {moving.name: start[moving.name] or 1.0 for moving in self.moving}
        self.known = {**start, **moving}

    def completed(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return options in which numbers that start as another option says have their values, if it is a number."""
        scheduled = {name: (lambda step: math.nan) for name, value in options.items() if is_moving(value)}
        completed = {**options, **scheduled}
        self.method.complete(completed)
        return {**completed, **{name: options[name] for name in scheduled}}

    def note(self, name: str, option: Option, part: int, places: list[int]) -> None:
        """Note where a part of an option belongs, if it moves."""
        value, start = self.options[name], self.start[name]
        if isinstance(start, tuple):
            value = value[part]
        if not is_moving(value):
            return
        if name == AVERAGE:
            raise TypeError(f"{name}: expected a number, got {value!r}")

        def check(number: Any) -> None:
            whole = (*start[:part], number, *start[part + 1 :]) if isinstance(start, tuple) else number
            option.check(name, whole)

        self.moving.append(Moving(name, value, check, places))

    # ---- the states ----

    def init(self, params: Any) -> State:
        """Return the state before the first step.

        Parameters
        ----------
        params
            A pytree of arrays: float32, float64, bfloat16 or float16.

        Raises
        ------
        TypeError, ValueError
            If an array is of another dtype, or there is none.
        """
        leaves, _, labels = flattened(params)
        layout = self.layout(leaves, self.rules(leaves, labels))
        starts = {name: None if name == AVERAGE else self.start_of(name) for name in layout.forms}
        kept = {
            name: layout.packed(name, leaves) if start is None else layout.filled(name, start)
            for name, start in starts.items()
        }
        numbers = np.array([self.start[name] for name in self.method.advances], np.float64)
        return State(jnp.zeros((), jnp.int32), kept, jnp.array(numbers.view(np.uint32)) if numbers.size else None)

    def start_of(self, name: str) -> float | None:
        """Return what a state or number starts as; None: as a copy of the parameter."""
        known = name in self.method.states or name in self.method.numbers
        return self.method.start(name, self.start) if known else 0.0

    def arrays_of(self, state: State, params: Any) -> dict[str, Any]:
        """Return what is kept of each parameter: by name, in the structure of the parameters.

        Where an optimizer keeps something of some parameters alone, the others have None.

        Parameters
        ----------
        state, params
            What the last step returned.

        Raises
        ------
        TypeError, ValueError
            If they do not belong together.
        """
        leaves, tree, labels = flattened(params)
        layout = self.layout(leaves, self.rules(leaves, labels))
        self.check_state(state, layout)
        return {name: tree.unflatten(layout.unpacked(name, arrays)) for name, arrays in state.arrays.items()}

    def numbers_of(self, state: State) -> dict[str, float]:
        """Return the numbers that a state has for all parameters together: Prodigy's `d` and others.

        Of a state of arrays, outside of what is compiled.
        """
        self.check_kind(state)
        numbers = () if state.numbers is None else np.asarray(state.numbers).view(np.float64).tolist()
        return dict(zip(self.method.advances, numbers, strict=True))

    def rules(self, leaves: list[Any], labels: list[str]) -> list[tuple[str, tuple[str, ...]]]:
        """Return the rule by which each parameter is stepped, and the names of its states."""
        return [
            self.method.rule_for(self.known, leaf.shape, partial("params{}".format, label))
            for leaf, label in zip(leaves, labels, strict=True)
        ]

    @property
    def average(self) -> tuple[str, ...]:
        """The name of the moving average of the parameters, if there is one."""
        return () if self.start[AVERAGE] is None else (AVERAGE,)

    def layout(self, leaves: list[Any], rules: list[tuple[str, tuple[str, ...]]]) -> Layout:
        """Return where what is kept of the parameters lies: states, moving average, numbers."""
        kept = [
            (*states, *self.average, *self.method.numbers, *self.method.row_numbers(rule, self.known))
            for rule, states in rules
        ]
        names = dict.fromkeys(name for of_each in kept for name in of_each)
        return Layout(
            {
                name: [self.form(name, leaf) if name in own else None for leaf, own in zip(leaves, kept, strict=True)]
                for name in names
            }
        )

    def form(self, name: str, param: Any) -> Form:
        """Return the shape and dtype of what is kept of a parameter."""
        if name in self.method.numbers:
            return Form((), jnp.dtype(jnp.result_type(float)))
        shape = self.method.state_shape(name, param.shape)
        if name != AVERAGE and name not in self.method.states:  # (a number for each row)
            return Form(shape[:1], jnp.dtype(param.dtype if param.dtype == jnp.float64 else jnp.float32))
        own, wanted = param.dtype, StateDtype.named(self.options["state_dtype"])
        if own == jnp.float64 or (wanted is None and name != AVERAGE):
            return Form(shape, jnp.dtype(own))
        stored = "float32" if name == AVERAGE else STORED_AS[str(wanted)][self.method.states[name].kind]
        return Form(shape, jnp.dtype(stored.removesuffix("_stochastic")))

    # ---- the step ----

    def step(self, params: Any, grads: Any, state: State) -> tuple[Any, State]:
        """Return parameters and state after a step; a pure function, to be compiled with `jax.jit`.

        Where both are donated (``jax.jit(..., donate_argnums=...)``) it is made in place, and otherwise in a copy.

        Parameters
        ----------
        params
            A pytree of arrays.
        grads
            The gradients, in the same structure.
        state
            What `init` or the step before returned.

        Raises
        ------
        TypeError, ValueError
            If something does not fit, while it is traced.
        """
        leaves, tree, labels = flattened(params)
        gradients = matched("grads", grads, tree)
        for leaf, gradient, label in zip(leaves, gradients, labels, strict=True):
            wide = jnp.float64 in (leaf.dtype, gradient.dtype)
            if gradient.dtype.name not in DTYPES or (wide and gradient.dtype != leaf.dtype):
                raise TypeError(f"grads{label}: expected {leaf.dtype}, got {gradient.dtype}")
            if gradient.shape != leaf.shape:
                raise ValueError(f"grads{label}: expected the shape {leaf.shape}, got {gradient.shape}")
        rules = self.rules(leaves, labels)
        layout = self.layout(leaves, rules)
        self.check_state(state, layout)
        moving = [(moving.places, moving.at(state.steps)) for moving in self.moving]
        traced = tuple((place, number) for places, number in moving for place in places if place != CLIP_NORM)
        clip_norm = tuple((0, number) for places, number in moving if CLIP_NORM in places)
        program = Program(
            Numbers(self.numbers, traced),
            Numbers(self.clip_norm, clip_norm),
            self.options["nonfinite"] == "skip",
            bool(self.average),
            [_core.OPTIONS[name] for name in self.method.advances],
            partial(self.between, layout),
        )
        heads, arrays, found = run(
            program,
            self.tensors(leaves, rules, self.owners(params, len(leaves)), layout),
            Written(
                [state.steps] if state.numbers is None else [state.steps, jnp.asarray(state.numbers)],
                [jnp.asarray(state.arrays[name][dtype]) for name, dtype in layout.order],
                leaves,
            ),
            gradients,
        )
        after: dict[str, dict[str, Any]] = {name: {} for name in layout.forms}
        for (name, dtype), array in zip(layout.order, arrays, strict=True):
            after[name][dtype] = array
        count, *numbers = heads
        return tree.unflatten(found), State(count, after, *numbers)

    def tensors(
        self, leaves: list[Any], rules: list[tuple[str, tuple[str, ...]]], owners: list[int], layout: Layout
    ) -> list[Tensor]:
        """Return how each parameter is stepped."""
        place = {key: k for k, key in enumerate(layout.order)}
        found = []
        for i, (leaf, (rule, states), owner) in enumerate(zip(leaves, rules, owners, strict=True)):
            forms = {name: layout.forms[name][i] for name in (*states, *self.average, *self.method.numbers)}
            kept = [(place[name, form.dtype.name], layout.first[name][i]) for name, form in forms.items() if form]
            of_rows = [state for name in states if (state := self.method.states[name]).of != "elements"]
            matrix = of_rows[0].matrix(leaf.shape) if of_rows else (0, 0)
            found.append(Tensor(rule, owner, tuple(kept), matrix, self.stochastic(states), leaf.dtype == jnp.float64))
        return found

    def between(
        self, layout: Layout, part: list[int], updates: list[Any], skipped: Any, arrays: list[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Return what becomes of the updates that a rule hands over, and of what is kept: see `Program.between`."""
        of_rows = [name for name in layout.forms if name not in self.method.states and name != AVERAGE]
        if not of_rows:
            return orthogonal(self.method, self.known, updates, None)[0], arrays
        (name,) = of_rows
        k = layout.order.index((name, updates[0].dtype.name))
        first = [layout.first[name][i] for i in part]
        index = np.concatenate([np.arange(len(u)) + start for u, start in zip(updates, first, strict=True)])
        before = arrays[k][index]
        made, after = orthogonal(self.method, self.known, updates, before)
        changed = arrays[k].at[index].set(jnp.where(skipped, before, after))
        return made, [*arrays[:k], changed, *arrays[k + 1 :]]

    def check_kind(self, state: Any) -> None:
        """Raise unless this is a state, and has numbers of all parameters together if the optimizer has."""
        if not isinstance(state, State) or (state.numbers is None) == bool(self.method.advances):
            raise self.unfit(state)

    def check_state(self, state: Any, layout: Layout) -> None:
        """Raise unless this is a state of this optimizer, of parameters whose states are laid out so."""
        self.check_kind(state)
        if not isinstance(state.arrays, dict) or set(state.arrays) != set(layout.forms):
            raise self.unfit(state)
        layout.check(state.arrays)

    def unfit(self, state: Any) -> TypeError:
        """Return the error of a state that is not this optimizer's."""
        return TypeError(f"state: expected what init() of {type(self).__name__} returns, got {kind_of(state)}")

    def stochastic(self, states: tuple[str, ...]) -> int:
        """Return a bit for each state that is rounded at random."""
        stored = STORED_AS.get(StateDtype.named(self.options["state_dtype"]) or "float32", {})
        kinds = [stored[self.method.states[name].kind] for name in states]
        return sum(kind.endswith("_stochastic") << bit for bit, kind in enumerate(kinds))

    def owners(self, params: Any, count: int) -> list[int]:
        """Return the row of options of each parameter."""
        mask = self.options["decay_mask"]
        if mask is None:
            return [0] * count
        if callable(mask):
            mask = mask(params)
        try:
            flags = jax.tree.map(lambda flag, part: jax.tree.map(lambda _: bool(flag), part), mask, params)
        except ValueError as error:
            raise ValueError(f"decay_mask: {error}") from None
        return [int(not flag) for flag in jax.tree.leaves(flags)]

    # ---- optax ----

    def from_optax(self, optax_state: Any, params: Any) -> State:
        """Return the state that goes on from where an optimizer of optax was: `adam`, `adamw`, `lion`, `sgd`.

        Parameters
        ----------
        optax_state
            Of that optimizer, alone or in a chain.
        params
            The parameters as they are.

        Raises
        ------
        TypeError, ValueError
            If it is of another optimizer.
        """
        fields = self.optax_fields()
        found = exchange.fields_of(optax_state, {*fields.values(), exchange.COUNT})
        for field in fields.values():
            if len(found[field]) != 1:
                raise ValueError(f"optax_state: expected one field {field!r}, got {len(found[field])}")
        leaves, tree, labels = flattened(params)
        layout = self.layout(leaves, self.rules(leaves, labels))
        arrays = dict(self.init(params).arrays)
        for name, field in fields.items():
            arrays[name] = layout.packed(name, matched(f"optax_state: {field}", found[field][0], tree))
        # What counts no steps there may have taken any number: the first differs from the others by dampening alone.
        counts = [jnp.asarray(count, jnp.int32) for count in found[exchange.COUNT]]
        count = jnp.max(jnp.stack(counts)) if counts else jnp.ones((), jnp.int32)
        return State(count, arrays)

    def to_optax(self, state: State, params: Any, like: Any) -> Any:
        """Return a state for optax.

        Parameters
        ----------
        state, params
            What the last step returned.
        like
            A state of the optimizer in optax, as its `init` returns it; what has no counterpart here stays.

        Raises
        ------
        TypeError, ValueError
            If that is another optimizer.
        """
        fields = self.optax_fields()
        found = exchange.fields_of(like, {*fields.values()})
        if any(len(values) != 1 for values in found.values()):
            raise ValueError(f"like: expected each of the fields {sorted(found)} once")
        arrays = self.arrays_of(state, params)
        kept = {field: arrays[name] for name, field in fields.items()}

        def new(field: str, old: Any) -> Any:
            value = state.steps if field == exchange.COUNT else kept[field]
            return jax.tree.map(lambda own, other: jnp.array(own, other.dtype, copy=True), value, old)

        return exchange.replaced(like, {*fields.values(), exchange.COUNT}, new)

    def optax_fields(self) -> dict[str, str]:
        """Return what optax calls the states."""
        names = exchange.NAMES.get(self.method.__name__, {})
        rule, states = self.method.rule(self.known)
        if not names or not names.keys() >= set(states):
            raise TypeError(f"{type(self).__name__}: with {rule!r} its state is not optax's")
        return {name: names[name] for name in states}

    def __repr__(self) -> str:
        given = {name: value for name, value in self.options.items() if name in self.__signature__.parameters}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


class TwoModes(Optimizer):
    """What optimizers have besides whose parameters are in one place in training and in another when they are used."""

    def eval_params(self, params: Any, state: State) -> Any:
        """Return the parameters where they are used (evaluated, saved); training goes on with those that it has.

        Parameters
        ----------
        params, state
            What the last step returned.

        Raises
        ------
        TypeError, ValueError
            If they do not belong together, or how far apart the places are (`momentum`, the first of `betas`) is no
            number.
        """
        leaves, tree, _ = flattened(params)
        name, share = self.method.place_of_use(self.options)
        if is_moving(share):
            raise TypeError(f"expected a number that says how far apart the two places are, got {share!r}")
        ends = jax.tree.leaves(self.arrays_of(state, params)[name])
        wide = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in leaves]
        moved = [place + (1 - 1 / share) * (end - place) for place, end in zip(wide, ends, strict=True)]
        return tree.unflatten([place.astype(leaf.dtype) for place, leaf in zip(moved, leaves, strict=True)])


# ---- options ----


def is_moving(value: Any) -> bool:
    """Whether a number is known at the step only."""
    return callable(value) or isinstance(value, jax.Array)


def is_traceable(schedule: Callable[[Any], Any]) -> bool:
    """Whether JAX can trace a schedule."""
    if isinstance(schedule, Schedule):
        return False
    try:
        jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return False
    return True


def at_start(name: str, option: Option, value: Any) -> Any:
    """Return an option's value at the first step, for what has to be known before; of what is traced, its default."""
    if isinstance(option.default, tuple) and isinstance(value, (tuple, list)) and len(value) == len(option.default):
        return tuple(
            default if isinstance(entry, jax.core.Tracer) else at_step(entry, 0)
            for entry, default in zip(value, option.default, strict=True)
        )
    if isinstance(value, jax.core.Tracer):
        if type(option.default) is not float and option.default is not None:
            raise TypeError(f"{name}: is no number, and cannot be traced")
        return option.default
    return value if name == "decay_mask" else at_step(value, 0)


# ---- pytrees ----


def flattened(params: Any) -> tuple[list[Any], Any, list[str]]:
    """Return the leaves of the parameters, their structure and a label of each."""
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    labels = [jax.tree_util.keystr(path) for path, _ in paths]
    leaves = [jnp.asarray(leaf) for _, leaf in paths]
    if not leaves:
        raise ValueError("params: has no arrays")
    for leaf, label in zip(leaves, labels, strict=True):
        if leaf.dtype.name not in DTYPES:
            raise TypeError(f"params{label}: expected one of {', '.join(DTYPES)}, got {leaf.dtype}")
    return leaves, tree, labels


def matched(name: str, values: Any, tree: Any) -> list[Any]:
    """Return the leaves of what must have the structure of the parameters."""
    leaves, structure = jax.tree.flatten(values)
    if structure != tree:
        raise ValueError(f"{name}: expected the structure of the parameters, {tree}, got {structure}")
    return [jnp.asarray(leaf) for leaf in leaves]


def kind_of(state: Any) -> str:
    """Return what a state is that does not fit."""
    return f"one with {sorted(state.arrays)}" if isinstance(state, State) else type(state).__name__


def made_from(method: type[Method]) -> type[Optimizer]:
    """Return the class that a description is for JAX."""
    signature = method.signature(WHOLE_OF_JAX)
    names = {
        "method": method,
        "__signature__": signature.replace(parameters=[*signature.parameters.values()][1:]),
        "__doc__": method.documentation(WHOLE_OF_JAX).replace("params\n    What to optimize, in place.\n", ""),
        "__module__": "fastopt.jax.optimizers",
    }
    return type(method.__name__, (TwoModes if "train_mode" in method.options else Optimizer,), names)
