#pragma once
/* What this binary is: version, compiler, and what the Makefile found and switched on. All strings are
 * static.
 *
 *     pretrain_gpt 0.1.0 (gcc pcre2=1 yaml=1 cuda=0 nccl=0 mpi=0 cpu=[generic avx2 avx512 amx]; gcc 12.2.0)
 */

const char *version_number(void);   /* "0.1.0" */
const char *version_settings(void); /* the Makefile's settings: "gcc pcre2=1 ... cpu=[...]" */
const char *version_compiler(void); /* "gcc 12.2.0" */
const char *version_string(void);   /* all of it on one line, what --version prints */
