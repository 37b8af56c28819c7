#pragma once
/* Host memory with counting and fault injection. Every host allocation of the program goes through here, so a
 * test can demand "no allocation between iteration 2 and N" and can make the n-th allocation fail. Blocks are
 * named: the name must be a string literal. Running out of host memory ends the job (exit
 * STATUS_OUT_OF_MEMORY), naming block and size; the functions never return NULL, except for zero bytes.
 * Thread safe. */
#include <stddef.h>
#include <stdint.h>

void *mem_alloc(size_t bytes, const char *name);            /* contents undefined, 64-byte aligned */
void *mem_zalloc(size_t bytes, const char *name);           /* zeroed, 64-byte aligned */
void *mem_realloc(void *p, size_t bytes, const char *name); /* NULL behaves as mem_alloc */
void mem_free(void *p);                                     /* NULL is fine */
char *mem_strdup(const char *s, const char *name);
/* count * size with an overflow check that ends the job. */
size_t mem_array_bytes(size_t count, size_t size);
#define mem_new_array(type, count, name) ((type *)mem_zalloc(mem_array_bytes((count), sizeof(type)), (name)))

struct mem_stats {
    uint64_t allocations; /* calls that took memory, ever */
    uint64_t live_blocks;
    uint64_t live_bytes;
    uint64_t peak_bytes;
};
struct mem_stats mem_stats(void);

/* The n-th allocation from now on (1 = the next) behaves as if memory were exhausted. 0 switches it off. */
void mem_fail_nth(uint64_t n);
