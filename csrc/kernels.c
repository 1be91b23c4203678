/* Compiled once for each instruction set (FASTOPT_ISA names it); everything but the one table is static. */
#include <math.h>
#include <string.h>

#include "fastopt.h"
#include "half.h"

#if defined(__clang__)
#define VECTORISE _Pragma("clang loop vectorize(assume_safety)")
#else
#define VECTORISE _Pragma("GCC ivdep")
#endif

/* Without the instruction, fma() is a slow library call: `portable` (FASTOPT_NO_FMA) computes a*b + c. */
#if !defined(FASTOPT_NO_FMA)
#define FMA_FLOAT(a, b, c) __builtin_fmaf(a, b, c)
#define FMA_DOUBLE(a, b, c) __builtin_fma(a, b, c)
#else
#define FMA_FLOAT(a, b, c) ((a) * (b) + (c))
#define FMA_DOUBLE(a, b, c) ((a) * (b) + (c))
#endif

/* A loop's own loads keep too few cache lines on their way to use all of the memory's bandwidth, and the hardware does
 * not look far enough ahead: ask for the lines that it will need one kibibyte on, chunk by chunk. Measured: up to 1.2
 * times as fast from memory, no difference in the caches. */
enum { FO_CHUNK = 64, FO_AHEAD = 1024, FO_CACHE_LINE = 64 };

FO_INLINE void fo_fetch(const void *x, size_t bytes)
{
    for (size_t k = 0; k < bytes; k += FO_CACHE_LINE) __builtin_prefetch((const char *)x + FO_AHEAD + k);
}

#define AS_IS(x) (x)

/* States that have decayed into the subnormal range are zero for nearly every purpose, but cost some hundred cycles an
 * operation: they are stored as zero. (What float16 holds is never subnormal in float32.) */
#define FLUSH(x) (ABS(x) < h.flush ? 0 : (x))
#define FLUSH_TO_BF16(x) fo_to_bf16(FLUSH(x))

/* ---- arithmetic in float32 ---- */
#define T float
#define BITS uint32_t
#define FMA FMA_FLOAT
#define SQRT __builtin_sqrtf
#define ABS __builtin_fabsf
#define HYPER_MEMBER f32

#define SUFFIX f32
#define P float
#define S float
#define FROM_P AS_IS
#define TO_P AS_IS
#define FROM_S AS_IS
#define TO_S FLUSH
#include "instantiate.h"

#define SUFFIX bf16
#define P fo_bf16
#define S fo_bf16
#define FROM_P fo_from_bf16
#define TO_P fo_to_bf16
#define FROM_S fo_from_bf16
#define TO_S FLUSH_TO_BF16
#include "instantiate.h"

#define SUFFIX bf16_f32
#define P fo_bf16
#define S float
#define FROM_P fo_from_bf16
#define TO_P fo_to_bf16
#define FROM_S AS_IS
#define TO_S FLUSH
#include "instantiate.h"

#define SUFFIX f16
#define P fo_f16
#define S fo_f16
#define FROM_P fo_from_f16
#define TO_P fo_to_f16
#define FROM_S fo_from_f16
#define TO_S fo_to_f16
#include "instantiate.h"

#define SUFFIX f16_f32
#define P fo_f16
#define S float
#define FROM_P fo_from_f16
#define TO_P fo_to_f16
#define FROM_S AS_IS
#define TO_S FLUSH
#include "instantiate.h"

#undef HYPER_MEMBER
#undef SQRT
#undef ABS
#undef FMA
#undef BITS
#undef T

/* ---- arithmetic in float64 ---- */
#define T double
#define BITS uint64_t
#define FMA FMA_DOUBLE
#define SQRT __builtin_sqrt
#define ABS __builtin_fabs
#define HYPER_MEMBER f64

#define SUFFIX f64
#define P double
#define S double
#define FROM_P AS_IS
#define TO_P AS_IS
#define FROM_S AS_IS
#define TO_S FLUSH
#include "instantiate.h"

/* ---- the table ---- */
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define STRING_(x) #x
#define STRING(x) STRING_(x)

#define EACH_DTYPE(f)                                                                                                \
    {[FO_F32] = f##_f32, [FO_F64] = f##_f64, [FO_BF16] = f##_bf16, [FO_BF16_F32] = f##_bf16_f32,                     \
     [FO_F16] = f##_f16, [FO_F16_F32] = f##_f16_f32}

const fo_kernels PASTE(fo_kernels_, FASTOPT_ISA);
const fo_kernels PASTE(fo_kernels_, FASTOPT_ISA) = {
    .isa = STRING(FASTOPT_ISA),
#define RULE(name, states) .step[FO_RULE_##name] = EACH_DTYPE(step_##name),
#include "rules.def"
    .sum_of_squares = EACH_DTYPE(sum_of_squares),
    .max_abs = EACH_DTYPE(max_abs),
    .scale = EACH_DTYPE(scale),
    .clamp = EACH_DTYPE(clamp),
};
