/* Which kernels run: the only file that knows CPUs. */
#include <string.h>

#include "fastopt.h"

extern const fo_kernels fo_kernels_portable;

#if defined(__x86_64__)
extern const fo_kernels fo_kernels_x86_v3, fo_kernels_x86_v4;

static bool has_x86_v3(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

static bool has_x86_v4(void)
{
    return has_x86_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#elif defined(__aarch64__)
extern const fo_kernels fo_kernels_arm_neon;
#endif

static bool always(void) { return true; }

/* Best first. */
static const struct {
    const fo_kernels *kernels;
    bool (*supported)(void);
} candidates[] = {
#if defined(__x86_64__)
    {&fo_kernels_x86_v4, has_x86_v4},
    {&fo_kernels_x86_v3, has_x86_v3},
#elif defined(__aarch64__)
    {&fo_kernels_arm_neon, always},
#endif
    {&fo_kernels_portable, always},
};

static const fo_kernels *available(size_t index)
{
    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++)
        if (candidates[i].supported() && index-- == 0) return candidates[i].kernels;
    return NULL;
}

const fo_kernels *fo_best_kernels(void) { return available(0); }

const char *fo_available_isa(size_t index)
{
    const fo_kernels *kernels = available(index);
    return kernels ? kernels->isa : NULL;
}

const fo_kernels *fo_find_kernels(const char *isa)
{
    const fo_kernels *kernels;
    for (size_t i = 0; (kernels = available(i)); i++)
        if (strcmp(kernels->isa, isa) == 0) return kernels;
    return NULL;
}
