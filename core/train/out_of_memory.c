#include "core/train/out_of_memory.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/plan_holders.h"
#include "core/plan_remedy.h"
#include <stdio.h>
#include <string.h>

enum { HOLDERS_SHOWN = 10, REMEDIES_SHOWN = 6 };

struct limit {
    size_t bytes; /* 0: none */
    const char *of;
};

/* ---- what there is ---- */

/* "MemTotal:   24576 kB" */
static size_t meminfo(const char *key) {
    char name[64];
    unsigned long long kib;
    size_t bytes = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    if (!f) return 0;
    while (fscanf(f, "%63s %llu%*[^\n]", name, &kib) == 2)
        if (!strcmp(name, key)) bytes = (size_t)kib << 10;
    fclose(f);
    return bytes;
}

static struct limit limit_of(const struct config *cfg) {
    unsigned long long group = 0;
    if (config_is_set(cfg, device_memory_limit))
        return (struct limit){(size_t)cfg->device_memory_limit, "--device-memory-limit is"};
    if (cfg->dry_run) return (struct limit){0, ""};
    size_t machine = meminfo("MemTotal:") + meminfo("SwapTotal:");
    FILE *f = fopen("/sys/fs/cgroup/memory.max", "r"); /* "max" where there is no limit */
    if (f && fscanf(f, "%llu", &group) != 1) group = 0;
    if (f) fclose(f);
    if (group && (!machine || group < machine))
        return (struct limit){(size_t)group, "this control group has"};
    return (struct limit){machine, "this machine has"};
}

/* ---- what would fit ---- */

struct stages {
    struct setup *setups;
    struct plan_request *requests;
    int count, worst;
    int worst_rank;
};

static int open_stages(struct stages *s, const struct config *cfg, int rank, int threads, struct err *err) {
    struct mesh mesh, at;
    s->count = (int)cfg->pipeline_model_parallel_size;
    s->setups = mem_new_array(struct setup, (size_t)s->count, "plans of the stages");
    s->requests = mem_new_array(struct plan_request, (size_t)s->count, "plans of the stages");
    if (ranks_mesh(cfg, rank, &mesh, err)) return -1;
    for (int i = 0; i < s->count; i++) {
        int other = mesh_stage_rank(&mesh, i);
        if (ranks_mesh(cfg, other, &at, err) || setup_open(&s->setups[i], cfg, other, threads, err))
            return -1;
        if (i > 0) { /* one team of threads is enough: plans ask only how many there are */
            threads_close(s->setups[i].threads);
            s->setups[i].threads = NULL;
            s->setups[i].plan.request.threads = s->setups[0].threads;
        }
        s->requests[i] = s->setups[i].plan.request;
        if (s->setups[i].plan.arena_bytes > s->setups[s->worst].plan.arena_bytes) s->worst = i;
    }
    s->worst_rank = mesh_stage_rank(&mesh, s->worst);
    return 0;
}

static void close_stages(struct stages *s) {
    for (int i = s->count - 1; i >= 0; i--) setup_close(&s->setups[i]);
    mem_free(s->setups);
    mem_free(s->requests);
}

/* What a smaller --micro-batch-size needs beside it, so that everything else stays as it is. */
static void flags_with_batch(const struct config *cfg, struct str *out) {
    if (cfg->origin[CONFIG_FLAG_global_batch_size] < CONFIG_YAML && !config_is_set(cfg, rampup_batch_size))
        str_printf(out, " --global-batch-size %lld", (long long)cfg->global_batch_size);
}

static void print_remedies(const struct plan_remedies *r, bool replaces, double flops, FILE *out) {
    char size[32];
    int shown = r->count < REMEDIES_SHOWN ? r->count : REMEDIES_SHOWN;
    if (!shown) return;
    fprintf(out, "what fits, the least recompute first (%d of %d)%s:\n", shown, r->count,
            replaces ? "; recompute flags are instead of those given" : "");
    for (int i = 0; i < shown; i++)
        fprintf(out, "  %12s  %5.1f%% of the FLOPs recomputed  %s\n",
                str_format_bytes(size, sizeof(size), (double)r->at[i].bytes),
                flops > 0 ? 100 * r->at[i].rerun_flops / flops : 0, r->at[i].flags);
}

/* The last line: what was needed and what to do. */
static void conclude(const struct stages *s, const struct limit *limit, const struct plan_remedies *r,
                     struct str *out) {
    char need[32], have[32], with[32];
    const struct plan *plan = &s->setups[s->worst].plan;
    const struct plan_remedy *recompute = plan_recompute_remedy(r), *other = plan_other_remedy(r);
    str_printf(out, "out of device memory: the plan needs %s (%zu bytes) on rank %d and %s %s; ",
               str_format_bytes(need, sizeof(need), (double)plan->arena_bytes), plan->arena_bytes,
               s->worst_rank, limit->of, str_format_bytes(have, sizeof(have), (double)limit->bytes));
    if (recompute) {
        str_printf(out, "the cheapest recompute setting that fits is %s (%s)", recompute->flags,
                   str_format_bytes(with, sizeof(with), (double)recompute->bytes));
        if (other) str_printf(out, "; without more recompute %s fits too", other->flags);
    } else if (r->count) {
        str_printf(out, "no recompute setting fits alone; the cheapest change that fits is %s (%s)",
                   r->at[0].flags, str_format_bytes(with, sizeof(with), (double)r->at[0].bytes));
    } else {
        str_puts(out,
                 "no recompute setting fits: lower --micro-batch-size or --seq-length, use more ranks or "
                 "a smaller model");
    }
}

/* The report about the stage with the highest peak in the pipeline of `rank`. */
static int explain(const struct config *cfg, int rank, int threads, const struct limit *limit, FILE *out,
                   struct str *line, struct err *err) {
    struct stages s = {0};
    struct plan_remedies remedies;
    struct str with_batch = {0};
    double flops = 0;
    int status = open_stages(&s, cfg, rank, threads, err);
    if (!status) {
        if (!cfg->dry_run) { /* a dry run has printed both */
            plan_print_memory(&s.setups[s.worst].plan, s.worst_rank, out);
            plan_print_holders(&s.setups[s.worst].plan, HOLDERS_SHOWN, out);
        }
        for (int i = 0; i < s.count; i++) flops += s.setups[i].plan.step_flops;
        flags_with_batch(cfg, &with_batch);
        plan_find_remedies(
            &(struct plan_remedy_options){.stages = s.requests,
                                          .num_stages = s.count,
                                          .first = s.worst,
                                          .limit = limit->bytes,
                                          .may_shard = !cfg->use_megatron_fsdp,
                                          .with_batch = with_batch.data ? with_batch.data : ""},
            &remedies);
        print_remedies(&remedies, s.requests[0].recompute.granularity != RECOMPUTE_NONE, flops, out);
        conclude(&s, limit, &remedies, line);
    }
    str_free(&with_batch);
    close_stages(&s);
    return status;
}

int out_of_memory_check(const struct config *cfg, const struct setup *setup, int rank, struct err *err) {
    const struct model *m = &setup->plan.request.model;
    const struct limit limit = limit_of(cfg);
    struct str line = {0};
    if (!limit.bytes || setup->plan.arena_bytes <= limit.bytes) return 0;
    err_set(err, "out of device memory on rank %d", rank);
    /* ranks of one stage have the same plan: one of them explains, and ends the job for all */
    bool is_first = m->tp_rank == 0 && m->cp_rank == 0 && setup->plan.request.layout.data_rank == 0;
    if (config_is_set(cfg, device_memory_limit) && !is_first) return -1;
    if (explain(cfg, rank, threads_count(setup->threads), &limit, stderr, &line, err)) return -1;
    fflush(stderr);
    die(STATUS_OUT_OF_MEMORY, "%s", line.data);
}

int out_of_memory_explain(const struct config *cfg, FILE *out, struct err *err) {
    const struct limit limit = limit_of(cfg);
    struct str line = {0};
    int status = explain(cfg, 0, 0, &limit, out, &line, err);
    if (!status) log_error("%s", line.data);
    str_free(&line);
    return status;
}
