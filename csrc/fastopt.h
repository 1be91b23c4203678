/* fastopt: the whole C surface, as Cython sees it. See README.md for the map. */
#ifndef FASTOPT_H
#define FASTOPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FO_MAX_STATES = 6, FO_MAX_SUMS = 4, FO_MAX_NUMBERS = 4 };

/* A block is what a kernel is called on: small enough to stay in the second-level cache between the
 * passes, large enough to make the call free. A multiple of 64 keeps vectors and cache lines whole. */
enum { FO_BLOCK = 8192 };

/* Elements that share what a storage has beside them. */
enum { FO_GROUP = 32 };

/* How numbers are stored. float64 is computed in float64, everything else in float32. */
typedef enum {
#define STORAGE(NAME, name, bytes, beside) FO_##NAME,
#include "codecs.def"
    FO_STORAGES
} fo_storage;

typedef enum {
#define RULE(name, states) FO_RULE_##name,
#include "rules.def"
    FO_RULES
} fo_rule;

/* What a rule needs besides arrays of states: see rules.def. */
typedef struct {
    unsigned char states, numbers, sums;
    bool advances;      /* keeps numbers in its options from step to step */
    bool over_plan;     /* the sums are over all tensors of the rule, not over each */
    bool careful;       /* can be cautious */
    bool decayed;       /* measures nothing without weight_decay, or always_adapt */
    bool writes_states; /* measuring updates the states: the step only reads them, and no gradient */
    bool hands_over;    /* the last state is what becomes the update, and the caller's between measuring and stepping */
    unsigned char small[FO_MAX_STATES]; /* what each state is, an fo_extent */
    bool factored;      /* it has one of columns: before the step, passes are made for its small states */
} fo_rule_needs;

/* What a state has numbers for: each element, each row, or each column of a matrix. */
typedef enum { FO_ELEMENTS, FO_ROWS, FO_COLUMNS } fo_extent;

enum { FO_TENSOR_SCOPE, FO_PLAN_SCOPE, FO_KEPT_STATES = 0, FO_WRITTEN_STATES };

static const fo_rule_needs fo_needs[FO_RULES] = {
#define RULE(name, of_states) [FO_RULE_##name].states = of_states,
#define NUMBERS(name, of_numbers) [FO_RULE_##name].numbers = of_numbers,
#define ADVANCE(name) [FO_RULE_##name].advances = true,
#define HAND_OVER(name) [FO_RULE_##name].hands_over = true,
#define CAREFUL(name, how) [FO_RULE_##name].careful = true,
#define DECAYED(name) [FO_RULE_##name].decayed = true,
#define ROWWISE(name, state) [FO_RULE_##name].small[state] = FO_ROWS,
#define FACTORED(name, row, column)                                                                                  \
    [FO_RULE_##name].small[row] = FO_ROWS, [FO_RULE_##name].small[column] = FO_COLUMNS,                              \
    [FO_RULE_##name].factored = true,
#define MEASURE(name, of_sums, scope, of_states)                                                                     \
    [FO_RULE_##name].sums = of_sums, [FO_RULE_##name].over_plan = FO_##scope##_SCOPE,                                \
    [FO_RULE_##name].writes_states = FO_##of_states##_STATES,
#include "rules.def"
};

/* What the user chose, as numbers: flags are 0 or 1, choices count from 0. */
typedef struct {
#define OPTION(name) double name;
#include "rules.def"
} fo_options;

enum {
#define OPTION(name) FO_OPTION_##name,
#include "rules.def"
    FO_OPTIONS
};

/* The scalars that a rule reads: formed in double from the options and the number of the step, and narrowed once. */
typedef struct {
#define SCALAR(name) double name;
#include "rules.def"
} fo_hyper_f64;

typedef struct {
#define SCALAR(name) float name;
#include "rules.def"
} fo_hyper_f32;

enum {
#define SCALAR(name) FO_SCALAR_##name,
#include "rules.def"
    FO_SCALARS
};

typedef struct {
    fo_hyper_f64 f64;
    fo_hyper_f32 f32;
    double before[FO_MAX_NUMBERS]; /* the rule's numbers before the step */
} fo_hyper;

/* Some rows of a table, and where a gradient has values for them: one row of values for each occurrence. */
typedef struct {
    size_t width, count;    /* elements of a row; different rows */
    const uint64_t *sorted; /* each occurrence as row << shift | its number, in order */
    const size_t *row;      /* count: which rows, upwards */
    const size_t *start;    /* count + 1: where a row's occurrences begin */
    int shift;
} fo_rows;

/* An array of numbers. */
typedef struct {
    void *at;
    void *beside; /* scales of groups, or what is left of each element; NULL where the storage needs none */
    fo_storage storage;
    bool summed;         /* (a gradient's) with rows: of each the sum of its occurrences, in their order */
    const fo_rows *rows; /* only these, end to end; NULL: all that is there */
    size_t first;        /* with rows, and of a small state: where in them the stream begins */
    fo_extent small;     /* it is a state with a number for each row or column, from the tensor's first on, */
    size_t width, height; /* of matrices of so many columns and rows */
} fo_stream;

/* What one kernel call works on. Beside a float64 parameter everything else is float64 too; beside another, everything
 * else may be stored in any way. The gradient is only read. */
typedef struct {
    fo_stream param, grad, state[FO_MAX_STATES];
    size_t n;
    const fo_hyper *hyper;
    size_t first;     /* number of the block's first element in its tensor, */
    uint64_t seed;    /* of the tensor in this step; stochastic rounding depends on these */
    bool from_memory; /* the streams are not in the caches: fetching ahead pays */
    size_t width;     /* of rows that may have missed decays, */
    double *row_decay, decay_before, decay_after; /* as in fo_tensor; NULL: none has */
} fo_block;

/* A number that looks random, of two: the finalizer of splitmix64 (Steele, Lea & Flood 2014). */
static inline uint64_t fo_mix(uint64_t a, uint64_t b)
{
    uint64_t x = a + 0x9e3779b97f4a7c15u * (b + 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Some columns of a matrix whose blocks' sums of squares are known, each block's at a distance from that before. */
typedef struct {
    void *sums; /* in the arithmetic, of the first block; what rules read comes in their place */
    size_t first, n; /* number of the first in the state */
    size_t blocks, distance, height;
    double mean; /* of the matrix's row state */
} fo_columns;

/* The kernels of one instruction set. */
typedef struct {
    const char *isa;
    void (*step[FO_RULES])(const fo_block *);
    void (*careful[FO_RULES])(const fo_block *); /* the step of a rule that is cautious; NULL: it cannot be */
    void (*measure[FO_RULES])(const fo_block *, double *sums); /* NULL: the rule needs no sums */
    /* See drivers.h, small states. */
    void (*settle_rows)(const fo_block *, int state, void *columns, double *totals);
    void (*settle_columns)(const fo_stream *state, fo_storage arithmetic, const fo_hyper *, const fo_columns *);
    double (*sum_of_squares)(const fo_stream *, size_t n, double scale);
    double (*max_abs)(const fo_stream *, size_t n);
    void (*lerp)(const fo_stream *target, const fo_stream *source, size_t n, double weight);
    void (*convert)(const fo_stream *target, const fo_stream *source, size_t n);
    void (*scale)(const fo_stream *, size_t n, double factor);
    void (*clamp)(const fo_stream *, size_t n, double limit);
} fo_kernels;

/* Bytes of an element. */
static inline size_t fo_storage_size(fo_storage storage)
{
    static const unsigned char bytes_of[] = {
#define STORAGE(NAME, name, bytes, beside) bytes,
#include "codecs.def"
    };
    return bytes_of[storage];
}

/* Bytes of a group that lie beside its elements. */
static inline size_t fo_beside_size(fo_storage storage)
{
    static const unsigned char bytes_of[] = {
#define STORAGE(NAME, name, bytes, beside) beside,
#include "codecs.def"
    };
    return bytes_of[storage];
}

/* A stream from one of its elements on, the first of a group if the storage has something beside them. */
static inline fo_stream fo_from(fo_stream s, size_t element)
{
    if (s.at) s.at = (char *)s.at + element * fo_storage_size(s.storage);
    if (s.beside) s.beside = (char *)s.beside + element / FO_GROUP * fo_beside_size(s.storage);
    return s;
}

/* ---- names.c: the lists above, for Python; a name is NULL past the end ---- */
const char *fo_rule_name(size_t rule);
const char *fo_option_name(size_t index); /* in the order of fo_options */
const char *fo_scalar_name(size_t index); /* in the order of fo_hyper_f64 */
const char *fo_storage_name(size_t storage);
const char *fo_compiler(void);

/* ---- scalars.c ---- */

/* Form the scalars of a rule's step (the first is 1) in double and in float; scale multiplies the gradients. The rule's
 * numbers, which may be kept in `single` precision, become those after the step; `hyper` keeps those before. Returns 0, or
 * 1 + the number of a scalar that is not finite in the precision of the arithmetic beside a parameter that is `stored` so; a
 * clip_value of infinity is none, and a scale may be NaN or infinite, as the norm that it comes from. */
int fo_form_scalars(fo_rule rule, const fo_options *options, double step, double *numbers, bool single, double scale,
                    double clip_value, fo_storage stored, fo_hyper *hyper);

/* Form those that depend on what was measured of n elements. They may be anything, as the gradients. */
void fo_settle_scalars(fo_rule rule, const fo_options *options, const double *sums, double n, fo_hyper *hyper);

/* Bring the numbers that a rule keeps in its options to after a step. */
void fo_advance(fo_rule rule, fo_options *options, const double *sums);

/* ---- dispatch.c: which kernels ---- */
const fo_kernels *fo_best_kernels(void);
const fo_kernels *fo_find_kernels(const char *isa); /* NULL if unknown here or not supported by this CPU */
const char *fo_available_isa(size_t index);         /* best first; NULL past the end */

/* ---- step.c: the plan and the parallel passes ---- */

/* A number that is kept from step to step: a double, or a float. */
typedef struct {
    void *at;
    bool single;
} fo_number;

/* One parameter. A NULL gradient leaves it out of the pass. One with rows is read only: nothing zeroes it. */
typedef struct {
    fo_stream param, grad, state[FO_MAX_STATES];
    fo_stream average, copy; /* of the parameter, written after it: a moving average, and itself as otherwise stored */
    fo_number count; /* how many steps it has taken; nowhere counts as none */
    fo_number number[FO_MAX_NUMBERS];
    fo_options *options;
    size_t n;
    const fo_rows *rows;  /* those that have a gradient; NULL: all */
    size_t width, height; /* elements of a row, where rows have something of their own; rows of a matrix, of states */
    double *row_decay;    /* of each row: log of the product of all decays that it has had; or NULL */
    fo_number decay;      /* and of all that there have been, */
    double decay_before;  /* before the step */
    size_t hyper; /* row of the plan's table of scalars, in a step */
    fo_rule rule;
} fo_tensor;

/* How many numbers a state has. (Of small ones there may be none only if there is no element.) */
static inline size_t fo_state_length(const fo_tensor *t, int k)
{
    const fo_extent small = (fo_extent)fo_needs[t->rule].small[k];
    return t->n == 0 || small == FO_ELEMENTS ? t->n : t->n / (small == FO_ROWS ? t->width : t->height);
}

/* What rows of a tensor are grouped in: grows with the gradient, never with the table. */
typedef struct {
    uint64_t *sorted, *other;
    size_t *row, *start, *counts, room;
    fo_rows rows;
} fo_grouping;

typedef struct {
    fo_tensor *tensors;
    size_t count;
    size_t *first_block; /* count + 1: block numbers, over all tensors */
    size_t *first_byte;  /* count + 1: position on the axis along which threads share the work */
    fo_hyper *hypers;    /* at most one a tensor: those with equal options and counts share theirs */
    double *partial;     /* FO_MAX_SUMS a block: what a reduction found there */
    size_t blocks;       /* how many partial has room for */
    size_t *first_scratch; /* count + 1: where in `scratch` tensors with factored states have room */
    double *scratch;
    size_t scratch_room;
    fo_grouping **groupings; /* of tensors that have had rows, or NULL */
} fo_plan;

typedef struct {
    double unscale;    /* multiplies every gradient: 1 / loss scale */
    double clip_norm;  /* INFINITY: do not clip */
    double clip_value; /* likewise */
    bool want_norm;    /* compute the norm, even where nothing clips by it */
    bool skip_nonfinite;
    bool zero_grad;
    bool zero_skipped; /* zero_grad also where the step is skipped */
    double average_weight; /* the parameters' in their moving average */
    int threads;
    bool (*between)(void *hands); /* called once what rules hand over is there; false: do not step. Or NULL */
    void *hands;
} fo_request;

typedef struct {
    double norm;        /* before clipping; NaN when not computed */
    double coefficient; /* what clipping multiplied the gradients by */
    bool skipped;       /* a gradient was not finite and the request was to skip such steps */
    bool failed;        /* `between` said so: states have changed and steps were counted, but no parameter has changed */
    int unfit;          /* 1 + the scalar that is not finite in the arithmetic's precision (nothing was done); or 0 */
    size_t tensor;      /* whose */
} fo_result;

fo_plan *fo_plan_new(size_t count); /* NULL: out of memory */
void fo_plan_free(fo_plan *plan);
bool fo_plan_cut(fo_plan *plan); /* after lengths or rows have changed; false: out of memory */
bool fo_params_overlap(const fo_plan *plan); /* whether two share memory (or there is none to find out) */

/* One optimizer step, counted: a pass over memory, one more for the norm and one for a rule's sums. Nothing is
 * allocated. */
fo_result fo_step(const fo_kernels *kernels, fo_plan *plan, const fo_request *request);

/* What clipping to a norm multiplies the gradients by. */
double fo_clip_coefficient(double norm, double clip_norm);

/* The same passes over gradients alone. */
double fo_global_norm(const fo_kernels *kernels, fo_plan *plan, int threads);
double fo_global_max_abs(const fo_kernels *kernels, fo_plan *plan, int threads);
void fo_scale_gradients(const fo_kernels *kernels, fo_plan *plan, double factor, int threads);
/* Moves every parameter towards its gradient, which is no gradient then: p = p + weight*(g - p). */
void fo_lerp(const fo_kernels *kernels, fo_plan *plan, double weight, int threads);
void fo_clamp_gradients(const fo_kernels *kernels, fo_plan *plan, double limit, int threads);

/* ---- rows.c ---- */

typedef enum { FO_GROUPED, FO_NO_MEMORY, FO_NO_SUCH_ROW, FO_TOO_MANY_ROWS } fo_grouped;

/* Say which rows of a tensor the rows of its gradient are for: `numbers` (int64 if `wide`, else int32) has one for each,
 * in any order, as often as it likes. Where one is not a row of the tensor, its place is in `wrong`. The tensor has no
 * gradient then, until it is said where the values are. The result does not depend on the threads. */
fo_grouped fo_group_rows(fo_plan *plan, size_t tensor, const void *numbers, bool wide, size_t occurrences, size_t width,
                         int threads, size_t *wrong);

void fo_free_grouping(fo_grouping *grouping);

/* ---- threads.c: the threads of the OpenMP runtime that the process has ---- */

/* A number of threads is obeyed, but for small passes. In the place of one: what OpenMP would take, or a negative number,
 * for at most so many; with both, a pass takes one thread while other work on the machine keeps the others from running. */
enum { FO_ANY_THREADS = 0 };

void fo_load_openmp(void);     /* load one if there is none: once, at start-up, so that whoever sets limits finds it */
void fo_find_openmp(void);     /* choose among those there are now: torch's first; the first step would do so too */
const char *fo_spare_openmp(void); /* the file of the one that was loaded, if another is in use now; else NULL */
bool fo_has_openmp(void);      /* whether one was found */
int fo_hardware_threads(void); /* how many it would take now; 1 without it */

int fo_threads_for(int threads, size_t worth); /* as many as asked for, or as it is worth if that is fewer; at least 1 */

/* Call the body in each of several threads, at most so many: in one without OpenMP and in a forked child and, if the
 * number adapts, for a while after several took longer than one would have. */
typedef void fo_body(void *data, size_t thread, size_t threads);
void fo_parallel(fo_body *body, void *data, int threads, bool adapts);

#endif
