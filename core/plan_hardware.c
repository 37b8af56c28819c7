/* Profiles, their files, and the roofline. */
#include "core/plan_hardware.h"
#include "core/base/mem.h"
#include "core/base/str.h"
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- profiles ----
 * Peaks and bandwidths are the vendors' (NVIDIA data sheets: A100 80GB SXM4, June 2021; H100 SXM5, March
 * 2023; H200 SXM, November 2024; HGX B200, 2025), dense, without sparsity. Rates that are attained are
 * estimates, not measured: 0.7 of the peak for matrix products, 0.85 of the memory bandwidth, 0.8 of a link.
 * Links: NVLink in one direction (half of the advertised sum), one 200 Gb/s (A100) or 400 Gb/s adapter per
 * rank between nodes. fp32 is the rate without tensor cores, as fp32 training takes it. `cpu` is a guess at
 * two cores of a server with tile registers, for choices that need rates where none were measured: its ratios
 * matter, not its times. */
#define ATTAINED_MATRIX 0.7
#define ATTAINED_MEMORY 0.85
#define ATTAINED_LINK   0.8
#define GPU(label, bf16, fp32, memory, nvlink, adapter, bytes)                                               \
    {                                                                                                        \
        .name = (label), .peak_bf16 = (bf16), .peak_fp32 = (fp32), .matrix_bf16 = ATTAINED_MATRIX * (bf16),  \
        .matrix_fp32 = ATTAINED_MATRIX * (fp32), .memory_bandwidth = ATTAINED_MEMORY * (memory),             \
        .link_intra = ATTAINED_LINK * (nvlink), .link_inter = ATTAINED_LINK * (adapter),                     \
        .link_seconds = 10e-6, .call_seconds = 4e-6, .ranks_per_node = 8, .memory_bytes = (bytes)            \
    }
static const struct hardware profiles[] = {
    GPU("a100", 312e12, 19.5e12, 2.039e12, 300e9, 25e9, 80e9),
    GPU("h100", 989.4e12, 66.9e12, 3.35e12, 450e9, 50e9, 80e9),
    GPU("h200", 989.4e12, 66.9e12, 4.8e12, 450e9, 50e9, 141e9),
    GPU("b200", 2250e12, 75e12, 8e12, 900e9, 50e9, 180e9),
    {.name = "cpu",
     .matrix_bf16 = 2e12,
     .matrix_fp32 = 0.2e12,
     .memory_bandwidth = 20e9,
     .link_intra = 3e9,
     .link_inter = 3e9,
     .call_seconds = 5e-6},
};

/* ---- fields by name ---- */

struct field {
    const char *key, *help;
    size_t offset;
    bool required;
};
static const struct field fields[] = {
#define REQUIRED(field, key, help) {key, help, offsetof(struct hardware, field), true},
#define OPTIONAL(field, key, help) {key, help, offsetof(struct hardware, field), false},
#include "core/plan_hardware.def"
#undef REQUIRED
#undef OPTIONAL
};

static double *field_of(struct hardware *hw, const struct field *f) {
    return (double *)(void *)((char *)hw + f->offset);
}

static void fill_in(double *value, double otherwise) {
    if (*value <= 0) *value = otherwise;
}

static void complete(struct hardware *hw) {
    double *classes[] = {&hw->bandwidth_norm,    &hw->bandwidth_activation, &hw->bandwidth_residual,
                         &hw->bandwidth_dropout, &hw->bandwidth_softmax,    &hw->bandwidth_rows,
                         &hw->bandwidth_copy,    &hw->bandwidth_optimizer,  &hw->bandwidth_sum,
                         &hw->bandwidth_pack};
    for (size_t i = 0; i < ARRAY_COUNT(classes); i++) fill_in(classes[i], hw->memory_bandwidth);
    fill_in(&hw->peak_bf16, hw->matrix_bf16);
    fill_in(&hw->peak_fp32, hw->matrix_fp32);
    fill_in(&hw->attention_forward_bf16, 0.6 * hw->matrix_bf16);
    fill_in(&hw->attention_backward_bf16, 0.5 * hw->matrix_bf16);
    fill_in(&hw->attention_forward_fp32, 0.6 * hw->matrix_fp32);
    fill_in(&hw->attention_backward_fp32, 0.5 * hw->matrix_fp32);
    fill_in(&hw->link_intra, hw->memory_bandwidth / 4);
    fill_in(&hw->link_inter, hw->link_intra);
    fill_in(&hw->ranks_per_node, 8);
}

const char *hardware_name(int index) {
    return index >= 0 && index < (int)ARRAY_COUNT(profiles) ? profiles[index].name : NULL;
}

int hardware_find(const char *name, struct hardware *out) {
    for (size_t i = 0; i < ARRAY_COUNT(profiles); i++) {
        if (strcmp(profiles[i].name, name)) continue;
        *out = profiles[i];
        complete(out);
        return 0;
    }
    return -1;
}

/* ---- files ---- */

static const struct field *find_field(const char *key, size_t length) {
    for (size_t i = 0; i < ARRAY_COUNT(fields); i++)
        if (strlen(fields[i].key) == length && !memcmp(fields[i].key, key, length)) return &fields[i];
    return NULL;
}

static int parse_line(struct hardware *hw, const char *line, size_t length, const char *name, int number,
                      struct err *err) {
    const char *hash = memchr(line, '#', length);
    char text[160];
    if (hash) length = (size_t)(hash - line);
    while (length && isspace((unsigned char)line[length - 1])) length--;
    while (length && isspace((unsigned char)*line)) line++, length--;
    if (!length || (length == 3 && !memcmp(line, "---", 3))) return 0;
    const char *colon = memchr(line, ':', length);
    if (!colon || length >= sizeof(text))
        return err_set(err, "%s, line %d: expected \"key: number\"", name, number);
    size_t key = (size_t)(colon - line);
    memcpy(text, line, length);
    text[length] = 0;
    char *value = text + key + 1, *end;
    while (isspace((unsigned char)*value)) value++;
    if (key == 4 && !memcmp(line, "name", 4)) {
        snprintf(hw->name, sizeof(hw->name), "%s", value);
        return 0;
    }
    const struct field *f = find_field(line, key);
    if (!f)
        return err_set(err, "%s, line %d: %.*s is no key of a hardware file; --measure-hardware writes all",
                       name, number, (int)key, line);
    double x = strtod(value, &end);
    if (end == value || *end || !isfinite(x) || x < 0 || (f->required && x == 0))
        return err_set(err, "%s, line %d: %s: '%s' is no number above 0", name, number, f->key, value);
    *field_of(hw, f) = x;
    return 0;
}

int hardware_parse(const char *text, const char *name, struct hardware *out, struct err *err) {
    struct hardware hw = {0};
    snprintf(hw.name, sizeof(hw.name), "%s", name);
    for (int number = 1; *text; number++) {
        size_t length = strcspn(text, "\n");
        if (parse_line(&hw, text, length, name, number, err)) return -1;
        text += length + (text[length] == '\n');
    }
    for (size_t i = 0; i < ARRAY_COUNT(fields); i++)
        if (fields[i].required && *field_of(&hw, &fields[i]) <= 0)
            return err_set(err, "%s: %s is missing (%s); add it, or let --measure-hardware write the file",
                           name, fields[i].key, fields[i].help);
    complete(&hw);
    *out = hw;
    return 0;
}

static int read_text(const char *path, struct str *text, struct err *err) {
    char block[4096];
    FILE *f = fopen(path, "r");
    if (!f) {
        struct str names = {0};
        for (int i = 0; hardware_name(i); i++) str_printf(&names, "%s%s", i ? ", " : "", hardware_name(i));
        err_set(err, "--hardware %s: no such profile (there are %s) and no such file (%s)", path, names.data,
                strerror(errno));
        str_free(&names);
        return -1;
    }
    size_t got;
    while ((got = fread(block, 1, sizeof(block), f)) > 0 && text->length < (1u << 20))
        str_append(text, block, got);
    bool failed = ferror(f) || !text->length || memchr(text->data, 0, text->length) || got > 0;
    fclose(f);
    return failed ? err_set(err, "--hardware %s: cannot be read, or is no text of key: number", path) : 0;
}

int hardware_open(const char *name_or_path, struct hardware *out, struct err *err) {
    struct str text = {0};
    if (!hardware_find(name_or_path, out)) return 0;
    int status = read_text(name_or_path, &text, err);
    if (!status) status = hardware_parse(text.data, name_or_path, out, err);
    str_free(&text);
    return status;
}

void hardware_write(const struct hardware *hw, FILE *out) {
    struct hardware copy = *hw;
    fprintf(out, "name: %s\n", hw->name);
    for (size_t i = 0; i < ARRAY_COUNT(fields); i++) {
        double value = *field_of(&copy, &fields[i]);
        if (value > 0) fprintf(out, "%s: %.4g  # %s\n", fields[i].key, value, fields[i].help);
    }
}

/* ---- the roofline ---- */

static double class_bandwidth(const struct hardware *hw, enum kernel_id id, bool dropout) {
    switch (id) {
    case KERNEL_norm_forward:
    case KERNEL_norm_backward:
    case KERNEL_qkv_split_forward:
    case KERNEL_qkv_split_backward:
    case KERNEL_mla_latent_split_forward:
    case KERNEL_mla_latent_split_backward:
    case KERNEL_mla_assemble_forward:
    case KERNEL_mla_assemble_backward:
        return hw->bandwidth_norm;
    case KERNEL_activation_forward:
    case KERNEL_activation_backward:
    case KERNEL_scaled_activation_forward:
    case KERNEL_scaled_activation_backward:
    case KERNEL_gate_forward:
    case KERNEL_gate_backward:
        return hw->bandwidth_activation;
    case KERNEL_residual_forward:
    case KERNEL_residual_backward:
        return dropout ? hw->bandwidth_dropout : hw->bandwidth_residual;
    case KERNEL_dropout:
        return hw->bandwidth_dropout;
    case KERNEL_softmax_forward:
    case KERNEL_softmax_backward:
    case KERNEL_cross_entropy_forward:
    case KERNEL_cross_entropy_combine:
    case KERNEL_cross_entropy_backward:
    case KERNEL_attention_merge:
    case KERNEL_route_forward:
    case KERNEL_route_backward:
    case KERNEL_router_backward:
        return hw->bandwidth_softmax;
    case KERNEL_embedding_forward:
    case KERNEL_embedding_backward:
    case KERNEL_gather_rows:
    case KERNEL_combine_rows:
        return hw->bandwidth_rows;
    case KERNEL_adamw:
        return hw->bandwidth_optimizer;
    case KERNEL_sum_squares:
        return hw->bandwidth_sum;
    case KERNEL_gemm_pack:
        return hw->bandwidth_pack;
    case KERNEL_cast:
    case KERNEL_add:
    case KERNEL_fill:
    case KERNEL_copy_blocks:
    case KERNEL_bias_backward:
        return hw->bandwidth_copy;
    default:
        return hw->memory_bandwidth;
    }
}

double hardware_kernel_seconds(const struct hardware *hw, enum kernel_id id, struct kernel_cost cost,
                               double calls, enum dtype dtype, bool dropout) {
    bool fp32 = dtype == DTYPE_F32;
    double rate = fp32 ? hw->matrix_fp32 : hw->matrix_bf16;
    if (id == KERNEL_attention_forward) rate = fp32 ? hw->attention_forward_fp32 : hw->attention_forward_bf16;
    if (id == KERNEL_attention_backward)
        rate = fp32 ? hw->attention_backward_fp32 : hw->attention_backward_bf16;
    double arithmetic = cost.gemm_flops / rate, traffic = cost.bytes / class_bandwidth(hw, id, dropout);
    return (arithmetic > traffic ? arithmetic : traffic) + calls * hw->call_seconds;
}

double hardware_message_seconds(const struct hardware *hw, double bytes, double calls, int64_t span) {
    double bandwidth = (double)span <= hw->ranks_per_node ? hw->link_intra : hw->link_inter;
    return bytes / bandwidth + calls * hw->link_seconds;
}
