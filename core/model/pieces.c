/* Which tokens of the sequence a rank holds. */
#include "core/model/model.h"

int model_pieces(const struct model *m, bool whole, struct model_piece pieces[MODEL_MAX_PIECES]) {
    int64_t cp = model_cp(m), chunk = m->seq / (cp > 1 ? 2 * cp : 1);
    int64_t rows = whole ? model_seq(m) : model_rows(m), begin = whole ? 0 : rows * m->tp_rank;
    if (!whole && !model_splits_sequence(m)) begin = 0;
    int count = 0;
    for (int half = 0; half < (cp > 1 ? 2 : 1); half++) {
        int64_t global = half ? 2 * cp - 1 - m->cp_rank : m->cp_rank; /* number of the chunk */
        int64_t first = half * chunk, last = first + chunk;           /* its rows among the rank's */
        if (first < begin) first = begin;
        if (last > begin + rows) last = begin + rows;
        if (first >= last) continue;
        pieces[count++] =
            (struct model_piece){first - begin, global * chunk + first - half * chunk, last - first};
    }
    return count;
}
