#include "core/train/measure_hardware.h"
#include "core/base/mem.h"
#include "core/train/timers.h"
#include "core/train/trainer.h"

enum {
    TOKENS = 1024,
    HIDDEN = 768,
    FFN = 3072,
    HEADS = 12,
    VOCAB = 32768,
    LOSS_ROWS = 256,
    PARAMS = 64 << 20
};
enum { NUM_BUFFERS = 6, LEAST_REPEATS = 5, MOST_REPEATS = 200 };
static const double case_seconds = 0.25;
/* The optimizer's tensors must not fit into caches, as they do not in training: 256 MiB each. */
static const size_t buffer_bytes = (size_t)PARAMS * 4, filled_bytes = (size_t)64 << 20,
                    workspace_bytes = (size_t)128 << 20;

struct bench {
    struct stream stream;
    char *buffer[NUM_BUFFERS];
    enum dtype dtype;
};

/* A case is a few kernels that share a rate, each timed by itself; what they cost comes from the meta table.
 */
typedef void (*bench_fn)(const struct bench *b, const struct stream *stream, int part);

/* The three uses of the four linear layers of a layer. */
static void bench_gemm(const struct bench *b, const struct stream *stream, int part) {
    static const int64_t shapes[][2] = {{HIDDEN, 3 * HIDDEN}, {HIDDEN, HIDDEN}, {HIDDEN, FFN}, {FFN, HIDDEN}};
    int64_t in = shapes[part / 3][0], out = shapes[part / 3][1];
    bool packs = b->stream.kernels->gemm_packed_bytes(b->dtype, in, out) > 0;
    if (part % 3 == 0)
        KERNEL_CALL(gemm, stream, .c = b->buffer[0], .a = b->buffer[1], .b = b->buffer[2], .m = TOKENS,
                    .n = out, .k = in, .trans_b = !packs, .b_packed = packs, .dtype = b->dtype,
                    .c_dtype = b->dtype);
    if (part % 3 == 1)
        KERNEL_CALL(gemm, stream, .c = b->buffer[0], .a = b->buffer[1], .b = b->buffer[3], .m = TOKENS,
                    .n = in, .k = out, .b_packed = packs, .dtype = b->dtype, .c_dtype = b->dtype);
    if (part % 3 == 2)
        KERNEL_CALL(gemm, stream, .c = b->buffer[4], .a = b->buffer[1], .b = b->buffer[0], .m = out, .n = in,
                    .k = TOKENS, .trans_a = true, .accumulate = true, .dtype = b->dtype,
                    .c_dtype = DTYPE_F32);
}

static const struct attention_shape attention = {
    .s = TOKENS, .b = 1, .a = HEADS, .g = HEADS, .d = HIDDEN / HEADS};

static void bench_attention_forward(const struct bench *b, const struct stream *stream, int part) {
    (void)part;
    KERNEL_CALL(attention_forward, stream, .o = b->buffer[3], .lse = (float *)(void *)b->buffer[4],
                .q = b->buffer[0], .k = b->buffer[1], .v = b->buffer[2], .shape = attention, .scale = 0.125f,
                .causal = true, .dtype = b->dtype);
}

static void bench_attention_backward(const struct bench *b, const struct stream *stream, int part) {
    (void)part;
    size_t quarter = filled_bytes / 4;
    KERNEL_CALL(attention_backward, stream, .dq = b->buffer[5], .dk = b->buffer[5] + quarter,
                .dv = b->buffer[5] + 2 * quarter, .d_o = b->buffer[0], .o = b->buffer[3],
                .lse = (float *)(void *)b->buffer[4], .q = b->buffer[0], .k = b->buffer[1], .v = b->buffer[2],
                .shape = attention, .scale = 0.125f, .causal = true, .dtype = b->dtype);
}

static void bench_norm(const struct bench *b, const struct stream *stream, int part) {
    if (part == 0)
        KERNEL_CALL(norm_forward, stream, .y = b->buffer[1], .x = b->buffer[0], .weight = b->buffer[2],
                    .rows = 2 * TOKENS, .cols = HIDDEN, .epsilon = 1e-5f, .rms = true, .dtype = b->dtype);
    if (part == 1)
        KERNEL_CALL(norm_backward, stream, .dx = b->buffer[3], .dweight = (float *)(void *)b->buffer[4],
                    .dy = b->buffer[1], .x = b->buffer[0], .weight = b->buffer[2], .rows = 2 * TOKENS,
                    .cols = HIDDEN, .epsilon = 1e-5f, .rms = true, .accumulate_params = true,
                    .dtype = b->dtype);
}

static void bench_activation(const struct bench *b, const struct stream *stream, int part) {
    if (part == 0)
        KERNEL_CALL(activation_forward, stream, .y = b->buffer[1], .x = b->buffer[0], .rows = 2 * TOKENS,
                    .cols = FFN, .kind = ACTIVATION_GELU_TANH, .dtype = b->dtype);
    if (part == 1)
        KERNEL_CALL(activation_backward, stream, .dx = b->buffer[2], .dy = b->buffer[1], .x = b->buffer[0],
                    .rows = 2 * TOKENS, .cols = FFN, .kind = ACTIVATION_GELU_TANH, .dtype = b->dtype);
}

static void residual(const struct bench *b, const struct stream *stream, float p) {
    KERNEL_CALL(residual_forward, stream, .y = b->buffer[2], .residual = b->buffer[0], .x = b->buffer[1],
                .n = 4 * TOKENS * HIDDEN, .p = p, .dtype = b->dtype);
}
static void bench_residual(const struct bench *b, const struct stream *stream, int part) {
    (void)part;
    residual(b, stream, 0);
}
static void bench_dropout(const struct bench *b, const struct stream *stream, int part) {
    (void)part;
    residual(b, stream, 0.1f);
}

static void bench_softmax(const struct bench *b, const struct stream *stream, int part) {
    float *lse = (float *)(void *)b->buffer[1], *mask = lse + LOSS_ROWS, *loss = mask + LOSS_ROWS;
    if (part == 0)
        KERNEL_CALL(cross_entropy_forward, stream, .loss = loss, .lse = lse, .logits = b->buffer[0],
                    .labels = (const int32_t *)(const void *)b->buffer[2], .mask = mask, .rows = LOSS_ROWS,
                    .vocab = VOCAB, .dtype = b->dtype);
    if (part == 1)
        KERNEL_CALL(cross_entropy_backward, stream, .dlogits = b->buffer[3], .logits = b->buffer[0],
                    .lse = lse, .labels = (const int32_t *)(const void *)b->buffer[2], .mask = mask,
                    .rows = LOSS_ROWS, .vocab = VOCAB, .grad_scale = 1, .dtype = b->dtype);
}

static void bench_rows(const struct bench *b, const struct stream *stream, int part) {
    (void)part;
    KERNEL_CALL(gather_rows, stream, .y = b->buffer[1], .x = b->buffer[0],
                .index = (const int32_t *)(const void *)b->buffer[2], .rows = 4 * TOKENS, .cols = HIDDEN,
                .divisor = 1, .dtype = b->dtype);
}

static void bench_optimizer(const struct bench *b, const struct stream *stream, int part) {
    float *p[4];
    (void)part;
    for (int i = 0; i < 4; i++) p[i] = (float *)(void *)b->buffer[i];
    KERNEL_CALL(adamw, stream, .master = p[0], .m = p[1], .v = p[2], .grad = p[3], .n = PARAMS,
                .learning_rate = 1e-4f, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f,
                .bias_correction1 = 1, .bias_correction2 = 1, .grad_scale = 1);
}

/* What was read a moment ago must not be in a cache either: every source in turn. */
static void bench_sum(const struct bench *b, const struct stream *stream, int part) {
    (void)part;
    for (int i = 0; i < NUM_BUFFERS - 1; i++)
        KERNEL_CALL(sum_squares, stream, .out = (double *)(void *)b->buffer[5],
                    .bad = (int64_t *)(void *)(b->buffer[5] + 64), .x = b->buffer[i], .n = PARAMS,
                    .dtype = DTYPE_F32);
}

static void bench_pack(const struct bench *b, const struct stream *stream, int part) {
    for (int i = 0; i < NUM_BUFFERS - 1; i++)
        KERNEL_CALL(gemm_pack, stream, .dst = b->buffer[5], .src = b->buffer[i], .k = 4 * HIDDEN,
                    .n = PARAMS / (4 * HIDDEN), .trans = part == 0, .dtype = b->dtype,
                    .src_dtype = DTYPE_F32);
}

static void bench_copy(const struct bench *b, const struct stream *stream, int part) {
    (void)part;
    for (int i = 0; i < NUM_BUFFERS - 1; i++)
        KERNEL_CALL(cast, stream, .dst = b->buffer[5], .src = b->buffer[i], .n = PARAMS,
                    .dst_dtype = b->dtype, .src_dtype = DTYPE_F32);
}

static void bench_call(const struct bench *b, const struct stream *stream, int part) {
    (void)part;
    for (int i = 0; i < 1000; i++)
        KERNEL_CALL(add, stream, .y = b->buffer[2], .a = b->buffer[0], .b = b->buffer[1], .n = 16,
                    .dtype = b->dtype);
}

/* Labels and row numbers are small whole numbers, floats are zero or one: no case reads out of bounds. */
static void fill_buffers(struct bench *b) {
    for (int i = 0; i < NUM_BUFFERS; i++)
        KERNEL_CALL(fill, &b->stream, .y = b->buffer[i], .n = (int64_t)(filled_bytes / dtype_bytes(b->dtype)),
                    .value = i == 2 ? 0 : 0.5f, .dtype = b->dtype);
}

struct measured {
    double seconds;
    struct kernel_cost cost;
};

static double least_seconds(const struct bench *b, bench_fn run, int part) {
    double least = 0;
    uint64_t first = clock_now_ns(), begin = first;
    for (int i = 0; i < MOST_REPEATS; i++) {
        run(b, &b->stream, part);
        uint64_t end = clock_now_ns();
        double seconds = (double)(end - begin) * 1e-9;
        if (i == 1 || (i > 1 && seconds < least)) least = seconds; /* the first is warm-up */
        if (i >= LEAST_REPEATS && (double)(end - first) * 1e-9 > case_seconds) break;
        begin = clock_now_ns();
    }
    return least;
}

static struct measured measure(struct bench *b, bench_fn run, int parts) {
    struct kernels meta = kernels_meta(b->stream.kernels);
    struct kernel_meter meter = {0};
    struct stream counting = {.kernels = &meta, .threads = b->stream.threads, .meter = &meter};
    struct measured m = {0};
    fill_buffers(b);
    for (int part = 0; part < parts; part++) run(b, &counting, part);
    m.cost = meter.total;
    CHECK(meter.workspace_bytes <= workspace_bytes, "a kernel wants a workspace of %zu bytes",
          meter.workspace_bytes);
    for (int part = 0; part < parts; part++) m.seconds += least_seconds(b, run, part);
    return m;
}

static double flops_rate(struct bench *b, bench_fn run, int parts, enum dtype dtype) {
    b->dtype = dtype;
    struct measured m = measure(b, run, parts);
    return m.cost.gemm_flops / m.seconds;
}

static double bandwidth(struct bench *b, bench_fn run, int parts) {
    b->dtype = DTYPE_BF16;
    struct measured m = measure(b, run, parts);
    return m.cost.bytes / m.seconds;
}

static void measure_all(struct bench *b, struct hardware *hw) {
    hw->matrix_bf16 = flops_rate(b, bench_gemm, 12, DTYPE_BF16);
    hw->matrix_fp32 = flops_rate(b, bench_gemm, 12, DTYPE_F32);
    hw->attention_forward_bf16 = flops_rate(b, bench_attention_forward, 1, DTYPE_BF16);
    hw->attention_backward_bf16 = flops_rate(b, bench_attention_backward, 1, DTYPE_BF16);
    hw->attention_forward_fp32 = flops_rate(b, bench_attention_forward, 1, DTYPE_F32);
    hw->attention_backward_fp32 = flops_rate(b, bench_attention_backward, 1, DTYPE_F32);
    hw->bandwidth_norm = bandwidth(b, bench_norm, 2);
    hw->bandwidth_activation = bandwidth(b, bench_activation, 2);
    hw->bandwidth_residual = hw->memory_bandwidth = bandwidth(b, bench_residual, 1);
    hw->bandwidth_dropout = bandwidth(b, bench_dropout, 1);
    hw->bandwidth_softmax = bandwidth(b, bench_softmax, 2);
    hw->bandwidth_rows = bandwidth(b, bench_rows, 1);
    hw->bandwidth_optimizer = bandwidth(b, bench_optimizer, 1);
    hw->bandwidth_copy = bandwidth(b, bench_copy, 1);
    hw->bandwidth_sum = bandwidth(b, bench_sum, 1);
    if (b->stream.kernels->gemm_packed_bytes(DTYPE_BF16, HIDDEN, FFN))
        hw->bandwidth_pack = bandwidth(b, bench_pack, 2);
    hw->call_seconds = measure(b, bench_call, 1).seconds / 1000;
    if (!b->stream.kernels->peak_flops) return;
    hw->peak_bf16 = b->stream.kernels->peak_flops(b->stream.threads, DTYPE_BF16);
    hw->peak_fp32 = b->stream.kernels->peak_flops(b->stream.threads, DTYPE_F32);
}

int hardware_measure(const struct config *cfg, struct hardware *out_hw, FILE *out, struct err *err) {
    struct bench b = {.stream.kernels = setup_kernels(cfg, err)};
    if (!b.stream.kernels) return -1;
    b.stream.threads = threads_open(config_is_set(cfg, cpu_threads) ? (int)cfg->cpu_threads : 0);
    b.stream.workspace = mem_alloc(workspace_bytes, "workspace");
    b.stream.workspace_bytes = workspace_bytes;
    for (int i = 0; i < NUM_BUFFERS; i++) b.buffer[i] = mem_zalloc(buffer_bytes, "measured tensors");
    *out_hw = (struct hardware){.ranks_per_node = 1};
    snprintf(out_hw->name, sizeof(out_hw->name), "%s, %d thread%s", b.stream.kernels->backend,
             threads_count(b.stream.threads), threads_count(b.stream.threads) == 1 ? "" : "s");
    measure_all(&b, out_hw);
    hardware_write(out_hw, out);
    for (int i = 0; i < NUM_BUFFERS; i++) mem_free(b.buffer[i]);
    mem_free(b.stream.workspace);
    threads_close(b.stream.threads);
    return 0;
}
