/* The pool of csrc/ without Python, for the thread sanitizer above all: `make tsan`, and
 * tests/test_threads.py. Prints what went wrong and fails. An argument multiplies the rounds. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pool.h"
#include "rnnfast.h"

#if defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

enum { TASKS = 100, MOST = 7, UNITS = 24, STEPS = 50 };
static const int THREADS[] = {1, 2, 3, 7};
static int rounds = 200;

#define CHECK(ok)                                                  \
    do {                                                           \
        if (!(ok)) {                                               \
            printf("%s:%d: not %s\n", __FILE__, __LINE__, #ok);    \
            fflush(stdout);                                        \
            abort();                                               \
        }                                                          \
    } while (0)

static double seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- tasks: each once, no two at a time with the same worker's number ------------------------ */

typedef struct {
    int done[TASKS], scratch[MOST]; /* not atomic: the sanitizer finds who writes at once */
    int threads, nested;
    rf_fpmode mode;
} tally;

static void inner(void *arg, int task, int worker) {
    (void)worker;
    ((int *)arg)[task]++;
}

static void count(void *arg, int task, int worker) {
    tally *t = arg;
    CHECK(worker >= 0 && worker < t->threads);
    CHECK((rf_fp_mode() & ~(rf_fpmode)0x3f) == t->mode); /* but for the exception flags */
    t->scratch[worker]++;
    t->done[task]++;
    if (t->nested) {
        int done[3] = {0, 0, 0};
        rf_pool_run(3, 2, inner, done);
        CHECK(done[0] == 1 && done[1] == 1 && done[2] == 1);
    }
}

static void run_tasks(int tasks, int threads, int nested) {
    tally t = {.threads = threads, .nested = nested, .mode = rf_fp_mode() & ~(rf_fpmode)0x3f};
    rf_pool_run(tasks, threads, count, &t);
    int all = 0;
    for (int k = 0; k < TASKS; k++) CHECK(t.done[k] == (k < tasks));
    for (int k = 0; k < MOST; k++) all += t.scratch[k];
    CHECK(all == tasks);
}

/* ---- a gang: a recurrence whose every step needs all of the step before ---------------------- */

typedef struct {
    uint64_t h[2][UNITS];
    int seen[MOST];
    int told[MOST][STEPS]; /* what the barriers returned */
} net;

static void recur(void *arg, int worker, int threads, rf_gang *gang) {
    net *n = arg;
    CHECK(worker >= 0 && worker < threads);
    n->seen[worker]++;
    for (int t = 0; t < STEPS; t++) {
        const uint64_t *from = n->h[t % 2];
        uint64_t *to = n->h[(t + 1) % 2];
        for (int j = worker; j < UNITS; j += threads) {
            uint64_t sum = (uint64_t)(j + 1);
            for (int k = 0; k < UNITS; k++) sum = sum * 31 + from[k];
            to[j] = sum;
        }
        n->told[worker][t] = rf_pool_barrier(gang);
    }
}

static int run_gang(int threads) {
    net alone = {.h = {{1}}}, many = {.h = {{1}}};
    CHECK(rf_pool_run_gang(1, recur, &alone) == 1);
    rf_pool_try_anew(); /* the run before may have found no CPU */
    const int got = rf_pool_run_gang(threads, recur, &many);
    CHECK(got >= 1 && got <= threads);
    for (int k = 0; k < MOST; k++) CHECK(many.seen[k] == (k < got));
    for (int k = 1; k < got; k++) CHECK(!memcmp(many.told[k], many.told[0], sizeof many.told[0]));
    for (int k = 0; k < UNITS; k++) CHECK(many.h[STEPS % 2][k] == alone.h[STEPS % 2][k]);
    return got;
}

/* ---- many callers ---------------------------------------------------------------------------- */

static void *caller(void *arg) {
    const int id = *(int *)arg;
    if (id % 2) rf_ftz_enter(); /* each has a floating-point mode of its own */
    for (int r = 0; r < rounds; r++) {
        run_tasks(1 + (r * 7 + id) % TASKS, THREADS[(r + id) % 4], r % 8 == 0);
        if (r % 4 == 0) run_gang(THREADS[(r / 4 + id) % 4]);
    }
    return NULL;
}

static void many_callers(void) {
    enum { CALLERS = 8 };
    pthread_t threads[CALLERS];
    int id[CALLERS];
    for (int k = 0; k < CALLERS; k++) {
        id[k] = k;
        CHECK(pthread_create(&threads[k], NULL, caller, &id[k]) == 0);
    }
    for (int k = 0; k < CALLERS; k++) pthread_join(threads[k], NULL);
}

/* ---- fork while others run: the child has a pool of its own ---------------------------------- */

static atomic_int stop;

static void *run_until_stopped(void *arg) {
    while (!atomic_load(&stop)) run_tasks(TASKS, *(int *)arg, 0);
    return NULL;
}

static void forks(void) {
    pthread_t threads[3];
    int n[3] = {2, 3, 7};
    for (int k = 0; k < 3; k++)
        CHECK(pthread_create(&threads[k], NULL, run_until_stopped, &n[k]) == 0);
    for (int r = 0; r < 50; r++) {
        const pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            alarm(20); /* a child that hangs dies */
            for (int k = 0; k < 4; k++) run_tasks(TASKS, THREADS[k], 0);
            _exit(run_gang(3) == 3 ? 0 : 1);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK(status == 0);
    }
    atomic_store(&stop, 1);
    for (int k = 0; k < 3; k++) pthread_join(threads[k], NULL);
}

static void idle(void) {
    CHECK(run_gang(2) == 2); /* no more than there are CPUs: only then does a worker spin at all */
    const double before = seconds(CLOCK_PROCESS_CPUTIME_ID);
    struct timespec half = {0, 500000000};
    nanosleep(&half, NULL);
    const double used = seconds(CLOCK_PROCESS_CPUTIME_ID) - before;
    if (used > 0.02) printf("%.4f s of CPU in half a second of sleep\n", used);
    CHECK(used <= 0.02);
}

int main(int argc, char **argv) {
    if (argc > 1) rounds *= atoi(argv[1]);
    for (int r = 0; r < rounds; r++)
        for (int k = 0; k < 4; k++) {
            run_tasks(r % TASKS, THREADS[k], r % 8 == 0);
            CHECK(run_gang(THREADS[k]) == THREADS[k]); /* nobody else takes workers */
        }
    many_callers();
    if (!SANITIZED) { /* it starts threads of its own and does not follow into a child with many */
        idle();
        forks();
    }
    puts("ok");
    return 0;
}
