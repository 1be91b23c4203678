/* A step as a custom call of XLA's (src/fastopt/jax/ makes the calls).
 *
 * Attributes
 *     rule        its number
 *     owners      for each tensor, its row of options
 *     options     rows of fo_options, then clip_norm, clip_value and the weight of the moving average
 *     places      for each traced number, where in `options` it belongs
 *     stochastic  a bit for each state that is rounded at random, where it is in bfloat16
 *     average     whether the last state is the parameters' moving average
 *     skips       whether a step with gradients that are not finite is skipped
 * Arguments
 *     the traced numbers; how many steps were taken; all parameters; for each state, those of all parameters; the same
 *     for the numbers that the rule keeps; all gradients
 * Results
 *     all from the number of steps on but for the gradients: the same memory, where XLA can have it so */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xla.h"

enum { CLIP_NORM, CLIP_VALUE, AVERAGE_WEIGHT, NUMBERS_OF_ALL };

/* What a call is made of. */
typedef struct {
    fo_rule rule;
    size_t tensors, rows, traced;
    const int64_t *owners, *places;
    int64_t stochastic;
    bool average, skips;
    double *options; /* a copy, with the traced numbers */
    double *counts;  /* of each tensor */
    fo_plan *plan;
} xla_step;

static xla_error *failed(const xla_call *call, int code, const char *message)
{
    xla_error_args args = {.struct_size = sizeof args, .message = message, .code = code};
    return call->api->create_error(&args);
}

static xla_error *malformed(const xla_call *call)
{
    return failed(call, XLA_INVALID_ARGUMENT, "fastopt: a call that this version does not make");
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

static bool read_attributes(const xla_call *call, xla_step *step)
{
    int64_t rule, average, skips;
    const void *owners, *places, *options;
    size_t numbers;
    if (!read_integer(call, "rule", &rule) || !read_integer(call, "stochastic", &step->stochastic) ||
        !read_integer(call, "average", &average) || !read_integer(call, "skips", &skips) ||
        !read_array(call, "owners", XLA_S64, &owners, &step->tensors) ||
        !read_array(call, "places", XLA_S64, &places, &step->traced) ||
        !read_array(call, "options", XLA_F64, &options, &numbers))
        return false;
    if (rule < 0 || rule >= FO_RULES || numbers < NUMBERS_OF_ALL || (numbers - NUMBERS_OF_ALL) % FO_OPTIONS) return false;
    step->rule = (fo_rule)rule, step->average = average, step->skips = skips;
    step->owners = owners, step->places = places, step->rows = (numbers - NUMBERS_OF_ALL) / FO_OPTIONS;
    for (size_t i = 0; i < step->tensors; i++)
        if (step->owners[i] < 0 || (size_t)step->owners[i] >= step->rows) return false;
    for (size_t i = 0; i < step->traced; i++)
        if (step->places[i] < 0 || (size_t)step->places[i] >= numbers) return false;
    step->options = malloc(numbers * sizeof(double));
    step->counts = malloc((step->tensors + 1) * sizeof(double));
    step->plan = fo_plan_new(step->tensors);
    if (step->options) memcpy(step->options, options, numbers * sizeof(double));
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
    case XLA_F32: case XLA_S32: bytes *= 4; break;
    default: bytes *= 2;
    }
    if (result->data != argument->data && bytes) memcpy(result->data, argument->data, bytes);
    return result->data;
}

/* The stream of a tensor in the k-th result. One without elements has no memory, but is there. */
static bool read_stream(const xla_call *call, size_t traced, size_t k, size_t n, fo_stream *stream)
{
    const xla_buffer *argument = call->arguments.at[traced + k];
    if (!storage_of(argument->dtype, &stream->storage) || length_of(argument) != n) return false;
    stream->at = take(call, argument, k);
    return true;
}

static bool read_tensor(const xla_call *call, xla_step *step, size_t i)
{
    fo_tensor *t = &step->plan->tensors[i];
    const size_t count = step->tensors, states = fo_needs[step->rule].states, numbers = fo_needs[step->rule].numbers;
    const size_t after_states = 1 + count * (1 + states + step->average);
    t->rule = step->rule;
    t->options = (const fo_options *)(step->options + (size_t)step->owners[i] * FO_OPTIONS);
    t->count = (fo_number){&step->counts[i], false};
    t->n = length_of(call->arguments.at[step->traced + 1 + i]);
    if (!read_stream(call, step->traced, 1 + i, t->n, &t->param)) return false;
    for (size_t k = 0; k < states + step->average; k++) {
        fo_stream *state = k < states ? &t->state[k] : &t->average;
        if (!read_stream(call, step->traced, 1 + (k + 1) * count + i, t->n, state)) return false;
        if (state->storage == FO_BF16 && (step->stochastic >> k & 1)) state->storage = FO_BF16_STOCHASTIC;
        if ((state->storage == FO_F64) != (t->param.storage == FO_F64)) return false;
    }
    for (size_t k = 0; k < numbers; k++) {
        const xla_buffer *number = call->arguments.at[step->traced + after_states + k * count + i];
        if ((number->dtype != XLA_F32 && number->dtype != XLA_F64) || length_of(number) != 1) return false;
        t->number[k] = (fo_number){take(call, number, after_states + k * count + i), number->dtype == XLA_F32};
    }
    const xla_buffer *grad = call->arguments.at[step->traced + after_states + numbers * count + i];
    if (!storage_of(grad->dtype, &t->grad.storage) || length_of(grad) != t->n ||
        (t->grad.storage == FO_F64) != (t->param.storage == FO_F64))
        return false;
    t->grad.at = t->n ? grad->data : t; /* (of an empty one only that it is there) */
    return true;
}

/* ---- the call ---- */

static xla_error *run_step(const fo_kernels *kernels, int threads, const xla_call *call, xla_step *step)
{
    const size_t arrays = 1 + fo_needs[step->rule].states + step->average + fo_needs[step->rule].numbers;
    const size_t results = 1 + step->tensors * arrays;
    if ((size_t)call->results.size != results ||
        (size_t)call->arguments.size != step->traced + results + step->tensors)
        return malformed(call);
    for (size_t k = 0; k < step->traced; k++)
        if (!read_number(call->arguments.at[k], &step->options[step->places[k]])) return malformed(call);
    const xla_buffer *count = call->arguments.at[step->traced];
    if (count->dtype != XLA_S32 || length_of(count) != 1) return malformed(call);
    int32_t *taken = take(call, count, 0);
    for (size_t i = 0; i < step->tensors; i++) {
        step->counts[i] = (double)*taken;
        if (!read_tensor(call, step, i)) return malformed(call);
    }
    if (!fo_plan_cut(step->plan)) return failed(call, XLA_RESOURCE_EXHAUSTED, "fastopt: out of memory");
    const double *of_all = step->options + step->rows * FO_OPTIONS;
    fo_request request = {.unscale = 1, .clip_norm = of_all[CLIP_NORM], .clip_value = of_all[CLIP_VALUE],
                          .skip_nonfinite = step->skips, .average_weight = of_all[AVERAGE_WEIGHT], .threads = threads};
    fo_result result = fo_step(kernels, step->plan, &request);
    if (result.unfit) {
        char message[160];
        snprintf(message, sizeof message, "fastopt: the scalar '%s', formed from the options, is out of the range of its dtype",
                 fo_scalar_name((size_t)result.unfit - 1));
        return failed(call, XLA_INVALID_ARGUMENT, message);
    }
    if (!result.skipped) ++*taken;
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

xla_error *fo_xla_step(const fo_kernels *kernels, int threads, int minor, const xla_call *call)
{
    if (answer_metadata(call, minor)) return NULL;
    if (call->struct_size < sizeof *call || call->api->version.major != XLA_MAJOR)
        return failed(call, XLA_UNIMPLEMENTED, "fastopt: unknown version of XLA's foreign function interface");
    if (call->stage != XLA_STAGE_EXECUTE) return NULL;
    xla_step step = {0};
    xla_error *error;
    if (!read_attributes(call, &step))
        error = malformed(call);
    else if (!step.options || !step.counts || !step.plan)
        error = failed(call, XLA_RESOURCE_EXHAUSTED, "fastopt: out of memory");
    else
        error = run_step(kernels, threads, call, &step);
    free(step.options);
    free(step.counts);
    fo_plan_free(step.plan);
    return error;
}
