/* Multi-latent attention, the judge: every output element by its formula in kernels/args/mla.h. */
#include "kernels/reference/reference.h"

static double at(const void *p, enum dtype dtype, int64_t i) {
    return (double)load_f32(p, dtype, i);
}

static void put(void *p, enum dtype dtype, int64_t i, double value) {
    store_f32(p, dtype, i, (float)value);
}

void reference_mla_latent_split_forward(const struct stream *stream,
                                        const struct mla_latent_split_forward_args *args) {
    (void)stream;
    int64_t width = args->rank + args->dr;
    for (int64_t i = 0; i < args->rows * width; i++) {
        int64_t row = i / width, col = i % width;
        double x = at(args->x, args->dtype, i);
        if (col < args->rank)
            put(args->latent, args->dtype, row * args->rank + col, x);
        else
            put(args->k_pe, args->dtype, row * args->dr + col - args->rank, x);
    }
}

void reference_mla_latent_split_backward(const struct stream *stream,
                                         const struct mla_latent_split_backward_args *args) {
    (void)stream;
    int64_t width = args->rank + args->dr;
    for (int64_t i = 0; i < args->rows * width; i++) {
        int64_t row = i / width, col = i % width;
        put(args->dx, args->dtype, i,
            col < args->rank ? at(args->dlatent, args->dtype, row * args->rank + col)
                             : at(args->dk_pe, args->dtype, row * args->dr + col - args->rank));
    }
}

/* First element of a head of a token in [b, a, s, width]. */
static int64_t head_row(const struct mla_shape *z, int64_t token, int64_t head, int64_t width) {
    return ((token % z->b * z->a + head) * z->s + token / z->b) * width;
}

/* Element n of the rotation of x[row ..]. */
static double rotated(const struct mla_assemble_forward_args *args, const void *x, int64_t row,
                      int64_t position, int64_t n) {
    int64_t half = args->shape.dr / 2, i = n % half;
    double c = (double)args->cos[position * half + i], s = (double)args->sin[position * half + i];
    double even = at(x, args->dtype, row + 2 * i), odd = at(x, args->dtype, row + 2 * i + 1);
    return n < half ? even * c - odd * s : odd * c + even * s;
}

void reference_mla_assemble_forward(const struct stream *stream,
                                    const struct mla_assemble_forward_args *args) {
    (void)stream;
    const struct mla_shape *z = &args->shape;
    int64_t d = z->dn + z->dr, wide = z->dn + z->dv;
    for (int64_t n = 0; n < z->s * z->b * z->a; n++) {
        int64_t token = n / z->a, head = n % z->a, position = token / z->b;
        int64_t q = head_row(z, token, head, d), v = head_row(z, token, head, z->dv);
        for (int64_t i = 0; i < z->dn; i++) {
            put(args->q, args->dtype, q + i, at(args->q_in, args->dtype, n * d + i));
            put(args->k, args->dtype, q + i, at(args->kv, args->dtype, n * wide + i));
        }
        for (int64_t i = 0; i < z->dr; i++) {
            put(args->q, args->dtype, q + z->dn + i, rotated(args, args->q_in, n * d + z->dn, position, i));
            put(args->k, args->dtype, q + z->dn + i, rotated(args, args->k_pe, token * z->dr, position, i));
        }
        for (int64_t i = 0; i < z->dv; i++)
            put(args->v, args->dtype, v + i, at(args->kv, args->dtype, n * wide + z->dn + i));
    }
}

/* The gradient of x from that of y, where x pairs even and odd: n = 2i + odd. */
static double unrotated(const struct mla_assemble_backward_args *args, double low, double high,
                        int64_t position, int64_t n) {
    int64_t half = args->shape.dr / 2, i = n / 2;
    double c = (double)args->cos[position * half + i], s = (double)args->sin[position * half + i];
    return n % 2 ? high * c - low * s : low * c + high * s;
}

void reference_mla_assemble_backward(const struct stream *stream,
                                     const struct mla_assemble_backward_args *args) {
    (void)stream;
    const struct mla_shape *z = &args->shape;
    int64_t d = z->dn + z->dr, wide = z->dn + z->dv, half = z->dr / 2;
    for (int64_t n = 0; n < z->s * z->b * z->a; n++) {
        int64_t token = n / z->a, head = n % z->a;
        int64_t q = head_row(z, token, head, d), v = head_row(z, token, head, z->dv);
        for (int64_t i = 0; i < z->dn; i++) {
            put(args->dq_in, args->dtype, n * d + i, at(args->dq, args->dtype, q + i));
            put(args->dkv, args->dtype, n * wide + i, at(args->dk, args->dtype, q + i));
        }
        for (int64_t i = 0; i < z->dr; i++) {
            double low = at(args->dq, args->dtype, q + z->dn + i / 2);
            double high = at(args->dq, args->dtype, q + z->dn + i / 2 + half);
            put(args->dq_in, args->dtype, n * d + z->dn + i, unrotated(args, low, high, token / z->b, i));
        }
        for (int64_t i = 0; i < z->dv; i++)
            put(args->dkv, args->dtype, n * wide + z->dn + i, at(args->dv, args->dtype, v + i));
    }
    for (int64_t token = 0; token < z->s * z->b; token++) {
        for (int64_t i = 0; i < z->dr; i++) {
            double low = 0, high = 0;
            for (int64_t head = 0; head < z->a; head++) {
                int64_t pe = head_row(z, token, head, d) + z->dn + i / 2;
                low += at(args->dk, args->dtype, pe), high += at(args->dk, args->dtype, pe + half);
            }
            put(args->dk_pe, args->dtype, token * z->dr + i, unrotated(args, low, high, token / z->b, i));
        }
    }
}
