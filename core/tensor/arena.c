#include "core/tensor/arena.h"
#include "core/base/str.h"
#include <string.h>
#include <sys/mman.h>

int arena_open(struct arena *arena, size_t bytes, struct err *err) {
    char size[32];
    void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return err_set(err, "out of memory: the system does not give the planned %s (%zu bytes)",
                       str_format_bytes(size, sizeof(size), (double)bytes), bytes);
#ifdef MADV_HUGEPAGE
    madvise(p, bytes, MADV_HUGEPAGE); /* fewer TLB misses; a refusal changes nothing else */
#endif
    *arena = (struct arena){p, bytes};
    return 0;
}

void arena_close(struct arena *arena) {
    if (arena->base) munmap(arena->base, arena->bytes ? arena->bytes : 1);
    *arena = (struct arena){0};
}

void arena_poison(struct arena *arena, size_t offset, size_t bytes) {
#ifdef POISON
    memset(arena->base + offset, 0xFF, bytes);
#else
    (void)arena, (void)offset, (void)bytes;
#endif
}
