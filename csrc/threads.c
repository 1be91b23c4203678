/* Threads: those of the OpenMP runtime that the process has already, whoever brought it and whatever its file is called.
 *
 * Nothing is linked. GCC's libgomp and LLVM's libomp (and so Intel's) both export GOMP_parallel, which is what a compiler
 * makes of `#pragma omp parallel`: it is looked up at the first step that is worth several threads. So torch, scikit-learn
 * and fastopt share one pool, a wheel bundles none, and where there is no runtime a step takes one thread. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* dladdr, dl_iterate_phdr */
#endif
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __APPLE__
#include <mach-o/dyld.h>
#define LIBRARY "libomp.dylib"
#else
#include <link.h>
#define LIBRARY "libgomp.so.1"
#endif

#include "fastopt.h"

typedef struct {
    void (*parallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags);
    int (*thread)(void), (*threads)(void), (*most)(void);
    void (*set_most)(int);
} runtime;

/* These are the globals that change after start-up. */
static const runtime *in_use;
static void *loaded; /* the runtime that was loaded because there was none */
static bool forked, went_parallel;

/* ---- which runtime ---- */

/* The files of torch and of the runtime that was loaded last, if there are such. */
typedef struct {
    char torch[4096], runtime[4096];
} files;

static void note(files *found, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char *to = NULL;
    if (strncmp(name, "libtorch_cpu.", 13) == 0) to = found->torch;
    static const char *const names[] = {"libgomp.", "libgomp-", "libomp.", "libomp-", "libiomp5."};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strncmp(name, names[i], strlen(names[i])) == 0) to = found->runtime;
    if (to && strlen(path) < sizeof found->torch) strcpy(to, path);
}

#ifdef __APPLE__
static void look(files *found)
{
    for (uint32_t i = 0; i < _dyld_image_count(); i++) note(found, _dyld_get_image_name(i));
}
#else
static int note_library(struct dl_phdr_info *library, size_t size, void *found)
{
    (void)size;
    note(found, library->dlpi_name);
    return 0;
}

static void look(files *found) { dl_iterate_phdr(note_library, found); }
#endif

/* A function, as ISO C does not let an object's address be one. */
#define FUNCTION(handle, to, name) (*(void **)&(to) = dlsym(handle, name))

static bool take(runtime *r, void *handle)
{
    return FUNCTION(handle, r->parallel, "GOMP_parallel") && FUNCTION(handle, r->thread, "omp_get_thread_num") &&
           FUNCTION(handle, r->threads, "omp_get_num_threads") && FUNCTION(handle, r->most, "omp_get_max_threads") &&
           FUNCTION(handle, r->set_most, "omp_set_num_threads");
}

static bool take_from(runtime *r, const char *path)
{
    void *handle = *path ? dlopen(path, RTLD_LAZY | RTLD_NOLOAD) : NULL;
    if (!handle) return false;
    bool found = take(r, handle);
    dlclose(handle); /* (it stays, as whoever loaded it holds it) */
    return found;
}

void fo_load_openmp(void)
{
    files found = {0};
    look(&found);
    if (!*found.runtime && !loaded) loaded = dlopen(LIBRARY, RTLD_LAZY | RTLD_LOCAL);
}

/* Choose among the runtimes that are loaded now: torch's first. */
static runtime choose(void)
{
    files found = {0};
    runtime r = {0};
    look(&found);
    return take_from(&r, found.torch) || take_from(&r, found.runtime) || take(&r, RTLD_DEFAULT) ? r : (runtime){0};
}

void fo_find_openmp(void)
{
    runtime *chosen = malloc(sizeof *chosen); /* never freed: a thread may be reading the one before */
    if (!chosen) return;
    *chosen = choose();
    __atomic_store_n(&in_use, chosen, __ATOMIC_RELEASE);
}

/* The runtime in use, or the one that would be. */
static runtime now(void)
{
    const runtime *r = __atomic_load_n(&in_use, __ATOMIC_ACQUIRE);
    return r ? *r : choose();
}

const char *fo_spare_openmp(void)
{
    runtime r = now();
    void *mine = loaded ? dlsym(loaded, "GOMP_parallel") : NULL;
    Dl_info file;
    return mine && mine != *(void **)&r.parallel && dladdr(mine, &file) ? file.dli_fname : NULL;
}

/* ---- what a pass asks ---- */

/* A forked child has the parent's OpenMP state but none of its threads: a parallel region there would wait for ever,
 * ours or that of another library on the same runtime. */
static void note_fork(void)
{
    forked = true;
    if (__atomic_load_n(&went_parallel, __ATOMIC_RELAXED)) now().set_most(1);
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, note_fork); }

bool fo_has_openmp(void) { return now().parallel; }

int fo_hardware_threads(void)
{
    runtime r = now();
    return r.parallel && !forked ? r.most() : 1;
}

/* ---- threads that never hurt ----
 *
 * Beside other work, a region waits whole time slices for a thread that has no core to run on: a pass of a tenth of a
 * millisecond takes four. Results do not depend on the number of threads, so it may adapt. What one thread would have
 * taken is known: the processor time of all. After two regions in a row that took longer, passes take one thread for a
 * while, and twice as long a while each time that the next trial fails too. */

enum { LONGEST_REST = 1000 * 1000 * 1000 /* ns */, RESTS_A_LOSS = 16 };

static int64_t rest_until, next_rest; /* ns */
static int lost; /* regions in a row */

static int64_t read_clock(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool is_resting(int64_t time) { return time < __atomic_load_n(&rest_until, __ATOMIC_RELAXED); }

static void judge(int64_t began, int64_t ended, int64_t worked)
{
    if (5 * (ended - began) <= 6 * worked) {
        __atomic_store_n(&lost, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&next_rest, 0, __ATOMIC_RELAXED);
        return;
    }
    if (__atomic_add_fetch(&lost, 1, __ATOMIC_RELAXED) < 2) return;
    int64_t rest = __atomic_load_n(&next_rest, __ATOMIC_RELAXED);
    if (rest < RESTS_A_LOSS * (ended - began)) rest = RESTS_A_LOSS * (ended - began);
    if (rest > LONGEST_REST) rest = LONGEST_REST;
    __atomic_store_n(&rest_until, ended + rest, __ATOMIC_RELAXED);
    __atomic_store_n(&next_rest, 2 * rest, __ATOMIC_RELAXED);
}

/* ---- regions ---- */

typedef struct {
    fo_body *body;
    void *data;
    runtime runtime;
    bool adapts;
    int64_t worked; /* processor time of all threads, ns */
} region;

static void enter(void *data)
{
    region *r = data;
    int64_t began = r->adapts ? read_clock(CLOCK_THREAD_CPUTIME_ID) : 0;
    r->body(r->data, (size_t)r->runtime.thread(), (size_t)r->runtime.threads());
    if (r->adapts) __atomic_add_fetch(&r->worked, read_clock(CLOCK_THREAD_CPUTIME_ID) - began, __ATOMIC_RELAXED);
}

int fo_threads_for(int threads, size_t worth)
{
    if (worth <= 1) return 1;
    if (threads == FO_ANY_THREADS) threads = fo_hardware_threads();
    if (threads < 0) threads = -threads;
    return worth < (size_t)threads ? (int)worth : threads;
}

void fo_parallel(fo_body *body, void *data, int threads, bool adapts)
{
    int64_t began = threads > 1 && adapts ? read_clock(CLOCK_MONOTONIC) : 0;
    bool several = threads > 1 && !forked && !(adapts && is_resting(began));
    if (several && !__atomic_load_n(&in_use, __ATOMIC_ACQUIRE)) fo_find_openmp();
    region r = {body, data, several ? now() : (runtime){0}, adapts, 0};
    if (!r.runtime.parallel) {
        body(data, 0, 1);
        return;
    }
    __atomic_store_n(&went_parallel, true, __ATOMIC_RELAXED);
    r.runtime.parallel(enter, &r, (unsigned)threads, 0);
    if (adapts) judge(began, read_clock(CLOCK_MONOTONIC), r.worked);
}
