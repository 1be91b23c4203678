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
 *     were before the step is replaced by what they are after it. (They may be kept in single precision.)
 * ADVANCE_OF(name) brings the numbers among the options that the rule keeps from step to step, the same for all
 *     parameters, to after a step; sum[] is what was measured over all of them.
 * MEASURE_OF(name) gives an element's part of the sums, which are taken in double; s[] may be updated (rules.def).
 * SETTLE_OF(name) forms the scalars that depend on the sums: over a tensor, or over all tensors of the rule (rules.def);
 *     n elements were summed.
 *
 * FMA(a, b, c) is a*b + c, rounded once where the instruction set can. Square root and division are IEEE's. */

#define RULE_OF(name) FO_INLINE T NAMED(name)(T p, T g, T *s, const HYPER *h)
#define SCALARS_OF(name)                                                                                             \
    FO_INLINE void NAMED(name##_scalars)(const fo_options *o, double t, double *number, bool single, fo_hyper_f64 *h)
#define SAME_SCALARS(name, other) SCALARS_OF(name) { NAMED(other##_scalars)(o, t, number, single, h); }
#define ADVANCE_OF(name) FO_INLINE void NAMED(name##_advance)(fo_options *o, const double *sum)
#define SAME_ADVANCE(name, other) ADVANCE_OF(name) { NAMED(other##_advance)(o, sum); }
#define MEASURE_OF(name) FO_INLINE void NAMED(name##_measure)(T p, T g, T *s, const HYPER *h, double *sum)
#define SAME_MEASURE(name, other) MEASURE_OF(name) { NAMED(other##_measure)(p, g, s, h, sum); }
#define SETTLE_OF(name)                                                                                              \
    FO_INLINE void NAMED(name##_settle)(const fo_options *o, const double *sum, double n, fo_hyper_f64 *h)
#define SAME_SETTLE(name, other) SETTLE_OF(name) { NAMED(other##_settle)(o, sum, n, h); }

/* (None need use all that it is given.) */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"

/* NaN stays NaN, and zero zero. */
FO_INLINE T NAMED(sign)(T x) { return x > 0 ? 1 : x < 0 ? -1 : x; }

FO_INLINE T NAMED(magnitude)(T x) { return x < 0 ? -x : x; }

FO_INLINE T NAMED(clamped)(T x, T low, T high)
{
    x = x < low ? low : x;
    return high < x ? high : x;
}

/* Cautious updates (Liang et al. 2024): where update and gradient disagree in sign there is none, and the others are
 * larger by as much, u = [u*g > 0] * u / max(mean of [u*g > 0] over the tensor, 1e-3). */
FO_INLINE T NAMED(cautious)(T u, T g, const HYPER *h) { return h->cautious != 0 && u * g <= 0 ? 0 : u; }

FO_INLINE double NAMED(agrees)(T u, T g) { return u * g > 0 ? 1 : 0; }

FO_INLINE void NAMED(cautious_settle)(const fo_options *o, double agreeing, double n, fo_hyper_f64 *h)
{
    if (o->cautious != 0) h->a /= fmax(agreeing / n, 1e-3);
}

/* Cautious decay: where update and parameter disagree in sign, the parameter does not decay. */
FO_INLINE T NAMED(cautious_decay)(T u, T p, const HYPER *h) { return h->cautious_decay != 0 && u * p < 0 ? 1 : h->decay; }

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
    h->eps = o->eps_hat ? o->eps / sqrt(correction) : o->eps;
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

/* ... row-wise (FBGEMM): s is one number a row, to which the mean of g^2 there is added. */
RULE_OF(adagrad_rowwise) { return g / (SQRT(s[0] + h->eps_root) + h->eps); }

SCALARS_OF(adagrad_rowwise)
{
    NAMED(adagrad_scalars)(o, t, number, single, h);
    h->beta2 = h->beta2c = 1;
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
FO_INLINE void NAMED(average)(T g, T *s, const HYPER *h)
{
    s[0] = FMA(h->beta1, s[0], h->beta1c * g);
    s[1] = FMA(h->beta2, s[1], h->beta2c * g * g);
}

FO_INLINE void NAMED(form_decays)(const fo_options *o, fo_hyper_f64 *h)
{
    h->beta1 = o->beta1;
    h->beta1c = 1 - o->beta1;
    h->beta2 = o->beta2;
    h->beta2c = 1 - o->beta2;
}

FO_INLINE T NAMED(normalized)(T m, T v, const HYPER *h) { return m / FMA(SQRT(v + h->eps_root), h->rbc2, h->eps); }

RULE_OF(adam)
{
    NAMED(average)(g, s, h);
    return NAMED(normalized)(s[0], s[1], h);
}

/* Both bias corrections as factors: sqrt(v/bc2 + eps_root) = sqrt(v + bc2*eps_root) / sqrt(bc2). */
SCALARS_OF(adam)
{
    double correction2 = 1 - pow(o->beta2, t);
    NAMED(form_decays)(o, h);
    h->a = -o->lr / (1 - pow(o->beta1, t));
    h->rbc2 = 1 / sqrt(correction2);
    NAMED(add_epsilons)(o, correction2, h);
}

/* ... row-wise (FBGEMM): v is one number a row, a moving average of the mean of g^2 there. */
RULE_OF(adam_rowwise)
{
    s[0] = FMA(h->beta1, s[0], h->beta1c * g);
    return NAMED(normalized)(s[0], s[1], h);
}

SAME_SCALARS(adam_rowwise, adam)

/* AMSGrad (Reddi, Kale & Kumar 2018): Adam over the largest v seen so far. */
RULE_OF(amsgrad)
{
    NAMED(average)(g, s, h);
    s[2] = s[1] <= s[2] ? s[2] : s[1];
    return NAMED(normalized)(s[0], s[2], h);
}

SAME_SCALARS(amsgrad, adam)

/* NAdam (Dozat 2016): Adam with Nesterov's look-ahead, and a momentum mu that rises:
 *   u = (mu_next/(1 - product*mu_next)*m + (1-mu)/(1 - product)*g) / (sqrt(v/(1-beta2^t)) + eps)
 * where product is that of all mu so far, in the precision that it is kept in. */
RULE_OF(nadam)
{
    NAMED(average)(g, s, h);
    return FMA(h->k1, s[0], h->k2 * g) / FMA(SQRT(s[1]), h->rbc2, h->eps);
}

FO_INLINE double NAMED(nadam_mu)(const fo_options *o, double t)
{
    return o->beta1 * (1 - 0.5 * pow(0.96, t * o->momentum_decay));
}

SCALARS_OF(nadam)
{
    double mu = NAMED(nadam_mu)(o, t), next = NAMED(nadam_mu)(o, t + 1);
    NAMED(adam_scalars)(o, t, number, single, h);
    number[0] = single ? (float)number[0] * (float)mu : number[0] * mu;
    h->a = -o->lr;
    h->k1 = next / (1 - number[0] * next);
    h->k2 = (1 - mu) / (1 - number[0]);
}

/* RAdam (Liu et al. 2020): Adam's rate times r, where the variance of v has a bound; before, momentum alone:
 *   u = r*sqrt(1-beta2^t) * m/(1-beta1^t) / (sqrt(v) + eps)   or   m/(1-beta1^t) */
FO_INLINE T NAMED(rectified)(T v, const HYPER *h) { return h->rbc2 != 0 ? FMA(SQRT(v), h->rbc2, h->eps) : 1; }

RULE_OF(radam)
{
    NAMED(average)(g, s, h);
    return s[0] / NAMED(rectified)(s[1], h);
}

/* The length of the average that v is, as a plain one of the latest squares, and its limit. */
FO_INLINE double NAMED(longest)(const fo_options *o) { return 2 / (1 - o->beta2) - 1; }

FO_INLINE double NAMED(length)(const fo_options *o, double t)
{
    return NAMED(longest)(o) - 2 * t * pow(o->beta2, t) / (1 - pow(o->beta2, t));
}

/* (A rbc2 of zero says that it is not rectified.) */
FO_INLINE void NAMED(rectify)(const fo_options *o, double t, bool is_rectified, fo_hyper_f64 *h)
{
    double n = NAMED(length)(o, t), limit = NAMED(longest)(o);
    h->a = -o->lr / (1 - pow(o->beta1, t));
    h->rbc2 = is_rectified;
    if (is_rectified)
        h->a *= sqrt((1 - pow(o->beta2, t)) * (n - 4) * (n - 2) * limit / ((limit - 4) * (limit - 2) * n));
}

SCALARS_OF(radam)
{
    NAMED(form_decays)(o, h);
    NAMED(add_epsilons)(o, 1, h);
    NAMED(rectify)(o, t, NAMED(length)(o, t) > 5, h);
}

/* Adamax (Kingma & Ba 2015):  u = max(beta2*u, |g| + eps),   m / (1-beta1^t) / u */
RULE_OF(adamax)
{
    s[0] = FMA(h->beta1, s[0], h->beta1c * g);
    T faded = h->beta2 * s[1], now = NAMED(magnitude)(g) + h->eps;
    s[1] = now <= faded ? faded : now;
    return s[0] / s[1];
}

SCALARS_OF(adamax)
{
    NAMED(form_decays)(o, h);
    NAMED(add_epsilons)(o, 1, h);
    h->a = -o->lr / (1 - pow(o->beta1, t));
}

/* Adadelta (Zeiler 2012):  s = rho*s + (1-rho)*g^2,   u = sqrt(d + eps)/sqrt(s + eps) * g,   d = rho*d + (1-rho)*u^2
 * (Of the quotient one root would do, but it is out of range where the roots are not.) */
RULE_OF(adadelta)
{
    s[0] = FMA(h->alpha, s[0], h->alphac * g * g);
    T u = SQRT(s[1] + h->eps_root) / SQRT(s[0] + h->eps_root) * g;
    s[1] = FMA(h->alpha, s[1], h->alphac * u * u);
    return u;
}

SCALARS_OF(adadelta)
{
    h->a = -o->lr;
    h->alpha = o->rho;
    h->alphac = 1 - o->rho;
    h->eps_root = o->eps;
    h->flush = sqrt(o->eps);
}

/* Averaged gradient descent (Polyak & Juditsky 1992, as in Bottou's code):
 *   p = (1 - lambd*eta)*p - eta*g,   ax = ax + mu*(p - ax),   and then   eta = lr/(1 + lambd*lr*t)^alpha,
 *   mu = 1/max(1, t - t0) */
RULE_OF(asgd)
{
    T next = FMA(h->a, g, h->decay * p);
    s[0] = h->mu == 1 ? next : FMA(h->mu, next - s[0], s[0]);
    return g;
}

/* (The first eta is the rate of the first step.) */
SCALARS_OF(asgd)
{
    double eta = t != 1 ? number[0] : single ? (float)o->lr : o->lr;
    h->a = -eta;
    h->decay = 1 - o->lambd * eta;
    h->mu = number[1];
    number[0] = o->lr / pow(1 + o->lambd * o->lr * t, o->alpha);
    number[1] = 1 / fmax(1, t - o->t0);
}

/* Rprop (Riedmiller & Braun 1993): a step size for each entry that grows by eta2 while the gradient keeps its sign, and
 * shrinks by eta1 where that changes; there, the gradient counts as zero. */
RULE_OF(rprop)
{
    T agreement = g * s[0];
    T factor = agreement > 0 ? h->k2 : agreement < 0 ? h->k1 : agreement == 0 ? 1 : agreement;
    s[0] = agreement < 0 ? 0 : g;
    s[1] = NAMED(clamped)(FMA(h->mu, s[1], h->c) * factor, h->low, h->high);
    return s[0] > 0 ? s[1] : s[0] < 0 ? -s[1] : s[0];
}

/* (The first step size is the rate of the first step.) */
SCALARS_OF(rprop)
{
    h->a = -1;
    h->mu = t != 1;
    h->c = t == 1 ? o->lr : 0;
    h->k1 = o->eta1;
    h->k2 = o->eta2;
    h->low = o->step_size1;
    h->high = o->step_size2;
    h->flush = 0;
}

/* Lion (Chen et al. 2023):  c = beta1*m + (1-beta1)*g,   u = sign(c),   m = beta2*m + (1-beta2)*g */
RULE_OF(lion)
{
    T c = FMA(h->beta1, s[0], h->beta1c * g);
    s[0] = FMA(h->beta2, s[0], h->beta2c * g);
    return NAMED(sign)(c);
}

/* (However small m is, its sign counts: it is never flushed.) */
SCALARS_OF(lion)
{
    NAMED(form_decays)(o, h);
    h->a = -o->lr;
    h->flush = 0;
}

/* Signum (Bernstein et al. 2018):  m = mu*m + (1-mu)*g,   u = sign(m);   and without momentum, sign(g) */
RULE_OF(signsgd)
{
    return NAMED(sign)(g);
}

RULE_OF(signum)
{
    s[0] = FMA(h->mu, s[0], h->c * g);
    return NAMED(sign)(s[0]);
}

SCALARS_OF(signum)
{
    h->a = -o->lr;
    h->mu = o->momentum;
    h->c = 1 - o->momentum;
    h->flush = 0;
}

SAME_SCALARS(signsgd, signum)

/* AdEMAMix (Pagliardini, Ablin & Grangier 2024): Adam with a second, slow average of the gradient, not corrected:
 *   l = beta3*l + (1-beta3)*g,   u = (m/(1-beta1^t) + alpha*l) / (sqrt(v/(1-beta2^t)) + eps) */
RULE_OF(ademamix)
{
    NAMED(average)(g, s, h);
    s[2] = FMA(h->beta3, s[2], h->beta3c * g);
    return FMA(h->k1, s[0], h->k2 * s[2]) / FMA(SQRT(s[1]), h->rbc2, h->eps);
}

/* While they warm up, alpha rises in proportion to t, and the half-life of l from that of m to its own. */
SCALARS_OF(ademamix)
{
    double fast = log(o->beta1), slow = log(o->beta3), part = t / o->t_beta3;
    NAMED(adam_scalars)(o, t, number, single, h);
    h->a = -o->lr;
    h->k1 = 1 / (1 - pow(o->beta1, t));
    h->k2 = t < o->t_alpha ? o->alpha * t / o->t_alpha : o->alpha;
    h->beta3 = part < 1 ? exp(fast * slow / ((1 - part) * slow + part * fast)) : o->beta3;
    h->beta3c = 1 - h->beta3;
}

/* ADOPT (Taniguchi et al. 2024): g is divided by the average of the squares before it, and clipped:
 *   n = clip(g / max(sqrt(v), eps), (t-1)^clip_exp),   m = beta1*m + (1-beta1)*n,   u = m,   and then v as Adam's */
RULE_OF(adopt)
{
    T root = SQRT(s[1]);
    T n = NAMED(clamped)(g / (root < h->eps ? h->eps : root), -h->high, h->high);
    s[0] = h->beta1c != 0 ? FMA(h->beta1, s[0], h->beta1c * n) : s[0];
    s[1] = FMA(h->beta2, s[1], h->beta2c * g * g);
    return s[0];
}

/* (The first step is none: v becomes g^2.) */
SCALARS_OF(adopt)
{
    NAMED(form_decays)(o, h);
    NAMED(add_epsilons)(o, 1, h);
    h->a = -o->lr;
    h->high = isnan(o->clip_exp) ? INFINITY : pow(t - 1, o->clip_exp);
    if (t > 1) return;
    h->a = 0;
    h->decay = 1;
    h->beta1c = 0;
    h->beta2 = h->beta2c = 1;
}

/* LaProp (Ziyin, Wang & Ueda 2020): momentum on the scaled gradient, with the rates in it:
 *   m = beta1*m + (1-beta1)*lr * g / (sqrt(v/bc2) + eps),   u = m/bc1,
 * where bc1 = (average of the rates)/lr and bc2 = (average of ones), each as m and v are averages. */
RULE_OF(laprop)
{
    s[1] = FMA(h->beta2, s[1], h->beta2c * g * g);
    s[0] = FMA(h->beta1, s[0], h->c * (g / FMA(SQRT(s[1]), h->rbc2, h->eps)));
    return s[0];
}

/* (Decay comes after the update.) */
SCALARS_OF(laprop)
{
    NAMED(form_decays)(o, h);
    number[0] = o->beta1 * number[0] + h->beta1c * o->lr;
    number[1] = o->beta2 * number[1] + h->beta2c;
    h->a = number[0] != 0 ? -o->lr / number[0] * h->decay : 0;
    h->c = h->beta1c * o->lr;
    h->rbc2 = 1 / sqrt(number[1]);
    NAMED(add_epsilons)(o, number[1], h);
}

/* AdaBelief (Zhuang et al. 2020): Adam with the variance of g about m,
 *   s = beta2*s + (1-beta2)*(g-m)^2 + eps,   u = m/(1-beta1^t) / (sqrt(s/(1-beta2^t)) + eps),
 * or rectified as RAdam. */
FO_INLINE void NAMED(average_and_variance)(T g, T *s, const HYPER *h)
{
    s[0] = FMA(h->beta1, s[0], h->beta1c * g);
    T surprise = g - s[0];
    s[1] = FMA(h->beta2, s[1], h->beta2c * surprise * surprise) + h->eps_root;
}

RULE_OF(adabelief)
{
    NAMED(average_and_variance)(g, s, h);
    return s[0] / NAMED(rectified)(s[1], h);
}

/* (What is rectified is not divided by the largest.) */
RULE_OF(adabelief_amsgrad)
{
    NAMED(average_and_variance)(g, s, h);
    s[2] = s[1] <= s[2] ? s[2] : s[1];
    return s[0] / NAMED(rectified)(h->mu != 0 ? s[2] : s[1], h);
}

SCALARS_OF(adabelief)
{
    double n = NAMED(length)(o, t);
    NAMED(form_decays)(o, h);
    NAMED(rectify)(o, t, o->rectify != 0 && n >= 5, h);
    if (o->rectify != 0 && n < 5 && o->degenerated_to_sgd == 0) h->a = 0;
    if (o->rectify == 0) h->rbc2 = 1 / sqrt(1 - pow(o->beta2, t));
    h->mu = o->rectify == 0;
    h->eps = h->eps_root = o->eps;
    h->flush = sqrt(o->eps);
}

SAME_SCALARS(adabelief_amsgrad, adabelief)

/* Adan (Xie et al. 2022), with d = g - (g of the step before):
 *   m = beta1*m + (1-beta1)*g,   e = beta2*e + (1-beta2)*d,   n = beta3*n + (1-beta3)*(g + beta2*d)^2,
 *   u = (m/(1-beta1^t) + beta2*e/(1-beta2^t)) / (sqrt(n/(1-beta3^t)) + eps) */
RULE_OF(adan)
{
    T d = h->c * (g + s[3]), ahead = FMA(h->beta2, d, g);
    s[0] = FMA(h->beta1, s[0], h->beta1c * g);
    s[1] = FMA(h->beta3, s[1], h->beta3c * ahead * ahead);
    s[2] = FMA(h->beta2, s[2], h->beta2c * d);
    s[3] = -g;
    return FMA(h->k1, s[0], h->k2 * s[2]) / FMA(SQRT(s[1]), h->rbc2, h->eps);
}

/* (Decay comes after the update, as a proximal step p/(1 + lr*wd), or as in AdamW. The first d is zero.) */
SCALARS_OF(adan)
{
    double correction3 = 1 - pow(o->beta3, t);
    NAMED(form_decays)(o, h);
    if (o->no_prox == 0) h->decay = 1 / (1 + o->lr * o->weight_decay);
    h->a = o->no_prox == 0 ? -o->lr * h->decay : -o->lr;
    h->c = t != 1;
    h->beta3 = o->beta3;
    h->beta3c = 1 - o->beta3;
    h->k1 = 1 / (1 - pow(o->beta1, t));
    h->k2 = o->beta2 / (1 - pow(o->beta2, t));
    h->rbc2 = 1 / sqrt(correction3);
    NAMED(add_epsilons)(o, correction3, h);
}

/* Yogi (Zaheer et al. 2018): Adam whose v goes by (1-beta2)*g^2 at a time,  v = v - (1-beta2)*sign(v - g^2)*g^2 */
RULE_OF(yogi)
{
    s[0] = FMA(h->beta1, s[0], h->beta1c * g);
    T square = g * g;
    s[1] = FMA(-h->beta2c * NAMED(sign)(s[1] - square), square, s[1]);
    return s[0] / FMA(SQRT(s[1]), h->rbc2, h->eps);
}

SAME_SCALARS(yogi, adam)

/* FTRL-Proximal (McMahan et al. 2013):
 *   z = z + g - (sqrt(n + g^2) - sqrt(n))/lr * p,   n = n + g^2,
 *   p = 0 where |z| <= lambda_1, else (lambda_1*sign(z) - z) / ((beta + sqrt(n))/lr + lambda_2) */
RULE_OF(ftrl)
{
    T before = SQRT(s[1]);
    s[1] = FMA(g, g, s[1]);
    T root = SQRT(s[1]);
    s[0] += FMA(-h->k1 * (root - before), p, g);
    T size = NAMED(magnitude)(s[0]);
    return size <= h->low ? 0 : FMA(h->low, NAMED(sign)(s[0]), -s[0]) / (root + h->eps);
}

/* (A rate of zero leaves the parameters alone, as it does elsewhere.) */
SCALARS_OF(ftrl)
{
    h->a = o->lr;
    h->decay = o->lr == 0;
    h->k1 = o->lr != 0 ? 1 / o->lr : 0;
    h->low = o->lambda_1;
    h->eps = o->beta + o->lr * o->lambda_2;
    h->flush = h->eps;
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
    NAMED(momentum_scalars)(o, t, number, single, h);
    h->wd = h->l2;
    h->l2 = 0;
    h->trust = 1;
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
    if (norm_p != 0 && norm_g != 0) h->trust = o->trust_coeff * norm_p / (norm_g + h->wd * norm_p + o->eps);
    if (o->trust_clip != 0 && !(h->trust / o->lr < 1)) h->trust = 1;
    else if (o->trust_clip != 0) h->trust /= o->lr;
}

SAME_SETTLE(lars_momentum, lars)

/* LAMB (You et al. 2020): Adam with one ratio a tensor,
 *   w = m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps) + wd*p,   p = p - lr * |p|/|w| * w,   1 where a norm is 0 */
RULE_OF(lamb) { return NAMED(normalized)(s[0], s[1], h); }

SCALARS_OF(lamb)
{
    NAMED(adam_scalars)(o, t, number, single, h);
    h->wd = h->l2;
    h->l2 = 0;
    if (o->grad_averaging == 0) h->beta1c = 1;
    if (o->bias_correction == 0) {
        h->a = -o->lr;
        h->rbc2 = 1;
        h->flush = h->eps;
    }
    bool adapts = o->weight_decay != 0 || o->always_adapt != 0;
    if (adapts && h->wd == 0) h->flush = 0; /* the ratio makes a step of w, however small it is */
}

/* |w|^2 is put together of these: what m is corrected by does not have to be known yet. */
MEASURE_OF(lamb)
{
    NAMED(average)(g, s, h);
    T u = NAMED(normalized)(s[0], s[1], h);
    double x = (double)(NAMED(cautious_decay)(u, p, h) * p), kept = (double)NAMED(cautious)(u, g, h);
    sum[0] = x * x;
    sum[1] = kept * kept;
    sum[2] = kept * x;
    sum[3] = NAMED(agrees)(u, g);
}

SETTLE_OF(lamb)
{
    NAMED(cautious_settle)(o, sum[3], n, h);
    double lr = o->lr, correction = lr != 0 ? -h->a / lr : 1;
    double norm_p = sqrt(sum[0]), trust = 1;
    double norm_w = sqrt(correction * correction * sum[1] + h->wd * (2 * correction * sum[2] + h->wd * sum[0]));
    if (o->weight_decay != 0 || o->always_adapt != 0) {
        if (norm_p != 0 && norm_w != 0) trust = norm_p / norm_w;
        if (o->trust_clip != 0 && trust > 1) trust = 1;
    }
    h->a *= trust;
    h->decay -= lr * trust * h->wd;
}

/* StableAdamW (Wortsman et al. 2023): AdamW whose rate is divided by max(1, root of the mean of g^2/v) of the tensor.
 * Bias is corrected in the rates of decay, beta*(1 - beta^(t-1))/(1 - beta^t), of the averages themselves. */
RULE_OF(stable_adamw) { return NAMED(normalized)(s[0], s[1], h); }

FO_INLINE double NAMED(unbiased)(double beta, double t) { return beta * (1 - pow(beta, t - 1)) / (1 - pow(beta, t)); }

SCALARS_OF(stable_adamw)
{
    NAMED(adam_scalars)(o, t, number, single, h);
    h->a = -o->lr;
    h->beta1 = NAMED(unbiased)(o->beta1, t);
    h->beta1c = 1 - h->beta1;
    h->beta2 = NAMED(unbiased)(o->beta2, t);
    h->beta2c = 1 - h->beta2;
    h->rbc2 = 1;
    h->flush = h->eps;
    h->c = o->eps * o->eps;
}

MEASURE_OF(stable_adamw)
{
    NAMED(average)(g, s, h);
    sum[0] = (double)(g / (s[1] < h->c ? h->c : s[1])) * (double)g;
    sum[1] = NAMED(agrees)(NAMED(normalized)(s[0], s[1], h), g);
}

SETTLE_OF(stable_adamw)
{
    double excess = sqrt(sum[0] / n);
    NAMED(cautious_settle)(o, sum[1], n, h);
    if (excess < 1) return;
    h->a /= excess;
    h->decay = 1 - (1 - h->decay) / excess;
}

/* Schedule-Free (Defazio et al. 2024): z takes the steps, the parameter is y, between z and x, the average of all z.
 * Without x itself, beta being what y has of it:
 *   y = y + c*(z - y) + lr*(beta*(1-c) - 1)*g,   z = z - lr*g,   c = weight / sum of all weights */
FO_INLINE T NAMED(schedule_free)(T y, T g, T *z, const HYPER *h)
{
    T before = h->first != 0 ? y : *z;
    *z = FMA(h->k2, g, before);
    return FMA(h->k1, g, h->c * (before - y));
}

RULE_OF(schedule_free_sgd) { return NAMED(schedule_free)(p, g, &s[0], h); }

RULE_OF(schedule_free_adamw)
{
    s[1] = FMA(h->beta2, s[1], h->beta2c * g * g);
    return NAMED(schedule_free)(p, FMA(h->wd, p, NAMED(normalized)(g, s[1], h)), &s[0], h);
}

FO_INLINE double NAMED(schedule_free_weight)(const fo_options *o) { return pow(o->k, o->r) * pow(o->lr_max, o->weight_lr_power); }

ADVANCE_OF(schedule_free_sgd)
{
    o->k += 1;
    o->scheduled_lr = o->lr * (o->k <= o->warmup_steps ? o->k / o->warmup_steps : 1);
    o->lr_max = fmax(o->scheduled_lr, o->lr_max);
    o->weight_sum += NAMED(schedule_free_weight)(o);
}

SAME_ADVANCE(schedule_free_adamw, schedule_free_sgd)

FO_INLINE void NAMED(schedule_free_scalars)(const fo_options *o, double beta, double t, fo_hyper_f64 *h)
{
    fo_options next = *o;
    NAMED(schedule_free_sgd_advance)(&next, NULL);
    h->a = 1;
    h->c = next.weight_sum != 0 ? NAMED(schedule_free_weight)(&next) / next.weight_sum : 0;
    h->k1 = next.scheduled_lr * (beta * (1 - h->c) - 1);
    h->k2 = -next.scheduled_lr;
    h->first = t == 1;
    h->flush = 0;
}

SCALARS_OF(schedule_free_sgd) { NAMED(schedule_free_scalars)(o, o->momentum, t, h); }

SCALARS_OF(schedule_free_adamw)
{
    NAMED(schedule_free_scalars)(o, o->beta1, t, h);
    h->wd = h->l2;
    h->l2 = 0;
    h->beta2 = o->beta2;
    h->beta2c = 1 - o->beta2;
    h->rbc2 = 1 / sqrt(1 - pow(o->beta2, o->k + 1));
    h->eps = o->eps;
    h->flush = h->eps / h->rbc2;
}

/* Prodigy (Mishchenko & Defazio 2024): Adam with gradients times d, which is learned, from how far the parameters p have
 * come from where they were, p0:
 *   numerator = beta3*numerator + sum of d/d0 * rate * g*(p0-p),   s = beta3*s + d/d0 * rate * g,
 *   d = max(d, numerator / sum of |s|),   rate = lr*d (before that) */
RULE_OF(prodigy) { return NAMED(normalized)(s[0], s[1], h); }

FO_INLINE double NAMED(prodigy_beta3)(const fo_options *o) { return isnan(o->beta3) ? sqrt(o->beta2) : o->beta3; }

FO_INLINE double NAMED(prodigy_rate)(const fo_options *o)
{
    bool corrects = o->use_bias_correction != 0;
    return o->d * o->lr * (corrects ? sqrt(1 - pow(o->beta2, o->k + 1)) / (1 - pow(o->beta1, o->k + 1)) : 1);
}

/* (A group whose rate is zero has no part in it: nothing of it changes.) */
SCALARS_OF(prodigy)
{
    double rate = NAMED(prodigy_rate)(o), moves = o->lr != 0;
    h->a = -rate;
    if (o->decoupled_weight_decay != 0) h->decay = 1 - rate * o->weight_decay;
    h->beta1 = moves ? o->beta1 : 1;
    h->beta1c = moves * o->d * (1 - o->beta1);
    h->beta2 = moves ? o->beta2 : 1;
    h->beta2c = moves * o->d * o->d * (1 - o->beta2);
    h->alpha = moves ? NAMED(prodigy_beta3)(o) : 1;
    h->alphac = moves * o->d / o->d0 * (o->safeguard_warmup != 0 ? o->d : rate);
    h->k1 = o->d / o->d0 * rate;
    h->k2 = moves;
    h->rbc2 = 1;
    h->eps = o->d * o->eps;
    h->first = t == 1;
    h->flush = h->eps;
}

MEASURE_OF(prodigy)
{
    NAMED(average)(g, s, h);
    s[2] = FMA(h->alpha, s[2], h->alphac * g);
    s[3] = h->first != 0 ? p : s[3];
    sum[0] = (double)(h->k1 * g) * (double)(s[3] - p);
    sum[1] = (double)(h->k2 * (s[2] < 0 ? -s[2] : s[2]));
}

ADVANCE_OF(prodigy)
{
    if (sum[1] == 0) return;
    o->k += 1;
    o->d_numerator = NAMED(prodigy_beta3)(o) * o->d_numerator + sum[0];
    o->d_denom = sum[1];
    o->d_hat = o->d_coef * o->d_numerator / o->d_denom;
    double least = o->d == o->d0 ? fmax(o->d, o->d_hat) : o->d;
    o->d_max = fmax(o->d_max, o->d_hat);
    o->d = fmin(o->d_max, least * o->growth_rate);
}

/* (The update is by d as it was, what it is divided by has d as it is now.) */
SETTLE_OF(prodigy)
{
    fo_options next = *o;
    NAMED(prodigy_advance)(&next, sum);
    h->eps = next.d * o->eps;
    if (o->beta1 == 0) h->a *= next.d / o->d;
    if (sum[1] == 0) h->a = 0, h->decay = 1;
}

/* Muon (Jordan et al. 2024): momentum whose matrix is made orthogonal by whoever calls,
 *   m = mu*m + (1-mu)*g,   u = orthogonal(w/|w|),   w = m or, Nesterov's, mu*m + (1-mu)*g
 * Without a caller that does, u = w/|w|. */
RULE_OF(muon) { return s[1]; }

SCALARS_OF(muon)
{
    h->a = -o->lr;
    h->mu = o->momentum;
    h->c = 1 - o->momentum;
    h->k1 = o->nesterov != 0 ? o->momentum : 1;
    h->k2 = o->nesterov != 0 ? h->c : 0;
}

MEASURE_OF(muon)
{
    s[1] = NAMED(momentum)(p, g, s, h);
    sum[0] = (double)s[1] * (double)s[1];
}

SETTLE_OF(muon)
{
    const double norm = sqrt(sum[0]), divisor = norm < o->eps ? o->eps : norm;
    h->trust = divisor == 0 ? 0 : 1 / divisor;
}

/* Adafactor (Shazeer & Stern 2018, as in torch): the squares of a matrix are known by the moving averages R and C of their
 * means over rows and columns, V = R*C / max(mean of R, eps1), those of a vector as they are:
 *   u = g / sqrt(max(V, eps1^2)),   p = p - alpha * u / max(1, rms(u)/d),
 *   alpha = max(eps2, rms(p)) * min(lr, 1/sqrt(t)),   and the averages forget by 1 - t^beta2_decay.
 * (Of a matrix a rule reads 1/sqrt(R) and 1/sqrt(C / max(mean of R, eps1)), formed once a row and once a column: no
 * element has a division or a root of its own.) */
FO_INLINE T NAMED(at_least)(T v, const HYPER *h) { return v < h->eps_root ? h->eps_root : v; }
FO_INLINE T NAMED(at_most)(T w, const HYPER *h) { return w > h->high ? h->high : w; }

RULE_OF(adafactor) { return g * NAMED(at_most)(s[0] * s[1], h); }

RULE_OF(adafactor_vector)
{
    s[0] = FMA(h->beta2, s[0], h->beta2c * g * g);
    return g / SQRT(NAMED(at_least)(s[0], h));
}

/* (By default eps1 is the distance from 1 to the next number, as the parameter is stored.) */
SCALARS_OF(adafactor)
{
    h->beta2c = pow(t, o->beta2_decay);
    h->beta2 = 1 - h->beta2c;
    h->a = -fmin(o->lr, 1 / sqrt(t));
    h->eps = isnan(o->eps1) ? h->epsilon : o->eps1;
    h->eps_root = h->eps * h->eps;
    h->high = 1 / h->eps;
    h->flush = h->eps;
}

SAME_SCALARS(adafactor_vector, adafactor)

MEASURE_OF(adafactor)
{
    const T u = g * NAMED(at_most)(s[0] * s[1], h);
    sum[0] = (double)p * (double)p;
    sum[1] = (double)u * (double)u;
}

MEASURE_OF(adafactor_vector)
{
    T v = FMA(h->beta2, s[0], h->beta2c * g * g);
    sum[0] = (double)p * (double)p;
    sum[1] = (double)(g / NAMED(at_least)(v, h)) * (double)g;
}

SETTLE_OF(adafactor)
{
    double rms_p = sqrt(sum[0] / n), excess = sqrt(sum[1] / n) / o->d;
    h->a *= rms_p > o->eps2 ? rms_p : o->eps2;
    if (excess > 1) h->a /= excess;
}

SAME_SETTLE(adafactor_vector, adafactor)

#pragma GCC diagnostic pop

#undef RULE_OF
#undef SCALARS_OF
#undef SAME_SCALARS
#undef ADVANCE_OF
#undef SAME_ADVANCE
#undef MEASURE_OF
#undef SAME_MEASURE
#undef SETTLE_OF
#undef SAME_SETTLE
