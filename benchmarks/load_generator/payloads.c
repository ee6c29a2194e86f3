/* A file of bodies, each behind its length as 4 bytes, little-endian. */
#include "load.h"

#include <stdio.h>

static uint32_t little_endian(const uint8_t *at) {
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* prefixed: as a gRPC message, which is behind a flag and its length, big-endian. */
void payloads_read(struct payloads *payloads, const char *file, bool prefixed) {
    FILE *stream = fopen(file, "rb");
    if (!stream) die("--payloads %s: cannot be read", file);
    uint8_t head[4];
    size_t got;
    while ((got = fread(head, 1, sizeof head, stream)) == sizeof head) {
        uint32_t size = little_endian(head);
        struct bytes body = {0};
        if (prefixed) {
            uint8_t prefix[5] = {0, size >> 24, size >> 16, size >> 8, size};
            append(&body, prefix, sizeof prefix);
        }
        body.capacity = body.size + size;
        body.data = allocate(body.data, body.capacity);
        if (fread(body.data + body.size, 1, size, stream) != size)
            die("--payloads %s: item %zu is cut off", file, payloads->count);
        body.size += size;
        payloads->items =
            allocate(payloads->items, (payloads->count + 1) * sizeof *payloads->items);
        payloads->items[payloads->count++] = body;
    }
    if (got) die("--payloads %s: item %zu is cut off", file, payloads->count);
    if (!payloads->count) die("--payloads %s: holds nothing", file);
    fclose(stream);
}

const struct bytes *payloads_next(struct payloads *payloads) {
    return &payloads->items[payloads->next++ % payloads->count];
}
