/* Unary gRPC over HTTP/2 without TLS. */
#include "load.h"

#include <nghttp2/nghttp2.h>
#include <stdlib.h>
#include <string.h>

#define NV(NAME, VALUE) \
    {(uint8_t *)(NAME), (uint8_t *)(VALUE), strlen(NAME), strlen(VALUE), NGHTTP2_NV_FLAG_NONE}

static const int32_t WINDOW = 1 << 24;

static struct caller *caller_of(nghttp2_session *session, int32_t stream) {
    return nghttp2_session_get_stream_user_data(session, stream);
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_size, const uint8_t *value, size_t value_size, uint8_t flags,
                     void *connection) {
    (void)flags, (void)value_size, (void)connection;
    struct caller *caller = caller_of(session, frame->hd.stream_id);
    if (!caller) return 0;
    /* nghttp2 ends names and values with a zero. */
    if (name_size == 7 && memcmp(name, ":status", 7) == 0)
        caller->status = atoi((const char *)value);
    else if (name_size == 11 && memcmp(name, "grpc-status", 11) == 0)
        caller->grpc_status = atoi((const char *)value);
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data,
                   size_t size, void *connection) {
    (void)flags, (void)connection;
    struct caller *caller = caller_of(session, stream);
    if (!caller) return 0;
    for (size_t i = 0; i < size && caller->received + i < sizeof caller->prefix; i++)
        caller->prefix[caller->received + i] = data[i];
    caller->received += size;
    return 0;
}

/* Whether one message came, whole and uncompressed. */
static bool whole_message(const struct caller *caller) {
    const uint8_t *at = caller->prefix;
    size_t size = (size_t)at[1] << 24 | (size_t)at[2] << 16 | (size_t)at[3] << 8 | at[4];
    return caller->received >= sizeof caller->prefix && at[0] == 0 &&
           caller->received == sizeof caller->prefix + size;
}

static int on_close(nghttp2_session *session, int32_t stream, uint32_t code, void *connection) {
    (void)connection;
    struct caller *caller = caller_of(session, stream);
    if (!caller || !caller->busy) return 0;
    if (code == NGHTTP2_REFUSED_STREAM && caller->connection->leaving)
        postpone(caller);
    else if (code != NGHTTP2_NO_ERROR)
        finish(caller, "reset: %s", nghttp2_http2_strerror(code));
    else if (caller->status != 200)
        finish(caller, "http %d", caller->status);
    else if (caller->grpc_status < 0)
        finish(caller, "no grpc-status");
    else if (caller->grpc_status > 0)
        finish(caller, "grpc %d", caller->grpc_status);
    else if (!whole_message(caller))
        finish(caller, "no whole message");
    else
        finish(caller, NULL);
    return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    (void)session;
    struct connection *connection = user;
    if (frame->hd.type == NGHTTP2_GOAWAY) connection->leaving = true;
    return 0;
}

static ssize_t read_body(nghttp2_session *session, int32_t stream, uint8_t *buffer, size_t space,
                         uint32_t *flags, nghttp2_data_source *source, void *connection) {
    (void)session, (void)stream, (void)connection;
    struct caller *caller = source->ptr;
    size_t left = caller->body->size - caller->body_sent, size = left < space ? left : space;
    memcpy(buffer, caller->body->data + caller->body_sent, size);
    caller->body_sent += size;
    if (size == left) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)size;
}

static void opened(struct connection *connection) {
    nghttp2_session_callbacks *callbacks;
    nghttp2_session *session;
    if (nghttp2_session_callbacks_new(&callbacks)) die("out of memory");
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    if (nghttp2_session_client_new(&session, callbacks, connection)) die("out of memory");
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW},
                                         {NGHTTP2_SETTINGS_ENABLE_PUSH, 0}};
    nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, 2);
    nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0, WINDOW);
    connection->session = session;
}

static void submit(struct connection *connection, struct caller *caller) {
    const struct options *options = connection->run->options;
    nghttp2_nv headers[7 + MAX_HEADERS] = {
        NV(":method", "POST"),        NV(":scheme", "http"),
        NV(":path", options->path),   NV(":authority", options->host),
        NV("te", "trailers"),         NV("content-type", "application/grpc"),
        NV("user-agent", "load/1.0"),
    };
    size_t count = 7;
    for (size_t i = 0; i < options->headers; i++, count++) {
        nghttp2_nv more = NV(options->header_names[i], options->header_values[i]);
        headers[count] = more;
    }
    nghttp2_data_provider body = {.source.ptr = caller, .read_callback = read_body};
    if (nghttp2_submit_request(connection->session, NULL, headers, count, &body, caller) < 0)
        connection->leaving = true, finish(caller, "no further stream");
}

static bool receive(struct connection *connection, const uint8_t *data, size_t size) {
    return nghttp2_session_mem_recv(connection->session, data, size) == (ssize_t)size;
}

/* Once a fatal error of the other side was told to it, nghttp2 wants no more. */
static bool over(struct connection *connection) {
    return !nghttp2_session_want_read(connection->session) &&
           !nghttp2_session_want_write(connection->session);
}

static void collect(struct connection *connection) {
    const uint8_t *data;
    ssize_t size;
    while ((size = nghttp2_session_mem_send(connection->session, &data)) > 0)
        append(&connection->out, data, (size_t)size);
}

static void closed(struct connection *connection) {
    nghttp2_session_del(connection->session);
    connection->session = NULL;
}

const struct protocol grpc_protocol = {opened, submit, receive, collect, over, closed};
