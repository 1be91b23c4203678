/* How a stream that is not stored as its rule computes becomes plain float32 and back, a chunk at a time.
 *
 * Narrowing rounds to nearest, ties to even, where not said otherwise; NaN stays NaN. The bits are the same on every
 * instruction set: one that has conversions of its own does with them what the integer arithmetic does. */
#ifndef FASTOPT_CODECS_H
#define FASTOPT_CODECS_H

#include <string.h>

#if defined(__F16C__)
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
} fo_context;

typedef struct {
    void (*decode)(float *restrict out, const void *restrict in, size_t n);
    void (*encode)(void *restrict out, const float *restrict in, size_t n, const fo_context *context);
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

static void decode_F64(float *restrict out, const void *restrict in, size_t n)
{
    const double *x = in;
    VECTORISE for (size_t i = 0; i < n; i++) out[i] = (float)x[i];
}

static void encode_F64(void *restrict out, const float *restrict in, size_t n, const fo_context *context)
{
    (void)context;
    double *x = out;
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

static void decode_BF16(float *restrict out, const void *restrict in, size_t n)
{
    const uint16_t *x = in;
    VECTORISE for (size_t i = 0; i < n; i++) out[i] = fo_float_of((uint32_t)x[i] << 16);
}

static void encode_BF16(void *restrict out, const float *restrict in, size_t n, const fo_context *context)
{
    (void)context;
    uint16_t *x = out;
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
static void encode_BF16_STOCHASTIC(void *restrict out, const float *restrict in, size_t n, const fo_context *context)
{
    uint16_t *x = out;
    const uint64_t key = fo_mix(fo_mix(context->seed, context->stream), (uint64_t)context->first >> 32);
    const uint32_t first = (uint32_t)context->first, key1 = (uint32_t)key, key2 = (uint32_t)(key >> 32);
    VECTORISE for (size_t i = 0; i < n; i++) {
        uint32_t hash = (first + (uint32_t)i) ^ key1;
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

static void decode_F16(float *restrict out, const void *restrict in, size_t n)
{
    const uint16_t *x = in;
    size_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
#endif
    VECTORISE for (; i < n; i++) out[i] = fo_from_f16(x[i]);
}

static void encode_F16(void *restrict out, const float *restrict in, size_t n, const fo_context *context)
{
    (void)context;
    uint16_t *x = out;
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

/* ---- the table: float32 needs none ---- */

#define decode_F32 NULL
#define encode_F32 NULL

static const fo_codec fo_codecs[FO_STORAGES] = {
#define STORAGE(NAME, name, bytes) [FO_##NAME] = {decode_##NAME, encode_##NAME},
#include "codecs.def"
};

#endif
