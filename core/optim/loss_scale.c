#include "core/optim/loss_scale.h"
#include <math.h>

static const double largest_scale = 0x1p127;

int loss_scale_init_static(struct loss_scale *s, double scale, struct err *err) {
    if (!(scale > 0 && scale <= largest_scale))
        return err_set(err, "--loss-scale %g: must be more than 0 and at most 2^127", scale);
    *s = (struct loss_scale){.scale = scale};
    return 0;
}

int loss_scale_init_dynamic(struct loss_scale *s, double initial, double minimum, int64_t window,
                            int64_t hysteresis, struct err *err) {
    if (!(minimum > 0 && minimum <= largest_scale))
        return err_set(err, "--min-loss-scale %g: must be more than 0 and at most 2^127", minimum);
    if (!(initial >= minimum && initial <= largest_scale))
        return err_set(err, "--initial-loss-scale %g: must be between --min-loss-scale (%g) and 2^127",
                       initial, minimum);
    if (window < 1) return err_set(err, "--loss-scale-window %lld: must be at least 1", (long long)window);
    if (hysteresis < 1) return err_set(err, "--hysteresis %lld: must be at least 1", (long long)hysteresis);
    *s = (struct loss_scale){.scale = initial,
                             .dynamic = true,
                             .min_scale = minimum,
                             .growth_interval = window,
                             .hysteresis = hysteresis,
                             .hysteresis_counter = hysteresis};
    return 0;
}

bool loss_scale_update(struct loss_scale *s, bool found_inf) {
    if (!s->dynamic) return false;
    if (found_inf) {
        s->growth_counter = 0;
        if (--s->hysteresis_counter <= 0) s->scale = fmax(s->scale / 2, s->min_scale);
        return true;
    }
    if (++s->growth_counter == s->growth_interval) {
        s->growth_counter = 0;
        s->hysteresis_counter = s->hysteresis;
        s->scale = fmin(s->scale * 2, largest_scale);
    }
    return false;
}
