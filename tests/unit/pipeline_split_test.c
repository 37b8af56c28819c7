/* Oracles: Megatron-LM's closed forms for the first layer of a chunk, and layouts spelt out by hand. */
#include "parallel/pipeline_split.h"
#include "tests/test.h"

enum { MAX_PLACES = 256 };

static struct pipeline_chunk out[MAX_PLACES];
static struct err err;

/* Layers 0 .. layers - 1 once each, in virtual stage order; one embedding at the start, one head at the end.
 */
static bool covers(const struct pipeline_split_options *o) {
    int next = 0, places = o->stages * o->chunks;
    for (int i = 0; i < places; i++) {
        if (out[i].num_layers < 0 || out[i].first_layer != next) return false;
        if (out[i].embedding != (i == 0) || out[i].head != (i == places - 1)) return false;
        next += out[i].num_layers;
    }
    return next == o->layers;
}

TEST(even_splits_are_megatrons_and_cover_the_model) {
    int accepted = 0;
    for (int layers = 1; layers <= 24; layers++)
        for (int stages = 1; stages <= 8; stages++)
            for (int chunks = 1; chunks <= 4; chunks++) {
                struct pipeline_split_options o = {.layers = layers, .stages = stages, .chunks = chunks};
                bool fits = layers % (stages * chunks) == 0;
                EXPECT(pipeline_split(&o, out, &err) == (fits ? 0 : -1), "%d layers, %d stages, %d chunks",
                       layers, stages, chunks);
                if (!fits) continue;
                EXPECT(covers(&o), "%d layers, %d stages, %d chunks: not covered", layers, stages, chunks);
                for (int v = 0; v < chunks; v++)
                    for (int p = 0; p < stages; p++)
                        EXPECT_EQ(out[v * stages + p].first_layer,
                                  v * (layers / chunks) + p * (layers / stages / chunks));
                accepted++;
            }
    EXPECT(accepted > 100, "%d", accepted);
    struct pipeline_split_options o = {.layers = 8, .stages = 2, .chunks = 2};
    EXPECT_EQ(pipeline_split(&o, out, &err), 0);
    EXPECT(out[0].first_layer == 0 && out[2].first_layer == 4, "stage 0 holds 0 1 4 5");
    EXPECT(out[1].first_layer == 2 && out[3].first_layer == 6, "stage 1 holds 2 3 6 7");
}

TEST(uneven_splits_give_first_and_last_what_was_asked) {
    int accepted = 0, refused = 0;
    for (int layers = 1; layers <= 16; layers++)
        for (int stages = 1; stages <= 5; stages++)
            for (int chunks = 1; chunks <= 3; chunks++)
                for (int first = 0; first <= layers; first++)
                    for (int last = first ? 0 : 1; last <= layers; last++) {
                        struct pipeline_split_options o = {.layers = layers,
                                                           .stages = stages,
                                                           .chunks = chunks,
                                                           .first_layers = first,
                                                           .last_layers = last};
                        int middle = layers - first - last, between = stages - (first > 0) - (last > 0);
                        bool fits = between >= 0 && middle >= 0 && first % chunks == 0 && last % chunks == 0;
                        if (fits && between == 0) fits = middle == 0;
                        if (fits && between > 0) fits = middle > 0 && middle % (between * chunks) == 0;
                        EXPECT(pipeline_split(&o, out, &err) == (fits ? 0 : -1),
                               "%d layers, %d stages, %d chunks, %d first, %d last", layers, stages, chunks,
                               first, last);
                        accepted += fits, refused += !fits;
                        if (!fits) continue;
                        EXPECT(covers(&o), "%d layers, %d stages, %d chunks, %d first, %d last: not covered",
                               layers, stages, chunks, first, last);
                        for (int v = 0; v < chunks; v++) {
                            EXPECT_EQ(out[v * stages].first_layer, v * (layers / chunks));
                            if (first) EXPECT_EQ(out[v * stages].num_layers, first / chunks);
                            if (last) EXPECT_EQ(out[v * stages + stages - 1].num_layers, last / chunks);
                        }
                    }
    EXPECT(accepted > 200 && refused > 200, "%d accepted, %d refused", accepted, refused);
}

TEST(embedding_and_loss_count_as_layers_where_asked) {
    int accepted = 0;
    for (int layers = 1; layers <= 16; layers++)
        for (int stages = 1; stages <= 6; stages++)
            for (int chunks = 1; chunks <= 3; chunks++)
                for (int which = 1; which < 4; which++) {
                    struct pipeline_split_options o = {.layers = layers,
                                                       .stages = stages,
                                                       .chunks = chunks,
                                                       .account_embedding = which & 1,
                                                       .account_loss = which >> 1};
                    int all = layers + (which & 1) + (which >> 1), places = stages * chunks;
                    bool fits = all % places == 0;
                    EXPECT(pipeline_split(&o, out, &err) == (fits ? 0 : -1),
                           "%d layers, %d stages, %d chunks", layers, stages, chunks);
                    if (!fits) continue;
                    accepted++;
                    EXPECT(covers(&o), "%d layers, %d stages, %d chunks: not covered", layers, stages,
                           chunks);
                    for (int i = 0; i < places; i++)
                        EXPECT_EQ(out[i].num_layers,
                                  all / places - (i == 0 && (which & 1)) - (i == places - 1 && (which >> 1)));
                }
    EXPECT(accepted > 50, "%d", accepted);
}

static const struct {
    const char *layout;
    int layers, stages, chunks, counts[12];
} layouts[] = {
    {"EtL", 1, 1, 1, {1}},
    {"EttttL", 4, 1, 1, {4}},
    {"Et|tL", 2, 2, 1, {1, 1}},
    {"Et*3|t*2L", 5, 2, 1, {3, 2}},
    {"Et*3|(tt|)*3,t|L", 10, 3, 2, {3, 2, 2, 2, 1, 0}},
    {"E|(t|)*2|tL", 3, 5, 1, {0, 1, 1, 0, 1}},
    {"E,t,t | t , L", 3, 2, 1, {2, 1}},
    {"E(t*2|)*3L", 6, 2, 2, {2, 2, 2, 0}},
    {"E|*3t|L", 1, 5, 1, {0, 0, 0, 1, 0}},
    {"E(tt)*2|(t)*1L", 5, 2, 1, {4, 1}},
    {"E|t*12|L", 12, 1, 3, {0, 12, 0}},
};

TEST(layouts_place_layers_as_they_are_written) {
    for (size_t k = 0; k < sizeof(layouts) / sizeof(layouts[0]); k++) {
        struct pipeline_split_options o = {.layers = layouts[k].layers,
                                           .stages = layouts[k].stages,
                                           .chunks = layouts[k].chunks,
                                           .layout = layouts[k].layout};
        int places = o.stages * o.chunks;
        EXPECT_EQ(pipeline_layout_stages(o.layout, &err), places);
        EXPECT(pipeline_split(&o, out, &err) == 0, "%s: %s", o.layout, err.text);
        EXPECT(covers(&o), "%s: not covered", o.layout);
        for (int i = 0; i < places; i++)
            EXPECT(out[i].num_layers == layouts[k].counts[i], "%s: place %d has %d layers", o.layout, i,
                   out[i].num_layers);
    }
    EXPECT_EQ(pipeline_layout_stages("Et*3|(tt|)*29,m|L", &err), 32);
}

static void expect_message(const struct pipeline_split_options *o, const char *a, const char *b) {
    err.text[0] = 0;
    EXPECT(pipeline_split(o, out, &err) == -1, "accepted, expected: %s", a);
    EXPECT_CONTAINS(err.text, a);
    EXPECT_CONTAINS(err.text, b);
    EXPECT(!strchr(err.text, '\n'), "'%s' is more than one line", err.text);
}
#define REFUSES(a, b, ...) expect_message(&(struct pipeline_split_options){__VA_ARGS__, 0}, a, b)

TEST(what_does_not_fit_is_refused_by_flag_and_with_the_remedy) {
    REFUSES("--num-layers 10", "give --decoder-first-pipeline-num-layers", 10, 4, 1, 0, 0, 0, 0, 0);
    REFUSES("--num-layers 10", "--pipeline-model-parallel-size 4: change one", 10, 4, 1, 0, 0, 0, 0, 0);
    REFUSES("--num-virtual-stages-per-pipeline-rank 3", "change one of them", 8, 2, 3, 0, 0, 0, 0, 0);
    REFUSES("--num-layers 8 and the embedding as one", "change one", 8, 2, 1, 0, 0, true, false, 0);
    REFUSES("and embedding and loss as one each", "change one", 7, 2, 1, 0, 0, true, true, 0);
    REFUSES("--account-for-embedding-in-pipeline-split", "drop one kind", 8, 2, 1, 3, 0, true, false, 0);
    REFUSES("--decoder-first-pipeline-num-layers 3", "make them divide evenly", 9, 4, 1, 3, 3, 0, 0, 0);
    REFUSES("--decoder-last-pipeline-num-layers 9", "leaves -1 layers", 8, 2, 1, 0, 9, 0, 0, 0);
    REFUSES("leaves 0 layers for 1 stages", "--num-layers 8", 8, 3, 1, 4, 4, 0, 0, 0);
    REFUSES("--decoder-first-pipeline-num-layers", "drop one of them", 8, 1, 1, 4, 4, 0, 0, 0);
    REFUSES("--decoder-first-pipeline-num-layers 3", "make it a multiple", 8, 2, 2, 3, 5, 0, 0, 0);
    REFUSES("--decoder-last-pipeline-num-layers", "at least 1", 8, 2, 1, 0, -1, 0, 0, 0);
}

static const struct {
    const char *layout, *says;
} bad_layouts[] = {
    {"", "is empty"},
    {"Etx|ttL", "character 3: 'x' is unknown"},
    {"tE|ttL", "put one E first"},
    {"EtE|tL", "put one E first"},
    {"Et|tt", "put one L last"},
    {"Et|tLt", "put one L last"},
    {"Et|ttL|", "put one L last"},
    {"Et|tL", "has 2 layers (t), --num-layers is 3"},
    {"Et|tt|L", "no multiple of --pipeline-model-parallel-size 2"},
    {"Et|tt||L", "drop --num-virtual-stages-per-pipeline-rank"},
    {"Et|ttmL", "has 1 layers of multi-token prediction (m), --mtp-num-layers gives 0"},
    {"Et*|ttL", "needs a number of at least 1"},
    {"Et*0|ttL", "needs a number of at least 1"},
    {"*2Et|ttL", "character 1: '*' is out of place"},
    {"Et*2*2|ttL", "character 5: '*' is out of place"},
    {"E((t)*2|)*2", "character 3: '(' is out of place"},
    {"Et)|ttL", "character 3: ')' is out of place"},
    {"E(t|ttL", "'(' is not closed"},
    {"E(t|)ttL", "write (..)*n"},
    {"E()*3ttL", "write (..)*n"},
    {"Et*99999999999999999999|L", "lower the number"},
    {"E(t*90000)*90000L", "lower the number"},
};

TEST(multi_token_prediction_is_right_before_the_loss) {
    static const char *const good[] = {"Et|ttmmL", "Ett|tm*2L", "Ettt|(m)*2L"};
    static const char *const bad[][2] = {
        {"Et|ttmL", "has 1 layers of multi-token prediction (m), --mtp-num-layers gives 2"},
        {"Et|ttmm|L", "put every m right before the L"},
        {"Etm|ttmL", "put every m right before the L"},
        {"Et|mttmL", "put every m right before the L"}};
    struct pipeline_split_options o = {.layers = 3, .stages = 2, .chunks = 1, .mtp_layers = 2};
    for (size_t k = 0; k < sizeof(good) / sizeof(good[0]); k++) {
        o.layout = good[k];
        EXPECT(pipeline_split(&o, out, &err) == 0, "%s: %s", o.layout, err.text);
        EXPECT(covers(&o), "%s: not covered", o.layout);
    }
    for (size_t k = 0; k < sizeof(bad) / sizeof(bad[0]); k++) {
        o.layout = bad[k][0];
        o.stages = k == 1 ? 3 : 2;
        expect_message(&o, "--pipeline-model-parallel-layout", bad[k][1]);
    }
}

TEST(bad_layouts_are_refused_with_the_place) {
    for (size_t k = 0; k < sizeof(bad_layouts) / sizeof(bad_layouts[0]); k++) {
        struct pipeline_split_options o = {
            .layers = 3, .stages = 2, .chunks = 1, .layout = bad_layouts[k].layout};
        expect_message(&o, "--pipeline-model-parallel-layout", bad_layouts[k].says);
    }
    REFUSES("excludes", "--decoder-first-pipeline-num-layers", 3, 2, 1, 1, 0, 0, 0, "Et|ttL");
    EXPECT_EQ(pipeline_layout_stages("Et?", &err), -1);
    EXPECT_CONTAINS(err.text, "character 3");
}

RUN_TESTS(CASE(multi_token_prediction_is_right_before_the_loss),
          CASE(even_splits_are_megatrons_and_cover_the_model),
          CASE(uneven_splits_give_first_and_last_what_was_asked),
          CASE(embedding_and_loss_count_as_layers_where_asked),
          CASE(layouts_place_layers_as_they_are_written),
          CASE(what_does_not_fit_is_refused_by_flag_and_with_the_remedy),
          CASE(bad_layouts_are_refused_with_the_place))
