#include "load.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void die(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
    exit(2);
}

void *allocate(void *old, size_t size) {
    void *found = realloc(old, size ? size : 1);
    if (!found) die("out of memory");
    return found;
}

void append(struct bytes *to, const void *data, size_t size) {
    if (to->size + size > to->capacity) {
        to->capacity = 2 * (to->size + size);
        to->data = allocate(to->data, to->capacity);
    }
    memcpy(to->data + to->size, data, size);
    to->size += size;
}
