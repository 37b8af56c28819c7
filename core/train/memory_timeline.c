#include "core/train/memory_timeline.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/plan_timeline.h"
#include <stdio.h>
#include <string.h>

/* core/plan_timeline.html, by the Makefile */
static const char page[] =
#include TIMELINE_PAGE
    ;

struct memory_recording {
    struct timeline timeline; /* of this rank */
    size_t *ends;             /* per run: the highest byte that it touched */
    bool active, done;
};

/* ---- the page ---- */

static bool is_chosen(const struct config *cfg, int stage) {
    for (int64_t i = 0; i < cfg->memory_timeline_stages.count; i++)
        if (cfg->memory_timeline_stages.items[i] == stage) return true;
    return cfg->memory_timeline_stages.count == 0;
}

static int rank_of_stage(const struct config *cfg, int stage, struct err *err) {
    for (int rank = 0; rank < cfg->world_size; rank++) {
        struct mesh mesh;
        if (ranks_mesh(cfg, rank, &mesh, err)) return -1;
        if (mesh.pp == stage) return rank;
    }
    return err_set(err, "--memory-timeline-stages %d: no rank has this stage; choose another", stage);
}

/* `measured` holds, for this stage, the number of runs and then the end of each; NULL: the plan alone. */
static int add_stage(const struct config *cfg, int threads, int stage, const int64_t *measured,
                     struct str *out, struct err *err) {
    struct setup setup;
    struct timeline timeline;
    int rank = rank_of_stage(cfg, stage, err);
    if (rank < 0) return -1;
    int status = setup_open(&setup, cfg, rank, threads, err);
    if (!status) {
        size_t *ends = NULL;
        timeline_open(&timeline, &setup.plan);
        if (measured && measured[0] == timeline.num_runs) {
            ends = mem_new_array(size_t, (size_t)timeline.num_runs, "measured ends");
            for (int i = 0; i < timeline.num_runs; i++) ends[i] = (size_t)measured[1 + i];
        }
        timeline_write_json(&timeline, ends, out);
        mem_free(ends);
        timeline_close(&timeline);
    }
    setup_close(&setup);
    return status;
}

static int write_page(const char *path, const struct str *json, struct err *err) {
    static const char mark[] = "@DATA@";
    const char *at = strstr(strstr(page, "<script id=\"data\""), mark);
    FILE *f = fopen(path, "w");
    bool failed = !f || fwrite(page, 1, (size_t)(at - page), f) != (size_t)(at - page) ||
                  fwrite(json->data, 1, json->length, f) != json->length || fputs(at + strlen(mark), f) < 0;
    if ((f && fclose(f)) || failed)
        return err_set(
            err, "--memory-timeline %s: cannot be written; check the folder and the space on the disk", path);
    return 0;
}

/* `measured`: stride words for each stage, or NULL. */
static int make_page(const struct config *cfg, int threads, const char *from, const int64_t *measured,
                     int64_t stride, struct err *err) {
    enum { LARGE = 5 << 20 };
    struct str json = {0};
    char size[32];
    int status = 0;
    json_begin_object(&json);
    json_key(&json, "from");
    json_string(&json, from);
    json_key(&json, "stages");
    json_begin_array(&json);
    for (int stage = 0; stage < cfg->pipeline_model_parallel_size && !status; stage++)
        if (is_chosen(cfg, stage))
            status = add_stage(cfg, threads, stage, measured ? measured + stage * stride : NULL, &json, err);
    json_end_array(&json);
    json_end_object(&json);
    if (!status) status = write_page(cfg->memory_timeline, &json, err);
    if (!status && json.length > LARGE)
        log_warn("--memory-timeline %s: the page has %s; --memory-timeline-stages chooses the stages on it",
                 cfg->memory_timeline, str_format_bytes(size, sizeof(size), (double)json.length));
    str_free(&json);
    return status;
}

int memory_timeline_plan(const struct config *cfg, int threads, const char *from, struct err *err) {
    return make_page(cfg, threads, from, NULL, 0, err);
}

/* ---- a real run ---- */

int memory_timeline_open(struct trainer *t, struct err *err) {
    if (!t->cfg->memory_timeline) return 0;
    struct memory_recording *r = t->recording = mem_zalloc(sizeof(*r), "memory recording");
    timeline_open(&r->timeline, &t->setup.plan);
    r->ends = mem_new_array(size_t, (size_t)r->timeline.num_runs, "memory recording");
    if (t->ranks && t->ranks->rank > 0) return 0;
    return memory_timeline_plan(t->cfg, threads_count(t->setup.threads),
                                "From the plan: no full step has been trained yet.", err);
}

void memory_timeline_close(struct trainer *t) {
    if (!t->recording) return;
    timeline_close(&t->recording->timeline);
    mem_free(t->recording->ends);
    mem_free(t->recording);
    t->recording = NULL;
}

/* All stages record the same step: the first that has the largest number of micro-batches. */
void memory_timeline_begin(struct trainer *t, int micro_batches) {
    struct memory_recording *r = t->recording;
    if (!r || r->done || micro_batches != t->setup.plan.request.micro_batches) return;
    r->active = true;
    if (r->timeline.list != plan_actions(&t->setup.plan, micro_batches)) return;
    t->executor.run_ends = r->ends;
    t->executor.num_run_ends = 0;
}

/* The notes of all stages of this pipeline, `stride` words each: how many, and the ends. Owned by the caller.
 */
static int64_t *gather_ends(struct trainer *t, int64_t count, int64_t *stride_p) {
    struct comm *comm = t->ranks ? t->ranks->comms.pipeline : NULL;
    int64_t stages = t->cfg->pipeline_model_parallel_size, stage = t->setup.plan.request.layout.stage;
    *stride_p = count + 1;
    if (comm) comm_all_reduce(comm, stride_p, 1, COMM_I64, COMM_MAX);
    int64_t *all = mem_new_array(int64_t, (size_t)(stages * *stride_p), "memory recordings");
    int64_t *own = all + stage * *stride_p;
    own[0] = count;
    for (int64_t i = 0; i < count; i++) own[1 + i] = (int64_t)t->recording->ends[i];
    if (comm) comm_all_gather(comm, all, *stride_p, COMM_I64);
    return all;
}

void memory_timeline_end(struct trainer *t) {
    struct memory_recording *r = t->recording;
    struct err err;
    char from[256];
    int64_t stride, count = t->executor.run_ends ? t->executor.num_run_ends : 0;
    t->executor.run_ends = NULL;
    if (!r || !r->active) return;
    int64_t *all = gather_ends(t, count, &stride);
    r->active = false, r->done = true;
    if (!t->ranks || t->ranks->rank == 0) {
        snprintf(from, sizeof(from),
                 "From a real run: iteration %lld. The black line is the highest byte that each run of a "
                 "list of instructions was handed; the areas are the plan's.",
                 (long long)t->state.iteration + 1);
        if (make_page(t->cfg, threads_count(t->setup.threads), from, all, stride, &err))
            log_warn("%s", err.text);
    }
    mem_free(all);
}
