/* What the rules read in a step: formed in double from the options, and narrowed once. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "fastopt.h"

/* Of rules.h only the scalars are used here: for them it does not matter what the arithmetic is. */
#define FO_INLINE static inline
#define T double
#define NAMED(name) name
#define HYPER fo_hyper_f64
#define FMA(a, b, c) ((a) * (b) + (c))
#define SQRT(x) sqrt(x)
#include "rules.h"

static void (*const scalars_of[FO_RULES])(const fo_options *, double, double *, bool, fo_hyper_f64 *) = {
#define RULE(name, states) [FO_RULE_##name] = name##_scalars,
#define FLOOR(name, states)
#include "rules.def"
};

static void (*const settle_of[FO_RULES])(const fo_options *, const double *, double, fo_hyper_f64 *) = {
#define MEASURE(name, sums, scope, states) [FO_RULE_##name] = name##_settle,
#include "rules.def"
};

static void (*const advance_of[FO_RULES])(fo_options *, const double *) = {
#define ADVANCE(name) [FO_RULE_##name] = name##_advance,
#include "rules.def"
};

void fo_advance(fo_rule rule, fo_options *options, const double *sums) { advance_of[rule](options, sums); }

static void settle_count(const fo_options *o, const double *sum, double n, fo_hyper_f64 *h)
{
    cautious_settle(o, sum[0], n, h);
}

/* The distance from 1 to the next number. (A parameter in two pieces is one of float32.) */
static double epsilon_of(fo_storage storage)
{
    switch (storage) {
    case FO_F64: return DBL_EPSILON;
    case FO_F16: return 0x1p-10;
    case FO_BF16:
    case FO_BF16_STOCHASTIC: return 0x1p-7;
    default: return FLT_EPSILON;
    }
}

/* What does not depend on the rule. A flush of infinity says that states may count as zero however small the others
 * are; a rule that divides by the root of one names the least that the root is added to. */
static void common_scalars(const fo_options *o, double scale, double clip_value, fo_storage stored, fo_hyper_f64 *h)
{
    *h = (fo_hyper_f64){.scale = o->maximize != 0 ? -scale : scale, .clip = clip_value, .decay = 1, .flush = INFINITY};
    h->epsilon = epsilon_of(stored);
    h->cautious = o->cautious;
    h->cautious_decay = o->cautious_decay;
    if (o->decoupled_weight_decay != 0)
        h->decay = 1 - (o->fixed_decay != 0              ? 1
                        : o->corrected_weight_decay != 0 ? o->lr * o->lr / o->peak_lr
                                                         : o->lr) *
                           o->weight_decay;
    else
        h->l2 = o->weight_decay;
}

/* A state is stored as zero below twice the smallest normal number: one that the next decay (by half at the most, say)
 * would bring among the subnormal ones is slow already. But not if the root of that shows beside `least`. */
static double flush_below(double least, double smallest_normal, double epsilon)
{
    return least * epsilon / 4 >= sqrt(2 * smallest_normal) ? 2 * smallest_normal : 0;
}

/* What is not zero stays so: an epsilon is there to keep 0/0 away. */
static float narrowed(double x) { return x != 0 && (float)x == 0 ? copysignf(FLT_TRUE_MIN, (float)x) : (float)x; }

int fo_form_scalars(fo_rule rule, const fo_options *options, double step, double *numbers, bool single, double scale,
                    double clip_value, fo_storage stored, fo_hyper *hyper)
{
    const bool wide = stored == FO_F64;
    common_scalars(options, scale, clip_value, stored, &hyper->f64);
    memcpy(hyper->before, numbers, sizeof hyper->before);
    if (scalars_of[rule]) scalars_of[rule](options, step, numbers, single, &hyper->f64);
    const double *in_double = (const double *)&hyper->f64;
    float *in_float = (float *)&hyper->f32;
    for (int k = 0; k < FO_SCALARS; k++) {
        in_float[k] = narrowed(in_double[k]);
        bool may_be_any = k == FO_SCALAR_clip || k == FO_SCALAR_flush || k == FO_SCALAR_high ||
                          (k == FO_SCALAR_scale && !isfinite(scale));
        if (!may_be_any && !isfinite(wide ? in_double[k] : (double)in_float[k])) return 1 + k;
    }
    hyper->f32.flush = (float)flush_below(hyper->f64.flush, FLT_MIN, FLT_EPSILON);
    hyper->f64.flush = flush_below(hyper->f64.flush, DBL_MIN, DBL_EPSILON);
    return 0;
}

void fo_settle_scalars(fo_rule rule, const fo_options *options, const double *sums, double n, fo_hyper *hyper)
{
    const fo_hyper_f64 formed = hyper->f64;
    (settle_of[rule] ? settle_of[rule] : settle_count)(options, sums, n, &hyper->f64);
    const double *before = (const double *)&formed, *in_double = (const double *)&hyper->f64;
    float *in_float = (float *)&hyper->f32;
    for (int k = 0; k < FO_SCALARS; k++)
        if (memcmp(&in_double[k], &before[k], sizeof *before) != 0) in_float[k] = narrowed(in_double[k]);
}
