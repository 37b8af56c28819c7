/* Shape checks and costs of the kernels of multi-latent attention. */
#include "kernels/kernels.h"

static const char *check_dtype(enum dtype dtype) {
    return dtype == DTYPE_F32 || dtype == DTYPE_BF16 || dtype == DTYPE_F16
               ? NULL
               : "dtype must be fp32, bf16 or fp16";
}

static const char *check_split(int64_t rows, int64_t rank, int64_t dr, enum dtype dtype) {
    if (rows < 1 || rank < 1 || dr < 1) return "rows, rank and dr must be at least 1";
    return check_dtype(dtype);
}

const char *mla_latent_split_forward_check(const struct mla_latent_split_forward_args *args) {
    if (!args->latent || !args->k_pe || !args->x) return "latent, k_pe and x must be set";
    return check_split(args->rows, args->rank, args->dr, args->dtype);
}

const char *mla_latent_split_backward_check(const struct mla_latent_split_backward_args *args) {
    if (!args->dx || !args->dlatent || !args->dk_pe) return "dx, dlatent and dk_pe must be set";
    return check_split(args->rows, args->rank, args->dr, args->dtype);
}

static const char *check_assemble(const struct mla_shape *z, const float *cos, const float *sin,
                                  enum dtype dtype) {
    if (z->s < 1 || z->b < 1 || z->a < 1 || z->dn < 1 || z->dv < 1) {
        return "s, b, a, dn and dv must be at least 1";
    }
    if (z->dr < 2 || z->dr % 2) return "dr must be even and at least 2";
    if (!cos || !sin) return "cos and sin must be set";
    return check_dtype(dtype);
}

const char *mla_assemble_forward_check(const struct mla_assemble_forward_args *args) {
    if (!args->q || !args->k || !args->v) return "q, k and v must be set";
    if (!args->q_in || !args->kv || !args->k_pe) return "q_in, kv and k_pe must be set";
    return check_assemble(&args->shape, args->cos, args->sin, args->dtype);
}

const char *mla_assemble_backward_check(const struct mla_assemble_backward_args *args) {
    if (!args->dq || !args->dk || !args->dv) return "dq, dk and dv must be set";
    if (!args->dq_in || !args->dkv || !args->dk_pe) return "dq_in, dkv and dk_pe must be set";
    return check_assemble(&args->shape, args->cos, args->sin, args->dtype);
}

/* ---- costs: every element is read and written once; a rotated pair takes 6 operations ---- */

static struct kernel_cost split_cost(int64_t rows, int64_t rank, int64_t dr, enum dtype dtype) {
    return (struct kernel_cost){.bytes = 2 * (double)rows * (double)(rank + dr) * (double)dtype_bytes(dtype)};
}

struct kernel_cost mla_latent_split_forward_cost(const struct mla_latent_split_forward_args *args) {
    return split_cost(args->rows, args->rank, args->dr, args->dtype);
}

struct kernel_cost mla_latent_split_backward_cost(const struct mla_latent_split_backward_args *args) {
    return split_cost(args->rows, args->rank, args->dr, args->dtype);
}

static struct kernel_cost assemble_cost(const struct mla_shape *z, enum dtype dtype, bool backward) {
    double tokens = (double)z->s * (double)z->b, heads = tokens * (double)z->a, dr = (double)z->dr;
    double projected = heads * (double)(2 * z->dn + z->dr + z->dv) + tokens * dr;
    double assembled = heads * (double)(2 * (z->dn + z->dr) + z->dv);
    return (struct kernel_cost){.flops = (heads + tokens) * dr * 3 + (backward ? heads * dr : 0),
                                .bytes = (projected + assembled) * (double)dtype_bytes(dtype) +
                                         (double)z->s * dr * 4};
}

struct kernel_cost mla_assemble_forward_cost(const struct mla_assemble_forward_args *args) {
    return assemble_cost(&args->shape, args->dtype, false);
}

struct kernel_cost mla_assemble_backward_cost(const struct mla_assemble_backward_args *args) {
    return assemble_cost(&args->shape, args->dtype, true);
}
