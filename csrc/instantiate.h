/* The rules in one arithmetic. The includer says which: T is the type, SUFFIX its name, BITS the integer of its size,
 * FMA(a, b, c) and SQRT(x) are its functions, and IS_BELOW(x, limit) says whether |x| < limit. */

#if !defined(T) || !defined(SUFFIX) || !defined(BITS) || !defined(FMA) || !defined(SQRT) || !defined(IS_BELOW)
#error "instantiate.h needs T, SUFFIX, BITS, FMA, SQRT and IS_BELOW"
#endif

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAMED(name) JOIN(name, SUFFIX)
#define HYPER JOIN(fo_hyper, SUFFIX)

#include "rules.h"
#include "loops.h"
#include "reduce.h"

#undef HYPER
#undef NAMED
#undef JOIN
#undef JOIN_

#undef T
#undef SUFFIX
#undef BITS
#undef FMA
#undef SQRT
#undef IS_BELOW
