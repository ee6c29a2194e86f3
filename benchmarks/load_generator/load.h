/* A load generator that costs little: one thread, epoll, gRPC by nghttp2 or HTTP/1.1.
 *
 * A caller has one request in flight at most. In a closed loop it sends the next one when the last
 * is answered; at a constant rate requests fall due by the clock, wait for a caller that is free,
 * and their latency counts from when they were due. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_HEADERS = 16, ERROR_TEXT = 64 };

struct bytes {
    uint8_t *data;
    size_t size, capacity;
};

struct options {
    const char *protocol, *host, *port, *path, *payloads;
    const char *header_names[MAX_HEADERS], *header_values[MAX_HEADERS];
    size_t headers, callers, connections;
    double seconds, warmup, drain, rate; /* rate 0: a closed loop */
};

struct payloads {
    struct bytes *items;
    size_t count, next;
};

/* What was counted. Only requests that were due within the measured seconds count, but for sent. */
struct results {
    uint64_t *latencies_ns;
    size_t answered, capacity;
    struct {
        char text[ERROR_TEXT];
        uint64_t count;
    } errors[64];
    size_t kinds;
    uint64_t sent, response_bytes;
    double cpu_seconds;
};

struct connection;

struct caller {
    struct connection *connection;
    bool busy, counted, again; /* again: to be sent once more, on a new connection */
    uint64_t due_ns;
    const struct bytes *body;
    size_t body_sent;
    /* Of the answer under way. */
    int status, grpc_status;
    size_t received;
    uint8_t prefix[5];
};

/* Both protocols behind one face. submit and receive call finish() for what is answered; receive
 * answers false where the connection is of no further use. */
struct protocol {
    void (*opened)(struct connection *);
    void (*submit)(struct connection *, struct caller *);
    bool (*receive)(struct connection *, const uint8_t *, size_t);
    void (*collect)(struct connection *); /* appends to connection->out what there is to send */
    bool (*over)(struct connection *);    /* whether it is of no further use once all is sent */
    void (*closed)(struct connection *);
};

extern const struct protocol grpc_protocol, http_protocol;

enum state { WAITING, CONNECTING, OPEN };

struct connection {
    struct run *run;
    enum state state;
    int fd;
    uint32_t events;
    uint64_t retry_ns;
    bool leaving; /* takes no further request, and closes when the last is answered */
    struct caller *callers;
    size_t count, busy, again;
    struct bytes out, in;
    size_t out_sent;
    void *session;
};

struct run {
    const struct options *options;
    const struct protocol *protocol;
    struct payloads payloads;
    struct results results;
    struct caller *callers;
    struct connection *connections;
    int epoll;
    uint64_t begin_ns, measure_ns, end_ns; /* of the warm-up, of the measured seconds, and of both */
    uint64_t due_ns; /* when the next request falls due, at a constant rate */
    uint64_t called; /* how many have fallen due */
    size_t turn;     /* the connection that it goes to, if that is free */
};

uint64_t now_ns(void);
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));
void *allocate(void *old, size_t size);
void append(struct bytes *to, const void *data, size_t size);

void payloads_read(struct payloads *, const char *file, bool prefixed);
const struct bytes *payloads_next(struct payloads *);

void results_answered(struct results *, uint64_t latency_ns);
void results_error(struct results *, const char *format, ...) __attribute__((format(printf, 2, 3)));
void results_print(struct results *, const struct options *);

/* The request of a busy caller is over; error is NULL or what went wrong, as printf has it. */
void finish(struct caller *, const char *error, ...) __attribute__((format(printf, 2, 3)));
/* The server has not looked at the request of a busy caller, so that it may be sent once more. */
void postpone(struct caller *);
/* Gives free callers of an open connection what is due, so many at most; answers how many. */
size_t dispatch(struct connection *, size_t most);

void connection_open(struct connection *);
void connection_close(struct connection *, const char *why);
void connection_ready(struct connection *, uint32_t events);
void connection_flush(struct connection *);

void run_all(struct run *);
