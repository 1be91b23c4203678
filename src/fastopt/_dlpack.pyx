# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""Tensors of another framework, seen through DLPack's exchange in C: where they lie, and whether that has changed."""

from cpython.exc cimport PyErr_Clear
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.tuple cimport PyTuple_Check, PyTuple_GET_ITEM
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from fastopt._core import same_objects
from fastopt._core cimport (
    FO_BF16, FO_F16, FO_F32, FO_F64, FO_MAX_STATES, Plan, fo_needs, fo_number, fo_state_length, fo_storage, fo_stream, fo_tensor,
    kept_states,
)

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
        void *manager_ctx
        void (*deleter)(DLManagedTensorVersioned *) noexcept
    ctypedef struct DLPackVersion:
        uint32_t major
    enum:
        DL_MAJOR
    ctypedef struct DLPackExchangeAPI:
        DLPackVersion version
        int (*managed_tensor_from_py_object_no_sync)(void *, DLManagedTensorVersioned **) except -1
        int (*dltensor_from_py_object_no_sync)(void *, DLTensor *) noexcept
    const DLPackExchangeAPI *fo_dl_table(const DLPackExchangeAPI *)
    void fo_dl_prefetch(const void *, const void *)

cdef extern from *:
    """
    /* A number that changes whenever this dict does (or any other that is watched); 0 where there is no such thing. */
    #if PY_VERSION_HEX >= 0x030C0000
    static int fo_dict_watcher = -2;
    static uint64_t fo_dict_changes = 1;

    static int fo_dict_changed(PyDict_WatchEvent event, PyObject *dict, PyObject *key, PyObject *value)
    {
        (void)event, (void)dict, (void)key, (void)value;
        fo_dict_changes++;
        return 0;
    }

    static uint64_t fo_dict_version(PyObject *dict)
    {
        return PyDict_Check(dict) && fo_dict_watcher >= 0 ? fo_dict_changes : 0;
    }

    static void fo_watch_dict(PyObject *dict)
    {
        if (fo_dict_watcher == -2) fo_dict_watcher = PyDict_AddWatcher(fo_dict_changed);
        if (fo_dict_watcher < 0 || PyDict_Watch(fo_dict_watcher, dict) < 0) PyErr_Clear();
    }
    #else
    static uint64_t fo_dict_version(PyObject *dict)
    {
        return PyDict_Check(dict) ? ((PyDictObject *)dict)->ma_version_tag : 0;
    }

    static void fo_watch_dict(PyObject *dict) { (void)dict; }
    #endif
    """
    uint64_t fo_dict_version(object)
    void fo_watch_dict(object)

cdef enum:
    AHEAD = 8  # tensors that are being fetched from memory while one is looked at

cdef enum:
    MOST = FO_MAX_STATES + 1  # states, and the moving average of the parameter

cdef enum:
    INLINE = 4  # dimensions of which the extents need no memory of their own

# After a pass over the model nothing of this is in the caches any more: what is looked at in each step is kept together.
cdef struct Seen:  # where the framework keeps a tensor
    const void *object
    const void *shape

cdef struct Known:
    int32_t ndim
    DLDataType dtype
    uint64_t version  # of the parameter's dict of states
    int32_t tensors  # a parameter and its states, all alike in memory but for the dtype
    DLDataType state_dtype[MOST]
    int64_t *more  # extents that have no place here
    int64_t extents[8]  # the shape, then the strides

# ---- the same from a framework without that exchange: its tensors are asked in Python ----

cdef enum:
    MOST_DIMENSIONS = 64  # as many as torch allows

cdef dict asked_dtypes = {}
cdef int64_t asked_extents[2 * MOST_DIMENSIONS]  # of the tensor that was described last
cdef DLPackExchangeAPI asking


cdef int describe_by_asking(void *py_object, DLTensor *out) noexcept:
    """Describe a strided tensor until another one is described; -1 for any other."""
    cdef int32_t k
    tensor = <object>py_object
    try:
        address = tensor.data_ptr()
        shape, strides = tensor.shape, tensor.stride()
        code, bits = asked_dtypes.get(tensor.dtype, (0, 0))
        out.data, out.dtype.code, out.dtype.bits = <void *><uint64_t>address, code, bits
        out.device.type = 1 if tensor.is_cpu else 0
        if not (PyTuple_Check(shape) and PyTuple_Check(strides) and len(shape) == len(strides) <= MOST_DIMENSIONS):
            return -1
        out.ndim = <int32_t>len(shape)
        out.shape, out.strides = asked_extents, asked_extents + out.ndim
        for k in range(out.ndim):
            out.shape[k], out.strides[k] = <object>PyTuple_GET_ITEM(shape, k), <object>PyTuple_GET_ITEM(strides, k)
        return 0 if address or 0 in shape else -1  # (a tensor subclass may have memory that is not its own)
    except Exception:
        return -1


cdef void let_go(DLManagedTensorVersioned *held) noexcept:
    Py_DECREF(<object>held.manager_ctx)
    free(held)


cdef int hold_by_reference(void *py_object, DLManagedTensorVersioned **out) except -1:
    out[0] = <DLManagedTensorVersioned *>calloc(1, sizeof(DLManagedTensorVersioned))
    if out[0] == NULL:
        raise MemoryError
    Py_INCREF(<object>py_object)
    out[0].manager_ctx, out[0].deleter = py_object, let_go
    return 0


def exchange_by_asking(dict dtypes):
    """Return what `Watch` reads tensors by, for a framework that has no `__dlpack_c_exchange_api__`.

    `dtypes` are its dtypes that have a storage here, each with DLPack's (code, bits).
    """
    global asked_dtypes
    asked_dtypes = dtypes
    asking.version.major = DL_MAJOR
    asking.dltensor_from_py_object_no_sync = describe_by_asking
    asking.managed_tensor_from_py_object_no_sync = hold_by_reference
    return PyCapsule_New(&asking, "dlpack_exchange_api", NULL)


cdef int storage_of(DLDataType dtype) noexcept:
    """The storage of a dtype, or -1."""
    if dtype.code == 2:  # IEEE's floats
        return FO_F32 if dtype.bits == 32 else FO_F64 if dtype.bits == 64 else FO_F16 if dtype.bits == 16 else -1
    return FO_BF16 if dtype.code == 4 and dtype.bits == 16 else -1


cdef inline const fo_stream *place_of(const fo_tensor *tensor, int k) noexcept:
    """Where the plan has a state; the moving average comes after them."""
    return &tensor.state[k] if k < kept_states(tensor) else &tensor.average


cdef class Watch:
    """The tensors that a plan points into: what has changed is noticed without asking Python.

    `exchange` is the capsule `__dlpack_c_exchange_api__` of the tensors' type. A tensor's states are entries of a dict.
    """

    cdef Plan plan
    cdef const DLPackExchangeAPI *api
    cdef Known *known
    cdef Seen *seen  # of each: the parameter, its states and, last, the gradient
    # torch describes a tensor in half the time if another than its Python object holds it too. The parameters are not
    # held: torch.utils.swap_tensors, with which a model may be converted, refuses such.
    cdef DLManagedTensorVersioned **held  # MOST a parameter
    cdef size_t count
    cdef list params
    cdef readonly size_t missing  # how many parameters had no gradient at the last look
    cdef public bint moved  # whether the plan has been pointed elsewhere; for whoever wants to know to reset
    cdef bint sparse  # whether gradients may be so: what has no memory of its own is not to be described
    cdef object state  # parameter -> its entry
    cdef uint64_t state_version
    cdef list all_entries  # the values of `state`; None: new ones have come
    cdef list entries  # each parameter's dict of states, or None
    cdef list names  # of the entries that the plan points into
    cdef list states  # what they were
    cdef list beside  # of each tensor: the entries that lie beside its states and itself
    cdef list views  # keep the memory, so that nothing else can be at an address that has not changed

    def __cinit__(self, exchange, Plan plan, list params, bint sparse):
        cdef size_t count = len(params)
        self.plan, self.params, self.sparse = plan, params, sparse
        self.entries, self.names, self.states, self.beside, self.views = [[None] * count for _ in range(5)]
        self.api = fo_dl_table(<const DLPackExchangeAPI *>PyCapsule_GetPointer(exchange, "dlpack_exchange_api"))
        if self.api == NULL:
            raise ImportError("the tensors' framework has another major version of DLPack, expected 1")
        self.known = <Known *>calloc(count + 1, sizeof(Known))
        self.seen = <Seen *>calloc((MOST + 2) * count + 1, sizeof(Seen))
        self.held = <DLManagedTensorVersioned **>calloc(MOST * count + 1, sizeof(void *))
        if self.known == NULL or self.seen == NULL or self.held == NULL:
            raise MemoryError
        self.count = count

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.count):
            self.forget(i)
        free(self.known)
        free(self.seen)
        free(self.held)

    cdef void forget(self, size_t i):
        cdef Known *known = &self.known[i]
        cdef int k
        for k in range(known.tensors - 1):
            self.held[MOST * i + k].deleter(self.held[MOST * i + k])
        free(known.more)
        known.more = NULL
        known.tensors = 0

    def release(self, size_t tensor) -> None:
        """Notice this tensor anew at each look."""
        self.moved = True
        self.forget(tensor)

    def hold(self, size_t tensor, param, entry, tuple names, list states, dict beside) -> None:
        """Keep a parameter's memory and its states, which the plan has been bound to.

        `names` are the entries that must stay what they are: those of the states come first. So must those `beside`
        states and parameter, in the order of the states.
        """
        cdef Known *known = &self.known[tensor]
        cdef Seen *seen = &self.seen[(MOST + 2) * tensor]
        cdef DLTensor now
        cdef int64_t *extents = &known.extents[0]
        cdef int32_t k
        self.moved, self.all_entries = True, None
        self.forget(tensor)
        if not self.look_at(param, &now):
            raise RuntimeError(f"tensor {tensor} has no memory to look at")
        if now.ndim > INLINE:
            extents = known.more = <int64_t *>malloc(2 * now.ndim * sizeof(int64_t))
            if extents == NULL:
                raise MemoryError
        known.ndim, known.dtype = now.ndim, now.dtype
        seen[0].object, seen[0].shape = <void *>param, now.shape
        for k in range(now.ndim):
            extents[k], extents[now.ndim + k] = now.shape[k], now.strides[k]
        known.tensors = 1
        for state in states:
            if not self.look_at(state, &now):
                raise RuntimeError(f"a state of tensor {tensor} has no memory to look at")
            known.state_dtype[known.tensors - 1] = now.dtype
            self.api.managed_tensor_from_py_object_no_sync(<void *>state, &self.held[MOST * tensor + known.tensors - 1])
            seen[known.tensors].object, seen[known.tensors].shape = <void *>state, now.shape
            known.tensors += 1
        self.entries[tensor], self.names[tensor], self.views[tensor] = entry, names, param.detach()
        self.states[tensor], self.beside[tensor] = None, beside
        if entry is not None:
            self.states[tensor] = [entry[name] for name in names]
            fo_watch_dict(entry)
            known.version = fo_dict_version(entry)

    cdef inline bint look_at(self, tensor, DLTensor *now):
        """Describe a tensor; return whether it has memory to describe."""
        return self.describe(<void *>tensor, now)

    cdef inline bint describe(self, const void *tensor, DLTensor *now):
        if self.api.dltensor_from_py_object_no_sync(<void *>tensor, now) == 0:
            return True
        PyErr_Clear()
        return False

    cdef inline bint alike(self, const Known *known, const DLTensor *now) noexcept:
        """Whether a tensor lies in the memory of the processor as a parameter did, whatever its dtype."""
        cdef const int64_t *extents = &known.extents[0] if known.more == NULL else known.more
        cdef int32_t k
        if now.ndim != known.ndim or now.device.type != 1:
            return False
        for k in range(now.ndim):
            # (The stride of a single element means nothing.)
            if now.shape[k] != extents[k] or (now.strides[k] != extents[known.ndim + k] and now.shape[k] != 1):
                return False
        return True

    cdef inline bint fits(self, const fo_tensor *tensor, int32_t k, const Known *known, const DLTensor *now) noexcept:
        """Whether a state lies in memory as it did: beside a parameter, or in one stretch if it is small."""
        cdef int64_t length = 1
        cdef int32_t dim
        if k >= fo_needs[<size_t>tensor.rule].states or not fo_needs[<size_t>tensor.rule].small[k]:
            return self.alike(known, now)
        for dim in range(now.ndim - 1, -1, -1):
            if now.strides[dim] != length and now.shape[dim] != 1:
                return False
            length *= now.shape[dim]
        return now.device.type == 1 and <size_t>length == fo_state_length(tensor, k)

    cdef inline bint same_dtype(self, DLDataType a, DLDataType b) noexcept:
        return a.code == b.code and a.bits == b.bits

    cdef inline void fetch(self, size_t i) noexcept:
        """Start to fetch what will be looked at of a parameter."""
        cdef const Seen *seen = &self.seen[(MOST + 2) * i]
        cdef int32_t k
        for k in range(self.known[i].tensors + 1):
            fo_dl_prefetch(seen[k].object, seen[k].shape)

    cdef bint is_as_it_was(self, size_t i):
        """Whether a parameter and its states are those that the plan points into; new addresses it is told."""
        cdef Known *known = &self.known[i]
        cdef fo_tensor *tensor = &self.plan.plan.tensors[i]
        cdef DLTensor now
        cdef const fo_number *place
        cdef list states
        cdef tuple names
        cdef int32_t k
        if not known.tensors:
            return False
        if not (self.look_at(self.params[i], &now) and self.same_dtype(now.dtype, known.dtype) and self.alike(known, &now)):
            return False
        if now.data != tensor.param.at:
            self.views[i] = self.params[i].detach()
            tensor.param.at = now.data
            self.moved = True
        entry = self.entries[i]
        if entry is None:
            return True
        states = self.states[i]
        if not known.version or known.version != fo_dict_version(entry):
            names = self.names[i]
            for k in range(<int32_t>len(names)):
                if entry.get(names[k]) is not states[k]:
                    return False
            for name, value in (<dict>self.beside[i]).items():
                if entry.get(name) is not value:
                    return False
            known.version = fo_dict_version(entry)
        if self.beside[i] and not self.lie_beside(tensor, <dict>self.beside[i]):
            return False
        for k in range(known.tensors - 1):
            if (not self.describe(self.seen[(MOST + 2) * i + k + 1].object, &now) or now.data != place_of(tensor, k).at
                    or not self.same_dtype(now.dtype, known.state_dtype[k]) or not self.fits(tensor, k, known, &now)):
                return False
        for k in range(known.tensors - 1, <int32_t>len(states)):  # numbers: their memory may be shared by now
            place = &tensor.count if k == known.tensors - 1 else &tensor.number[k - known.tensors]
            if not self.look_at(states[k], &now) or now.data != place.at:
                return False
        return True

    cdef bint lie_beside(self, const fo_tensor *tensor, dict beside):
        """Whether these are still where the plan has what lies beside the states and the parameter."""
        cdef DLTensor now
        cdef const void *at
        cdef int k = 0
        for value in beside.values():
            while k < kept_states(tensor) and tensor.state[k].beside == NULL:
                k += 1
            at = tensor.state[k].beside if k < kept_states(tensor) else tensor.param.beside
            if not self.look_at(value, &now) or now.data != at:
                return False
            k += 1
        return True

    cdef look_at_entries(self, state):
        """Let go of the parameters that have another entry than before."""
        cdef list all_entries
        cdef size_t i
        if len(self.params) == 1:  # one of many that are stepped one by one: to look at all the others' would take long
            if self.known[0].tensors and self.entries[0] is not None:
                if state.get(self.params[0]) is not self.entries[0]:
                    self.forget(0)
            return
        if state is self.state and self.all_entries is not None and self.state_version and self.state_version == fo_dict_version(state):
            return
        all_entries = list(state.values())  # (to pass by all of them is ten times as fast as to look each up)
        if state is not self.state or self.all_entries is None or not same_objects(all_entries, self.all_entries):
            for i in range(self.count):
                if self.known[i].tensors and self.entries[i] is not None:
                    if state.get(self.params[i]) is not self.entries[i]:
                        self.forget(i)
            fo_watch_dict(state)
        self.state, self.all_entries, self.state_version = state, all_entries, fo_dict_version(state)

    def look(self, list grads, state, bint given=False) -> list:
        """Find the gradients, into the list, and point the plan at them; return the tensors of which something is new.

        `given`: they are in the list, not where torch has them.

        They have no gradient in the plan then, as those have none whose gradient is None.
        """
        cdef size_t i, count = self.count
        cdef list new = []
        self.missing = 0
        self.look_at_entries(state)
        for i in range(count):
            self.plan.plan.tensors[i].grad.at, self.plan.plan.tensors[i].rows = NULL, NULL
            if i + AHEAD < count:
                self.fetch(i + AHEAD)
            grad = grads[i] if given else self.params[i].grad
            grads[i] = grad
            if grad is None:
                self.missing += 1
                continue
            if not self.is_as_it_was(i):
                self.forget(i)
            if not self.known[i].tensors or not self.point_at(i, grad):
                new.append(i)
        return new

    def holds(self, size_t tensor) -> bool:
        """Whether a parameter and its states were as ever at the last look, so that only the gradient is new."""
        return self.known[tensor].tensors != 0

    cdef bint point_at(self, size_t i, grad):
        """Make the plan read a gradient; return whether it can be read beside the parameter."""
        cdef fo_tensor *tensor = &self.plan.plan.tensors[i]
        cdef const Known *known = &self.known[i]
        cdef DLTensor now
        cdef int storage
        # (What is sparse has no memory to describe: torch would throw. A lazy sign comes with gaps between the elements,
        # unless there is only one.)
        if (self.sparse and grad.is_sparse) or not self.look_at(grad, &now) or (tensor.n == 1 and grad.is_neg()):
            return False
        storage = storage_of(now.dtype)
        if (not self.alike(known, &now) or storage < 0 or (storage == FO_F64) != (tensor.param.storage == FO_F64)
                or (now.data == NULL and tensor.n)):
            return False
        tensor.grad.storage = <fo_storage>storage
        tensor.grad.at = now.data if tensor.n else tensor  # (of an empty one only that it is there)
        self.seen[(MOST + 2) * i + known.tensors].object = <void *>grad
        self.seen[(MOST + 2) * i + known.tensors].shape = now.shape
        return True
