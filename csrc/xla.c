/* A step as custom calls of XLA's (src/fastopt/backends/jax.py makes them): the time that XLA takes to compile a call grows
 * faster than with the square of what is in it, so that many parameters are shared out to several. What depends on all
 * gradients is measured before in a call of its own.
 *
 * Measure: attributes
 *     options     clip_norm
 *     places      for a traced number, 0, which is where it belongs in `options`
 *     skips       whether a step with gradients that are not finite is skipped
 *     tables      for each gradient, rows and elements of a row of its parameter, where that matters; else zeros
 *     sparse      which gradients are of some rows, upwards
 * arguments
 *     the traced numbers; all gradients; of those of some rows the numbers of these, one for each row of values. The number
 *     past the last row stands for none
 * result
 *     the halves of two numbers: what to multiply the gradients by, and whether the step is skipped
 *
 * Step: attributes
 *     rule        its number
 *     owners      for each tensor, its row of options
 *     options     rows of fo_options, then clip_value, the weight of the moving average, and what was measured
 *     places      for each traced number, where in `options` it belongs
 *     average     whether there is a moving average of the parameters
 *     kept        for each tensor, of itself, each of its states, its moving average, its numbers, the logarithm of the
 *                 decays that there have been and of those of each row: its storage, in which of the arrays of what is
 *                 kept it lies and from which element on, and the same of what lies beside it; -1 where there is none. A
 *                 parameter that lies there (a master) has its own memory for a copy
 *     matrices    for each tensor, rows and elements of a row of the matrices by which its states go
 *     tables, sparse    as above
 *     seats       for each tensor, its number among all, where that matters; upwards
 *     advances    where in a row of options the numbers belong that the rule keeps for all parameters together
 *     counts      whether this is the call that counts the step, and brings what `advances` names to after it
 * arguments
 *     the traced numbers; how many steps were taken; if `advances` names any, the halves of these; the arrays of what is
 *     kept, each of many parameters; all parameters; all gradients; numbers of rows, as above
 * results
 *     all from the number of steps on but for the gradients: the same memory, where XLA can have it so. A rule that hands
 *     over its update (rules.def) changes no parameter: that is in its last state then */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xla.h"

enum { CLIP_VALUE, AVERAGE_WEIGHT, SCALE, SKIPPED, NUMBERS_OF_ALL };

/* What a call is made of. */
typedef struct {
    double *options; /* a copy, with the traced numbers */
    double *taken;   /* how many steps each tensor has taken, without this one */
    fo_plan *plan;   /* those that are not of the call have no gradient */
    const int64_t *owners, *advances, *kept, *matrices, *seats, *tables, *sparse;
    size_t traced, rows, tensors, advanced, arrays, sparse_count;
    size_t heads; /* arguments after the traced ones that come before what is kept */
    fo_rule rule;
    bool average, counts;
} xla_parts;

static xla_error *failed(const xla_call *call, int code, const char *message)
{
    xla_error_args args = {.struct_size = sizeof args, .message = message, .code = code};
    return call->api->create_error(&args);
}

static xla_error *malformed(const xla_call *call)
{
    return failed(call, XLA_INVALID_ARGUMENT, "fastopt: a call that this version does not make");
}

static xla_error *out_of_memory(const xla_call *call)
{
    return failed(call, XLA_RESOURCE_EXHAUSTED, "fastopt: out of memory");
}

/* ---- attributes ---- */

static const void *attribute(const xla_call *call, const char *name, int type)
{
    const xla_attributes *all = &call->attributes;
    for (int64_t i = 0; i < all->size; i++)
        if (all->types[i] == type && all->names[i]->length == strlen(name) &&
            memcmp(all->names[i]->at, name, strlen(name)) == 0)
            return all->at[i];
    return NULL;
}

static bool read_integer(const xla_call *call, const char *name, int64_t *value)
{
    const xla_scalar *found = attribute(call, name, XLA_SCALAR);
    if (!found || found->dtype != XLA_S64) return false;
    *value = *(int64_t *)found->at;
    return true;
}

static bool read_array(const xla_call *call, const char *name, int dtype, const void **at, size_t *size)
{
    const xla_array *found = attribute(call, name, XLA_ARRAY);
    if (!found || found->dtype != dtype) return false;
    *at = found->at, *size = found->size;
    return true;
}

/* ---- buffers ---- */

static size_t length_of(const xla_buffer *buffer)
{
    size_t n = 1;
    for (int64_t k = 0; k < buffer->rank; k++) n *= (size_t)buffer->dims[k];
    return n;
}

static bool storage_of(int dtype, fo_storage *storage)
{
    switch (dtype) {
    case XLA_F32: *storage = FO_F32; return true;
    case XLA_F64: *storage = FO_F64; return true;
    case XLA_BF16: *storage = FO_BF16; return true;
    case XLA_F16: *storage = FO_F16; return true;
    default: return false;
    }
}

static size_t bytes_of(const xla_buffer *buffer)
{
    switch (buffer->dtype) {
    case XLA_F64: case XLA_S64: return length_of(buffer) * 8;
    case XLA_F32: case XLA_S32: case XLA_U32: return length_of(buffer) * 4;
    case XLA_F16: case XLA_BF16: case XLA_S16: return length_of(buffer) * 2;
    default: return length_of(buffer);
    }
}

/* A traced number: in single or double precision, or the two halves of one in double precision, which is how it comes
 * where JAX has no other. */
static bool read_number(const xla_buffer *buffer, double *number)
{
    float single;
    if (buffer->dtype == XLA_F32 && length_of(buffer) == 1) {
        memcpy(&single, buffer->data, sizeof single);
        *number = (double)single;
        return true;
    }
    bool whole = buffer->dtype == XLA_F64 && length_of(buffer) == 1, halves = buffer->dtype == XLA_U32 && length_of(buffer) == 2;
    if (whole || halves) memcpy(number, buffer->data, sizeof *number);
    return whole || halves;
}

/* Take the place of the k-th result: the argument's memory, or its own with what the argument has. */
static void *take(const xla_call *call, const xla_buffer *argument, size_t k)
{
    const xla_buffer *result = call->results.at[k];
    const size_t bytes = bytes_of(argument);
    if (result->data != argument->data && bytes) memcpy(result->data, argument->data, bytes);
    return result->data;
}

/* ---- what is in a call ---- */

/* Read the options with the traced numbers in their places; false: malformed, or out of memory. */
static bool read_options(const xla_call *call, xla_parts *parts, size_t *size)
{
    const void *options, *places;
    if (!read_array(call, "options", XLA_F64, &options, size) || !read_array(call, "places", XLA_S64, &places, &parts->traced) ||
        (size_t)call->arguments.size < parts->traced)
        return false;
    parts->options = malloc((*size + 1) * sizeof(double));
    if (!parts->options) return false;
    memcpy(parts->options, options, *size * sizeof(double));
    for (size_t k = 0; k < parts->traced; k++) {
        int64_t place = ((const int64_t *)places)[k];
        if (place < 0 || (size_t)place >= *size || !read_number(call->arguments.at[k], &parts->options[place])) return false;
    }
    return true;
}

/* An array with so many integers for each tensor. */
static bool read_table(const xla_call *call, const char *name, size_t tensors, size_t each, const int64_t **table)
{
    const void *at;
    size_t size;
    if (!read_array(call, name, XLA_S64, &at, &size) || size != tensors * each) return false;
    *table = at;
    return true;
}

/* How much is said of each thing that is kept, and how many things are of a tensor. */
enum { STORED, ARRAY, FIRST, ARRAY_BESIDE, FIRST_BESIDE, SAID };

static size_t kept_of(const xla_parts *parts)
{
    return 1 + fo_needs[parts->rule].states + parts->average + fo_needs[parts->rule].numbers + 2;
}

/* Which gradients are of some rows, and whose parameters are tables. */
static bool read_tables(const xla_call *call, xla_parts *parts)
{
    const void *sparse;
    if (!read_table(call, "tables", parts->tensors, 2, &parts->tables) ||
        !read_array(call, "sparse", XLA_S64, &sparse, &parts->sparse_count))
        return false;
    parts->sparse = sparse;
    for (size_t k = 0; k < parts->sparse_count; k++)
        if (parts->sparse[k] < (k ? parts->sparse[k - 1] + 1 : 0) || (size_t)parts->sparse[k] >= parts->tensors) return false;
    return true;
}

static bool read_attributes(const xla_call *call, xla_parts *parts)
{
    int64_t rule, average, counts;
    const void *owners, *advances;
    size_t numbers;
    if (!read_options(call, parts, &numbers) || !read_integer(call, "rule", &rule) ||
        !read_integer(call, "average", &average) || !read_integer(call, "counts", &counts) ||
        !read_array(call, "owners", XLA_S64, &owners, &parts->tensors) ||
        !read_array(call, "advances", XLA_S64, &advances, &parts->advanced))
        return false;
    if (rule < 0 || rule >= FO_RULES || fo_needs[rule].advances != (parts->advanced > 0) || numbers < NUMBERS_OF_ALL ||
        (numbers - NUMBERS_OF_ALL) % FO_OPTIONS)
        return false;
    parts->rule = (fo_rule)rule, parts->average = average, parts->counts = counts;
    parts->owners = owners, parts->rows = (numbers - NUMBERS_OF_ALL) / FO_OPTIONS;
    parts->advances = advances, parts->heads = parts->advanced ? 2 : 1;
    if (!read_tables(call, parts) || !read_table(call, "kept", parts->tensors, SAID * kept_of(parts), &parts->kept) ||
        !read_table(call, "matrices", parts->tensors, 2, &parts->matrices) ||
        !read_table(call, "seats", parts->tensors, 1, &parts->seats))
        return false;
    for (size_t i = 0; i < parts->tensors; i++)
        if (parts->owners[i] < 0 || (size_t)parts->owners[i] >= parts->rows ||
            parts->seats[i] < (i ? parts->seats[i - 1] + 1 : 0))
            return false;
    for (size_t k = 0; k < parts->advanced; k++)
        if (parts->advances[k] < 0 || parts->advances[k] >= FO_OPTIONS) return false;
    return true;
}

/* Put the numbers that the rule keeps for all parameters into each row of options; return where they are kept. */
static double *read_advanced(const xla_call *call, const xla_parts *parts)
{
    const xla_buffer *argument = call->arguments.at[parts->traced + 1];
    if (argument->dtype != XLA_U32 || length_of(argument) != 2 * parts->advanced) return NULL;
    double *kept = take(call, argument, 1);
    for (size_t row = 0; row < parts->rows; row++)
        for (size_t k = 0; k < parts->advanced; k++)
            memcpy(&parts->options[row * FO_OPTIONS + (size_t)parts->advances[k]], &kept[k], sizeof *kept);
    return kept;
}

/* So many bytes of one of the arrays of what is kept, which took the place of arguments, from a byte on; or NULL. */
static void *part_of(const xla_call *call, const xla_parts *parts, int64_t array, size_t first, size_t bytes)
{
    if (array < 0 || (size_t)array >= parts->arrays) return NULL;
    const xla_buffer *buffer = call->results.at[parts->heads + (size_t)array];
    return first <= bytes_of(buffer) && bytes <= bytes_of(buffer) - first ? (char *)buffer->data + first : NULL;
}

/* The k-th thing that is kept of a tensor, of n numbers; `own`: a parameter's memory, where it may be, or NULL. */
static bool read_kept(const xla_call *call, const xla_parts *parts, size_t i, size_t k, size_t n, void *own, fo_stream *stream)
{
    const int64_t *said = &parts->kept[SAID * (i * kept_of(parts) + k)];
    if (said[STORED] < 0 || said[STORED] >= FO_STORAGES || said[FIRST] < 0 || said[FIRST_BESIDE] < 0) return false;
    stream->storage = (fo_storage)said[STORED];
    const size_t size = fo_storage_size(stream->storage), beside = fo_beside_size(stream->storage);
    stream->at = said[ARRAY] < 0 ? own : part_of(call, parts, said[ARRAY], (size_t)said[FIRST] * size, n * size);
    if (!beside) return stream->at || !n;
    /* (Either a scale for each group, or something for each element.) */
    const size_t each = beside < FO_GROUP ? beside : beside / FO_GROUP, count = beside < FO_GROUP ? (n + FO_GROUP - 1) / FO_GROUP : n;
    stream->beside = part_of(call, parts, said[ARRAY_BESIDE], (size_t)said[FIRST_BESIDE] * each, count * each);
    return !n || (stream->at && stream->beside);
}

static bool read_gradient(const xla_buffer *buffer, fo_tensor *t)
{
    if (!storage_of(buffer->dtype, &t->grad.storage) || length_of(buffer) != t->n) return false;
    t->grad.at = t->n ? buffer->data : t; /* (of an empty one only that it is there) */
    return true;
}

/* Say for which rows of a table the values in a buffer are. */
static xla_error *read_rows(const xla_call *call, xla_parts *parts, size_t seat, const int64_t *table,
                            const xla_buffer *values, const xla_buffer *numbers, int threads)
{
    fo_tensor *t = &parts->plan->tensors[seat];
    const bool wide = numbers->dtype == XLA_S64;
    const size_t occurrences = length_of(numbers), rows = (size_t)table[0], width = (size_t)table[1];
    if ((!wide && numbers->dtype != XLA_S32) || table[0] <= 0 || table[1] <= 0 || t->n != rows * width ||
        length_of(values) != occurrences * width || !storage_of(values->dtype, &t->grad.storage))
        return malformed(call);
    size_t wrong = 0;
    t->n += width; /* (with the row that stands for none) */
    const fo_grouped grouped = fo_group_rows(parts->plan, seat, numbers->data, wide, occurrences, width, threads, &wrong);
    t->n -= width;
    if (grouped == FO_NO_MEMORY) return out_of_memory(call);
    if (grouped != FO_GROUPED) {
        char message[240];
        const long long number = wide ? ((const int64_t *)numbers->data)[wrong] : ((const int32_t *)numbers->data)[wrong];
        snprintf(message, sizeof message, "fastopt: expected row numbers of at least 0 and below %zu (%zu itself: none), got %lld at %zu",
                 rows, rows, number, wrong);
        return failed(call, XLA_INVALID_ARGUMENT, grouped == FO_NO_SUCH_ROW ? message : "fastopt: too many rows at once");
    }
    fo_rows *found = &parts->plan->groupings[seat]->rows;
    if (found->count && found->row[found->count - 1] == rows) found->count--;
    t->grad.at = occurrences ? values->data : t;
    return NULL;
}

/* Say how large the matrices are by which states go, if any do. */
static bool read_matrix(const int64_t *matrix, fo_tensor *t)
{
    bool small = false;
    for (int k = 0; k < fo_needs[t->rule].states; k++) small = small || fo_needs[t->rule].small[k];
    if (!small) return true;
    if (matrix[0] < 0 || matrix[1] < 0) return false;
    t->height = (size_t)matrix[0], t->width = (size_t)matrix[1];
    return t->n == 0 || (t->height && t->width && t->n % t->width == 0 && t->n / t->width % t->height == 0);
}

/* Say which decays the rows of a table have had, unless it has had no gradient of some rows alone: then no row has missed
 * any. */
static bool read_decays(const xla_call *call, const xla_parts *parts, size_t i, bool sparse, fo_tensor *t)
{
    const size_t place = kept_of(parts) - 2;
    const int64_t *table = &parts->tables[2 * i];
    fo_stream all, of_rows;
    if (parts->kept[SAID * (i * kept_of(parts) + place) + ARRAY] < 0) return true;
    if (table[0] < 0 || table[1] < 0 || (size_t)table[0] * (size_t)table[1] != t->n ||
        !read_kept(call, parts, i, place, 1, NULL, &all) || all.storage != FO_F64 ||
        !read_kept(call, parts, i, place + 1, (size_t)table[0], NULL, &of_rows) || of_rows.storage != FO_F64)
        return false;
    if (!sparse && *(double *)all.at == 0) return true;
    t->decay = (fo_number){all.at, false}, t->row_decay = of_rows.at, t->width = (size_t)table[1];
    return true;
}

static bool read_tensor(const xla_call *call, xla_parts *parts, size_t i, bool sparse)
{
    fo_tensor *t = &parts->plan->tensors[parts->seats[i]];
    const size_t states = fo_needs[parts->rule].states, place = parts->heads + parts->arrays + i;
    const xla_buffer *param = call->arguments.at[parts->traced + place];
    t->rule = parts->rule;
    t->options = (fo_options *)(parts->options + (size_t)parts->owners[i] * FO_OPTIONS);
    t->count = (fo_number){&parts->taken[i], false};
    t->n = length_of(param);
    fo_stream own = {.at = take(call, param, place)};
    if (!storage_of(param->dtype, &own.storage) || !read_matrix(&parts->matrices[2 * i], t) ||
        !read_kept(call, parts, i, 0, t->n, own.at, &t->param))
        return false;
    const bool mastered = parts->kept[SAID * i * kept_of(parts) + ARRAY] >= 0;
    if (fo_storage_size(own.storage) != (mastered ? sizeof(uint16_t) : fo_storage_size(t->param.storage))) return false;
    if (mastered) t->copy = own;
    for (size_t k = 0; k < states + parts->average; k++) {
        fo_stream *state = k < states ? &t->state[k] : &t->average;
        if (!read_kept(call, parts, i, 1 + k, k < states ? fo_state_length(t, (int)k) : t->n, NULL, state) ||
            (state->storage == FO_F64) != (t->param.storage == FO_F64))
            return false;
    }
    for (size_t k = 0; k < fo_needs[parts->rule].numbers; k++) {
        fo_stream number;
        if (!read_kept(call, parts, i, 1 + states + parts->average + k, 1, NULL, &number)) return false;
        if (number.storage != FO_F32 && number.storage != FO_F64) return false;
        t->number[k] = (fo_number){number.at, number.storage == FO_F32};
    }
    return read_decays(call, parts, i, sparse, t);
}

/* All gradients, of which the first is the argument with this number. */
static xla_error *read_gradients(const xla_call *call, xla_parts *parts, size_t first, int threads)
{
    size_t k = 0;
    for (size_t i = 0; i < parts->tensors; i++) {
        const size_t seat = parts->seats ? (size_t)parts->seats[i] : i;
        fo_tensor *t = &parts->plan->tensors[seat];
        const xla_buffer *values = call->arguments.at[first + i];
        const int64_t *table = &parts->tables[2 * i];
        const bool sparse = k < parts->sparse_count && (size_t)parts->sparse[k] == i;
        if (!parts->kept) t->n = sparse ? (size_t)table[0] * (size_t)table[1] : length_of(values);
        if (parts->kept && !read_tensor(call, parts, i, sparse)) return malformed(call);
        if (sparse) {
            xla_error *error = read_rows(call, parts, seat, table, values, call->arguments.at[first + parts->tensors + k++], threads);
            if (error) return error;
        } else if (!read_gradient(values, t)) {
            return malformed(call);
        }
        if (parts->kept && (t->grad.storage == FO_F64) != (t->param.storage == FO_F64)) return malformed(call);
    }
    return NULL;
}

/* ---- parameters that are copies of their masters ---- */

enum { CHUNK = 1024, ELEMENTS_A_THREAD = 65536 };

typedef struct {
    const fo_kernels *kernels;
    const fo_plan *plan;
} xla_copies;

static void take_over_part(const fo_kernels *kernels, const fo_tensor *t, size_t first, size_t n)
{
    uint16_t known[CHUNK];
    for (size_t i = first, m; i < first + n; i += m) {
        m = first + n - i < CHUNK ? first + n - i : CHUNK;
        const fo_stream rounded = {.at = known, .storage = t->copy.storage};
        const fo_stream master = fo_from(t->param, i), copy = fo_from(t->copy, i);
        kernels->convert(&rounded, &master, m);
        if (memcmp(known, copy.at, m * sizeof *known) == 0) continue;
        for (size_t k = 0; k < m; k++) {
            const fo_stream to = fo_from(master, k), from = fo_from(copy, k);
            if (memcmp(&known[k], from.at, sizeof *known) != 0) kernels->convert(&to, &from, 1);
        }
    }
}

/* Give masters the values that somebody else has written into their parameters. */
static void take_over(void *data, size_t thread, size_t threads)
{
    const xla_copies *copies = data;
    for (size_t i = 0; i < copies->plan->count; i++) {
        const fo_tensor *t = &copies->plan->tensors[i];
        if (!t->copy.at || !t->grad.at) continue;
        const size_t length = t->rows ? t->rows->width : CHUNK, parts = t->rows ? t->rows->count : (t->n + CHUNK - 1) / CHUNK;
        for (size_t k = thread; k < parts; k += threads) {
            const size_t first = (t->rows ? t->rows->row[k] : k) * length;
            take_over_part(copies->kernels, t, first, t->n - first < length ? t->n - first : length);
        }
    }
}

static void take_over_copies(const fo_kernels *kernels, const fo_plan *plan, int threads)
{
    size_t elements = 0;
    for (size_t i = 0; i < plan->count; i++) {
        const fo_tensor *t = &plan->tensors[i];
        if (t->copy.at) elements += t->rows ? t->rows->count * t->rows->width : t->n;
    }
    xla_copies copies = {kernels, plan};
    if (elements) fo_parallel(take_over, &copies, fo_threads_for(threads, elements / ELEMENTS_A_THREAD), threads <= 0);
}

/* ---- the calls ---- */

typedef xla_error *xla_work(const fo_kernels *kernels, int threads, const xla_call *call, xla_parts *parts);

static xla_error *measure(const fo_kernels *kernels, int threads, const xla_call *call, xla_parts *parts)
{
    size_t size;
    int64_t skips;
    const void *tables;
    if (!read_options(call, parts, &size) || size != 1 || !read_integer(call, "skips", &skips) || call->results.size != 1)
        return malformed(call);
    const xla_buffer *result = call->results.at[0];
    if (result->dtype != XLA_U32 || length_of(result) != 4) return malformed(call);
    if (!read_array(call, "tables", XLA_S64, &tables, &size) || size % 2) return malformed(call);
    parts->tensors = size / 2;
    if (!read_tables(call, parts) || (size_t)call->arguments.size != parts->traced + parts->tensors + parts->sparse_count)
        return malformed(call);
    fo_plan *plan = parts->plan = fo_plan_new(parts->tensors);
    if (!plan) return out_of_memory(call);
    xla_error *error = read_gradients(call, parts, parts->traced, threads);
    if (error) return error;
    if (!fo_plan_cut(plan)) return out_of_memory(call);
    double norm = fo_global_norm(kernels, plan, threads), clip_norm = parts->options[0], found[2] = {1, 0};
    if (isfinite(clip_norm)) found[0] = fo_clip_coefficient(norm, clip_norm);
    found[1] = skips && !isfinite(norm) && !isfinite(fo_global_max_abs(kernels, plan, threads));
    memcpy(result->data, found, sizeof found);
    return NULL;
}

/* What a rule hands over is made use of between two calls. */
static bool leave(void *hands)
{
    (void)hands;
    return false;
}

static xla_error *step(const fo_kernels *kernels, int threads, const xla_call *call, xla_parts *parts)
{
    if (!read_attributes(call, parts)) return malformed(call);
    const size_t results = (size_t)call->results.size, besides = parts->heads + parts->tensors;
    if (results < besides || (size_t)call->arguments.size != parts->traced + results + parts->tensors + parts->sparse_count)
        return malformed(call);
    parts->arrays = results - besides;
    const xla_buffer *count = call->arguments.at[parts->traced];
    if (count->dtype != XLA_S32 || length_of(count) != 1) return malformed(call);
    int32_t *steps = take(call, count, 0);
    double *kept = parts->advanced ? read_advanced(call, parts) : NULL;
    if (parts->advanced && (!kept || !parts->tensors)) return malformed(call);
    for (size_t k = 0; k < parts->arrays; k++)
        take(call, call->arguments.at[parts->traced + parts->heads + k], parts->heads + k);
    parts->plan = fo_plan_new(parts->tensors ? (size_t)parts->seats[parts->tensors - 1] + 1 : 0);
    parts->taken = malloc((parts->tensors + 1) * sizeof(double));
    if (!parts->plan || !parts->taken) return out_of_memory(call);
    for (size_t i = 0; i < parts->tensors; i++) parts->taken[i] = (double)*steps;
    xla_error *error = read_gradients(call, parts, parts->traced + results, threads);
    if (error) return error;
    if (!fo_plan_cut(parts->plan)) return out_of_memory(call);
    const double *of_all = parts->options + parts->rows * FO_OPTIONS;
    if (of_all[SKIPPED] != 0) return NULL;
    take_over_copies(kernels, parts->plan, threads);
    const fo_request request = {.unscale = of_all[SCALE], .clip_norm = INFINITY, .clip_value = of_all[CLIP_VALUE],
                                .average_weight = of_all[AVERAGE_WEIGHT], .threads = threads, .between = leave};
    const fo_result result = fo_step(kernels, parts->plan, &request);
    if (result.unfit) {
        char message[160];
        snprintf(message, sizeof message, "fastopt: the scalar '%s', formed from the options, is out of the range of its dtype",
                 fo_scalar_name((size_t)result.unfit - 1));
        return failed(call, XLA_INVALID_ARGUMENT, message);
    }
    if (!parts->counts) return NULL;
    *steps += 1;
    const double *row = parts->options + (size_t)(parts->advanced ? parts->owners[0] : 0) * FO_OPTIONS;
    for (size_t k = 0; k < parts->advanced; k++) memcpy(&kept[k], &row[parts->advances[k]], sizeof *kept);
    return NULL;
}

/* If that is what is asked, say for which version of the interface this is. */
static bool answer_metadata(const xla_call *call, int minor)
{
    xla_metadata_extension *extension = (xla_metadata_extension *)call->extension;
    if (!extension || extension->base.type != XLA_EXTENSION_METADATA) return false;
    extension->metadata->version.major = XLA_MAJOR;
    extension->metadata->version.minor = minor;
    extension->metadata->traits = 0;
    return true;
}

static xla_error *answer(xla_work *work, const fo_kernels *kernels, int threads, int minor, const xla_call *call)
{
    if (answer_metadata(call, minor)) return NULL;
    if (call->struct_size < sizeof *call || call->api->version.major != XLA_MAJOR)
        return failed(call, XLA_UNIMPLEMENTED, "fastopt: unknown version of XLA's foreign function interface");
    if (call->stage != XLA_STAGE_EXECUTE) return NULL;
    xla_parts parts = {0};
    xla_error *error = work(kernels, threads, call, &parts);
    free(parts.options);
    free(parts.taken);
    fo_plan_free(parts.plan);
    return error;
}

xla_error *fo_xla_measure(const fo_kernels *kernels, int threads, int minor, const xla_call *call)
{
    return answer(measure, kernels, threads, minor, call);
}

xla_error *fo_xla_step(const fo_kernels *kernels, int threads, int minor, const xla_call *call)
{
    return answer(step, kernels, threads, minor, call);
}
