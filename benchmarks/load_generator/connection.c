/* A connection that is opened again whenever it is lost. */
#include "load.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static const uint64_t RETRY_NS = 50 * 1000 * 1000;

static void watch(struct connection *connection, uint32_t events) {
    if (connection->events == events) return;
    struct epoll_event event = {.events = events, .data.ptr = connection};
    int how = connection->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(connection->run->epoll, how, connection->fd, &event) < 0)
        die("epoll: %s", strerror(errno));
    connection->events = events;
}

static struct addrinfo *resolve(const struct options *options) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int status = getaddrinfo(options->host, options->port, &hints, &found);
    if (status) die("--target %s: %s", options->host, gai_strerror(status));
    return found;
}

void connection_open(struct connection *connection) {
    struct addrinfo *to = resolve(connection->run->options);
    int fd = socket(to->ai_family, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    if (fd < 0) die("socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    connection->fd = fd;
    connection->events = 0;
    connection->state = CONNECTING;
    int status = connect(fd, to->ai_addr, to->ai_addrlen);
    freeaddrinfo(to);
    if (status < 0 && errno != EINPROGRESS) {
        connection_close(connection, strerror(errno));
        return;
    }
    watch(connection, EPOLLOUT);
}

/* What was in flight on it is lost, and counted as such. */
void connection_close(struct connection *connection, const char *why) {
    struct run *run = connection->run;
    if (connection->state == CONNECTING && now_ns() >= run->measure_ns)
        results_error(&run->results, "connect: %s", why);
    bool opened = connection->state == OPEN;
    connection->state = WAITING;
    connection->retry_ns = now_ns() + (opened && connection->leaving ? 0 : RETRY_NS);
    connection->leaving = false;
    close(connection->fd);
    connection->out.size = connection->out_sent = connection->in.size = 0;
    for (size_t i = 0; i < connection->count; i++)
        if (connection->callers[i].busy) finish(&connection->callers[i], "closed: %s", why);
    if (opened) run->protocol->closed(connection);
}

static bool established(struct connection *connection) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        connection_close(connection, strerror(error));
        return false;
    }
    connection->state = OPEN;
    connection->run->protocol->opened(connection);
    dispatch(connection, connection->count);
    return true;
}

/* Sends what there is; the rest waits until the socket takes more. */
void connection_flush(struct connection *connection) {
    struct bytes *out = &connection->out;
    if (connection->state != OPEN) return;
    connection->run->protocol->collect(connection);
    while (connection->out_sent < out->size) {
        ssize_t sent = send(connection->fd, out->data + connection->out_sent,
                            out->size - connection->out_sent, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            watch(connection, EPOLLIN | EPOLLOUT);
            return;
        }
        if (sent < 0) {
            connection_close(connection, strerror(errno));
            return;
        }
        connection->out_sent += (size_t)sent;
        if (connection->out_sent == out->size) {
            out->size = connection->out_sent = 0;
            connection->run->protocol->collect(connection);
        }
    }
    watch(connection, EPOLLIN);
}

static void read_all(struct connection *connection) {
    static uint8_t buffer[1 << 17];
    ssize_t got = recv(connection->fd, buffer, sizeof buffer, 0);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (got <= 0) {
        connection_close(connection, got ? strerror(errno) : "by the server");
        return;
    }
    connection->run->results.response_bytes += (uint64_t)got;
    if (!connection->run->protocol->receive(connection, buffer, (size_t)got))
        connection_close(connection, "by the protocol");
}

void connection_ready(struct connection *connection, uint32_t events) {
    if (connection->state == CONNECTING && !established(connection)) return;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_all(connection);
    if (connection->state == OPEN && connection->leaving && !connection->busy)
        connection_close(connection, "by the server");
    connection_flush(connection);
    if (connection->state == OPEN && connection->run->protocol->over(connection))
        connection_close(connection, "by the protocol");
}
