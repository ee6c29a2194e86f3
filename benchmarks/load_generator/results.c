#include "load.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void results_answered(struct results *results, uint64_t latency_ns) {
    if (results->answered == results->capacity) {
        results->capacity = results->capacity ? 2 * results->capacity : 4096;
        results->latencies_ns = allocate(
            results->latencies_ns, results->capacity * sizeof *results->latencies_ns);
    }
    results->latencies_ns[results->answered++] = latency_ns;
}

static void count(struct results *results, const char *text) {
    size_t last = sizeof results->errors / sizeof *results->errors - 1;
    for (size_t i = 0; i < results->kinds; i++) {
        if (strcmp(results->errors[i].text, text) == 0) {
            results->errors[i].count++;
            return;
        }
    }
    if (results->kinds == last && strcmp(text, "other") != 0) {
        count(results, "other");
        return;
    }
    strcpy(results->errors[results->kinds].text, text);
    results->errors[results->kinds++].count = 1;
}

void results_error(struct results *results, const char *format, ...) {
    char text[ERROR_TEXT];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    count(results, text);
}

static int ascending(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* The least latency that so large a share of the requests does not exceed. */
static double share_ms(const struct results *results, double share) {
    size_t rank = (size_t)(share * (double)results->answered);
    if ((double)rank < share * (double)results->answered) rank++;
    return (double)results->latencies_ns[rank ? rank - 1 : 0] / 1e6;
}

static void print_latency(const struct results *results) {
    if (!results->answered) {
        printf("null");
        return;
    }
    double sum = 0;
    for (size_t i = 0; i < results->answered; i++) sum += (double)results->latencies_ns[i];
    printf("{\"p50\": %.4f, \"p90\": %.4f, \"p99\": %.4f, \"p999\": %.4f, \"max\": %.4f, "
           "\"mean\": %.4f}",
           share_ms(results, 0.5), share_ms(results, 0.9), share_ms(results, 0.99),
           share_ms(results, 0.999), share_ms(results, 1.0),
           sum / (double)results->answered / 1e6);
}

void results_print(struct results *results, const struct options *options) {
    qsort(results->latencies_ns, results->answered, sizeof *results->latencies_ns, ascending);
    printf("{\"answered\": %zu, \"seconds\": %.3f, \"per_second\": %.2f, \"latency_ms\": ",
           results->answered, options->seconds, (double)results->answered / options->seconds);
    print_latency(results);
    printf(", \"errors\": {");
    for (size_t i = 0; i < results->kinds; i++)
        printf("%s\"%s\": %llu", i ? ", " : "", results->errors[i].text,
               (unsigned long long)results->errors[i].count);
    printf("}, \"sent\": %llu, \"response_bytes\": %llu, \"cpu_seconds\": %.4f}\n",
           (unsigned long long)results->sent, (unsigned long long)results->response_bytes,
           results->cpu_seconds);
}
