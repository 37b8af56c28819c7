/* Routing. A block per token ranks its experts against each other in double precision, so choices are those
 * of the reference; rows are put in order by one warp per expert, which goes through all slots. */
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/reduce.cuh"

/* Threads of a token's block: a warp for up to 64 experts, which needs no barrier; else four. */
enum { FEW_EXPERTS = 64, CLEAR_THREADS = 128 };
#define BY_EXPERTS(experts, THREADS, ...)                                                                    \
    if ((experts) <= FEW_EXPERTS) {                                                                          \
        constexpr int THREADS = 32;                                                                          \
        __VA_ARGS__;                                                                                         \
    } else {                                                                                                 \
        constexpr int THREADS = 128;                                                                         \
        __VA_ARGS__;                                                                                         \
    }

static __device__ __forceinline__ double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

/* What is no number comes last, so that every comparison has a winner. */
static __device__ __forceinline__ double ordered(double x) {
    return x == x ? x : -INFINITY;
}

/* The score of one expert where scores are no softmax, and its slope. */
static __device__ __forceinline__ double score_of(enum router_score kind, double x) {
    if (kind == ROUTER_SIGMOID) return sigmoid(x);
    return sqrt(x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)));
}

static __device__ __forceinline__ double slope_of(enum router_score kind, double x) {
    if (kind == ROUTER_SIGMOID) return sigmoid(x) * (1 - sigmoid(x));
    return sigmoid(x) / (2 * score_of(kind, x));
}

/* How many of n items come before item i: larger, or equal and lower. */
static __device__ __forceinline__ int64_t rank_of(const double *key, int64_t i, int64_t first, int64_t n) {
    int64_t rank = 0;
    for (int64_t k = first; k < first + n; k++)
        rank += k != i && (key[k] > key[i] || (key[k] == key[i] && k < i));
    return rank;
}

/* log sum exp of a token's logits, by the whole block. */
template <int THREADS> static __device__ double log_sum_exp(const float *logits, int64_t n) {
    float most = -INFINITY;
    double sum = 0;
    for (int64_t e = threadIdx.x; e < n; e += THREADS) most = max_or_nan(most, logits[e]);
    most = block_max<THREADS>(most);
    for (int64_t e = threadIdx.x; e < n; e += THREADS) sum += exp((double)logits[e] - (double)most);
    return (double)most + log(block_sum<THREADS>(sum));
}

/* Experts outside the best groups fall behind all others. sums: [group_count]. */
template <int THREADS> static __device__ void limit_groups(double *key, double *sums, const router_shape &s) {
    const int64_t size = s.experts / s.group_count, best = s.topk / s.group_topk;
    for (int64_t g = threadIdx.x; g < s.group_count; g += THREADS) {
        double sum = 0;
        for (int64_t e = g * size; e < (g + 1) * size; e++)
            if (rank_of(key, e, g * size, size) < best) sum += key[e];
        sums[g] = ordered(sum);
    }
    __syncthreads();
    for (int64_t e = threadIdx.x; e < s.experts; e += THREADS)
        if (rank_of(sums, e / size, 0, s.group_count) >= s.group_topk) key[e] = -INFINITY;
    __syncthreads();
}

/* What experts are compared by. Without groups and bias every score rises with the logit. */
static __device__ double key_of(const route_forward_args &a, const float *logits, double lse, int64_t e) {
    const router_shape &s = a.shape;
    const double x = (double)logits[e];
    if ((!s.group_count && !a.bias) || (s.score == ROUTER_SOFTMAX && !s.pre_softmax)) return x;
    if (s.score == ROUTER_SOFTMAX) return exp(x - lse);
    return score_of(s.score, x) + (a.bias ? (double)a.bias[e] : 0);
}

/* Weights of the chosen experts, by one thread. */
static __device__ void weigh(float *probs, const router_shape &s, const float *logits, const int32_t *experts,
                             double lse) {
    const double scaling = s.scaling != 0 ? (double)s.scaling : 1;
    const bool pre = s.score == ROUTER_SOFTMAX && s.pre_softmax;
    double most = -INFINITY, sum = 0;
    for (int64_t j = 0; j < s.topk; j++) most = fmax(most, (double)logits[experts[j]]);
    if (pre) most = lse;
    for (int64_t j = 0; j < s.topk; j++) {
        const double x = (double)logits[experts[j]];
        sum += s.score == ROUTER_SOFTMAX ? exp(x - most) : score_of(s.score, x);
    }
    if (pre || (s.score != ROUTER_SOFTMAX && s.topk == 1)) sum = 1;
    if (s.score != ROUTER_SOFTMAX && s.topk > 1) sum += 1e-20;
    for (int64_t j = 0; j < s.topk; j++) {
        const double x = (double)logits[experts[j]];
        probs[j] =
            (float)((s.score == ROUTER_SOFTMAX ? exp(x - most) : score_of(s.score, x)) / sum * scaling);
    }
}

template <int THREADS>
static __global__ void __launch_bounds__(THREADS, 4) choose_kernel(const route_forward_args a) {
    SHARED_DYNAMIC(double, key); /* [experts], then [group_count] */
    const router_shape &s = a.shape;
    const int64_t token = blockIdx.x;
    const float *logits = a.logits + token * s.experts;
    int32_t *experts = a.experts + token * s.topk;
    const double lse = log_sum_exp<THREADS>(logits, s.experts);
    for (int64_t e = threadIdx.x; e < s.experts; e += THREADS) key[e] = ordered((double)logits[e]);
    __syncthreads();
    for (int64_t e = threadIdx.x; e < s.experts; e += THREADS)
        if (rank_of(key, e, 0, s.experts) < s.topk)
            atomicAdd(&a.counts[token % s.count_sets * s.experts + e], 1);
    __syncthreads();
    for (int64_t e = threadIdx.x; e < s.experts; e += THREADS) key[e] = ordered(key_of(a, logits, lse, e));
    __syncthreads();
    if (s.group_count) limit_groups<THREADS>(key, key + s.experts, s);
    for (int64_t e = threadIdx.x; e < s.experts; e += THREADS) {
        const int64_t rank = rank_of(key, e, 0, s.experts);
        if (rank < s.topk) experts[rank] = (int32_t)e;
    }
    __syncthreads();
    if (threadIdx.x == 0) weigh(a.probs + token * s.topk, s, logits, experts, lse);
}

static __global__ void __launch_bounds__(CLEAR_THREADS) clear_kernel(int32_t *p, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * CLEAR_THREADS + threadIdx.x;
    if (i < n) p[i] = 0;
}

/* Capacity: row_of_slot is -1, for now, where the expert has `capacity` slots that come before. Each slot
 * looks at all. */
static __global__ void __launch_bounds__(CLEAR_THREADS) limit_kernel(const route_forward_args a) {
    const int64_t slots = a.shape.tokens * a.shape.topk,
                  slot = (int64_t)blockIdx.x * CLEAR_THREADS + threadIdx.x;
    if (slot >= slots) return;
    const int32_t expert = a.experts[slot];
    const double weight = ordered((double)a.probs[slot]);
    int64_t before = 0;
    for (int64_t i = 0; i < slots; i++) {
        const double other = ordered((double)a.probs[i]);
        const bool larger = !a.shape.drops_by_position && other > weight;
        const bool equal = a.shape.drops_by_position || other == weight;
        before += a.experts[i] == expert && (larger || (equal && i < slot));
    }
    a.row_of_slot[slot] = before < a.shape.capacity ? 0 : -1;
}

static __device__ __forceinline__ bool stays(const route_forward_args &a, int64_t slot) {
    return !a.shape.capacity || a.row_of_slot[slot] >= 0;
}

/* offsets[e + 1] = slots of expert e that stay, for now. */
static __global__ void __launch_bounds__(32) count_kernel(const route_forward_args a) {
    const int64_t slots = a.shape.tokens * a.shape.topk;
    int32_t count = 0;
    for (int64_t slot = threadIdx.x; slot < slots; slot += 32)
        count += a.experts[slot] == (int32_t)blockIdx.x && stays(a, slot);
    count = warp_sum(count);
    if (threadIdx.x) return;
    a.offsets[blockIdx.x + 1] = count;
    if (a.tokens) a.tokens[blockIdx.x] += count;
}

static __global__ void __launch_bounds__(32) offsets_kernel(const route_forward_args a) {
    int32_t row = 0;
    if (threadIdx.x) return;
    a.offsets[0] = 0;
    for (int64_t e = 0; e < a.shape.experts; e++) {
        row += a.shape.pads ? (int32_t)a.shape.capacity : a.offsets[e + 1];
        a.offsets[e + 1] = row;
    }
}

/* Rows of one expert, then those without a slot; the last expert has all rows to the end. */
static __global__ void __launch_bounds__(32) place_kernel(const route_forward_args a, int64_t rows) {
    const int64_t slots = a.shape.tokens * a.shape.topk, lane = threadIdx.x;
    const bool is_last = blockIdx.x + 1 == a.shape.experts;
    int32_t row = a.offsets[blockIdx.x];
    for (int64_t first = 0; first < slots; first += 32) {
        const int64_t slot = first + lane;
        const bool mine = slot < slots && a.experts[slot] == (int32_t)blockIdx.x,
                   kept = mine && stays(a, slot);
        const uint32_t all = __ballot_sync(FULL_WARP, kept);
        const int32_t at = row + __popc(all & ((1u << lane) - 1));
        if (mine) a.row_of_slot[slot] = kept ? at : -1;
        if (kept) a.slot_of_row[at] = (int32_t)slot;
        if (mine && !kept) a.probs[slot] = 0;
        row += __popc(all);
    }
    const int64_t end = is_last ? rows : a.offsets[blockIdx.x + 1];
    for (int64_t at = row + lane; at < end; at += 32) a.slot_of_row[at] = -1;
}

/* ---- the sums of the losses: a token's terms, then all tokens in a fixed order ---- */
struct terms {
    double balance, z;
};

/* Sum of the scores, which their normalisation divides by; 1 for a softmax. */
template <int THREADS> static __device__ double score_sum(const router_shape &s, const float *logits) {
    double sum = 0;
    if (s.score == ROUTER_SOFTMAX) return 1;
    for (int64_t e = threadIdx.x; e < s.experts; e += THREADS) sum += score_of(s.score, (double)logits[e]);
    return block_sum<THREADS>(sum) + 1e-20;
}

template <int THREADS>
static __global__ void __launch_bounds__(THREADS) terms_kernel(const route_losses_args a, terms *out) {
    const router_shape &s = a.shape;
    const int64_t token = blockIdx.x;
    const float *logits = a.logits + token * s.experts;
    const double lse = log_sum_exp<THREADS>(logits, s.experts), whole = score_sum<THREADS>(s, logits);
    double balance = 0;
    for (int64_t e = threadIdx.x; a.balance_sum && e < s.experts; e += THREADS) {
        const double x = (double)logits[e],
                     p = s.score == ROUTER_SOFTMAX ? exp(x - lse) : score_of(s.score, x) / whole;
        balance += p * (double)a.counts[token % s.count_sets * s.experts + e];
    }
    balance = block_sum<THREADS>(balance);
    const terms t = {balance, lse * lse};
    if (threadIdx.x == 0) out[token] = t;
}

static __global__ void __launch_bounds__(CLEAR_THREADS)
    terms_total_kernel(const route_losses_args a, const terms *in) {
    const router_shape &s = a.shape;
    const double parts = s.parts ? (double)s.parts : 1, of_set = (double)(s.tokens / s.count_sets) * parts;
    double balance = 0, z = 0;
    for (int64_t t = threadIdx.x; t < s.tokens; t += CLEAR_THREADS) balance += in[t].balance, z += in[t].z;
    balance = block_sum<CLEAR_THREADS>(balance);
    z = block_sum<CLEAR_THREADS>(z);
    if (threadIdx.x) return;
    if (a.balance_sum)
        *a.balance_sum +=
            balance * (double)s.experts / ((double)s.topk * of_set * of_set * (double)s.count_sets);
    if (a.z_sum) *a.z_sum += z / ((double)s.tokens * parts);
}

size_t cuda_route_losses_workspace(const struct stream *, const struct route_losses_args *args) {
    return (size_t)args->shape.tokens * sizeof(terms);
}

void cuda_route_losses(const struct stream *stream, const struct route_losses_args *args) {
    const router_shape &s = args->shape;
    terms *of_tokens = static_cast<terms *>(stream->workspace);
    cudaStream_t on = cuda_stream(stream);
    if (!s.tokens || (!args->balance_sum && !args->z_sum)) return;
    BY_EXPERTS(s.experts, N, CUDA_LAUNCH(terms_kernel<N>, (unsigned)s.tokens, N, 0, on, *args, of_tokens))
    CUDA_LAUNCH(terms_total_kernel, 1, CLEAR_THREADS, 0, on, *args, of_tokens);
}

void cuda_route_forward(const struct stream *stream, const struct route_forward_args *args) {
    const router_shape &s = args->shape;
    const int64_t counts = s.count_sets * s.experts, slots = s.tokens * s.topk;
    cudaStream_t on = cuda_stream(stream);
    CUDA_LAUNCH(clear_kernel, cuda_blocks(counts, CLEAR_THREADS, 1), CLEAR_THREADS, 0, on, args->counts,
                counts);
    if (s.tokens) {
        BY_EXPERTS(s.experts, N,
                   CUDA_LAUNCH(choose_kernel<N>, (unsigned)s.tokens, N,
                               (size_t)(s.experts + s.group_count) * sizeof(double), on, *args))
    }
    if (s.tokens && s.capacity)
        CUDA_LAUNCH(limit_kernel, cuda_blocks(slots, CLEAR_THREADS, 1), CLEAR_THREADS, 0, on, *args);
    CUDA_LAUNCH(count_kernel, (unsigned)s.experts, 32, 0, on, *args);
    CUDA_LAUNCH(offsets_kernel, 1, 32, 0, on, *args);
    CUDA_LAUNCH(place_kernel, (unsigned)s.experts, 32, 0, on, *args, router_rows(&s));
}

/* ---- backward ---- */
/* Gradient of the scores' normalisation, through one token's experts: dlogit of e is raw' (dscore - dot /
 * sum) / sum. */
struct normaliser {
    double most, sum, dot;
};

static __device__ __forceinline__ double raw_score(const router_shape &s, double x, double most) {
    return s.score == ROUTER_SOFTMAX ? exp(x - most) : score_of(s.score, x);
}

static __device__ __forceinline__ double through(const router_shape &s, const normaliser &n, double x,
                                                 double dscore, bool normalised) {
    const double inner = normalised ? (dscore - n.dot / n.sum) / n.sum : dscore;
    return (s.score == ROUTER_SOFTMAX ? exp(x - n.most) : slope_of(s.score, x)) * inner;
}

/* `dscore` may be NULL: the gradient of the balance, counts times `balance`. Only experts whose `share` is
 * set take part; NULL: all. */
template <int THREADS>
static __device__ normaliser normalise(const router_shape &s, const float *logits, const double *dscore,
                                       const int32_t *counts, double balance, const double *share,
                                       double lse) {
    normaliser n = {0, 0, 0};
    float most = -INFINITY;
    for (int64_t e = threadIdx.x; e < s.experts; e += THREADS)
        if (!share || share[e] != 0) most = max_or_nan(most, logits[e]);
    n.most = share ? (double)block_max<THREADS>(most) : lse;
    for (int64_t e = threadIdx.x; e < s.experts; e += THREADS) {
        if (share && share[e] == 0) continue;
        const double raw = raw_score(s, (double)logits[e], n.most);
        n.sum += raw;
        n.dot += raw * (dscore ? dscore[e] : balance * (double)counts[e]);
    }
    n.sum = block_sum<THREADS>(n.sum);
    n.dot = block_sum<THREADS>(n.dot);
    if (s.score != ROUTER_SOFTMAX) n.sum += 1e-20;
    return n;
}

template <int THREADS>
static __global__ void __launch_bounds__(THREADS) route_backward_kernel(const route_backward_args a) {
    SHARED_DYNAMIC(double, dscore); /* [experts], then whether an expert was chosen */
    const router_shape &s = a.shape;
    double *chosen = dscore + s.experts;
    const int64_t token = blockIdx.x;
    const float *logits = a.logits + token * s.experts;
    const double scaling = s.scaling != 0 ? (double)s.scaling : 1, parts = s.parts ? (double)s.parts : 1;
    const double of_set = (double)(s.tokens / s.count_sets) * parts;
    const double balance = (double)a.balance_scale * (double)s.experts /
                           ((double)s.topk * of_set * of_set * (double)s.count_sets);
    const int32_t *counts = a.counts + token % s.count_sets * s.experts;
    const bool over_all = s.score == ROUTER_SOFTMAX && s.pre_softmax;
    for (int64_t e = threadIdx.x; e < s.experts; e += THREADS) dscore[e] = chosen[e] = 0;
    __syncthreads();
    for (int64_t j = threadIdx.x; j < s.topk; j += THREADS) {
        const int32_t e = a.experts[token * s.topk + j];
        const bool stayed = !s.capacity || a.row_of_slot[token * s.topk + j] >= 0;
        dscore[e] = stayed ? (double)a.dprobs[token * s.topk + j] * scaling : 0;
        chosen[e] = 1;
    }
    __syncthreads();
    const double lse = log_sum_exp<THREADS>(logits, s.experts);
    const normaliser n = normalise<THREADS>(s, logits, dscore, nullptr, 0, over_all ? nullptr : chosen, lse);
    normaliser of_balance = {0, 0, 0};
    if (a.balance_scale != 0)
        of_balance = normalise<THREADS>(s, logits, nullptr, counts, balance, nullptr, lse);
    for (int64_t e = threadIdx.x; e < s.experts; e += THREADS) {
        const double x = (double)logits[e];
        double out = 0;
        if (over_all || chosen[e] != 0)
            out += through(s, n, x, dscore[e], s.score == ROUTER_SOFTMAX || s.topk > 1);
        if (a.balance_scale != 0) out += through(s, of_balance, x, balance * (double)counts[e], true);
        out += (double)a.z_scale * 2 * lse * exp(x - lse) / ((double)s.tokens * parts);
        a.dlogits[token * s.experts + e] = (float)out;
    }
}

void cuda_route_backward(const struct stream *stream, const struct route_backward_args *args) {
    if (args->shape.tokens == 0) return;
    BY_EXPERTS(args->shape.experts, N,
               CUDA_LAUNCH(route_backward_kernel<N>, (unsigned)args->shape.tokens, N,
                           (size_t)(2 * args->shape.experts) * sizeof(double), cuda_stream(stream), *args))
}

/* ---- jitter ---- */
enum { JITTER_THREADS = 256 };

template <typename T>
static __global__ void __launch_bounds__(JITTER_THREADS)
    jitter_kernel(const router_jitter_args a, bool wide) {
    const int64_t i = ((int64_t)blockIdx.x * JITTER_THREADS + threadIdx.x) * GROUP;
    if (i >= a.n) return;
    uint32_t words[GROUP];
    float x[GROUP], old[GROUP] = {0};
    philox_group(words, a.key, a.first_element + (uint64_t)i);
    load_group<T>(x, a.x, i, a.n, wide);
    if (a.accumulate) load_group<T>(old, a.y, i, a.n, wide);
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
        const float u = (float)(words[j] >> 8) * (1.0f / 16777216.0f); /* rng_uniform */
        x[j] = x[j] * (1 - a.eps + 2 * a.eps * u) + (a.accumulate ? old[j] : 0.0f);
    }
    store_group<T>(a.y, x, i, a.n, wide);
}

void cuda_router_jitter(const struct stream *stream, const struct router_jitter_args *args) {
    const bool wide = all_wide(args->y, args->x);
    if (!args->n) return;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(jitter_kernel<T>, cuda_blocks(args->n, JITTER_THREADS, GROUP), JITTER_THREADS, 0,
                         cuda_stream(stream), *args, wide))
}
