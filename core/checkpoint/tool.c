#include "core/checkpoint/tool.h"
#include "core/checkpoint/hf.h"
#include "core/checkpoint/manifest.h"
#include "core/checkpoint/record.h"
#include "core/checkpoint/store.h"
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char help[] =
    "usage: checkpoint_tool COMMAND ...\n"
    "  list DIR                         the checkpoints of DIR, and which one a run would take\n"
    "  show DIR [--iteration N]         state, model, files of one (the latest unless N is given)\n"
    "  verify DIR [--iteration N]       read one against its checksums\n"
    "  export-hf DIR OUT [--iteration N] [--dtype bf16|fp16|fp32]\n"
    "                                   write a Hugging Face folder: config.json, model.safetensors\n"
    "  import-hf FOLDER DIR             make a checkpoint of a Hugging Face folder's weights\n"
    "exit status: 0 done, 1 failed or damaged, 2 wrong command line\n";

struct request {
    const char *command, *paths[2];
    int num_paths;
    int64_t iteration;
    enum safetensors_dtype dtype;
    bool has_iteration, has_dtype;
};

/* ---- the command line ---- */

static int parse_dtype(const char *text, enum safetensors_dtype *dtype_p, struct err *err) {
    static const struct {
        const char *name;
        enum safetensors_dtype dtype;
    } dtypes[] = {{"bf16", SAFETENSORS_BF16}, {"fp16", SAFETENSORS_F16}, {"fp32", SAFETENSORS_F32}};
    for (size_t i = 0; i < ARRAY_COUNT(dtypes); i++)
        if (!strcmp(text, dtypes[i].name)) {
            *dtype_p = dtypes[i].dtype;
            return 0;
        }
    return err_set(err, "--dtype %s: must be bf16, fp16 or fp32", text);
}

static int parse_iteration(const char *text, int64_t *iteration_p, struct err *err) {
    size_t n = strspn(text, "0123456789");
    *iteration_p = strtoll(text, NULL, 10);
    if (n && n <= 12 && !text[n] && *iteration_p > 0) return 0;
    return err_set(err, "--iteration %s: must be a whole number above 0", text);
}

static int parse(int argc, char **argv, struct request *r, struct err *err) {
    *r = (struct request){.command = argv[0], .dtype = SAFETENSORS_BF16};
    for (int i = 1; i < argc; i++) {
        bool is_iteration = !strcmp(argv[i], "--iteration"), is_dtype = !strcmp(argv[i], "--dtype");
        if ((is_iteration || is_dtype) && i + 1 == argc) return err_set(err, "%s: needs a value", argv[i]);
        if (is_iteration) {
            if (parse_iteration(argv[++i], &r->iteration, err)) return -1;
            r->has_iteration = true;
        } else if (is_dtype) {
            if (parse_dtype(argv[++i], &r->dtype, err)) return -1;
            r->has_dtype = true;
        } else if (argv[i][0] == '-' && argv[i][1]) {
            return err_set(err, "%s: no such option; 'checkpoint_tool --help' lists them", argv[i]);
        } else if (r->num_paths == 2) {
            return err_set(err, "%s: one argument too many", argv[i]);
        } else {
            r->paths[r->num_paths++] = argv[i];
        }
    }
    return 0;
}

/* ---- commands ---- */

static uint64_t dir_bytes(const char *path) {
    uint64_t bytes = 0;
    struct stat st;
    DIR *d = opendir(path);
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d));)
        if (!fstatat(dirfd(d), e->d_name, &st, 0) && S_ISREG(st.st_mode)) bytes += (uint64_t)st.st_size;
    closedir(d);
    return bytes;
}

static void list_place(FILE *out, const char *dir, const struct checkpoint_place *place, bool taken) {
    struct str path = {0};
    struct err fault;
    char size[32];
    str_printf(&path, "%s/%s", dir, place->name);
    struct checkpoint_manifest *m = checkpoint_manifest_open(path.data, &fault);
    fprintf(out, "%c %-24s %12s  ", taken ? '*' : ' ', place->name,
            str_format_bytes(size, sizeof(size), (double)dir_bytes(path.data)));
    if (m)
        fprintf(out, "%s%s\n", checkpoint_family_name(m->family), m->has_optimizer ? "" : ", weights only");
    else
        fprintf(out, "damaged: %s\n", fault.text);
    checkpoint_manifest_close(m);
    str_free(&path);
}

static int run_list(const struct request *r, FILE *out, struct err *err) {
    struct checkpoint_list list;
    struct checkpoint_info info = {.found = false};
    struct err fault;
    const char *taken = NULL;
    if (checkpoint_list_open(r->paths[0], &list, err)) return STATUS_USAGE;
    if (!list.count) {
        checkpoint_list_free(&list);
        err_set(err, "%s: there is no checkpoint", r->paths[0]);
        return STATUS_USAGE;
    }
    if (!checkpoint_find(r->paths[0], 0, &info, &fault)) taken = strrchr(info.path, '/') + 1;
    for (int i = 0; i < list.count; i++)
        list_place(out, r->paths[0], &list.places[i], taken && !strcmp(taken, list.places[i].name));
    if (list.tracker_fault[0]) fprintf(out, "%s\n", list.tracker_fault);
    fprintf(out, "* is what a run would take; contents are checked by 'verify'\n");
    checkpoint_list_free(&list);
    checkpoint_info_free(&info);
    return STATUS_OK;
}

static int run_show(const struct request *r, FILE *out, struct err *err) {
    struct checkpoint_info info;
    struct str text = {0};
    char size[32];
    if (checkpoint_find(r->paths[0], r->iteration, &info, err)) return STATUS_FAILED;
    if (!info.found) {
        err_set(err, "%s: there is no checkpoint", r->paths[0]);
        return STATUS_USAGE;
    }
    struct checkpoint_manifest *m = checkpoint_manifest_open(info.path, err);
    if (m) {
        fprintf(out, "%s\nnames: %s\n", info.path, checkpoint_family_name(m->family));
        checkpoint_describe_state(&text, &m->state);
        fprintf(out, "state:\n%s", text.data);
        str_clear(&text);
        checkpoint_describe_model(&text, &m->model);
        fprintf(out, "model:\n%sfiles:\n", text.data);
        for (int i = 0; i < m->num_files; i++)
            fprintf(out, "  %-40s %s\n", m->files[i].name,
                    str_format_bytes(size, sizeof(size), (double)m->files[i].bytes));
        fprintf(out, "tensors: %zu\n", m->tensors->count);
    }
    int status = m ? STATUS_OK : STATUS_FAILED;
    checkpoint_manifest_close(m);
    checkpoint_info_free(&info);
    str_free(&text);
    return status;
}

static int run_verify(const struct request *r, FILE *out, struct err *err) {
    if (checkpoint_verify(r->paths[0], r->iteration, err)) return STATUS_FAILED;
    fprintf(out, "%s: every byte agrees with its checksum\n", r->paths[0]);
    return STATUS_OK;
}

static int run_export(const struct request *r, FILE *out, struct err *err) {
    uint64_t bytes;
    char size[32];
    if (checkpoint_export_hf(r->paths[0], r->iteration, r->paths[1], r->dtype, &bytes, err))
        return STATUS_FAILED;
    fprintf(out, "%s: config.json and %s of weights as %s\n", r->paths[1],
            str_format_bytes(size, sizeof(size), (double)bytes), safetensors_dtype_name(r->dtype));
    return STATUS_OK;
}

static int run_import(const struct request *r, FILE *out, struct err *err) {
    struct checkpoint_model model;
    if (checkpoint_import_hf(r->paths[0], r->paths[1], &model, err)) return STATUS_FAILED;
    fprintf(out,
            "%s/release: %s of %lld layers, hidden size %lld, %lld tokens; train on with --load %s "
            "--use-checkpoint-args\n",
            r->paths[1], checkpoint_family_name(checkpoint_family(&model, NULL)), (long long)model.num_layers,
            (long long)model.hidden_size, (long long)model.vocab_size, r->paths[1]);
    return STATUS_OK;
}

int checkpoint_tool_run(int argc, char **argv, FILE *out, struct err *err) {
    static const struct {
        const char *name;
        int num_paths;
        bool iteration, dtype;
        int (*run)(const struct request *, FILE *, struct err *);
    } commands[] = {
        {"list", 1, false, false, run_list},        {"show", 1, true, false, run_show},
        {"verify", 1, true, false, run_verify},     {"export-hf", 2, true, true, run_export},
        {"import-hf", 2, false, false, run_import},
    };
    struct request r;
    if (argc > 0 && (!strcmp(argv[0], "--help") || !strcmp(argv[0], "-h") || !strcmp(argv[0], "help"))) {
        fputs(help, out);
        return STATUS_OK;
    }
    size_t i = 0;
    while (argc > 0 && i < ARRAY_COUNT(commands) && strcmp(argv[0], commands[i].name)) i++;
    if (argc <= 0 || i == ARRAY_COUNT(commands)) {
        err_set(err,
                "%s: give one of list, show, verify, export-hf, import-hf; 'checkpoint_tool --help' explains",
                argc > 0 ? argv[0] : "no command");
        return STATUS_USAGE;
    }
    if (parse(argc, argv, &r, err)) return STATUS_USAGE;
    if (r.num_paths != commands[i].num_paths || (r.has_iteration && !commands[i].iteration) ||
        (r.has_dtype && !commands[i].dtype)) {
        err_set(err, "%s: takes %d director%s%s%s", r.command, commands[i].num_paths,
                commands[i].num_paths > 1 ? "ies" : "y", commands[i].iteration ? " and --iteration N" : "",
                commands[i].dtype ? ", --dtype bf16|fp16|fp32" : "");
        return STATUS_USAGE;
    }
    return commands[i].run(&r, out, err);
}
