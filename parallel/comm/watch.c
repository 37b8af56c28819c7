#include "parallel/comm/watch.h"
#include <string.h>

static bool is_message(const struct watch_call *call) {
    return call->kind == COMM_KIND_SEND || call->kind == COMM_KIND_RECEIVE;
}

static void print_ranks(struct str *out, const int *ranks, int count, int room) {
    for (int i = 0; i < count && i < room; i++) str_printf(out, "%s%d", i ? " " : "", ranks[i]);
    if (count > room) str_puts(out, " ...");
}

void watch_print_call(struct str *out, const struct watch_call *call) {
    static const char *const dtypes[COMM_DTYPE_COUNT] = {"fp32",  "bf16",  "fp16", "fp64",
                                                         "int32", "int64", "bytes"};
    static const char *const reduces[] = {"sum", "max", "min"};
    str_puts(out, comm_kind_name(call->kind));
    if (!is_message(call)) str_printf(out, " #%llu", (unsigned long long)call->sequence);
    str_printf(out, " of group %s [", call->group);
    print_ranks(out, call->members, call->size, WATCH_MEMBERS);
    str_puts(out, "]");
    if (is_message(call))
        str_printf(out, ", %lld bytes %s rank %d, tag %d", (long long)call->count,
                   call->kind == COMM_KIND_SEND ? "to" : "from", call->peer, call->tag);
    else if (call->kind != COMM_KIND_BARRIER)
        str_printf(out, ", %lld %s", (long long)call->count, dtypes[call->dtype]);
    if (call->kind == COMM_KIND_ALL_REDUCE) str_printf(out, " %s", reduces[call->reduce]);
}

static void print_who(struct str *out, const struct watch_report *r) {
    str_printf(out, "rank %d (%s, pid %d)", r->rank, r->host, r->pid);
}

void watch_print_wait(struct str *out, const struct watch_report *r) {
    print_who(out, r);
    str_printf(out, " waited %.0f s in ", r->seconds);
    watch_print_call(out, &r->call);
    if (!r->call.num_missing) return;
    str_puts(out, r->call.num_missing > 1 ? " for ranks " : " for rank ");
    print_ranks(out, r->call.missing, r->call.num_missing, WATCH_MISSING);
}

/* Members of one group that wait in calls which cannot meet. */
static bool calls_disagree(const struct watch_call *a, const struct watch_call *b) {
    if (a->group_id != b->group_id || is_message(a) || is_message(b)) return false;
    bool one = a->kind == b->kind && a->sequence == b->sequence && a->count == b->count &&
               a->dtype == b->dtype && (a->kind != COMM_KIND_ALL_REDUCE || a->reduce == b->reduce);
    return !one;
}

/* True when this rank and another member of its group wait in calls that cannot meet, unless most members
 * wait in the same call as this one: then the others are the odd ones. */
static bool disagrees(const struct watch_report *reports, int size, const struct watch_report *r) {
    int same = 0, different = 0;
    for (int i = 0; i < size; i++) {
        const struct watch_report *other = &reports[i];
        if (!other->answered || !other->waiting || other->call.group_id != r->call.group_id) continue;
        if (calls_disagree(&r->call, &other->call))
            different++;
        else
            same++;
    }
    return different && same <= different;
}

enum standing { SIMPLY_WAITS, SILENT, BUSY, DISAGREES };

static enum standing standing_of(const struct watch_report *reports, int size, const struct watch_report *r) {
    if (!r->answered) return SILENT;
    if (!r->waiting) return BUSY;
    return disagrees(reports, size, r) ? DISAGREES : SIMPLY_WAITS;
}

static void print_line(struct str *out, const struct watch_report *r, enum standing standing) {
    str_puts(out, "  ");
    if (standing == SILENT) {
        print_who(out, r);
        str_puts(out, " does not answer: it is stopped, dead or out of reach\n");
        return;
    }
    if (standing == BUSY) {
        print_who(out, r);
        str_puts(out, " is not waiting");
        if (r->call.size) {
            str_printf(out, ", its last call ended %.0f s ago (", r->seconds);
            watch_print_call(out, &r->call);
            str_puts(out, ")");
        }
    } else {
        watch_print_wait(out, r);
        if (standing == DISAGREES) str_puts(out, ", but other members are in another call of this group");
    }
    if (r->note[0]) str_printf(out, ": %s", r->note);
    str_puts(out, "\n");
}

void watch_print_table(struct str *out, const struct watch_report *reports, int size, int asker) {
    int answered = 0, causes = 0, waiting = 0, shown = 0;
    for (int i = 0; i < size; i++) {
        answered += reports[i].answered;
        causes += standing_of(reports, size, &reports[i]) != SIMPLY_WAITS;
    }
    str_printf(out, "who waits for whom, asked by rank %d; %d of %d ranks answered\n", asker, answered, size);
    /* without a cause the ranks wait in a circle: then every line matters */
    for (int i = 0; i < size && shown < 64; i++) {
        enum standing standing = standing_of(reports, size, &reports[i]);
        waiting += standing == SIMPLY_WAITS;
        if (standing == SIMPLY_WAITS && causes) continue;
        print_line(out, &reports[i], standing);
        shown++;
    }
    if (!causes || !waiting) return;
    str_printf(out, "  %d %s:", waiting, waiting == 1 ? "rank waits for others" : "ranks wait for others");
    for (int i = 0, n = 0; i < size && n < 256; i++)
        if (standing_of(reports, size, &reports[i]) == SIMPLY_WAITS) str_printf(out, " %d", i), n++;
    str_puts(out, "\n");
}
