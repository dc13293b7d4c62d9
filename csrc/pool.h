/* The thread pool, and how many threads a call may use. Plain C11 and pthreads; on Windows every
 * run stays on the caller's thread. docs/threads.md says what is promised.
 *
 * Any thread may start a run at any time, a task included. A run takes the workers that are idle
 * and never waits for one: where none is, it runs on its caller alone. */
#ifndef RNNFAST_POOL_H
#define RNNFAST_POOL_H

/* arg: as given to the run; task: 0 .. tasks-1; worker: 0 .. threads-1, 0 being the caller and no
 * two at once the same, so that it can index scratch memory. A worker's stack is 4 MiB. */
typedef void rf_task(void *arg, int task, int worker);

/* Call f for each task, in ascending order of their starts, on at most `threads` threads; return
 * when all are done. Workers that have not woken when the tasks run out are not waited for. */
void rf_pool_run(int tasks, int threads, rf_task *f, void *arg);

typedef struct rf_gang rf_gang;

/* worker: 0 .. threads-1; threads: how many take part, each of which calls f once. */
typedef void rf_gang_task(void *arg, int worker, int threads, rf_gang *gang);

/* Call f on 1 to `threads` threads that may meet at barriers; return how many there were, when all
 * are done. The caller is worker 0. It is the only one for some runs after one whose other threads
 * hardly ever came to the barriers, or until rf_pool_try_anew(). */
int rf_pool_run_gang(int threads, rf_gang_task *f, void *arg);

/* Forget what this thread's gangs have found; rnnfast_set_num_threads() does too. */
void rf_pool_try_anew(void);

/* Wait until all threads of the gang have called this as often; what they wrote before is then seen
 * by all. Spins for up to 200 us, unless that was in vain the times before, then sleeps.
 * Returns the same to all: 0; or, where threads came so late that sharing the work cost more than it
 * saved (others may have taken their CPUs), for how many rounds worker 0 had better do all of it. */
int rf_pool_barrier(rf_gang *gang);

#if defined(_WIN32)
#define RF_EXPORT __declspec(dllexport)
#else
#define RF_EXPORT __attribute__((visibility("default")))
#endif

/* How many threads a call on this thread may use, at least 1: what rnnfast_set_num_threads() asked
 * for, else the default; and no more than rf_threads_share(). The default reads the affinity mask,
 * a system call: small work need not ask. */
RF_EXPORT int rnnfast_get_num_threads(void);

/* For the whole process. n < 1, or n equal to the default: back to the default. */
RF_EXPORT void rnnfast_set_num_threads(int n);

/* The default: `most`; or, unless exact, the number of CPUs that the calling thread may use where
 * that is smaller. Also sets rnnfast_set_num_threads() back. */
void rf_threads_default(int most, int exact);

/* Calls on this thread use at most n threads; 0: as many as any. Returns what was set before. */
int rf_threads_share(int n);

#endif
