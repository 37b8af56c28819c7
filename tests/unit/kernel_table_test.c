/* The kernel tables: every row of kernels.def has a fast version on every instruction set, and really links.
 */
#include "kernels/kernels.h"
#include "tests/test.h"

/* Once, all tables silently fell back to `reference`: weak names do not pull members out of an archive. */
TEST(no_kernel_of_the_generic_table_is_the_reference) {
    const struct kernels *k = kernels_cpu_isa("generic"), *reference = kernels_reference();
    EXPECT(k != NULL, "every machine has the generic table");
#define KERNEL(name)                                                                                         \
    EXPECT(k->name != reference->name || !strcmp(#name, "gemm_pack"), #name " falls back to reference");
#include "kernels/kernels.def"
#undef KERNEL
}

TEST(the_best_table_is_found) {
    const struct kernels *best = kernels_cpu();
    EXPECT(best && strncmp(best->backend, "cpu ", 4) == 0, "%s", best ? best->backend : "none");
    EXPECT(kernels_cpu_isa("no such set") == NULL, "an unknown name must give nothing");
}

TEST(a_packing_table_packs_both_ways) {
    const struct kernels *amx = kernels_cpu_isa("amx");
    if (!amx) SKIP("this processor has no tile registers");
    EXPECT(amx->gemm_packed_bytes(DTYPE_BF16, 64, 64) >= 64 * 64 * 2,
           "packed weights hold all of the matrix");
    EXPECT(amx->gemm_pack != kernels_reference()->gemm_pack, "gemm_pack belongs to the same set as gemm");
}

RUN_TESTS(CASE(no_kernel_of_the_generic_table_is_the_reference), CASE(the_best_table_is_found),
          CASE(a_packing_table_packs_both_ways))
