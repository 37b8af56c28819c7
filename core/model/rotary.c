/* Rotary tables. frequency_i = base^(-2i / rotary_dim); angle = position / interpolation * frequency_i.
 * Llama-3 scaling (Meta's published rule): with wavelength w = 2 pi / frequency, original context 8192, low
 * and high frequency factors 1 and 4: w < 8192 / 4 is kept, w > 8192 is divided by the factor, between them
 * linear in 8192 / w. */
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

void model_fill_rotary(const struct model *m, float *cos_table, float *sin_table) {
    int64_t half = m->rotary_dim / 2;
    struct model_piece pieces[MODEL_MAX_PIECES];
    int num_pieces = model_pieces(m, true, pieces);
    for (int64_t i = 0; i < half; i++) {
        double frequency = pow(m->rotary_base, -2.0 * (double)i / (double)m->rotary_dim);
        frequency = scaled_frequency(frequency, m->rope_scaling_factor);
        for (int k = 0; k < num_pieces; k++)
            for (int64_t row = 0; row < pieces[k].count; row++) {
                double position = (double)(pieces[k].global_first + row);
                double angle = position / m->rotary_interpolation * frequency;
                cos_table[(pieces[k].first + row) * half + i] = (float)cos(angle);
                sin_table[(pieces[k].first + row) * half + i] = (float)sin(angle);
            }
    }
}
