"""What a description says, and in which words: see `Method`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from copy import copy
from typing import Any, ClassVar, Literal, NamedTuple, Self

from fastopt.hyperparameters import Bound, Number, as_count, at_step, is_scheduled, plain

# ---- options ----


class Option:
    """An option: what it is unless the user says otherwise, and what it means. The subclasses say what it may be.

    One that is `fixed` is the method's own: an entry of the groups, but none of the signature. (No dataclass: making
    those would take a third of the time in which fastopt is imported.)
    """

    kind: ClassVar[Any] = Any
    """Its type."""

    def __init__(self, default: Any, meaning: str = "", *, keyword_only: bool = False, fixed: bool = False) -> None:
        self.default, self.meaning, self.keyword_only, self.fixed = default, meaning, keyword_only, fixed

    def but(self, **changes: Any) -> Self:
        """Return the same option, with something else in it."""
        other = copy(self)
        vars(other).update(changes)
        return other

    @property
    def annotation(self) -> Any:
        """What stands in signatures: its type."""
        return self.kind

    def at(self, value: Any, step: int) -> Any:
        """Return the value after `step` steps, schedules evaluated."""
        return at_step(value, step)

    def check(self, name: str, value: Any, edited: bool = False) -> None:
        """Raise `ValueError` unless the value (schedules evaluated) makes sense.

        Of one that was `edited` in a parameter group only that it is a finite number: schedulers leave rates a hair
        below zero there, and torch goes on.
        """

    def numbers(self, name: str, value: Any) -> dict[str, float]:
        """Return the value as the kernels' scalars are formed from it: under which names, which numbers."""
        return {name: float(value)}


class Quantity(Option):
    """A number in [low, high); `words` is what torch calls it in its messages."""

    kind: ClassVar[Any] = Number

    def __init__(
        self, default: Any, meaning: str = "", *, words: str = "", low: float = 0.0, high: float = math.inf, **how: bool
    ) -> None:
        super().__init__(default, meaning, **how)
        self.words, self.low, self.high = words, low, high

    def check(self, name: str, value: Any, edited: bool = False) -> None:
        """Raise `ValueError`, in torch's words, unless the number is finite and in [low, high)."""
        Bound(
            self.words or f"{name} value", -math.inf if edited else self.low, math.inf if edited else self.high
        ).check(value)


class Count(Quantity):
    """A whole number."""

    kind: ClassVar[Any] = int

    def check(self, name: str, value: Any, edited: bool = False) -> None:
        """Raise `ValueError` unless the number is whole and within bounds, also where it was edited."""
        super().check(name, value)
        as_count(value, name)


class Maybe(Quantity):
    """A number or None; `start` is the option that says what the number is in a group that was just made, if None."""

    kind: ClassVar[Any] = Number | None

    def __init__(self, default: Any, meaning: str = "", *, start: str = "", **bounds: Any) -> None:
        super().__init__(default, meaning, **bounds)
        self.start = start

    def check(self, name: str, value: Any, edited: bool = False) -> None:
        """Raise `ValueError` unless it is None or within bounds."""
        if value is not None:
            super().check(name, value, edited)

    def numbers(self, name: str, value: Any) -> dict[str, float]:
        """Return the number, NaN where there is none."""
        return {name: math.nan if value is None else float(value)}


class Limit(Maybe):
    """A number, infinity, or None for infinity."""

    def check(self, name: str, value: Any, edited: bool = False) -> None:
        """Raise `ValueError` unless it is None or at least `low`."""
        if not (isinstance(value, float) and value == math.inf):
            super().check(name, value, edited)


class Numbers(Option):
    """Several numbers, as many as by default."""

    kind: ClassVar[Any] = tuple[Number, ...]

    def at(self, value: Any, step: int) -> Any:
        """Return a tuple of the values after `step` steps, from any sequence: a list, an array, a configuration's."""
        value = at_step(value, step)
        if isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable):
            return value
        return tuple(at_step(entry, step) for entry in value)

    def check(self, name: str, value: Any, edited: bool = False) -> None:
        """Raise `ValueError` unless there are as many as by default, each within its bounds."""
        if not isinstance(value, tuple) or len(value) != len(self.default):
            words = {2: "two", 3: "three"}[len(self.default)]
            raise ValueError(f"Invalid {name}: expected {words} numbers, got {value!r}")
        for index, number in enumerate(value):
            bound = self.bound(f"{name.removesuffix('s')} parameter at index {index}")
            (bound.anywhere() if edited else bound).check(number)

    def bound(self, message: str) -> Bound:
        """Return what each number is within, in torch's words: any finite one."""
        return Bound(message, -math.inf)

    def numbers(self, name: str, value: Any) -> dict[str, float]:
        """Return each under a name of its own: `betas` is beta1, beta2, ..."""
        return {f"{name.removesuffix('s')}{k}": float(number) for k, number in enumerate(value, start=1)}


class Decays(Numbers):
    """Decay rates of moving averages, each in [0, 1)."""

    def bound(self, message: str) -> Bound:
        """Return what each is within."""
        return Bound(message, high=1.0)


class Flag(Option):
    """Whether or not."""

    kind: ClassVar[Any] = bool

    def numbers(self, name: str, value: Any) -> dict[str, float]:
        """Return 1 or 0."""
        return {name: float(bool(value))}


class Switch(Flag):
    """Whether or not, or None: as something else decides."""

    kind: ClassVar[Any] = bool | None


class Choice(Option):
    """One of some words."""

    def __init__(self, default: Any, meaning: str = "", *, among: tuple[str | None, ...], **how: bool) -> None:
        super().__init__(default, meaning, **how)
        self.among = among

    @property
    def annotation(self) -> Any:
        """One of these words."""
        return Literal[self.among]

    def check(self, name: str, value: Any, edited: bool = False) -> None:
        """Raise `ValueError` unless the value is one of the words."""
        if value not in self.among:
            raise ValueError(f"Invalid {name}: expected one of {self.among}, got {value!r}")

    def numbers(self, name: str, value: Any) -> dict[str, float]:
        """Return the place of the word."""
        return {name: float(self.among.index(value))}


class StateDtype(Option):
    """A precision, as a string or as torch's dtype, which is known by its name: torch need not be there."""

    kind: ClassVar[Any] = str | None

    @staticmethod
    def named(value: Any) -> str | None:
        """Return the name of a precision; None is the parameter's."""
        return value if value is None or isinstance(value, str) else repr(value).removeprefix("torch.")

    def check(self, name: str, value: Any, edited: bool = False) -> None:
        """Raise `ValueError` unless it is one of those there are."""
        if self.named(value) not in (None, *STORED_AS):
            words = ", ".join(repr(precision) for precision in STORED_AS)
            raise ValueError(f"Invalid {name}: expected None, {words} or torch's dtype of that name, got {value!r}")


class TorchStateDtype(StateDtype):
    """The same, in signatures for torch."""

    kind: ClassVar[Any] = "str | torch.dtype | None"


def learning_rate(default: float) -> Quantity:
    """Return the option `lr`."""
    return Quantity(default, "Learning rate, at least 0.", words="learning rate")


def epsilon(default: float) -> Quantity:
    """Return the option `eps`."""
    return Quantity(default, "Added to the root (PyTorch), at least 0.", words="epsilon value")


EPSILON_ROOT = Quantity(0.0, "Added inside the root (Keras, optax), at least 0.", keyword_only=True)
MAXIMIZE = Flag(False, "Whether to go up: the gradient counts with the other sign.", keyword_only=True)
DECOUPLED = Flag(
    False,
    "Whether `weight_decay` shrinks the parameters, ``p *= 1 - lr*weight_decay``, before the update, instead of adding "
    "``weight_decay*p`` to the gradient.",
    keyword_only=True,
)
LAZY = Flag(
    False,
    "Whether a sparse gradient steps its rows alone: the states of all others rest, and L2 decay is for rows with a "
    "gradient. Decoupled decay catches up: a row that is stepped next first shrinks by all factors that it has missed, "
    "each with the rates of its time.",
    keyword_only=True,
)

ROWWISE = Flag(
    False,
    "Whether there is one average of squares for each row of the first dimension, of the mean of g**2 there, as in "
    "FBGEMM: for tables, it takes next to no memory.",
    keyword_only=True,
)

FIXED_DECAY = Flag(
    False, "Whether decoupled decay is by `weight_decay` itself, whatever the rate: ``p *= 1 - weight_decay``."
)

CLIPPING: dict[str, Option] = {
    "clip_norm": Limit(
        None,
        "If the norm of all gradients together exceeds this, scale them down to it: "
        "``g * min(1, clip_norm / (norm + 1e-6))`` (Pascanu, Mikolov & Bengio 2013). The gradients are not written.",
        keyword_only=True,
    ),
    "clip_value": Limit(
        None,
        "Clip every entry of the gradients to ``[-clip_value, clip_value]`` (after `clip_norm`).",
        keyword_only=True,
    ),
    "nonfinite": Choice(
        "propagate",
        'What to do about a gradient that is NaN or infinite: "propagate" it, "skip" the step, or "raise" '
        "`FloatingPointError`. The last two leave parameters, state and step count as they were.",
        keyword_only=True,
        among=("propagate", "skip", "raise"),
    ),
}
"""What every optimizer may do with its gradients."""

KEEPING: dict[str, Option] = {
    "state_dtype": StateDtype(
        None,
        'In which precision the states are kept: "float32"; "bfloat16", in which averages of squares are rounded at '
        'random (to nearest, they would never decay); "8bit", with a scale for every 32 elements (FlashOptim, arXiv '
        "2602.23349); None is the parameter's. What is no average, as a moving average of the parameters, stays in "
        "float32. The states of float64 parameters always have theirs, those of complex or sharded ones at least "
        "float32.",
        keyword_only=True,
    ),
    "ema": Maybe(
        None,
        "Keep a moving average of the parameters, ``a = ema*a + (1-ema)*p``, in the step's own pass over memory; it "
        "begins as a copy of the parameters. See `swap_ema` and `ema_state`.",
        keyword_only=True,
        high=1.0,
    ),
    "accumulate": Count(
        1,
        "After how many calls of `step` there is a step, by the mean of their gradients, which are added up beside the "
        "parameters, in float32 (float64 for such parameters). The other calls change no parameter and do not count. "
        "Gradients of some rows alone are refused.",
        keyword_only=True,
        low=1,
    ),
}
"""What every optimizer may keep beside its parameters."""

WHOLE: dict[str, Option] = {**CLIPPING, **KEEPING}
"""Options of the whole optimizer. They stand in its groups, the same in each, where they are not the default."""

WHOLE_OF_TORCH: dict[str, Option] = {
    **CLIPPING,
    "zero_grad_in_step": Flag(
        False,
        "Zero the gradients in the step's own pass over memory; ``zero_grad(set_to_none=False)`` is not needed then.",
        keyword_only=True,
    ),
    **KEEPING,
    "master": Choice(
        None,
        'What bfloat16 parameters have beside them, so that small updates are not lost: 16 bits of remainder ("split": '
        'all of float32, of which the parameter is the value rounded to nearest), 8 ("split8"), or nothing. "float32" '
        'keeps a whole float32 beside bfloat16 and float16 ones, under "master" in the state.',
        keyword_only=True,
        among=(None, "split", "split8", "float32"),
    ),
    "rounding": Choice(
        "nearest",
        "How bfloat16 parameters without such are rounded: to the nearest value, which an update of less than half a "
        'place does not change, or at random, right in the mean ("stochastic").',
        keyword_only=True,
        among=("nearest", "stochastic"),
    ),
    "state_dtype": TorchStateDtype(**vars(KEEPING["state_dtype"])),
}
"""The same for torch."""

WHOLE_OF_JAX: dict[str, Option] = {
    "clip_norm": CLIPPING["clip_norm"],
    "clip_value": CLIPPING["clip_value"],
    "nonfinite": Choice(
        "propagate",
        'What to do about a gradient that is NaN or infinite: "propagate" it, or "skip" the step, which leaves '
        "parameters and state as they were.",
        keyword_only=True,
        among=("propagate", "skip"),
    ),
    "decay_mask": Option(
        None,
        "Which parameters have weight decay: a pytree of booleans in their structure, or the beginning of it, or a "
        "function that makes one of the parameters. None: all.",
        keyword_only=True,
    ),
    "state_dtype": KEEPING["state_dtype"],
    "ema": Maybe(
        None,
        "Keep a moving average of the parameters, ``a = ema*a + (1-ema)*p``, in the step's own pass over memory; it "
        'begins as a copy of the parameters, and is ``state.arrays["ema"]``.',
        keyword_only=True,
        high=1.0,
    ),
    "master": WHOLE_OF_TORCH["master"],
    "rounding": WHOLE_OF_TORCH["rounding"],
}
"""The same for JAX."""


# ---- states ----

Start = float | str | None
"""What a state starts as: a number, the name of the option that says it, or None: a copy of the parameter."""


class State(NamedTuple):
    """An array beside the parameter, of its shape or smaller."""

    start: Start = 0.0
    kind: Literal["moment", "square", "exact"] = "exact"
    """How it may be stored in fewer bits: as an average of gradients or updates, of either sign; as one of squares
    (never negative, and only its root matters); or not at all, like a copy of the parameter."""
    of: Literal["elements", "rows", "matrix rows", "matrix columns"] = "elements"
    """What it has a number for: each element; each row of the first dimension; or each row or column of the matrices in
    the last two."""

    def shape(self, param: Sequence[int]) -> tuple[int, ...]:
        """Return its shape beside a parameter of this shape: it broadcasts."""
        if self.of == "rows":
            return (*param[:1], *(1 for _ in param[1:]))
        if self.of == "matrix rows":
            return (*param[:-1], 1)
        return (*param[:-2], 1, *param[-1:]) if self.of == "matrix columns" else tuple(param)

    def matrix(self, param: Sequence[int]) -> tuple[int, int]:
        """Return how many rows there are in a matrix of this parameter, and of how many elements."""
        rows = math.prod(param[:1]) if self.of == "rows" else param[-2]
        return rows, math.prod(param[1:]) if self.of == "rows" else param[-1]


MOMENT = State(kind="moment")
SQUARE = State(kind="square")

ROW_SQUARE = State(of="rows")

STORED_AS: dict[str, dict[str, str]] = {
    "float32": {"moment": "float32", "square": "float32", "exact": "float32"},
    "bfloat16": {"moment": "bfloat16", "square": "bfloat16_stochastic", "exact": "float32"},
    "8bit": {"moment": "signed8", "square": "root8", "exact": "float32"},
}
"""Option `state_dtype` -> kind of a state -> storage (csrc/codecs.def)."""


# ---- the description ----


class Method:
    """The description of an optimizer, from which its class for each framework is made. It is never instantiated.

    A subclass has its options as attributes, in the order of the signature, and says which kernel steps by them. Where
    a formula says g, it is the gradient after `maximize` (its sign), clipping and L2 weight decay.
    """

    use: ClassVar[str]
    """When to take it, in one honest sentence."""

    options: ClassVar[dict[str, Option]] = {}
    """The options by name: the attributes of the class."""

    states: ClassVar[dict[str, State]] = {}
    """The state arrays, in torch's names (or those of the reference implementation)."""

    numbers: ClassVar[dict[str, Start]] = {}
    """Numbers that are kept for each parameter from step to step, in the order of the kernel's (csrc/rules.def), with
    what they start as. (The number of steps is none of these.)"""

    whole_defaults: ClassVar[dict[str, Any]] = {}
    """Defaults of this optimizer's own for options of the whole optimizer."""

    renamed: ClassVar[dict[str, str]] = {}
    """Options of the reference implementation that have another name here."""

    described: ClassVar[bool] = True
    """Whether this is an optimizer, and not what several have in common."""

    advances: ClassVar[tuple[str, ...]] = ()
    """Numbers that groups keep from step to step, written by the step: fixed options."""

    shared: ClassVar[tuple[str, ...]] = ()
    """Of these, what all groups have alike: one that is added later begins as they are."""

    counts_steps: ClassVar[bool] = True
    """Whether the update depends on the number of steps, so that it is part of a parameter's state."""

    matrices: ClassVar[bool] = False
    """Whether it steps parameters of two dimensions alone."""

    between: ClassVar[tuple[str, ...]] = ()
    """Options of what is done to updates that a rule hands over (csrc/rules.def), or that say which parameters have
    such a rule: see `rule_for`. The kernels know nothing of most."""

    twin: ClassVar[str | None] = None
    """The class of `torch.optim` that this is, with more options; None if torch has no such."""

    refusal_of_dense: ClassVar[str] = ""
    """What that class says of a dense gradient, if it takes none."""

    twin_flags: ClassVar[tuple[str, ...]] = ()
    """Options of the twin that say how a step is run, as they follow in its signature: those before "*" by position.
    For type checkers; at run time the signature is the twin's own."""

    def __init_subclass__(cls) -> None:
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Option)}
        # What several have in common follows what is a description's own.
        first = {} if vars(cls.__base__).get("described", True) else own
        cls.options = {**first, **cls.options, **own}

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Return the kernel for these options, a row of csrc/rules.def, and the names of its states."""
        raise NotImplementedError

    @classmethod
    def rule_for(
        cls, options: Mapping[str, Any], shape: Sequence[int], label: Callable[[], str]
    ) -> tuple[str, tuple[str, ...]]:
        """Return the same for a parameter of this shape and name; raise `ValueError` if it cannot be stepped."""
        return cls.rule(options)

    @classmethod
    def row_numbers(cls, rule: str, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of what a rule keeps for each row of a parameter, in double: it starts as zero."""
        return ()

    @classmethod
    def state_shape(cls, name: str, param: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a state, or of whatever else is kept, beside a parameter of this shape."""
        return cls.states[name].shape(param) if name in cls.states else tuple(param)

    @classmethod
    def check(cls, options: Mapping[str, Any], edited: bool = False) -> None:
        """Raise `ValueError` unless the options, schedules evaluated, make sense; where not `edited`, also together."""
        for name, option in cls.options.items():
            option.check(name, options[name], edited)
        if not edited:
            cls.check_together(options)

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        """Raise `ValueError` if options that are right for themselves exclude each other."""

    @classmethod
    def sparse(cls, options: Mapping[str, Any]) -> Literal["rows", "dense", "refuse"]:
        """Return what a sparse gradient is for: a step of its rows alone, of all (made dense), or none."""
        return "rows" if options.get("lazy") else "refuse"

    @classmethod
    def catches_up(cls, options: Mapping[str, Any]) -> bool:
        """Whether rows miss decays that they have to catch up with."""
        return bool(options.get("lazy") and options.get("decoupled_weight_decay"))

    @classmethod
    def check_groups(cls, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raise if a step cannot be taken with the groups as they are together; asked of those that keep numbers."""

    @staticmethod
    def place_of_use(options: Mapping[str, Any]) -> tuple[str, float]:
        """Return the state z and how much of x is in p = (1-share)*z + share*x: p is trained, x is what is used.

        Only of optimizers whose parameters are in two places, by the entry `train_mode` of their groups.
        """
        raise NotImplementedError

    @classmethod
    def start(cls, name: str, options: Mapping[str, Any]) -> float | None:
        """Return what a state or a number starts as; None is a copy of the parameter."""
        start = cls.states[name].start if name in cls.states else cls.numbers[name]
        value = at_step(options[start], 0) if isinstance(start, str) else start
        return None if value is None else float(value)

    @classmethod
    def translated(cls, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the state dict of the reference implementation as one of this library; others as they are.

        Some count the steps in the group, all parameters' together.
        """
        groups = [
            {cls.renamed.get(name, name): value for name, value in group.items()}
            for group in state_dict["param_groups"]
        ]
        steps = [(group.pop("step"), group["params"]) for group in groups if "step" in group]
        counts = {index: step for step, indices in steps for index in indices}
        state = {
            index: {"step": copy(counts[index]), **entry} if index in counts and "step" not in entry else entry
            for index, entry in state_dict["state"].items()
        }
        return {**state_dict, "param_groups": groups, "state": state}

    @classmethod
    def complete(cls, options: dict[str, Any]) -> None:
        """Give the numbers that start as another option says their values."""
        for name, option in cls.options.items():
            if not isinstance(option, Maybe) or not option.start or options[name] is not None:
                continue
            if not is_scheduled(options[option.start]):
                options[name] = plain(options[option.start])

    @classmethod
    def whole(cls, options: Mapping[str, Option]) -> dict[str, Option]:
        """Return options of the whole optimizer, with this one's defaults."""
        own = cls.whole_defaults
        return {name: option.but(default=own.get(name, option.default)) for name, option in options.items()}

    @classmethod
    def at(cls, group: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Return a group's options after `step` steps, schedules evaluated."""
        return {name: option.at(group[name], step) for name, option in cls.options.items()}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return every option's default."""
        return {name: option.default for name, option in cls.options.items()}

    @classmethod
    def signature(cls, whole: Mapping[str, Option] = WHOLE) -> inspect.Signature:
        """Return the constructor's signature: the parameters, the options, and those of the whole optimizer."""
        given = {name: option for name, option in {**cls.options, **cls.whole(whole)}.items() if not option.fixed}
        kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("params", kinds[0], annotation=Any)]
        for keyword_only in (False, True):
            parameters += [
                inspect.Parameter(name, kinds[keyword_only], default=option.default, annotation=option.annotation)
                for name, option in given.items()
                if option.keyword_only is keyword_only
            ]
        return inspect.Signature(parameters)

    @classmethod
    def documentation(cls, whole: Mapping[str, Option] = WHOLE) -> str:
        """Return the docstring of the class that is made: the description's, with all parameters and errors."""
        text = inspect.getdoc(cls) or ""
        head, _, references = text.partition("\nReferences\n----------\n")
        meanings = "\n".join(
            f"{name}\n    {option.meaning}"
            for name, option in {**cls.options, **cls.whole(whole)}.items()
            if not option.fixed
        )
        sections = [
            head.rstrip(),
            "Parameters\n----------\nparams\n    What to optimize, in place.\n" + meanings,
            "Raises\n------\nTypeError, ValueError\n    If an option is out of bounds or an array unfit.",
        ]
        if "use" in vars(cls):
            sections.append("Notes\n-----\nWhen to use it: " + cls.use)
        if references:
            sections.append("References\n----------\n" + references)
        return "\n\n".join(sections)


class Careful(Method):
    """What those have in common whose updates and decay can be made more careful."""

    described = False
    renamed: ClassVar[dict[str, str]] = {"caution": "cautious", "max_lr_snapshot": "peak_lr"}
    """What the package timm calls these."""

    cautious = Flag(
        False,
        "Whether there is no update where it and g disagree in sign, and in turn a larger one elsewhere: divided by "
        'the part of the tensor where they agree, at least 1e-3 (Liang, Chen, Liu & Liu 2024, "Cautious optimizers").',
        keyword_only=True,
    )
    cautious_decay = Flag(
        False, "Whether decoupled decay is only where update and parameter agree in sign.", keyword_only=True
    )
    corrected_weight_decay = Flag(
        False,
        "Whether decoupled decay falls with the square of the rate, ``p *= 1 - lr**2/peak_lr*weight_decay`` (Defazio "
        '2025, "Why gradients rapidly increase near the end of training").',
        keyword_only=True,
    )
    peak_lr = Maybe(
        None,
        "The largest learning rate, for `corrected_weight_decay`; by default the one that the optimizer is made with, "
        "unless that is a schedule.",
        keyword_only=True,
        start="lr",
    )

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        """Raise `ValueError` if decay is to be done in a way that only decoupled decay can be."""
        for name in ("cautious_decay", "corrected_weight_decay"):
            if options[name] and not options["decoupled_weight_decay"]:
                raise ValueError(f"{name}=True needs decoupled weight decay")
        if options["corrected_weight_decay"] and not (options["peak_lr"] or 0) > 0:
            raise ValueError(f"corrected_weight_decay=True needs a positive peak_lr, got {options['peak_lr']}")
