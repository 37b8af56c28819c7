/* The sweep's frontier and picture, from made-up rows. */
#include "core/train/sweep.h"
#include "tests/test.h"

static uint32_t dice_state = 1;
static uint32_t dice(uint32_t sides) {
    dice_state = dice_state * 1664525u + 1013904223u;
    return (dice_state >> 8) % sides;
}

/* By its words: a row is on the frontier unless another one takes no more memory and is no slower, and is not
 * the same (of equal ones the first). */
static bool belongs(const struct sweep_row *rows, int count, int i) {
    if (!rows[i].fits || rows[i].tokens_per_second <= 0) return false;
    for (int k = 0; k < count; k++) {
        if (!rows[k].fits || rows[k].tokens_per_second <= 0) continue;
        bool equal = rows[k].peak == rows[i].peak && rows[k].tokens_per_second == rows[i].tokens_per_second;
        if (equal && k < i) return false;
        if (!equal && rows[k].peak <= rows[i].peak && rows[k].tokens_per_second >= rows[i].tokens_per_second)
            return false;
    }
    return true;
}

TEST(the_frontier_is_what_no_other_setting_beats) {
    for (int round = 0; round < 300; round++) {
        struct sweep_row rows[SWEEP_MAX_ROWS] = {0};
        int count = 1 + (int)dice(SWEEP_MAX_ROWS);
        for (int i = 0; i < count; i++)
            rows[i] =
                (struct sweep_row){.fits = dice(5) != 0, .peak = 1 + dice(8), .tokens_per_second = dice(8)};
        sweep_mark_frontier(rows, count);
        for (int i = 0; i < count; i++)
            EXPECT(rows[i].is_frontier == belongs(rows, count, i), "round %d, row %d of %d", round, i, count);
    }
}

static int occurrences(const char *text, const char *part) {
    int n = 0;
    for (const char *at = text; (at = strstr(at, part)) != NULL; at += strlen(part)) n++;
    return n;
}

TEST(the_picture_has_a_point_for_each_setting_with_a_time) {
    struct sweep_row rows[4] = {
        {.name = "none", .fits = true, .peak = (size_t)4 << 20, .tokens_per_second = 100},
        {.name = "a <b> & c", .fits = true, .peak = (size_t)2 << 20, .tokens_per_second = 50},
        {.name = "slow", .fits = true, .peak = (size_t)3 << 20, .tokens_per_second = 40},
        {.name = "large", .fits = false, .peak = (size_t)9 << 20}};
    struct str svg = {0};
    sweep_mark_frontier(rows, 4);
    sweep_write_svg(rows, 4, "A title", &svg);
    EXPECT_EQ(occurrences(svg.data, "<circle"), 3);
    EXPECT_EQ(occurrences(svg.data, "a &lt;b> &amp; c"), 2); /* in the legend and under the pointer */
    EXPECT_EQ(occurrences(svg.data, "<b>"), 0);
    EXPECT_EQ(occurrences(svg.data, " L"), 1); /* the frontier has two points */
    EXPECT_CONTAINS(svg.data, "A title");
    EXPECT_CONTAINS(svg.data, "</svg>");
    str_free(&svg);
    rows[0].fits = rows[1].fits = rows[2].fits = false;
    sweep_write_svg(rows, 4, "Nothing", &svg);
    EXPECT_CONTAINS(svg.data, "nothing fits");
    str_free(&svg);
}

RUN_TESTS(CASE(the_frontier_is_what_no_other_setting_beats),
          CASE(the_picture_has_a_point_for_each_setting_with_a_time))
