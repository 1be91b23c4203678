/* Which rows of a table a gradient has values for: its row numbers, sorted.
 *
 * Stable sorting by row has one result, whatever the order of the work: that is why it does not depend on threads. Each
 * occurrence is one integer, its row above its number; radix sort moves it two or three times for tables of millions of
 * rows. */
#include <stdlib.h>
#include <string.h>

#include "fastopt.h"

/* With more bits a digit, counts leave the first-level cache. With fewer occurrences, waking a thread costs more. */
enum { DIGIT_BITS = 11, OCCURRENCES_A_THREAD = 8192 };

typedef struct {
    const void *numbers;
    bool wide;
    size_t count, rows;
    int shift, passes, digit_bits;
    uint64_t *sorted, *other; /* after the last pass the result is in `sorted` */
    size_t *row, *start;
    size_t *counts;           /* of each thread: what it has found of each digit */
    size_t different, wrong;
} sorting;

static int bits_of(size_t n)
{
    int bits = 0;
    while (n >> bits) bits++;
    return bits;
}

static uint64_t occurrence(const sorting *s, size_t i)
{
    /* (A negative number is larger than any row.) */
    const uint64_t row = s->wide ? (uint64_t)((const int64_t *)s->numbers)[i] : (uint64_t)((const int32_t *)s->numbers)[i];
    return row < s->rows ? row << s->shift | i : UINT64_MAX;
}

/* From what each thread has counted to where each begins to write, digit after digit, thread after thread. */
static void add_up(size_t *counts, size_t digits, size_t threads)
{
    size_t sum = 0;
    for (size_t d = 0; d < digits; d++)
        for (size_t t = 0; t < threads; t++) {
            const size_t found = counts[t * digits + d];
            counts[t * digits + d] = sum;
            sum += found;
        }
}

static void sort(void *argument, size_t thread, size_t threads)
{
    sorting *s = argument;
    const size_t digits = (size_t)1 << s->digit_bits;
    const size_t begin = s->count / threads * thread, end = thread + 1 == threads ? s->count : begin + s->count / threads;
    size_t *counts = s->counts + thread * digits;
    /* What is moved last ends in `sorted`. */
    uint64_t *from = s->passes % 2 ? s->other : s->sorted, *to = s->passes % 2 ? s->sorted : s->other;
    for (size_t i = begin; i < end; i++) {
        from[i] = occurrence(s, i);
        if (from[i] == UINT64_MAX) {
            size_t known = __atomic_load_n(&s->wrong, __ATOMIC_RELAXED);
            while (i < known && !__atomic_compare_exchange_n(&s->wrong, &known, i, true, __ATOMIC_RELAXED,
                                                             __ATOMIC_RELAXED)) {}
            break;
        }
    }
    fo_barrier();
    if (s->wrong < s->count) return;
    for (int pass = 0, shift = s->shift; pass < s->passes; pass++, shift += s->digit_bits) {
        memset(counts, 0, digits * sizeof *counts);
        for (size_t i = begin; i < end; i++) counts[from[i] >> shift & (digits - 1)]++;
        fo_barrier();
        if (thread == 0) add_up(s->counts, digits, threads);
        fo_barrier();
        for (size_t i = begin; i < end; i++) to[counts[from[i] >> shift & (digits - 1)]++] = from[i];
        fo_barrier();
        uint64_t *swap = from;
        from = to, to = swap;
    }
    /* Where a row begins. */
    size_t found = 0;
    for (size_t i = begin; i < end; i++) found += i == 0 || from[i] >> s->shift != from[i - 1] >> s->shift;
    s->counts[thread] = found;
    fo_barrier();
    size_t before = 0;
    for (size_t t = 0; t < thread; t++) before += s->counts[t];
    for (size_t i = begin; i < end; i++)
        if (i == 0 || from[i] >> s->shift != from[i - 1] >> s->shift) {
            s->row[before] = (size_t)(from[i] >> s->shift);
            s->start[before++] = i;
        }
    if (thread + 1 == threads) s->different = before;
}

void fo_free_grouping(fo_grouping *grouping)
{
    if (!grouping) return;
    free(grouping->sorted);
    free(grouping->other);
    free(grouping->row);
    free(grouping->start);
    free(grouping->counts);
    free(grouping);
}

/* Room for as many occurrences. */
static bool make_room(fo_grouping *g, size_t count)
{
    if (count < g->room) return true;
    const size_t room = count + count / 4 + 64;
    free(g->sorted), free(g->other), free(g->row), free(g->start);
    g->sorted = malloc(room * sizeof *g->sorted);
    g->other = malloc(room * sizeof *g->other);
    g->row = malloc(room * sizeof *g->row);
    g->start = malloc(room * sizeof *g->start);
    g->room = g->sorted && g->other && g->row && g->start ? room : 0;
    return g->room;
}

fo_grouped fo_group_rows(fo_plan *plan, size_t tensor, const void *numbers, bool wide, size_t occurrences, size_t width,
                         int threads, size_t *wrong)
{
    fo_tensor *t = &plan->tensors[tensor];
    fo_grouping *g = plan->groupings[tensor];
    t->rows = NULL, t->grad.at = NULL;
    if (!g) g = plan->groupings[tensor] = calloc(1, sizeof *g);
    if (!g || !make_room(g, occurrences)) return FO_NO_MEMORY;
    const size_t rows = width ? t->n / width : 0, worth = occurrences / OCCURRENCES_A_THREAD;
    const int bits = bits_of(rows ? rows - 1 : 0);
    sorting s = {.numbers = numbers, .wide = wide, .count = occurrences, .rows = rows, .sorted = g->sorted,
                 .other = g->other, .row = g->row, .start = g->start, .wrong = occurrences};
    s.shift = bits_of(occurrences);
    s.passes = (bits + DIGIT_BITS - 1) / DIGIT_BITS;
    s.digit_bits = s.passes ? (bits + s.passes - 1) / s.passes : 0;
    if (bits + s.shift >= 64) return FO_TOO_MANY_ROWS;
    threads = fo_usable_threads(threads);
    threads = worth < (size_t)threads ? worth ? (int)worth : 1 : threads;
    free(g->counts);
    g->counts = s.counts = malloc(((size_t)threads << s.digit_bits) * sizeof *s.counts);
    if (!s.counts) return FO_NO_MEMORY;
    fo_run_team(threads, sort, &s);
    if (s.wrong < occurrences) {
        *wrong = s.wrong;
        return FO_NO_SUCH_ROW;
    }
    g->start[s.different] = occurrences;
    g->rows = (fo_rows){.width = width, .count = s.different, .sorted = g->sorted, .row = g->row, .start = g->start,
                        .shift = s.shift};
    t->rows = &g->rows;
    return FO_GROUPED;
}
