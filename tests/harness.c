/* The C core on its own: is it right, are its bits the same everywhere, how fast is it? (As dav1d's checkasm.)
 *
 *   harness check               every rule, storage and instruction set beside a plain loop in double
 *   harness fuzz SEED ROUNDS    random steps: whatever the lengths, storages, rules, gradients that are missing,
 *                               addresses, threads and instruction set with FMA, the bits are those of one thread on
 *                               aligned memory, and nothing outside of the arrays is written
 *   harness together SEED ROUNDS  the same in two threads at once, each with its own steps
 *   harness fingerprint         a hash of what every rule computes, for comparison with another machine
 *   harness count ISA           a fixed small work on one instruction set, for valgrind to count its instructions
 *   harness time [RULE]...      nanoseconds an element, from each level of the memory
 *
 * Built and run by native.py: python tests/native.py time adam. */
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fastopt.h"

/* ---- random numbers: xorshift64* (Vigna 2016) ---- */

static _Thread_local uint64_t random_state = 1;

static uint64_t draw(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 2685821657736338717u;
}

static size_t below(size_t n) { return (size_t)(draw() >> 33) % n; }

static double uniform(void) { return (double)(draw() >> 11) * 0x1p-53; }

/* ---- numbers in storages, one at a time and in double ---- */

/* Fields of a floating-point format of up to 64 bits. */
static const struct {
    int fraction, bias;
} formats[FO_STORAGES] = {
    [FO_F32] = {23, 127}, [FO_F64] = {52, 1023}, [FO_F16] = {10, 15},
    [FO_BF16] = {7, 127}, [FO_BF16_STOCHASTIC] = {7, 127},
    [FO_SPLIT] = {7, 127}, [FO_SPLIT8] = {7, 127},
};

/* The storages before this one have nothing beside their elements. */
enum { WITH_BESIDE = FO_SIGNED8 };

static uint64_t bits_at(const fo_stream *s, size_t i)
{
    const size_t size = fo_storage_size(s->storage);
    uint64_t bits = 0;
    memcpy(&bits, (const char *)s->at + i * size, size); /* little-endian */
    return bits;
}

static size_t beside_bytes(const fo_stream *s, size_t n)
{
    const size_t group = fo_beside_size(s->storage), each = group / FO_GROUP;
    return each ? n * each : (n + FO_GROUP - 1) / FO_GROUP * group;
}

/* Of a storage with something beside the elements. */
static double value_of_two(const fo_stream *s, size_t i)
{
    const void *at = s->at, *beside = s->beside;
    const uint32_t upper = (uint32_t)(bits_at(s, i) << 16);
    double q;
    float x;
    switch (s->storage) {
    case FO_SIGNED8: q = ((const int8_t *)at)[i]; return q / (254 - fabs(q)) * ((const float *)beside)[i / FO_GROUP];
    case FO_ROOT8: q = ((const uint8_t *)at)[i] / 255.0 * ((const float *)beside)[i / FO_GROUP]; return q * q;
    default: break;
    }
    const int32_t rest = s->storage == FO_SPLIT ? ((const int16_t *)beside)[i] : ((const int8_t *)beside)[i] * 256;
    const uint32_t bits = upper + (uint32_t)rest;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static double value_at(const fo_stream *s, size_t i)
{
    if ((int)s->storage >= WITH_BESIDE) return value_of_two(s, i);
    const int fraction = formats[s->storage].fraction, bias = formats[s->storage].bias;
    const int width = 8 * (int)fo_storage_size(s->storage);
    const uint64_t bits = bits_at(s, i), hidden = (uint64_t)1 << fraction;
    const int exponent = (int)(bits >> fraction & (((uint64_t)1 << (width - 1 - fraction)) - 1));
    const double m = (double)(bits & (hidden - 1));
    const double x = exponent == 2 * bias + 1 ? (m > 0 ? NAN : INFINITY)
                     : exponent == 0          ? ldexp(m, 1 - bias - fraction)
                                              : ldexp(m + (double)hidden, exponent - bias - fraction);
    return bits >> (width - 1) ? -x : x;
}

/* x in units of the last place that a storage has at x's magnitude. */
static double last_place(fo_storage storage, double x)
{
    const int bias = formats[storage].bias;
    int exponent;
    frexp(x, &exponent);
    return ldexp(1, (exponent - 1 < 1 - bias ? 1 - bias : exponent - 1) - formats[storage].fraction);
}

/* What a storage should hold of a number: rounded to nearest, ties to even. */
static double rounded(fo_storage storage, double x)
{
    if (!isfinite(x) || storage == FO_F64) return x;
    const double place = last_place(storage, x), y = nearbyint(x / place) * place;
    return fabs(y) >= ldexp(1, formats[storage].bias + 1) ? copysign(INFINITY, x) : y;
}

static void put(const fo_stream *s, size_t i, double x)
{
    const int fraction = formats[s->storage].fraction, width = 8 * (int)fo_storage_size(s->storage);
    const double y = fabs(rounded(s->storage, x)), place = last_place(s->storage, y);
    uint64_t bits = (uint64_t)(y / place);
    if (bits >> fraction) { /* with the hidden bit: a normal number */
        int exponent;
        frexp(y, &exponent);
        bits += (uint64_t)(exponent - 2 + formats[s->storage].bias) << fraction;
    }
    bits |= (uint64_t)(x < 0) << (width - 1);
    memcpy((char *)s->at + i * (size_t)width / 8, &bits, (size_t)width / 8);
}

/* ---- problems ---- */

enum { STREAMS = 2 + FO_MAX_STATES, MARGIN = 64 }; /* parameter, gradient, states */

static fo_stream *stream_of(const fo_tensor *t, int k)
{
    return (fo_stream *)(k == 0 ? &t->param : k == 1 ? &t->grad : &t->state[k - 2]);
}

static int streams_of(const fo_tensor *t) { return 2 + fo_needs[t->rule].states; }

static bool has_small(fo_rule rule)
{
    bool any = false;
    for (int k = 0; k < fo_needs[rule].states; k++) any = any || fo_needs[rule].small[k];
    return any;
}

/* Give a tensor rows and matrices, if its rule has states of such. (There is memory for as many numbers as elements.) */
static void give_matrices(fo_tensor *t, size_t height, size_t width)
{
    if (!has_small(t->rule)) return;
    t->height = height, t->width = width;
    const bool grouped = (int)t->param.storage >= WITH_BESIDE && fo_needs[t->rule].factored; /* (groups are not cut) */
    t->n = t->n / (height * width) * height * width;
    if (grouped && t->n) t->n = height * width;
    for (int k = 0; k < fo_needs[t->rule].states; k++)
        if (fo_needs[t->rule].small[k] && (int)t->state[k].storage >= WITH_BESIDE) t->state[k].storage = FO_F32;
}

typedef enum { ORDINARY, POSITIVE, ANY_BITS } numbers;

/* Numbers of order one (those of states apart from each other, so that no variance is near zero), or any bits: NaN,
 * infinities and subnormal numbers among them. */
static void fill(const fo_stream *s, size_t n, numbers kind, double scale)
{
    const bool coded = s->storage == FO_SIGNED8 || s->storage == FO_ROOT8;
    for (size_t i = 0; i < beside_bytes(s, n); i++) ((unsigned char *)s->beside)[i] = (unsigned char)(draw() >> 56);
    for (size_t i = 0; coded && kind != ANY_BITS && i < (n + FO_GROUP - 1) / FO_GROUP; i++)
        ((float *)s->beside)[i] = (float)(scale * (1 + uniform()));
    /* (The root of a negative number is a NaN, whose sign is the processor's.) */
    const uint64_t mask = coded && kind == POSITIVE ? 0x7f : UINT64_MAX;
    if (coded) kind = ANY_BITS;
    for (size_t i = 0; i < n; i++) {
        const uint64_t bits = draw() & mask;
        const size_t size = fo_storage_size(s->storage);
        if (kind == ANY_BITS)
            memcpy((char *)s->at + i * size, &bits, size);
        else
            put(s, i, scale * (kind == POSITIVE ? 0.9 + 0.1 * uniform() : 4 * uniform() - 2));
    }
}

/* Memory for the streams of a tensor, on cache lines of their own behind a MARGIN; filled. */
static void allocate(fo_tensor *t, numbers kind)
{
    for (int k = 0; k < streams_of(t); k++) {
        fo_stream *s = stream_of(t, k);
        const size_t size = fo_storage_size(s->storage);
        void *room;
        if (posix_memalign(&room, MARGIN, MARGIN + t->n * size)) abort();
        s->at = (char *)room + MARGIN;
        s->beside = malloc(beside_bytes(s, t->n) + 1);
        fill(s, t->n, kind == ORDINARY && k >= 2 ? POSITIVE : kind, k < 2 ? 1 : ldexp(1, -2 * (k - 2)));
    }
}

static void release(fo_tensor *t, size_t shift)
{
    for (int k = 0; k < streams_of(t); k++) {
        const fo_stream *s = stream_of(t, k);
        free((char *)s->at - MARGIN - shift * fo_storage_size(s->storage));
        free(s->beside);
    }
}

static void fail(const char *what, const fo_tensor *t, int k)
{
    printf("%s: %s,", what, fo_rule_name(t->rule));
    for (int j = 0; j < streams_of(t); j++) printf(" %s", fo_storage_name(stream_of(t, j)->storage));
    printf("; stream %d\n", k);
    exit(1);
}

static bool is_floor(fo_rule rule) { return strncmp(fo_rule_name(rule), "floor", 5) == 0; }

/* Scalars of every rule, in both precisions. */
static fo_hyper scalars_of_order_one(void)
{
    fo_hyper h = {.f64 = {.scale = 0.75, .clip = INFINITY, .decay = 0.999, .a = -1e-2, .eps = 1e-8, .eps_root = 1e-12,
                          .mu = 0.9, .c = 1, .k1 = 0.9, .k2 = 1, .alpha = 0.99, .alphac = 0.01, .beta1 = 0.9,
                          .beta1c = 0.1, .beta2 = 0.999, .beta2c = 0.001, .beta3 = 0.99, .beta3c = 0.01,
                          .rbc2 = 3, .low = 0.1, .high = 1}};
    return h;
}

static void narrow(fo_hyper *h)
{
    const double *wide = (const double *)&h->f64;
    float *narrow_ones = (float *)&h->f32;
    for (size_t k = 0; k < sizeof h->f64 / sizeof *wide; k++) narrow_ones[k] = (float)wide[k];
}

static void step_block(const fo_kernels *kernels, const fo_tensor *t, const fo_hyper *h, size_t from, size_t to)
{
    fo_block b = {.n = to - from, .hyper = h, .first = from, .seed = 7};
    fo_tensor part = *t;
    for (int k = 0; k < streams_of(t); k++) {
        fo_stream *s = stream_of(&part, k);
        *s = fo_from(*s, from);
    }
    b.param = part.param, b.grad = part.grad;
    memcpy(b.state, part.state, sizeof b.state);
    kernels->step[t->rule](&b);
}

static bool same(double a, double b) { return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b)); }

/* ---- check ---- */

/* The rules once more, in plain double. */
#define FO_INLINE static inline
#define T double
#define NAMED(name) plain_##name
#define HYPER fo_hyper_f64
#define FMA(a, b, c) ((a) * (b) + (c))
#define SQRT sqrt
#include "rules.h"

static double (*const plain_rules[FO_RULES])(double p, double g, double *s, const fo_hyper_f64 *h) = {
#define FLOOR(name, states)
#define RULE(name, states) [FO_RULE_##name] = plain_##name,
#include "rules.def"
};

/* Replaces values[0] (the parameter) and values[2], ... (the states) by those after the step. */
static void plain_step(fo_rule rule, double *values, const fo_hyper_f64 *h)
{
    double g = fmax(-h->clip, fmin(h->clip, values[1] * h->scale)) + h->l2 * values[0];
    if (plain_rules[rule]) values[0] = h->decay * values[0] + h->a * plain_rules[rule](values[0], g, values + 2, h);
}

static bool steps_by_sign(fo_rule rule)
{
    return rule == FO_RULE_lion || rule == FO_RULE_signum || rule == FO_RULE_signsgd || rule == FO_RULE_rprop;
}

static void check_rule(const fo_kernels *kernels, fo_tensor t)
{
    enum { N = 1100 }; /* more than a chunk, and a rest */
    static double values[N][STREAMS];
    fo_hyper h = scalars_of_order_one();
    h.f64.clip = below(2) ? 1 : INFINITY;
    h.f64.l2 = below(2) ? 0.1 : 0;
    narrow(&h);
    t.n = N;
    allocate(&t, ORDINARY);
    for (size_t i = 0; i < N; i++) {
        for (int k = 0; k < streams_of(&t); k++) values[i][k] = value_at(stream_of(&t, k), i);
        plain_step(t.rule, values[i], &h.f64);
    }
    step_block(kernels, &t, &h, 0, N);
    for (size_t i = 0; i < N; i++)
        for (int k = 0; k < streams_of(&t); k++) {
            const fo_stream *s = stream_of(&t, k);
            const double x = values[i][k], error = fabs(value_at(s, i) - x);
            const double arithmetic = (t.param.storage == FO_F64 ? 1e-13 : 1e-5) * (1 + fabs(x));
            const double allowed = last_place(s->storage, x) + arithmetic;
            if (error <= allowed) continue;
            /* (A sign of what is nearly zero may be the other one.) */
            if (k > 0 || !steps_by_sign(t.rule) || error > 2 * fabs(h.f64.a) + allowed) fail("wrong", &t, k);
        }
    release(&t, 0);
}

static void check_rules(const fo_kernels *kernels)
{
    for (int rule = 0; rule < FO_RULES; rule++)
        for (int p = 0; p < WITH_BESIDE; p++)
            for (int g = 0; g < WITH_BESIDE; g++)
                for (int s = 0; s < WITH_BESIDE; s++) {
                    fo_tensor t = {.rule = (fo_rule)rule};
                    t.param.storage = (fo_storage)p, t.grad.storage = (fo_storage)g;
                    for (int k = 0; k < fo_needs[rule].states; k++)
                        t.state[k].storage = (fo_storage)((s + k) % WITH_BESIDE);
                    if (p == FO_F64) {
                        if (g != FO_F64 || s != FO_F64) continue;
                        for (int k = 0; k < FO_MAX_STATES; k++) t.state[k].storage = FO_F64;
                    }
                    check_rule(kernels, t);
                }
}

/* Makes the state a copy of the gradient. */
static fo_hyper copying(void)
{
    fo_hyper h = {.f64 = {.scale = 1, .clip = INFINITY, .decay = 1, .c = 1}};
    narrow(&h);
    return h;
}

static void check_codecs(const fo_kernels *kernels)
{
    enum { N = 1 << 17 };
    const fo_hyper h = copying();
    for (int g = 0; g < WITH_BESIDE; g++)
        for (int s = 0; s < WITH_BESIDE; s++) {
            fo_tensor t = {.rule = FO_RULE_momentum, .n = N, .grad.storage = (fo_storage)g};
            t.state[0].storage = (fo_storage)s;
            allocate(&t, ANY_BITS);
            fill(&t.param, N, ORDINARY, 1);
            memset(t.state[0].at, 0, N * fo_storage_size((fo_storage)s));
            if (fo_storage_size((fo_storage)g) == 2)
                for (size_t i = 0; i < N; i++) ((uint16_t *)t.grad.at)[i] = (uint16_t)i;
            step_block(kernels, &t, &h, 0, N);
            for (size_t i = 0; i < N; i++) {
                const double x = rounded(FO_F32, value_at(&t.grad, i)), y = value_at(&t.state[0], i);
                const bool may_overflow = s == FO_BF16_STOCHASTIC && fabs(x) > 0x1.fep127;
                const bool is_near = s == FO_BF16_STOCHASTIC && fabs(y - x) < last_place(FO_BF16, x);
                if (!same(y, rounded((fo_storage)s, x)) && y != x && !is_near && !(may_overflow && isinf(y)))
                    fail("not the number that was given", &t, 2);
            }
            release(&t, 0);
        }
}

/* Stochastic rounding is right in the mean, and depends on the element's number alone. */
static void check_stochastic(const fo_kernels *kernels)
{
    enum { N = 1 << 17 };
    const double x = 1 + 0.3 * 0x1p-7;
    const fo_hyper h = copying();
    fo_tensor t = {.rule = FO_RULE_momentum, .n = N}, parts;
    t.state[0].storage = FO_BF16_STOCHASTIC;
    parts = t;
    allocate(&t, ANY_BITS);
    allocate(&parts, ANY_BITS);
    for (size_t i = 0; i < N; i++) put(&t.grad, i, x), put(&parts.grad, i, x);
    memset(t.state[0].at, 0, N * 2);
    memset(parts.state[0].at, 0, N * 2);
    step_block(kernels, &t, &h, 0, N);
    for (size_t from = 0, to; from < N; from = to) {
        to = from + 1 + below(3000);
        step_block(kernels, &parts, &h, from, to < N ? to : N);
    }
    if (memcmp(t.state[0].at, parts.state[0].at, N * 2)) fail("depends on the block", &t, 2);
    double sum = 0;
    for (size_t i = 0; i < N; i++) sum += value_at(&t.state[0], i) - x;
    if (fabs(sum / N) > 5 * 0x1p-7 * sqrt(0.3 * 0.7 / N)) fail("not right in the mean", &t, 2);
    release(&t, 0);
    release(&parts, 0);
}

/* Codes are the nearest there are, whatever the magnitude of a group; what they stand for has the same codes again. */
static void check_codes(const fo_kernels *kernels, fo_storage storage)
{
    enum { N = 40 * FO_BLOCK + 1001, NAN_IN = 5, INFINITY_IN = 7, ZERO = 9 };
    const fo_hyper h = copying();
    fo_tensor t = {.rule = FO_RULE_momentum, .n = N, .state[0].storage = storage}, again;
    again = t;
    allocate(&t, ORDINARY);
    allocate(&again, ORDINARY);
    memset(t.state[0].beside, 0, beside_bytes(&t.state[0], N));
    memset(again.state[0].beside, 0, beside_bytes(&t.state[0], N));
    float *x = t.grad.at, *y = again.grad.at;
    for (size_t group = 0; group * FO_GROUP < N; group++) {
        const int exponent = (int)below(220) - 100;
        for (size_t i = group * FO_GROUP; i < (group + 1) * FO_GROUP && i < N; i++) {
            x[i] = below(10) ? (float)ldexp(uniform() - (storage == FO_SIGNED8) * 0.5, exponent - (int)below(8)) : 0;
            if (group == ZERO) x[i] = 0;
            if (group == NAN_IN && i % 8 == 3) x[i] = NAN;
            if (group == INFINITY_IN && i % 8 == 3) x[i] = INFINITY;
        }
    }
    step_block(kernels, &t, &h, 0, N);
    for (size_t i = 0; i < N; i++) {
        double largest = 0;
        const size_t group = i / FO_GROUP;
        for (size_t k = group * FO_GROUP; k < (group + 1) * FO_GROUP && k < N; k++) largest = fmax(largest, fabs(x[k]));
        const double found = value_at(&t.state[0], i), step = (1 + 1e-4) / (storage == FO_SIGNED8 ? 254 : 510);
        y[i] = (float)found;
        if (group == NAN_IN || group == INFINITY_IN) {
            if (!isnan(found)) fail("a group with a NaN has numbers", &t, 2);
        } else if (largest == 0) {
            if (found != 0) fail("zeros are none", &t, 2);
        } else if (storage == FO_SIGNED8) {
            const double share = 1 + fmax(fabs(x[i]), fabs(found)) / largest;
            if (!(fabs(found - x[i]) <= step * largest * share * share / 2)) fail("not the nearest code", &t, 2);
            if (fabs(x[i]) == largest && found != x[i]) fail("the largest is not exact", &t, 2);
        } else {
            const double root = sqrt(x[i]), off = fabs(sqrt(found) - root), unit = sqrt(largest);
            if (!(off <= step * unit) && !(root > 0 && root < step * unit && ((uint8_t *)t.state[0].at)[i] == 1))
                fail("not the nearest code", &t, 2);
            if ((found == 0) != (x[i] == 0)) fail("zero or not", &t, 2);
        }
    }
    step_block(kernels, &again, &h, 0, N);
    if (memcmp(t.state[0].at, again.state[0].at, N)) fail("other codes the second time", &t, 2);
    release(&t, 0);
    release(&again, 0);
}

/* In two pieces a parameter is float32, or its upper 24 bits; the larger piece is what bfloat16 would be. */
static void check_split(const fo_kernels *kernels, fo_storage storage)
{
    enum { N = 2 * FO_BLOCK + 77, STEPS = 4 };
    fo_tensor t = {.rule = FO_RULE_adam, .n = N, .param.storage = storage}, whole;
    fo_hyper h = scalars_of_order_one();
    narrow(&h);
    whole = t;
    whole.param.storage = FO_F32;
    allocate(&t, ORDINARY);
    allocate(&whole, ORDINARY);
    for (int k = 1; k < streams_of(&t); k++) memcpy(stream_of(&whole, k)->at, stream_of(&t, k)->at, N * sizeof(float));
    for (int step = 0; step < STEPS; step++) {
        for (size_t i = 0; i < N; i++) ((float *)whole.param.at)[i] = (float)value_at(&t.param, i);
        step_block(kernels, &t, &h, 0, N);
        step_block(kernels, &whole, &h, 0, N);
        for (size_t i = 0; i < N; i++) {
            const double x = value_at(&whole.param, i), y = value_at(&t.param, i);
            const double off = storage == FO_SPLIT ? 0 : ldexp(last_place(FO_BF16, x), -9);
            const fo_stream upper = {.at = t.param.at, .storage = FO_BF16};
            if (!(fabs(y - x) <= off)) fail("bits were lost", &t, 0);
            if (!(fabs(value_at(&upper, i) - y) <= last_place(FO_BF16, y) / 2)) fail("not the nearest bfloat16", &t, 0);
        }
    }
    release(&t, 0);
    release(&whole, 0);
}

/* ---- rows ---- */

/* A table in one plan, and its rows that have a gradient, copied end to end with the gradient summed, in another. */
typedef struct {
    fo_tensor table, picked;
    size_t rows, width, occurrences;
    int64_t *numbers;
    size_t *places; /* of each row: where it is among those picked, or SIZE_MAX */
} row_problem;

static void *elements(size_t n, fo_storage storage) { return calloc(n + 1, fo_storage_size(storage)); }

static void copy_row(const fo_stream *to, size_t to_row, const fo_stream *from, size_t from_row, size_t width)
{
    const size_t bytes = width * fo_storage_size(from->storage);
    memcpy((char *)to->at + to_row * bytes, (const char *)from->at + from_row * bytes, bytes);
}

static row_problem draw_rows(fo_rule rule)
{
    static const size_t widths[] = {1, 2, 3, 16, 48, 100, 255, 256, 257, 1500, 4096};
    row_problem p = {.rows = 1 + below(below(2) ? 40 : 3000), .width = widths[below(sizeof widths / sizeof *widths)]};
    const bool wide = below(3) == 0;
    p.occurrences = below(4) ? below(2 * p.rows) : 20000 + below(20000);
    while (p.rows * p.width > 100000) p.rows = 1 + p.rows / 2;
    while (p.occurrences * p.width > 200000) p.occurrences /= 2;
    p.table = (fo_tensor){.rule = rule, .n = p.rows * p.width};
    for (int k = 0; k < streams_of(&p.table); k++) {
        fo_stream *s = stream_of(&p.table, k);
        do s->storage = wide ? FO_F64 : (fo_storage)below(WITH_BESIDE);
        while (s->storage == FO_BF16_STOCHASTIC || (!wide && k == 0 && s->storage == FO_F64));
        const size_t n = (k == 1 ? p.occurrences : p.rows) * p.width;
        s->at = elements(n, s->storage);
        fill(s, n, k >= 2 ? POSITIVE : ORDINARY, 1);
    }
    p.numbers = malloc((p.occurrences + 1) * sizeof *p.numbers);
    p.places = malloc(p.rows * sizeof *p.places);
    memset(p.places, 0xff, p.rows * sizeof *p.places);
    size_t count = 0;
    for (size_t i = 0; i < p.occurrences; i++) {
        p.numbers[i] = (int64_t)below(1 + below(p.rows));
        size_t *place = &p.places[p.numbers[i]];
        if (*place == SIZE_MAX) *place = count++;
    }
    p.picked = p.table;
    p.picked.n = count * p.width;
    for (int k = 0; k < streams_of(&p.table); k++) {
        fo_stream *s = stream_of(&p.picked, k);
        if (k == 1) s->storage = wide ? FO_F64 : FO_F32;
        s->at = elements(p.picked.n, s->storage);
        for (size_t row = 0; k != 1 && row < p.rows; row++)
            if (p.places[row] != SIZE_MAX) copy_row(s, p.places[row], stream_of(&p.table, k), row, p.width);
    }
    for (size_t i = 0; i < p.occurrences; i++)
        for (size_t j = 0; j < p.width; j++) {
            const size_t e = p.places[p.numbers[i]] * p.width + j;
            const double x = value_at(&p.table.grad, i * p.width + j);
            if (wide)
                ((double *)p.picked.grad.at)[e] += x;
            else
                ((float *)p.picked.grad.at)[e] += (float)x;
        }
    return p;
}

static double step_of(const fo_kernels *kernels, const row_problem *p, bool rows, fo_options options, int threads)
{
    const fo_request request = {.unscale = 0.5, .clip_norm = INFINITY, .clip_value = 1.5, .want_norm = true,
                                .zero_grad = true, .threads = threads};
    double count = 3;
    int32_t *narrow_ones = malloc((p->occurrences + 1) * sizeof *narrow_ones);
    for (size_t i = 0; i < p->occurrences; i++) narrow_ones[i] = (int32_t)p->numbers[i];
    fo_plan *plan = fo_plan_new(1);
    fo_tensor *t = plan->tensors;
    *t = rows ? p->table : p->picked;
    t->options = &options, t->count.at = &count; /* (which steps may write) */
    double kept[FO_MAX_NUMBERS] = {1, 1, 1, 1};
    for (int k = 0; k < FO_MAX_NUMBERS; k++) t->number[k].at = &kept[k];
    if (rows) {
        const bool wide = below(2);
        const void *values = p->table.grad.at, *given = wide ? (void *)p->numbers : (void *)narrow_ones;
        size_t wrong = 0;
        if (fo_group_rows(plan, 0, given, wide, p->occurrences, p->width, threads, &wrong) != FO_GROUPED) abort();
        t->grad.at = (void *)values;
    }
    if (!fo_plan_cut(plan)) abort();
    const fo_result result = fo_step(kernels, plan, &request);
    if (count != 4 || (p->picked.n && !(result.norm > 0))) fail("not stepped", &p->table, 0);
    fo_plan_free(plan);
    free(narrow_ones);
    return result.norm;
}

/* Whatever the rule, the storages and the width, a step of rows has the bits of a step of copies of them; other rows
 * stay as they are. */
static void check_rows(const fo_kernels *kernels, fo_rule rule)
{
    fo_options options = {.lr = 1e-2, .weight_decay = 0.01, .momentum = 0.9, .nesterov = 1, .alpha = 0.99,
                                .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .trust_coeff = 1e-3};
    row_problem p = draw_rows(rule);
    fo_tensor before = p.table;
    for (int k = 0; k < streams_of(&before); k++) {
        fo_stream *s = stream_of(&before, k);
        const size_t n = (k == 1 ? p.occurrences : p.rows) * p.width;
        s->at = elements(n, s->storage);
        if (n) memcpy(s->at, stream_of(&p.table, k)->at, n * fo_storage_size(s->storage));
    }
    const double norm = step_of(kernels, &p, true, options, 1 + (int)below(5));
    const double expected = step_of(kernels, &p, false, options, 1);
    const bool narrowed = p.table.grad.storage == FO_F64 && p.table.param.storage != FO_F64;
    if (fabs(norm - expected) > (narrowed ? 1e-6 : 1e-13) * expected) fail("another norm", &p.table, 1);
    /* (Of what a rule sums over a tensor, the order is another one.) */
    const bool exact = fo_needs[rule].sums == 0;
    for (int k = 0; k < streams_of(&p.table); k++) {
        const fo_stream *s = stream_of(&p.table, k);
        for (size_t e = 0; e < (k == 1 ? p.occurrences : p.rows) * p.width; e++) {
            const size_t place = k == 1 ? SIZE_MAX : p.places[e / p.width];
            const double x = place == SIZE_MAX ? value_at(stream_of(&before, k), e)
                                               : value_at(stream_of(&p.picked, k), place * p.width + e % p.width);
            /* (They are added to a parameter, which may be far larger than what comes out.) */
            const double largest = fmax(fabs(x), fabs(value_at(stream_of(&before, k), e)));
            const double off = place == SIZE_MAX || exact ? 0 : 4 * last_place(s->storage, largest);
            if (!same(value_at(s, e), x) && !(fabs(value_at(s, e) - x) <= off)) fail("the rows differ", &p.table, k);
        }
    }
    for (int k = 0; k < streams_of(&p.table); k++) {
        free(stream_of(&p.table, k)->at);
        free(stream_of(&p.picked, k)->at);
        free(stream_of(&before, k)->at);
    }
    free(p.numbers);
    free(p.places);
}

/* Numbers that are none of the table's are found, the first of them. */
static void check_wrong_rows(void)
{
    enum { ROWS = 1000, MANY = 40000 };
    static int64_t given[MANY];
    static const int64_t wrong_ones[] = {-1, ROWS, INT64_MAX, INT64_MIN};
    float table[1];
    fo_plan *plan = fo_plan_new(1);
    for (int round = 0; round < 20; round++) {
        const size_t count = 2 + below(MANY - 1), place = below(count);
        size_t found = 0;
        for (size_t i = 0; i < count; i++) given[i] = (int64_t)below(ROWS);
        given[place] = wrong_ones[below(4)];
        if (place + 1 < count) given[place + 1 + below(count - place - 1)] = ROWS + 5;
        plan->tensors[0] = (fo_tensor){.param.at = table, .n = ROWS};
        const fo_grouped result = fo_group_rows(plan, 0, given, true, count, 1, 1 + (int)below(5), &found);
        if (result != FO_NO_SUCH_ROW || found != place || plan->tensors[0].rows) fail("a wrong row", plan->tensors, 0);
    }
    fo_plan_free(plan);
}

static int check(void)
{
    const char *isa;
    for (size_t i = 0; (isa = fo_available_isa(i)); i++) {
        check_rules(fo_find_kernels(isa));
        check_codecs(fo_find_kernels(isa));
        check_stochastic(fo_find_kernels(isa));
        check_codes(fo_find_kernels(isa), FO_SIGNED8);
        check_codes(fo_find_kernels(isa), FO_ROOT8);
        check_split(fo_find_kernels(isa), FO_SPLIT);
        check_split(fo_find_kernels(isa), FO_SPLIT8);
        for (int round = 0; round < 100; round++) {
            const fo_rule rule = (fo_rule)below(FO_RULES);
            if (!is_floor(rule) && !fo_needs[rule].advances && !has_small(rule)) check_rows(fo_find_kernels(isa), rule);
        }
        printf("%s: right\n", isa);
    }
    check_wrong_rows();
    return 0;
}

/* ---- fuzz ---- */

enum { MOST_TENSORS = 6, MOST_OPTIONS = 3 };

typedef struct {
    fo_tensor tensors[MOST_TENSORS]; /* what every run starts from */
    bool has_grad[MOST_TENSORS];
    size_t count;
    double counts[MOST_TENSORS];
    fo_options options[MOST_OPTIONS];
    size_t owners[MOST_TENSORS];
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

static fo_tensor any_tensor(void)
{
    fo_tensor t = {.n = length(), .rule = (fo_rule)below(FO_RULES)};
    const bool wide = below(4) == 0, plain = below(2);
    for (int k = 0; k < streams_of(&t); k++) {
        const fo_storage any = (fo_storage)below(k == 1 ? WITH_BESIDE : FO_STORAGES);
        stream_of(&t, k)->storage = wide ? FO_F64 : plain || (k == 0 && any == FO_F64) ? FO_F32 : any;
    }
    give_matrices(&t, 1 + below(below(2) ? 10 : 2000), 1 + below(below(2) ? 40 : 3000));
    return t;
}

static void draw_problem(problem *p)
{
    *p = (problem){.count = below(MOST_TENSORS + 1)};
    const numbers kind = below(3) == 0 ? ANY_BITS : ORDINARY;
    for (size_t t = 0; t < p->count; t++) {
        p->tensors[t] = any_tensor();
        p->has_grad[t] = below(5) > 0;
        p->owners[t] = below(MOST_OPTIONS);
        p->counts[t] = (double)below(100);
        allocate(&p->tensors[t], kind);
    }
    for (size_t k = 0; k < MOST_OPTIONS; k++) {
        double *option = (double *)&p->options[k];
        for (size_t i = 0; i < FO_OPTIONS; i++) option[i] = uniform();
        p->options[k].velocity = (double)below(3);
        p->options[k].nesterov = (double)below(2);
        p->options[k].decoupled_weight_decay = (double)below(2);
        p->options[k].weight_decay *= (double)below(2);
        p->options[k].eps *= below(2) ? 1e-8 : 1;
        p->options[k].cautious = 0; /* (which would not survive splitting a tensor) */
        p->options[k].cautious_decay = (double)below(2);
    }
    p->request = (fo_request){.unscale = below(2) ? 1 : 0x1p-3,
                              .clip_norm = below(2) ? 100 * uniform() : INFINITY,
                              .clip_value = below(2) ? uniform() : INFINITY,
                              .want_norm = below(2),
                              .skip_nonfinite = below(2),
                              .zero_grad = below(2),
                              .zero_skipped = below(2)};
}

typedef struct {
    fo_tensor tensors[MOST_TENSORS];
    size_t shifts[MOST_TENSORS];
    fo_options options[MOST_OPTIONS]; /* which steps may write */
    double counts[2 * MOST_TENSORS]; /* steps, of each tensor of the plan, */
    double kept[2 * MOST_TENSORS][FO_MAX_NUMBERS]; /* and the numbers of its rule */
    fo_result result;
    double norm, max_abs; /* of the gradients, before the step */
} outcome;

/* A copy of the problem's memory behind a margin of 0x5a, with nothing behind it. */
static void place(outcome *o, const problem *p, bool aligned)
{
    for (size_t i = 0; i < p->count; i++) {
        o->shifts[i] = aligned ? 0 : below(8);
        o->tensors[i] = p->tensors[i];
        for (int k = 0; k < streams_of(&p->tensors[i]); k++) {
            fo_stream *s = stream_of(&o->tensors[i], k);
            const size_t size = fo_storage_size(s->storage), before = MARGIN + o->shifts[i] * size;
            char *room = malloc(before + p->tensors[i].n * size);
            memset(room, 0x5a, before);
            memcpy(room + before, s->at, p->tensors[i].n * size);
            s->at = room + before;
            const size_t beside = beside_bytes(s, p->tensors[i].n);
            const void *given = s->beside;
            s->beside = memcpy(malloc(beside + 1), given, beside);
        }
    }
}

/* One tensor of the plan for each parameter or, with `split`, two. (The bits do not depend on it where no norm and no
 * stochastic rounding does, nor a sum that the rule measures: these count within a tensor. Groups stay whole.) */
static fo_plan *plan_of(const problem *p, outcome *o, bool split)
{
    size_t lengths[2 * MOST_TENSORS] = {0}, count = 0;
    for (size_t i = 0; i < p->count; i++) {
        const size_t n = p->tensors[i].n, first = split ? below(n + 1) / FO_GROUP * FO_GROUP : n;
        lengths[count++] = first;
        if (split) lengths[count++] = n - first;
    }
    fo_plan *plan = fo_plan_new(count);
    memcpy(o->options, p->options, sizeof o->options);
    for (size_t i = 0; i < count; i++) {
        const size_t tensor = split ? i / 2 : i, from = split && i % 2 ? lengths[i - 1] : 0;
        fo_tensor *t = &plan->tensors[i];
        *t = o->tensors[tensor];
        t->n = lengths[i];
        t->options = &o->options[p->owners[tensor]];
        o->counts[i] = p->counts[tensor];
        t->count.at = &o->counts[i];
        for (int k = 0; k < FO_MAX_NUMBERS; k++) {
            o->kept[i][k] = 0.5;
            t->number[k].at = &o->kept[i][k];
        }
        for (int k = 0; k < streams_of(t); k++) {
            fo_stream *s = stream_of(t, k);
            *s = fo_from(*s, from);
        }
        if (!p->has_grad[tensor]) t->grad.at = NULL;
    }
    if (!fo_plan_cut(plan)) abort();
    return plan;
}

static outcome run(const problem *p, const fo_kernels *kernels, int threads, bool aligned, bool split)
{
    outcome o = {0};
    fo_request request = p->request;
    request.threads = threads;
    place(&o, p, aligned);
    fo_plan *plan = plan_of(p, &o, split);
    o.norm = fo_global_norm(kernels, plan, threads);
    o.max_abs = fo_global_max_abs(kernels, plan, threads);
    o.result = fo_step(kernels, plan, &request);
    fo_scale_gradients(kernels, plan, 0.3, threads);
    fo_clamp_gradients(kernels, plan, 0.2, threads);
    fo_plan_free(plan);
    return o;
}

static void check_margins(const outcome *o, size_t count)
{
    for (size_t i = 0; i < count; i++)
        for (int k = 0; k < streams_of(&o->tensors[i]); k++) {
            const fo_stream *s = stream_of(&o->tensors[i], k);
            for (size_t c = 1; c <= MARGIN; c++)
                if (((const char *)s->at)[-(ptrdiff_t)c] != 0x5a) fail("written before the array", &o->tensors[i], k);
        }
}

/* All bits, but one NaN is as good as another: which of two operands' payloads survives is up to the compiler. */
static void compare(const problem *p, const outcome *a, const outcome *b, bool norms)
{
    const bool alike = a->result.skipped == b->result.skipped && !a->result.unfit == !b->result.unfit && same(a->result.coefficient, b->result.coefficient) &&
                       same(a->result.norm, b->result.norm) && same(a->norm, b->norm);
    if (norms && !alike) fail("the norms differ", &p->tensors[0], 0);
    if (!same(a->max_abs, b->max_abs)) fail("the largest magnitudes differ", &p->tensors[0], 0);
    for (size_t i = 0; i < p->count; i++)
        for (int k = 0; k < streams_of(&p->tensors[i]); k++) {
            const fo_stream *x = stream_of(&a->tensors[i], k), *y = stream_of(&b->tensors[i], k);
            if (memcmp(x->beside, y->beside, beside_bytes(x, p->tensors[i].n))) fail("the scales differ", &p->tensors[i], k);
            for (size_t e = 0; e < p->tensors[i].n; e++)
                if (bits_at(x, e) != bits_at(y, e) && !same(value_at(x, e), value_at(y, e)))
                    fail("the bits differ", &p->tensors[i], k);
        }
}

static const fo_kernels *any_with_fma(void)
{
    size_t count = 0;
    while (fo_available_isa(count + 1)) count++; /* the last one is portable */
    return fo_find_kernels(fo_available_isa(count ? below(count) : 0));
}

/* Whether a rule counts or sums within a tensor. */
static bool knows_tensors(const problem *p)
{
    for (size_t i = 0; i < p->count; i++) {
        if (fo_needs[p->tensors[i].rule].sums || has_small(p->tensors[i].rule)) return true;
        for (int k = 0; k < streams_of(&p->tensors[i]); k++)
            if (stream_of(&p->tensors[i], k)->storage == FO_BF16_STOCHASTIC) return true;
    }
    return false;
}

static int fuzz(uint64_t seed, size_t rounds)
{
    size_t skipped = 0, clipped = 0, elements = 0;
    random_state = seed * 2 + 1;
    for (size_t round = 0; round < rounds; round++) {
        problem p;
        draw_problem(&p);
        const bool portable = below(4) == 0, split = isinf(p.request.clip_norm) && !knows_tensors(&p) && below(2);
        const fo_kernels *one = portable ? fo_find_kernels("portable") : any_with_fma();
        const fo_kernels *other = portable ? one : any_with_fma();
        outcome expected = run(&p, one, 1, true, false), found = run(&p, other, 1 + (int)below(9), false, split);
        check_margins(&found, p.count);
        compare(&p, &expected, &found, !split);
        skipped += expected.result.skipped;
        clipped += expected.result.coefficient < 1;
        for (size_t i = 0; i < p.count; i++) {
            elements += p.tensors[i].n;
            release(&expected.tensors[i], expected.shifts[i]);
            release(&found.tensors[i], found.shifts[i]);
            release(&p.tensors[i], 0);
        }
    }
    printf("%zu rounds, %zu elements, %zu skipped, %zu clipped: the same bits\n", rounds, elements, skipped, clipped);
    return 0;
}

typedef struct {
    uint64_t seed;
    size_t rounds;
} part;

static void *fuzz_part(void *given)
{
    const part *mine = given;
    fuzz(mine->seed, mine->rounds);
    return NULL;
}

static int fuzz_together(uint64_t seed, size_t rounds)
{
    part mine = {seed, rounds}, others = {seed + 1, rounds};
    pthread_t thread;
    if (pthread_create(&thread, NULL, fuzz_part, &others)) abort();
    fuzz_part(&mine);
    pthread_join(thread, NULL);
    return 0;
}

/* ---- fingerprint, count, time: a few combinations of storages ---- */

static const struct {
    const char *name;
    fo_storage param, grad, state, others; /* the first state, and any other */
} combinations[] = {
    {"float32", FO_F32, FO_F32, FO_F32, FO_F32},
    {"float64", FO_F64, FO_F64, FO_F64, FO_F64},
    {"bfloat16", FO_BF16, FO_BF16, FO_BF16, FO_BF16},
    {"bfloat16/float32", FO_BF16, FO_BF16, FO_F32, FO_F32},
    {"float16", FO_F16, FO_F16, FO_F16, FO_F16},
    {"float16/float32", FO_F16, FO_F16, FO_F32, FO_F32},
    {"stochastic", FO_BF16, FO_F32, FO_BF16_STOCHASTIC, FO_BF16_STOCHASTIC},
    {"float32/8bit", FO_F32, FO_F32, FO_SIGNED8, FO_ROOT8},
    {"split8/8bit", FO_SPLIT8, FO_BF16, FO_SIGNED8, FO_ROOT8},
    {"split/float32", FO_SPLIT, FO_BF16, FO_F32, FO_F32},
};

enum { COMBINATIONS = sizeof combinations / sizeof *combinations };

static fo_tensor tensor_of(fo_rule rule, size_t combination, size_t n)
{
    fo_tensor t = {.rule = rule, .n = n, .param.storage = combinations[combination].param,
                   .grad.storage = combinations[combination].grad};
    for (int k = 0; k < FO_MAX_STATES; k++)
        t.state[k].storage = k == 0 ? combinations[combination].state : combinations[combination].others;
    return t;
}

/* FNV-1a (Fowler, Noll & Vo). */
static uint64_t mix(uint64_t hash, const void *data, size_t bytes)
{
    const unsigned char *byte = data;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ byte[i]) * 1099511628211u;
    return hash;
}

/* Of parameters, states and norms after a few steps on two threads. */
static uint64_t hash_of(const fo_kernels *kernels, fo_rule rule, size_t combination)
{
    enum { WIDTH = 51, N = 353 * WIDTH, STEPS = 3 }; /* more than two blocks */
    const size_t n = N;
    uint64_t hash = 14695981039346656037u;
    random_state = 1;
    fo_tensor t = tensor_of(rule, combination, n);
    give_matrices(&t, n / WIDTH, WIDTH);
    allocate(&t, ORDINARY);
    double count = 0, kept[FO_MAX_NUMBERS] = {1, 1, 1, 1};
    fo_options options = {.lr = 1e-2, .weight_decay = 0.01, .momentum = 0.9, .nesterov = 1, .alpha = 0.99,
                                .beta1 = 0.9, .beta2 = 0.999, .beta3 = 0.99, .eps = 1e-8, .eps_root = 1e-12,
                                .beta2_decay = -0.8, .eps1 = 1e-8, .eps2 = 1e-3, .d = 1};
    fo_plan *plan = fo_plan_new(1);
    plan->tensors[0] = t;
    plan->tensors[0].count.at = &count;
    for (int k = 0; k < FO_MAX_NUMBERS; k++) plan->tensors[0].number[k].at = &kept[k];
    plan->tensors[0].options = &options;
    if (!fo_plan_cut(plan)) abort();
    for (int step = 0; step < STEPS; step++) {
        fo_request request = {.unscale = 1, .clip_norm = 100, .clip_value = 1.5, .threads = 2};
        fo_result result = fo_step(kernels, plan, &request);
        hash = mix(hash, &result.norm, sizeof result.norm);
    }
    for (int k = 0; k < streams_of(&t); k++)
        hash = mix(hash, stream_of(&t, k)->at, n * fo_storage_size(stream_of(&t, k)->storage));
    fo_plan_free(plan);
    release(&t, 0);
    return hash;
}

static int fingerprint(void)
{
    const char *isa;
    for (size_t i = 0; (isa = fo_available_isa(i)); i++)
        for (int rule = 0; rule < FO_RULES; rule++)
            for (size_t c = 0; c < COMBINATIONS; c++)
                printf("%s %s %s %016llx\n", isa, fo_rule_name((size_t)rule), combinations[c].name,
                       (unsigned long long)hash_of(fo_find_kernels(isa), (fo_rule)rule, c));
    return 0;
}

/* Each rule and storage once, on a block. */
static int count_instructions(const char *isa)
{
    const fo_kernels *kernels = fo_find_kernels(isa);
    if (!kernels) return 2;
    fo_hyper h = scalars_of_order_one();
    narrow(&h);
    for (int rule = 0; rule < FO_RULES; rule++)
        for (size_t c = 0; c < 2; c++) {
            fo_tensor t = tensor_of((fo_rule)rule, c, FO_BLOCK);
            allocate(&t, ORDINARY);
            step_block(kernels, &t, &h, 0, FO_BLOCK);
            release(&t, 0);
        }
    for (int s = 0; s < WITH_BESIDE; s++) {
        fo_tensor t = {.rule = FO_RULE_sgd, .n = FO_BLOCK, .param.storage = s == FO_F64 ? FO_F32 : (fo_storage)s,
                       .grad.storage = s == FO_F64 ? FO_F64 : FO_F32};
        allocate(&t, ORDINARY);
        step_block(kernels, &t, &h, 0, FO_BLOCK);
        kernels->sum_of_squares(&t.grad, FO_BLOCK, 1);
        kernels->max_abs(&t.grad, FO_BLOCK);
        release(&t, 0);
    }
    return 0;
}

/* ---- time ---- */

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef void contestant(const fo_kernels *, const fo_tensor *, const fo_hyper *);

static void blocks(const fo_kernels *kernels, const fo_tensor *t, const fo_hyper *h)
{
    for (size_t from = 0; from < t->n; from += FO_BLOCK)
        step_block(kernels, t, h, from, t->n - from < FO_BLOCK ? t->n : from + FO_BLOCK);
}

#if defined(__x86_64__)
#include <immintrin.h>

/* AdamW in float32 as one would write it by hand: the same arithmetic, but never storing zero for a fading state. */
__attribute__((target("avx2,fma"))) static void by_hand(const fo_kernels *none, const fo_tensor *t, const fo_hyper *h)
{
    (void)none;
    float *restrict p = t->param.at, *restrict m = t->state[0].at, *restrict v = t->state[1].at;
    const float *restrict g = t->grad.at;
    const __m256 scale = _mm256_set1_ps(h->f32.scale), decay = _mm256_set1_ps(h->f32.decay);
    const __m256 a = _mm256_set1_ps(h->f32.a), rbc2 = _mm256_set1_ps(h->f32.rbc2);
    const __m256 beta1 = _mm256_set1_ps(h->f32.beta1), beta1c = _mm256_set1_ps(h->f32.beta1c);
    const __m256 beta2 = _mm256_set1_ps(h->f32.beta2), beta2c = _mm256_set1_ps(h->f32.beta2c);
    const __m256 eps = _mm256_set1_ps(h->f32.eps), root = _mm256_set1_ps(h->f32.eps_root);
    for (size_t i = 0; i + 32 <= t->n; i += 32)
#pragma GCC unroll 4
        for (size_t j = i; j < i + 32; j += 8) {
            __m256 x = _mm256_mul_ps(scale, _mm256_loadu_ps(g + j));
            __m256 s = _mm256_fmadd_ps(beta1, _mm256_loadu_ps(m + j), _mm256_mul_ps(beta1c, x));
            __m256 q = _mm256_fmadd_ps(beta2, _mm256_loadu_ps(v + j), _mm256_mul_ps(_mm256_mul_ps(beta2c, x), x));
            __m256 u = _mm256_div_ps(s, _mm256_fmadd_ps(_mm256_sqrt_ps(_mm256_add_ps(q, root)), rbc2, eps));
            _mm256_storeu_ps(p + j, _mm256_fmadd_ps(a, u, _mm256_mul_ps(decay, _mm256_loadu_ps(p + j))));
            _mm256_storeu_ps(m + j, s);
            _mm256_storeu_ps(v + j, q);
        }
}
static bool has_by_hand(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
#define by_hand blocks
static bool has_by_hand(void) { return false; }
#endif

/* The least of many, taking turns: whatever disturbs only adds. */
static void time_level(fo_rule rule, size_t combination, size_t bytes)
{
    enum { MOST = 8 };
    struct {
        const char *name;
        contestant *run;
        const fo_kernels *kernels;
        fo_tensor tensor;
        double best;
    } all[MOST];
    size_t count = 0, bytes_each = 0;
    fo_tensor t = tensor_of(rule, combination, 0), floor;
    for (int k = 0; k < streams_of(&t); k++) bytes_each += fo_storage_size(stream_of(&t, k)->storage);
    t.n = bytes / bytes_each / 64 * 64;
    allocate(&t, ORDINARY);
    floor = t;
    floor.rule = (fo_rule)(FO_RULE_floor0 + fo_needs[rule].states);
    const char *isa;
    for (size_t i = 0; (isa = fo_available_isa(i)); i++) {
        all[count].name = isa, all[count].kernels = fo_find_kernels(isa), all[count].run = blocks;
        all[count++].tensor = t;
    }
    all[count].name = "floor", all[count].kernels = fo_best_kernels(), all[count].run = blocks;
    all[count++].tensor = floor;
    if (has_by_hand() && rule == FO_RULE_adam && combination == 0) {
        all[count].name = "by hand", all[count].kernels = NULL, all[count].run = by_hand;
        all[count++].tensor = t;
    }
    fo_hyper h = scalars_of_order_one();
    h.f64.flush = 2 * DBL_MIN;
    narrow(&h);
    h.f32.flush = 2 * FLT_MIN;
    const size_t repeat = 1 + 200000 / t.n, rounds = bytes <= (1 << 20) ? 200 : 1 + ((size_t)1 << 28) / bytes;
    for (size_t c = 0; c < count; c++) all[c].best = INFINITY;
    for (size_t r = 0; r < rounds; r++)
        for (size_t c = 0; c < count; c++) {
            const double start = seconds();
            for (size_t k = 0; k < repeat; k++) all[c].run(all[c].kernels, &all[c].tensor, &h);
            all[c].best = fmin(all[c].best, (seconds() - start) / (double)(repeat * t.n));
        }
    for (size_t c = 0; c < count; c++) printf("  %s %.3f", all[c].name, 1e9 * all[c].best);
    release(&t, 0);
}

static int time_rules(int count, char **names)
{
    static const struct {
        const char *name;
        size_t bytes;
    } levels[] = {{"L1", 20 << 10}, {"L2", 256 << 10}, {"L3", 8 << 20}, {"memory", 256 << 20}};
    for (int rule = 0; rule < FO_RULES; rule++) {
        bool wanted = count == 0;
        for (int k = 0; k < count; k++) wanted |= strcmp(names[k], fo_rule_name((size_t)rule)) == 0;
        if (!wanted || is_floor((fo_rule)rule)) continue;
        for (size_t c = 0; c < COMBINATIONS; c++)
            for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
                printf("%s %s, %s, ns an element:", fo_rule_name((size_t)rule), combinations[c].name, levels[l].name);
                time_level((fo_rule)rule, c, levels[l].bytes);
                printf("\n");
                fflush(stdout);
            }
    }
    return 0;
}

int main(int argc, char **argv)
{
    fo_load_openmp();
    const char *command = argc > 1 ? argv[1] : "";
    if (strcmp(command, "check") == 0 && argc == 2) return check();
    if (strcmp(command, "fuzz") == 0 && argc == 4) return fuzz(strtoull(argv[2], NULL, 10), strtoul(argv[3], NULL, 10));
    if (strcmp(command, "together") == 0 && argc == 4)
        return fuzz_together(strtoull(argv[2], NULL, 10), strtoul(argv[3], NULL, 10));
    if (strcmp(command, "fingerprint") == 0 && argc == 2) return fingerprint();
    if (strcmp(command, "count") == 0 && argc == 3) return count_instructions(argv[2]);
    if (strcmp(command, "time") == 0) return time_rules(argc - 2, argv + 2);
    printf("usage: harness check | fuzz SEED ROUNDS | together SEED ROUNDS | fingerprint | count ISA | time [RULE]...\n");
    return 2;
}
