/* Of XLA's foreign function interface what a step needs, in words of our own: the layout of its structs is stable (minor
 * versions only append to them), so that nothing of XLA is needed to build this. Each struct says how large it is. */
#ifndef FASTOPT_XLA_H
#define FASTOPT_XLA_H

#include <stddef.h>
#include <stdint.h>

#include "fastopt.h"

enum { XLA_MAJOR = 0 }; /* the version that this is of; minor ones only add to it */

enum { XLA_STAGE_EXECUTE = 3, XLA_ARRAY = 1, XLA_SCALAR = 3, XLA_EXTENSION_METADATA = 1 };
enum { XLA_INVALID_ARGUMENT = 3, XLA_RESOURCE_EXHAUSTED = 8, XLA_UNIMPLEMENTED = 12 }; /* codes of errors */
enum { XLA_S16 = 3, XLA_S32 = 4, XLA_S64 = 5, XLA_U32 = 8, XLA_F16 = 10, XLA_F32 = 11, XLA_F64 = 12, XLA_BF16 = 16 };

typedef struct xla_error xla_error;

typedef struct xla_extension {
    size_t struct_size;
    int type;
    struct xla_extension *next;
} xla_extension;

typedef struct {
    size_t struct_size;
    xla_extension *extension;
    int major, minor;
} xla_version;

typedef struct {
    size_t struct_size;
    xla_extension *extension;
    const char *message;
    int code;
} xla_error_args;

typedef struct {
    size_t struct_size;
    xla_extension *extension;
    xla_version version;
    const void *internal;
    xla_error *(*create_error)(xla_error_args *);
} xla_api;

/* What XLA asks a handler for when it is registered. */
typedef struct {
    xla_extension base;
    struct {
        size_t struct_size;
        xla_version version;
        uint32_t traits;
    } *metadata;
} xla_metadata_extension;

typedef struct {
    size_t struct_size;
    xla_extension *extension;
    int dtype;
    void *data;
    int64_t rank;
    int64_t *dims;
} xla_buffer;

typedef struct {
    size_t struct_size;
    xla_extension *extension;
    int64_t size;
    int *types;
    xla_buffer **at;
} xla_buffers;

typedef struct {
    const char *at;
    size_t length;
} xla_text;

typedef struct {
    int dtype;
    void *at;
} xla_scalar;

typedef struct {
    int dtype;
    size_t size;
    void *at;
} xla_array;

typedef struct {
    size_t struct_size;
    xla_extension *extension;
    int64_t size;
    int *types;
    xla_text **names;
    void **at; /* xla_scalar or xla_array */
} xla_attributes;

typedef struct {
    size_t struct_size;
    xla_extension *extension;
    const xla_api *api;
    void *context;
    int stage;
    xla_buffers arguments, results;
    xla_attributes attributes;
} xla_call;

/* Handlers of the interface, but for their first arguments: see xla.c. `minor` is the version to claim: XLA registers
 * nobody that is behind by a few. They return NULL, or what was wrong. */
xla_error *fo_xla_measure(const fo_kernels *kernels, int threads, int minor, const xla_call *call);
xla_error *fo_xla_step(const fo_kernels *kernels, int threads, int minor, const xla_call *call);

#endif
