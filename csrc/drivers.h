/* From streams to loops: a stream that is stored as the arithmetic computes is used in place, any other goes through a
 * buffer, chunk by chunk. Nothing here knows a rule or a storage. */

/* Buffers are not a power of two apart: addresses whose last 12 bits agree get in each other's way. */
typedef float fo_buffer[CHUNK + 32];

typedef void fo_loop(void *param, const void *grad, void *const *state, size_t n, const fo_hyper *hyper, bool fetch);

static fo_storage arithmetic_of(const fo_stream *s) { return s->storage == FO_F64 ? FO_F64 : FO_F32; }

static void *place(const fo_stream *s, size_t element) { return (char *)s->at + element * fo_storage_size(s->storage); }

/* Elements from here to the end of the chunk; chunks are counted from the beginning of the tensor. */
static size_t chunk_at(size_t element, size_t rest)
{
    size_t n = CHUNK - element % CHUNK;
    return n < rest ? n : rest;
}

/* A chunk of a stream as the arithmetic wants it. */
static void *opened(const fo_stream *s, fo_storage arithmetic, size_t from, size_t n, float *buffer)
{
    void *stored = place(s, from);
    if (s->storage == arithmetic) return stored;
    fo_codecs[s->storage].decode(buffer, stored, n);
    return buffer;
}

/* Back to where it is stored, if it was not changed there. */
static void closed(const fo_stream *s, fo_storage arithmetic, size_t from, size_t n, const float *buffer,
                   const fo_context *context)
{
    if (s->storage != arithmetic) fo_codecs[s->storage].encode(place(s, from), buffer, n, context);
}

/* ---- a step ---- */

static bool is_direct(const fo_block *b, int states, fo_storage arithmetic)
{
    bool direct = b->param.storage == arithmetic && b->grad.storage == arithmetic;
    for (int k = 0; k < states; k++) direct = direct && b->state[k].storage == arithmetic;
    return direct;
}

static void drive(const fo_block *b, int states, bool reads_grad, bool writes_states, fo_loop *loop_f32, fo_loop *loop_f64)
{
    const fo_storage arithmetic = arithmetic_of(&b->param);
    fo_loop *const loop = arithmetic == FO_F64 ? loop_f64 : loop_f32;
    fo_buffer param_buffer, grad_buffer, state_buffer[FO_MAX_STATES];
    void *state[FO_MAX_STATES];
    const bool direct = is_direct(b, states, arithmetic);
    for (size_t from = 0, n; from < b->n; from += n) {
        n = direct ? b->n : chunk_at(b->first + from, b->n - from);
        void *param = opened(&b->param, arithmetic, from, n, param_buffer);
        const void *grad = reads_grad ? opened(&b->grad, arithmetic, from, n, grad_buffer) : grad_buffer;
        for (int k = 0; k < states; k++) state[k] = opened(&b->state[k], arithmetic, from, n, state_buffer[k]);
        loop(param, grad, state, n, b->hyper, b->from_memory && direct);
        fo_context context = {.seed = b->seed, .first = b->first + from};
        closed(&b->param, arithmetic, from, n, param_buffer, &context);
        for (int k = 0; writes_states && k < states; k++) {
            context.stream = 1 + (uint32_t)k;
            closed(&b->state[k], arithmetic, from, n, state_buffer[k], &context);
        }
    }
}

#define RULE(name, states)                                                                                           \
    static void step_##name(const fo_block *b)                                                                       \
    {                                                                                                                \
        const bool writes = !fo_needs[FO_RULE_##name].writes_states;                                                 \
        drive(b, states, writes, writes, loop_##name##_f32, loop_##name##_f64);                                      \
    }
#define FLOOR(name, states)
#include "rules.def"

#define CAREFUL(name, how)                                                                                           \
    static void careful_##name(const fo_block *b)                                                                    \
    {                                                                                                                \
        drive(b, fo_needs[FO_RULE_##name].states, true, !fo_needs[FO_RULE_##name].writes_states,                     \
              careful_##name##_f32, careful_##name##_f64);                                                           \
    }
#include "rules.def"

/* ---- what a rule measures before it ---- */

typedef void fo_meter(const void *param, const void *grad, void *const *state, size_t n, const fo_hyper *hyper,
                      fo_parts *part);

static void measure(const fo_block *b, const fo_rule_needs *needs, int count, fo_meter *meter_f32,
                    fo_meter *meter_f64, double *sums)
{
    const fo_storage arithmetic = arithmetic_of(&b->param);
    fo_meter *const meter = arithmetic == FO_F64 ? meter_f64 : meter_f32;
    fo_buffer param_buffer, grad_buffer, state_buffer[FO_MAX_STATES];
    fo_parts part[FO_MAX_SUMS];
    void *state[FO_MAX_STATES];
    double lane[FO_MAX_SUMS][LANES] = {0};
    for (size_t from = 0, n; from < b->n; from += n) {
        n = chunk_at(b->first + from, b->n - from);
        const void *param = opened(&b->param, arithmetic, from, n, param_buffer);
        const void *grad = opened(&b->grad, arithmetic, from, n, grad_buffer);
        for (int k = 0; k < needs->states; k++) state[k] = opened(&b->state[k], arithmetic, from, n, state_buffer[k]);
        const size_t size = fo_storage_size(arithmetic);
        for (size_t at = 0; at < n; at += PART) {
            const size_t m = n - at < PART ? n - at : PART;
            void *here[FO_MAX_STATES];
            for (int k = 0; k < needs->states; k++) here[k] = (char *)state[k] + at * size;
            if (b->from_memory) {
                fo_fetch((const char *)param + at * size, m * size);
                fo_fetch((const char *)grad + at * size, m * size);
                for (int k = 0; k < needs->states; k++) fo_fetch(here[k], m * size);
            }
            meter((const char *)param + at * size, (const char *)grad + at * size, here, m, b->hyper, part);
            for (int k = 0; k < count; k++) add_parts(part[k], m, lane[k]);
        }
        for (int k = 0; needs->writes_states && k < needs->states; k++) {
            fo_context context = {.seed = b->seed, .first = b->first + from, .stream = 1 + (uint32_t)k};
            closed(&b->state[k], arithmetic, from, n, state_buffer[k], &context);
        }
    }
    for (int k = 0; k < count; k++) sums[k] = sum_of_lanes(lane[k]);
}

#define METER(name, count)                                                                                           \
    static void measure_##name(const fo_block *b, double *sums)                                                      \
    {                                                                                                                \
        measure(b, &fo_needs[FO_RULE_##name], count, measure_##name##_f32, measure_##name##_f64, sums);              \
    }
#define MEASURE(name, count, scope, states) METER(name, count)
#define CAREFUL(name, how) CAREFUL_##how(name)
#define CAREFUL_MEASURED(name)
#define CAREFUL_COUNTED(name) METER(name, 1)
#include "rules.def"

#undef METER
#undef CAREFUL_COUNTED

/* ---- the floors: read the gradient, read and write the parameter and the states, as words of memory ---- */

typedef uint64_t fo_word __attribute__((aligned(1), may_alias));

static size_t words_of(const fo_stream *s, size_t n) { return n * fo_storage_size(s->storage) / sizeof(fo_word); }

static uint64_t read_from(const fo_stream *s, size_t from, size_t n)
{
    const fo_word *restrict w = s->at;
    const size_t words = words_of(s, n);
    uint64_t found = 0;
    VECTORISE for (size_t i = from; i < words; i++) found |= w[i];
    return found;
}

static void write_from(const fo_stream *s, size_t from, size_t n, uint64_t change)
{
    fo_word *restrict w = s->at;
    const size_t words = words_of(s, n);
    VECTORISE for (size_t i = from; i < words; i++) w[i] ^= change;
}

/* All streams together as far as the shortest goes, then the rest of each. What is written is what was read, but no
 * compiler knows: n has no 64th bit. (Less than a word at the end is left out.) */
#define RULE(name, states)
#define FLOOR(name, states)                                                                                          \
    static void step_##name(const fo_block *b)                                                                       \
    {                                                                                                                \
        const fo_word *restrict g = b->grad.at;                                                                      \
        uint64_t none = b->n >> 63;                                                                                  \
        const fo_stream *written[] = {&b->param, &b->state[0], &b->state[1], &b->state[2]};                          \
        fo_word *w[1 + states];                                                                                      \
        size_t common = words_of(&b->grad, b->n);                                                                    \
        UNROLL for (int k = 0; k <= states; k++) {                                                                   \
            size_t words = words_of(written[k], b->n);                                                               \
            w[k] = written[k]->at;                                                                                   \
            common = words < common ? words : common;                                                                \
        }                                                                                                            \
        VECTORISE for (size_t i = 0; i < common; i++) {                                                              \
            UNROLL for (int k = 0; k <= states; k++) w[k][i] ^= g[i] & none;                                         \
        }                                                                                                            \
        none &= read_from(&b->grad, common, b->n);                                                                   \
        UNROLL for (int k = 0; k <= states; k++) write_from(written[k], common, b->n, none);                         \
    }
#include "rules.def"

/* ---- a stream on its own ---- */

static double sum_of_squares(const fo_stream *x, size_t n, double factor)
{
    const fo_storage arithmetic = arithmetic_of(x);
    fo_buffer buffer;
    double lane[LANES] = {0};
    for (size_t from = 0, m; from < n; from += m) {
        m = chunk_at(from, n - from);
        const void *v = opened(x, arithmetic, from, m, buffer);
        (arithmetic == FO_F64 ? add_squares_f64 : add_squares_f32)(v, m, factor, lane);
    }
    return sum_of_lanes(lane);
}

/* Largest |x|, NaN if there is one. */
static double max_abs(const fo_stream *x, size_t n)
{
    const fo_storage arithmetic = arithmetic_of(x);
    fo_buffer buffer;
    double largest = 0;
    for (size_t from = 0, m; from < n; from += m) {
        m = chunk_at(from, n - from);
        const void *v = opened(x, arithmetic, from, m, buffer);
        double found = (arithmetic == FO_F64 ? max_abs_f64 : max_abs_f32)(v, m);
        largest = found > largest || isnan(found) ? found : largest;
    }
    return largest;
}

typedef void fo_change(void *x, size_t n, double value);

static void change(const fo_stream *x, size_t n, double value, fo_change *change_f32, fo_change *change_f64)
{
    const fo_storage arithmetic = arithmetic_of(x);
    fo_buffer buffer;
    for (size_t from = 0, m; from < n; from += m) {
        m = chunk_at(from, n - from);
        void *v = opened(x, arithmetic, from, m, buffer);
        (arithmetic == FO_F64 ? change_f64 : change_f32)(v, m, value);
        closed(x, arithmetic, from, m, buffer, &(fo_context){.first = from});
    }
}

/* ---- two streams ---- */

static void lerp(const fo_stream *target, const fo_stream *source, size_t n, double weight)
{
    const fo_storage arithmetic = arithmetic_of(target);
    fo_buffer target_buffer, source_buffer;
    for (size_t from = 0, m; from < n; from += m) {
        m = chunk_at(from, n - from);
        void *x = opened(target, arithmetic, from, m, target_buffer);
        const void *y = opened(source, arithmetic, from, m, source_buffer);
        (arithmetic == FO_F64 ? lerp_f64 : lerp_f32)(x, y, m, weight);
        closed(target, arithmetic, from, m, target_buffer, &(fo_context){.first = from});
    }
}

/* Store the same numbers otherwise. */
static void convert(const fo_stream *target, const fo_stream *source, size_t n)
{
    fo_buffer buffer;
    if (target->storage == source->storage) {
        memcpy(target->at, source->at, n * fo_storage_size(source->storage));
        return;
    }
    for (size_t from = 0, m; from < n; from += m) {
        m = chunk_at(from, n - from);
        float *x = target->storage == FO_F32 ? place(target, from) : buffer;
        const float *y = source->storage == FO_F32 ? place(source, from) : x;
        if (source->storage != FO_F32) fo_codecs[source->storage].decode(x, place(source, from), m);
        closed(target, FO_F32, from, m, y, &(fo_context){.first = from});
    }
}

/* ---- changes to one ---- */

static void scale(const fo_stream *x, size_t n, double factor) { change(x, n, factor, scale_f32, scale_f64); }

static void clamp(const fo_stream *x, size_t n, double limit) { change(x, n, limit, clamp_f32, clamp_f64); }
