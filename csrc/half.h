/* bfloat16 and float16 to float32 and back, in integer arithmetic that every compiler vectorises.
 * Narrowing rounds to nearest, ties to even; NaN stays NaN. */
#ifndef FASTOPT_HALF_H
#define FASTOPT_HALF_H

#include <stdint.h>
#include <string.h>

/* A call inside a loop keeps it from being vectorised; compilers stop inlining in large functions. */
#define FO_INLINE static inline __attribute__((always_inline))

typedef struct { uint16_t bits; } fo_bf16;
typedef struct { uint16_t bits; } fo_f16;

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

FO_INLINE float fo_from_bf16(fo_bf16 x)
{
    return fo_float_of((uint32_t)x.bits << 16);
}

FO_INLINE fo_bf16 fo_to_bf16(float x)
{
    uint32_t bits = fo_bits_of(x);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t quiet_nan = (bits >> 16) | 0x40u;
    return (fo_bf16){(uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded)};
}

FO_INLINE float fo_from_f16(fo_f16 x)
{
    uint32_t sign = ((uint32_t)x.bits & 0x8000u) << 16;
    uint32_t magnitude = (uint32_t)x.bits & 0x7fffu;
    /* Normal numbers: move the fields and rebias the exponent (127 - 15 = 112); infinity and NaN once more. */
    uint32_t normal = (magnitude << 13) + (112u << 23);
    uint32_t special = normal + (112u << 23);
    /* Subnormal numbers are an integer times 2^-24: let the conversion normalise them. */
    uint32_t subnormal = fo_bits_of((float)(int32_t)magnitude * 0x1p-24f);
    uint32_t bits = magnitude >= 0x7c00u ? special : magnitude >= 0x0400u ? normal : subnormal;
    return fo_float_of(bits | sign);
}

FO_INLINE fo_f16 fo_to_f16(float x)
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
    return (fo_f16){(uint16_t)(sign | result)};
}

#endif
