/* Reductions of a block in an order that nothing changes: LANES running values, lane l taking elements
 * l, l + LANES, ...; then the lanes in a fixed tree. The same bits on every instruction set with FMA. */

enum { NAMED(LANES) = 16 };

/* One stream alone does not keep the memory busy: fetching this many elements ahead reads 1.4 times as fast. */
enum { NAMED(AHEAD) = 4096 / sizeof(P) };

/* Sum of (scale*x)^2 in double precision. For float32 the square is exact there and cannot overflow;
 * scale is for a float64 block whose plain sum does. */
static double NAMED(sum_of_squares)(const void *x, size_t n, double scale)
{
    const P *restrict v = x;
    double lane[NAMED(LANES)] = {0};
    size_t whole = n - n % NAMED(LANES);
    for (size_t i = 0; i < whole; i += NAMED(LANES)) {
        __builtin_prefetch(v + i + NAMED(AHEAD));
        for (size_t l = 0; l < NAMED(LANES); l++) {
            double y = scale * (double)FROM_P(v[i + l]);
            lane[l] = FMA_DOUBLE(y, y, lane[l]);
        }
    }
    for (size_t i = whole; i < n; i++) {
        double y = scale * (double)FROM_P(v[i]);
        lane[i - whole] = FMA_DOUBLE(y, y, lane[i - whole]);
    }
    for (size_t width = NAMED(LANES) / 2; width > 0; width /= 2)
        for (size_t l = 0; l < width; l++) lane[l] += lane[l + width];
    return lane[0];
}

/* Largest |x|, NaN if there is one: without its sign, IEEE's order is that of the bits, and NaN is above infinity. */
static double NAMED(max_abs)(const void *x, size_t n)
{
    const P *restrict v = x;
    BITS largest = 0;
    VECTORISE for (size_t i = 0; i < n; i++) {
        T y = FROM_P(v[i]);
        BITS bits;
        memcpy(&bits, &y, sizeof bits);
        bits &= (BITS)-1 >> 1;
        largest = bits > largest ? bits : largest;
    }
    T y;
    memcpy(&y, &largest, sizeof y);
    return (double)y;
}
