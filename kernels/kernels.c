#include "kernels/kernels.h"
#include "core/base/check.h"
#include <stdio.h>
#include <string.h>
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

const char *kernel_name(enum kernel_id id) {
    static const char *const names[KERNEL_COUNT] = {
#define KERNEL(name) #name,
#include "kernels/kernels.def"
#undef KERNEL
    };
    return names[id];
}

#define KERNEL(name)                                                                                         \
    void name##_call(const struct stream *stream, const struct name##_args *args) {                          \
        const char *wrong = name##_check(args);                                                              \
        CHECK(!wrong, "kernel " #name " (%s): %s", stream->kernels->backend, wrong);                         \
        if (stream->kernels->name##_workspace && !stream->meter) {                                           \
            size_t need = stream->kernels->name##_workspace(stream, args);                                   \
            CHECK(need <= stream->workspace_bytes,                                                           \
                  "kernel " #name " (%s) needs %zu bytes of workspace, has %zu", stream->kernels->backend,   \
                  need, stream->workspace_bytes);                                                            \
        }                                                                                                    \
        stream->kernels->name(stream, args);                                                                 \
    }
#include "kernels/kernels.def"
#undef KERNEL

/* ---- reference ---- */
#define KERNEL(name) void reference_##name(const struct stream *stream, const struct name##_args *args);
#include "kernels/kernels.def"
#undef KERNEL

static size_t packs_nothing(enum dtype dtype, int64_t k, int64_t n) {
    (void)dtype, (void)k, (void)n;
    return 0;
}

static const struct kernels reference_table = {
    .backend = "reference",
#define KERNEL(name) .name = reference_##name,
#include "kernels/kernels.def"
#undef KERNEL
    .gemm_packed_bytes = packs_nothing,
};

const struct kernels *kernels_reference(void) {
    return &reference_table;
}

/* ---- cpu: one table per instruction set, each filled over the simpler ones ---- */
void cpu_generic_table(struct kernels *table);
static int always(void) {
    return 1;
}
#if defined(__x86_64__)
void cpu_avx2_table(struct kernels *table);
void cpu_avx512_table(struct kernels *table);
void cpu_amx_table(struct kernels *table);

static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

/* CPUID leaf 7: EDX bit 22 AMX-BF16, bit 24 AMX-TILE; subleaf 1: EAX bit 5 AVX512-BF16. Linux hands out the
 * tile registers only to a process that asks (arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)). */
static int has_amx(void) {
#if defined(__linux__)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d, a1;
    if (!has_avx512()) return 0;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    if (!(d >> 22 & 1) || !(d >> 24 & 1)) return 0;
    __asm__("cpuid" : "=a"(a1), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(1));
    if (!(a1 >> 5 & 1)) return 0;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return 0;
#endif
}
#endif

static struct cpu_isa {
    const char *isa, *name;
    int (*usable)(void);
    void (*fill)(struct kernels *table);
    int state; /* 0 not looked at, 1 usable, -1 not */
    struct kernels table;
} cpu_isas[] = {
    {.isa = "generic", .name = "cpu generic", .usable = always, .fill = cpu_generic_table},
#if defined(__x86_64__)
    {.isa = "avx2", .name = "cpu avx2", .usable = has_avx2, .fill = cpu_avx2_table},
    {.isa = "avx512", .name = "cpu avx512", .usable = has_avx512, .fill = cpu_avx512_table},
    {.isa = "amx", .name = "cpu amx", .usable = has_amx, .fill = cpu_amx_table},
#endif
};

static const struct kernels *cpu_table(size_t index) {
    struct cpu_isa *isa = &cpu_isas[index];
    if (!isa->state) {
        isa->state = isa->usable() ? 1 : -1;
        isa->table = reference_table;
        for (size_t i = 0; i <= index; i++) cpu_isas[i].fill(&isa->table);
        isa->table.backend = isa->name;
    }
    return isa->state > 0 ? &isa->table : NULL;
}

const struct kernels *kernels_cpu_isa(const char *isa) {
    for (size_t i = 0; i < ARRAY_COUNT(cpu_isas); i++)
        if (!strcmp(cpu_isas[i].isa, isa)) return cpu_table(i);
    return NULL;
}

const struct kernels *kernels_cpu(void) {
    for (size_t i = ARRAY_COUNT(cpu_isas); i-- > 1;)
        if (cpu_table(i)) return cpu_table(i);
    return cpu_table(0);
}

/* ---- cuda: linked in or not ---- */
__attribute__((weak)) void cuda_table(struct kernels *table, bool lacks[KERNEL_COUNT]);

static bool cuda_lacks[KERNEL_COUNT];

const struct kernels *kernels_cuda(void) {
    static struct kernels table;
    if (!cuda_table) return NULL;
    if (!table.backend) cuda_table(&table, cuda_lacks);
    return &table;
}

bool kernels_cuda_lacks(enum kernel_id id) {
    return !kernels_cuda() || cuda_lacks[id];
}

/* ---- meta: the check and the cost are the kernel ---- */
static void meter_add(const struct stream *stream, enum kernel_id id, struct kernel_cost cost,
                      size_t workspace) {
    struct kernel_meter *m = stream->meter;
    struct kernel_cost *sums[] = {&m->total, &m->by_kernel[id]};
    for (int i = 0; i < 2; i++) {
        sums[i]->flops += cost.flops;
        sums[i]->gemm_flops += cost.gemm_flops;
        sums[i]->bytes += cost.bytes;
    }
    m->calls[id]++;
    if (workspace > m->workspace_bytes) m->workspace_bytes = workspace;
}

#define KERNEL(name)                                                                                         \
    static void meta_##name(const struct stream *stream, const struct name##_args *args) {                   \
        size_t (*workspace)(const struct stream *, const struct name##_args *) =                             \
            stream->kernels->name##_workspace;                                                               \
        meter_add(stream, KERNEL_##name, name##_cost(args), workspace ? workspace(stream, args) : 0);        \
    }
#include "kernels/kernels.def"
#undef KERNEL

struct kernels kernels_meta(const struct kernels *like) {
    struct kernels table = *like;
    table.backend = "meta";
#define KERNEL(name) table.name = meta_##name;
#include "kernels/kernels.def"
#undef KERNEL
    return table;
}
