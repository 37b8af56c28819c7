#include "core/data/gpt_index.h"
#include "core/base/mem.h"
#include "core/data/mt19937.h"
#include <string.h>

static int32_t length_of(const struct gpt_index_request *r, int64_t sequence) {
    int32_t v;
    memcpy(&v, (const unsigned char *)r->lengths + 4 * sequence, 4);
    return v;
}

/* Epochs, samples and whether the last epoch is shuffled apart: pure arithmetic. */
static int size_index(const struct gpt_index_request *r, struct gpt_index *x, struct err *err) {
    int64_t need, total;
    if (r->end <= r->first)
        return err_set(
            err,
            "%s: the %s split has no sequences, but samples of it are demanded; change --split, give "
            "more documents, or ask for no %s samples",
            r->name, r->split, r->split);
    if (r->end > INT32_MAX)
        return err_set(err,
                       "%s: %lld sequences; Megatron-LM's order is defined for at most %d: split the file",
                       r->name, (long long)r->end, INT32_MAX);
    for (int64_t i = r->first; i < r->end; i++) x->tokens_per_epoch += length_of(r, i);
    int64_t T = x->tokens_per_epoch, sequences = r->end - r->first;
    if (!T)
        return err_set(err, "%s: the %lld sequences of the %s split hold no tokens", r->name,
                       (long long)sequences, r->split);
    int64_t demanded = r->num_samples < 0 ? 0 : r->num_samples;
    if (__builtin_mul_overflow(demanded, r->seq_length, &need) || need > INT64_MAX / 4)
        return err_set(err, "%s: %lld samples of %lld tokens are too many", r->name, (long long)demanded,
                       (long long)r->seq_length);
    x->epochs = r->num_samples < 0 ? 1 : (need + 1 + T - 1) / T;
    if (__builtin_mul_overflow(x->epochs, T, &total)) total = INT64_MAX;
    x->samples = (total - 1) / r->seq_length;
    if (__builtin_mul_overflow(x->epochs, sequences, &x->positions) || x->positions > UINT32_MAX ||
        x->samples >= UINT32_MAX - 1)
        return err_set(
            err,
            "%s: %lld epochs of %lld sequences exceed 2^32 entries (the %s split has %lld tokens); "
            "ask for fewer samples or give more data",
            r->name, (long long)x->epochs, (long long)sequences, r->split, (long long)T);
    return 0;
}

/* Samples of all epochs but the last; decides whether the last one is shuffled apart. */
static int64_t samples_before_last_epoch(const struct gpt_index_request *r, struct gpt_index *x) {
    if (x->epochs == 1) return x->samples;
    int64_t T = x->tokens_per_epoch;
    int64_t before = ((x->epochs - 1) * T - 1) / r->seq_length, last = r->num_samples - before;
    int64_t per_epoch = (T - 1) / r->seq_length;
    CHECK(last >= 0 && last <= per_epoch + 1, "%s: %lld samples left for the last epoch", r->name,
          (long long)last);
    x->separate_last_epoch = last < (int64_t)(0.80 * (double)per_epoch);
    return x->separate_last_epoch ? before : x->samples;
}

static void build_documents(const struct gpt_index_request *r, struct gpt_index *x, struct mt19937 *rng) {
    int64_t n = r->end - r->first, apart = x->separate_last_epoch ? n : 0;
    x->documents = mem_alloc(mem_array_bytes((size_t)x->positions, 4), "document index");
    for (int64_t e = 0, at = 0; e < x->epochs; e++)
        for (int64_t i = r->first; i < r->end; i++) x->documents[at++] = (uint32_t)i;
    mt19937_shuffle_u32(rng, x->documents, x->positions - apart);
    if (apart) mt19937_shuffle_u32(rng, x->documents + x->positions - apart, apart);
}

static void build_samples(const struct gpt_index_request *r, struct gpt_index *x) {
    size_t rows = (size_t)x->samples + 1;
    x->start_position = mem_alloc(mem_array_bytes(rows, 4), "sample index positions");
    x->start_offset = mem_alloc(mem_array_bytes(rows, 4), "sample index offsets");
    int64_t position = 0, offset = 0;
    x->start_position[0] = 0;
    x->start_offset[0] = 0;
    for (size_t row = 1; row < rows; row++) {
        int64_t need = r->seq_length + 1, have;
        while ((have = length_of(r, x->documents[position]) - offset) < need) {
            need -= have;
            offset = 0;
            position++;
            CHECK(position < x->positions, "%s: the sample walk ran past the last document", r->name);
        }
        offset += need - 1;
        x->start_position[row] = (uint32_t)position;
        x->start_offset[row] = (int32_t)offset;
    }
}

static void build_shuffle(struct gpt_index *x, int64_t before, struct mt19937 *rng) {
    x->shuffle = mem_alloc(mem_array_bytes((size_t)x->samples, 4), "shuffle index");
    for (int64_t i = 0; i < x->samples; i++) x->shuffle[i] = (uint32_t)i;
    mt19937_shuffle_u32(rng, x->shuffle, before);
    if (before < x->samples) mt19937_shuffle_u32(rng, x->shuffle + before, x->samples - before);
}

int gpt_index_build(const struct gpt_index_request *r, struct gpt_index *index, struct err *err) {
    struct gpt_index x = {0};
    struct mt19937 rng;
    CHECK(r->seq_length > 0, "a sample needs at least one token");
    if (size_index(r, &x, err)) return -1;
    int64_t before = samples_before_last_epoch(r, &x);
    mt19937_seed(&rng, r->seed);
    build_documents(r, &x, &rng); /* the generator is used in this order: documents, then shuffle */
    build_samples(r, &x);
    build_shuffle(&x, before, &rng);
    *index = x;
    return 0;
}

void gpt_index_free(struct gpt_index *x) {
    mem_free(x->documents);
    mem_free(x->start_position);
    mem_free(x->start_offset);
    mem_free(x->shuffle);
    *x = (struct gpt_index){0};
}
