#include "core/checkpoint/pieces.h"
#include "core/base/mem.h"
#include <string.h>

enum { TILE = 16, STRIP = 64 }; /* 16 floats fill one cache line */

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static int64_t columns(const struct checkpoint_tensor *t) {
    return t->num_dims > 1 ? t->dims[1] : 1;
}

void checkpoint_tensor_set_whole(struct checkpoint_tensor *tensor) {
    memset(tensor->rows, 0, sizeof(tensor->rows));
    tensor->rows[0].count = tensor->dims[0];
    tensor->num_groups = tensor->first_group = tensor->group_rows = 0;
    tensor->first_col = 0, tensor->num_cols = columns(tensor);
    tensor->begin = 0, tensor->end = tensor->dims[0] * tensor->num_cols;
    tensor->writes = true;
}

int64_t checkpoint_staging_rows(const struct checkpoint_entry *entry) {
    int64_t rows = CHECKPOINT_STAGING_BYTES / (int64_t)sizeof(float) / (entry->dims[1] ? entry->dims[1] : 1);
    return larger(smaller(rows, entry->dims[0]), 1);
}

/* ---- rectangles ---- */

struct builder {
    struct checkpoint_rects *rects;
    const struct checkpoint_entry *entry;
    const struct checkpoint_tensor *tensor;
};

/* `rows` local rows from `local_row` on, their local columns [from, to); the first is number `position` of
 * the entry's program rows. */
static void add_rect(struct builder *b, int64_t position, int64_t local_row, int64_t rows, int64_t from,
                     int64_t to) {
    struct checkpoint_rects *r = b->rects;
    const struct checkpoint_tensor *t = b->tensor;
    int64_t cols = t->num_cols, local = local_row * cols + from - t->begin;
    if (r->count == r->capacity) {
        r->capacity = r->capacity * 2 + 16;
        r->list =
            mem_realloc(r->list, mem_array_bytes((size_t)r->capacity, sizeof(*r->list)), "checkpoint pieces");
    }
    r->list[r->count++] =
        b->entry->transposed
            ? (struct checkpoint_rect){t->first_col + from, position, to - from, rows, local, 1, cols}
            : (struct checkpoint_rect){position, t->first_col + from, rows, to - from, local, cols, 1};
}

/* What [begin, end) leaves of `rows` whole local rows: the end of one, whole ones, the beginning of one. */
static void add_held(struct builder *b, int64_t position, int64_t local_row, int64_t rows) {
    int64_t cols = b->tensor->num_cols, offset = position - local_row;
    int64_t begin = larger(b->tensor->begin, local_row * cols);
    int64_t end = smaller(b->tensor->end, (local_row + rows) * cols);
    if (begin >= end) return;
    int64_t r = begin / cols, c = begin % cols, last = end / cols, c_end = end % cols;
    if (r == last) {
        add_rect(b, r + offset, r, 1, c, c_end);
        return;
    }
    if (c) {
        add_rect(b, r + offset, r, 1, c, cols);
        r++;
    }
    if (r < last) add_rect(b, r + offset, r, last - r, 0, cols);
    if (c_end) add_rect(b, last + offset, last, 1, 0, c_end);
}

static int64_t groups_of(const struct checkpoint_tensor *t) {
    return t->num_groups ? t->num_groups : 1;
}

static int64_t group_rows(const struct checkpoint_tensor *t) {
    return t->num_groups ? t->group_rows : t->dims[0];
}

/* Rows of the block in one group. */
static int64_t held_rows(const struct checkpoint_tensor *t) {
    int64_t rows = 0;
    for (int i = 0; i < CHECKPOINT_MAX_ROW_RUNS; i++) rows += t->rows[i].count;
    return rows;
}

/* The block lies inside the tensor, its row runs rise, the held range lies inside the block. */
static void check_tensor(const struct checkpoint_tensor *t) {
    int64_t at = 0, rows = groups_of(t) * held_rows(t), of_group = group_rows(t);
    CHECK(t->first_group >= 0 && (t->first_group + groups_of(t)) * of_group <= t->dims[0],
          "%s: %lld groups of %lld rows from %lld on, of %lld rows", t->name, (long long)groups_of(t),
          (long long)of_group, (long long)t->first_group, (long long)t->dims[0]);
    for (int i = 0; i < CHECKPOINT_MAX_ROW_RUNS; i++) {
        const struct checkpoint_row_run *run = &t->rows[i];
        if (!run->count) continue;
        CHECK(run->count > 0 && run->first >= at && run->first + run->count <= of_group,
              "%s: rows %lld to %lld of %lld", t->name, (long long)run->first,
              (long long)(run->first + run->count), (long long)of_group);
        at = run->first + run->count;
    }
    CHECK(t->first_col >= 0 && t->num_cols >= 0 && t->first_col + t->num_cols <= columns(t),
          "%s: columns %lld to %lld of %lld", t->name, (long long)t->first_col,
          (long long)(t->first_col + t->num_cols), (long long)columns(t));
    CHECK(t->begin >= 0 && t->begin <= t->end && t->end <= rows * t->num_cols,
          "%s: elements %lld to %lld of %lld", t->name, (long long)t->begin, (long long)t->end,
          (long long)(rows * t->num_cols));
}

/* What the block has of the program rows [row, row + run), which are the entry's from `position` on. */
static void add_run(struct builder *b, int64_t position, int64_t row, int64_t run) {
    const struct checkpoint_tensor *t = b->tensor;
    int64_t of_group = group_rows(t), per_group = held_rows(t);
    int64_t first = larger(of_group ? row / of_group - t->first_group : 0, 0);
    for (int64_t g = first; g < groups_of(t) && (t->first_group + g) * of_group < row + run; g++) {
        int64_t base = (t->first_group + g) * of_group, local = g * per_group;
        for (int k = 0; k < CHECKPOINT_MAX_ROW_RUNS; local += t->rows[k++].count) {
            const struct checkpoint_row_run *held = &t->rows[k];
            int64_t from = larger(row, base + held->first);
            int64_t to = smaller(row + run, base + held->first + held->count);
            if (from < to) add_held(b, position + from - row, local + from - base - held->first, to - from);
        }
    }
}

void checkpoint_rects_set(struct checkpoint_rects *rects, const struct checkpoint_entry *entry,
                          const struct checkpoint_tensor *tensor) {
    struct builder b = {rects, entry, tensor};
    int64_t total = entry->transposed ? entry->dims[1] : entry->dims[0], row, run;
    check_tensor(tensor);
    rects->count = 0;
    for (int64_t i = 0; i < total && tensor->begin < tensor->end; i += run) {
        run = checkpoint_map_rows(entry, i, &row);
        add_run(&b, i, row, run);
    }
}

void checkpoint_rects_limit(struct checkpoint_rects *rects, int64_t rows) {
    int kept = 0;
    for (int i = 0; i < rects->count; i++) {
        struct checkpoint_rect r = rects->list[i];
        r.rows = smaller(r.rows, rows - r.row);
        if (r.rows > 0) rects->list[kept++] = r;
    }
    rects->count = kept;
}

void checkpoint_rects_free(struct checkpoint_rects *rects) {
    mem_free(rects->list);
    *rects = (struct checkpoint_rects){0};
}

/* ---- blocks ---- */

bool checkpoint_block_next(struct checkpoint_block *block, const struct checkpoint_rects *rects,
                           const struct checkpoint_entry *entry, int64_t from, int64_t max_rows) {
    int64_t first = INT64_MAX, end = 0;
    for (int i = 0; i < rects->count; i++) {
        const struct checkpoint_rect *r = &rects->list[i];
        if (r->row + r->rows <= from) continue;
        first = smaller(first, larger(r->row, from));
        end = larger(end, r->row + r->rows);
    }
    if (first >= end) return false;
    *block = (struct checkpoint_block){first, smaller(end - first, max_rows), entry->dims[1], rects};
    return true;
}

/* The part of a rectangle that lies in the block. */
static bool clip(const struct checkpoint_block *b, const struct checkpoint_rect *r,
                 struct checkpoint_rect *part) {
    int64_t from = larger(r->row, b->first), to = smaller(r->row + r->rows, b->first + b->num_rows);
    if (from >= to) return false;
    *part = *r;
    part->row = from, part->rows = to - from, part->local += (from - r->row) * r->row_step;
    return true;
}

struct joiner {
    int64_t first, end, gap;
    checkpoint_run_fn fn;
    void *context;
    int status;
};

static void join_run(struct joiner *j, int64_t first, int64_t count) {
    if (j->status) return;
    if (j->end > 0 && first - j->end <= j->gap) {
        j->end = first + count;
        return;
    }
    if (j->end > 0) j->status = j->fn(j->context, j->first, j->end - j->first);
    j->first = first, j->end = first + count;
}

/* Row by row, in each the rectangles that cover it; a rectangle of whole rows is one step. */
int checkpoint_block_runs(const struct checkpoint_block *block, int64_t gap, checkpoint_run_fn fn,
                          void *context) {
    const struct checkpoint_rects *rects = block->rects;
    struct joiner j = {.gap = gap, .fn = fn, .context = context};
    int64_t end = block->first + block->num_rows, rows;
    for (int64_t row = block->first; row < end && !j.status; row += rows) {
        int64_t next = end; /* rectangle */
        bool covered = false;
        rows = 1;
        for (int i = 0; i < rects->count; i++) {
            const struct checkpoint_rect *r = &rects->list[i];
            if (row < r->row) next = smaller(next, r->row);
            if (row < r->row || row >= r->row + r->rows) continue;
            covered = true;
            if (r->cols == block->width) rows = smaller(r->row + r->rows, end) - row;
            join_run(&j, row * block->width + r->col, (rows - 1) * block->width + r->cols);
        }
        if (!covered) rows = next - row;
    }
    if (!j.status && j.end > 0) j.status = fn(context, j.first, j.end - j.first);
    return j.status;
}

int64_t checkpoint_block_in_place(const struct checkpoint_block *block) {
    struct checkpoint_rect part, only = {0};
    int parts = 0;
    for (int i = 0; i < block->rects->count && parts < 2; i++)
        if (clip(block, &block->rects->list[i], &part)) only = part, parts++;
    bool as_on_disk = parts == 1 && only.rows == block->num_rows && only.col_step == 1 &&
                      only.cols == block->width && only.row_step == block->width;
    return as_on_disk ? only.local : -1;
}

/* Tiles of 16 program rows, so that each line of the buffer is written once and 16 lines of the tensor are
 * read side by side. */
static void gather_transposed(const struct checkpoint_rect *r, const float *in, float *out, int64_t width) {
    for (int64_t k = 0; k < r->cols; k += TILE) {
        int64_t n = smaller(TILE, r->cols - k);
        for (int64_t i = 0; i < r->rows; i++)
            for (int64_t t = 0; t < n; t++) out[i * width + k + t] = in[i + (k + t) * r->col_step];
    }
}

/* 64 disk rows at a time, whose current lines stay in the first-level cache: four whole lines of each program
 * row are written in turn. (Tiles of 16 program rows, as above, write 16 lines whose addresses often differ
 * by a multiple of 4 KiB, and were two to three times slower.) */
static void scatter_transposed(const struct checkpoint_rect *r, const float *in, float *out, int64_t width) {
    for (int64_t i = 0; i < r->rows; i += STRIP) {
        int64_t end = smaller(i + STRIP, r->rows);
        for (int64_t k = 0; k < r->cols; k++)
            for (int64_t t = i; t < end; t++) out[t + k * r->col_step] = in[t * width + k];
    }
}

void checkpoint_block_gather(const struct checkpoint_block *block, const float *held, float *buffer) {
    struct checkpoint_rect r;
    for (int n = 0; n < block->rects->count; n++) {
        if (!clip(block, &block->rects->list[n], &r)) continue;
        const float *in = held + r.local;
        float *out = buffer + (r.row - block->first) * block->width + r.col;
        if (r.col_step != 1)
            gather_transposed(&r, in, out, block->width);
        else if (r.cols == block->width && r.row_step == block->width)
            memcpy(out, in, (size_t)(r.rows * r.cols) * sizeof(float));
        else
            for (int64_t i = 0; i < r.rows; i++)
                memcpy(out + i * block->width, in + i * r.row_step, (size_t)r.cols * sizeof(float));
    }
}

void checkpoint_block_scatter(const struct checkpoint_block *block, const float *buffer, float *held) {
    struct checkpoint_rect r;
    for (int n = 0; n < block->rects->count; n++) {
        if (!clip(block, &block->rects->list[n], &r)) continue;
        const float *in = buffer + (r.row - block->first) * block->width + r.col;
        float *out = held + r.local;
        if (r.col_step != 1)
            scatter_transposed(&r, in, out, block->width);
        else if (r.cols == block->width && r.row_step == block->width)
            memcpy(out, in, (size_t)(r.rows * r.cols) * sizeof(float));
        else
            for (int64_t i = 0; i < r.rows; i++)
                memcpy(out + i * r.row_step, in + i * block->width, (size_t)r.cols * sizeof(float));
    }
}
