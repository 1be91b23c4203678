/* THE SCALARS: one function a rule, in double, from the options o and the number t of the step (the first is 1).
 *
 * Conventions on which frameworks disagree are decided here, once a step, so that they need no kernels of their own: the
 * forms of velocity, where epsilon goes, how bias is corrected. Every rule's own are there already (see common_scalars);
 * a is the factor of the update in p = decay*p + a*u. */
#ifndef FASTOPT_SCALARS_H
#define FASTOPT_SCALARS_H

#include <math.h>

#include "fastopt.h"

static inline void sgd_scalars(const fo_options *o, double t, fo_hyper_f64 *h)
{
    (void)t;
    h->a = -o->lr;
}

/* v = mu*v + c*g,  u = k1*v + k2*g. The first velocity of velocity="sum" is the gradient, whatever the dampening. */
static inline void momentum_scalars(const fo_options *o, double t, fo_hyper_f64 *h)
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
static inline void add_epsilons(const fo_options *o, double correction, fo_hyper_f64 *h)
{
    h->eps = o->eps;
    h->eps_root = o->eps_root * correction;
    h->flush = fmax(h->eps * sqrt(correction), sqrt(h->eps_root));
}

static inline void adagrad_scalars(const fo_options *o, double t, fo_hyper_f64 *h)
{
    h->a = -o->lr / (1 + (t - 1) * o->lr_decay);
    add_epsilons(o, 1, h);
}

static inline void rmsprop_scalars(const fo_options *o, double t, fo_hyper_f64 *h)
{
    (void)t;
    h->a = -o->lr;
    h->alpha = o->alpha;
    h->alphac = 1 - o->alpha;
    h->mu = o->momentum;
    add_epsilons(o, 1, h);
}

#define rmsprop_momentum_scalars rmsprop_scalars
#define rmsprop_centered_scalars rmsprop_scalars
#define rmsprop_centered_momentum_scalars rmsprop_scalars

/* Both bias corrections as factors: sqrt(v/bc2 + eps_root) = sqrt(v + bc2*eps_root) / sqrt(bc2). */
static inline void adam_scalars(const fo_options *o, double t, fo_hyper_f64 *h)
{
    double correction2 = 1 - pow(o->beta2, t);
    h->a = -o->lr / (1 - pow(o->beta1, t));
    h->beta1 = o->beta1;
    h->beta1c = 1 - o->beta1;
    h->beta2 = o->beta2;
    h->beta2c = 1 - o->beta2;
    h->rbc2 = 1 / sqrt(correction2);
    add_epsilons(o, correction2, h);
}

#define amsgrad_scalars adam_scalars

#define floor0_scalars sgd_scalars
#define floor1_scalars sgd_scalars
#define floor2_scalars sgd_scalars
#define floor3_scalars sgd_scalars

#endif
