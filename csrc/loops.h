/* A row of rules.def becomes a loop over plain arrays of the arithmetic's type T: the only place where a rule meets
 * memory. The loops are plain C: each compiles to full vectors for the instruction set of this translation unit. */

/* What every rule's gradient goes through first. Unscaling, sign and clipping by norm are one factor. Clipping by value
 * (which a NaN passes) and L2 decay are done where they are asked for: 0*inf would be NaN. */
FO_INLINE T NAMED(prepare)(T p, T g, bool l2, bool clip, const HYPER *h)
{
    g *= h->scale;
    if (clip) {
        g = -h->clip > g ? -h->clip : g;
        g = h->clip < g ? h->clip : g;
    }
    return l2 ? FMA(h->l2, p, g) : g;
}

#define LOAD_STATES(states) UNROLL for (int k = 0; k < states; k++) s[k] = all[k][i]

/* States that have decayed into the subnormal range are zero for nearly every purpose, but cost some hundred cycles an
 * operation: what is below h->flush is stored as zero. */
#define STORE_STATES(states, root)                                                                                   \
    UNROLL for (int k = 0; k < states; k++)                                                                          \
        if (!small[k]) all[k][i] = IS_BELOW(s[k], h.flush) ? 0 : k == root ? SQRT(s[k] + h.eps_root) : s[k]

#define ELEMENT(name, states, l2, clip, careful, root)                                                               \
    {                                                                                                                \
        const unsigned char *const small = fo_needs[FO_RULE_##name].small;                                           \
        T s[FO_MAX_STATES];                                                                                          \
        LOAD_STATES(states);                                                                                         \
        T d = NAMED(prepare)(p[i], g[i], l2, clip, &h), u = NAMED(name)(p[i], d, s, &h);                             \
        T decay = careful ? NAMED(cautious_decay)(u, p[i], &h) : h.decay;                                            \
        if (careful) u = NAMED(cautious)(u, d, &h);                                                                  \
        p[i] = FMA(h.a, u, decay * p[i]);                                                                            \
        if (!fo_needs[FO_RULE_##name].writes_states) STORE_STATES(states, root);                                     \
    }

/* In one piece or, fetching ahead, in many. */
#define LOOP(name, states, l2, clip, careful, root)                                                                  \
    for (size_t i = 0, end; i < n;) {                                                                                \
        end = n;                                                                                                     \
        if (fetch && n - i > PIECE) {                                                                                \
            end = i + PIECE;                                                                                         \
            fo_fetch(p + i, PIECE * sizeof(T));                                                                      \
            if (careful || !fo_needs[FO_RULE_##name].writes_states) fo_fetch(g + i, PIECE * sizeof(T));              \
            UNROLL for (int k = fo_needs[FO_RULE_##name].hands_over ? states - 1 : 0; k < states; k++)               \
                fo_fetch(all[k] + i, PIECE * sizeof(T));                                                             \
        }                                                                                                            \
        VECTORISE for (; i < end; i++) ELEMENT(name, states, l2, clip, careful, root)                                \
    }

/* (The states are parameters one by one since compilers believe `restrict` of those alone: without, they compare the
 * addresses at run time, or give up where there are many.) */
#define RULE(name, states)                                                                                           \
    static void NAMED(loop_##name)(void *restrict param, const void *restrict grad, void *restrict s0,               \
                                   void *restrict s1, void *restrict s2, void *restrict s3, void *restrict s4,       \
                                   void *restrict s5, size_t n, const fo_hyper *hyper, bool fetch)                   \
    {                                                                                                                \
        T *const p = param;                                                                                          \
        const T *const g = grad;                                                                                     \
        T *const all[FO_MAX_STATES] = {s0, s1, s2, s3, s4, s5};                                                      \
        const HYPER h = hyper->SUFFIX;                                                                               \
        if (!isinf(h.clip))                                                                                          \
            LOOP(name, states, h.l2 != 0, true, false, NO_ROOT)                                                      \
        else if (h.l2 != 0)                                                                                          \
            LOOP(name, states, true, false, false, NO_ROOT)                                                          \
        else                                                                                                         \
            LOOP(name, states, false, false, false, NO_ROOT)                                                         \
    }
#define FLOOR(name, states)

#include "rules.def"

/* The same where one of these loops is all there is. (Of what nothing calls in float64, compilers leave it out.) */
#define ONE_LOOP(kind, name, l2, clip, careful, root)                                                                \
    __attribute__((unused)) static void NAMED(kind##_##name)(                                                        \
        void *restrict param, const void *restrict grad, void *restrict s0, void *restrict s1, void *restrict s2,    \
        void *restrict s3, void *restrict s4, void *restrict s5, size_t n, const fo_hyper *hyper, bool fetch)        \
    {                                                                                                                \
        enum { STATES = fo_states_of_##name };                                                                       \
        T *const p = param;                                                                                          \
        const T *const g = grad;                                                                                     \
        T *const all[FO_MAX_STATES] = {s0, s1, s2, s3, s4, s5};                                                      \
        const HYPER h = hyper->SUFFIX;                                                                               \
        LOOP(name, STATES, l2, clip, careful, root)                                                                  \
    }

/* Rules that look at the signs of their updates, and rules that leave roots, which nothing stores in float64. */
#define CAREFUL(name, how) ONE_LOOP(careful, name, h.l2 != 0, true, true, NO_ROOT)
#define ROOTED(name, state) ONE_LOOP(rooted, name, false, false, false, state)
#include "rules.def"

#undef ONE_LOOP
#undef LOOP
#undef ELEMENT

/* What a rule measures: of each sum, an element's part is added to the element's lane. (Where nothing depends on signs,
 * those that agree, the last sum of a careful rule, are not counted.) */
#define MEASURE_ELEMENT(i, count, MEASURED)                                                                          \
    {                                                                                                                \
        T s[FO_MAX_STATES];                                                                                          \
        double sum[FO_MAX_SUMS];                                                                                     \
        LOAD_STATES(STATES);                                                                                         \
        T d = NAMED(prepare)(p[i], g[i], l2, true, &h);                                                              \
        MEASURED;                                                                                                    \
        UNROLL for (int k = 0; k < count; k++) total[k][l] += sum[k];                                                \
        if (writes) STORE_STATES(STATES, NO_ROOT);                                                                   \
    }

#define MEASURE_LOOP(count, MEASURED)                                                                                \
    {                                                                                                                \
        double total[FO_MAX_SUMS][LANES];                                                                            \
        memcpy(total, lane, sizeof total);                                                                           \
        const size_t whole = n - n % LANES;                                                                          \
        for (size_t from = 0; from < whole; from += LANES) {                                                         \
            if (fetch) {                                                                                             \
                fo_fetch(p + from, LANES * sizeof(T));                                                               \
                fo_fetch(g + from, LANES * sizeof(T));                                                               \
                UNROLL for (int k = 0; k < STATES; k++) fo_fetch(all[k] + from, LANES * sizeof(T));                  \
            }                                                                                                        \
            VECTORISE for (size_t l = 0; l < LANES; l++) {                                                           \
                const size_t i = from + l;                                                                           \
                MEASURE_ELEMENT(i, count, MEASURED)                                                                  \
            }                                                                                                        \
        }                                                                                                            \
        for (size_t i = whole, l = 0; i < n; i++, l++) MEASURE_ELEMENT(i, count, MEASURED)                           \
        memcpy(lane, total, sizeof total);                                                                           \
    }

#define METER(name, sums, MEASURED)                                                                                  \
    static void NAMED(measure_##name)(const void *restrict param, const void *restrict grad, void *restrict s0,      \
                                      void *restrict s1, void *restrict s2, void *restrict s3, void *restrict s4,    \
                                      void *restrict s5, size_t n, const fo_hyper *hyper, bool fetch,                \
                                      fo_lanes *restrict lane)                                                       \
    {                                                                                                                \
        enum { STATES = fo_states_of_##name };                                                                       \
        const T *const p = param, *const g = grad;                                                                   \
        T *const all[FO_MAX_STATES] = {s0, s1, s2, s3, s4, s5};                                                      \
        const bool writes = fo_needs[FO_RULE_##name].writes_states;                                                  \
        const unsigned char *const small = fo_needs[FO_RULE_##name].small;                                           \
        HYPER h = hyper->SUFFIX;                                                                                     \
        const bool l2 = h.l2 != 0;                                                                                   \
        const int others = sums - fo_needs[FO_RULE_##name].careful;                                                  \
        if (others == 0 || h.cautious != 0 || h.cautious_decay != 0) {                                               \
            MEASURE_LOOP(sums, MEASURED)                                                                             \
        } else {                                                                                                     \
            h.cautious = h.cautious_decay = 0;                                                                       \
            MEASURE_LOOP(others, MEASURED)                                                                           \
        }                                                                                                            \
    }
#define MEASURE(name, sums, scope, kept) METER(name, sums, NAMED(name##_measure)(p[i], d, s, &h, sum))
#define CAREFUL(name, how) CAREFUL_##how(name)
#define CAREFUL_MEASURED(name)
#define CAREFUL_COUNTED(name) METER(name, 1, sum[0] = NAMED(agrees)(NAMED(name)(p[i], d, s, &h), d))
#include "rules.def"

#undef METER
#undef MEASURE_LOOP
#undef MEASURE_ELEMENT
#undef CAREFUL_COUNTED
#undef CAREFUL_MEASURED
#undef LOAD_STATES
#undef STORE_STATES

/* Gradients as the rules see them. */
static void NAMED(prepare_all)(const void *param, const void *grad, void *prepared, size_t n, const fo_hyper *hyper)
{
    const T *p = param, *g = grad;
    T *restrict d = prepared;
    const HYPER h = hyper->SUFFIX;
    if (!isinf(h.clip)) {
        VECTORISE for (size_t i = 0; i < n; i++) d[i] = NAMED(prepare)(p[i], g[i], h.l2 != 0, true, &h);
    } else {
        VECTORISE for (size_t i = 0; i < n; i++) d[i] = NAMED(prepare)(p[i], g[i], h.l2 != 0, false, &h);
    }
}

static void NAMED(add_to_columns)(const void *x, size_t n, void *columns)
{
    const T *restrict g = x;
    T *restrict c = columns;
    VECTORISE for (size_t i = 0; i < n; i++) c[i] = FMA(g[i], g[i], c[i]);
}

static void NAMED(fill)(void *x, size_t n, double value)
{
    T *restrict y = x;
    VECTORISE for (size_t i = 0; i < n; i++) y[i] = (T)value;
}

/* The sum of some occurrences of a row, in their order: n columns, from those that `grad` begins with. */
static void NAMED(sum)(void *total, const void *grad, const fo_rows *rows, size_t first, size_t end, size_t n)
{
    T *restrict sum = total;
    const T *restrict g = grad;
    size_t c = 0;
    for (; c + COLUMNS <= n; c += COLUMNS) {
        T x[COLUMNS];
        const T *value = g + values_of(rows, first) + c;
        VECTORISE for (size_t k = 0; k < COLUMNS; k++) x[k] = value[k];
        for (size_t i = first + 1; i < end; i++) {
            value = g + values_of(rows, i) + c;
            VECTORISE for (size_t k = 0; k < COLUMNS; k++) x[k] += value[k];
        }
        VECTORISE for (size_t k = 0; k < COLUMNS; k++) sum[c + k] = x[k];
    }
    for (; c < n; c++) {
        T x = g[values_of(rows, first) + c];
        for (size_t i = first + 1; i < end; i++) x += g[values_of(rows, i) + c];
        sum[c] = x;
    }
}

/* From x towards y, which is reached exactly (as in torch). */
static void NAMED(lerp)(void *target, const void *source, size_t n, double weight)
{
    T *restrict x = target;
    const T *restrict y = source;
    const T w = (T)(weight < 0.5 ? weight : 1 - weight);
    if (weight < 0.5) {
        VECTORISE for (size_t i = 0; i < n; i++) x[i] = FMA(w, y[i] - x[i], x[i]);
    } else {
        VECTORISE for (size_t i = 0; i < n; i++) x[i] = FMA(-w, y[i] - x[i], y[i]);
    }
}

/* Two changes to an array on its own, for clipping outside a step. */
static void NAMED(scale)(void *x, size_t n, double factor)
{
    T *restrict g = x;
    const T f = (T)factor;
    VECTORISE for (size_t i = 0; i < n; i++) g[i] *= f;
}

static void NAMED(clamp)(void *x, size_t n, double limit)
{
    T *restrict g = x;
    const T bound = (T)limit;
    VECTORISE for (size_t i = 0; i < n; i++) {
        T v = -bound > g[i] ? -bound : g[i];
        g[i] = bound < v ? bound : v;
    }
}
