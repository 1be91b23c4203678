/* Compiled once for each instruction set (FASTOPT_ISA names it); everything but the one table is static. */
#include <math.h>
#include <string.h>

#include "fastopt.h"

#if !defined(FASTOPT_ISA)
#error "kernels.c needs FASTOPT_ISA, the name of the instruction set that it is compiled for"
#endif

/* A call inside a loop keeps it from being vectorised; compilers stop inlining in large functions. */
#define FO_INLINE static inline __attribute__((always_inline))

#if defined(__clang__)
#define VECTORISE _Pragma("clang loop vectorize(assume_safety)")
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define VECTORISE _Pragma("GCC ivdep")
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Without the instruction, fma() is a slow library call: `portable` (FASTOPT_NO_FMA) computes a*b + c. */
#if !defined(FASTOPT_NO_FMA)
#define FMA_FLOAT(a, b, c) __builtin_fmaf(a, b, c)
#define FMA_DOUBLE(a, b, c) __builtin_fma(a, b, c)
#else
#define FMA_FLOAT(a, b, c) ((a) * (b) + (c))
#define FMA_DOUBLE(a, b, c) ((a) * (b) + (c))
#endif

/* Elements of a chunk: few enough for its buffers to stay in the first-level cache. */
enum { CHUNK = 512 };

#include "codecs.h"

/* Without the sign, IEEE's order is that of the bits; a NaN is above everything. (Comparing floats would compete
 * with the multiplications for their units, and comparing unsigned takes an instruction more: docs/design.md.) */
#define IS_BELOW_FLOAT(x, limit) ((int32_t)(fo_bits_of(x) & 0x7fffffffu) < (int32_t)fo_bits_of(limit))

/* A loop's own loads keep too few cache lines on their way to use all of some processors' memory bandwidth: it asks for
 * the lines that it will need one kibibyte on, piece by piece. (Measured: docs/design.md.) */
enum { PIECE = 64, AHEAD = 1024, CACHE_LINE = 64 };

FO_INLINE void fo_fetch(const void *x, size_t bytes)
{
    for (size_t k = 0; k < bytes; k += CACHE_LINE) __builtin_prefetch((const char *)x + AHEAD + k);
}

/* Running sums of a reduction: element i goes to lane i % LANES. */
enum { LANES = 16 };
typedef double fo_lanes[LANES];

static double sum_of_lanes(double *lane)
{
    for (size_t width = LANES / 2; width > 0; width /= 2)
        for (size_t l = 0; l < width; l++) lane[l] += lane[l + width];
    return lane[0];
}

/* Of rows, occurrences are added this many columns at a time, and fetched this long before. */
enum { COLUMNS = 16, OCCURRENCES_AHEAD = 16 };

/* Where an occurrence has its values. */
FO_INLINE size_t values_of(const fo_rows *rows, size_t occurrence)
{
    return (size_t)(rows->sorted[occurrence] & (((uint64_t)1 << rows->shift) - 1)) * rows->width;
}

/* How many states a rule has, for its measuring loop. */
enum {
#define RULE(name, states) fo_states_of_##name = states,
#include "rules.def"
};

/* Of a rule's states, all stay what they are. */
enum { NO_ROOT = -1 };

#define T float
#define SUFFIX f32
#define BITS uint32_t
#define FMA FMA_FLOAT
#define SQRT __builtin_sqrtf
#define IS_BELOW IS_BELOW_FLOAT
#include "instantiate.h"

#define T double
#define SUFFIX f64
#define BITS uint64_t
#define FMA FMA_DOUBLE
#define SQRT __builtin_sqrt
#define IS_BELOW(x, limit) (__builtin_fabs(x) < (limit))
#include "instantiate.h"

#include "drivers.h"

/* ---- the table ---- */
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define STRING_(x) #x
#define STRING(x) STRING_(x)

const fo_kernels PASTE(fo_kernels_, FASTOPT_ISA);
const fo_kernels PASTE(fo_kernels_, FASTOPT_ISA) = {
    .isa = STRING(FASTOPT_ISA),
#define RULE(name, states) .step[FO_RULE_##name] = step_##name,
#define MEASURE(name, sums, scope, states) .measure[FO_RULE_##name] = measure_##name,
#define CAREFUL(name, how) .careful[FO_RULE_##name] = careful_##name, CAREFUL_##how(name)
#define CAREFUL_COUNTED(name) .measure[FO_RULE_##name] = measure_##name,
#include "rules.def"
    .settle_rows = settle_rows,
    .settle_columns = settle_columns,
    .sum_of_squares = sum_of_squares,
    .max_abs = max_abs,
    .lerp = lerp,
    .convert = convert,
    .scale = scale,
    .clamp = clamp,
};
