/* From streams to loops: a stream that is stored as the arithmetic computes is used in place, any other goes through a
 * buffer, chunk by chunk. Nothing here knows a rule or a storage. */

/* Buffers are not a power of two apart: addresses whose last 12 bits agree get in each other's way. (A chunk of float64
 * has half as many elements.) */
typedef union {
    float f32[CHUNK + 32];
    double f64[CHUNK / 2 + 16];
} fo_buffer;

/* Rows of as many elements are used where they are; of narrower ones, several make a chunk. */
enum { WIDE = 256 };

typedef void fo_loop(void *restrict param, const void *restrict grad, void *restrict s0, void *restrict s1,
                     void *restrict s2, void *restrict s3, void *restrict s4, void *restrict s5, size_t n,
                     const fo_hyper *hyper, bool fetch);

static fo_storage arithmetic_of(const fo_stream *s) { return s->storage == FO_F64 ? FO_F64 : FO_F32; }

static void *place(const fo_stream *s, size_t element) { return fo_from(*s, element).at; }

/* Elements of a stream's next chunk. Chunks are counted from the beginning of the tensor. With rows they are half as long
 * and have whole rows, or some or all of a wide one, but for the first and the last of a block. */
static size_t chunk_of(const fo_stream *s, size_t first, size_t from, size_t rest)
{
    const size_t length = s->storage == FO_F64 ? CHUNK / 2 : CHUNK;
    size_t n = length - (first + from) % length;
    if (s->rows) {
        const size_t width = s->rows->width, most = CHUNK / 2;
        n = width - (s->first + from) % width;
        if (width < WIDE) n += (most - n) / width * width;
        if (n > most) n = most;
    }
    return n < rest ? n : rest;
}

/* ---- a chunk of rows ---- */

/* Not a call for each row. */
FO_INLINE void copy(void *restrict to, const void *restrict from, size_t bytes)
{
    enum { STRIDE = 32 };
    size_t k = 0;
    for (; k + STRIDE <= bytes; k += STRIDE) __builtin_memcpy((char *)to + k, (const char *)from + k, STRIDE);
    if (k < bytes) memcpy((char *)to + k, (const char *)from + k, bytes - k);
}

/* A part of a row: of which, from which column, how much. */
typedef struct {
    size_t row, column, n, done;
} fo_piece;

static fo_piece first_piece(size_t element, size_t width)
{
    return (fo_piece){.row = element / width, .column = element % width};
}

/* The next one of a chunk of n elements; false when there is none. */
FO_INLINE bool next_piece(size_t width, size_t n, fo_piece *piece)
{
    if (piece->n) {
        piece->done += piece->n;
        piece->row += 1;
        piece->column = 0;
    }
    piece->n = width - piece->column < n - piece->done ? width - piece->column : n - piece->done;
    return piece->n > 0;
}

/* Number of the piece's first element in the table. */
static size_t element_of(const fo_rows *rows, const fo_piece *piece)
{
    return rows->row[piece->row] * rows->width + piece->column;
}

static bool is_one_piece(const fo_stream *s, size_t from, size_t n)
{
    return (s->first + from) % s->rows->width + n <= s->rows->width;
}

static void decode_piece(const fo_stream *s, fo_storage arithmetic, size_t element, size_t n, void *to)
{
    const fo_stream stored = fo_from(*s, element);
    if (s->storage == arithmetic)
        copy(to, stored.at, n * fo_storage_size(arithmetic));
    else
        fo_codecs[s->storage].decode(to, &stored, n);
}

FO_INLINE void fetch(const fo_stream *s, size_t element, size_t n)
{
    const char *x = place(s, element);
    for (size_t k = 0; k < n * fo_storage_size(s->storage); k += CACHE_LINE) __builtin_prefetch(x + k);
}

/* While a row is read, the one that takes its place in the next chunk is fetched. */
static void gather_rows(const fo_stream *s, fo_storage arithmetic, size_t from, size_t n, char *to)
{
    const fo_rows *rows = s->rows;
    const size_t size = fo_storage_size(arithmetic), ahead = 1 + n / rows->width;
    fo_piece piece = first_piece(s->first + from, s->rows->width);
    while (next_piece(rows->width, n, &piece)) {
        if (piece.row + ahead < rows->count) {
            fetch(s, rows->row[piece.row + ahead] * rows->width, piece.n);
        }
        decode_piece(s, arithmetic, element_of(rows, &piece), piece.n, to + piece.done * size);
    }
}

static void scatter_rows(const fo_stream *s, fo_storage arithmetic, size_t from, size_t n, const char *buffer,
                    fo_context context)
{
    const size_t size = fo_storage_size(arithmetic);
    fo_piece piece = first_piece(s->first + from, s->rows->width);
    while (next_piece(s->rows->width, n, &piece)) {
        context.first = element_of(s->rows, &piece);
        const fo_stream stored = fo_from(*s, context.first);
        if (s->storage == arithmetic)
            copy(stored.at, buffer + piece.done * size, piece.n * size);
        else
            fo_codecs[s->storage].encode(&stored, (const float *)(buffer + piece.done * size), piece.n, &context);
    }
}

static void sum_rows(const fo_stream *s, fo_storage arithmetic, size_t from, size_t n, char *to)
{
    const fo_rows *rows = s->rows;
    const size_t size = fo_storage_size(arithmetic), all = rows->start[rows->count];
    fo_buffer decoded;
    fo_piece piece = first_piece(s->first + from, s->rows->width);
    while (next_piece(rows->width, n, &piece)) {
        char *total = to + piece.done * size;
        const size_t first = rows->start[piece.row], end = rows->start[piece.row + 1];
        for (size_t i = first; i < end && i + OCCURRENCES_AHEAD < all; i++)
            fetch(s, values_of(rows, i + OCCURRENCES_AHEAD) + piece.column, piece.n);
        if (s->storage == arithmetic) {
            (arithmetic == FO_F64 ? sum_f64 : sum_f32)(total, place(s, piece.column), rows, first, end, piece.n);
            continue;
        }
        const fo_codec codec = fo_codecs[s->storage];
        fo_stream values = fo_from(*s, values_of(rows, first) + piece.column);
        codec.decode((float *)total, &values, piece.n);
        for (size_t i = first + 1; i < end; i++) {
            values = fo_from(*s, values_of(rows, i) + piece.column);
            codec.decode(decoded.f32, &values, piece.n);
            VECTORISE for (size_t k = 0; k < piece.n; k++) ((float *)total)[k] += decoded.f32[k];
        }
    }
}

/* ---- small states: a number for each row or column, of means of squares ----
 *
 * A rule finds them as if there was one for each element. It does not write them: before it runs, all squares of a row or
 * a column have to be known. No block has a part of a row where a state is of rows alone: they are settled block by block,
 * as the step comes to them. Those of a matrix are settled in passes before it (step.c). */

static double number_at(const fo_stream *s, size_t place)
{
    const fo_stream stored = fo_from(*s, place);
    float x;
    if (s->storage == FO_F64) return *(const double *)stored.at;
    if (s->storage == FO_F32) return (double)*(const float *)stored.at;
    fo_codecs[s->storage].decode(&x, &stored, 1);
    return (double)x;
}

static void put_number(const fo_stream *s, size_t place, double value)
{
    const fo_stream stored = fo_from(*s, place);
    const float x = (float)value;
    if (s->storage == FO_F64)
        *(double *)stored.at = value;
    else if (s->storage == FO_F32)
        *(float *)stored.at = x;
    else
        fo_codecs[s->storage].encode(&stored, &x, 1, &(fo_context){0});
}

/* What a rule reads of a mean of squares of a matrix's row or column, so that no element needs a root of its own. */
static double reciprocal_root(double square) { return 1 / sqrt(square); }

/* A chunk of numbers, one for each element. */
static void spread(const fo_stream *s, fo_storage arithmetic, size_t from, size_t n, char *to)
{
    const size_t size = fo_storage_size(arithmetic);
    fo_piece piece = first_piece(s->first + from, s->width);
    while (next_piece(s->width, n, &piece)) {
        const size_t row = s->rows ? s->rows->row[piece.row] : piece.row;
        if (s->small == FO_COLUMNS) {
            decode_piece(s, arithmetic, row / s->height * s->width + piece.column, piece.n, to + piece.done * size);
            continue;
        }
        const double square = number_at(s, row), number = s->height == SIZE_MAX ? square : reciprocal_root(square);
        (arithmetic == FO_F64 ? fill_f64 : fill_f32)(to + piece.done * size, piece.n, number);
    }
}

/* A small state moves towards what was found, as the scalars say. */
static double moved(double before, double mean, const fo_hyper *hyper, bool wide)
{
    const double after = hyper->f64.beta2 * before + hyper->f64.beta2c * mean;
    return after < (wide ? hyper->f64.flush : (double)hyper->f32.flush) ? 0 : after;
}

/* ---- any chunk ---- */

/* A chunk of a stream as the arithmetic wants it. */
static void *opened(const fo_stream *s, fo_storage arithmetic, size_t from, size_t n, fo_buffer *buffer)
{
    if (s->small) {
        const size_t row = (s->first + from) / s->width, column = (s->first + from) % s->width;
        if (s->small == FO_COLUMNS && s->storage == arithmetic && column + n <= s->width)
            return place(s, row / s->height * s->width + column); /* (nothing writes there) */
        spread(s, arithmetic, from, n, (char *)buffer);
        return buffer;
    }
    if (s->summed) {
        sum_rows(s, arithmetic, from, n, (char *)buffer);
        return buffer;
    }
    if (s->rows && !is_one_piece(s, from, n)) {
        gather_rows(s, arithmetic, from, n, (char *)buffer);
        return buffer;
    }
    if (s->rows) {
        const fo_piece piece = first_piece(s->first + from, s->rows->width);
        from = element_of(s->rows, &piece);
    }
    const fo_stream stored = fo_from(*s, from);
    if (s->storage == arithmetic) return stored.at;
    fo_codecs[s->storage].decode(buffer->f32, &stored, n);
    return buffer;
}

/* Back to where it is stored, if it was not changed there. */
static void closed(const fo_stream *s, fo_storage arithmetic, size_t from, size_t n, const fo_buffer *buffer,
                   const fo_context *context)
{
    if (s->small) return;
    if (s->rows) {
        if (s->storage != arithmetic || !is_one_piece(s, from, n))
            scatter_rows(s, arithmetic, from, n, (const char *)buffer, *context);
    } else if (s->storage != arithmetic) {
        const fo_stream stored = fo_from(*s, from);
        fo_codecs[s->storage].encode(&stored, buffer->f32, n, context);
    }
}

/* ---- settling small states ---- */

/* Bring a state of rows to after the step, and add the squares to their columns (unless that is NULL), and of each matrix
 * the states to a total. */
static void settle_rows(const fo_block *b, int state, void *columns, double *totals)
{
    const fo_storage arithmetic = arithmetic_of(&b->param);
    const bool wide = arithmetic == FO_F64;
    const fo_stream *s = &b->state[state];
    const size_t size = fo_storage_size(arithmetic), first_matrix = b->first / s->width / s->height;
    fo_buffer param_buffer, grad_buffer, prepared;
    double lane[LANES] = {0};
    for (size_t from = 0, n; from < b->n; from += n) {
        n = chunk_of(&b->param, b->first, from, b->n - from);
        const void *grad = opened(&b->grad, arithmetic, from, n, &grad_buffer);
        const void *param = b->hyper->f64.l2 != 0 ? opened(&b->param, arithmetic, from, n, &param_buffer) : grad;
        if (b->from_memory) fo_fetch(grad, n * size);
        (wide ? prepare_all_f64 : prepare_all_f32)(param, grad, prepared.f32, n, b->hyper);
        fo_piece piece = first_piece(b->first + from, s->width);
        while (next_piece(s->width, n, &piece)) {
            const char *x = (const char *)prepared.f32 + piece.done * size;
            const size_t matrix = piece.row / s->height - first_matrix;
            (wide ? add_squares_of_row_f64 : add_squares_of_row_f32)(x, piece.n, piece.column, lane);
            if (columns) {
                char *column = (char *)columns + (matrix * s->width + piece.column) * size;
                (wide ? add_to_columns_f64 : add_to_columns_f32)(x, piece.n, column);
            }
            if (piece.column + piece.n < s->width) continue;
            const size_t row = s->rows ? s->rows->row[piece.row] : piece.row;
            put_number(s, row, moved(number_at(s, row), sum_of_lanes(lane) / (double)s->width, b->hyper, wide));
            if (totals) totals[matrix] += number_at(s, row);
            memset(lane, 0, sizeof lane);
        }
    }
}

/* Bring a state of columns to after the step, and put in the place of the sums what rules read. */
static void settle_columns(const fo_stream *s, fo_storage arithmetic, const fo_hyper *hyper, const fo_columns *c)
{
    const bool wide = arithmetic == FO_F64;
    const double least = wide ? hyper->f64.eps : (double)hyper->f32.eps, mean = c->mean < least ? least : c->mean;
    enum { AT_ONCE = 64 };
    for (size_t i = 0, n; i < c->n; i += n) {
        double sum[AT_ONCE] = {0};
        n = c->n - i < AT_ONCE ? c->n - i : AT_ONCE;
        for (size_t block = 0, at = i; block < c->blocks; block++, at += c->distance)
            for (size_t k = 0; k < n; k++)
                sum[k] += wide ? ((const double *)c->sums)[at + k] : (double)((const float *)c->sums)[at + k];
        for (size_t k = 0; k < n; k++) {
            const size_t place = c->first + i + k;
            put_number(s, place, moved(number_at(s, place), sum[k] / (double)c->height, hyper, wide));
            const double read = reciprocal_root(number_at(s, place) / mean);
            if (wide)
                ((double *)c->sums)[i + k] = read;
            else
                ((float *)c->sums)[i + k] = (float)read;
        }
    }
}

/* ---- a step ---- */

static bool is_direct(const fo_block *b, int states, fo_storage arithmetic)
{
    bool direct = !b->param.rows && b->param.storage == arithmetic && b->grad.storage == arithmetic;
    for (int k = 0; k < states; k++) direct = direct && b->state[k].storage == arithmetic && !b->state[k].small;
    return direct;
}

/* The decays that rows have missed since they were stepped last. No block has a part of a row. */
static void catch_up(const fo_block *b, fo_storage arithmetic, size_t from, size_t n, char *param)
{
    const fo_rows *rows = b->param.rows;
    const size_t ahead = 1 + n / b->width, size = fo_storage_size(arithmetic);
    fo_piece piece = first_piece(b->first + from, b->width);
    while (next_piece(b->width, n, &piece)) {
        double *known = &b->row_decay[rows ? rows->row[piece.row] : piece.row];
        if (rows && piece.row + ahead < rows->count) __builtin_prefetch(&b->row_decay[rows->row[piece.row + ahead]], 1);
        if (*known != b->decay_before) {
            const double missed = exp(b->decay_before - *known);
            (arithmetic == FO_F64 ? scale_f64 : scale_f32)(param + piece.done * size, piece.n, missed);
        }
        if (piece.column + piece.n == b->width) *known = b->decay_after;
    }
}

static void drive(const fo_block *b, int states, bool reads_grad, bool writes_states, int root, fo_loop *loop_f32,
                  fo_loop *loop_f64)
{
    const fo_storage arithmetic = arithmetic_of(&b->param);
    fo_loop *const loop = arithmetic == FO_F64 ? loop_f64 : loop_f32;
    fo_buffer param_buffer, grad_buffer, state_buffer[FO_MAX_STATES];
    void *state[FO_MAX_STATES] = {0};
    const bool direct = is_direct(b, states, arithmetic);
    for (size_t from = 0, n; from < b->n; from += n) {
        n = direct ? b->n : chunk_of(&b->param, b->first, from, b->n - from);
        void *param = opened(&b->param, arithmetic, from, n, &param_buffer);
        const void *grad = reads_grad ? opened(&b->grad, arithmetic, from, n, &grad_buffer) : NULL;
        for (int k = 0; k < states; k++) state[k] = opened(&b->state[k], arithmetic, from, n, &state_buffer[k]);
        if (!reads_grad) grad = state[0]; /* (for loops that have it all the same, and do nothing with it) */
        if (b->row_decay) catch_up(b, arithmetic, from, n, param);
        loop(param, grad, state[0], state[1], state[2], state[3], state[4], state[5], n, b->hyper,
             b->from_memory);
        fo_context context = {.seed = b->seed, .first = b->first + from};
        closed(&b->param, arithmetic, from, n, &param_buffer, &context);
        for (int k = 0; writes_states && k < states; k++) {
            context.stream = 1 + (uint32_t)k, context.rooted = k == root;
            closed(&b->state[k], arithmetic, from, n, &state_buffer[k], &context);
        }
    }
}

/* Loops that leave the root of a state, and of which one. */
static const struct {
    fo_loop *loop;
    int state;
} fo_rooted[FO_RULES] = {
#define ROOTED(name, state) [FO_RULE_##name] = {rooted_##name##_f32, state},
#include "rules.def"
};

static bool leaves_root(const fo_block *b, fo_rule rule)
{
    const fo_hyper_f32 *h = &b->hyper->f32;
    return fo_rooted[rule].loop && b->state[fo_rooted[rule].state].storage == FO_ROOT8 && h->eps_root == 0 &&
           h->l2 == 0 && isinf(h->clip);
}

#define RULE(name, states)                                                                                           \
    static void step_##name(const fo_block *b)                                                                       \
    {                                                                                                                \
        const bool writes = !fo_needs[FO_RULE_##name].writes_states;                                                 \
        for (int k = 0; k < states && !fo_needs[FO_RULE_##name].factored; k++)                                       \
            if (b->state[k].small) settle_rows(b, k, NULL, NULL);                                                    \
        const bool rooted = leaves_root(b, FO_RULE_##name);                                                          \
        drive(b, states, writes, writes, rooted ? fo_rooted[FO_RULE_##name].state : NO_ROOT,                         \
              rooted ? fo_rooted[FO_RULE_##name].loop : loop_##name##_f32, loop_##name##_f64);                       \
    }
#define FLOOR(name, states)
#include "rules.def"

#define CAREFUL(name, how)                                                                                           \
    static void careful_##name(const fo_block *b)                                                                    \
    {                                                                                                                \
        drive(b, fo_needs[FO_RULE_##name].states, true, !fo_needs[FO_RULE_##name].writes_states, NO_ROOT,            \
              careful_##name##_f32, careful_##name##_f64);                                                           \
    }
#include "rules.def"

/* ---- what a rule measures before it ---- */

typedef void fo_meter(const void *restrict param, const void *restrict grad, void *restrict s0, void *restrict s1,
                      void *restrict s2, void *restrict s3, void *restrict s4, void *restrict s5, size_t n,
                      const fo_hyper *hyper, bool fetch, fo_lanes *restrict lane);

static void measure(const fo_block *b, const fo_rule_needs *needs, int count, fo_meter *meter_f32,
                    fo_meter *meter_f64, double *sums)
{
    const fo_storage arithmetic = arithmetic_of(&b->param);
    fo_meter *const meter = arithmetic == FO_F64 ? meter_f64 : meter_f32;
    fo_buffer param_buffer, grad_buffer, state_buffer[FO_MAX_STATES];
    void *state[FO_MAX_STATES] = {0};
    fo_lanes lane[FO_MAX_SUMS] = {{0}};
    const bool direct = is_direct(b, needs->states, arithmetic);
    for (size_t from = 0, n; from < b->n; from += n) {
        n = direct ? b->n : chunk_of(&b->param, b->first, from, b->n - from);
        const void *param = opened(&b->param, arithmetic, from, n, &param_buffer);
        const void *grad = opened(&b->grad, arithmetic, from, n, &grad_buffer);
        for (int k = 0; k < needs->states; k++) state[k] = opened(&b->state[k], arithmetic, from, n, &state_buffer[k]);
        meter(param, grad, state[0], state[1], state[2], state[3], state[4], state[5], n, b->hyper,
              b->from_memory, lane);
        for (int k = 0; needs->writes_states && k < needs->states; k++) {
            fo_context context = {.seed = b->seed, .first = b->first + from, .stream = 1 + (uint32_t)k};
            closed(&b->state[k], arithmetic, from, n, &state_buffer[k], &context);
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
        const fo_stream *written[] = {&b->param, &b->state[0], &b->state[1], &b->state[2], &b->state[3]};            \
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
        m = chunk_of(x, 0, from, n - from);
        const void *v = opened(x, arithmetic, from, m, &buffer);
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
        m = chunk_of(x, 0, from, n - from);
        const void *v = opened(x, arithmetic, from, m, &buffer);
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
        m = chunk_of(x, 0, from, n - from);
        void *v = opened(x, arithmetic, from, m, &buffer);
        (arithmetic == FO_F64 ? change_f64 : change_f32)(v, m, value);
        closed(x, arithmetic, from, m, &buffer, &(fo_context){.first = from});
    }
}

/* ---- two streams ---- */

static void lerp(const fo_stream *target, const fo_stream *source, size_t n, double weight)
{
    const fo_storage arithmetic = arithmetic_of(target);
    fo_buffer target_buffer, source_buffer;
    for (size_t from = 0, m; from < n; from += m) {
        m = chunk_of(target, 0, from, n - from);
        void *x = opened(target, arithmetic, from, m, &target_buffer);
        const void *y = opened(source, arithmetic, from, m, &source_buffer);
        (arithmetic == FO_F64 ? lerp_f64 : lerp_f32)(x, y, m, weight);
        closed(target, arithmetic, from, m, &target_buffer, &(fo_context){.first = from});
    }
}

/* Store the same numbers otherwise. */
static void convert(const fo_stream *target, const fo_stream *source, size_t n)
{
    fo_buffer buffer;
    if (target->rows) {
        const fo_storage arithmetic = target->storage == FO_F64 ? FO_F64 : FO_F32;
        for (size_t from = 0, m; from < n; from += m) {
            m = chunk_of(source, 0, from, n - from);
            scatter_rows(target, arithmetic, from, m, opened(source, arithmetic, from, m, &buffer), (fo_context){0});
        }
        return;
    }
    if (target->storage == source->storage && !fo_beside_size(source->storage)) {
        memcpy(target->at, source->at, n * fo_storage_size(source->storage));
        return;
    }
    for (size_t from = 0, m; from < n; from += m) {
        m = chunk_of(target, 0, from, n - from);
        fo_buffer *x = target->storage == FO_F32 ? place(target, from) : &buffer;
        closed(target, FO_F32, from, m, opened(source, FO_F32, from, m, x), &(fo_context){.first = from});
    }
}

/* ---- changes to one ---- */

static void scale(const fo_stream *x, size_t n, double factor) { change(x, n, factor, scale_f32, scale_f64); }

static void clamp(const fo_stream *x, size_t n, double limit) { change(x, n, limit, clamp_f32, clamp_f64); }
