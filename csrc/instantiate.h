/* One storage's kernels. The includer says what differs: SUFFIX, P, S, T, HYPER_MEMBER, FROM_P, TO_P, FROM_S, TO_S. */

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAMED(name) JOIN(name, SUFFIX)
#define HYPER JOIN(fo_hyper, HYPER_MEMBER)

#include "rules.h"
#include "loops.h"
#include "reduce.h"

#undef HYPER
#undef NAMED
#undef JOIN
#undef JOIN_

#undef SUFFIX
#undef P
#undef S
#undef FROM_P
#undef TO_P
#undef FROM_S
#undef TO_S
