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

typedef struct sorting sorting;

struct sorting {
    const void *numbers;
    bool wide;
    size_t count, rows;
    int shift, digit_bits;
    uint64_t *from, *to;
    size_t *row, *start;
    size_t *counts;    /* of each share: what there is of each digit, then where to put the next of them */
    size_t shares;
    bool adapts;
    size_t wrong;
    void (*phase)(sorting *s, size_t share, size_t begin, size_t end);
};

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

static size_t *counts_of(sorting *s, size_t share) { return s->counts + (share << s->digit_bits); }

static size_t digit_of(const sorting *s, uint64_t x) { return x >> s->shift & (((size_t)1 << s->digit_bits) - 1); }

/* ---- the phases, each in all shares before the next ---- */

static void number(sorting *s, size_t share, size_t begin, size_t end)
{
    (void)share;
    for (size_t i = begin; i < end; i++) {
        s->to[i] = occurrence(s, i);
        if (s->to[i] != UINT64_MAX) continue;
        size_t known = __atomic_load_n(&s->wrong, __ATOMIC_RELAXED);
        while (i < known && !__atomic_compare_exchange_n(&s->wrong, &known, i, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
        return;
    }
}

static void count_digits(sorting *s, size_t share, size_t begin, size_t end)
{
    size_t *counts = counts_of(s, share);
    memset(counts, 0, sizeof *counts << s->digit_bits);
    for (size_t i = begin; i < end; i++) counts[digit_of(s, s->from[i])]++;
}

static void move(sorting *s, size_t share, size_t begin, size_t end)
{
    size_t *counts = counts_of(s, share);
    for (size_t i = begin; i < end; i++) s->to[counts[digit_of(s, s->from[i])]++] = s->from[i];
}

static bool is_another_row(const sorting *s, size_t i)
{
    return i == 0 || s->to[i] >> s->shift != s->to[i - 1] >> s->shift;
}

static void count_rows(sorting *s, size_t share, size_t begin, size_t end)
{
    size_t found = 0;
    for (size_t i = begin; i < end; i++) found += is_another_row(s, i);
    s->counts[share] = found;
}

static void note_rows(sorting *s, size_t share, size_t begin, size_t end)
{
    size_t k = s->counts[share];
    for (size_t i = begin; i < end; i++)
        if (is_another_row(s, i)) {
            s->row[k] = (size_t)(s->to[i] >> s->shift);
            s->start[k++] = i;
        }
}

static void run_shares(void *data, size_t thread, size_t threads)
{
    sorting *s = data;
    const size_t length = s->count / s->shares;
    for (size_t share = thread; share < s->shares; share += threads)
        s->phase(s, share, share * length, share + 1 == s->shares ? s->count : (share + 1) * length);
}

static void run_phase(sorting *s, void (*phase)(sorting *, size_t, size_t, size_t))
{
    s->phase = phase;
    fo_parallel(run_shares, s, (int)s->shares, s->adapts);
}

/* From what there is in each share to where it begins: digit after digit, share after share. Returns the sum. */
static size_t add_up(sorting *s, size_t digits)
{
    size_t sum = 0;
    for (size_t d = 0; d < digits; d++)
        for (size_t share = 0; share < s->shares; share++) {
            size_t *count = &s->counts[share * digits + d], found = *count;
            *count = sum;
            sum += found;
        }
    return sum;
}

/* Into `to`; returns how many different rows there are. */
static size_t sort(sorting *s, int passes)
{
    const int shift = s->shift;
    run_phase(s, number);
    if (s->wrong < s->count) return 0;
    for (int pass = 0; pass < passes; pass++, s->shift += s->digit_bits) {
        uint64_t *swap = s->from;
        s->from = s->to, s->to = swap;
        run_phase(s, count_digits);
        add_up(s, (size_t)1 << s->digit_bits);
        run_phase(s, move);
    }
    s->shift = shift;
    run_phase(s, count_rows);
    const size_t different = add_up(s, 1);
    run_phase(s, note_rows);
    return different;
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
    const int bits = bits_of(rows ? rows - 1 : 0), passes = (bits + DIGIT_BITS - 1) / DIGIT_BITS;
    sorting s = {.numbers = numbers, .wide = wide, .count = occurrences, .rows = rows, .shift = bits_of(occurrences),
                 .digit_bits = passes ? (bits + passes - 1) / passes : 0, .from = g->sorted, .to = g->other,
                 .row = g->row, .start = g->start, .shares = (size_t)fo_threads_for(threads, worth),
                 .adapts = threads <= 0, .wrong = occurrences};
    if (bits + s.shift >= 64) return FO_TOO_MANY_ROWS;
    free(g->counts);
    g->counts = s.counts = malloc((s.shares << s.digit_bits) * sizeof *s.counts);
    if (!s.counts) return FO_NO_MEMORY;
    const size_t different = sort(&s, passes);
    if (s.wrong < occurrences) {
        *wrong = s.wrong;
        return FO_NO_SUCH_ROW;
    }
    g->start[different] = occurrences;
    g->rows = (fo_rows){.width = width, .count = different, .sorted = s.to, .row = g->row, .start = g->start,
                        .shift = s.shift};
    t->rows = &g->rows;
    return FO_GROUPED;
}
