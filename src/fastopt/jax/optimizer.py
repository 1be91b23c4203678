"""The base of the optimizers for JAX: options and states of a pytree, and the step as a pure function."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from fastopt import _core
from fastopt.backends.jax import CLIP_VALUE, OPTION_ROWS, Kept, Numbers, Program, Tensor, Written
from fastopt.backends.jax import step as run
from fastopt.backends.numpy import CODES, groups_of
from fastopt.engine import AVERAGE, MASTER, REMAINDER, WHOLE_GROUPS, scales_of
from fastopt.hyperparameters import at_step
from fastopt.jax import codes, exchange
from fastopt.jax.layout import Form, Layout, check_shapes, shapes_of
from fastopt.jax.products import orthogonal
from fastopt.methods.base import STORED_AS, WHOLE_OF_JAX, Maybe, Method, Option, StateDtype
from fastopt.rows import Rows
from fastopt.schedules import Schedule

DTYPES = ("float32", "float64", "bfloat16", "float16")

REMAINDERS = {"split": "int16", "split8": "int8"}
"""Option `master` -> dtype of what is kept beside a bfloat16 parameter."""

DECAYS = ("log_decay", "row_log_decay")
"""What is kept of tables whose rows catch up with decays, in double precision, as halves: of the table the logarithm of
the product of all decays so far, and of each row that of those that it has had."""

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
    shapes: dict[str, None] | None = None
    """The shapes of the parameters, all in one key, which is part of the pytree's structure: it has no leaf."""


class Moving(NamedTuple):
    """A number that is known at the step only: traced, or from a schedule."""

    name: str
    option: Option
    part: int
    """Of an option of several numbers, which this is."""
    value: Any
    start: Any
    """The option's value before the first step."""
    places: list[int]
    """Where it belongs among the options."""

    def at(self, count: Any) -> Any:
        """Return the number for a step, as an array of no dimension or as the two halves of one in double precision."""
        if callable(self.value) and not is_traceable(self.value):
            halves = jax.ShapeDtypeStruct((2,), jnp.uint32)
            return jax.pure_callback(self.halves, halves, count, vmap_method="sequential")
        number = jnp.asarray(self.value(count) if callable(self.value) else self.value)
        if number.shape != ():
            raise ValueError(f"{self.name}: expected a number, got an array of the shape {number.shape}")
        return number if number.dtype in (jnp.float32, jnp.float64) else number.astype(jnp.float32)

    def halves(self, count: Any) -> Any:
        """Return the bits of a schedule's value, which is computed in Python."""
        number, start = at_step(self.value, int(count)), self.start
        whole = (*start[: self.part], number, *start[self.part + 1 :]) if isinstance(start, tuple) else number
        self.option.check(self.name, whole)
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
        known = {**self.method.options, **WHOLE_OF_JAX}
        with jax.ensure_compile_time_eval():  # (schedules; an optimizer may be made while a step is traced)
            start = {name: at_start(name, option, self.options[name]) for name, option in known.items()}
        self.method.check(start)
        for name, option in WHOLE_OF_JAX.items():
            option.check(name, start[name])
        if start["rounding"] == "stochastic" and start["master"] is not None:
            raise ValueError(
                f"rounding: 'stochastic' is for parameters without a master, got master={start['master']!r} too"
            )
        for name in self.method.advances:
            option = self.method.options[name]
            if isinstance(option, Maybe) and start[name] is None:
                raise TypeError(f"{option.start}: expected a number, got {self.options[option.start]!r}")
        self.start = start
        self.moving: list[Moving] = []
        rows = np.zeros((OPTION_ROWS, len(_core.OPTIONS)))
        for name, option in self.method.options.items():
            numbers = option.numbers(name, start[name])
            for part, (key, number) in enumerate(numbers.items()):
                if key in _core.OPTIONS:
                    rows[:, _core.OPTIONS[key]] = number
                    places = [row * rows.shape[1] + _core.OPTIONS[key] for row in (0, 1)]
                    self.note(name, option, part, places[:1] if key == "weight_decay" else places)
        rows[1, _core.OPTIONS["weight_decay"]] = 0.0
        for name, place in {"clip_norm": CLIP_NORM, "clip_value": CLIP_VALUE}.items():
            self.note(name, WHOLE_OF_JAX[name], 0, [place])
        moving = {moving.name: start[moving.name] or 1.0 for moving in self.moving}  # (zero perhaps at the start alone)
        for name, value in self.options.items():
            parts = value if isinstance(value, (tuple, list)) else [value]
            fixed = name in self.method.between or name not in moving
            if fixed and name != "decay_mask" and any(map(is_moving, parts)):
                raise TypeError(f"{name}: expected what is known before the step, got {value!r}")
        clip_norm, clip_value = (
            math.inf if start[name] is None else float(start[name]) for name in ("clip_norm", "clip_value")
        )
        self.clip_norm = np.array([clip_norm])
        average_weight, unmeasured = 0.0 if start[AVERAGE] is None else 1.0 - start[AVERAGE], (1.0, 0.0)
        self.numbers = np.array([*rows.ravel(), clip_value, average_weight, *unmeasured])
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
        self.moving.append(Moving(name, option, part, value, start, places))

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
        starts = {name: self.start_of(name) for name in layout.forms}
        kept = {
            name: layout.packed(name, leaves) if start is None else layout.filled(name, start)
            for name, start in starts.items()
        }
        for name, storage in self.in_codes(layout).items():
            code, scale = codes.of_number(storage, cast(float, starts[name]))
            dtype = codes.DTYPES[storage]
            kept[name][dtype] = jnp.full_like(kept[name][dtype], code)
            kept[scales_of(name)] = layout.filled(scales_of(name), scale)
        numbers = np.array([self.start[name] for name in self.method.advances], np.float64)
        heads = jnp.zeros((), jnp.int32), kept, jnp.array(numbers.view(np.uint32)) if numbers.size else None
        return State(*heads, shapes_of(leaves))

    def start_of(self, name: str) -> float | None:
        """Return what a state or number starts as; None: as a copy of the parameter."""
        if name in (AVERAGE, MASTER):
            return None
        known = name in self.method.states or name in self.method.numbers
        return self.method.start(name, self.start) if known else 0.0

    def arrays_of(self, state: State, params: Any) -> dict[str, Any]:
        """Return what is kept of each parameter: by name, in the structure of the parameters.

        Where an optimizer keeps something of some parameters alone, the others have None. States in 8 bits are float32.

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
        self.check_state(state, layout, leaves, labels)
        kept = {name: layout.unpacked(name, arrays) for name, arrays in state.arrays.items()}
        for name in self.in_codes(layout):
            pairs = zip(kept[name], kept.pop(scales_of(name)), strict=True)
            kept[name] = [array if scales is None else codes.values_of(array, scales) for array, scales in pairs]
        return {name: tree.unflatten(arrays) for name, arrays in kept.items()}

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
        """Return where what is kept of the parameters lies."""
        kept = [
            (
                *(made for name in states for made in self.entries(name, leaf)),
                *self.average,
                *self.method.numbers,
                *self.method.row_numbers(rule, self.known),
                *(DECAYS if self.method.catches_up(self.known) and leaf.ndim else ()),
                *self.beside(leaf),
            )
            for leaf, (rule, states) in zip(leaves, rules, strict=True)
        ]
        names = dict.fromkeys(name for of_each in kept for name in of_each)
        return Layout(
            {
                name: [self.form(name, leaf) if name in own else None for leaf, own in zip(leaves, kept, strict=True)]
                for name in names
            }
        )

    def entries(self, name: str, param: Any) -> tuple[str, ...]:
        """Return the names of what is kept for a state of a parameter: in 8 bits, its scales too."""
        return (name, scales_of(name)) if self.storage(name, param) in CODES else (name,)

    def in_codes(self, layout: Layout) -> dict[str, str]:
        """Return the states in 8 bits, with how they are stored."""
        kinds = STORED_AS["8bit"]
        return {name: kinds[s.kind] for name, s in self.method.states.items() if scales_of(name) in layout.forms}

    def beside(self, param: Any) -> tuple[str, ...]:
        """Return the name of what is kept beside a parameter, so that it has the precision of float32; or nothing."""
        master = self.options["master"]
        if master == "float32":
            return (MASTER,) if param.dtype in (jnp.bfloat16, jnp.float16) else ()
        return (REMAINDER,) if master and param.dtype == jnp.bfloat16 else ()

    def storage(self, name: str, param: Any) -> str:
        """Return how a state or the moving average of a parameter is stored."""
        own, wanted = str(param.dtype), StateDtype.named(self.options["state_dtype"])
        if own == "float64":
            return own
        if name == AVERAGE:
            return "float32"
        return own if wanted is None else STORED_AS[wanted][self.method.states[name].kind]

    def form(self, name: str, param: Any) -> Form:
        """Return the shape and dtype of what is kept of a parameter."""
        of, _, scales = name.partition("::")
        if scales:
            return Form((groups_of(math.prod(self.method.state_shape(of, param.shape))),), jnp.dtype("float32"))
        if name in DECAYS:
            return Form((*(() if name == "log_decay" else param.shape[:1]), 2), jnp.dtype("uint32"))
        if name in (MASTER, REMAINDER):
            return Form(param.shape, jnp.dtype(REMAINDERS.get(self.options["master"], "float32")))
        if name in self.method.numbers:
            return Form((), jnp.dtype(jnp.result_type(float)))
        shape = self.method.state_shape(name, param.shape)
        if name != AVERAGE and name not in self.method.states:  # (a number for each row)
            return Form(shape[:1], jnp.dtype(param.dtype if param.dtype == jnp.float64 else jnp.float32))
        storage = self.storage(name, param)
        return Form(shape, jnp.dtype(codes.DTYPES.get(storage, storage.removesuffix("_stochastic"))))

    # ---- the step ----

    def step(self, params: Any, grads: Any, state: State) -> tuple[Any, State]:
        """Return parameters and state after a step; a pure function, to be compiled with `jax.jit`.

        Where both are donated (``jax.jit(..., donate_argnums=...)``) it is made in place, and otherwise in a copy.

        Parameters
        ----------
        params
            A pytree of arrays.
        grads
            The gradients, in the same structure; `fastopt.Rows` in the place of one that is zero but in some rows.
        state
            What `init` or the step before returned.

        Raises
        ------
        TypeError, ValueError
            If something does not fit, while it is traced.
        """
        leaves, tree, labels = flattened(params)
        owners = self.owners(params, len(leaves))
        gradients = [
            self.gradient(grad, leaf, f"grads{label}", owner)
            for grad, leaf, label, owner in zip(matched("grads", grads, tree), leaves, labels, owners, strict=True)
        ]
        rules = self.rules(leaves, labels)
        layout = self.layout(leaves, rules)
        self.check_state(state, layout, leaves, labels)
        count = jnp.asarray(state.steps, jnp.int32)
        moving = [(moving.places, moving.at(count)) for moving in self.moving]
        traced = tuple((place, number) for places, number in moving for place in places if place != CLIP_NORM)
        clip_norm = tuple((0, number) for places, number in moving if CLIP_NORM in places)
        program = Program(
            Numbers(self.numbers, traced),
            Numbers(self.clip_norm, clip_norm),
            self.options["nonfinite"] == "skip",
            [_core.OPTIONS[name] for name in self.method.advances],
            partial(self.between, layout),
        )
        heads, arrays, found = run(
            program,
            self.tensors(leaves, labels, rules, owners, layout),
            Written(
                [count] if state.numbers is None else [count, jnp.asarray(state.numbers)],
                [jnp.asarray(state.arrays[name][dtype]) for name, dtype in layout.order],
                leaves,
            ),
            gradients,
        )
        after: dict[str, dict[str, Any]] = {name: {} for name in layout.forms}
        for (name, dtype), array in zip(layout.order, arrays, strict=True):
            after[name][dtype] = array
        count, *numbers = heads
        return tree.unflatten(found), State(count, after, numbers[0] if numbers else None, state.shapes)

    def gradient(self, given: Any, param: Any, label: str, owner: int) -> Any:
        """Return a gradient, checked: an array, or `Rows` of such."""
        if isinstance(given, Rows):
            return self.rows(given, param, label, owner)
        gradient = as_gradient(given, param, label)
        if gradient.shape != param.shape:
            raise ValueError(f"{label}: expected the shape {param.shape}, got {gradient.shape}")
        return gradient

    def rows(self, given: Rows, param: Any, label: str, owner: int) -> Any:
        """Return a gradient of some rows, checked."""
        options = self.known if owner == 0 else {**self.known, "weight_decay": 0.0}
        what = self.method.sparse(options)
        if what == "refuse" or (not options.get("lazy") and (what == "dense" or self.average)):
            also = "; lazy=True steps rows alone" if "lazy" in self.__signature__.parameters else ""
            why = "as a step with these options changes all rows"
            raise TypeError(f"{label}: expected an array, {why}, got Rows{also}")
        values = as_gradient(given.values, param, f"values of {label}")
        indices = as_indices(given.indices, param, label)
        if indices.ndim != 1 or not jnp.issubdtype(indices.dtype, jnp.integer):
            raise TypeError(
                f"indices of {label}: expected integers in one dimension, got {indices.dtype} of shape {indices.shape}"
            )
        if not param.ndim or values.shape != (*indices.shape, *param.shape[1:]):
            raise ValueError(
                f"values of {label}: expected the shape {(*indices.shape, *param.shape[1:])}, as there are "
                f"{len(indices)} row numbers and the parameter has the shape {param.shape}, got {values.shape}"
            )
        width = math.prod(param.shape[1:])
        grouped = StateDtype.named(self.options["state_dtype"]) == "8bit" or self.options["master"] in REMAINDERS
        if grouped and width % _core.GROUP:
            raise ValueError(f"{label}: has rows of {width} elements, {WHOLE_GROUPS}")
        if not param.size:
            return jnp.zeros_like(param)
        return Rows(indices.astype(jnp.int64 if indices.dtype == jnp.int64 else jnp.int32), values)

    def tensors(
        self,
        leaves: list[Any],
        labels: list[str],
        rules: list[tuple[str, tuple[str, ...]]],
        owners: list[int],
        layout: Layout,
    ) -> list[Tensor]:
        """Return how each parameter is stepped."""
        found = []
        number = jnp.result_type(float).name
        for i, (leaf, label, (rule, states), owner) in enumerate(zip(leaves, labels, rules, owners, strict=True)):
            at = partial(layout.at, i=i)
            kept = [Kept(self.storage(name, leaf), at(name), at(scales_of(name))) for name in (*states, *self.average)]
            of_rows = [state for name in states if (state := self.method.states[name]).of != "elements"]
            matrix = of_rows[0].matrix(leaf.shape) if of_rows else (0, 0)
            if at(REMAINDER) and math.prod(matrix) % _core.GROUP and math.prod(matrix) != max(leaf.size, 1):
                raise ValueError(
                    f"params{label}: has matrices of {math.prod(matrix)} elements, expected a multiple of "
                    f"{_core.GROUP} (master={self.options['master']!r})"
                )
            found.append(
                Tensor(
                    rule,
                    owner,
                    Kept(self.param_storage(leaf), at(MASTER), at(REMAINDER)),
                    tuple(kept[: len(states)]),
                    tuple(kept[len(states) :]),
                    tuple(Kept(number, at(name)) for name in self.method.numbers),
                    tuple(Kept("float64", (place[0], place[1] // 2)) for name in DECAYS if (place := at(name))),
                    matrix,
                    (leaf.shape[0], math.prod(leaf.shape[1:])) if leaf.ndim else (0, 0),
                    leaf.dtype == jnp.float64,
                )
            )
        return found

    def param_storage(self, param: Any) -> str:
        """Return how a parameter is stored, or its master."""
        beside = self.beside(param)
        if beside:
            return "float32" if beside == (MASTER,) else str(self.options["master"])
        stochastic = self.options["rounding"] == "stochastic" and param.dtype == jnp.bfloat16
        return f"{param.dtype}_stochastic" if stochastic else str(param.dtype)

    def between(
        self, layout: Layout, part: list[int], updates: list[Any], skipped: Any, arrays: list[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Return what becomes of the updates that a rule hands over, and of what is kept: see `Program.between`."""
        of_rows = {name for rule in _core.HANDED_OVER for name in self.method.row_numbers(rule, self.known)}
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

    def check_state(self, state: Any, layout: Layout, leaves: list[Any], labels: list[str]) -> None:
        """Raise unless this is a state of this optimizer, of these parameters, whose states are laid out so."""
        self.check_kind(state)
        if not isinstance(state.arrays, dict) or set(state.arrays) != set(layout.forms):
            raise self.unfit(state, f", with {sorted(layout.forms)}")
        check_shapes(state.shapes, leaves, labels)
        layout.check(state.arrays)
        if jnp.shape(state.steps) or not jnp.issubdtype(jnp.result_type(state.steps), jnp.integer):
            raise TypeError(f"state.steps: expected a whole number, got {state.steps!r}")
        halves = (2 * len(self.method.advances),)
        if halves[0] and (jnp.result_type(state.numbers), jnp.shape(state.numbers)) != (jnp.uint32, halves):
            raise TypeError(f"state.numbers: expected what init() returns, got {state.numbers!r}")

    def unfit(self, state: Any, what: str = "") -> TypeError:
        """Return the error of a state that is not this optimizer's."""
        return TypeError(f"state: expected what init() of {type(self).__name__} returns{what}, got {kind_of(state)}")

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
        state = self.init(params)
        for name, field in fields.items():
            self.put(state.arrays, layout, name, matched(f"optax_state: {field}", found[field][0], tree))
        # What counts no steps there may have taken any number: the first differs from the others by dampening alone.
        counts = [jnp.asarray(count, jnp.int32) for count in found[exchange.COUNT]]
        count = jnp.max(jnp.stack(counts)) if counts else jnp.ones((), jnp.int32)
        return state._replace(steps=count)

    def put(self, arrays: dict[str, Any], layout: Layout, name: str, values: list[Any]) -> None:
        """Put the values of a state of each parameter among the arrays of what is kept."""
        if scales_of(name) in layout.forms:
            pairs = zip(values, layout.forms[scales_of(name)], strict=True)
            storage = self.in_codes(layout)[name]
            made = [(value, None) if form is None else codes.encoded(storage, value) for value, form in pairs]
            values = [value for value, _ in made]
            arrays[scales_of(name)] = layout.packed(scales_of(name), [scales for _, scales in made])
        arrays[name] = layout.packed(name, values)

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


jax.tree_util.register_pytree_node(
    Rows, lambda rows: ((rows.indices, rows.values), None), lambda _, children: Rows(*children)
)


def matched(name: str, values: Any, tree: Any) -> list[Any]:
    """Return the leaves of what must have the structure of the parameters."""
    leaves, structure = jax.tree.flatten(values, lambda leaf: isinstance(leaf, Rows) or hasattr(leaf, "todense"))
    if structure != tree:
        raise ValueError(f"{name}: expected the structure of the parameters, {tree}, got {structure}")
    return list(leaves)


def as_indices(given: Any, param: Any, label: str) -> Any:
    """Return row numbers as an array of JAX, which may have no integers of 64 bits: those on the host are looked at."""
    if isinstance(given, jax.Array):
        return given
    given, rows = np.asarray(given), math.prod(param.shape[:1])
    for place in np.flatnonzero((given < 0) | (given > rows))[:1]:
        number = given.flat[place]
        raise IndexError(
            f"indices of {label}: expected numbers of at least 0 and at most {rows}, got {number} at {place}"
        )
    return jnp.asarray(given)


def as_gradient(given: Any, param: Any, label: str) -> Any:
    """Return a gradient as an array; raise unless it has a dtype to go with its parameter's."""
    if hasattr(given, "todense"):
        kind = type(given).__name__
        raise TypeError(f"{label}: expected an array or fastopt.Rows(row numbers, their gradients), got {kind}")
    gradient = jnp.asarray(given)
    wide = jnp.float64 in (param.dtype, gradient.dtype)
    if gradient.dtype.name not in DTYPES or (wide and gradient.dtype != param.dtype):
        raise TypeError(f"{label}: expected {param.dtype}, got {gradient.dtype}")
    return gradient


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
