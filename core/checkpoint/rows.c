#include "core/checkpoint/rows.h"
#include <string.h>

enum { TILE = 16 }; /* 16 floats fill one cache line */

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

/* One 16 x 16 tile through a local copy: whole lines are read and written once, however the strides alias. */
static void transpose_tile(const float *in, int64_t in_stride, float *out, int64_t out_stride) {
    float tile[TILE][TILE];
    for (int k = 0; k < TILE; k++)
        for (int i = 0; i < TILE; i++) tile[i][k] = in[k * in_stride + i];
    for (int i = 0; i < TILE; i++) memcpy(out + i * out_stride, tile[i], sizeof(tile[i]));
}

static void scatter_transposed(const struct checkpoint_entry *entry, const float *buffer, int64_t first,
                               int64_t num_rows, float *tensor, int64_t cols, int64_t first_row,
                               int64_t local_rows) {
    int64_t width = entry->dims[1], row, run;
    for (int64_t j = 0; j < width; j += run) {
        run = smaller(checkpoint_map_rows(entry, j, &row), TILE);
        int64_t begin = row < first_row ? first_row - row : 0;
        int64_t end = smaller(run, first_row + local_rows - row);
        for (int64_t c = 0; c < num_rows; c += TILE) {
            int64_t c_end = smaller(c + TILE, num_rows);
            if (begin == 0 && end == TILE && c_end - c == TILE) {
                transpose_tile(buffer + c * width + j, width, tensor + (row - first_row) * cols + first + c,
                               cols);
                continue;
            }
            for (int64_t i = begin; i < end; i++)
                for (int64_t k = c; k < c_end; k++)
                    tensor[(row + i - first_row) * cols + first + k] = buffer[k * width + j + i];
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
