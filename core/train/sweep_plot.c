/* The picture of a sweep: tokens/s over peak memory, one point per setting, the frontier as a line. */
#include "core/train/sweep.h"
#include <math.h>

enum { WIDTH = 900, HEIGHT = 560, LEFT = 90, RIGHT = 250, TOP = 60, BOTTOM = 70 };

struct axis {
    double low, high, step;
};

/* Round ends and steps of 1, 2 or 5 times a power of ten. */
static struct axis axis_over(double low, double high) {
    double span = high > low ? high - low : high > 0 ? 0.1 * high : 1;
    double raw = span / 5, power = pow(10, floor(log10(raw))), part = raw / power;
    double step = power * (part <= 1 ? 1 : part <= 2 ? 2 : part <= 5 ? 5 : 10);
    return (struct axis){floor((low - 0.05 * span) / step) * step, ceil((high + 0.05 * span) / step) * step,
                         step};
}

static double at_x(const struct axis *a, double value) {
    return LEFT + (value - a->low) / (a->high - a->low) * (WIDTH - LEFT - RIGHT);
}

static double at_y(const struct axis *a, double value) {
    return HEIGHT - BOTTOM - (value - a->low) / (a->high - a->low) * (HEIGHT - TOP - BOTTOM);
}

static bool is_drawn(const struct sweep_row *r) {
    return r->fits && r->tokens_per_second > 0;
}

/* Memory is drawn in MiB where all of it is less than 10 GiB. */
static double unit_of(const struct sweep_row *rows, int count) {
    for (int i = 0; i < count; i++)
        if (rows[i].peak >= (size_t)10 << 30) return 0x1p30;
    return 0x1p20;
}

static void format_number(char *out, size_t capacity, double value) {
    snprintf(out, capacity, fabs(value) >= 1000 ? "%.0f" : "%.4g", value);
}

static void put_escaped(struct str *out, const char *text) {
    for (const char *c = text; *c; c++) {
        if (*c == '<')
            str_puts(out, "&lt;");
        else if (*c == '&')
            str_puts(out, "&amp;");
        else
            str_append(out, c, 1);
    }
}

static void draw_text(struct str *out, double x, double y, const char *anchor, int size, const char *text) {
    str_printf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%d\">", x, y, anchor, size);
    put_escaped(out, text);
    str_puts(out, "</text>\n");
}

static void draw_axes(struct str *out, const struct axis *x, const struct axis *y, double unit) {
    char label[32];
    int left = LEFT, right = WIDTH - RIGHT, top = TOP, bottom = HEIGHT - BOTTOM;
    for (int i = 0; x->low + i * x->step <= x->high * (1 + 1e-9); i++) {
        double value = x->low + i * x->step, at = at_x(x, value);
        str_printf(out, "<path d=\"M%.1f %d V%d\" stroke=\"#dddddd\"/>\n", at, top, bottom);
        format_number(label, sizeof(label), value);
        draw_text(out, at, bottom + 20, "middle", 12, label);
    }
    for (int i = 0; y->low + i * y->step <= y->high * (1 + 1e-9); i++) {
        double value = y->low + i * y->step, at = at_y(y, value);
        str_printf(out, "<path d=\"M%d %.1f H%d\" stroke=\"#dddddd\"/>\n", left, at, right);
        format_number(label, sizeof(label), value);
        draw_text(out, left - 8, at + 4, "end", 12, label);
    }
    draw_text(out, (left + right) / 2.0, HEIGHT - 24, "middle", 14,
              unit > 0x1p20 ? "peak memory of a rank, GiB" : "peak memory of a rank, MiB");
    draw_text(out, left, top - 12, "start", 14, "tokens/s");
}

/* From the least memory to the most; rows of the frontier rise in both. */
static void draw_frontier(struct str *out, const struct sweep_row *rows, int count, const struct axis *x,
                          const struct axis *y, double unit) {
    size_t last = 0;
    str_puts(out, "<path id=\"frontier\" fill=\"none\" stroke=\"#c2571a\" stroke-width=\"2\" d=\"");
    for (int drawn = 0;; drawn++) {
        const struct sweep_row *next = NULL;
        for (int i = 0; i < count; i++)
            if (rows[i].is_frontier && rows[i].peak > last && (!next || rows[i].peak < next->peak))
                next = &rows[i];
        if (!next) break;
        str_printf(out, "%s%.1f %.1f", drawn ? " L" : "M", at_x(x, (double)next->peak / unit),
                   at_y(y, next->tokens_per_second));
        last = next->peak;
    }
    str_puts(out, "\"/>\n");
}

static void draw_rows(struct str *out, const struct sweep_row *rows, int count, const struct axis *x,
                      const struct axis *y, double unit) {
    for (int i = 0, shown = 0; i < count; i++) {
        const struct sweep_row *r = &rows[i];
        char text[SETTING_FLAGS_BYTES + 16];
        if (!is_drawn(r)) continue;
        double cx = at_x(x, (double)r->peak / unit), cy = at_y(y, r->tokens_per_second);
        str_printf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"9\" fill=\"%s\"><title>", cx, cy,
                   r->is_frontier ? "#f0b48c" : "#c9d4df");
        put_escaped(out, r->name);
        str_printf(out, ": %.4g %s, %.4g tokens/s</title></circle>\n", (double)r->peak / unit,
                   unit > 0x1p20 ? "GiB" : "MiB", r->tokens_per_second);
        snprintf(text, sizeof(text), "%d", shown + 1);
        draw_text(out, cx, cy + 4, "middle", 11, text);
        snprintf(text, sizeof(text), "%d  %s", shown + 1, r->name);
        draw_text(out, WIDTH - RIGHT + 16, TOP + 6 + 20 * shown, "start", 12, text);
        shown++;
    }
}

void sweep_write_svg(const struct sweep_row *rows, int count, const char *title, struct str *out) {
    double unit = unit_of(rows, count), least = INFINITY, most = 0, slowest = INFINITY, fastest = 0;
    for (int i = 0; i < count; i++) {
        if (!is_drawn(&rows[i])) continue;
        least = fmin(least, (double)rows[i].peak / unit), most = fmax(most, (double)rows[i].peak / unit);
        slowest = fmin(slowest, rows[i].tokens_per_second),
        fastest = fmax(fastest, rows[i].tokens_per_second);
    }
    str_printf(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
               "font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\" fill=\"#222222\">\n"
               "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
               WIDTH, HEIGHT, WIDTH, HEIGHT);
    draw_text(out, LEFT, 28, "start", 17, title);
    if (most > 0) {
        struct axis x = axis_over(least, most), y = axis_over(slowest, fastest);
        draw_axes(out, &x, &y, unit);
        draw_frontier(out, rows, count, &x, &y, unit);
        draw_rows(out, rows, count, &x, &y, unit);
    } else {
        draw_text(out, LEFT, 90, "start", 14,
                  "no setting has a time: nothing fits, or --hardware is missing");
    }
    str_puts(out, "</svg>");
}
