#include "core/tensor/program.h"
#include "core/base/check.h"
#include "core/base/mem.h"

static void *grow(void *array, int count, int *capacity, size_t size) {
    if (count < *capacity) return array;
    *capacity = *capacity ? 2 * *capacity : 16;
    return mem_realloc(array, mem_array_bytes((size_t)*capacity, size), "program");
}

void program_init(struct program *p) {
    *p = (struct program){.input = -1, .output = -1, .open_scope = -1};
}

void program_free(struct program *p) {
    for (int i = 0; i < p->num_ops; i++) mem_free(p->ops[i].attributes);
    for (int i = 0; i < p->num_params; i++) mem_free((void *)(uintptr_t)p->params[i].name);
    for (int i = 0; i < p->num_routers; i++) mem_free((void *)(uintptr_t)p->routers[i].name);
    mem_free(p->tensors);
    mem_free(p->ops);
    mem_free(p->params);
    mem_free(p->routers);
    mem_free(p->scopes);
    program_init(p);
}

int program_tensor(struct program *p, const char *name, enum dtype dtype, int num_dims, const int64_t *dims) {
    CHECK(num_dims >= 1 && num_dims <= PROGRAM_MAX_DIMS, "tensor %s has %d dimensions", name, num_dims);
    p->tensors = grow(p->tensors, p->num_tensors, &p->capacity_tensors, sizeof(*p->tensors));
    struct tensor_info *t = &p->tensors[p->num_tensors];
    *t = (struct tensor_info){
        .name = name, .dtype = dtype, .num_dims = num_dims, .producer = -1, .has_grad = true};
    t->bytes = dtype_bytes(dtype);
    for (int i = 0; i < num_dims; i++) {
        t->dims[i] = dims[i];
        t->bytes = mem_array_bytes(t->bytes, (size_t)dims[i]);
    }
    return p->num_tensors++;
}

int program_op(struct program *p, const struct op_def *def, const char *name, const int *in, int num_in,
               const void *attributes, size_t attribute_bytes) {
    CHECK(num_in <= OP_MAX_IN, "op %s has %d inputs", name, num_in);
    p->ops = grow(p->ops, p->num_ops, &p->capacity_ops, sizeof(*p->ops));
    struct op *o = &p->ops[p->num_ops];
    *o = (struct op){.def = def,
                     .name = name,
                     .num_in = num_in,
                     .backward_reads_in = def->backward_reads_in,
                     .backward_reads_out = def->backward_reads_out,
                     .grad_in = def->grad_in,
                     .passes_grad = def->passes_grad,
                     .weight_reads_in = def->weight_reads_in,
                     .grad_of_in0_lives_in = -1,
                     .router = -1,
                     .scope = p->open_scope,
                     .layer = p->layer};
    for (int i = 0; i < num_in; i++) o->in[i] = in[i];
    if (attribute_bytes) {
        o->attributes = mem_alloc(attribute_bytes, "op attributes");
        memcpy(o->attributes, attributes, attribute_bytes);
    }
    return p->num_ops++;
}

int program_output(struct program *p, int op, const char *name, enum dtype dtype, int num_dims,
                   const int64_t *dims, bool has_grad) {
    int t = program_tensor(p, name, dtype, num_dims, dims);
    struct op *o = &p->ops[op];
    CHECK(o->num_out < OP_MAX_OUT, "op %s has too many outputs", o->name);
    o->out[o->num_out++] = t;
    p->tensors[t].producer = op;
    p->tensors[t].has_grad = has_grad;
    return t;
}

int program_param(struct program *p, int op, struct param_info info) {
    struct op *o = &p->ops[op];
    CHECK(o->num_params < OP_MAX_PARAMS, "op %s has too many parameters", o->name);
    p->params = grow(p->params, p->num_params, &p->capacity_params, sizeof(*p->params));
    info.name = mem_strdup(info.name, "parameter name");
    info.layer = p->layer;
    p->params[p->num_params] = info;
    o->param[o->num_params++] = p->num_params;
    return p->num_params++;
}

void program_share_param(struct program *p, int op, int param) {
    struct op *o = &p->ops[op];
    CHECK(o->num_params < OP_MAX_PARAMS, "op %s has too many parameters", o->name);
    o->param[o->num_params++] = param;
}

void program_router(struct program *p, int op, struct param_info info) {
    p->routers = grow(p->routers, p->num_routers, &p->capacity_routers, sizeof(*p->routers));
    info.name = mem_strdup(info.name, "router name");
    info.layer = p->layer;
    p->ops[op].router = p->num_routers;
    p->routers[p->num_routers++] = info;
}

void program_draws_random(struct program *p, int op) {
    p->ops[op].rng_op = p->next_rng_op++;
}

int program_begin(struct program *p, int module) {
    int outer = p->open_scope;
    p->scopes = grow(p->scopes, p->num_scopes, &p->capacity_scopes, sizeof(*p->scopes));
    p->scopes[p->num_scopes] = (struct scope){module, outer};
    p->open_scope = p->num_scopes++;
    return outer;
}

void program_end(struct program *p, int outer) {
    p->open_scope = outer;
}

void program_next_layer(struct program *p) {
    p->layer++;
    p->next_rng_op = 0;
}

bool program_inside(const struct program *p, int scope, int instance) {
    for (; scope >= 0; scope = p->scopes[scope].parent)
        if (scope == instance) return true;
    return false;
}

void code_init(struct code *c, int num_tensors) {
    size_t n = (size_t)num_tensors;
    *c = (struct code){0};
    c->work_offset = mem_new_array(size_t, n, "code");
    c->grad_place = mem_new_array(int64_t, n, "code");
    c->grad_tensor = mem_new_array(int, n, "code");
    for (size_t i = 0; i < n; i++) {
        c->work_offset[i] = SIZE_MAX;
        c->grad_place[i] = GRAD_ABSENT;
        c->grad_tensor[i] = -1;
    }
}

void code_append(struct code *c, struct instr instr) {
    c->at = grow(c->at, c->num_instrs, &c->capacity, sizeof(*c->at));
    c->at[c->num_instrs++] = instr;
}

void code_free(struct code *c) {
    mem_free(c->at);
    mem_free(c->work_offset);
    mem_free(c->grad_place);
    mem_free(c->grad_tensor);
    *c = (struct code){0};
}
