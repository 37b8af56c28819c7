#include "core/checkpoint/rows.h"
#include <string.h>

enum { TILE = 16, STRIP = 64 }; /* 16 floats fill one cache line */

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

int64_t checkpoint_staging_rows(const struct checkpoint_entry *entry) {
    int64_t rows = CHECKPOINT_STAGING_BYTES / (int64_t)sizeof(float) / (entry->dims[1] ? entry->dims[1] : 1);
    if (rows > entry->dims[0]) rows = entry->dims[0];
    return rows ? rows : 1;
}

/* buffer[c - first][j] = tensor[row(j)][c]: tiles of 16 program rows, so that each line of the buffer is
 * written once and 16 lines of the tensor are read side by side. */
static void gather_transposed(const struct checkpoint_entry *entry, const float *tensor, int64_t cols,
                              int64_t first, int64_t num_rows, float *buffer) {
    int64_t width = entry->dims[1], row, run;
    for (int64_t j = 0; j < width; j += run) {
        run = smaller(checkpoint_map_rows(entry, j, &row), TILE);
        const float *in = tensor + row * cols + first;
        for (int64_t c = 0; c < num_rows; c++)
            for (int64_t i = 0; i < run; i++) buffer[c * width + j + i] = in[i * cols + c];
    }
}

const float *checkpoint_gather_rows(const struct checkpoint_entry *entry, const float *tensor, int64_t cols,
                                    int64_t first, int64_t num_rows, float *buffer) {
    if (entry->transposed) {
        gather_transposed(entry, tensor, cols, first, num_rows, buffer);
        return buffer;
    }
    int64_t row, run = checkpoint_map_rows(entry, first, &row);
    if (run >= num_rows) return tensor + row * cols;
    for (int64_t done = 0; done < num_rows; done += run) {
        run = smaller(checkpoint_map_rows(entry, first + done, &row), num_rows - done);
        memcpy(buffer + done * cols, tensor + row * cols, (size_t)(run * cols) * sizeof(float));
    }
    return buffer;
}

/* 64 disk rows at a time, whose current lines stay in the first-level cache: four whole lines of each program
 * row are written in turn. (Tiles of 16 program rows, as above, write 16 lines whose addresses often differ
 * by a multiple of 4 KiB, and were two to three times slower.) */
static void scatter_transposed(const struct checkpoint_entry *entry, const float *buffer, int64_t first,
                               int64_t num_rows, float *tensor, int64_t cols, int64_t first_row,
                               int64_t local_rows) {
    int64_t width = entry->dims[1], row, run;
    for (int64_t c = 0; c < num_rows; c += STRIP) {
        int64_t c_end = smaller(c + STRIP, num_rows);
        for (int64_t j = 0; j < width; j += run) {
            run = checkpoint_map_rows(entry, j, &row);
            int64_t begin = row < first_row ? first_row - row : 0;
            int64_t end = smaller(run, first_row + local_rows - row);
            for (int64_t i = begin; i < end; i++) {
                float *out = tensor + (row + i - first_row) * cols + first;
                for (int64_t k = c; k < c_end; k++) out[k] = buffer[k * width + j + i];
            }
        }
    }
}

void checkpoint_scatter_rows(const struct checkpoint_entry *entry, const float *buffer, int64_t first,
                             int64_t num_rows, float *tensor, int64_t cols, int64_t first_row,
                             int64_t local_rows) {
    if (entry->transposed) {
        scatter_transposed(entry, buffer, first, num_rows, tensor, cols, first_row, local_rows);
        return;
    }
    int64_t row, run;
    for (int64_t done = 0; done < num_rows; done += run) {
        run = smaller(checkpoint_map_rows(entry, first + done, &row), num_rows - done);
        int64_t begin = row < first_row ? first_row - row : 0;
        int64_t end = smaller(run, first_row + local_rows - row);
        if (begin < end)
            memcpy(tensor + (row + begin - first_row) * cols, buffer + (done + begin) * cols,
                   (size_t)((end - begin) * cols) * sizeof(float));
    }
}
