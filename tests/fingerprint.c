/* Prints, for each instruction set that runs here, a fingerprint of what every rule computes for every storage:
 * parameters, states and norms, after a few steps on two threads. Built and compared by test_other_machines.py. */
#include <stdio.h>
#include <stdlib.h>

#include "fastopt.h"

enum { ELEMENTS = 2 * FO_BLOCK + 1619, STEPS = 3 };

/* FNV-1a (Fowler, Noll & Vo). */
static uint64_t mix(uint64_t hash, const void *data, size_t bytes)
{
    const unsigned char *byte = data;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ byte[i]) * 1099511628211u;
    return hash;
}

/* Numbers of either sign, a few orders of magnitude wide; half precisions are filled with bits of moderate exponents. */
static void fill(void *x, fo_dtype dtype, uint32_t seed)
{
    for (uint32_t i = 0; i < ELEMENTS; i++) {
        uint32_t random = (i + seed) * 2654435761u >> 8;
        double value = ((double)(random % 2000) - 999.5) / (1 + random % 37);
        if (dtype == FO_F64)
            ((double *)x)[i] = value / 3;
        else if (dtype == FO_F32)
            ((float *)x)[i] = (float)value / 3;
        else
            ((uint16_t *)x)[i] = (uint16_t)((random & 0x8000u) | (0x3800u + random % 0x700u));
    }
}

static uint64_t fingerprint(const fo_kernels *kernels, fo_rule rule, fo_dtype dtype)
{
    const size_t n = ELEMENTS, bytes = n * fo_dtype_size(dtype), state_bytes = n * fo_state_size(dtype);
    fo_plan *plan = fo_plan_new(1, &n);
    fo_tensor *tensor = &plan->tensors[0];
    *tensor = (fo_tensor){.param = malloc(bytes), .grad = malloc(bytes), .n = n, .rule = rule, .dtype = dtype};
    for (int k = 0; k < FO_MAX_STATES; k++) tensor->state[k] = calloc(1, state_bytes);
    fill(tensor->param, dtype, 1);
    fill(tensor->grad, dtype, 2);

    uint64_t hash = 14695981039346656037u;
    for (int step = 0; step < STEPS; step++) {
        fo_hyper hyper = {.f64 = {.lr = 1e-2, .decay = 0.999, .l2 = 1e-2, .scale = 1, .clip = 1.5, .eps = 1e-8,
                                  .eps_root = 1e-12, .mu = 0.9, .c = 1, .k1 = 0.9, .k2 = 1, .a = -1e-2,
                                  .alpha = 0.99, .alphac = 0.01, .beta1 = 0.9, .beta1c = 0.1, .beta2 = 0.999,
                                  .beta2c = 0.001, .rbc2 = 3}};
        fo_request request = {.unscale = 1, .clip_norm = 100, .threads = 2};
        fo_result result = fo_step(kernels, plan, &hyper, 1, &request);
        hash = mix(hash, &result.norm, sizeof result.norm);
    }
    hash = mix(hash, tensor->param, bytes);
    for (int k = 0; k < FO_MAX_STATES; k++) {
        hash = mix(hash, tensor->state[k], state_bytes);
        free(tensor->state[k]);
    }
    free(tensor->param);
    free(tensor->grad);
    fo_plan_free(plan);
    return hash;
}

int main(void)
{
    const char *isa;
    for (size_t i = 0; (isa = fo_available_isa(i)); i++)
        for (int rule = 0; rule < FO_RULES; rule++)
            for (int dtype = 0; dtype < FO_DTYPES; dtype++)
                printf("%s %s %d %016llx\n", isa, fo_rule_name((size_t)rule), dtype,
                       (unsigned long long)fingerprint(fo_find_kernels(isa), (fo_rule)rule, (fo_dtype)dtype));
    return 0;
}
