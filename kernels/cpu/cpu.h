#pragma once
/* Every file of this folder is compiled once for each instruction set (generic, avx2, avx512, amx), with
 * CPU_ISA naming the set. CPU(name) gives each copy its own symbol: CPU(norm_forward) is
 * cpu_avx2_norm_forward in the avx2 copy. A function that is not static must be named through CPU(). Code for
 * one set sits between
 * `#if CPU_ISA_amx` lines; a kernel that only some sets provide is simply not defined for the others, and the
 * table falls back to the next simpler set, then to reference. */
#include "kernels/kernels.h"

#ifndef CPU_ISA
#define CPU_ISA generic
#endif
#ifndef CPU_ISA_generic
#define CPU_ISA_generic 0
#endif
#ifndef CPU_ISA_avx2
#define CPU_ISA_avx2 0
#endif
#ifndef CPU_ISA_avx512
#define CPU_ISA_avx512 0
#endif
#ifndef CPU_ISA_amx
#define CPU_ISA_amx 0
#endif
#define CPU_JOIN2(isa, name) cpu_##isa##_##name
#define CPU_JOIN(isa, name)  CPU_JOIN2(isa, name)
#define CPU(name)            CPU_JOIN(CPU_ISA, name)

#define KERNEL(name)                                                                                         \
    void CPU(name)(const struct stream *stream, const struct name##_args *args);                             \
    size_t CPU(name##_workspace)(const struct stream *stream, const struct name##_args *args);
#include "kernels/kernels.def"
#undef KERNEL
size_t CPU(gemm_packed_bytes)(enum dtype dtype, int64_t k, int64_t n);
double CPU(peak_flops)(struct threads *threads, enum dtype dtype);
