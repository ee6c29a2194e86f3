#include "load.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char USAGE[] =
    "usage: load --protocol grpc|http --target HOST:PORT --path PATH --payloads FILE\n"
    "            [--callers 1] [--connections 1] [--seconds 5] [--warmup 1] [--drain 10]\n"
    "            [--rate 0] [--header NAME:VALUE ...]\n"
    "\n"
    "  --payloads     bodies that are sent in turn, each behind its length (4 bytes, little-endian)\n"
    "  --connections  that the callers share; over http every caller has its own\n"
    "  --warmup       seconds that do not count\n"
    "  --drain        seconds that answers may take once nothing more is sent\n"
    "  --rate         requests a second, by the clock; 0: each caller sends when it is answered\n"
    "\n"
    "Prints one JSON object.\n";

static double number(const char *name, const char *text, double least) {
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= least)) die("--%s %s: at least %g", name, text, least);
    return value;
}

/* Cuts a text in two at the last or first such character. */
static char *cut(const char *name, char *text, char *at) {
    if (!at || at == text || !at[1]) die("--%s %s: two parts with a colon between", name, text);
    *at = 0;
    return at + 1;
}

static void add_header(struct options *options, char *text) {
    if (options->headers == MAX_HEADERS) die("--header: at most %d", MAX_HEADERS);
    options->header_values[options->headers] = cut("header", text, strchr(text, ':'));
    options->header_names[options->headers++] = text;
}

static void set(struct options *options, const char *name, char *value) {
    if (!strcmp(name, "protocol")) options->protocol = value;
    if (!strcmp(name, "path")) options->path = value;
    if (!strcmp(name, "payloads")) options->payloads = value;
    if (!strcmp(name, "callers")) options->callers = (size_t)number(name, value, 1);
    if (!strcmp(name, "connections")) options->connections = (size_t)number(name, value, 1);
    if (!strcmp(name, "seconds")) options->seconds = number(name, value, 0.001);
    if (!strcmp(name, "warmup")) options->warmup = number(name, value, 0);
    if (!strcmp(name, "drain")) options->drain = number(name, value, 0);
    if (!strcmp(name, "rate")) options->rate = number(name, value, 0);
    if (!strcmp(name, "header")) add_header(options, value);
    if (!strcmp(name, "target")) {
        options->port = cut(name, value, strrchr(value, ':'));
        options->host = value;
    }
}

static void check(struct options *options) {
    const char *protocol = options->protocol;
    if (!protocol || (strcmp(protocol, "grpc") && strcmp(protocol, "http")))
        die("--protocol: grpc or http");
    if (!options->host) die("--target: HOST:PORT is missing");
    if (!options->path) die("--path is missing");
    if (!options->payloads) die("--payloads is missing");
    if (!strcmp(protocol, "http") || options->connections > options->callers)
        options->connections = options->callers;
}

int main(int argc, char **argv) {
    static const struct option known[] = {
        {"protocol", 1, 0, 0},    {"target", 1, 0, 0},  {"path", 1, 0, 0},   {"payloads", 1, 0, 0},
        {"callers", 1, 0, 0},     {"connections", 1, 0, 0}, {"seconds", 1, 0, 0},
        {"warmup", 1, 0, 0},      {"drain", 1, 0, 0},   {"rate", 1, 0, 0},   {"header", 1, 0, 0},
        {"help", 0, 0, 'h'},      {0, 0, 0, 0},
    };
    struct options options = {
        .callers = 1, .connections = 1, .seconds = 5, .warmup = 1, .drain = 10};
    int index, found;
    while ((found = getopt_long(argc, argv, "h", known, &index)) != -1) {
        if (found) {
            fputs(USAGE, found == 'h' ? stdout : stderr);
            return found == 'h' ? 0 : 2;
        }
        set(&options, known[index].name, optarg);
    }
    if (optind < argc) die("%s: no such argument\n\n%s", argv[optind], USAGE);
    check(&options);
    bool grpc = !strcmp(options.protocol, "grpc");
    struct run run = {.options = &options, .protocol = grpc ? &grpc_protocol : &http_protocol};
    payloads_read(&run.payloads, options.payloads, grpc);
    run_all(&run);
    results_print(&run.results, &options);
    return 0;
}
