# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""NumPy's arrays: whether the kernels can work on them, where they lie, and whether that has changed."""

from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc

import numpy as np
cimport numpy as cnp

from fastopt._core cimport FO_BF16, FO_F16, FO_F32, FO_F64, Plan, fo_state_length, fo_tensor, kept_states

cnp.import_array()


cdef int storage(cnp.ndarray array, bint half=False):
    """The array's dtype as `_core.STORAGES` counts them, or -1; bfloat16 comes as its bits too, where `half` is wanted."""
    if not cnp.PyArray_ISNOTSWAPPED(array):
        return -1
    if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT32:
        return FO_F32
    if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT64:
        return FO_F64
    if half and cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT16:
        return FO_F16
    if half and (cnp.PyArray_TYPE(array) == cnp.NPY_UINT16 or (<object>array).dtype.name == "bfloat16"):
        return FO_BF16
    return -1


cdef bint is_plain(cnp.ndarray array, bint writeable):
    """Whether the array is one stretch of memory."""
    return (cnp.PyArray_ISALIGNED(array) and (cnp.PyArray_IS_C_CONTIGUOUS(array) or cnp.PyArray_IS_F_CONTIGUOUS(array))
            and (not writeable or cnp.PyArray_ISWRITEABLE(array)))


cdef bint is_sound(cnp.ndarray array, bint writeable, bint half=False):
    """Whether the kernels can work on the array in place."""
    return storage(array, half) >= 0 and is_plain(array, writeable)


cdef bint same_order(cnp.ndarray a, cnp.ndarray b):
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


cdef bint lies_beside(cnp.ndarray array, cnp.ndarray param):
    """Whether the array can be read beside a parameter, element for element."""
    return (cnp.PyArray_TYPE(array) == cnp.PyArray_TYPE(param) and same_shape(array, param)
            and same_order(array, param))


def place(cnp.ndarray array) -> tuple:
    """Return (address, storage)."""
    return <uintptr_t>cnp.PyArray_DATA(array), storage(array, True)


def as_array(value, str label, bint writeable, bint half=False):
    """Return the plain array that shares the value's memory; raise unless the kernels can work on it in place.

    With `half`, its dtype may be a half precision too.
    """
    if type(value) is not np.ndarray:
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{label}: expected a NumPy array without a mask, got a masked one")
        if type(value).__module__.partition(".")[0] == "torch":
            raise TypeError(f"{label}: expected a NumPy array, got {type(value).__name__}; "
                            "for torch's tensors there is fastopt.torch")
        if isinstance(value, np.ndarray):
            value = value.view(np.ndarray)
        elif not (writeable and isinstance(value, np.generic)):
            try:
                memoryview(value)
            except TypeError:
                raise TypeError(f"{label}: expected a NumPy array, got {type(value).__name__}") from None
            value = np.asarray(value)
        else:
            raise TypeError(f"{label}: expected a NumPy array, got {type(value).__name__}")
    cdef cnp.ndarray array = value
    if is_sound(array, writeable, half):
        return array
    if storage(array, half) < 0:
        known = "float32, float64, float16 or bfloat16" if half else "float32 or float64"
        raise TypeError(f"{label}: expected dtype {known} in native byte order, got {array.dtype.str!r}")
    if not (cnp.PyArray_IS_C_CONTIGUOUS(array) or cnp.PyArray_IS_F_CONTIGUOUS(array)):
        raise ValueError(f"{label}: expected a contiguous array (C or Fortran order), got strides {value.strides} "
                         f"for shape {value.shape}; np.ascontiguousarray makes a copy that is")
    if not cnp.PyArray_ISALIGNED(array):
        raise ValueError(f"{label}: expected memory aligned to {array.itemsize} bytes, got address {value.ctypes.data:#x}")
    raise ValueError(f"{label}: expected a writeable array, got a read-only one")


def beside(value, cnp.ndarray param, str label, bint writeable, bint half=False):
    """Return the plain array in a value that can be read beside a parameter; raise if there is none.

    With `half`, it may be of another precision: any up to float32 beside float32.
    """
    cdef cnp.ndarray array = as_array(value, label, writeable, half)
    if lies_beside(array, param):
        return array
    if cnp.PyArray_TYPE(array) != cnp.PyArray_TYPE(param):
        if not half or FO_F64 in (storage(array), storage(param)):
            raise TypeError(f"{label}: expected the parameter's dtype {param.dtype}, got {array.dtype}")
        if same_shape(array, param) and same_order(array, param):
            return array
    if not same_shape(array, param):
        raise ValueError(f"{label}: expected the parameter's shape {(<object>param).shape}, got {(<object>array).shape}")
    raise ValueError(f"{label}: expected the parameter's memory order (strides {(<object>param).strides}), "
                     f"got strides {(<object>array).strides}")


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
        """Two arrays of the list that share memory, as a pair of indices in order, or None."""
        for k in range(1, self.count):
            if self.begin[k] < self.end[k - 1]:
                return min(self.order[k - 1], self.order[k]), max(self.order[k - 1], self.order[k])
        return None

    cdef Py_ssize_t hit(self, cnp.ndarray array):
        """The index of an array that this one shares memory with, or -1. (Those of the list are disjoint.)"""
        cdef uintptr_t begin = <uintptr_t>cnp.PyArray_DATA(array), end = begin + <uintptr_t>cnp.PyArray_NBYTES(array)
        cdef size_t low = 0, high = self.count, middle
        while low < high:
            middle = (low + high) // 2
            if self.end[middle] <= begin:
                low = middle + 1
            else:
                high = middle
        return self.order[low] if low < self.count and self.begin[low] < end and begin < end else -1

    def owner(self, array):
        """The index of an array that this one shares memory with, or None."""
        cdef Py_ssize_t found = self.hit(array)
        return None if found < 0 else found


cdef class Watch:
    """The arrays that a plan points into: what has changed is noticed without asking Python."""

    cdef Plan plan
    cdef Memory memory
    cdef list held  # of each tensor: the parameter and its states, or None

    def __cinit__(self, Plan plan, list params):
        self.plan = plan
        self.memory = Memory(params)
        self.held = [None] * len(params)

    def hold(self, size_t tensor, param, entry, tuple names, list states, dict beside) -> None:
        """Keep a parameter and its states, which the plan has been bound to. (Their dict has no other arrays ever.)"""
        self.held[tensor] = [param, *states]

    def release(self, size_t tensor) -> None:
        self.held[tensor] = None

    def look(self, list grads, bint writeable) -> list:
        """Point the plan at the gradients; return the tensors of which something is new or unfit.

        They have no gradient in the plan then, as those have none whose gradient is None.
        """
        cdef size_t i
        cdef cnp.ndarray gradient
        cdef fo_tensor *tensor
        cdef list new = []
        for i in range(self.plan.plan.count):
            tensor = &self.plan.plan.tensors[i]
            grad = grads[i]
            tensor.rows = NULL
            if grad is None:
                tensor.grad.at = NULL
            elif type(grad) is np.ndarray and self.is_as_it_was(i):
                gradient = <cnp.ndarray>grad
                if (is_sound(gradient, writeable) and lies_beside(gradient, <cnp.ndarray>(<list>self.held[i])[0])
                        and (cnp.PyArray_DATA(gradient) == tensor.grad.at or self.memory.hit(gradient) < 0)):
                    tensor.grad.at = cnp.PyArray_DATA(gradient)
                else:
                    tensor.grad.at = NULL
                    new.append(i)
            else:
                tensor.grad.at = NULL
                new.append(i)
        return new

    cdef bint is_as_it_was(self, size_t i):
        cdef const fo_tensor *tensor = &self.plan.plan.tensors[i]
        cdef cnp.ndarray array
        cdef list arrays = self.held[i]
        cdef const void *at
        cdef size_t length
        cdef int k
        if arrays is None:
            return False
        for k in range(<int>len(arrays)):
            array = <cnp.ndarray>arrays[k]
            at, length = tensor.param.at, tensor.n
            if k > kept_states(tensor):
                at = tensor.average.at
            elif k > 0:
                at, length = tensor.state[k - 1].at, fo_state_length(tensor, k - 1)
            if cnp.PyArray_DATA(array) != at or <size_t>cnp.PyArray_SIZE(array) != length or not is_plain(array, True):
                return False
        return True
