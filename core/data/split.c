#include "core/data/split.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char digits[] = "0123456789.";

int split_parse(const char *text, struct split_range ranges[DATA_SPLITS], struct err *err) {
    double share[DATA_SPLITS] = {0};
    int count = 0;
    for (const char *p = text + strcspn(text, digits); *p; p += strcspn(p, digits)) {
        char *end;
        size_t run = strspn(p, digits);
        double value = strtod(p, &end);
        if (end < p + run || (size_t)(end - p) > run) /* "1.2.3", or strtod saw an exponent */
            return err_set(err, "--split '%s': '%.*s' is not a number; give three such as 969,30,1", text,
                           (int)run, p);
        if (count == DATA_SPLITS)
            return err_set(err, "--split '%s': more than three numbers; they are train, valid and test",
                           text);
        share[count++] = value;
        p += run;
    }
    double sum = 0, at = 0;
    for (int i = 0; i < DATA_SPLITS; i++) sum += share[i];
    if (!(sum > 0)) return err_set(err, "--split '%s': one of the numbers must be above 0", text);
    for (int i = 0; i < DATA_SPLITS; i++) {
        double next = at + share[i] / sum;
        ranges[i] = (struct split_range){at, next};
        at = next;
    }
    return 0;
}

void split_cut(struct split_range range, int64_t sequences, int64_t *first_p, int64_t *end_p) {
    *first_p = (int64_t)nearbyint(range.begin * (double)sequences);
    *end_p = (int64_t)nearbyint(range.end * (double)sequences);
    if (*end_p > sequences) *end_p = sequences; /* the last book-end may be one rounding above 1 */
}
