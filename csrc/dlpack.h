/* DLPack's exchange of tensors in C (https://dmlc.github.io/dlpack, version 1.3): how a tensor of another framework is
 * read without going through Python. Only what fastopt uses is declared; names and layout are the standard's. */
#ifndef FASTOPT_DLPACK_H
#define FASTOPT_DLPACK_H

#include <stdint.h>

enum { DL_MAJOR = 1 };

typedef struct {
    uint8_t code, bits;
    uint16_t lanes;
} DLDataType;

typedef struct {
    int32_t type, id;
} DLDevice;

typedef struct {
    void *data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape, *strides; /* in elements */
    uint64_t byte_offset;
} DLTensor;

/* A tensor that lives until the deleter is called. */
typedef struct DLManagedTensorVersioned {
    struct {
        uint32_t major, minor;
    } version;
    void *manager_ctx;
    void (*deleter)(struct DLManagedTensorVersioned *self);
    uint64_t flags;
    DLTensor dl_tensor;
} DLManagedTensorVersioned;

typedef int (*DLPackManagedTensorFromPyObjectNoSync)(void *py_object, DLManagedTensorVersioned **out);

/* Describes a tensor for as long as nobody else runs; 0, or -1 with a Python exception set. */
typedef int (*DLPackDLTensorFromPyObjectNoSync)(void *py_object, DLTensor *out);

/* What the capsule "dlpack_exchange_api" of a tensor's type points to. */
typedef struct DLPackExchangeAPI {
    struct {
        uint32_t major, minor;
    } version;
    struct DLPackExchangeAPI *previous; /* an older table, or NULL */
    void (*managed_tensor_allocator)(void);
    DLPackManagedTensorFromPyObjectNoSync managed_tensor_from_py_object_no_sync;
    void (*managed_tensor_to_py_object_no_sync)(void);
    DLPackDLTensorFromPyObjectNoSync dltensor_from_py_object_no_sync;
} DLPackExchangeAPI;

/* The table, or the older one behind it, of our major version; else NULL. */
static inline const DLPackExchangeAPI *fo_dl_table(const DLPackExchangeAPI *api)
{
    while (api && api->version.major != DL_MAJOR)
        api = api->previous;
    return api;
}

/* Starts to fetch what a framework will look at to describe a tensor: its Python object, and what lies around the place
 * where it keeps the shape. After a pass over the model hardly any of it is in the caches. */
static inline void fo_dl_prefetch(const void *py_object, const void *shape)
{
    __builtin_prefetch(py_object);
    for (int line = -1; line <= 2; line++)
        __builtin_prefetch((const char *)shape + 64 * line);
}

#endif
