/* The plan and the parallel passes.
 *
 * All parameters lie end to end on one axis of bytes, cut into blocks. A thread takes one contiguous share of
 * the axis: every block that begins in it. No block depends on another, and what reductions find is stored by
 * block number and combined in that order, so no result depends on the number of threads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fastopt.h"

/* A thread is worth waking for this many bytes of parameters. Alone on the machine, half of that would do; but where
 * others compete for the cores, a woken thread can cost milliseconds (measured: docs/design.md). */
enum { BYTES_A_THREAD = 128 * 1024 };

/* With this many bytes of parameters, and states and gradients beside them, a step finds nothing in the caches. */
enum { BYTES_FROM_MEMORY = 16 * 1024 * 1024 };

/* ---- the plan ---- */

static size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }

fo_plan *fo_plan_new(size_t count)
{
    fo_plan *plan = calloc(1, sizeof *plan);
    if (!plan) return NULL;
    plan->count = count;
    plan->tensors = calloc(count + 1, sizeof *plan->tensors);
    plan->first_block = calloc(count + 1, sizeof *plan->first_block);
    plan->first_byte = calloc(count + 1, sizeof *plan->first_byte);
    plan->first_scratch = calloc(count + 1, sizeof *plan->first_scratch);
    plan->hypers = malloc((count + 1) * sizeof *plan->hypers);
    plan->groupings = calloc(count + 1, sizeof *plan->groupings);
    if (plan->tensors && plan->first_block && plan->first_byte && plan->first_scratch && plan->hypers && plan->groupings)
        return plan;
    fo_plan_free(plan);
    return NULL;
}

/* Elements that a step is for. */
static size_t length_of(const fo_tensor *t) { return t->rows ? t->rows->count * t->rows->width : t->n; }

/* Whether some state has one number a row or column. */
static bool has_small(const fo_tensor *t)
{
    bool any = false;
    for (int k = 0; k < fo_needs[t->rule].states; k++) any = any || fo_needs[t->rule].small[k];
    return any;
}

/* So many rows, or a few less or more, that together are groups of FO_GROUP elements. */
static size_t whole_groups(size_t rows, size_t width)
{
    size_t some = FO_GROUP;
    while (some > 1 && some / 2 * width % FO_GROUP == 0) some /= 2;
    return rows < some ? some : rows / some * some;
}

/* How a tensor is cut: into parts of so many elements, and these into blocks of so many. */
typedef struct {
    size_t part, length, blocks; /* blocks of a part */
} fo_cut;

/* A block of a large matrix has at least so many of its rows: for each block, there is a sum for each column. */
enum { ROWS_AT_LEAST = 64 };

/* No block has a part of a row, where rows matter, or rows of two matrices unless it has all of both. */
static fo_cut cut_of(const fo_tensor *t)
{
    const size_t n = length_of(t), matrix = t->width * t->height;
    const size_t width = t->rows ? t->rows->width : t->row_decay || has_small(t) ? t->width : 0;
    fo_cut cut = {.part = n ? n : 1, .length = FO_BLOCK};
    if (fo_needs[t->rule].factored && n && matrix > FO_BLOCK) {
        const size_t rows = whole_groups(FO_BLOCK / width, width);
        cut.part = matrix;
        cut.length = (rows < ROWS_AT_LEAST ? ROWS_AT_LEAST : rows) * width;
    } else if (has_small(t) && !t->rows && n) {
        const size_t unit = fo_needs[t->rule].factored ? matrix : width;
        cut.length = whole_groups(FO_BLOCK / unit, unit) * unit;
    } else if (width) {
        cut.length = width > FO_BLOCK ? width : FO_BLOCK / width * width;
    }
    cut.blocks = divide_up(cut.part, cut.length);
    return cut;
}

/* The first block that begins with this element or later. */
static size_t block_from(const fo_cut *cut, size_t element)
{
    return element / cut->part * cut->blocks + divide_up(element % cut->part, cut->length);
}

/* Matrices of a tensor that is cut in such, and how many blocks the sums of each come from. */
static size_t matrices_of(const fo_tensor *t) { return t->n ? t->n / (t->width * t->height) : 0; }

static size_t blocks_a_matrix(const fo_tensor *t)
{
    const fo_cut cut = cut_of(t);
    return cut.part < t->n || matrices_of(t) == 1 ? cut.blocks : 1;
}

/* Of a factored state: for each block of each matrix the total of its row states, and a sum for each of its columns. */
static size_t totals_of(const fo_tensor *t) { return blocks_a_matrix(t) * matrices_of(t); }

static size_t scratch_of(const fo_tensor *t)
{
    if (!fo_needs[t->rule].factored) return 0;
    return totals_of(t) + divide_up(totals_of(t) * t->width * (t->param.storage == FO_F64 ? 8 : 4), sizeof(double));
}

bool fo_plan_cut(fo_plan *plan)
{
    for (size_t i = 0; i < plan->count; i++) {
        const fo_cut cut = cut_of(&plan->tensors[i]);
        plan->first_block[i + 1] = plan->first_block[i] + block_from(&cut, length_of(&plan->tensors[i]));
        plan->first_scratch[i + 1] = plan->first_scratch[i] + scratch_of(&plan->tensors[i]);
    }
    if (plan->first_scratch[plan->count] > plan->scratch_room) {
        free(plan->scratch);
        plan->scratch_room = 0;
        plan->scratch = malloc(plan->first_scratch[plan->count] * sizeof *plan->scratch);
        if (!plan->scratch) return false;
        plan->scratch_room = plan->first_scratch[plan->count];
    }
    if (plan->first_block[plan->count] > plan->blocks) {
        double *grown = realloc(plan->partial, FO_MAX_SUMS * plan->first_block[plan->count] * sizeof *grown);
        if (!grown) return false;
        plan->partial = grown;
        plan->blocks = plan->first_block[plan->count];
    }
    return true;
}

typedef struct {
    uintptr_t begin, end;
} range;

static int by_begin(const void *a, const void *b)
{
    uintptr_t x = ((const range *)a)->begin, y = ((const range *)b)->begin;
    return (x > y) - (x < y);
}

bool fo_params_overlap(const fo_plan *plan)
{
    range *ranges = malloc((plan->count + 1) * sizeof *ranges);
    if (!ranges) return true;
    size_t used = 0;
    for (size_t i = 0; i < plan->count; i++) {
        const fo_tensor *t = &plan->tensors[i];
        uintptr_t begin = (uintptr_t)t->param.at;
        if (t->n && begin) ranges[used++] = (range){begin, begin + t->n * fo_storage_size(t->param.storage)};
    }
    qsort(ranges, used, sizeof *ranges, by_begin);
    bool overlap = false;
    for (size_t k = 1; k < used; k++) overlap |= ranges[k].begin < ranges[k - 1].end;
    free(ranges);
    return overlap;
}

void fo_plan_free(fo_plan *plan)
{
    if (!plan) return;
    for (size_t i = 0; plan->groupings && i < plan->count; i++) fo_free_grouping(plan->groupings[i]);
    free(plan->groupings);
    free(plan->tensors);
    free(plan->first_block);
    free(plan->first_byte);
    free(plan->first_scratch);
    free(plan->scratch);
    free(plan->hypers);
    free(plan->partial);
    free(plan);
}

/* Tensors without a gradient have no length on the axis. */
static void lay_out(fo_plan *plan)
{
    for (size_t i = 0; i < plan->count; i++) {
        const fo_tensor *t = &plan->tensors[i];
        size_t bytes = t->grad.at ? length_of(t) * fo_storage_size(t->grad.storage) : 0;
        plan->first_byte[i + 1] = plan->first_byte[i] + bytes;
    }
}

/* ---- a pass ---- */

typedef struct fo_pass fo_pass;
typedef void fo_work(const fo_pass *, const fo_tensor *, size_t block, size_t offset, size_t n);

struct fo_pass {
    fo_work *work;
    const fo_kernels *kernels;
    fo_plan *plan;
    double factor; /* of the reductions and of scale; the limit of clamp; the weight of lerp and of moving averages */
    bool zero_grad;
};

static void run_blocks(const fo_pass *pass, size_t tensor, size_t from, size_t to)
{
    const fo_tensor *t = &pass->plan->tensors[tensor];
    const fo_cut cut = cut_of(t);
    const size_t first = pass->plan->first_block[tensor];
    for (size_t block = from; block < to; block++) {
        const size_t part = block / cut.blocks * cut.part, inside = block % cut.blocks * cut.length;
        const size_t rest = length_of(t) - part - inside, in_part = cut.part - inside;
        size_t n = rest < in_part ? rest : in_part;
        n = n < cut.length ? n : cut.length;
        pass->work(pass, t, first + block, part + inside, n);
    }
}

/* Every block whose first byte lies in [from, to). */
static void run_share(const fo_pass *pass, size_t from, size_t to)
{
    const fo_plan *plan = pass->plan;
    const size_t *first_byte = plan->first_byte;
    for (size_t i = 0; i < plan->count; i++) {
        if (first_byte[i + 1] <= from || first_byte[i] >= to) continue;
        const fo_tensor *t = &plan->tensors[i];
        const fo_cut cut = cut_of(t);
        const size_t size = fo_storage_size(t->grad.storage);
        const size_t blocks = block_from(&cut, (first_byte[i + 1] - first_byte[i]) / size);
        const size_t begin = from > first_byte[i] ? block_from(&cut, divide_up(from - first_byte[i], size)) : 0;
        const size_t end = block_from(&cut, divide_up(to - first_byte[i], size));
        run_blocks(pass, i, begin, end < blocks ? end : blocks);
    }
}

static void run_thread(void *data, size_t thread, size_t threads)
{
    const fo_pass *pass = data;
    size_t total = pass->plan->first_byte[pass->plan->count];
    run_share(pass, total / threads * thread, thread + 1 == threads ? total : total / threads * (thread + 1));
}

static void run(fo_pass *pass, int threads)
{
    size_t worth = pass->plan->first_byte[pass->plan->count] / BYTES_A_THREAD;
    fo_parallel(run_thread, pass, fo_threads_for(threads, worth), threads <= 0);
}

/* ---- numbers kept from step to step ---- */

static double value_of(fo_number x) { return x.single ? (double)*(float *)x.at : *(double *)x.at; }

static void set(fo_number x, double value)
{
    if (x.single)
        *(float *)x.at = (float)value;
    else
        *(double *)x.at = value;
}

/* ---- the work on one block ---- */

static bool is_careful(const fo_tensor *t)
{
    return fo_needs[t->rule].careful && (t->options->cautious != 0 || t->options->cautious_decay != 0);
}

/* How many sums have to be known before the step. */
static int sums_of(const fo_tensor *t)
{
    const fo_options *o = t->options;
    const int sums = fo_needs[t->rule].sums;
    if (fo_needs[t->rule].decayed && o->weight_decay == 0 && o->always_adapt == 0) return 0;
    return sums == 0 && fo_needs[t->rule].careful && o->cautious != 0 ? 1 : sums;
}

static fo_stream from(const fo_tensor *t, fo_stream s, size_t offset)
{
    if (t->rows)
        s.rows = t->rows, s.first = offset;
    else
        s = fo_from(s, offset);
    return s;
}

static fo_stream grad_from(const fo_tensor *t, size_t offset)
{
    fo_stream grad = from(t, t->grad, offset);
    grad.summed = t->rows;
    return grad;
}

/* What is kept of a tensor's matrices while it is stepped. */
static double *totals_at(const fo_plan *plan, const fo_tensor *t) { return plan->scratch + plan->first_scratch[t - plan->tensors]; }

static void *columns_at(const fo_plan *plan, const fo_tensor *t) { return totals_at(plan, t) + totals_of(t); }

static fo_storage arithmetic_beside(const fo_tensor *t) { return t->param.storage == FO_F64 ? FO_F64 : FO_F32; }

/* A state, as a rule reads it. */
static fo_stream state_from(const fo_plan *plan, const fo_tensor *t, int k, size_t offset)
{
    const fo_extent small = fo_needs[t->rule].small[k];
    fo_stream s = t->state[k];
    if (!small) return from(t, s, offset);
    s.small = small, s.rows = t->rows, s.first = offset;
    s.width = t->width, s.height = fo_needs[t->rule].factored ? t->height : SIZE_MAX;
    if (small == FO_COLUMNS) s.at = columns_at(plan, t), s.storage = arithmetic_beside(t);
    return s;
}

static fo_block block_of(const fo_pass *pass, const fo_tensor *t, size_t offset, size_t n)
{
    const fo_plan *plan = pass->plan;
    fo_block b = {.param = from(t, t->param, offset), .grad = grad_from(t, offset), .n = n,
                  .hyper = &plan->hypers[t->hyper], .first = offset,
                  .seed = fo_mix(t->count.at ? (uint64_t)value_of(t->count) : 0, (uint64_t)(t - plan->tensors)),
                  .from_memory = plan->first_byte[plan->count] >= BYTES_FROM_MEMORY};
    for (int k = 0; k < fo_needs[t->rule].states; k++) b.state[k] = state_from(plan, t, k, offset);
    if (t->row_decay) {
        b.width = t->width, b.row_decay = t->row_decay;
        b.decay_before = t->decay_before, b.decay_after = value_of(t->decay);
    }
    return b;
}

static void measure_block(const fo_pass *pass, const fo_tensor *t, size_t block, size_t offset, size_t n)
{
    if (!sums_of(t)) return;
    fo_block b = block_of(pass, t, offset, n);
    pass->kernels->measure[t->rule](&b, &pass->plan->partial[FO_MAX_SUMS * block]);
}

static void hand_over_block(const fo_pass *pass, const fo_tensor *t, size_t block, size_t offset, size_t n)
{
    (void)block;
    if (!fo_needs[t->rule].hands_over) return;
    fo_stream update = from(t, t->state[fo_needs[t->rule].states - 1], offset);
    pass->kernels->scale(&update, n, pass->plan->hypers[t->hyper].f64.trust);
}

static void step_block(const fo_pass *pass, const fo_tensor *t, size_t block, size_t offset, size_t n)
{
    (void)block;
    fo_block b = block_of(pass, t, offset, n);
    (is_careful(t) ? pass->kernels->careful : pass->kernels->step)[t->rule](&b);
    if (t->average.at) {
        fo_stream average = from(t, t->average, offset);
        pass->kernels->lerp(&average, &b.param, n, pass->factor);
    }
    if (t->copy.at) {
        fo_stream copy = from(t, t->copy, offset);
        pass->kernels->convert(&copy, &b.param, n);
    }
    if (pass->zero_grad && !t->rows) memset(b.grad.at, 0, n * fo_storage_size(b.grad.storage));
}

static void sum_block(const fo_pass *pass, const fo_tensor *t, size_t block, size_t offset, size_t n)
{
    fo_stream grad = grad_from(t, offset);
    pass->plan->partial[FO_MAX_SUMS * block] = pass->kernels->sum_of_squares(&grad, n, pass->factor);
}

static void max_block(const fo_pass *pass, const fo_tensor *t, size_t block, size_t offset, size_t n)
{
    fo_stream grad = grad_from(t, offset);
    pass->plan->partial[FO_MAX_SUMS * block] = pass->kernels->max_abs(&grad, n);
}

static void scale_block(const fo_pass *pass, const fo_tensor *t, size_t block, size_t offset, size_t n)
{
    (void)block;
    fo_stream grad = grad_from(t, offset);
    pass->kernels->scale(&grad, n, pass->factor);
}

static void lerp_block(const fo_pass *pass, const fo_tensor *t, size_t block, size_t offset, size_t n)
{
    (void)block;
    fo_stream target = from(t, t->param, offset), source = from(t, t->grad, offset);
    pass->kernels->lerp(&target, &source, n, pass->factor);
}

static void zero_block(const fo_pass *pass, const fo_tensor *t, size_t block, size_t offset, size_t n)
{
    (void)pass, (void)block;
    if (!t->rows) memset(grad_from(t, offset).at, 0, n * fo_storage_size(t->grad.storage));
}

static void clamp_block(const fo_pass *pass, const fo_tensor *t, size_t block, size_t offset, size_t n)
{
    (void)block;
    fo_stream grad = grad_from(t, offset);
    pass->kernels->clamp(&grad, n, pass->factor);
}

/* ---- norms ---- */

static double add(double a, double b) { return a + b; }

/* The larger; a NaN wins. */
static double larger(double a, double b) { return a > b || isnan(a) ? a : b; }

static double reduce(const fo_kernels *kernels, fo_plan *plan, fo_work *work, double factor,
                     double (*combine)(double, double), int threads)
{
    fo_pass pass = {.work = work, .kernels = kernels, .plan = plan, .factor = factor};
    double result = 0;
    lay_out(plan);
    run(&pass, threads);
    for (size_t i = 0; i < plan->count; i++)
        if (plan->tensors[i].grad.at)
            for (size_t b = plan->first_block[i]; b < plan->first_block[i + 1]; b++)
                result = combine(result, plan->partial[FO_MAX_SUMS * b]);
    return result;
}

double fo_global_max_abs(const fo_kernels *kernels, fo_plan *plan, int threads)
{
    return reduce(kernels, plan, max_block, 1, larger, threads);
}

double fo_global_norm(const fo_kernels *kernels, fo_plan *plan, int threads)
{
    double sum = reduce(kernels, plan, sum_block, 1, add, threads);
    /* float64 squares beyond the range of double: once more, scaled by the power of two at the maximum. */
    bool out_of_range = isinf(sum) || sum < 0x1p-960;
    if (!out_of_range) return sqrt(sum);
    double max = fo_global_max_abs(kernels, plan, threads);
    if (max == 0 || !isfinite(max)) return max;
    int exponent;
    frexp(max, &exponent);
    exponent = exponent < -1000 ? -1000 : exponent;
    return ldexp(sqrt(reduce(kernels, plan, sum_block, ldexp(1, -exponent), add, threads)), exponent);
}

/* ---- scalars ---- */

/* Add to a tensor's number of steps; return it. */
static double count(const fo_tensor *t, int steps)
{
    if (!t->count.at) return 1;
    set(t->count, value_of(t->count) + steps);
    return value_of(t->count);
}

/* Whether two tensors step alike, from equal numbers before. */
static bool same_scalars(const fo_tensor *a, const fo_tensor *b, const double *before_a, const double *before_b)
{
    return a->options == b->options && a->rule == b->rule && a->param.storage == b->param.storage &&
           a->number[0].single == b->number[0].single &&
           memcmp(before_a, before_b, sizeof(double[FO_MAX_NUMBERS])) == 0 &&
           (sums_of(a) == 0 || fo_needs[a->rule].over_plan);
}

/* Count the step of every tensor that has a gradient, and form its scalars, once for neighbours that are alike. (A
 * parameter that is in the list twice is stepped twice, as in torch: the second time is another step.) Where a scalar is
 * unfit, nothing is counted. */
static void form_scalars(fo_plan *plan, const fo_request *request, fo_result *result)
{
    const fo_tensor *last = NULL;
    double last_step = 0, scale = request->unscale * result->coefficient, after[FO_MAX_NUMBERS];
    size_t used = 0;
    for (size_t i = 0; i < plan->count && !result->unfit; i++) {
        fo_tensor *t = &plan->tensors[i];
        if (!t->grad.at) continue;
        double step = count(t, 1), before[FO_MAX_NUMBERS] = {0};
        for (int k = 0; k < fo_needs[t->rule].numbers; k++) before[k] = value_of(t->number[k]);
        if (!last || last_step != step || !same_scalars(last, t, plan->hypers[used - 1].before, before)) {
            fo_hyper *hyper = &plan->hypers[used++];
            memcpy(after, before, sizeof after);
            result->unfit = fo_form_scalars(t->rule, t->options, step, after, t->number[0].single, scale,
                                            request->clip_value, t->param.storage, hyper);
            result->tensor = i;
            last = t, last_step = step;
        }
        t->hyper = used - 1;
        if (t->row_decay) {
            const double decay = plan->hypers[t->hyper].f64.decay;
            if (!(decay > 0)) result->unfit = 1 + FO_SCALAR_decay, result->tensor = i;
            t->decay_before = value_of(t->decay);
            set(t->decay, t->decay_before + log(decay));
        }
        for (int k = 0; k < fo_needs[t->rule].numbers; k++) set(t->number[k], after[k]);
    }
    for (size_t i = result->unfit ? result->tensor + 1 : 0; i-- > 0;) {
        const fo_tensor *t = &plan->tensors[i];
        if (!t->grad.at) continue;
        count(t, -1);
        if (t->row_decay) set(t->decay, t->decay_before);
        for (int k = 0; k < fo_needs[t->rule].numbers; k++) set(t->number[k], plan->hypers[t->hyper].before[k]);
    }
}

/* ---- the small states of matrices ---- */

static void rows_block(const fo_pass *pass, const fo_tensor *t, size_t block, size_t offset, size_t n)
{
    (void)block;
    if (!fo_needs[t->rule].factored) return;
    const fo_block b = block_of(pass, t, offset, n);
    const size_t matrix = t->width * t->height, bytes = t->width * fo_storage_size(arithmetic_beside(t));
    const size_t place = offset % matrix / cut_of(t).length * matrices_of(t) + offset / matrix, count = divide_up(n, matrix);
    char *columns = (char *)columns_at(pass->plan, t) + place * bytes;
    memset(&totals_at(pass->plan, t)[place], 0, count * sizeof(double));
    memset(columns, 0, count * bytes);
    for (int k = 0; k < fo_needs[t->rule].states; k++)
        if (fo_needs[t->rule].small[k] == FO_ROWS)
            pass->kernels->settle_rows(&b, k, columns, &totals_at(pass->plan, t)[place]);
}

/* Of each matrix the mean of its row states, in the place of its first total. */
static void take_means(const fo_plan *plan)
{
    for (size_t i = 0; i < plan->count; i++) {
        const fo_tensor *t = &plan->tensors[i];
        if (!t->grad.at || !fo_needs[t->rule].factored || !t->n) continue;
        double *total = totals_at(plan, t);
        const size_t matrices = matrices_of(t), all = totals_of(t);
        for (size_t matrix = 0; matrix < matrices; matrix++) {
            for (size_t k = matrix + matrices; k < all; k += matrices) total[matrix] += total[k];
            total[matrix] /= (double)t->height;
        }
    }
}

/* The blocks of a matrix share its columns. */
static void columns_block(const fo_pass *pass, const fo_tensor *t, size_t block, size_t offset, size_t n)
{
    (void)block;
    if (!fo_needs[t->rule].factored) return;
    const size_t matrix = t->width * t->height, blocks = blocks_a_matrix(t), mine = offset % matrix / cut_of(t).length;
    const size_t first = t->width * mine / blocks, end = t->width * (mine + 1) / blocks;
    for (size_t m = offset / matrix; m * matrix < offset + n; m++) {
        fo_columns columns = {.first = m * t->width + first, .n = end - first, .blocks = blocks,
                              .distance = matrices_of(t) * t->width, .height = t->height,
                              .mean = totals_at(pass->plan, t)[m]};
        columns.sums = (char *)columns_at(pass->plan, t) + columns.first * fo_storage_size(arithmetic_beside(t));
        for (int k = 0; k < fo_needs[t->rule].states; k++)
            if (fo_needs[t->rule].small[k] == FO_COLUMNS)
                pass->kernels->settle_columns(&t->state[k], arithmetic_beside(t), &pass->plan->hypers[t->hyper], &columns);
    }
}

/* Bring them to after the step: the rows and their columns' sums block by block, then the columns. */
static void settle_matrices(const fo_kernels *kernels, fo_plan *plan, int threads)
{
    bool any = false;
    for (size_t i = 0; i < plan->count; i++) any = any || (plan->tensors[i].grad.at && fo_needs[plan->tensors[i].rule].factored);
    if (!any) return;
    fo_pass pass = {.work = rows_block, .kernels = kernels, .plan = plan};
    run(&pass, threads);
    take_means(plan);
    pass.work = columns_block;
    run(&pass, threads);
}

/* ---- what rules measure ---- */

/* Add what was found in a tensor's blocks. */
static void add_sums(const fo_plan *plan, size_t tensor, double *sums)
{
    for (size_t b = plan->first_block[tensor]; b < plan->first_block[tensor + 1]; b++)
        for (int k = 0; k < sums_of(&plan->tensors[tensor]); k++)
            sums[k] += plan->partial[FO_MAX_SUMS * b + (size_t)k];
}

/* Form the scalars that depend on sums: of each tensor, or of all tensors of a rule. */
static void settle(fo_plan *plan, double (*of_all)[FO_MAX_SUMS])
{
    double lengths[FO_RULES] = {0};
    for (size_t i = 0; i < plan->count; i++) {
        const fo_tensor *t = &plan->tensors[i];
        if (!t->grad.at || !fo_needs[t->rule].over_plan) continue;
        add_sums(plan, i, of_all[t->rule]);
        lengths[t->rule] += (double)length_of(t);
    }
    size_t settled = 0; /* rows of scalars: a row that several tensors share comes once */
    for (size_t i = 0; i < plan->count; i++) {
        const fo_tensor *t = &plan->tensors[i];
        if (!t->grad.at || t->hyper < settled || sums_of(t) == 0) continue;
        double sums[FO_MAX_SUMS] = {0};
        if (!fo_needs[t->rule].over_plan) add_sums(plan, i, sums);
        fo_settle_scalars(t->rule, t->options, fo_needs[t->rule].over_plan ? of_all[t->rule] : sums,
                          fo_needs[t->rule].over_plan ? lengths[t->rule] : (double)length_of(t), &plan->hypers[t->hyper]);
        settled = t->hyper + 1;
    }
}

/* Measure, if a rule needs it, and form the scalars that depend on that. */
static void measure_and_settle(const fo_kernels *kernels, fo_plan *plan, int threads,
                               double (*of_all)[FO_MAX_SUMS])
{
    bool any = false;
    for (size_t i = 0; i < plan->count; i++) any = any || (plan->tensors[i].grad.at && sums_of(&plan->tensors[i]) != 0);
    if (!any) return;
    fo_pass pass = {.work = measure_block, .kernels = kernels, .plan = plan};
    run(&pass, threads);
    settle(plan, of_all);
}

/* Bring what is no single element's work to where the caller can do it, and let it. Returns whether it was done. */
static bool hand_over(const fo_kernels *kernels, fo_plan *plan, const fo_request *request)
{
    bool any = false;
    for (size_t i = 0; i < plan->count; i++)
        any = any || (plan->tensors[i].grad.at && fo_needs[plan->tensors[i].rule].hands_over);
    if (!any) return true;
    fo_pass pass = {.work = hand_over_block, .kernels = kernels, .plan = plan};
    run(&pass, request->threads);
    return !request->between || request->between(request->hands);
}

/* The step was taken: bring the numbers among the options after it. (Tensors with the same options are neighbours.) */
static void advance(const fo_plan *plan, double (*of_all)[FO_MAX_SUMS])
{
    const fo_options *last = NULL;
    for (size_t i = 0; i < plan->count; i++) {
        const fo_tensor *t = &plan->tensors[i];
        if (fo_needs[t->rule].advances && t->options != last) fo_advance(t->rule, t->options, of_all[t->rule]);
        last = t->options;
    }
}

/* ---- what Cython calls ---- */

static void run_over_gradients(fo_work *work, const fo_kernels *kernels, fo_plan *plan, double factor, int threads)
{
    fo_pass pass = {.work = work, .kernels = kernels, .plan = plan, .factor = factor};
    lay_out(plan);
    run(&pass, threads);
}

void fo_scale_gradients(const fo_kernels *kernels, fo_plan *plan, double factor, int threads)
{
    run_over_gradients(scale_block, kernels, plan, factor, threads);
}

void fo_lerp(const fo_kernels *kernels, fo_plan *plan, double weight, int threads)
{
    run_over_gradients(lerp_block, kernels, plan, weight, threads);
}

void fo_clamp_gradients(const fo_kernels *kernels, fo_plan *plan, double limit, int threads)
{
    run_over_gradients(clamp_block, kernels, plan, limit, threads);
}

/* torch's definition; a NaN norm gives a NaN coefficient, an infinite one 0. */
double fo_clip_coefficient(double norm, double clip_norm)
{
    double coefficient = clip_norm / (norm + 1e-6);
    return coefficient > 1 ? 1 : coefficient;
}

fo_result fo_step(const fo_kernels *kernels, fo_plan *plan, const fo_request *request)
{
    fo_result result = {.norm = NAN, .coefficient = 1};
    bool clip = isfinite(request->clip_norm);
    if (clip || request->want_norm || request->skip_nonfinite) {
        result.norm = request->unscale * fo_global_norm(kernels, plan, request->threads);
        /* The norm of finite gradients can be beyond the range of double: only the gradients themselves decide. */
        if (request->skip_nonfinite && !isfinite(result.norm) &&
            !isfinite(fo_global_max_abs(kernels, plan, request->threads))) {
            result.skipped = true;
            if (request->zero_grad && request->zero_skipped)
                run_over_gradients(zero_block, kernels, plan, 0, request->threads);
            return result;
        }
        if (clip) result.coefficient = fo_clip_coefficient(result.norm, request->clip_norm);
    } else {
        lay_out(plan);
    }
    form_scalars(plan, request, &result);
    if (result.unfit) return result;
    double sums_of_all[FO_RULES][FO_MAX_SUMS] = {0};
    settle_matrices(kernels, plan, request->threads);
    measure_and_settle(kernels, plan, request->threads, sums_of_all);
    result.failed = !hand_over(kernels, plan, request);
    if (result.failed) return result;
    fo_pass pass = {.work = step_block, .kernels = kernels, .plan = plan, .zero_grad = request->zero_grad,
                    .factor = request->average_weight};
    run(&pass, request->threads);
    advance(plan, sums_of_all);
    return result;
}
