/* The table of the CUDA kernels. One that is not written yet ends the job by name: there is no fallback,
 * because the others' pointers are the host's. */
#include "kernels/cuda/cuda.cuh"

#define KERNEL(name)                                                                                         \
    extern "C" __attribute__((weak)) void cuda_##name(const struct stream *, const struct name##_args *);    \
    extern "C" __attribute__((weak))                                                                         \
    size_t cuda_##name##_workspace(const struct stream *, const struct name##_args *);                       \
    static void lacks_##name(const struct stream *, const struct name##_args *) {                            \
        die(STATUS_FAILED, "kernel " #name " is not written for CUDA");                                      \
    }
#include "kernels/kernels.def"
#undef KERNEL

extern "C" void cuda_table(struct kernels *table, bool lacks[KERNEL_COUNT]);

static size_t packs_nothing(enum dtype, int64_t, int64_t) {
    return 0;
}

extern "C" void cuda_table(struct kernels *table, bool lacks[KERNEL_COUNT]) {
    table->backend = "cuda";
#define KERNEL(name)                                                                                         \
    lacks[KERNEL_##name] = !cuda_##name;                                                                     \
    table->name = cuda_##name ? cuda_##name : lacks_##name;                                                  \
    table->name##_workspace = cuda_##name##_workspace;
#include "kernels/kernels.def"
#undef KERNEL
    table->gemm_packed_bytes = packs_nothing;
}
