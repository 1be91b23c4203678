# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""The door to csrc/: buffers in, one call without the GIL, results out. No maths here."""

from cpython.exc cimport PyErr_Clear
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset

import numpy as np
cimport numpy as cnp

cdef extern from "fastopt.h" nogil:
    ctypedef enum fo_storage:
        FO_F32, FO_F64, FO_BF16, FO_F16
    ctypedef struct fo_stream:
        void *at
        fo_storage storage
    ctypedef enum fo_rule:
        pass
    ctypedef struct fo_hyper_f64:
        pass
    ctypedef struct fo_hyper:
        fo_hyper_f64 f64
    ctypedef struct fo_kernels:
        const char *isa
    ctypedef struct fo_tensor:
        fo_stream param
        fo_stream grad
        fo_stream state[6]
        size_t n
        size_t hyper
        fo_rule rule
    ctypedef struct fo_plan:
        fo_tensor *tensors
        size_t count
    ctypedef struct fo_request:
        double unscale
        double clip_norm
        bint want_norm
        bint skip_nonfinite
        bint zero_grad
        uint64_t seed
        int threads
    ctypedef struct fo_result:
        double norm
        double coefficient
        bint skipped

    const char *fo_rule_name(size_t)
    int fo_rule_states(size_t)
    const char *fo_hyper_name(size_t)
    const char *fo_compiler()
    const fo_kernels *fo_best_kernels()
    const fo_kernels *fo_find_kernels(const char *)
    const char *fo_available_isa(size_t)
    fo_plan *fo_plan_new(size_t, const size_t *)
    void fo_plan_free(fo_plan *)
    fo_result fo_step(const fo_kernels *, fo_plan *, fo_hyper *, size_t, const fo_request *)
    double fo_global_norm(const fo_kernels *, fo_plan *, int)
    double fo_global_max_abs(const fo_kernels *, fo_plan *, int)
    void fo_scale_gradients(const fo_kernels *, fo_plan *, double, int)
    void fo_clamp_gradients(const fo_kernels *, fo_plan *, double, int)
    bint fo_has_openmp()
    int fo_hardware_threads()

cdef extern from "dlpack.h" nogil:
    ctypedef struct DLDataType:
        uint8_t code
        uint8_t bits
    ctypedef struct DLDevice:
        int32_t type
    ctypedef struct DLTensor:
        void *data
        DLDevice device
        int32_t ndim
        DLDataType dtype
        int64_t *shape
        int64_t *strides
    ctypedef struct DLManagedTensorVersioned:
        void (*deleter)(DLManagedTensorVersioned *) noexcept
    ctypedef struct DLPackExchangeAPI:
        int (*managed_tensor_from_py_object_no_sync)(void *, DLManagedTensorVersioned **) except -1
        int (*dltensor_from_py_object_no_sync)(void *, DLTensor *) noexcept
    const DLPackExchangeAPI *fo_dl_table(const DLPackExchangeAPI *)
    void fo_dl_prefetch(const void *, const void *)

cnp.import_array()


cdef list names(const char *(*name)(size_t) noexcept nogil):
    found = []
    while name(len(found)) != NULL:
        found.append(name(len(found)).decode())
    return found


cdef const fo_kernels *kernels = fo_best_kernels()
cdef dict hyper_index = {name: i for i, name in enumerate(names(fo_hyper_name))}

RULES = {name: (i, fo_rule_states(i)) for i, name in enumerate(names(fo_rule_name))}
"""Rule name -> (index, number of state arrays)."""

HYPERS = tuple(hyper_index)
"""Names of the scalars that a rule can read."""

DTYPES = {
    "float32": (FO_F32, FO_F32), "float64": (FO_F64, FO_F64), "bfloat16": (FO_BF16, FO_BF16), "float16": (FO_F16, FO_F16),
    "bfloat16/float32": (FO_BF16, FO_F32), "float16/float32": (FO_F16, FO_F32),
}
"""Storage of a parameter (and, after a slash, of its states where they differ) -> index."""


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


def has_openmp() -> bool:
    return fo_has_openmp()


def hardware_threads() -> int:
    return fo_hardware_threads()


cdef bint contiguous_alike(cnp.ndarray a, cnp.ndarray b):
    return ((cnp.PyArray_IS_C_CONTIGUOUS(a) and cnp.PyArray_IS_C_CONTIGUOUS(b))
            or (cnp.PyArray_IS_F_CONTIGUOUS(a) and cnp.PyArray_IS_F_CONTIGUOUS(b)))


cdef bint same_shape(cnp.ndarray a, cnp.ndarray b):
    cdef int k
    if cnp.PyArray_NDIM(a) != cnp.PyArray_NDIM(b):
        return False
    for k in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, k) != cnp.PyArray_DIM(b, k):
            return False
    return True


cdef int storage(cnp.ndarray array):
    """The array's dtype as the kernels count them, or -1."""
    if not cnp.PyArray_ISNOTSWAPPED(array):
        return -1
    if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT32:
        return FO_F32
    return FO_F64 if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT64 else -1


cdef object as_array(value):
    """Return memory that is no array (a NumPy scalar, `array.array`, ...) as one, anything else as it is."""
    try:
        memoryview(value)
    except TypeError:
        return value
    return np.asarray(value)


def check_array(array, str label, bint writeable) -> None:
    """Raise unless the kernels can work on this array in place."""
    if not isinstance(array, cnp.ndarray):
        raise TypeError(f"{label}: expected a NumPy array, got {type(array).__name__}")
    if storage(array) < 0:
        raise TypeError(f"{label}: expected dtype float32 or float64 in native byte order, got {array.dtype.str!r}")
    if not (cnp.PyArray_IS_C_CONTIGUOUS(array) or cnp.PyArray_IS_F_CONTIGUOUS(array)):
        raise ValueError(f"{label}: expected a contiguous array (C or Fortran order), got strides {array.strides} "
                         f"for shape {array.shape}; np.ascontiguousarray makes a copy that is")
    if not cnp.PyArray_ISALIGNED(array):
        raise ValueError(f"{label}: expected memory aligned to {array.itemsize} bytes, got address {array.ctypes.data:#x}")
    if writeable and not cnp.PyArray_ISWRITEABLE(array):
        raise ValueError(f"{label}: expected a writeable array, got a read-only one")


def check_gradient(gradient, param, str label, bint writeable) -> None:
    """Raise unless the gradient can be read beside its parameter, element for element."""
    check_array(gradient, label, writeable)
    if gradient.dtype != param.dtype:
        raise TypeError(f"{label}: expected the parameter's dtype {param.dtype}, got {gradient.dtype}")
    if not same_shape(gradient, param):
        raise ValueError(f"{label}: expected the parameter's shape {param.shape}, got {gradient.shape}")
    if not contiguous_alike(gradient, param):
        raise ValueError(f"{label}: expected the parameter's memory order (strides {param.strides}), "
                         f"got strides {gradient.strides}")


def same_objects(list a, list b) -> bool:
    """Whether two lists have the very same entries."""
    cdef Py_ssize_t i
    if len(a) != len(b):
        return False
    for i in range(len(a)):
        if a[i] is not b[i]:
            return False
    return True


def count_none(list objects) -> int:
    """How many entries are None."""
    cdef Py_ssize_t i, count = 0
    for i in range(len(objects)):
        count += objects[i] is None
    return count


def entries_are(list dicts, list keys, list values) -> bool:
    """Whether `dicts[i][keys[i]]` is the very object `values[i]`, for every i."""
    cdef Py_ssize_t i
    for i in range(len(dicts)):
        if (<dict>dicts[i]).get(keys[i]) is not values[i]:
            return False
    return True


def count_steps(cnp.ndarray steps, list members) -> None:
    """Add one to these entries of an array. (NumPy's own way there costs more than the rest of a small step.)"""
    cdef Py_ssize_t member
    if cnp.PyArray_TYPE(steps) == cnp.NPY_FLOAT32:
        for member in members:
            (<float *>cnp.PyArray_DATA(steps))[member] += 1
    else:
        for member in members:
            (<double *>cnp.PyArray_DATA(steps))[member] += 1


cdef class Memory:
    """Address ranges that must stay disjoint, sorted once so that a look-up is a binary search."""

    cdef uintptr_t *begin
    cdef uintptr_t *end
    cdef size_t count
    cdef list order  # index of the array behind each range

    def __cinit__(self, list arrays):
        cdef list ranges = sorted((<uintptr_t>cnp.PyArray_DATA(a), cnp.PyArray_NBYTES(a), i)
                                  for i, a in enumerate(arrays) if a is not None and a.size)
        self.count = len(ranges)
        self.order = [i for _, _, i in ranges]
        self.begin = <uintptr_t *>malloc((self.count + 1) * sizeof(uintptr_t))
        self.end = <uintptr_t *>malloc((self.count + 1) * sizeof(uintptr_t))
        if self.begin == NULL or self.end == NULL:
            raise MemoryError
        for k, (start, size, _) in enumerate(ranges):
            self.begin[k] = start
            self.end[k] = <uintptr_t>start + <uintptr_t>size

    def __dealloc__(self):
        free(self.begin)
        free(self.end)

    def collision(self):
        """Two arrays of the list that share memory, as a pair of indices, or None."""
        for k in range(1, self.count):
            if self.begin[k] < self.end[k - 1]:
                return self.order[k - 1], self.order[k]
        return None

    cdef Py_ssize_t hit(self, uintptr_t begin, uintptr_t end):
        """The range that [begin, end) shares memory with, or -1. The ranges are disjoint."""
        cdef size_t low = 0, high = self.count, middle
        while low < high:
            middle = (low + high) // 2
            if self.end[middle] <= begin:
                low = middle + 1
            else:
                high = middle
        return <Py_ssize_t>low if low < self.count and self.begin[low] < end and begin < end else -1


cdef class Plan:
    """A parameter list, cut into blocks once; holds the pointers and scalars of a step."""

    cdef fo_plan *plan
    cdef fo_hyper *hypers
    cdef size_t hyper_count
    cdef object arrays  # what the pointers point into, so that it lives as long as they do
    cdef Memory memory

    def __cinit__(self, lengths, dtypes):
        cdef size_t count = len(lengths)
        cdef size_t *sizes = <size_t *>malloc((count + 1) * sizeof(size_t))
        if sizes == NULL:
            raise MemoryError
        for i in range(count):
            sizes[i] = lengths[i]
        self.plan = fo_plan_new(count, sizes)
        free(sizes)
        if self.plan == NULL:
            raise MemoryError
        for i in range(count):
            self.plan.tensors[i].param.storage = self.plan.tensors[i].grad.storage = <fo_storage><int>dtypes[i][0]
            for k in range(6):
                self.plan.tensors[i].state[k].storage = <fo_storage><int>dtypes[i][1]

    def __dealloc__(self):
        fo_plan_free(self.plan)
        free(self.hypers)

    @staticmethod
    def of_gradients(list gradients) -> Plan:
        """A plan over checked gradients alone, for the passes that need no parameters."""
        plan = Plan([a.size for a in gradients], [(storage(a), storage(a)) for a in gradients])
        plan.arrays = gradients
        for i, array in enumerate(gradients):
            (<Plan>plan).plan.tensors[i].grad.at = cnp.PyArray_DATA(array)
        return plan

    @staticmethod
    def of_arrays(list params) -> Plan:
        """A plan over checked arrays, which it keeps alive."""
        plan = Plan([a.size for a in params], [(storage(a), storage(a)) for a in params])
        plan.arrays = params
        plan.memory = Memory(params)
        for i, array in enumerate(params):
            (<Plan>plan).plan.tensors[i].param.at = cnp.PyArray_DATA(array)
        return plan

    def set_states(self, size_t tensor, str rule, list states) -> None:
        """Choose a tensor's rule; `states` are the arrays it updates."""
        self.plan.tensors[tensor].rule = <fo_rule><int>RULES[rule][0]
        for k, state in enumerate(states):
            self.plan.tensors[tensor].state[k].at = cnp.PyArray_DATA(state)

    def set_params(self, list addresses) -> None:
        """Take the parameters' addresses; the caller keeps the memory alive."""
        for i in range(self.plan.count):
            self.plan.tensors[i].param.at = <void *><uintptr_t>addresses[i]

    def set_state_addresses(self, size_t tensor, str rule, list addresses) -> None:
        """Choose a tensor's rule and say where its states are; the caller keeps the memory alive."""
        self.plan.tensors[tensor].rule = <fo_rule><int>RULES[rule][0]
        for k, address in enumerate(addresses):
            self.plan.tensors[tensor].state[k].at = <void *><uintptr_t>address

    def set_gradient_addresses(self, list addresses) -> None:
        """Take the gradients' addresses; 0 leaves a tensor out."""
        for i in range(self.plan.count):
            self.plan.tensors[i].grad.at = <void *><uintptr_t>addresses[i]

    def reads_apart(self) -> bool:
        """Whether no two tensors have one gradient."""
        cdef size_t i
        cdef list found = [<uintptr_t>self.plan.tensors[i].grad.at for i in range(self.plan.count)
                           if self.plan.tensors[i].grad.at != NULL]
        return len(set(found)) == len(found)

    def set_gradients(self, list gradients, list labels, bint writeable) -> int:
        """Check every gradient against its parameter, then take it; return how many are None, which are left out."""
        cdef size_t i, missing = 0
        cdef cnp.ndarray param, gradient
        cdef fo_tensor *tensor
        cdef bint moved = False
        for i in range(self.plan.count):
            if gradients[i] is None:
                missing += 1
                continue
            param = <cnp.ndarray>(<list>self.arrays)[i]
            tensor = &self.plan.tensors[i]
            if cnp.PyArray_DATA(param) != tensor.param.at or <size_t>cnp.PyArray_SIZE(param) != tensor.n:
                raise RuntimeError(f"{labels[i]}: was resized after the optimizer was made; make a new optimizer")
            if not cnp.PyArray_ISWRITEABLE(param):
                check_array(param, labels[i], True)
            if not isinstance(gradients[i], cnp.ndarray):
                gradients[i] = as_array(gradients[i])
                check_gradient(gradients[i], param, "gradient of " + labels[i], writeable)
            gradient = <cnp.ndarray>gradients[i]
            if (storage(gradient) != <int>tensor.param.storage or not same_shape(gradient, param)
                    or not contiguous_alike(gradient, param) or not cnp.PyArray_ISALIGNED(gradient)
                    or (writeable and not cnp.PyArray_ISWRITEABLE(gradient))):
                check_gradient(gradient, param, "gradient of " + labels[i], writeable)
            if cnp.PyArray_DATA(gradient) != tensor.grad.at or writeable:
                self.check_apart(gradient, "gradient of " + labels[i], labels)
                moved = True
        if writeable and moved:
            pair = Memory(gradients).collision()
            if pair is not None:
                raise ValueError(f"gradients of {labels[pair[0]]} and {labels[pair[1]]} overlap in memory, "
                                 "so that they cannot both be zeroed")
        for i in range(self.plan.count):
            tensor = &self.plan.tensors[i]
            tensor.grad.at = NULL if gradients[i] is None else cnp.PyArray_DATA(<cnp.ndarray>gradients[i])
        return missing

    cdef check_apart(self, cnp.ndarray gradient, str label, list labels):
        cdef uintptr_t begin = <uintptr_t>cnp.PyArray_DATA(gradient)
        cdef Py_ssize_t hit = self.memory.hit(begin, begin + <uintptr_t>cnp.PyArray_NBYTES(gradient))
        if hit >= 0:
            raise ValueError(f"{label}: overlaps {labels[self.memory.order[hit]]} in memory")

    cdef load_hypers(self, list table):
        cdef size_t k
        cdef fo_hyper *grown
        if <size_t>len(table) > self.hyper_count:
            grown = <fo_hyper *>realloc(self.hypers, len(table) * sizeof(fo_hyper))
            if grown == NULL:
                raise MemoryError
            self.hypers = grown
        self.hyper_count = len(table)
        for k in range(self.hyper_count):
            memset(&self.hypers[k], 0, sizeof(fo_hyper))
            for name, value in (<dict>table[k]).items():
                (<double *>&self.hypers[k].f64)[<size_t>hyper_index[name]] = value

    def step(self, list rows, list table, double unscale, double clip_norm, bint want_norm, bint skip_nonfinite,
             bint zero_grad, int threads) -> tuple:
        """Run the step; return (norm before clipping or NaN, clip coefficient, skipped).

        `table` has the scalars, `rows` says for each tensor which entry of it is its own.
        """
        cdef fo_request request
        cdef fo_result result
        cdef size_t i
        for i in range(self.plan.count):
            self.plan.tensors[i].hyper = <size_t>rows[i]
        self.load_hypers(table)
        request.seed = 0
        request.unscale, request.clip_norm, request.threads = unscale, clip_norm, threads
        request.want_norm, request.skip_nonfinite, request.zero_grad = want_norm, skip_nonfinite, zero_grad
        with nogil:
            result = fo_step(kernels, self.plan, self.hypers, self.hyper_count, &request)
        return result.norm, result.coefficient, result.skipped

    def norm(self, int threads) -> float:
        cdef double result
        with nogil:
            result = fo_global_norm(kernels, self.plan, threads)
        return result

    def max_abs(self, int threads) -> float:
        cdef double result
        with nogil:
            result = fo_global_max_abs(kernels, self.plan, threads)
        return result

    def scale(self, double factor, int threads) -> None:
        with nogil:
            fo_scale_gradients(kernels, self.plan, factor, threads)

    def clamp(self, double limit, int threads) -> None:
        with nogil:
            fo_clamp_gradients(kernels, self.plan, limit, threads)


cdef enum:
    AHEAD = 8  # tensors that are being fetched from memory while one is looked at


cdef class Layouts:
    """How parameters and states of another framework lie in memory: what has changed is noticed without asking Python.

    `exchange` is the capsule `__dlpack_c_exchange_api__` of the tensors' type.
    """

    cdef const DLPackExchangeAPI *api
    cdef size_t count
    cdef DLTensor *known
    cdef int64_t *extents  # shapes and strides of all tensors, one after another
    cdef const void **shapes  # where the framework itself keeps the shapes
    # torch describes a tensor in half the time if another than its Python object holds it too. The parameters are not
    # held: torch.utils.swap_tensors, with which a model may be converted, refuses such.
    cdef DLManagedTensorVersioned **held
    cdef size_t held_count

    def __cinit__(self, exchange, list params, list states):
        cdef list tensors = params + states
        cdef size_t i, k
        cdef DLTensor now
        cdef int64_t *place
        self.api = fo_dl_table(<const DLPackExchangeAPI *>PyCapsule_GetPointer(exchange, "dlpack_exchange_api"))
        if self.api == NULL:
            raise ImportError("the tensors' framework has another major version of DLPack, expected 1")
        self.count = len(tensors)
        self.known = <DLTensor *>malloc((self.count + 1) * sizeof(DLTensor))
        self.shapes = <const void **>malloc((self.count + 1) * sizeof(void *))
        self.extents = <int64_t *>malloc((2 * sum(tensor.ndim for tensor in tensors) + 1) * sizeof(int64_t))
        self.held = <DLManagedTensorVersioned **>malloc((len(states) + 1) * sizeof(void *))
        if self.known == NULL or self.shapes == NULL or self.extents == NULL or self.held == NULL:
            raise MemoryError
        place = self.extents
        for i in range(self.count):
            if not self.look(tensors[i], &now):
                raise RuntimeError(f"tensor {i} has no memory to look at")
            self.known[i], self.shapes[i] = now, now.shape
            self.known[i].shape, self.known[i].strides = place, place + now.ndim
            for k in range(<size_t>now.ndim):
                self.known[i].shape[k], self.known[i].strides[k] = now.shape[k], now.strides[k]
            place += 2 * now.ndim
        for state in states:
            self.api.managed_tensor_from_py_object_no_sync(<void *>state, &self.held[self.held_count])
            self.held_count += 1

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.held_count):
            self.held[i].deleter(self.held[i])
        free(self.held)
        free(self.known)
        free(self.shapes)
        free(self.extents)

    cdef inline bint look(self, tensor, DLTensor *now):
        """Describe a tensor; return whether it has memory to describe."""
        if self.api.dltensor_from_py_object_no_sync(<void *>tensor, now) == 0:
            return True
        PyErr_Clear()
        return False

    cdef inline bint alike(self, size_t i, const DLTensor *now) noexcept:
        """Whether dtype, device, shape and order of a tensor are those of tensor `i`."""
        cdef const DLTensor *known = &self.known[i]
        cdef int32_t k
        if (now.ndim != known.ndim or now.dtype.code != known.dtype.code or now.dtype.bits != known.dtype.bits
                or now.device.type != known.device.type):
            return False
        for k in range(now.ndim):
            # (The stride of a single element means nothing.)
            if now.shape[k] != known.shape[k] or (now.strides[k] != known.strides[k] and now.shape[k] != 1):
                return False
        return True

    def are_unchanged(self, list tensors) -> bool:
        """Whether the tensors lie where and as they did."""
        cdef DLTensor now
        cdef size_t i
        for i in range(self.count):
            if i + AHEAD < self.count:
                fo_dl_prefetch(<void *>tensors[i + AHEAD], self.shapes[i + AHEAD])
            if not self.look(tensors[i], &now) or now.data != self.known[i].data or not self.alike(i, &now):
                return False
        return True

    def point(self, Plan plan, list grads) -> bool:
        """Make a plan over the first tensors read these gradients (None: leave out) if they all lie as those do."""
        cdef DLTensor now
        cdef size_t i
        for i in range(plan.plan.count):
            if grads[i] is None:
                plan.plan.tensors[i].grad.at = NULL
                continue
            if not self.look(grads[i], &now) or not self.alike(i, &now) or (now.data == NULL and plan.plan.tensors[i].n):
                return False
            plan.plan.tensors[i].grad.at = now.data
        return True
