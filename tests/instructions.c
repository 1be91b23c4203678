/* A fixed small work for every kernel of one instruction set (KERNELS is its table): instructions.py counts what it
 * executes. One thread; two parameters, one of them longer than a block and of no round length. */
#include <stdlib.h>

#include "fastopt.h"

extern const fo_kernels KERNELS;

enum { PARAMETERS = 2 };

static const size_t lengths[PARAMETERS] = {FO_BLOCK + 1619, 1000};

static void work(fo_rule rule, fo_dtype dtype)
{
    fo_plan *plan = fo_plan_new(PARAMETERS, lengths);
    for (int i = 0; i < PARAMETERS; i++) {
        fo_tensor *tensor = &plan->tensors[i];
        *tensor = (fo_tensor){.param = calloc(lengths[i], fo_dtype_size(dtype)),
                              .grad = calloc(lengths[i], fo_dtype_size(dtype)),
                              .n = lengths[i],
                              .rule = rule,
                              .dtype = dtype};
        for (int k = 0; k < FO_MAX_STATES; k++) tensor->state[k] = calloc(lengths[i], fo_state_size(dtype));
    }
    fo_hyper hyper = {.f64 = {.lr = 1e-2, .decay = 0.999, .l2 = 1e-2, .scale = 1, .clip = 1, .eps = 1e-8, .rbc2 = 1}};
    fo_request request = {.unscale = 1, .clip_norm = 1, .zero_grad = true, .threads = 1};
    fo_step(&KERNELS, plan, &hyper, 1, &request);
    fo_global_max_abs(&KERNELS, plan, 1);
    fo_scale_gradients(&KERNELS, plan, 0.5, 1);
    fo_clamp_gradients(&KERNELS, plan, 0.5, 1);
    for (int i = 0; i < PARAMETERS; i++) {
        free(plan->tensors[i].param);
        free(plan->tensors[i].grad);
        for (int k = 0; k < FO_MAX_STATES; k++) free(plan->tensors[i].state[k]);
    }
    fo_plan_free(plan);
}

int main(void)
{
    for (int rule = 0; rule < FO_RULES; rule++)
        for (int dtype = 0; dtype < FO_DTYPES; dtype++) work((fo_rule)rule, (fo_dtype)dtype);
    return 0;
}
