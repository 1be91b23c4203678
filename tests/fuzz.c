/* Random steps: whatever the lengths, dtypes, rules, gradients that are missing, addresses, threads and instruction set
 * with FMA, the bits are those of one thread on aligned memory, and nothing outside of the arrays is written.
 *
 * fuzz SEED ROUNDS; built (with sanitizers) and run by test_fuzz.py. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastopt.h"

enum { MOST_TENSORS = 6, MOST_HYPERS = 3, ARRAYS = 2 + FO_MAX_STATES, MARGIN = 64 };

/* xorshift64* (Vigna 2016). */
static uint64_t state;

static uint64_t draw(void)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 2685821657736338717u;
}

static size_t below(size_t n) { return (size_t)(draw() >> 33) % n; }

static double uniform(void) { return (double)(draw() >> 11) * 0x1p-53; }

/* ---- what is drawn ---- */

typedef struct {
    size_t n;
    fo_rule rule;
    fo_dtype dtype;
    size_t hyper;
    bool has_grad;
} shape;

/* Gradient, parameter and states of each tensor as bytes; what every run starts from. */
typedef struct {
    shape shapes[MOST_TENSORS];
    size_t count;
    unsigned char *bytes[MOST_TENSORS][ARRAYS];
    fo_hyper hypers[MOST_HYPERS];
    fo_request request;
} problem;

static size_t length(void)
{
    static const size_t typical[] = {0, 1, 2, 63, 64, 65, FO_BLOCK - 1, FO_BLOCK, FO_BLOCK + 1, 2 * FO_BLOCK};
    switch (below(4)) {
    case 0: return typical[below(sizeof typical / sizeof *typical)];
    case 1: return below(200);
    case 2: return below(3 * FO_BLOCK);
    default: return below(20 * FO_BLOCK); /* enough for several threads */
    }
}

static size_t item_size(const shape *s, int array) { return array < 2 ? fo_dtype_size(s->dtype) : fo_state_size(s->dtype); }

static fo_dtype storage(const shape *s, int array)
{
    if (array < 2 || fo_state_size(s->dtype) == fo_dtype_size(s->dtype)) return s->dtype;
    return FO_F32;
}

/* Either numbers of order one, or any bits: NaN, infinities and subnormal numbers among them. */
static void fill(unsigned char *bytes, size_t n, fo_dtype dtype, bool any_bits)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t bits = draw();
        double x = 4 * uniform() - 2;
        float f = (float)x;
        if (!any_bits && dtype == FO_F64) memcpy(&bits, &x, sizeof x);
        if (!any_bits && dtype == FO_F32) memcpy(&bits, &f, sizeof f);
        if (!any_bits && (dtype == FO_BF16 || dtype == FO_BF16_F32)) bits = (bits & 0x8000u) | (0x3e00u + bits % 0x180u);
        if (!any_bits && (dtype == FO_F16 || dtype == FO_F16_F32)) bits = (bits & 0x8000u) | (0x3400u + bits % 0x0c00u);
        size_t size = fo_dtype_size(dtype);
        memcpy(bytes + i * size, &bits, size); /* little-endian */
    }
}

static void draw_problem(problem *p)
{
    *p = (problem){.count = below(MOST_TENSORS + 1)};
    bool any_bits = below(3) == 0;
    for (size_t t = 0; t < p->count; t++) {
        shape *s = &p->shapes[t];
        *s = (shape){length(), (fo_rule)below(FO_RULES), (fo_dtype)below(FO_DTYPES), below(MOST_HYPERS), below(5) > 0};
        for (int a = 0; a < ARRAYS; a++) {
            p->bytes[t][a] = malloc(s->n * item_size(s, a) + 1);
            fill(p->bytes[t][a], s->n, storage(s, a), any_bits);
        }
    }
    for (size_t k = 0; k < MOST_HYPERS; k++) {
        double *scalar = (double *)&p->hypers[k].f64;
        for (size_t i = 0; i < FO_HYPERS; i++) scalar[i] = uniform();
        p->hypers[k].f64.clip = below(2) ? uniform() : INFINITY;
        p->hypers[k].f64.l2 *= (double)below(2);
    }
    p->request = (fo_request){.unscale = below(2) ? 1 : 0x1p-3,
                              .clip_norm = below(2) ? 100 * uniform() : INFINITY,
                              .want_norm = below(2),
                              .skip_nonfinite = below(2),
                              .zero_grad = below(2)};
}

static void free_problem(problem *p)
{
    for (size_t t = 0; t < p->count; t++)
        for (int a = 0; a < ARRAYS; a++) free(p->bytes[t][a]);
}

/* ---- a run ---- */

typedef struct {
    unsigned char *room[MOST_TENSORS][ARRAYS]; /* what malloc gave: MARGIN, offset, the array, nothing after it */
    unsigned char *array[MOST_TENSORS][ARRAYS];
    fo_result result;
    double norm, max_abs; /* of the gradients, before the step */
} outcome;

static void fail(const char *what, size_t tensor, int array)
{
    printf("%s: tensor %zu, array %d\n", what, tensor, array);
    exit(1);
}

static void place(outcome *o, const problem *p, bool aligned)
{
    for (size_t t = 0; t < p->count; t++)
        for (int a = 0; a < ARRAYS; a++) {
            size_t size = item_size(&p->shapes[t], a), bytes = size * p->shapes[t].n;
            size_t before = MARGIN + (aligned ? 0 : size * below(MARGIN / size));
            o->room[t][a] = malloc(before + bytes);
            memset(o->room[t][a], 0x5a, before);
            o->array[t][a] = o->room[t][a] + before;
            if (bytes) memcpy(o->array[t][a], p->bytes[t][a], bytes);
        }
}

/* One tensor of the plan for each parameter or, with `split`, two: the bits do not depend on it where no norm does. */
static fo_plan *plan_of(const problem *p, const outcome *o, bool split)
{
    size_t lengths[2 * MOST_TENSORS], count = 0;
    for (size_t t = 0; t < p->count; t++) {
        size_t first = split ? below(p->shapes[t].n + 1) : p->shapes[t].n;
        lengths[count++] = first;
        if (split) lengths[count++] = p->shapes[t].n - first;
    }
    fo_plan *plan = fo_plan_new(count, lengths);
    for (size_t i = 0; i < count; i++) {
        size_t t = split ? i / 2 : i, from = split && i % 2 ? lengths[i - 1] : 0;
        const shape *s = &p->shapes[t];
        fo_tensor *tensor = &plan->tensors[i];
        void *arrays[ARRAYS];
        for (int a = 0; a < ARRAYS; a++) arrays[a] = o->array[t][a] + from * item_size(s, a);
        *tensor = (fo_tensor){.grad = s->has_grad ? arrays[0] : NULL, .param = arrays[1], .n = lengths[i],
                              .hyper = s->hyper, .rule = s->rule, .dtype = s->dtype};
        for (int k = 0; k < fo_rule_states(s->rule); k++) tensor->state[k] = arrays[2 + k];
    }
    return plan;
}

static outcome run(const problem *p, const fo_kernels *kernels, int threads, bool aligned, bool split)
{
    outcome o = {0};
    fo_hyper hypers[MOST_HYPERS];
    fo_request request = p->request;
    request.threads = threads;
    memcpy(hypers, p->hypers, sizeof hypers);
    place(&o, p, aligned);
    fo_plan *plan = plan_of(p, &o, split);
    o.norm = fo_global_norm(kernels, plan, threads);
    o.max_abs = fo_global_max_abs(kernels, plan, threads);
    o.result = fo_step(kernels, plan, hypers, MOST_HYPERS, &request);
    fo_scale_gradients(kernels, plan, 0.3, threads);
    fo_clamp_gradients(kernels, plan, 0.2, threads);
    fo_plan_free(plan);
    return o;
}

static void free_outcome(outcome *o, const problem *p)
{
    for (size_t t = 0; t < p->count; t++)
        for (int a = 0; a < ARRAYS; a++) {
            for (unsigned char *c = o->room[t][a]; c < o->array[t][a]; c++)
                if (*c != 0x5a) fail("written before the array", t, a);
            free(o->room[t][a]);
        }
}

/* ---- comparison ---- */

/* All bits of a number, but one NaN is as good as another: which of two operands' payloads survives is up to the compiler. */
static uint64_t number(const unsigned char *bytes, fo_dtype dtype)
{
    static const uint64_t infinity[FO_DTYPES] = {[FO_F32] = 0x7f800000u, [FO_F64] = 0x7ff0000000000000u,
                                                 [FO_BF16] = 0x7f80u, [FO_BF16_F32] = 0x7f80u,
                                                 [FO_F16] = 0x7c00u, [FO_F16_F32] = 0x7c00u};
    uint64_t bits = 0;
    size_t size = fo_dtype_size(dtype);
    memcpy(&bits, bytes, size);
    uint64_t magnitude = bits & ~((uint64_t)1 << (8 * size - 1));
    return magnitude > infinity[dtype] ? UINT64_MAX : bits;
}

static bool same(double a, double b) { return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b)); }

static void compare(const problem *p, const outcome *a, const outcome *b, bool norms)
{
    bool alike = a->result.skipped == b->result.skipped && same(a->result.coefficient, b->result.coefficient) &&
                 same(a->result.norm, b->result.norm) && same(a->norm, b->norm);
    if (norms && !alike) fail("the norms differ", 0, 0);
    if (!same(a->max_abs, b->max_abs)) fail("the largest magnitudes differ", 0, 0);
    for (size_t t = 0; t < p->count; t++)
        for (int k = 0; k < ARRAYS; k++) {
            fo_dtype dtype = storage(&p->shapes[t], k);
            size_t size = fo_dtype_size(dtype);
            for (size_t i = 0; i < p->shapes[t].n; i++)
                if (number(a->array[t][k] + i * size, dtype) != number(b->array[t][k] + i * size, dtype))
                    fail("the bits differ", t, k);
        }
}

static const fo_kernels *any_with_fma(void)
{
    size_t count = 0;
    while (fo_available_isa(count + 1)) count++; /* the last one is portable */
    return fo_find_kernels(fo_available_isa(count ? below(count) : 0));
}

int main(int argc, char **argv)
{
    if (argc != 3) return 2;
    state = strtoull(argv[1], NULL, 10) * 2 + 1;
    size_t rounds = strtoull(argv[2], NULL, 10), skipped = 0, clipped = 0, elements = 0;
    for (size_t round = 0; round < rounds; round++) {
        problem p;
        draw_problem(&p);
        bool portable = below(4) == 0, split = isinf(p.request.clip_norm) && below(2);
        const fo_kernels *one = portable ? fo_find_kernels("portable") : any_with_fma();
        const fo_kernels *other = portable ? one : any_with_fma();
        outcome expected = run(&p, one, 1, true, false), found = run(&p, other, 1 + (int)below(9), false, split);
        compare(&p, &expected, &found, !split);
        skipped += expected.result.skipped;
        clipped += expected.result.coefficient < 1;
        for (size_t t = 0; t < p.count; t++) elements += p.shapes[t].n;
        free_outcome(&expected, &p);
        free_outcome(&found, &p);
        free_problem(&p);
    }
    printf("%zu rounds, %zu elements, %zu skipped, %zu clipped: the same bits\n", rounds, elements, skipped, clipped);
    return 0;
}
