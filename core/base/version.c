#include "core/base/version.h"

#ifndef BUILD_SETTINGS
#error "core/base/version.c is compiled by the Makefile, which defines BUILD_SETTINGS"
#endif

#define VERSION    "0.1.0"
#define TEXT_OF(x) #x
#define TEXT(x)    TEXT_OF(x)
#ifdef __clang__
#define COMPILER "clang " TEXT(__clang_major__) "." TEXT(__clang_minor__) "." TEXT(__clang_patchlevel__)
#else
#define COMPILER "gcc " __VERSION__
#endif

const char *version_number(void) {
    return VERSION;
}

const char *version_settings(void) {
    return BUILD_SETTINGS;
}

const char *version_compiler(void) {
    return COMPILER;
}

const char *version_string(void) {
    return "pretrain_gpt " VERSION " (" BUILD_SETTINGS "; " COMPILER ")";
}
