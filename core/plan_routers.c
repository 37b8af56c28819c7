/* States of the routers: the expert bias and what is counted for it and for the balance of a whole batch. */
#include "core/base/mem.h"
#include "core/plan_internal.h"

static void list_routers(struct plan *plan) {
    for (int i = 0; i < plan->num_segments; i++)
        plan->num_routers += plan->compiled[plan->segments[i].compiled].program.num_routers;
    plan->routers = mem_new_array(struct plan_router, (size_t)plan->num_routers, "plan routers");
    for (int i = 0, next = 0; i < plan->num_segments; i++) {
        struct plan_segment *s = &plan->segments[i];
        const struct program *program = &plan->compiled[s->compiled].program;
        int first = s->first_layer + (s->kind == SEGMENT_MTP ? (int)plan->request.model.layers : 0);
        s->routers = mem_new_array(int, (size_t)program->num_routers, "segment routers");
        for (int k = 0; k < program->num_routers; k++, next++) {
            char name[192];
            plan_param_name(&program->routers[k], s->first_layer, name, sizeof(name));
            s->routers[k] = next;
            plan->routers[next] = (struct plan_router){.name = mem_strdup(name, "plan routers"),
                                                       .layer = first + program->routers[k].layer,
                                                       .experts = program->routers[k].dims[0]};
        }
    }
}

void plan_make_routers(struct plan *plan) {
    const struct model *m = &plan->request.model;
    list_routers(plan);
    size_t n = (size_t)plan->num_routers, experts = (size_t)m->moe.experts;
    size_t bias = plan_take(plan, CATEGORY_TABLES, m->moe.expert_bias ? n * experts * sizeof(float) : 0);
    size_t tokens = plan_take(plan, CATEGORY_TABLES, m->moe.expert_bias ? n * experts * sizeof(int64_t) : 0);
    size_t seen =
        plan_take(plan, CATEGORY_TABLES, m->moe.balance_globally ? n * experts * sizeof(int32_t) : 0);
    plan->router_tokens = tokens;
    for (size_t i = 0; i < n; i++) {
        struct plan_router *r = &plan->routers[i];
        r->bias = m->moe.expert_bias ? bias + i * experts * sizeof(float) : SIZE_MAX;
        r->tokens = m->moe.expert_bias ? tokens + i * experts * sizeof(int64_t) : SIZE_MAX;
        r->seen = m->moe.balance_globally ? seen + i * experts * sizeof(int32_t) : SIZE_MAX;
        r->writes = m->tp_rank == 0 && plan->request.layout.data_rank == 0;
    }
}
