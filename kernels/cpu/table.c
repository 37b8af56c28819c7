/* The table of one instruction set: a kernel that this set does not define links as a null slot. */
#include "kernels/cpu/cpu.h"

#define KERNEL(name)                                                                                         \
    __attribute__((weak)) void CPU(name)(const struct stream *, const struct name##_args *);                 \
    __attribute__((weak)) size_t CPU(name##_workspace)(const struct stream *, const struct name##_args *);
#include "kernels/kernels.def"
#undef KERNEL
__attribute__((weak)) size_t CPU(gemm_packed_bytes)(enum dtype, int64_t, int64_t);

void CPU(table)(struct kernels *table);

/* Overwrites the slots that this set defines. Packing belongs to gemm: both come from the same set. */
void CPU(table)(struct kernels *table) {
#define KERNEL(name)                                                                                         \
    if (CPU(name)) {                                                                                         \
        table->name = CPU(name);                                                                             \
        table->name##_workspace = CPU(name##_workspace);                                                     \
    }
#include "kernels/kernels.def"
#undef KERNEL
    if (CPU(gemm)) table->gemm_packed_bytes = CPU(gemm_packed_bytes);
    table->peak_flops = CPU(peak_flops);
}
