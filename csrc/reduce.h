/* Reductions in an order that nothing changes. The same bits on every instruction set with FMA. */

/* Adds (scale*x)^2 in double precision to LANES running sums, element i to lane i % LANES. For float32 the square is
 * exact there and cannot overflow; scale is for a float64 block whose plain sum does. */
static void NAMED(add_squares)(const void *x, size_t n, double scale, double *lane)
{
    const T *restrict v = x;
    double sum[LANES];
    memcpy(sum, lane, sizeof sum);
    size_t whole = n - n % LANES;
    for (size_t i = 0; i < whole; i += LANES) {
        UNROLL for (size_t l = 0; l < LANES; l++) {
            double y = scale * (double)v[i + l];
            sum[l] = FMA_DOUBLE(y, y, sum[l]);
        }
    }
    for (size_t i = whole; i < n; i++) {
        double y = scale * (double)v[i];
        sum[i - whole] = FMA_DOUBLE(y, y, sum[i - whole]);
    }
    memcpy(lane, sum, sizeof sum);
}

/* The same of a part of a row that begins at this column: each column has its lane, wherever the part begins. */
static void NAMED(add_squares_of_row)(const void *x, size_t n, size_t column, double *lane)
{
    const T *restrict v = x;
    size_t i = 0;
    for (; i < n && (column + i) % LANES; i++)
        lane[(column + i) % LANES] = FMA_DOUBLE((double)v[i], (double)v[i], lane[(column + i) % LANES]);
    NAMED(add_squares)(v + i, n - i, 1, lane);
}

/* Largest |x|, NaN if there is one: without its sign, IEEE's order is that of the bits, and NaN is above infinity. */
static double NAMED(max_abs)(const void *x, size_t n)
{
    const T *restrict v = x;
    BITS largest = 0;
    VECTORISE for (size_t i = 0; i < n; i++) {
        BITS bits;
        memcpy(&bits, &v[i], sizeof bits);
        bits &= (BITS)-1 >> 1;
        largest = bits > largest ? bits : largest;
    }
    T y;
    memcpy(&y, &largest, sizeof y);
    return (double)y;
}
