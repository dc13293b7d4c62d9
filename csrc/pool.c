#define _GNU_SOURCE /* sched_getaffinity */
#include "pool.h"
#include "rnnfast.h"

/* ---- how many threads ----------------------------------------------------------------------- */

#if defined(_WIN32)

/* Nothing below runs on more than the caller's thread, and the limits are set under Python's lock.
 * C11 atomics are not in every compiler here. */
#define RF_ATOMIC volatile
#define RF_THREAD __declspec(thread)

#else

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#define RF_ATOMIC _Atomic
#define RF_THREAD _Thread_local

#endif

static RF_ATOMIC int asked;          /* 0: nobody asked for a number */
static RF_ATOMIC int default_most = 1;
static RF_ATOMIC int default_exact = 1;
static RF_THREAD int share;          /* 0: none */
static RF_THREAD int crowded;        /* what this thread's last gang found, */
static RF_THREAD int skipped;        /* and how many had to do without others since */

#if defined(__linux__)

enum { MOST_CPUS = 4096 };
typedef struct {
    cpu_set_t set[MOST_CPUS / CPU_SETSIZE];
} cpus;

/* The CPUs that the calling thread may use and their number; 0 where that cannot be known. */
static int cpus_get(cpus *c) {
    if (sched_getaffinity(0, sizeof *c, c->set) != 0) return 0;
    return CPU_COUNT_S(sizeof *c, c->set);
}

#else

typedef struct {
    char unused;
} cpus;
static int cpus_get(cpus *c) {
    c->unused = 0;
    return 0;
}

#endif

static int default_threads(void) {
    const int most = default_most;
    if (default_exact || most == 1) return most;
    cpus c;
    const int n = cpus_get(&c);
    return n > 0 && n < most ? n : most;
}

int rnnfast_get_num_threads(void) {
    const int own = share;
    if (own == 1) return 1;
    int n = asked;
    if (n == 0) n = default_threads();
    return own > 0 && own < n ? own : n;
}

void rf_pool_try_anew(void) { crowded = skipped = 0; }

void rnnfast_set_num_threads(int n) {
    asked = n < 1 || n == default_threads() ? 0 : n;
    rf_pool_try_anew();
}

void rf_threads_default(int most, int exact) {
    default_most = most < 1 ? 1 : most;
    default_exact = exact;
    asked = 0;
}

int rf_threads_share(int n) {
    const int before = share;
    share = n;
    return before;
}

/* ---- the pool ------------------------------------------------------------------------------- */

#if defined(_WIN32)

struct rf_gang {
    int threads;
};

void rf_pool_run(int tasks, int threads, rf_task *f, void *arg) {
    (void)threads;
    for (int k = 0; k < tasks; k++) f(arg, k, 0);
}
int rf_pool_run_gang(int threads, rf_gang_task *f, void *arg) {
    (void)threads;
    rf_gang gang = {1};
    f(arg, 0, 1, &gang);
    return 1;
}
int rf_pool_barrier(rf_gang *gang) {
    (void)gang;
    return 0;
}

#else

#if defined(__x86_64__) || defined(__i386__)
#define RF_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RF_PAUSE() __asm__ volatile("isb") /* yield does nothing on most cores */
#else
#define RF_PAUSE() ((void)0)
#endif

enum {
    MOST_WORKERS = 1023,
    LINE = 64,
    LOOK_NS = 200000, /* for work, or for others at the same work, before a thread sleeps: a virtual
                         machine's CPU that slept took up to 140 us to come back; meanwhile the
                         others went to sleep, and were late next */
    LATE = 3,         /* rounds in a row that cost more than they saved: one thread goes on */
    ALONE = 16,       /* for so many rounds, and for twice as many each time that */
    MOST_ALONE = 512, /* the others are late again */
    STACK = 4 << 20,  /* the thread sanitizer's thread-local memory alone takes 0.8 MiB of it */
};

/* Where threads wait for a word to change. The waiter counts itself as a sleeper before it looks at
 * the word for the last time, the other side changes the word before it looks for sleepers; both
 * sequentially consistent, so one of the two sees the other. */
struct bell {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    atomic_int sleepers;
};

static void bell_init(struct bell *b) {
    pthread_mutex_init(&b->mutex, NULL);
    pthread_cond_init(&b->cond, NULL);
    atomic_init(&b->sleepers, 0);
}

static void bell_ring(struct bell *b) {
    if (atomic_load(&b->sleepers) == 0) return;
    pthread_mutex_lock(&b->mutex); /* whoever counted itself now sleeps or sees the change */
    pthread_mutex_unlock(&b->mutex);
    pthread_cond_broadcast(&b->cond);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Look for a while, then sleep. Looking is a loss where the other thread waits for this CPU, be it
 * for other programs' load. So after two waits in a row that looked in vain only each 16th looks,
 * until one did not: `misses` counts. To yield instead would hand the CPU to the other programs. */
static void wait_while(struct bell *b, atomic_int *word, int value, atomic_int *misses) {
    const int n = atomic_load_explicit(misses, memory_order_relaxed);
    if (n < 2 || n % 16 == 0) {
        const int64_t end = now_ns() + LOOK_NS;
        do
            for (int k = 0; k < 16; k++) {
                if (atomic_load_explicit(word, memory_order_acquire) != value) {
                    if (n > 0) atomic_store_explicit(misses, 0, memory_order_relaxed);
                    return;
                }
                RF_PAUSE();
            }
        while (now_ns() < end);
    }
    atomic_store_explicit(misses, n < 1 << 20 ? n + 1 : 2, memory_order_relaxed);
    pthread_mutex_lock(&b->mutex);
    atomic_fetch_add(&b->sleepers, 1);
    while (atomic_load(word) == value) pthread_cond_wait(&b->cond, &b->mutex);
    atomic_fetch_sub(&b->sleepers, 1);
    pthread_mutex_unlock(&b->mutex);
}

static RF_THREAD int64_t round_began; /* when this thread left a gang's barrier, or joined it */

struct rf_gang {
    _Alignas(LINE) atomic_int arrived;
    atomic_int late;    /* whether somebody waited too long in the round before */
    int lates;          /* in a row; the last to arrive has it */
    int crowded;        /* likewise: about for how many rounds one went on alone the last time */
    _Alignas(LINE) atomic_int turn; /* on a line of its own: all who wait read it */
    atomic_int misses;
    int alone; /* what the last to arrive tells all */
    int threads;
    struct bell *bell; /* a worker's: it outlives the run, as no one's who waits at it need */
};

/* What some threads work at together; lives on the caller's stack until all have left it. */
struct run {
    rf_task *task; /* NULL in a gang's run */
    rf_gang_task *gang_task;
    void *arg;
    int tasks;
    rf_fpmode mode;
    _Alignas(LINE) atomic_int next;
    rf_gang gang;
};

/* A worker's state. The caller that holds it moves it from IDLE to OFFERED, and back where the
 * worker did not come in time; the worker from OFFERED to BUSY and from there to IDLE, which is
 * the last it does with a run. Only between OFFERED and IDLE does it look at `run`. */
enum { IDLE, OFFERED, BUSY };

struct worker {
    _Alignas(LINE) atomic_int state;
    int number; /* in the run */
    struct run *run;
    struct worker *next; /* among the idle ones, or those of a run */
    struct bell bell;    /* rung when the state changes */
    pthread_t thread;
    cpus cpus;
    _Alignas(LINE) struct bell meeting; /* for the barriers of a gang it is the first worker of */
};

static struct {
    pthread_mutex_t mutex;
    int started;
    struct worker *idle;
    struct worker workers[MOST_WORKERS];
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* The threads do not survive a fork, and a lock that another thread held would stay held. What they
 * worked at is in memory that the child does not look at again. */
static void forget_pool(void) {
    pthread_mutex_init(&pool.mutex, NULL);
    pool.started = 0;
    pool.idle = NULL;
}

/* At load: a fork could come in the middle of the first run. */
__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(NULL, NULL, forget_pool);
}

static void work(struct run *run, int number) {
    if (!run->task) {
        round_began = now_ns();
        run->gang_task(run->arg, number, run->gang.threads, &run->gang);
        return;
    }
    for (;;) {
        const int k = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed);
        if (k >= run->tasks) return;
        run->task(run->arg, k, number);
    }
}

static void *worker_main(void *self) {
    struct worker *w = self;
    atomic_int misses = 0;
    for (;;) {
        wait_while(&w->bell, &w->state, IDLE, &misses);
        int expected = OFFERED;
        if (!atomic_compare_exchange_strong(&w->state, &expected, BUSY)) continue;
        struct run *run = w->run;
        rf_fp_adopt(run->mode);
        work(run, w->number);
        atomic_store(&w->state, IDLE);
        bell_ring(&w->bell);
    }
    return NULL;
}

/* Signals are for the program's own threads; those that a fault raises stay where it happened. */
static int start_thread(struct worker *w) {
    sigset_t block, before;
    pthread_attr_t attr;
    if (pthread_attr_init(&attr) != 0) return 0;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, STACK);
    sigfillset(&block);
    sigdelset(&block, SIGSEGV);
    sigdelset(&block, SIGBUS);
    sigdelset(&block, SIGFPE);
    sigdelset(&block, SIGILL);
    sigdelset(&block, SIGABRT);
    pthread_sigmask(SIG_SETMASK, &block, &before);
    const int error = pthread_create(&w->thread, &attr, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
#if defined(__linux__)
    if (!error) pthread_setname_np(w->thread, "rnnfast");
#endif
    return !error;
}

static struct worker *start_worker(const cpus *c) {
    if (pool.started == MOST_WORKERS) return NULL;
    struct worker *w = &pool.workers[pool.started];
    atomic_init(&w->state, IDLE);
    w->cpus = *c; /* a thread starts with its creator's */
    bell_init(&w->bell);
    bell_init(&w->meeting);
    if (!start_thread(w)) return NULL;
    pool.started++;
    return w;
}

/* Up to n workers, chained; the number is left in *got. There are never more workers in all than
 * one run asked for: many callers at once share them. */
static struct worker *take(int n, const cpus *c, int *got) {
    struct worker *first = NULL, **end = &first;
    pthread_mutex_lock(&pool.mutex);
    for (*got = 0; *got < n; ++*got) {
        struct worker *w = pool.idle;
        if (w) pool.idle = w->next;
        else if (pool.started >= n || !(w = start_worker(c))) break;
        *end = w;
        end = &w->next;
    }
    *end = NULL;
    pthread_mutex_unlock(&pool.mutex);
    return first;
}

static void give_back(struct worker *first) {
    struct worker *last = first;
    while (last->next) last = last->next;
    pthread_mutex_lock(&pool.mutex);
    last->next = pool.idle; /* the next run begins with the same ones: they may be awake still */
    pool.idle = first;
    pthread_mutex_unlock(&pool.mutex);
}

/* The caller may have been moved to other CPUs since the worker started. */
static void move(struct worker *w, const cpus *c) {
#if defined(__linux__)
    if (memcmp(&w->cpus, c, sizeof *c) == 0) return;
    if (pthread_setaffinity_np(w->thread, sizeof *c, c->set) == 0) w->cpus = *c;
#else
    (void)w;
    (void)c;
#endif
}

/* Run with up to `threads` threads; how many there were. */
static int run_on(struct run *run, int threads) {
    struct worker *first = NULL;
    int got = 0, known = 0;
    cpus c;
    if (threads > 1) {
        memset(&c, 0, sizeof c);
        known = cpus_get(&c);
        first = take(threads - 1, &c, &got);
    }
    run->mode = rf_fp_mode();
    run->gang.threads = got + 1;
    atomic_init(&run->gang.misses, known && got >= known ? 2 : 0); /* fewer CPUs than threads? */
    run->gang.bell = first ? &first->meeting : NULL;
    int number = 0;
    for (struct worker *w = first; w; w = w->next) {
        if (known) move(w, &c);
        w->run = run;
        w->number = ++number;
        atomic_store(&w->state, OFFERED);
        bell_ring(&w->bell);
    }
    work(run, 0);
    for (struct worker *w = first; w; w = w->next) {
        int expected = OFFERED;
        if (run->task && atomic_compare_exchange_strong(&w->state, &expected, IDLE)) continue;
        while ((expected = atomic_load(&w->state)) != IDLE)
            wait_while(&w->bell, &w->state, expected, &run->gang.misses);
    }
    if (first) give_back(first);
    return got + 1;
}

void rf_pool_run(int tasks, int threads, rf_task *f, void *arg) {
    if (threads > tasks) threads = tasks;
    if (threads <= 1) {
        for (int k = 0; k < tasks; k++) f(arg, k, 0);
        return;
    }
    struct run run = {.task = f, .arg = arg, .tasks = tasks};
    run_on(&run, threads);
}

/* Where others had the CPUs to the end of a gang and for a while before, the next ones, the more the
 * longer it lasts, are their caller's alone: each try costs about two times LOOK_NS. */
int rf_pool_run_gang(int threads, rf_gang_task *f, void *arg) {
    struct run run = {.gang_task = f, .arg = arg};
    if (threads > 1 && skipped < crowded / ALONE - 1) {
        skipped++;
        threads = 1;
    }
    if (threads <= 1) return run_on(&run, 1);
    run.gang.crowded = crowded;
    const int number = run_on(&run, threads);
    crowded = run.gang.crowded;
    skipped = 0;
    return number;
}

/* Whoever waits longer than the others' shares would have taken it says so, and the last to arrive
 * at the next barrier hears it. */
int rf_pool_barrier(rf_gang *g) {
    if (g->threads == 1) return 0;
    const int turn = atomic_load_explicit(&g->turn, memory_order_relaxed);
    const int alone_before = g->alone; /* others wait for these rounds without being late */
    if (atomic_fetch_add(&g->arrived, 1) + 1 < g->threads) {
        const int64_t arrived = now_ns(), worked = arrived - round_began;
        wait_while(g->bell, &g->turn, turn, &g->misses);
        round_began = now_ns();
        const int64_t waited = round_began - arrived;
        if (!alone_before && waited > worked * (g->threads - 1))
            atomic_store_explicit(&g->late, 1, memory_order_relaxed);
        return g->alone;
    }
    const int late = atomic_exchange_explicit(&g->late, 0, memory_order_relaxed);
    g->lates = late ? g->lates + 1 : 0;
    int alone = 0;
    if (g->lates >= LATE) {
        alone = 2 * g->crowded;
        alone = alone < ALONE ? ALONE : alone > MOST_ALONE ? MOST_ALONE : alone;
        g->crowded = alone;
        g->lates = 0;
    } else if (!late && !alone_before) g->crowded -= (g->crowded + 7) / 8;
    g->alone = alone;
    atomic_store_explicit(&g->arrived, 0, memory_order_relaxed);
    atomic_store(&g->turn, turn ^ 1);
    bell_ring(g->bell);
    round_began = now_ns();
    return alone;
}

#endif
