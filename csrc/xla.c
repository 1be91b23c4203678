/* A step as custom calls of XLA's (src/fastopt/backends/jax.py makes them): the time that XLA takes to compile a call grows
 * faster than with the square of what is in it, so that many parameters are shared out to several. What depends on all
 * gradients is measured before in a call of its own.
 *
 * Measure: attributes
 *     options     clip_norm
 *     places      for a traced number, 0, which is where it belongs in `options`
 *     skips       whether a step with gradients that are not finite is skipped
 * arguments
 *     the traced numbers; all gradients
 * result
 *     the halves of two numbers: what to multiply the gradients by, and whether the step is skipped
 *
 * Step: attributes
 *     rule        its number
 *     owners      for each tensor, its row of options
 *     options     rows of fo_options, then clip_value, the weight of the moving average, and what was measured
 *     places      for each traced number, where in `options` it belongs
 *     stochastic  a bit for each state that is rounded at random, where it is in bfloat16
 *     average     whether the last state is the parameters' moving average
 *     advances    where in a row of options the numbers belong that the rule keeps for all parameters together
 *     first       how many parameters there are before the call's, where that matters
 *     counts      whether this is the call that counts the step, and brings what `advances` names to after it
 * arguments
 *     the traced numbers; how many steps were taken; if `advances` names any, the halves of these; all parameters; for
 *     each state, those of all parameters; the same for the numbers that the rule keeps for each; all gradients
 * results
 *     all from the number of steps on but for the gradients: the same memory, where XLA can have it so */
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
    fo_plan *plan;   /* with `first` tensors before the call's, which have no gradient */
    const int64_t *owners, *advances;
    size_t traced, rows, first, tensors, advanced;
    size_t heads; /* arguments after the traced ones that come before the parameters */
    fo_rule rule;
    int64_t stochastic;
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
    size_t bytes = length_of(argument);
    switch (argument->dtype) {
    case XLA_F64: bytes *= 8; break;
    case XLA_F32: case XLA_S32: case XLA_U32: bytes *= 4; break;
    default: bytes *= 2;
    }
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

static bool read_attributes(const xla_call *call, xla_parts *parts)
{
    int64_t rule, average, first, counts;
    const void *owners, *advances;
    size_t numbers;
    if (!read_options(call, parts, &numbers) || !read_integer(call, "rule", &rule) ||
        !read_integer(call, "stochastic", &parts->stochastic) || !read_integer(call, "average", &average) ||
        !read_integer(call, "first", &first) || !read_integer(call, "counts", &counts) ||
        !read_array(call, "owners", XLA_S64, &owners, &parts->tensors) ||
        !read_array(call, "advances", XLA_S64, &advances, &parts->advanced))
        return false;
    if (rule < 0 || rule >= FO_RULES || fo_needs[rule].advances != (parts->advanced > 0) || first < 0 ||
        numbers < NUMBERS_OF_ALL || (numbers - NUMBERS_OF_ALL) % FO_OPTIONS)
        return false;
    parts->rule = (fo_rule)rule, parts->average = average, parts->first = (size_t)first, parts->counts = counts;
    parts->owners = owners, parts->rows = (numbers - NUMBERS_OF_ALL) / FO_OPTIONS;
    parts->advances = advances, parts->heads = parts->advanced ? 2 : 1;
    for (size_t i = 0; i < parts->tensors; i++)
        if (parts->owners[i] < 0 || (size_t)parts->owners[i] >= parts->rows) return false;
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

/* The stream of a tensor in the k-th result. */
static bool read_stream(const xla_call *call, size_t traced, size_t k, size_t n, fo_stream *stream)
{
    const xla_buffer *argument = call->arguments.at[traced + k];
    if (!storage_of(argument->dtype, &stream->storage) || length_of(argument) != n) return false;
    stream->at = take(call, argument, k);
    return true;
}

static bool read_gradient(const xla_buffer *buffer, fo_tensor *t)
{
    if (!storage_of(buffer->dtype, &t->grad.storage) || length_of(buffer) != t->n) return false;
    t->grad.at = t->n ? buffer->data : t; /* (of an empty one only that it is there) */
    return true;
}

static bool read_tensor(const xla_call *call, xla_parts *parts, size_t i)
{
    fo_tensor *t = &parts->plan->tensors[parts->first + i];
    const size_t count = parts->tensors, states = fo_needs[parts->rule].states, numbers = fo_needs[parts->rule].numbers;
    const size_t heads = parts->heads, after_states = heads + count * (1 + states + parts->average);
    t->rule = parts->rule;
    t->options = (fo_options *)(parts->options + (size_t)parts->owners[i] * FO_OPTIONS);
    t->count = (fo_number){&parts->taken[i], false};
    t->n = length_of(call->arguments.at[parts->traced + heads + i]);
    if (!read_stream(call, parts->traced, heads + i, t->n, &t->param)) return false;
    for (size_t k = 0; k < states + parts->average; k++) {
        fo_stream *state = k < states ? &t->state[k] : &t->average;
        if (!read_stream(call, parts->traced, heads + (k + 1) * count + i, t->n, state)) return false;
        if (state->storage == FO_BF16 && (parts->stochastic >> k & 1)) state->storage = FO_BF16_STOCHASTIC;
        if ((state->storage == FO_F64) != (t->param.storage == FO_F64)) return false;
    }
    for (size_t k = 0; k < numbers; k++) {
        const size_t place = after_states + k * count + i;
        const xla_buffer *number = call->arguments.at[parts->traced + place];
        if ((number->dtype != XLA_F32 && number->dtype != XLA_F64) || length_of(number) != 1) return false;
        t->number[k] = (fo_number){take(call, number, place), number->dtype == XLA_F32};
    }
    return read_gradient(call->arguments.at[parts->traced + after_states + numbers * count + i], t) &&
           (t->grad.storage == FO_F64) == (t->param.storage == FO_F64);
}

/* ---- the calls ---- */

typedef xla_error *xla_work(const fo_kernels *kernels, int threads, const xla_call *call, xla_parts *parts);

static xla_error *measure(const fo_kernels *kernels, int threads, const xla_call *call, xla_parts *parts)
{
    size_t size;
    int64_t skips;
    if (!read_options(call, parts, &size) || size != 1 || !read_integer(call, "skips", &skips) || call->results.size != 1)
        return malformed(call);
    const xla_buffer *result = call->results.at[0];
    if (result->dtype != XLA_U32 || length_of(result) != 4) return malformed(call);
    parts->tensors = (size_t)call->arguments.size - parts->traced;
    fo_plan *plan = parts->plan = fo_plan_new(parts->tensors);
    if (!plan) return out_of_memory(call);
    for (size_t i = 0; i < parts->tensors; i++) {
        const xla_buffer *grad = call->arguments.at[parts->traced + i];
        plan->tensors[i].n = length_of(grad);
        if (!read_gradient(grad, &plan->tensors[i])) return malformed(call);
    }
    if (!fo_plan_cut(plan)) return out_of_memory(call);
    double norm = fo_global_norm(kernels, plan, threads), clip_norm = parts->options[0], found[2] = {1, 0};
    if (isfinite(clip_norm)) found[0] = fo_clip_coefficient(norm, clip_norm);
    found[1] = skips && !isfinite(norm) && !isfinite(fo_global_max_abs(kernels, plan, threads));
    memcpy(result->data, found, sizeof found);
    return NULL;
}

static xla_error *step(const fo_kernels *kernels, int threads, const xla_call *call, xla_parts *parts)
{
    if (!read_attributes(call, parts)) return malformed(call);
    const size_t arrays = 1 + fo_needs[parts->rule].states + parts->average + fo_needs[parts->rule].numbers;
    const size_t results = parts->heads + parts->tensors * arrays;
    if ((size_t)call->results.size != results || (size_t)call->arguments.size != parts->traced + results + parts->tensors)
        return malformed(call);
    const xla_buffer *count = call->arguments.at[parts->traced];
    if (count->dtype != XLA_S32 || length_of(count) != 1) return malformed(call);
    int32_t *steps = take(call, count, 0);
    double *kept = parts->advanced ? read_advanced(call, parts) : NULL;
    if (parts->advanced && (!kept || !parts->tensors)) return malformed(call);
    parts->plan = fo_plan_new(parts->first + parts->tensors);
    parts->taken = malloc((parts->tensors + 1) * sizeof(double));
    if (!parts->plan || !parts->taken) return out_of_memory(call);
    for (size_t i = 0; i < parts->tensors; i++) {
        parts->taken[i] = (double)*steps;
        if (!read_tensor(call, parts, i)) return malformed(call);
    }
    if (!fo_plan_cut(parts->plan)) return out_of_memory(call);
    const double *of_all = parts->options + parts->rows * FO_OPTIONS;
    if (of_all[SKIPPED] != 0) return NULL;
    const fo_request request = {.unscale = of_all[SCALE], .clip_norm = INFINITY, .clip_value = of_all[CLIP_VALUE],
                                .average_weight = of_all[AVERAGE_WEIGHT], .threads = threads};
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
