/* How a stream that is not stored as its rule computes becomes plain float32 and back, a chunk at a time.
 *
 * Narrowing rounds to nearest, ties to even, where not said otherwise; NaN stays NaN. The bits are the same on every
 * instruction set: one that has conversions of its own does with them what the integer arithmetic does. */
#ifndef FASTOPT_CODECS_H
#define FASTOPT_CODECS_H

#include <string.h>

#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "fastopt.h"

#if !defined(VECTORISE) || !defined(FO_INLINE)
#error "codecs.h needs VECTORISE (before a loop without dependences) and FO_INLINE"
#endif

/* What an encoder may want to know besides the numbers. */
typedef struct {
    uint64_t seed; /* of the tensor in this step */
    uint32_t stream;
    size_t first; /* number of the chunk's first element in the tensor; no chunk crosses a multiple of 2^32 */
    bool rooted; /* the chunk has the roots of the numbers, which the rule had to take */
} fo_context;

typedef struct {
    void (*decode)(float *restrict out, const fo_stream *in, size_t n);
    void (*encode)(const fo_stream *out, const float *restrict in, size_t n, const fo_context *context);
} fo_codec;

FO_INLINE float fo_float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

FO_INLINE uint32_t fo_bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* ---- float64 beside float32 ---- */

static void decode_F64(float *restrict out, const fo_stream *in, size_t n)
{
    const double *restrict x = in->at;
    VECTORISE for (size_t i = 0; i < n; i++) out[i] = (float)x[i];
}

static void encode_F64(const fo_stream *out, const float *restrict in, size_t n, const fo_context *context)
{
    (void)context;
    double *restrict x = out->at;
    VECTORISE for (size_t i = 0; i < n; i++) x[i] = (double)in[i];
}

/* ---- bfloat16: the upper half of float32 ---- */

/* Adds to the lower half, which then goes; a carry runs into the exponent as it should. NaN becomes all ones, so that
 * no carry makes it a number. */
FO_INLINE uint16_t fo_upper_half(uint32_t bits, uint32_t added)
{
    int32_t magnitude = (int32_t)(bits & 0x7fffffffu);
    uint32_t nan = magnitude > 0x7f800000 ? 0xffffffffu : 0;
    return (uint16_t)(((bits + added) | nan) >> 16);
}

static void decode_BF16(float *restrict out, const fo_stream *in, size_t n)
{
    const uint16_t *restrict x = in->at;
    VECTORISE for (size_t i = 0; i < n; i++) out[i] = fo_float_of((uint32_t)x[i] << 16);
}

static void encode_BF16(const fo_stream *out, const float *restrict in, size_t n, const fo_context *context)
{
    (void)context;
    uint16_t *restrict x = out->at;
    VECTORISE for (size_t i = 0; i < n; i++) {
        uint32_t bits = fo_bits_of(in[i]);
        x[i] = fo_upper_half(bits, 0x7fffu + ((bits >> 16) & 1u));
    }
}

/* ---- bfloat16 with stochastic rounding: up as often as what goes is large, and so right in the mean. (Rounding to
 * nearest never lets a number change by less than half of its last place, a 512th.) ---- */

#define decode_BF16_STOCHASTIC decode_BF16

/* The random number is a hash of the element's number under a key, so that nothing else has a part in it: Wellons'
 * lowbias32, half of the key before each of its rounds. */
static void encode_BF16_STOCHASTIC(const fo_stream *out, const float *restrict in, size_t n, const fo_context *context)
{
    uint16_t *restrict x = out->at;
    const uint64_t key = fo_mix(fo_mix(context->seed, context->stream), (uint64_t)context->first >> 32);
    const uint32_t first = (uint32_t)context->first, key1 = (uint32_t)key, key2 = (uint32_t)(key >> 32);
    const uint32_t count = (uint32_t)n; /* (numbers of 64 bits would be narrowed in each round) */
    VECTORISE for (uint32_t i = 0; i < count; i++) {
        uint32_t hash = (first + i) ^ key1;
        hash = (hash ^ (hash >> 16)) * 0x7feb352du ^ key2;
        hash = (hash ^ (hash >> 15)) * 0x846ca68bu;
        x[i] = fo_upper_half(fo_bits_of(in[i]), hash >> 16);
    }
}

/* ---- float16: 5 bits of exponent, 10 of fraction ---- */

FO_INLINE float fo_from_f16(uint16_t x)
{
    uint32_t sign = ((uint32_t)x & 0x8000u) << 16;
    uint32_t magnitude = (uint32_t)x & 0x7fffu;
    /* Normal numbers: move the fields and rebias the exponent (127 - 15 = 112); infinity and NaN once more. */
    uint32_t normal = (magnitude << 13) + (112u << 23);
    uint32_t special = normal + (112u << 23);
    /* Subnormal numbers are an integer times 2^-24: let the conversion normalise them. */
    uint32_t subnormal = fo_bits_of((float)(int32_t)magnitude * 0x1p-24f);
    uint32_t bits = magnitude >= 0x7c00u ? special : magnitude >= 0x0400u ? normal : subnormal;
    return fo_float_of(bits | sign);
}

FO_INLINE uint16_t fo_to_f16(float x)
{
    uint32_t bits = fo_bits_of(x);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    /* Normal results: rebias, then round on the 13 bits that go; a carry runs into the exponent as it should. */
    uint32_t rebiased = magnitude - (112u << 23);
    uint32_t normal = (rebiased + 0x0fffu + ((rebiased >> 13) & 1u)) >> 13;
    /* Subnormal results: adding 0.5 makes the hardware round at 2^-24, float16's last place there. */
    uint32_t subnormal = fo_bits_of(fo_float_of(magnitude) + 0.5f) - fo_bits_of(0.5f);
    uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
    result = magnitude >= 0x477ff000u ? 0x7c00u : result; /* rounds to 65536 or more: infinity */
    result = magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x3ffu) : result;
    return (uint16_t)(sign | result);
}

static void decode_F16(float *restrict out, const fo_stream *in, size_t n)
{
    const uint16_t *restrict x = in->at;
    size_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
#endif
    VECTORISE for (; i < n; i++) out[i] = fo_from_f16(x[i]);
}

static void encode_F16(const fo_stream *out, const float *restrict in, size_t n, const fo_context *context)
{
    (void)context;
    uint16_t *restrict x = out->at;
    size_t i = 0;
#if defined(__F16C__)
    for (; i + 16 <= n; i += 16) {
        __m128i low = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT);
        __m128i high = _mm256_cvtps_ph(_mm256_loadu_ps(in + i + 8), _MM_FROUND_TO_NEAREST_INT);
        _mm256_storeu_si256((__m256i *)(x + i), _mm256_set_m128i(high, low));
    }
#endif
    VECTORISE for (; i < n; i++) x[i] = fo_to_f16(in[i]);
}

/* ---- 8 bits and a scale for each group: an average of gradients, of either sign ----
 *
 * x in units of the largest magnitude s of its group is companded, 2x/(1 + |x|), to 127 steps: small numbers have finer
 * ones, about s/254. ("FlashOptim", arXiv 2602.23349; but the scale is float32: in float16 it would be zero for gradients
 * below 6e-8.)
 *
 * What is not finite makes all of its group NaN. A group below the smallest normal number is zero. */

/* The largest magnitude of a group, as bits: their order is that of the numbers, and NaN is above infinity. */
FO_INLINE int32_t fo_largest(const float *restrict in)
{
    int32_t largest = 0;
    VECTORISE for (size_t i = 0; i < FO_GROUP; i++) {
        int32_t bits = (int32_t)(fo_bits_of(in[i]) & 0x7fffffffu);
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

/* A group's codes as numbers, and numbers rounded to codes, to nearest, ties to even. (Of AVX2 compilers use what takes
 * one size to the next, and clear what a number has above its code: docs/design.md.) */
#if defined(__AVX2__) && !defined(__AVX512BW__)
#define CODES(name, code, widened, narrowed)                                                                         \
    FO_INLINE void fo_floats_of_##name(float *restrict y, const code *restrict x)                                    \
    {                                                                                                                \
        UNROLL for (size_t i = 0; i < FO_GROUP; i += 8)                                                              \
            _mm256_storeu_ps(y + i, _mm256_cvtepi32_ps(widened(_mm_loadl_epi64((const __m128i *)(x + i)))));         \
    }                                                                                                                \
                                                                                                                     \
    FO_INLINE void fo_round_to_##name(code *restrict x, const float *restrict y)                                     \
    {                                                                                                                \
        __m256i v[4];                                                                                                \
        UNROLL for (size_t k = 0; k < 4; k++) v[k] = _mm256_cvtps_epi32(_mm256_loadu_ps(y + 8 * k));                 \
        const __m256i mixed = narrowed(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));              \
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);                                             \
        _mm256_storeu_si256((__m256i *)x, _mm256_permutevar8x32_epi32(mixed, order));                                \
    }
#else
/* Adding this rounds, and leaves the integer in the lower bits. */
static const float fo_rounder = 0x1.8p23f;

#define CODES(name, code, widened, narrowed)                                                                         \
    FO_INLINE void fo_floats_of_##name(float *restrict y, const code *restrict x)                                    \
    {                                                                                                                \
        VECTORISE for (size_t i = 0; i < FO_GROUP; i++) y[i] = (float)x[i];                                          \
    }                                                                                                                \
                                                                                                                     \
    FO_INLINE void fo_round_to_##name(code *restrict x, const float *restrict y)                                     \
    {                                                                                                                \
        VECTORISE for (size_t i = 0; i < FO_GROUP; i++) x[i] = (code)fo_bits_of(y[i] + fo_rounder);                  \
    }
#endif

CODES(signed8, int8_t, _mm256_cvtepi8_epi32, _mm256_packs_epi16)
CODES(root8, uint8_t, _mm256_cvtepu8_epi32, _mm256_packus_epi16)
#undef CODES

FO_INLINE void fo_decode_signed8(float *restrict out, const int8_t *restrict x, float scale)
{
    float y[FO_GROUP];
    fo_floats_of_signed8(y, x);
    VECTORISE for (size_t i = 0; i < FO_GROUP; i++) out[i] = y[i] / (254 - __builtin_fabsf(y[i])) * scale;
}

FO_INLINE void fo_encode_signed8(int8_t *restrict x, const float *restrict in, float factor, uint32_t kept)
{
    float y[FO_GROUP];
    VECTORISE for (size_t i = 0; i < FO_GROUP; i++) {
        y[i] = fo_float_of(fo_bits_of(in[i]) & kept) * factor;
        y[i] = 254 * y[i] / (1 + __builtin_fabsf(y[i]));
    }
    fo_round_to_signed8(x, y);
}

/* ---- 8 bits and a scale for each group: an average of squares, by its root ----
 *
 * In 255 steps up to the largest root of the group; what is not zero stays so, or a moment that is left would be divided
 * by epsilon alone. */

FO_INLINE void fo_decode_root8(float *restrict out, const uint8_t *restrict x, float scale)
{
    float y[FO_GROUP];
    fo_floats_of_root8(y, x);
    VECTORISE for (size_t i = 0; i < FO_GROUP; i++) {
        const float root = y[i] * (1 / 255.0f) * scale;
        out[i] = root * root;
    }
}

/* (A rule that takes the root of what it has found hands over that.) */
FO_INLINE void fo_encode_roots(uint8_t *restrict x, const float *restrict in, float factor, uint32_t kept)
{
    float y[FO_GROUP];
    VECTORISE for (size_t i = 0; i < FO_GROUP; i++) {
        const uint32_t root = fo_bits_of(in[i]) & kept;
        const float least = (int32_t)root > 0x1fb504f3 ? 1 : 0; /* above the root of 2^-127 */
        y[i] = fo_float_of(root) * factor;
        y[i] = y[i] > least ? y[i] : least;
    }
    fo_round_to_root8(x, y);
}

FO_INLINE void fo_encode_squares(uint8_t *restrict x, const float *restrict in, float factor, uint32_t kept)
{
    float root[FO_GROUP];
    VECTORISE for (size_t i = 0; i < FO_GROUP; i++) root[i] = __builtin_sqrtf(__builtin_fabsf(in[i]));
    fo_encode_roots(x, root, factor, kept);
}

/* By groups, the last of which may be shorter. */
#define DECODE_BY_GROUPS(NAME, name, code)                                                                           \
    static void decode_##NAME(float *restrict out, const fo_stream *in, size_t n)                                    \
    {                                                                                                                \
        const code *x = in->at;                                                                                      \
        const float *scale = in->beside;                                                                             \
        for (; n >= FO_GROUP; n -= FO_GROUP, x += FO_GROUP, out += FO_GROUP) fo_decode_##name(out, x, *scale++);     \
        if (!n) return;                                                                                              \
        code last[FO_GROUP] = {0};                                                                                   \
        float decoded[FO_GROUP];                                                                                     \
        memcpy(last, x, n);                                                                                          \
        fo_decode_##name(decoded, last, *scale);                                                                     \
        memcpy(out, decoded, n * sizeof *out);                                                                       \
    }

DECODE_BY_GROUPS(SIGNED8, signed8, int8_t)
DECODE_BY_GROUPS(ROOT8, root8, uint8_t)
#undef DECODE_BY_GROUPS

/* All scales of some groups come before their codes: no group waits for its own largest magnitude then, which takes a
 * third less time. */
enum { GROUPS = 16 };

/* What the scale is of the largest, the bits of the least that is not zero, and the steps up to the scale. */
#define ENCODE_BY_GROUPS(name, code, of_largest, least, steps)                                                       \
    FO_INLINE void fo_encode_some_##name(code *restrict x, float *restrict scale, const float *restrict in,          \
                                         size_t groups)                                                              \
    {                                                                                                                \
        float factor[GROUPS];                                                                                        \
        int32_t largest[GROUPS];                                                                                     \
        uint32_t kept[GROUPS];                                                                                       \
        for (size_t k = 0; k < groups; k++) largest[k] = fo_largest(in + k * FO_GROUP);                              \
        VECTORISE for (size_t k = 0; k < groups; k++) {                                                              \
            const uint32_t bits = fo_bits_of(of_largest(fo_float_of((uint32_t)largest[k])));                         \
            const bool finite = largest[k] < 0x7f800000, zero = largest[k] < least;                                  \
            scale[k] = fo_float_of(!finite ? 0x7fc00000u : zero ? 0 : bits);                                         \
            kept[k] = finite ? 0xffffffffu : 0;                                                                      \
            factor[k] = zero || !finite ? 0 : steps / scale[k];                                                      \
        }                                                                                                            \
        for (size_t k = 0; k < groups; k++)                                                                          \
            fo_encode_##name(x + k * FO_GROUP, in + k * FO_GROUP, factor[k], kept[k]);                               \
    }                                                                                                                \
                                                                                                                     \
    static void encode_##name(const fo_stream *out, const float *restrict in, size_t n)                              \
    {                                                                                                                \
        enum { AT_ONCE = GROUPS * FO_GROUP };                                                                        \
        code *x = out->at, last[FO_GROUP];                                                                           \
        float *scale = out->beside, filled[FO_GROUP] = {0};                                                          \
        for (; n >= AT_ONCE; n -= AT_ONCE, x += AT_ONCE, in += AT_ONCE, scale += GROUPS)                             \
            fo_encode_some_##name(x, scale, in, GROUPS);                                                             \
        for (; n >= FO_GROUP; n -= FO_GROUP, x += FO_GROUP, in += FO_GROUP)                                          \
            fo_encode_some_##name(x, scale++, in, 1);                                                                \
        if (!n) return;                                                                                              \
        memcpy(filled, in, n * sizeof *in);                                                                          \
        fo_encode_some_##name(last, scale, filled, 1);                                                               \
        memcpy(x, last, n);                                                                                          \
    }

#define ITSELF(x) (x)
ENCODE_BY_GROUPS(signed8, int8_t, ITSELF, 0x00800000, 1)
ENCODE_BY_GROUPS(roots, uint8_t, ITSELF, 0x20000000, 255)
ENCODE_BY_GROUPS(squares, uint8_t, __builtin_sqrtf, 0x00800000, 255)
#undef ITSELF
#undef ENCODE_BY_GROUPS

static void encode_SIGNED8(const fo_stream *out, const float *restrict in, size_t n, const fo_context *context)
{
    (void)context;
    encode_signed8(out, in, n);
}

static void encode_ROOT8(const fo_stream *out, const float *restrict in, size_t n, const fo_context *context)
{
    (context->rooted ? encode_roots : encode_squares)(out, in, n);
}

/* ---- float32, or 24 bits of it, in two pieces: bfloat16, rounded to nearest, and what has to be added to its bits ---- */

static void decode_SPLIT(float *restrict out, const fo_stream *in, size_t n)
{
    const uint16_t *restrict x = in->at;
    const int16_t *restrict rest = in->beside;
    VECTORISE for (size_t i = 0; i < n; i++) out[i] = fo_float_of(((uint32_t)x[i] << 16) + (uint32_t)rest[i]);
}

/* (Ties go up here, so that 16 bits hold what is left.) */
static void encode_SPLIT(const fo_stream *out, const float *restrict in, size_t n, const fo_context *context)
{
    (void)context;
    uint16_t *restrict x = out->at;
    int16_t *restrict rest = out->beside;
    VECTORISE for (size_t i = 0; i < n; i++) {
        uint32_t bits = fo_bits_of(in[i]);
        x[i] = fo_upper_half(bits, 0x8000u);
        rest[i] = in[i] == in[i] ? (int16_t)bits : 0;
    }
}

static void decode_SPLIT8(float *restrict out, const fo_stream *in, size_t n)
{
    const uint16_t *restrict x = in->at;
    const int8_t *restrict rest = in->beside;
    VECTORISE for (size_t i = 0; i < n; i++) out[i] = fo_float_of(((uint32_t)x[i] << 16) + ((uint32_t)rest[i] << 8));
}

static void encode_SPLIT8(const fo_stream *out, const float *restrict in, size_t n, const fo_context *context)
{
    (void)context;
    uint16_t *restrict x = out->at;
    int8_t *restrict rest = out->beside;
    VECTORISE for (size_t i = 0; i < n; i++) {
        uint32_t bits = fo_bits_of(in[i]) + 0x80u;
        x[i] = in[i] == in[i] ? (uint16_t)((bits + 0x8000u) >> 16) : 0xffffu;
        rest[i] = in[i] == in[i] ? (int8_t)(bits >> 8) : 0;
    }
}

/* ---- the table: float32 needs none ---- */

#define decode_F32 NULL
#define encode_F32 NULL

static const fo_codec fo_codecs[FO_STORAGES] = {
#define STORAGE(NAME, name, bytes, beside) [FO_##NAME] = {decode_##NAME, encode_##NAME},
#include "codecs.def"
};

#endif
