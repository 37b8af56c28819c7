#include "core/train/ranks.h"
#include "core/base/hash.h"
#include "core/base/mem.h"
#include "core/base/threads.h"
#include "core/train/signals.h"
#include <stdio.h>
#include <string.h>

int ranks_mesh(const struct config *cfg, int rank, struct mesh *mesh, struct err *err) {
    int tensor = (int)cfg->tensor_model_parallel_size, groups = (int)cfg->num_query_groups;
    struct mesh_shape shape = {.world = (int)cfg->world_size,
                               .tensor = tensor,
                               .context = (int)cfg->context_parallel_size,
                               .pipeline = (int)cfg->pipeline_model_parallel_size,
                               .expert = (int)cfg->expert_model_parallel_size,
                               .expert_tensor = config_is_set(cfg, expert_tensor_parallel_size)
                                                    ? (int)cfg->expert_tensor_parallel_size
                                                    : tensor,
                               .optimizer_instances = (int)cfg->num_distributed_optimizer_instances,
                               .kv_replicas = tensor > groups ? tensor / groups : 1,
                               .pp_before_dp = cfg->use_tp_pp_dp_mapping};
    return mesh_init(mesh, &shape, rank, err);
}

int ranks_open(struct ranks *r, struct err *err) {
    *r = (struct ranks){.size = 1};
    if (comm_world_open(&r->world, err)) return -1;
    r->rank = comm_world_rank(r->world);
    r->size = comm_world_size(r->world);
    return 0;
}

static bool is_told_to_end(void) {
    return signals_received() != 0;
}

/* Every rank opens its groups in this order. */
int ranks_open_groups(struct ranks *r, const struct config *cfg, struct err *err) {
    struct {
        enum mesh_group group;
        struct comm **comm_p;
    } groups[] = {{MESH_WORLD, &r->comms.world},
                  {MESH_TENSOR, &r->comms.tensor},
                  {MESH_CONTEXT, &r->comms.context},
                  {MESH_PIPELINE, &r->comms.pipeline},
                  {MESH_DATA_CONTEXT, &r->comms.data},
                  {MESH_EMBEDDING, &r->comms.embedding},
                  {MESH_KV_REPLICAS, &r->comms.kv},
                  {MESH_EXPERT_TENSOR_MODEL, &r->comms.expert},
                  {MESH_EXPERT_DATA, &r->comms.expert_data},
                  {MESH_TENSOR_CONTEXT, &r->comms.tensor_context},
                  {MESH_TENSOR_DATA_CONTEXT, &r->comms.tensor_data_context}};
    enum { WITHOUT_EXPERTS = 7 };
    if (ranks_mesh(cfg, r->rank, &r->mesh, err)) return -1;
    size_t num_groups = cfg->num_experts > 0 ? ARRAY_COUNT(groups) : WITHOUT_EXPERTS;
    if (cfg->exit_signal_handler) comm_world_set_alarm(r->world, is_told_to_end);
    comm_world_set_timeout(r->world, 60.0 * (double)cfg->distributed_timeout_minutes);
    int *members = mem_new_array(int, (size_t)r->size, "ranks of a group");
    for (size_t i = 0; i < num_groups; i++) {
        int index, count = mesh_group_ranks(&r->mesh, groups[i].group, members, &index);
        *groups[i].comm_p = comm_open(r->world, mesh_group_name(groups[i].group), members, count);
    }
    mem_free(members);
    return 0;
}

void ranks_close(struct ranks *r) {
    struct comm *comms[EXECUTOR_MAX_COMMS];
    int count = executor_list_comms(&r->comms, comms);
    for (int i = 0; i < count; i++) comm_close(comms[i]);
    comm_world_close(r->world);
    *r = (struct ranks){0};
}

int ranks_agree(const struct ranks *r, int status, struct err *err) {
    if (!r || !r->comms.world || r->size == 1) return status;
    int64_t first_failed = status ? r->rank : r->size;
    comm_all_reduce(r->comms.world, &first_failed, 1, COMM_I64, COMM_MIN);
    if (first_failed == r->size) return 0;
    comm_broadcast(r->comms.world, err->text, sizeof(err->text), COMM_U8, (int)first_failed);
    if (first_failed > 0 && strncmp(err->text, "rank ", 5) != 0) { /* rank 0 prints it, and it was well */
        struct err own = *err;
        err_set(err, "rank %d: %s", (int)first_failed, own.text);
    }
    return -1;
}

int ranks_threads(const struct ranks *r) {
    if (!r || !r->comms.world || r->size == 1) return 0;
    struct place {
        uint64_t host, processors;
    } *places = mem_new_array(struct place, (size_t)r->size, "processors of the ranks");
    struct place *own = &places[r->rank];
    const char *host = comm_world_host(r->world);
    int count = threads_processors(&own->processors), sharers = 0;
    own->host = hash_bytes(host, strlen(host));
    comm_all_gather(r->comms.world, places, sizeof(*places), COMM_U8);
    for (int i = 0; i < r->size; i++)
        sharers += places[i].host == own->host && places[i].processors == own->processors;
    mem_free(places);
    return count > sharers ? count / sharers : 1;
}

double ranks_max(const struct ranks *r, double value) {
    if (r && r->comms.world) comm_all_reduce(r->comms.world, &value, 1, COMM_F64, COMM_MAX);
    return value;
}
