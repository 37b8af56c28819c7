/* The file of a recompute plan: what is written is read back, and what is wrong is refused with its line. */
#include "core/base/mem.h"
#include "recompute/planned.h"
#include "tests/test.h"

static uint32_t dice_state = 88172645u;
static uint32_t dice(uint32_t sides) {
    dice_state ^= dice_state << 13, dice_state ^= dice_state >> 17, dice_state ^= dice_state << 5;
    return dice_state % sides;
}

TEST(what_is_written_is_read_back) {
    for (int round = 0; round < 500; round++) {
        struct recompute_group groups[40], *again;
        struct str text = {0};
        struct err err;
        int count = 1 + (int)dice(40), layers = 0, read;
        for (int i = 0; i < count; i++) {
            recompute_set set = 0;
            bool whole = dice(3) == 0;
            for (int m = 0; m < MODULE_COUNT && !whole && dice(2); m++)
                if (!recompute_module_info(m)->is_internal && dice(2)) set |= RECOMPUTE_BIT(m);
            if (whole) set = RECOMPUTE_BIT(MODULE_layer);
            groups[i] = (struct recompute_group){whole ? 1 + (int)dice(4) : 1, set};
            layers += groups[i].num_layers;
        }
        recompute_planned_write(groups, count, &text);
        EXPECT(!recompute_planned_parse(text.data, "plan", layers, &again, &read, &err), "%s\n%s", err.text,
               text.data);
        EXPECT_EQ(read, count);
        for (int i = 0; i < read && read == count; i++) {
            EXPECT_EQ(again[i].num_layers, groups[i].num_layers);
            EXPECT_EQ(again[i].selected, groups[i].selected);
        }
        mem_free(again);
        str_free(&text);
    }
}

TEST(the_file_is_what_the_manual_shows) {
    static const char text[] =
        "# a comment\n---\nnum_layers: 12   # all\n\nlayers:\n  0-3: layer\n  4-6: group\n"
        "  7-10: core_attn   layernorm # two\n  11: none\n";
    struct recompute_group *g;
    struct err err;
    int count;
    EXPECT(!recompute_planned_parse(text, "plan", 12, &g, &count, &err), "%s", err.text);
    EXPECT_EQ(count, 10);
    EXPECT_EQ(g[3].selected, RECOMPUTE_BIT(MODULE_layer));
    EXPECT_EQ(g[4].num_layers, 3);
    EXPECT_EQ(g[8].selected, RECOMPUTE_BIT(MODULE_core_attn) | RECOMPUTE_BIT(MODULE_layernorm));
    EXPECT_EQ(g[9].selected, 0);
    mem_free(g);
}

TEST(what_is_wrong_is_refused_with_its_line) {
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "no recompute plan for all 4 layers"},
        {"num_layers: 4\n", "no recompute plan for all 4 layers"},
        {"num_layers: 4\nlayers:\n", "no recompute plan for all 4 layers"},
        {"num_layers: 4\nlayers:\n 0-2: layer\n", "no recompute plan for all 4 layers"},
        {"layers:\n 0-3: layer\n", "no recompute plan for all 4 layers"},
        {"num_layers: 5\nlayers:\n", "line 1: the plan is for another number of layers"},
        {"num_layers: four\n", "line 1: the plan is for another number of layers"},
        {"num_layers: 4 4\n", "line 1: the plan is for another number of layers"},
        {"layer: 3\n", "line 1: expected num_layers: or layers:"},
        {"num_layers: 4\nlayers:\n 0-2: layer\n 2-3: none\n",
         "line 4: layers 2 to 3 do not continue at layer 3 of 4"},
        {"num_layers: 4\nlayers:\n 1-3: layer\n", "line 3: layers 1 to 3 do not continue at layer 0"},
        {"num_layers: 4\nlayers:\n 0-4: layer\n", "line 3: layers 0 to 4 do not continue"},
        {"num_layers: 4\nlayers:\n 3-0: layer\n", "line 3: expected \"first-last: modules\""},
        {"num_layers: 4\nlayers:\n -1: layer\n", "line 3: expected \"first-last: modules\""},
        {"num_layers: 4\nlayers:\n 0-3 layer\n", "line 3: expected \"first-last: modules\""},
        {"num_layers: 4\nlayers:\n 0-99999999999: layer\n", "line 3: expected \"first-last: modules\""},
        {"num_layers: 4\nlayers:\n 0-3: layers\n", "line 3: 'layers' is no recompute module"},
        {"num_layers: 4\nlayers:\n 0-3: core_attn layer\n", "line 3: 'layer' is no recompute module"},
        {"num_layers: 4\nlayers:\n 0-3: tensor_gather\n", "line 3: 'tensor_gather' is no recompute module"},
        {"num_layers: 4\nlayers:\n 0-3:\n", "line 3: nothing stands behind the layers"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct recompute_group *g = NULL;
        struct err err = {0};
        int count;
        bool taken = !recompute_planned_parse(cases[i].text, "plan.yaml", 4, &g, &count, &err);
        EXPECT(!taken, "case %zu is taken", i);
        if (taken) mem_free(g);
        EXPECT_CONTAINS(err.text, cases[i].says);
        EXPECT_CONTAINS(err.text, "plan.yaml");
    }
    struct recompute_group *g;
    struct err err;
    int count;
    EXPECT(recompute_planned_read("/nowhere/plan.yaml", 4, &g, &count, &err) == -1, "a missing file");
    EXPECT_CONTAINS(err.text, "--recompute-plan /nowhere/plan.yaml");
    EXPECT(recompute_planned_read("/", 4, &g, &count, &err) == -1, "a folder");
}

RUN_TESTS(CASE(what_is_written_is_read_back), CASE(the_file_is_what_the_manual_shows),
          CASE(what_is_wrong_is_refused_with_its_line))
