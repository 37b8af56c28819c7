/* --help, --help-recompute and docs/flags.md: the table, written out. */
#include "core/config/flag_table.h"
#include <string.h>

/* What stands after the flag: "N", "X", "{full,selective}", "WORD ...". */
static void format_argument(const struct flag_row *row, struct str *out) {
    switch (row->kind) {
    case FLAG_INT:
        str_puts(out, " N");
        break;
    case FLAG_FLOAT:
        str_puts(out, " X");
        break;
    case FLAG_SIZE:
        str_puts(out, " SIZE");
        break;
    case FLAG_TEXT:
        str_puts(out, " TEXT");
        break;
    case FLAG_TEXTS:
        str_puts(out, row->limits[0] == '*' ? " [WORD ...]" : " WORD ...");
        break;
    case FLAG_INTS:
        str_puts(out, row->limits[0] == '3' ? " N N N" : " N ...");
        break;
    case FLAG_CHOICE:
        for (const struct flag_choice *c = row->choices, *first = NULL; c->word; c++) {
            if (c->why_not) continue;
            str_printf(out, "%s%s", first ? "," : " {", c->word);
            first = c;
        }
        str_puts(out, "}");
        break;
    case FLAG_ON:
    case FLAG_OFF:
        break;
    }
}

static void format_names(const struct flag_row *row, struct str *out) {
    for (const char *n = row->names; *n; n += strlen(n) + 1)
        str_printf(out, "%s%s", n == row->names ? "" : ", ", n);
}

/* Wraps text at 110 columns behind an indent. */
static void print_wrapped(FILE *out, const char *text, int indent) {
    int column = 0;
    while (*text) {
        int length = (int)strcspn(text, " ");
        if (column && column + 1 + length > 110) fputc('\n', out), column = 0;
        if (!column)
            column = fprintf(out, "%*s", indent, "");
        else
            column += fprintf(out, " ");
        column += fprintf(out, "%.*s", length, text);
        text += length;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

static void print_flag(FILE *out, const struct flag_row *row) {
    struct str head = {0}, body = {0};
    format_names(row, &head);
    format_argument(row, &head);
    fprintf(out, "  %s\n", head.data);
    str_puts(&body, row->help);
    if (flag_takes_value(row) && strcmp(row->default_text, "None"))
        str_printf(&body, " (default %s)", row->default_text);
    print_wrapped(out, body.data, 6);
    str_free(&head), str_free(&body);
}

void config_help(FILE *out) {
    fprintf(out,
            "usage: pretrain_gpt --num-layers N --hidden-size N --num-attention-heads N --seq-length N\n"
            "           --max-position-embeddings N --micro-batch-size N --train-iters N --lr X\n"
            "           (--data-path PREFIX | --mock-data) [flags]\n\n"
            "Pretrains GPT and Llama models with Megatron-LM's flags. Smallest run:\n\n"
            "    pretrain_gpt --num-layers 4 --hidden-size 256 --num-attention-heads 8 --seq-length 256 "
            "--max-position-embeddings 256 \\\n"
            "        --micro-batch-size 4 --train-iters 20 --lr 1e-3 --bf16 --mock-data --vocab-size 1024\n\n"
            "The word None unsets a flag whose default is None. The command line wins over --yaml-cfg.\n");
    for (int g = 0; g < flag_group_count; g++) {
        int end = g + 1 < flag_group_count ? flag_groups[g + 1].first : CONFIG_FLAG_COUNT;
        fprintf(out, "\n%s:\n", flag_groups[g].title);
        for (int flag = flag_groups[g].first; flag < end; flag++) print_flag(out, &flag_rows[flag]);
    }
}

static const char recompute_examples[] =
    "Recompute trades work for memory: what backward needs is computed again instead of kept. The\n"
    "result never changes: losses and gradients are bit-equal with every setting below. --dry-run prints\n"
    "what a setting saves and costs, without running it.\n"
    "\n"
    "  1. Nothing recomputed (the default): fastest, most memory.\n"
    "\n"
    "  2. The attention core. With --attention-backend unfused it frees the s x s scores, the largest\n"
    "     part of a layer with long sequences; with flash it frees the attention output. The attention\n"
    "     itself runs twice, no projection does.\n"
    "         --recompute-activations\n"
    "     which is short for\n"
    "         --recompute-granularity selective --recompute-modules core_attn\n"
    "\n"
    "  3. Norm outputs: they take one pass over memory to make again and no matrix product.\n"
    "         --recompute-granularity selective --recompute-modules layernorm\n"
    "\n"
    "  4. More modules, in any combination. The MLP holds the widest activations of a layer.\n"
    "         --recompute-granularity selective --recompute-modules core_attn layernorm mlp\n"
    "\n"
    "     Or operation by operation: keep matrix products, attention and communication, make the rest "
    "again.\n"
    "         --recompute-granularity op --recompute-save-ops gemm,attention,communication\n"
    "\n"
    "  5. Whole layers, each on its own: only the inputs of layers are kept.\n"
    "         --recompute-granularity full --recompute-method uniform --recompute-num-layers 1\n"
    "\n"
    "  6. Groups of N layers: one input kept per group, but N layers alive at once in backward. The\n"
    "     least memory is where the two balance; --dry-run shows it.\n"
    "         --recompute-granularity full --recompute-method uniform --recompute-num-layers 4\n"
    "\n"
    "     Or groups of the rounded square root of the layers of a model chunk, which is near that balance:\n"
    "         --recompute-granularity full --recompute-method sqrt\n"
    "\n"
    "  7. Only as much as needed: the first N layers are recomputed, the others kept. Raise N until it\n"
    "     fits.\n"
    "         --recompute-granularity full --recompute-method block --recompute-num-layers 8\n"
    "\n"
    "Over many ranks the same settings hold on every rank, and these are added:\n"
    "\n"
    "  8. A pipeline. With the 1f1b schedule stage 0 of P keeps P micro-batches, the last stage one, so the\n"
    "     first stages need recompute most. One N per stage, 0 for none:\n"
    "         --pipeline-model-parallel-size 4 \\\n"
    "         --recompute-granularity full --recompute-method block --recompute-num-layers-per-stage "
    "8,6,3,0\n"
    "\n"
    "  9. Virtual stages. N counts in every model chunk, as in Megatron-LM: 32 layers on 4 stages with 2\n"
    "     chunks are 4 layers per chunk, and N = 3 recomputes 6 of the 8 layers of each stage.\n"
    "         --pipeline-model-parallel-size 4 --num-virtual-stages-per-pipeline-rank 2 \\\n"
    "         --recompute-granularity full --recompute-method block --recompute-num-layers 3\n"
    "\n"
    " 10. Exactly these layers, counted from 0 over the whole model, each by itself:\n"
    "         --recompute-granularity full --recompute-layer-ids 0 1 2 3 8 9 10 11\n"
    "\n"
    " 11. Tensor parallelism. --sequence-parallel splits what is kept over the tensor-parallel ranks, with\n"
    "     every setting above. Without it the inputs that full recompute keeps can be split alone:\n"
    "         --tensor-model-parallel-size 4 --distribute-saved-activations \\\n"
    "         --recompute-granularity full --recompute-method uniform --recompute-num-layers 1\n"
    "\n"
    " 12. Let the program choose, for each stage and layer, what is fastest within a budget. Rates come "
    "from\n"
    "     --hardware; --measure-hardware FILE measures those of this machine. Write the choice, replay it:\n"
    "         --recompute-granularity auto --recompute-memory-budget 70GiB --hardware h100 \\\n"
    "         --recompute-plan-out plan.yaml\n"
    "         --recompute-plan plan.yaml\n"
    "\n"
    "--recompute-trace prints, op by op, what is saved and what is recomputed; docs/recompute.md has the\n"
    "details.\n";

void config_help_recompute(FILE *out) {
    fputs(recompute_examples, out);
}

/* ---- docs/flags.md ---- */

/* '|' ends a cell of a table, '<' starts HTML. */
static void print_cell(FILE *out, const char *text) {
    for (; *text; text++) {
        if (*text == '|' || *text == '<') fputc('\\', out);
        fputc(*text, out);
    }
}

static void print_allowed(FILE *out, const struct flag_row *row) {
    struct str allowed = {0};
    if (flag_takes_value(row)) {
        flag_describe_values(row, &allowed);
        print_cell(out, allowed.data);
    } else {
        fprintf(out, "switch");
    }
    str_free(&allowed);
}

static void print_row(FILE *out, const struct flag_row *row) {
    fprintf(out, "| ");
    for (const char *n = row->names; *n; n += strlen(n) + 1)
        fprintf(out, "%s`%s`", n == row->names ? "" : ", ", n);
    fprintf(out, " | `%s` | ", row->field);
    print_allowed(out, row);
    fprintf(out, " | %s | ", row->default_text);
    print_cell(out, row->help);
    fprintf(out, " |\n");
}

static void print_refused_words(FILE *out) {
    fprintf(out, "\n## Values of Megatron-LM that are refused\n\n| flag | value | why, and what to do "
                 "|\n|---|---|---|\n");
    for (int flag = 0; flag < CONFIG_FLAG_COUNT; flag++) {
        const struct flag_row *row = &flag_rows[flag];
        if (row->kind != FLAG_CHOICE) continue;
        for (const struct flag_choice *c = row->choices; c->word; c++) {
            if (c->why_not) fprintf(out, "| `%s` | `%s` | %s |\n", row->names, c->word, c->why_not);
        }
    }
}

static const char markdown_head[] =
    "# Flags\n"
    "\n"
    "Generated by `scripts/make_flags_doc.sh` from `core/config/flags.def`; a test compares the two.\n"
    "\n"
    "Names, types, defaults and checks are Megatron-LM's where it has the flag. `--flag value` and\n"
    "`--flag=value` both work, the last one wins, a multi-valued flag takes words until the next flag, and\n"
    "there are no abbreviations. `None` unsets a flag whose default is None. `--yaml-cfg FILE` reads the\n"
    "same names (field or flag, in sections or not); the command line wins over YAML, YAML over the\n"
    "checkpoint (`--use-checkpoint-args`). The file may also hold NeMo AutoModel's\n"
    "`activation_checkpointing`: `true` and `full` are `--recompute-granularity full --recompute-method\n"
    "uniform --recompute-num-layers 1`, and `selective` is `--recompute-granularity op`. The default column "
    "is the field's: a switch that is on by\n"
    "default is given to turn the field off.\n"
    "\n"
    "No flag is silently changed or ignored: a combination runs as asked, or exits 2 with a message that\n"
    "names the flags and the remedy, or is accepted with a line that says what it means here.\n"
    "\n"
    "## Where this program differs from Megatron-LM on purpose\n"
    "\n"
    "* `--recompute-activations` with `--recompute-granularity full` is refused; Megatron-LM drops full.\n"
    "* `--recompute-num-layers` must be from 1 to `--num-layers`; Megatron-LM hangs on 0 with uniform.\n"
    "* `--recompute-modules` is checked whatever the granularity, and `layernorm` works on dense models.\n"
    "* `--sequence-parallel` with one tensor-parallel rank is taken with a line, as is any parallel flag "
    "with\n"
    "  nothing to act on; Megatron-LM switches some of them off with a warning and others silently.\n"
    "* `--grad-reduce-in-bf16` is taken with a line: gradients are reduced in fp32.\n"
    "* `--use-megatron-fsdp` takes `--ckpt-format torch_dist` or `fsdp_dtensor`, which mean the same here.\n"
    "* Whole-number lists take commas as well as blanks: `--recompute-num-layers-per-stage 8,6,3,0`.\n"
    "* `--world-size` is for plans; a run has the ranks that its launcher started, and another number given\n"
    "  is refused.\n"
    "* `--recompute-method`, `--recompute-num-layers` and `--recompute-modules` without the granularity\n"
    "  that they belong to are refused, as is any flag that would have no effect: `--num-query-groups`\n"
    "  without `--group-query-attention`, `--rotary-base` without rotary positions, `--save-interval`\n"
    "  without `--save` and so on.\n"
    "* `--rampup-batch-size` works, with `--train-iters` too; Megatron-LM parses and ignores it.\n"
    "* `--yaml-cfg` adds to the command line, which wins; Megatron-LM drops the command line.\n"
    "* `--use-checkpoint-args` fills in what is not given; Megatron-LM overwrites what is given.\n"
    "* Without a data source the run is refused; Megatron-LM falls back to made-up data silently.\n"
    "* Without `--eval-interval` there is no evaluation while training; Megatron-LM fails.\n"
    "* `--rerun-mode` is `disabled`: two runs are bit-equal, so nothing is run twice to check.\n"
    "* Dropout is on by default (0.1), as in Megatron-LM, and a line says so.\n"
    "* GELU follows Megatron-LM: the tanh form when bias and GELU are fused (the default with biases),\n"
    "  else the erf form.\n";

void config_write_flags_markdown(FILE *out) {
    fputs(markdown_head, out);
    for (int g = 0; g < flag_group_count; g++) {
        int end = g + 1 < flag_group_count ? flag_groups[g + 1].first : CONFIG_FLAG_COUNT;
        fprintf(out, "\n## %s\n\n| flag | field | takes | default | %s |\n|---|---|---|---|---|\n",
                flag_groups[g].title, flag_rows[flag_groups[g].first].same ? "meaning here" : "meaning");
        for (int flag = flag_groups[g].first; flag < end; flag++) print_row(out, &flag_rows[flag]);
    }
    print_refused_words(out);
    config_write_missing_markdown(out);
}

bool config_answer(FILE *out, const struct config *cfg) {
    if (cfg->help) config_help(out);
    if (cfg->help_recompute) config_help_recompute(out);
    if (cfg->help_markdown) config_write_flags_markdown(out);
    return cfg->help || cfg->help_recompute || cfg->help_markdown;
}
