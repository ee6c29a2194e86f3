/* HTTP/1.1: one caller a connection, which is kept alive. */
#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const size_t LARGEST_RESPONSE = 1 << 24;

static void opened(struct connection *connection) { (void)connection; }

static void submit(struct connection *connection, struct caller *caller) {
    const struct options *options = connection->run->options;
    char head[4096];
    int size = snprintf(head, sizeof head,
                        "POST %s HTTP/1.1\r\nhost: %s:%s\r\ncontent-length: %zu\r\n", options->path,
                        options->host, options->port, caller->body->size);
    for (size_t i = 0; i < options->headers && (size_t)size < sizeof head; i++)
        size += snprintf(head + size, sizeof head - (size_t)size, "%s: %s\r\n",
                         options->header_names[i], options->header_values[i]);
    if ((size_t)size + 2 >= sizeof head) die("--path and --header: more than 4 KB");
    append(&connection->out, head, (size_t)size);
    append(&connection->out, "\r\n", 2);
    append(&connection->out, caller->body->data, caller->body->size);
}

/* The value of a header in a head of so many bytes, or NULL. */
static const char *header(const char *head, size_t size, const char *name) {
    size_t length = strlen(name);
    for (const char *at = head; at && at + length + 1 < head + size;
         at = memchr(at, '\n', (size_t)(head + size - at))) {
        if (*at == '\n') at++;
        if (strncasecmp(at, name, length) == 0 && at[length] == ':') {
            at += length + 1;
            return at + strspn(at, " \t");
        }
    }
    return NULL;
}

/* Bytes of a chunked body, 0 while some are still to come. */
static size_t chunked_size(const char *body, size_t size) {
    size_t at = 0;
    for (;;) {
        const char *end = memmem(body + at, size - at, "\r\n", 2);
        if (!end) return 0;
        size_t chunk = strtoul(body + at, NULL, 16), head = (size_t)(end - body) + 2;
        if (chunk > LARGEST_RESPONSE || head + chunk + 2 > size) return 0;
        at = head + chunk + 2;
        if (!chunk) return at;
    }
}

/* Bytes of the whole response, 0 while some are still to come. */
static size_t response_size(const char *data, size_t size, size_t head, bool *framed) {
    const char *length = header(data, head, "content-length");
    const char *coding = header(data, head, "transfer-encoding");
    *framed = true;
    if (coding && strncasecmp(coding, "chunked", 7) == 0) {
        size_t body = chunked_size(data + head, size - head);
        return body ? head + body : 0;
    }
    if (length) {
        size_t whole = head + strtoul(length, NULL, 10);
        return whole <= size ? whole : 0;
    }
    *framed = false;
    return 0;
}

static bool receive(struct connection *connection, const uint8_t *data, size_t size) {
    struct bytes *in = &connection->in;
    struct caller *caller = &connection->callers[0];
    append(in, data, size);
    append(in, "", 1); /* ends what strtoul reads */
    in->size--;
    const char *text = (const char *)in->data, *end = memmem(text, in->size, "\r\n\r\n", 4);
    if (!end) return in->size < LARGEST_RESPONSE;
    size_t head = (size_t)(end - text) + 4;
    bool framed;
    size_t whole = response_size(text, in->size, head, &framed);
    if (!framed) return false;
    if (!whole) return in->size < LARGEST_RESPONSE;
    const char *keep = header(text, head, "connection");
    if (keep && strncasecmp(keep, "close", 5) == 0) connection->leaving = true;
    if (!caller->busy || whole != in->size || strncmp(text, "HTTP/1.1 ", 9) != 0) return false;
    caller->status = atoi(text + 9);
    in->size = 0;
    if (caller->status == 200)
        finish(caller, NULL);
    else
        finish(caller, "http %d", caller->status);
    return true;
}

static void collect(struct connection *connection) { (void)connection; }

static bool over(struct connection *connection) {
    (void)connection;
    return false;
}

static void closed(struct connection *connection) { (void)connection; }

const struct protocol http_protocol = {opened, submit, receive, collect, over, closed};
