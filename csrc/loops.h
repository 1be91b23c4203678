/* A row of rules.def becomes a loop over a block, for the current storage (P, S) and arithmetic (T).
 * The loops are plain C: each compiles to full vectors for the instruction set of this translation unit. */

/* What every rule's gradient goes through first: unscale, sign and clipping by norm in one factor;
 * clipping by value (a NaN passes both comparisons); L2 decay (asked for, not multiplied by zero: 0*inf is NaN). */
FO_INLINE T NAMED(prepare)(T p, T g, const HYPER *h)
{
    g *= h->scale;
    g = -h->clip > g ? -h->clip : g;
    g = h->clip < g ? h->clip : g;
    T decayed = FMA(h->l2, p, g);
    return h->l2 != 0 ? decayed : g;
}

#define LOAD_STATE(k, states) ((states) > (k) ? FROM_S(s##k[i]) : 0)
#define STORE_STATE(k, states) if ((states) > (k)) s##k[i] = TO_S(s[k])

#define ELEMENT(name, states)                                                                                        \
    {                                                                                                                \
        T s[FO_MAX_STATES] = {LOAD_STATE(0, states), LOAD_STATE(1, states), LOAD_STATE(2, states)};                  \
        T x = FROM_P(p[i]), gradient = NAMED(prepare)(x, FROM_P(g[i]), &h);                                          \
        p[i] = TO_P(NAMED(name)(x, gradient, s, &h));                                                                \
        STORE_STATE(0, states); STORE_STATE(1, states); STORE_STATE(2, states);                                      \
    }

#define FETCH_STATE(k, states) if ((states) > (k)) fo_fetch(s##k + i, FO_CHUNK * sizeof(S))
#define FETCH(states)                                                                                                \
    fo_fetch(p + i, FO_CHUNK * sizeof(P)); fo_fetch(g + i, FO_CHUNK * sizeof(P));                                    \
    FETCH_STATE(0, states); FETCH_STATE(1, states); FETCH_STATE(2, states)

#define RULE(name, states)                                                                                           \
    static void NAMED(step_##name)(const fo_block *b)                                                                \
    {                                                                                                                \
        STREAMS(b);                                                                                                  \
        size_t i = 0;                                                                                                \
        for (size_t end = FO_CHUNK; end <= n; end += FO_CHUNK) {                                                     \
            FETCH(states);                                                                                           \
            VECTORISE for (; i < end; i++) ELEMENT(name, states)                                                     \
        }                                                                                                            \
        VECTORISE for (; i < n; i++) ELEMENT(name, states)                                                           \
    }

#define STREAMS(b)                                                                                                   \
    P *restrict p = (b)->param;                                                                                      \
    const P *restrict g = (b)->grad;                                                                                 \
    S *restrict s0 = (b)->state[0], *restrict s1 = (b)->state[1], *restrict s2 = (b)->state[2];                      \
    const HYPER h = (b)->hyper->HYPER_MEMBER;                                                                        \
    const size_t n = (b)->n;                                                                                         \
    (void)s0, (void)s1, (void)s2

#include "rules.def"

#undef STREAMS
#undef FETCH
#undef FETCH_STATE
#undef ELEMENT
#undef STORE_STATE
#undef LOAD_STATE

/* The same two changes to a gradient on its own, for clipping outside a step. */
static void NAMED(scale)(void *x, size_t n, double factor)
{
    P *restrict g = x;
    const T f = (T)factor;
    VECTORISE for (size_t i = 0; i < n; i++) g[i] = TO_P(FROM_P(g[i]) * f);
}

static void NAMED(clamp)(void *x, size_t n, double limit)
{
    P *restrict g = x;
    const T bound = (T)limit;
    VECTORISE for (size_t i = 0; i < n; i++) {
        T v = FROM_P(g[i]);
        v = -bound > v ? -bound : v;
        g[i] = TO_P(bound < v ? bound : v);
    }
}
