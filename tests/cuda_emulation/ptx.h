#pragma once
/* The twins of kernels/cuda/ptx.cuh, which includes this; the layout of the operands is said there. */
struct mma_lane {
    uint32_t a[4], b[2];
};

template <typename T>
static inline void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_lane mine;
    memcpy(mine.a, a, sizeof(mine.a)), memcpy(mine.b, b, sizeof(mine.b));
    const unsigned char(*all)[EMULATED_LANE_BYTES] =
        emulated_warp_meet(EMULATED_PLACE("mma_16816"), 0xFFFFFFFFu, &mine, sizeof(mine));
    const int r = emulated_now.lane / 4, q = 2 * (emulated_now.lane % 4);
    for (int i = 0; i < 4; i++) {
        const int row = r + (i / 2) * 8, column = q + i % 2;
        for (int k = 0; k < 16; k++) {
            mma_lane of_a, of_b;
            memcpy(&of_a, all[row % 8 * 4 + k % 8 / 2], sizeof(of_a));
            memcpy(&of_b, all[column * 4 + k % 8 / 2], sizeof(of_b));
            T x, y;
            x.bits = (uint16_t)(of_a.a[k / 8 * 2 + row / 8] >> (k % 2 * 16));
            y.bits = (uint16_t)(of_b.b[k / 8] >> (k % 2 * 16));
            c[i] += to_f32(x) * to_f32(y);
        }
    }
}

template <bool TRANSPOSED> static inline void ldmatrix(uint32_t (&x)[4], const void *row) {
    const unsigned char(*all)[EMULATED_LANE_BYTES] =
        emulated_warp_meet(EMULATED_PLACE("ldmatrix"), 0xFFFFFFFFu, &row, sizeof(row));
    const int r = emulated_now.lane / 4, q = 2 * (emulated_now.lane % 4);
    CHECK((uintptr_t)row % 16 == 0, "ldmatrix of a row that is not aligned to 16 bytes");
    for (int m = 0; m < 4; m++) {
        x[m] = 0;
        for (int i = 0; i < 2; i++) {
            const uint16_t *from;
            memcpy(&from, all[8 * m + (TRANSPOSED ? q + i : r)], sizeof(from));
            x[m] |= (uint32_t)from[TRANSPOSED ? r : q + i] << (16 * i);
        }
    }
}
