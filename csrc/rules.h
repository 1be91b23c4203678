/* THE MATHS: two functions a rule, of the same name; two more if it has to know sums first.
 *
 * RULE_OF(name) is the rule, a pure function of one element, generic in the arithmetic type T.
 *     In:  the parameter p, its gradient g (scaled, clipped and with L2 decay already in it), the states s[],
 *          and the step's scalars h.
 *     Out: the update u; s[] is updated in place. The parameter is written in one place for all, loops.h:
 *              p = h->decay*p + h->a*u
 *          where decay is 1 - lr*weight_decay (decoupled decay) or 1, and a is -lr, with a bias correction where due.
 * SCALARS_OF(name) forms the scalars of its t-th step (the first is 1) from the options o, once a step and in double.
 *     Those that every rule has are there already (scalars.c). Conventions on which frameworks disagree are decided
 *     here, so that they need no kernels of their own: the forms of velocity, where epsilon goes, how bias is corrected.
 *     What it needs to remember from step to step is in number[], as many as the rule's row of NUMBERS says: what they
 *     were before the step is replaced by what they are after it.
 * MEASURE_OF(name) gives an element's part of the sums, which are taken in double; s[] may be updated (rules.def).
 * SETTLE_OF(name) forms the scalars that depend on the sums: over a tensor, or over all tensors of the rule (rules.def);
 *     n elements were summed.
 *
 * FMA(a, b, c) is a*b + c, rounded once where the instruction set can. Square root and division are IEEE's. */

#define RULE_OF(name) FO_INLINE T NAMED(name)(T p, T g, T *s, const HYPER *h)
#define SCALARS_OF(name)                                                                                             \
    FO_INLINE void NAMED(name##_scalars)(const fo_options *o, double t, double *number, fo_hyper_f64 *h)
#define SAME_SCALARS(name, other) SCALARS_OF(name) { NAMED(other##_scalars)(o, t, number, h); }
#define MEASURE_OF(name) FO_INLINE void NAMED(name##_measure)(T p, T g, T *s, const HYPER *h, double *sum)
#define SAME_MEASURE(name, other) MEASURE_OF(name) { NAMED(other##_measure)(p, g, s, h, sum); }
#define SETTLE_OF(name)                                                                                              \
    FO_INLINE void NAMED(name##_settle)(const fo_options *o, const double *sum, double n, fo_hyper_f64 *h)
#define SAME_SETTLE(name, other) SETTLE_OF(name) { NAMED(other##_settle)(o, sum, n, h); }

/* (Neither need use all that it is given.) */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"

/* Gradient descent (Robbins & Monro 1951):  u = g */
RULE_OF(sgd)
{
    return g;
}

SCALARS_OF(sgd)
{
    h->a = -o->lr;
}

/* Momentum (Polyak 1964; Sutskever et al. 2013) and Nesterov's (1983) look-ahead, in all published forms:
 *   v = mu*v + c*g,   u = k1*v + k2*g */
RULE_OF(momentum)
{
    s[0] = FMA(h->mu, s[0], h->c * g);
    return FMA(h->k1, s[0], h->k2 * g);
}

/* (The first velocity of velocity="sum" is the gradient, whatever the dampening.) */
SCALARS_OF(momentum)
{
    enum { SUM, MEAN, STEP };
    int velocity = (int)o->velocity;
    h->a = velocity == STEP ? 1 : -o->lr;
    h->mu = o->momentum;
    h->c = velocity == STEP ? -o->lr : velocity == MEAN ? 1 - o->momentum : t == 1 ? 1 : 1 - o->dampening;
    h->k1 = o->nesterov != 0 ? o->momentum : 1;
    h->k2 = o->nesterov != 0 ? h->c : 0;
}

/* For sqrt(v/correction + eps_root) + eps: beside these, v may count as zero or not. */
FO_INLINE void NAMED(add_epsilons)(const fo_options *o, double correction, fo_hyper_f64 *h)
{
    h->eps = o->eps;
    h->eps_root = o->eps_root * correction;
    h->flush = fmax(h->eps * sqrt(correction), sqrt(h->eps_root));
}

/* AdaGrad (Duchi, Hazan & Singer 2011):  s = s + g^2,   u = g / (sqrt(s + eps_root) + eps) */
RULE_OF(adagrad)
{
    s[0] = FMA(g, g, s[0]);
    return g / (SQRT(s[0] + h->eps_root) + h->eps);
}

SCALARS_OF(adagrad)
{
    h->a = -o->lr / (1 + (t - 1) * o->lr_decay);
    NAMED(add_epsilons)(o, 1, h);
}

/* RMSprop (Tieleman & Hinton 2012):  s = alpha*s + (1-alpha)*g^2,   u = g / (sqrt(s + eps_root) + eps) */
RULE_OF(rmsprop)
{
    s[0] = FMA(h->alpha, s[0], h->alphac * g * g);
    return g / (SQRT(s[0] + h->eps_root) + h->eps);
}

SCALARS_OF(rmsprop)
{
    h->a = -o->lr;
    h->alpha = o->alpha;
    h->alphac = 1 - o->alpha;
    h->mu = o->momentum;
    NAMED(add_epsilons)(o, 1, h);
}

/* ... with momentum on the scaled gradient:  b = mu*b + g / (...),   u = b */
RULE_OF(rmsprop_momentum)
{
    s[1] = FMA(h->mu, s[1], NAMED(rmsprop)(p, g, s, h));
    return s[1];
}

SAME_SCALARS(rmsprop_momentum, rmsprop)

/* ... centered (Graves 2013): the root of the variance s - a^2, where a = alpha*a + (1-alpha)*g.
 * Rounding can push a variance of zero below zero; it counts as zero. */
FO_INLINE T NAMED(centered)(T g, T *s, T *mean, const HYPER *h)
{
    *s = FMA(h->alpha, *s, h->alphac * g * g);
    *mean = FMA(h->alpha, *mean, h->alphac * g);
    T variance = FMA(-*mean, *mean, *s);
    return g / (SQRT((variance < 0 ? 0 : variance) + h->eps_root) + h->eps);
}

RULE_OF(rmsprop_centered)
{
    return NAMED(centered)(g, &s[0], &s[1], h);
}

SAME_SCALARS(rmsprop_centered, rmsprop)

RULE_OF(rmsprop_centered_momentum)
{
    s[1] = FMA(h->mu, s[1], NAMED(centered)(g, &s[0], &s[2], h));
    return s[1];
}

SAME_SCALARS(rmsprop_centered_momentum, rmsprop)

/* Adam (Kingma & Ba 2015) and AdamW (Loshchilov & Hutter 2019):
 *   m = beta1*m + (1-beta1)*g,   v = beta2*v + (1-beta2)*g^2,
 *   u = m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps)
 * with both bias corrections folded into scalars: a = -lr/(1-beta1^t) and rbc2 = 1/sqrt(1-beta2^t). */
RULE_OF(adam)
{
    s[0] = FMA(h->beta1, s[0], h->beta1c * g);
    s[1] = FMA(h->beta2, s[1], h->beta2c * g * g);
    return s[0] / FMA(SQRT(s[1] + h->eps_root), h->rbc2, h->eps);
}

/* Both bias corrections as factors: sqrt(v/bc2 + eps_root) = sqrt(v + bc2*eps_root) / sqrt(bc2). */
SCALARS_OF(adam)
{
    double correction2 = 1 - pow(o->beta2, t);
    h->a = -o->lr / (1 - pow(o->beta1, t));
    h->beta1 = o->beta1;
    h->beta1c = 1 - o->beta1;
    h->beta2 = o->beta2;
    h->beta2c = 1 - o->beta2;
    h->rbc2 = 1 / sqrt(correction2);
    NAMED(add_epsilons)(o, correction2, h);
}

/* AMSGrad (Reddi, Kale & Kumar 2018): Adam over the largest v seen so far. */
RULE_OF(amsgrad)
{
    s[0] = FMA(h->beta1, s[0], h->beta1c * g);
    s[1] = FMA(h->beta2, s[1], h->beta2c * g * g);
    s[2] = s[1] <= s[2] ? s[2] : s[1];
    return s[0] / FMA(SQRT(s[2] + h->eps_root), h->rbc2, h->eps);
}

SAME_SCALARS(amsgrad, adam)

/* Lion (Chen et al. 2023):  c = beta1*m + (1-beta1)*g,   u = sign(c),   m = beta2*m + (1-beta2)*g */
RULE_OF(lion)
{
    T c = FMA(h->beta1, s[0], h->beta1c * g);
    s[0] = FMA(h->beta2, s[0], h->beta2c * g);
    return c > 0 ? 1 : c < 0 ? -1 : c;
}

/* (However small m is, its sign counts: it is never flushed.) */
SCALARS_OF(lion)
{
    h->a = -o->lr;
    h->beta1 = o->beta1;
    h->beta1c = 1 - o->beta1;
    h->beta2 = o->beta2;
    h->beta2c = 1 - o->beta2;
    h->flush = 0;
}

/* LARS (You, Gitman & Ginsburg 2017): momentum on (g + wd*p) * trust, with one ratio a tensor,
 *   trust = trust_coeff * |p| / (|g| + wd*|p| + eps),   1 where a norm is 0 */
FO_INLINE T NAMED(trusted)(T p, T g, const HYPER *h) { return FMA(h->wd, p, g) * h->trust; }

RULE_OF(lars) { return NAMED(trusted)(p, g, h); }

RULE_OF(lars_momentum)
{
    return NAMED(momentum)(p, NAMED(trusted)(p, g, h), s, h);
}

SCALARS_OF(lars_momentum)
{
    NAMED(momentum_scalars)(o, t, number, h);
    h->wd = h->l2;
    h->l2 = 0;
}

SAME_SCALARS(lars, lars_momentum)

MEASURE_OF(lars)
{
    sum[0] = (double)p * (double)p;
    sum[1] = (double)g * (double)g;
}

SAME_MEASURE(lars_momentum, lars)

SETTLE_OF(lars)
{
    double norm_p = sqrt(sum[0]), norm_g = sqrt(sum[1]);
    h->trust = 1;
    if (h->wd == 0 && o->always_adapt == 0) return;
    if (norm_p != 0 && norm_g != 0) h->trust = o->trust_coeff * norm_p / (norm_g + h->wd * norm_p + o->eps);
    if (o->trust_clip != 0 && !(h->trust / o->lr < 1)) h->trust = 1;
    else if (o->trust_clip != 0) h->trust /= o->lr;
}

SAME_SETTLE(lars_momentum, lars)

#pragma GCC diagnostic pop

#undef RULE_OF
#undef SCALARS_OF
#undef SAME_SCALARS
#undef MEASURE_OF
#undef SAME_MEASURE
#undef SETTLE_OF
#undef SAME_SETTLE
