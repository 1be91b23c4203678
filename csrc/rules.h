/* THE MATHS: one pure function a rule, for one element, generic in the arithmetic type T.
 *
 * In:  the parameter p, its gradient g (scaled, clipped and with L2 decay already in it), the states s[],
 *      and the step's scalars h.
 * Out: the update u; s[] is updated in place. The parameter is written in one place for all, loops.h:
 *          p = h->decay*p + h->a*u
 *      where decay is 1 - lr*weight_decay (decoupled decay) or 1, and a is -lr, with a bias correction where due.
 *
 * FMA(a, b, c) is a*b + c, rounded once where the instruction set can. Square root and division are IEEE's. */

/* (A rule need not use all that it is given.) */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"

/* Gradient descent (Robbins & Monro 1951):  u = g */
FO_INLINE T NAMED(sgd)(T p, T g, T *s, const HYPER *h)
{
    return g;
}

/* Momentum (Polyak 1964; Sutskever et al. 2013) and Nesterov's (1983) look-ahead, in all published forms:
 *   v = mu*v + c*g,   u = k1*v + k2*g */
FO_INLINE T NAMED(momentum)(T p, T g, T *s, const HYPER *h)
{
    s[0] = FMA(h->mu, s[0], h->c * g);
    return FMA(h->k1, s[0], h->k2 * g);
}

/* AdaGrad (Duchi, Hazan & Singer 2011):  s = s + g^2,   u = g / (sqrt(s + eps_root) + eps) */
FO_INLINE T NAMED(adagrad)(T p, T g, T *s, const HYPER *h)
{
    s[0] = FMA(g, g, s[0]);
    return g / (SQRT(s[0] + h->eps_root) + h->eps);
}

/* RMSprop (Tieleman & Hinton 2012):  s = alpha*s + (1-alpha)*g^2,   u = g / (sqrt(s + eps_root) + eps) */
FO_INLINE T NAMED(rmsprop)(T p, T g, T *s, const HYPER *h)
{
    s[0] = FMA(h->alpha, s[0], h->alphac * g * g);
    return g / (SQRT(s[0] + h->eps_root) + h->eps);
}

/* ... with momentum on the scaled gradient:  b = mu*b + g / (...),   u = b */
FO_INLINE T NAMED(rmsprop_momentum)(T p, T g, T *s, const HYPER *h)
{
    s[1] = FMA(h->mu, s[1], NAMED(rmsprop)(p, g, s, h));
    return s[1];
}

/* ... centered (Graves 2013): the root of the variance s - a^2, where a = alpha*a + (1-alpha)*g.
 * Rounding can push a variance of zero below zero; it counts as zero. */
FO_INLINE T NAMED(centered)(T g, T *s, T *mean, const HYPER *h)
{
    *s = FMA(h->alpha, *s, h->alphac * g * g);
    *mean = FMA(h->alpha, *mean, h->alphac * g);
    T variance = FMA(-*mean, *mean, *s);
    return g / (SQRT((variance < 0 ? 0 : variance) + h->eps_root) + h->eps);
}

FO_INLINE T NAMED(rmsprop_centered)(T p, T g, T *s, const HYPER *h)
{
    return NAMED(centered)(g, &s[0], &s[1], h);
}

FO_INLINE T NAMED(rmsprop_centered_momentum)(T p, T g, T *s, const HYPER *h)
{
    s[1] = FMA(h->mu, s[1], NAMED(centered)(g, &s[0], &s[2], h));
    return s[1];
}

/* Adam (Kingma & Ba 2015) and AdamW (Loshchilov & Hutter 2019):
 *   m = beta1*m + (1-beta1)*g,   v = beta2*v + (1-beta2)*g^2,
 *   u = m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps)
 * with both bias corrections folded into scalars: a = -lr/(1-beta1^t) and rbc2 = 1/sqrt(1-beta2^t). */
FO_INLINE T NAMED(adam)(T p, T g, T *s, const HYPER *h)
{
    s[0] = FMA(h->beta1, s[0], h->beta1c * g);
    s[1] = FMA(h->beta2, s[1], h->beta2c * g * g);
    return s[0] / FMA(SQRT(s[1] + h->eps_root), h->rbc2, h->eps);
}

/* AMSGrad (Reddi, Kale & Kumar 2018): Adam over the largest v seen so far. */
FO_INLINE T NAMED(amsgrad)(T p, T g, T *s, const HYPER *h)
{
    s[0] = FMA(h->beta1, s[0], h->beta1c * g);
    s[1] = FMA(h->beta2, s[1], h->beta2c * g * g);
    s[2] = s[1] <= s[2] ? s[2] : s[1];
    return s[0] / FMA(SQRT(s[2] + h->eps_root), h->rbc2, h->eps);
}

#pragma GCC diagnostic pop
