"""The C surface of csrc/, and the plan, for the other modules that bind memory to it."""

cdef extern from "fastopt.h" nogil:
    enum:
        FO_MAX_STATES, FO_MAX_SUMS, FO_RULES, FO_GROUP
    ctypedef enum fo_storage:
        FO_F32, FO_F64, FO_BF16, FO_F16
    ctypedef struct fo_stream:
        void *at
        void *beside
        fo_storage storage
    ctypedef struct fo_rows:
        size_t count
    ctypedef enum fo_grouped:
        FO_GROUPED, FO_NO_MEMORY, FO_NO_SUCH_ROW, FO_TOO_MANY_ROWS
    ctypedef enum fo_rule:
        pass
    ctypedef struct fo_options:
        pass
    ctypedef struct fo_kernels:
        const char *isa
        void (*convert)(const fo_stream *, const fo_stream *, size_t)
    ctypedef struct fo_number:
        void *at
        bint single
    ctypedef struct fo_rule_needs:
        int states
        int numbers
        int sums
        bint advances
        bint over_plan
        bint hands_over
        unsigned char small[6]
        bint factored
    const fo_rule_needs *fo_needs
    ctypedef struct fo_tensor:
        fo_stream param
        fo_stream grad
        fo_stream state[6]
        fo_stream average
        fo_stream copy
        fo_number count
        fo_number number[4]
        fo_options *options
        size_t n
        const fo_rows *rows
        size_t width
        size_t height
        double *row_decay
        fo_number decay
        fo_rule rule
    ctypedef struct fo_plan:
        fo_tensor *tensors
        size_t count
        size_t *first_block
        double *partial
    ctypedef struct fo_request:
        double unscale
        double clip_norm
        double clip_value
        bint want_norm
        bint skip_nonfinite
        bint zero_grad
        bint zero_skipped
        double average_weight
        int threads
        bint (*between)(void *) noexcept nogil
        void *hands
    ctypedef struct fo_result:
        double norm
        double coefficient
        bint skipped
        bint failed
        int unfit
        size_t tensor

    const char *fo_rule_name(size_t)
    const char *fo_option_name(size_t)
    const char *fo_scalar_name(size_t)
    const char *fo_storage_name(size_t)
    size_t fo_beside_size(fo_storage)
    const char *fo_compiler()
    const fo_kernels *fo_best_kernels()
    const fo_kernels *fo_find_kernels(const char *)
    const char *fo_available_isa(size_t)
    size_t fo_state_length(const fo_tensor *, int)
    fo_plan *fo_plan_new(size_t)
    void fo_plan_free(fo_plan *)
    bint fo_plan_cut(fo_plan *)
    bint fo_params_overlap(const fo_plan *)
    fo_grouped fo_group_rows(fo_plan *, size_t tensor, const void *numbers, bint wide, size_t occurrences, size_t width,
                             int threads, size_t *wrong)
    fo_result fo_step(const fo_kernels *, fo_plan *, const fo_request *)
    double fo_global_norm(const fo_kernels *, fo_plan *, int)
    double fo_global_max_abs(const fo_kernels *, fo_plan *, int)
    void fo_scale_gradients(const fo_kernels *, fo_plan *, double, int)
    void fo_lerp(const fo_kernels *, fo_plan *, double, int)
    void fo_clamp_gradients(const fo_kernels *, fo_plan *, double, int)
    enum:
        FO_ANY_THREADS
    void fo_load_openmp()
    void fo_find_openmp()
    const char *fo_spare_openmp()
    bint fo_has_openmp()
    int fo_hardware_threads()

cdef extern from "xla.h" nogil:
    ctypedef struct xla_call:
        pass
    ctypedef struct xla_error:
        pass
    xla_error *fo_xla_measure(const fo_kernels *, int, int, const xla_call *)
    xla_error *fo_xla_step(const fo_kernels *, int, int, const xla_call *)


cdef inline int kept_states(const fo_tensor *tensor) noexcept nogil:
    """How many states a tensor keeps from step to step: what a rule hands over is none of them."""
    return fo_needs[<size_t>tensor.rule].states - fo_needs[<size_t>tensor.rule].hands_over


cdef class Plan:
    cdef fo_plan *plan
    cdef fo_options *options
    cdef list owners
    cdef size_t rows
    cdef object kept
    cdef tuple advancing
    cdef bint cut  # whether the blocks are those of the lengths
    cdef bint rowed  # whether some tensors have rows, so that another step has other blocks

    cdef int cut_blocks(self) except -1
    cdef int tell(self) except -1
