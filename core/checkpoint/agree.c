#include "core/checkpoint/agree.h"
#include "core/base/mem.h"
#include <string.h>

static bool alone(const struct comm *world) {
    return !world || comm_size(world) == 1;
}

bool checkpoint_is_first(const struct comm *world) {
    return !world || comm_rank(world) == 0;
}

int checkpoint_agree(struct comm *world, int outcome, struct err *err) {
    if (alone(world)) return outcome;
    int64_t size = comm_size(world), rank = comm_rank(world);
    int64_t key = outcome * size + (outcome ? size - 1 - rank : 0);
    comm_all_reduce(world, &key, 1, COMM_I64, COMM_MAX);
    int worst = (int)(key / size), speaker = (int)(size - 1 - key % size);
    if (!worst) return 0;
    struct err said = {{0}};
    if (rank == speaker) err_set(&said, "rank %d: %.1900s", speaker, err->text);
    comm_broadcast(world, &said, sizeof(said), COMM_U8, speaker);
    *err = said;
    return worst;
}

/* In two halves of 32 bits each, so that no addition of int64 overflows. */
void checkpoint_add_up(struct comm *world, uint64_t *sums, int64_t count) {
    if (alone(world) || !count) return;
    int64_t *halves = mem_new_array(int64_t, 2 * (size_t)count, "checkpoint sums");
    for (int64_t i = 0; i < count; i++)
        halves[2 * i] = (int64_t)(sums[i] & 0xFFFFFFFFu), halves[2 * i + 1] = (int64_t)(sums[i] >> 32);
    comm_all_reduce(world, halves, 2 * count, COMM_I64, COMM_SUM);
    for (int64_t i = 0; i < count; i++)
        sums[i] = (uint64_t)halves[2 * i] + ((uint64_t)halves[2 * i + 1] << 32);
    mem_free(halves);
}

bool checkpoint_any(struct comm *world, bool here) {
    int64_t any = here;
    if (!alone(world)) comm_all_reduce(world, &any, 1, COMM_I64, COMM_MAX);
    return any != 0;
}

void checkpoint_share(struct comm *world, void *data, size_t bytes) {
    if (!alone(world)) comm_broadcast(world, data, (int64_t)bytes, COMM_U8, 0);
}
