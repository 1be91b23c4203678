/* The lists of fastopt.h and rules.def as tables of names, so that Python never repeats them. */
#include "fastopt.h"

static const char *const rules[] = {
#define RULE(name, states) #name,
#include "rules.def"
};

static const char *const options[] = {
#define OPTION(name) #name,
#include "rules.def"
};

static const char *const scalars[] = {
#define SCALAR(name) #name,
#include "rules.def"
};

static const char *const storages[] = {
#define STORAGE(NAME, name, bytes, beside) #name,
#include "codecs.def"
};

const char *fo_rule_name(size_t rule) { return rule < FO_RULES ? rules[rule] : NULL; }

const char *fo_option_name(size_t index) { return index < FO_OPTIONS ? options[index] : NULL; }

const char *fo_scalar_name(size_t index) { return index < FO_SCALARS ? scalars[index] : NULL; }

const char *fo_storage_name(size_t storage) { return storage < FO_STORAGES ? storages[storage] : NULL; }

const char *fo_compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}
