/* What csrc/threads.c asks of an OpenMP runtime, by plain threads that begin and end with each region.
 *
 * ThreadSanitizer knows what waits for what in these; in libgomp, which is not compiled for it, it sees races that there
 * are not. Compiled as a library of libgomp's name, it is found in its place. */
#include <pthread.h>
#include <stdlib.h>

typedef struct {
    void (*body)(void *);
    void *data;
    int number, all;
} one;

static _Thread_local const one *current;

static void *begin(void *given)
{
    current = given;
    current->body(current->data);
    return NULL;
}

void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags);
int omp_get_thread_num(void), omp_get_num_threads(void), omp_get_max_threads(void);
void omp_set_num_threads(int threads);

void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags)
{
    (void)flags;
    one *all = malloc(threads * sizeof *all);
    pthread_t *started = malloc(threads * sizeof *started);
    if (!all || !started) abort();
    for (unsigned i = 0; i < threads; i++) {
        all[i] = (one){body, data, (int)i, (int)threads};
        if (i && pthread_create(&started[i], NULL, begin, &all[i])) abort();
    }
    begin(&all[0]);
    for (unsigned i = 1; i < threads; i++) pthread_join(started[i], NULL);
    current = NULL;
    free(started);
    free(all);
}

int omp_get_thread_num(void) { return current ? current->number : 0; }
int omp_get_num_threads(void) { return current ? current->all : 1; }
int omp_get_max_threads(void) { return 4; }
void omp_set_num_threads(int threads) { (void)threads; }
