/* THE MATHS: one pure function a rule, for one element, generic in the arithmetic type T.
 *
 * In:  the parameter p, its gradient g (scaled, clipped and with L2 decay already in it), the states s[],
 *      and the step's scalars h (formed once a step in double precision by the Python class of the same name).
 * Out: the new parameter; s[] is updated in place.
 *
 * FMA(a, b, c) is a*b + c, rounded once where the instruction set can. Square root and division are IEEE's.
 * h->decay is 1 - lr*weight_decay (decoupled decay), 1 without. */

/* Gradient descent (Robbins & Monro 1951):  p = p - lr*g */
FO_INLINE T NAMED(sgd)(T p, T g, T *s, const HYPER *h)
{
    (void)s;
    return FMA(-h->lr, g, h->decay * p);
}

/* Momentum (Polyak 1964; Sutskever et al. 2013) and Nesterov's (1983) look-ahead, in all published forms:
 *   v = mu*v + c*g,   u = k1*v + k2*g,   p = p + a*u */
FO_INLINE T NAMED(momentum)(T p, T g, T *s, const HYPER *h)
{
    s[0] = FMA(h->mu, s[0], h->c * g);
    T u = FMA(h->k1, s[0], h->k2 * g);
    return FMA(h->a, u, h->decay * p);
}

/* AdaGrad (Duchi, Hazan & Singer 2011):  s = s + g^2,   p = p - lr*g / (sqrt(s + eps_root) + eps) */
FO_INLINE T NAMED(adagrad)(T p, T g, T *s, const HYPER *h)
{
    s[0] = FMA(g, g, s[0]);
    T denominator = SQRT(s[0] + h->eps_root) + h->eps;
    return FMA(-h->lr, g / denominator, h->decay * p);
}

/* RMSprop (Tieleman & Hinton 2012):  s = alpha*s + (1-alpha)*g^2,   p = p - lr*g / (sqrt(s + eps_root) + eps) */
FO_INLINE T NAMED(rmsprop)(T p, T g, T *s, const HYPER *h)
{
    s[0] = FMA(h->alpha, s[0], h->alphac * g * g);
    T denominator = SQRT(s[0] + h->eps_root) + h->eps;
    return FMA(-h->lr, g / denominator, h->decay * p);
}

/* ... with momentum on the scaled gradient:  b = mu*b + g / (...),   p = p - lr*b */
FO_INLINE T NAMED(rmsprop_momentum)(T p, T g, T *s, const HYPER *h)
{
    s[0] = FMA(h->alpha, s[0], h->alphac * g * g);
    T denominator = SQRT(s[0] + h->eps_root) + h->eps;
    s[1] = FMA(h->mu, s[1], g / denominator);
    return FMA(-h->lr, s[1], h->decay * p);
}

/* ... centered (Graves 2013): the root of the variance s - a^2, where a = alpha*a + (1-alpha)*g.
 * Rounding can push a variance of zero below zero; it counts as zero. */
FO_INLINE T NAMED(variance)(T g, T *s, T *mean, const HYPER *h)
{
    *s = FMA(h->alpha, *s, h->alphac * g * g);
    *mean = FMA(h->alpha, *mean, h->alphac * g);
    T variance = FMA(-*mean, *mean, *s);
    return variance < 0 ? 0 : variance;
}

FO_INLINE T NAMED(rmsprop_centered)(T p, T g, T *s, const HYPER *h)
{
    T denominator = SQRT(NAMED(variance)(g, &s[0], &s[1], h) + h->eps_root) + h->eps;
    return FMA(-h->lr, g / denominator, h->decay * p);
}

FO_INLINE T NAMED(rmsprop_centered_momentum)(T p, T g, T *s, const HYPER *h)
{
    T denominator = SQRT(NAMED(variance)(g, &s[0], &s[2], h) + h->eps_root) + h->eps;
    s[1] = FMA(h->mu, s[1], g / denominator);
    return FMA(-h->lr, s[1], h->decay * p);
}

/* Adam (Kingma & Ba 2015) and AdamW (Loshchilov & Hutter 2019):
 *   m = beta1*m + (1-beta1)*g,   v = beta2*v + (1-beta2)*g^2,
 *   p = p - lr/(1-beta1^t) * m / (sqrt(v/(1-beta2^t)) + eps)
 * with both bias corrections folded into scalars: h->lr = lr/(1-beta1^t) and h->rbc2 = 1/sqrt(1-beta2^t). */
FO_INLINE T NAMED(adam)(T p, T g, T *s, const HYPER *h)
{
    s[0] = FMA(h->beta1, s[0], h->beta1c * g);
    s[1] = FMA(h->beta2, s[1], h->beta2c * g * g);
    T denominator = FMA(SQRT(s[1] + h->eps_root), h->rbc2, h->eps);
    return FMA(-h->lr, s[0] / denominator, h->decay * p);
}

/* AMSGrad (Reddi, Kale & Kumar 2018): Adam over the largest v seen so far. */
FO_INLINE T NAMED(amsgrad)(T p, T g, T *s, const HYPER *h)
{
    s[0] = FMA(h->beta1, s[0], h->beta1c * g);
    s[1] = FMA(h->beta2, s[1], h->beta2c * g * g);
    s[2] = s[1] <= s[2] ? s[2] : s[1];
    T denominator = FMA(SQRT(s[2] + h->eps_root), h->rbc2, h->eps);
    return FMA(-h->lr, s[0] / denominator, h->decay * p);
}

/* The floors: read the gradient, read and write the parameter and 0 to 3 states; nothing else. */
FO_INLINE T NAMED(floor0)(T p, T g, T *s, const HYPER *h)
{
    (void)s, (void)h;
    return p + g;
}

FO_INLINE T NAMED(floor1)(T p, T g, T *s, const HYPER *h)
{
    (void)h;
    s[0] += g;
    return p + g;
}

FO_INLINE T NAMED(floor2)(T p, T g, T *s, const HYPER *h)
{
    s[1] += g;
    return NAMED(floor1)(p, g, s, h);
}

FO_INLINE T NAMED(floor3)(T p, T g, T *s, const HYPER *h)
{
    s[2] += g;
    return NAMED(floor2)(p, g, s, h);
}
