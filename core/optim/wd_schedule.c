#include "core/optim/wd_schedule.h"
#include <math.h>
#include <string.h>

#define PI 3.14159265358979323846

int wd_incr_style_parse(const char *name) {
    static const char *const names[] = {"constant", "linear", "cosine"};
    for (int i = 0; i < (int)ARRAY_COUNT(names); i++)
        if (!strcmp(names[i], name)) return i;
    return -1;
}

int wd_schedule_check(const struct wd_schedule *s, struct err *err) {
    if (!(s->start >= 0) || !isfinite(s->end) || !(s->end >= s->start))
        return err_set(
            err, "weight decay from %g to %g: 0 <= --start-weight-decay <= --end-weight-decay is needed",
            s->start, s->end);
    if (s->style == WD_CONSTANT && s->start != s->end)
        return err_set(
            err,
            "--start-weight-decay %g and --end-weight-decay %g with --weight-decay-incr-style constant: "
            "use --weight-decay, or the style linear or cosine",
            s->start, s->end);
    if (s->style != WD_CONSTANT && !(s->incr_samples > 0))
        return err_set(err,
                       "--weight-decay-incr-style linear or cosine needs --train-iters or --train-samples");
    return 0;
}

double wd_schedule_at(const struct wd_schedule *s, double n) {
    if (s->style == WD_CONSTANT || n > s->incr_samples) return s->end;
    double r = n / s->incr_samples, c = s->style == WD_LINEAR ? r : 0.5 * (cos(PI * (1 - r)) + 1);
    return s->start + c * (s->end - s->start);
}
