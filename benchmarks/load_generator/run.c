/* Callers, the clock and the loop. */
#include "load.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static double cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* Whether there are requests that the clock has not called yet, or that wait for a caller. */
static bool clock_runs(const struct run *run) {
    return run->options->rate > 0 && run->due_ns < run->end_ns;
}

/* Whether a request is due, and since when. */
static bool take_due(struct run *run, uint64_t now, uint64_t *due) {
    if (run->options->rate <= 0) {
        *due = now;
        return now < run->end_ns;
    }
    if (!clock_runs(run) || run->due_ns > now) return false;
    *due = run->due_ns;
    run->due_ns = run->begin_ns + (uint64_t)(1e9 * (double)++run->called / run->options->rate);
    return true;
}

static void start(struct caller *caller, uint64_t due_ns) {
    struct run *run = caller->connection->run;
    caller->busy = true;
    caller->due_ns = due_ns;
    caller->counted = due_ns >= run->measure_ns;
    caller->body = payloads_next(&run->payloads);
    caller->body_sent = caller->received = 0;
    caller->status = 0;
    caller->grpc_status = -1;
    caller->connection->busy++;
    run->results.sent++;
    run->protocol->submit(caller->connection, caller);
}

size_t dispatch(struct connection *connection, size_t most) {
    uint64_t due, now = now_ns();
    size_t started = 0;
    for (size_t i = 0; i < connection->count && started < most; i++) {
        if (connection->state != OPEN || connection->leaving) break;
        struct caller *caller = &connection->callers[i];
        if (caller->busy) continue;
        if (caller->again) {
            caller->again = false;
            connection->again--;
            due = caller->due_ns;
        } else if (!take_due(connection->run, now, &due)) {
            continue;
        }
        start(caller, due);
        started++;
    }
    return started;
}

void postpone(struct caller *caller) {
    caller->busy = false;
    caller->again = true;
    caller->connection->busy--;
    caller->connection->again++;
    caller->connection->run->results.sent--;
}

void finish(struct caller *caller, const char *error, ...) {
    struct connection *connection = caller->connection;
    struct run *run = connection->run;
    uint64_t due, now = now_ns();
    caller->busy = false;
    connection->busy--;
    if (caller->counted && !error) results_answered(&run->results, now - caller->due_ns);
    if (caller->counted && error) {
        char text[ERROR_TEXT];
        va_list values;
        va_start(values, error);
        vsnprintf(text, sizeof text, error, values);
        va_end(values);
        results_error(&run->results, "%s", text);
    }
    if (connection->state == OPEN && !connection->leaving && take_due(run, now, &due))
        start(caller, due);
}

static void set_up(struct run *run) {
    const struct options *options = run->options;
    size_t each = options->callers / options->connections, more = options->callers % options->connections;
    run->epoll = epoll_create1(0);
    run->callers = memset(allocate(NULL, options->callers * sizeof *run->callers), 0,
                          options->callers * sizeof *run->callers);
    run->connections = memset(allocate(NULL, options->connections * sizeof *run->connections), 0,
                              options->connections * sizeof *run->connections);
    struct caller *next = run->callers;
    for (size_t i = 0; i < options->connections; i++) {
        struct connection *connection = &run->connections[i];
        connection->run = run;
        connection->callers = next;
        connection->count = each + (i < more);
        for (size_t j = 0; j < connection->count; j++) (next++)->connection = connection;
    }
}

/* Nanoseconds until there is something to do by the clock. */
static uint64_t patience_ns(const struct run *run, uint64_t now, uint64_t until) {
    uint64_t next = until;
    if (clock_runs(run) && run->due_ns > now && run->due_ns < next) next = run->due_ns;
    for (size_t i = 0; i < run->options->connections; i++) {
        const struct connection *connection = &run->connections[i];
        if (connection->state == WAITING && connection->retry_ns < next)
            next = connection->retry_ns;
    }
    return next > now ? next - now : 0;
}

/* What is due goes round the connections that have a free caller. */
static void spread(struct run *run, uint64_t now) {
    size_t connections = run->options->connections;
    for (size_t refused = 0; refused < connections && clock_runs(run) && run->due_ns <= now;) {
        struct connection *connection = &run->connections[run->turn++ % connections];
        refused = dispatch(connection, 1) ? 0 : refused + 1;
        connection_flush(connection);
    }
}

static void by_the_clock(struct run *run, uint64_t now) {
    for (size_t i = 0; i < run->options->connections; i++) {
        struct connection *connection = &run->connections[i];
        if (connection->state == WAITING && connection->retry_ns <= now &&
            (now < run->end_ns || clock_runs(run) || connection->again))
            connection_open(connection);
    }
    if (clock_runs(run)) spread(run, now);
}

/* epoll itself waits for whole milliseconds, which is too coarse for a rate. */
static int wait_for(struct run *run, uint64_t patience, struct epoll_event *events, int space) {
    struct pollfd readable = {.fd = run->epoll, .events = POLLIN};
    struct timespec time = {(time_t)(patience / 1000000000u), (long)(patience % 1000000000u)};
    if (ppoll(&readable, 1, &time, NULL) < 0 && errno != EINTR) die("poll: %s", strerror(errno));
    return epoll_wait(run->epoll, events, space, 0);
}

static void loop(struct run *run, uint64_t until) {
    struct epoll_event events[64];
    for (uint64_t now; (now = now_ns()) < until;) {
        by_the_clock(run, now);
        int count = wait_for(run, patience_ns(run, now, until), events, 64);
        for (int i = 0; i < count; i++) connection_ready(events[i].data.ptr, events[i].events);
    }
}

static size_t in_flight(const struct run *run) {
    size_t count = 0;
    for (size_t i = 0; i < run->options->connections; i++) count += run->connections[i].busy + run->connections[i].again;
    return count;
}

static uint64_t ns(double seconds) { return (uint64_t)(seconds * 1e9); }

/* Nothing falls due any more; what did is still sent and answered. */
static void drain(struct run *run) {
    uint64_t give_up = run->end_ns + ns(run->options->drain);
    for (uint64_t now; (now = now_ns()) < give_up && (in_flight(run) || clock_runs(run));)
        loop(run, now + 5 * 1000 * 1000);
}

void run_all(struct run *run) {
    const struct options *options = run->options;
    set_up(run);
    run->begin_ns = run->due_ns = now_ns();
    run->measure_ns = run->begin_ns + ns(options->warmup);
    run->end_ns = run->measure_ns + ns(options->seconds);
    loop(run, run->measure_ns);
    double before = cpu_seconds();
    loop(run, run->end_ns);
    run->results.cpu_seconds = cpu_seconds() - before;
    drain(run);
    for (size_t i = 0; i < options->callers; i++)
        if ((run->callers[i].busy || run->callers[i].again) && run->callers[i].counted)
            results_error(&run->results, "unanswered");
    for (uint64_t due; take_due(run, run->end_ns, &due);)
        if (due >= run->measure_ns) results_error(&run->results, "unsent");
}
