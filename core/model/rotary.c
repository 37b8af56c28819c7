/* Rotary tables. frequency_i = base^(-2i / rotary_dim); angle = position / interpolation * frequency_i.
 * Llama-3 scaling (Meta's published rule): with wavelength w = 2 pi / frequency, original context 8192, low
 * and high frequency factors 1 and 4: w < 8192 / 4 is kept, w > 8192 is divided by the factor, between them
 * linear in 8192 / w.
 *
 * YaRN (Peng et al. 2023, as in DeepSeek-V2 and Megatron-LM) stretches an original context of L = 4096 by a
 * factor: pair i, which turns r times over L at i(r) = dim ln(L / (2 pi r)) / (2 ln base), keeps its
 * frequency up to i(32) rounded down, has it divided by the factor from i(1) rounded up, and is blended
 * linearly between. With mscale(m) = 0.1 m ln(factor) + 1 the tables are multiplied by mscale(mscale) /
 * mscale(mscale_all_dim), and the scores by mscale(mscale_all_dim)^2. */
#include "core/model/model.h"
#include <math.h>

static double scaled_frequency(double frequency, double factor) {
    const double original = 8192, low = 1, high = 4;
    double wavelength = 2 * 3.14159265358979323846 / frequency;
    if (factor <= 0 || wavelength < original / high) return frequency;
    if (wavelength > original / low) return frequency / factor;
    double smooth = (original / wavelength - low) / (high - low);
    return (1 - smooth) * frequency / factor + smooth * frequency;
}

enum { YARN_ORIGINAL_POSITIONS = 4096, YARN_BETA_FAST = 32, YARN_BETA_SLOW = 1 };

/* The pair that turns `turns` times over the original context; not a whole number. */
static double yarn_pair(const struct model *m, double turns) {
    double length = YARN_ORIGINAL_POSITIONS / (turns * 2 * 3.14159265358979323846);
    return (double)m->rotary_dim * log(length) / (2 * log(m->rotary_base));
}

static double yarn_frequency(const struct model *m, double frequency, int64_t i) {
    double first = fmax(floor(yarn_pair(m, YARN_BETA_FAST)), 0);
    double last = fmin(ceil(yarn_pair(m, YARN_BETA_SLOW)), (double)(m->rotary_dim - 1));
    if (first == last) last += 0.001;
    double stretched = fmin(fmax(((double)i - first) / (last - first), 0), 1);
    return frequency / m->yarn_factor * stretched + frequency * (1 - stretched);
}

static double yarn_mscale(double factor, double mscale) {
    return factor > 1 ? 0.1 * mscale * log(factor) + 1 : 1;
}

double model_softmax_scale(const struct model *m) {
    double mscale = yarn_mscale(m->yarn_factor, m->yarn_mscale_all_dim);
    return mscale * mscale / sqrt((double)m->head_dim);
}

void model_fill_rotary(const struct model *m, float *cos_table, float *sin_table) {
    int64_t half = m->rotary_dim / 2;
    double concentration =
        yarn_mscale(m->yarn_factor, m->yarn_mscale) / yarn_mscale(m->yarn_factor, m->yarn_mscale_all_dim);
    struct model_piece pieces[MODEL_MAX_PIECES];
    int num_pieces = model_pieces(m, true, pieces);
    for (int64_t i = 0; i < half; i++) {
        double frequency = pow(m->rotary_base, -2.0 * (double)i / (double)m->rotary_dim);
        frequency = m->yarn_factor > 0 ? yarn_frequency(m, frequency, i)
                                       : scaled_frequency(frequency, m->rope_scaling_factor);
        for (int k = 0; k < num_pieces; k++)
            for (int64_t row = 0; row < pieces[k].count; row++) {
                double position = (double)(pieces[k].global_first + row);
                double angle = position / m->rotary_interpolation * frequency;
                cos_table[(pieces[k].first + row) * half + i] = (float)(concentration * cos(angle));
                sin_table[(pieces[k].first + row) * half + i] = (float)(concentration * sin(angle));
            }
    }
}
