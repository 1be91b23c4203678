# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""The door to csrc/: addresses and options in, one call without the GIL, results out. No maths here."""

from cpython.dict cimport PyDict_Next, PyDict_Size
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset


cdef list names(const char *(*name)(size_t) noexcept nogil):
    found = []
    while name(len(found)) != NULL:
        found.append(name(len(found)).decode())
    return found


cdef const fo_kernels *kernels = fo_best_kernels()
fo_load_openmp()

RULES = {name: (i, fo_needs[i].states) for i, name in enumerate(names(fo_rule_name))}
"""Rule name -> (index, number of state arrays)."""

SCOPES = {name: "plan" if fo_needs[i].over_plan else "tensor" for name, (i, _) in RULES.items() if fo_needs[i].sums}
"""Rule that measures before it steps -> what its sums are over."""

HANDED_OVER = frozenset(name for name, (i, _) in RULES.items() if fo_needs[i].hands_over)
"""Rules whose last state is no state but their update, which calls between measuring and stepping change."""

SMALL = {name: tuple(fo_needs[i].small[k] != 0 for k in range(fo_needs[i].states)) for name, (i, _) in RULES.items()
         if any([fo_needs[i].small[k] for k in range(fo_needs[i].states)])}
"""Rule with states that have one number for each row or column -> which of its states these are."""

OPTIONS = {name: i for i, name in enumerate(names(fo_option_name))}
"""Name of an option that the kernels' scalars are formed from -> index."""

SCALARS = tuple(names(fo_scalar_name))

STORAGES = {name: i for i, name in enumerate(names(fo_storage_name))}
"""How a stream is stored -> index."""

GROUP = FO_GROUP
"""How many elements share what is stored beside them."""

BESIDE = {name: fo_beside_size(<fo_storage><int>i) for name, i in STORAGES.items() if fo_beside_size(<fo_storage><int>i)}
"""Storage that has something beside its elements -> bytes of it for each group."""


def isa() -> str:
    return kernels.isa.decode()


def available_isas() -> tuple:
    return tuple(names(fo_available_isa))


def use_isa(name: str) -> None:
    global kernels
    cdef const fo_kernels *found = fo_find_kernels(name.encode())
    if found == NULL:
        raise ValueError(f"instruction set {name!r} is not available here; there are {', '.join(available_isas())}")
    kernels = found


def compiler() -> str:
    return fo_compiler().decode()


ANY_THREADS = FO_ANY_THREADS
"""In the place of a number of threads: what OpenMP would take."""


cdef int asked_threads = FO_ANY_THREADS


def ask_for_threads(int threads) -> None:
    """Say how many threads a step may use at most, or `ANY_THREADS`."""
    global asked_threads
    asked_threads = threads


def threads_asked() -> int:
    return asked_threads


cdef int xla_minor = 0


cdef xla_error *measure_of_xla(const xla_call *call) noexcept nogil:
    return fo_xla_measure(kernels, asked_threads, xla_minor, call)


cdef xla_error *step_of_xla(const xla_call *call) noexcept nogil:
    return fo_xla_step(kernels, asked_threads, xla_minor, call)


def xla_handlers(int minor) -> tuple:
    """Return the handlers of XLA's foreign function interface 0.`minor`, in capsules: to measure, to step (csrc/xla.c)."""
    global xla_minor
    xla_minor = minor
    return PyCapsule_New(<void *>measure_of_xla, NULL, NULL), PyCapsule_New(<void *>step_of_xla, NULL, NULL)


def find_openmp() -> None:
    """Share the threads of the OpenMP runtime that torch uses, if it is loaded; else of one that is there."""
    fo_find_openmp()


def spare_openmp() -> str:
    """Return the file of the runtime that fastopt loaded and does not use, as another has come since; else ""."""
    return (fo_spare_openmp() or b"").decode()


def has_openmp() -> bool:
    return fo_has_openmp()


def hardware_threads() -> int:
    return fo_hardware_threads()


def same_objects(list a, list b) -> bool:
    """Whether two lists have the very same entries."""
    cdef Py_ssize_t i
    if len(a) != len(b):
        return False
    for i in range(len(a)):
        if a[i] is not b[i]:
            return False
    return True


def members_are(list groups, list params, list owners) -> bool:
    """Whether the groups' parameters are these very objects, each in the group that is said to own it."""
    cdef Py_ssize_t k = 0, owner, i
    cdef list members
    for owner in range(len(groups)):
        members = groups[owner]["params"] if type(groups[owner]["params"]) is list else list(groups[owner]["params"])
        for i in range(len(members)):
            if k >= len(params) or members[i] is not params[k] or <Py_ssize_t>owners[k] != owner:
                return False
            k += 1
    return k == len(params)


cdef fo_stream stream(tuple place):
    """An (address, storage), or (address, storage, address of what lies beside)."""
    cdef fo_stream found
    memset(&found, 0, sizeof(fo_stream))
    found.at, found.storage = <void *><uintptr_t>place[0], <fo_storage><int>place[1]
    found.beside = <void *><uintptr_t>(place[2] if len(place) > 2 else 0)
    return found


def convert(tuple target, tuple source, size_t length) -> None:
    """Store numbers otherwise, from one (address, storage) to another."""
    cdef fo_stream to = stream(target), origin = stream(source)
    kernels.convert(&to, &origin, length)


cdef bint make_calls(void *hands) noexcept with gil:
    """Make the calls in a list; an error takes the place beside it."""
    cdef list both = <list>hands
    try:
        for call in both[0]:
            call[0](*call[1:])
    except BaseException as error:
        both[1] = error
        return False
    return True


cdef class Plan:
    """A list of tensors as the kernels see it. Whoever binds memory to it keeps that alive.

    `owners` says for each tensor which row of options is its own, out of `rows`; some may be nobody's.
    """

    def __cinit__(self, list owners, size_t rows):
        if max(owners, default=-1) >= <Py_ssize_t>rows:
            raise IndexError(f"owners: expected numbers below {rows}, got {max(owners)}")
        self.owners, self.rows = owners, rows
        self.plan = fo_plan_new(len(owners))
        self.options = <fo_options *>calloc(rows + 1, sizeof(fo_options))
        if self.plan == NULL or self.options == NULL:
            raise MemoryError
        for i, owner in enumerate(owners):
            self.plan.tensors[i].options = &self.options[<size_t>owner]

    def __dealloc__(self):
        fo_plan_free(self.plan)
        free(self.options)

    def set_options(self, size_t owner, tuple columns, list values) -> None:
        """Set a row of options: `columns` has their indices in `OPTIONS`."""
        cdef double *row = <double *>&self.options[owner]
        cdef Py_ssize_t k
        if owner >= self.rows:
            raise IndexError(f"owner: expected a number below {self.rows}, got {owner}")
        for k in range(len(columns)):
            row[<size_t>columns[k]] = values[k]

    def follow(self, list groups, list seen, list values, dict columns, double low) -> list:
        """Find out which groups have other entries than those `seen`; return their numbers.

        But rates are edited all the time: where what differs are only numbers of at least `low` named in `columns`, they
        are taken at once, into the rows of options, `seen` and `values`.
        """
        cdef Py_ssize_t owner, place, k
        cdef PyObject *key
        cdef PyObject *value
        cdef list known, new = []
        cdef double number
        cdef bint same
        for owner in range(len(groups)):
            group, known = groups[owner], <list>seen[owner]
            place, k, same = 0, 0, PyDict_Size(group) == len(known)
            while same and PyDict_Next(group, &place, &key, &value):
                if <object>value is not known[k]:
                    same = type(<object>value) is float and <object>key in columns
                    number = <object>value if same else 0
                    same = same and low <= number < INFINITY
                    if same:
                        (<double *>&self.options[owner])[<size_t>columns[<object>key]] = number
                        (<dict>values[owner])[<object>key] = known[k] = <object>value
                k += 1
            if not same:
                new.append(owner)
        return new

    def bind(self, size_t tensor, str rule, size_t length, tuple param, list states, list numbers=[],
             tuple table=None, tuple matrix=None) -> None:
        """Say where a tensor and its states are, as (address, storage).

        Its numbers are (address, is float32): how many steps it has taken, where that counts, and those of the rule. It
        has no gradient then. Of a table whose rows catch up with decays, `table` is (elements of a row, address of what
        each row has had, number that there has been). `matrix` is (rows, elements of a row), where states go by these.
        """
        cdef fo_tensor *t = &self.plan.tensors[tensor]
        cdef fo_number *place
        cdef size_t index = RULES[rule][0]
        if len(states) != fo_needs[index].states:
            raise ValueError(f"{rule}: expected {fo_needs[index].states} states, got {len(states)}")
        if len(numbers[1:]) != fo_needs[index].numbers:
            raise ValueError(f"{rule}: expected {fo_needs[index].numbers} numbers, got {len(numbers[1:])}")
        t.rule = <fo_rule>index
        t.param = stream(param)
        t.grad.at, t.grad.beside, t.grad.storage, t.rows = NULL, NULL, t.param.storage, NULL
        for k, state in enumerate(states):
            t.state[<int>k] = stream(state)
        for k, (address, single) in enumerate(numbers or [(0, False)]):
            place = &t.count if k == 0 else &t.number[<int>k - 1]
            place.at, place.single = <void *><uintptr_t>address, single
        if (matrix is None) == (rule in SMALL) or (matrix is not None and length and length % (matrix[0] * matrix[1])):
            raise ValueError(f"{rule}: expected a matrix for small states alone, got {matrix} of {length} elements")
        self.cut = self.cut and t.n == length and t.row_decay == NULL and table is None and not t.width and matrix is None
        t.height, t.width = matrix or (0, 0)
        t.row_decay = NULL
        if table is not None:
            t.width, t.row_decay = table[0], <double *><uintptr_t>table[1]
            t.decay.at, t.decay.single = <void *><uintptr_t>table[2][0], table[2][1]
        t.n = length

    def bind_tails(self, size_t tensor, average, copy) -> None:
        """Say where the moving average of a parameter is, and its copy, each (address, storage) or None."""
        cdef fo_tensor *t = &self.plan.tensors[tensor]
        cdef fo_stream none = stream((0, t.param.storage))
        t.average = stream(average) if average is not None else none
        t.copy = stream(copy) if copy is not None else none

    def set_gradient(self, size_t tensor, tuple place) -> None:
        """Say where a tensor's gradient is, (address, storage); None leaves the tensor out."""
        cdef fo_tensor *t = &self.plan.tensors[tensor]
        t.rows = NULL
        if place is None:
            t.grad.at = NULL
            return
        t.grad.storage = <fo_storage><int>place[1]
        t.grad.at = <void *><uintptr_t>place[0] if t.n else t  # (of an empty one only that it is there)

    def set_rows(self, size_t tensor, tuple numbers, tuple values, size_t width, int threads) -> None:
        """Say which rows of a tensor have a gradient, (address, is int64, how many), and where, (address, storage).

        A row comes in any place and as often as it likes: there is one of values for each time.
        """
        cdef fo_tensor *t = &self.plan.tensors[tensor]
        cdef const void *at = <const void *><uintptr_t>numbers[0]
        cdef bint wide = numbers[1]
        cdef size_t occurrences = numbers[2], wrong = 0
        cdef fo_grouped grouped
        self.rowed = True
        with nogil:
            grouped = fo_group_rows(self.plan, tensor, at, wide, occurrences, width, threads, &wrong)
        if grouped == FO_NO_MEMORY:
            raise MemoryError
        if grouped == FO_TOO_MANY_ROWS:
            raise ValueError(f"expected fewer rows at once, got {occurrences}")
        if grouped == FO_NO_SUCH_ROW:
            number = (<const int64_t *>at)[wrong] if wide else (<const int32_t *>at)[wrong]
            raise IndexError(f"expected row numbers of at least 0 and below {t.n // width if width else 0}, "
                             f"got {number} at {wrong}")
        t.grad.storage = <fo_storage><int>values[1]
        t.grad.at = <void *><uintptr_t>values[0] if occurrences and width else t  # (of none only that it is there)

    def gradients_are_apart(self) -> bool:
        """Whether no two tensors have one gradient."""
        cdef size_t i
        cdef list found = [<uintptr_t>self.plan.tensors[i].grad.at for i in range(self.plan.count)
                           if self.plan.tensors[i].grad.at != NULL and self.plan.tensors[i].n]
        return len(set(found)) == len(found)

    def params_overlap(self) -> bool:
        """Whether two tensors share memory."""
        return fo_params_overlap(self.plan)

    def keep(self, dict columns, list groups, list seen, list values) -> None:
        """Write the options in `columns` into the groups, `seen` and `values` after each step that was taken."""
        self.advancing = (columns, groups, seen, values)

    cdef int tell(self) except -1:
        cdef Py_ssize_t owner
        cdef double number
        if self.advancing is None:
            return 0
        columns, groups, seen, values = self.advancing
        for owner in range(len(groups)):
            group = groups[owner]
            for name, column in columns.items():
                number = (<double *>&self.options[owner])[<size_t>column]
                group[name] = values[owner][name] = int(number) if type(group.get(name)) is int else number
            seen[owner] = list(group.values()) if seen[owner] else []
        return 0

    @staticmethod
    def of_pairs(list pairs, kept) -> Plan:
        """A plan for the passes over two arrays, ((address, storage), (address, storage), length) each.

        `kept` keeps them alive.
        """
        cdef Plan plan = Plan([0] * len(pairs), 1)
        plan.kept = kept
        for i, (target, source, length) in enumerate(pairs):
            plan.bind(i, "sgd", length, target, [])
            plan.set_gradient(i, source)
        return plan

    @staticmethod
    def of_gradients(list gradients, kept) -> Plan:
        """A plan for the passes over gradients alone, each (address, storage, length)."""
        return Plan.of_pairs([((address, storage), (address, storage), length) for address, storage, length in gradients], kept)

    cdef int cut_blocks(self) except -1:
        if not (self.cut and not self.rowed) and not fo_plan_cut(self.plan):
            raise MemoryError
        self.cut, self.rowed = not self.rowed, False
        return 0

    def step(self, int threads, list made, double unscale, double clip_norm, double clip_value, bint want_norm,
             str nonfinite, bint zero_grad, double average_weight, list after, list always, counter,
             list between=[]) -> tuple:
        """Run the step; return (norm before clipping or NaN, clip coefficient, skipped).

        The calls `between` are made when rules have handed over their updates.

        What belongs to a step that was taken is done here, so that no interrupt can come between: the calls in `after`,
        (builtin function, argument, ...), then `made` is emptied and `counter.step_count` goes up. The calls in
        `always` are for a skipped step too.
        """
        cdef fo_request request
        cdef fo_result result
        self.cut_blocks()
        request.unscale, request.clip_norm, request.clip_value = unscale, clip_norm, clip_value
        request.want_norm, request.skip_nonfinite = want_norm, nonfinite != "propagate"
        request.zero_grad, request.zero_skipped, request.threads = zero_grad, nonfinite == "skip", threads
        request.average_weight = average_weight
        cdef list hands = [between, None]
        request.between, request.hands = make_calls, <void *>hands
        with nogil:
            result = fo_step(kernels, self.plan, &request)
        if result.failed:
            raise hands[1]
        if result.unfit:
            raise ValueError(f"param_groups[{self.owners[result.tensor]}]: the scalar "
                             f"{SCALARS[result.unfit - 1]!r}, formed from its options, is out of the range of its dtype")
        if not result.skipped:
            for call in after:
                call[0](*call[1:])
            self.tell()
            made.clear()
            if counter is not None:
                counter.step_count += 1
        for call in always:
            call[0](*call[1:])
        return result.norm, result.coefficient, result.skipped

    def norm(self, int threads) -> float:
        cdef double result
        self.cut_blocks()
        with nogil:
            result = fo_global_norm(kernels, self.plan, threads)
        return result

    def squares(self, int threads) -> list:
        """Return a sum of squares for each block: `norm` is the root of their sum, added in this order.

        Where that is not finite, they need only not be so, too. Not for float64, whose sums may be out of range.
        """
        cdef size_t block
        self.norm(threads)
        return [self.plan.partial[FO_MAX_SUMS * block] for block in range(self.plan.first_block[self.plan.count])]

    def max_abs(self, int threads) -> float:
        cdef double result
        self.cut_blocks()
        with nogil:
            result = fo_global_max_abs(kernels, self.plan, threads)
        return result

    def scale(self, double factor, int threads) -> None:
        self.cut_blocks()
        with nogil:
            fo_scale_gradients(kernels, self.plan, factor, threads)

    def lerp(self, double weight, int threads) -> None:
        """Move the parameters towards what stands in the gradients' places."""
        self.cut_blocks()
        with nogil:
            fo_lerp(kernels, self.plan, weight, threads)

    def add_to(self, Plan sums, double weight, int threads, list after) -> None:
        """Move another plan's parameters towards this one's gradients, and make the calls `after` that."""
        cdef size_t i
        for i in range(self.plan.count):
            sums.plan.tensors[i].grad = self.plan.tensors[i].grad
        sums.lerp(weight, threads)
        for call in after:
            call[0](*call[1:])

    def clamp(self, double limit, int threads) -> None:
        self.cut_blocks()
        with nogil:
            fo_clamp_gradients(kernels, self.plan, limit, threads)
