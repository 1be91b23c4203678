/* AdamW from C: fit two lists of weights to their targets, on as many threads as OpenMP takes.
 *
 *   tools/bundle build/bundle
 *   cc -std=c11 -O3 -ffp-contract=off -march=native -Ibuild/bundle examples/adamw.c build/bundle/fastopt.c -lm -o adamw
 */
#include <math.h>
#include <stdio.h>

#include "fastopt.h"

enum { TENSORS = 2, MOST = 100000, STEPS = 100 };

static const size_t lengths[TENSORS] = {MOST, 10};
static float w[TENSORS][MOST], gradient[TENSORS][MOST], exp_avg[TENSORS][MOST], exp_avg_sq[TENSORS][MOST];
static double steps[TENSORS];

static float target(size_t i) { return (float)(i % 10) / 8; }

int main(void)
{
    fo_options adamw = {
        .lr = 0.1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, .decoupled_weight_decay = 1,
    };
    fo_plan *plan = fo_plan_new(TENSORS);
    if (!plan) return 1;
    for (int k = 0; k < TENSORS; k++)
        plan->tensors[k] = (fo_tensor){
            .rule = FO_RULE_adam, .options = &adamw, .n = lengths[k], .count.at = &steps[k],
            .param = {.at = w[k], .storage = FO_F32}, .grad = {.at = gradient[k], .storage = FO_F32},
            .state = {{.at = exp_avg[k], .storage = FO_F32}, {.at = exp_avg_sq[k], .storage = FO_F32}},
        };
    if (!fo_plan_cut(plan)) return 1;

    fo_load_openmp();
    const fo_request request = {
        .unscale = 1, .clip_norm = 1, .clip_value = INFINITY, .threads = FO_ANY_THREADS,
    };
    for (int step = 1; step <= STEPS; step++) {
        for (int k = 0; k < TENSORS; k++)
            for (size_t i = 0; i < lengths[k]; i++) gradient[k][i] = w[k][i] - target(i);
        fo_result result = fo_step(fo_best_kernels(), plan, &request);
        if (result.unfit) return 1; /* an option is out of range: fo_scalar_name(result.unfit - 1) says which scalar */
        if (step % 20 == 0) printf("step %3d  norm %.9g  w[9] %.9g\n", step, result.norm, (double)w[1][9]);
    }
    fo_plan_free(plan);
    return 0;
}
