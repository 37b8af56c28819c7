/* The scheduler of the emulation: blocks one after the other, their threads as fibers. See emulation.h. */
#include "tests/cuda_emulation/emulation.h"
#include "tests/cuda_emulation/fiber.h"
#define _Noreturn [[noreturn]]
extern "C" {
#include "core/base/check.h"
}
#include <cstdio>
#include <cstdlib>

enum {
    MOST_THREADS = 1024,
    MOST_SHARED = 163 * 1024, /* of sm_80, the smallest device that is built for */
    MOST_SHARED_STATIC = 48 * 1024,
    MOST_SHARED_ARRAYS = 16,
    MOST_COPIES = 64,
    GUARD = 64,
};

emulated_thread_view emulated_now;

namespace {

enum wait { READY, AT_BLOCK_BARRIER, AT_WARP_MEETING, FINISHED };

struct copy {
    void *dst;
    const void *src;
    size_t bytes;
    int group;
};

struct thread {
    wait state;
    fiber *on;
    emulated_place place;
    copy copies[MOST_COPIES];
    int num_copies, group; /* copies not yet done; the group being filled */
};

struct warp {
    uint32_t mask, arrived, finished;
    int first;  /* who came first to this meeting */
    int parity; /* two sets of places, so that one meeting need not wait for the readers of the last */
    unsigned char places[2][32][EMULATED_LANE_BYTES];
};

struct shared_array {
    const void *key;
    unsigned char *data;
    size_t bytes;
};

thread threads[MOST_THREADS];
warp warps[MOST_THREADS / 32];
shared_array shared[MOST_SHARED_ARRAYS + 1]; /* the first is the dynamic one */
int num_shared, num_threads, running;
const char *kernel_name;
void (*kernel_body)(void *);
void *kernel_context;
fiber *idle[MOST_THREADS];
int num_idle;

const char *describe(char *text, size_t size, int t) {
    static const char *const states[] = {"could run", "waits at", "waits at", "has finished"};
    const thread *p = &threads[t];
    if (p->state == AT_BLOCK_BARRIER || p->state == AT_WARP_MEETING)
        snprintf(text, size, "thread %d waits at %s, %s:%d", t, p->place.what, p->place.file, p->place.line);
    else
        snprintf(text, size, "thread %d %s", t, states[p->state]);
    return text;
}

[[noreturn]] void disagree(const char *what, int a, int b) {
    char text_a[300], text_b[300];
    die(STATUS_FAILED, "kernel %s, block (%u, %u, %u): %s: %s, %s", kernel_name, emulated_now.block.x,
        emulated_now.block.y, emulated_now.block.z, what, describe(text_a, sizeof(text_a), a),
        describe(text_b, sizeof(text_b), b));
}

[[noreturn]] void broken(const char *what, size_t has, size_t limit) {
    die(STATUS_FAILED, "kernel %s: %s: %zu, the limit is %zu", kernel_name, what, has, limit);
}

void set_view(int t) {
    const dim3 d = emulated_now.block_dim;
    emulated_now.thread = dim3((unsigned)t % d.x, (unsigned)t / d.x % d.y, (unsigned)t / d.x / d.y);
    emulated_now.lane = t % 32;
    running = t;
}

void wait_as(wait state, emulated_place place) {
    int self = running;
    threads[self].state = state;
    threads[self].place = place;
    fiber_leave();
    set_view(self);
}

void thread_main(void *) {
    kernel_body(kernel_context);
}

/* Runs thread t until it waits or finishes. A fiber whose thread has finished serves the next. */
void resume(int t) {
    thread *p = &threads[t];
    if (!p->on) p->on = num_idle ? idle[--num_idle] : fiber_open();
    set_view(t);
    if (!fiber_enter(p->on, thread_main, nullptr)) return;
    p->state = FINISHED;
    warps[t / 32].finished |= 1u << t % 32;
    if (p->num_copies) broken("copies by cp.async that a thread did not wait for", (size_t)p->num_copies, 0);
    idle[num_idle++] = p->on;
    p->on = nullptr;
}

/* Nobody can run: everybody must be at one barrier. */
void open_barrier() {
    int first = 0;
    for (int t = 1; t < num_threads; t++) {
        const thread *a = &threads[first], *b = &threads[t];
        if (a->state != b->state) disagree("threads wait for each other", first, t);
        if (a->place.line != b->place.line || strcmp(a->place.file, b->place.file))
            disagree("threads wait at different barriers", first, t);
    }
    if (threads[0].state == AT_WARP_MEETING) disagree("lanes wait for each other", 0, num_threads > 1);
    for (int t = 0; t < num_threads; t++) threads[t].state = READY;
}

void guard(shared_array *s) {
    fiber_poison(s->data + s->bytes, GUARD, false);
    memset(s->data, 0xFF, s->bytes);
    memset(s->data + s->bytes, 0xA5, GUARD);
    fiber_poison(s->data + s->bytes, GUARD, true);
}

shared_array new_shared(const void *key, size_t bytes) {
    void *data = nullptr;
    if (posix_memalign(&data, 128, bytes + GUARD)) die(STATUS_OUT_OF_MEMORY, "no memory for the emulation");
    shared_array s = {key, static_cast<unsigned char *>(data), bytes};
    guard(&s);
    return s;
}

void check_guards() {
    for (int i = 0; i < num_shared; i++) {
        fiber_poison(shared[i].data + shared[i].bytes, GUARD, false);
        for (int j = 0; j < GUARD; j++)
            if (shared[i].data[shared[i].bytes + (size_t)j] != 0xA5)
                broken(i ? "it wrote behind an array in shared memory, which has bytes"
                         : "it wrote behind its dynamic shared memory, which has bytes",
                       shared[i].bytes, shared[i].bytes);
    }
}

void run_block() {
    for (int t = 0; t < num_threads; t++) threads[t].state = READY, threads[t].num_copies = 0;
    for (int w = 0; w * 32 < num_threads; w++) warps[w].mask = warps[w].arrived = warps[w].finished = 0;
    for (int i = 0; i < num_shared; i++) guard(&shared[i]);
    for (;;) {
        int moved = 0, left = 0;
        for (int t = 0; t < num_threads; t++) {
            if (threads[t].state == READY) resume(t), moved++;
            left += threads[t].state != FINISHED;
        }
        if (!left) break;
        if (!moved) open_barrier();
    }
    check_guards();
}

} // namespace

void emulated_block_barrier(emulated_place place) {
    wait_as(AT_BLOCK_BARRIER, place);
}

const unsigned char (*emulated_warp_meet(emulated_place place, uint32_t mask, const void *mine,
                                         size_t bytes))[EMULATED_LANE_BYTES] {
    int self = running, lane = self % 32, first = self - lane;
    warp *w = &warps[self / 32];
    threads[self].place = place;
    if (bytes > EMULATED_LANE_BYTES) broken("bytes that a lane hands over", bytes, EMULATED_LANE_BYTES);
    if (!(mask >> lane & 1)) disagree("a lane is not in the mask it names", self, self);
    if (num_threads - first < 32 && mask >> (num_threads - first))
        broken("a warp names a lane that does not exist", (size_t)(31 - __builtin_clz(mask)), 31);
    if (mask & w->finished) {
        threads[self].state = AT_WARP_MEETING;
        disagree("a lane is waited for that does not come", self, first + __builtin_ctz(mask & w->finished));
    }
    if (!w->arrived) w->first = self;
    const emulated_place *other = &threads[w->first].place;
    if (w->arrived && (mask != w->mask || other->line != place.line ||
                       (other->file != place.file && strcmp(other->file, place.file)))) {
        threads[self].state = AT_WARP_MEETING;
        disagree("lanes of a warp meet at different instructions", self, w->first);
    }
    unsigned char(*places)[EMULATED_LANE_BYTES] = w->places[w->parity];
    if (bytes) memcpy(places[lane], mine, bytes);
    w->mask = mask;
    w->arrived |= 1u << lane;
    if (w->arrived != mask) {
        wait_as(AT_WARP_MEETING, place);
        return places;
    }
    w->arrived = 0;
    w->parity ^= 1;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) threads[first + i].state = READY;
    return places;
}

void *emulated_shared_dynamic(void) {
    return shared[0].data;
}

void *emulated_shared(const void *key, size_t bytes) {
    size_t total = bytes;
    for (int i = 1; i < num_shared; i++) {
        if (shared[i].key == key) return shared[i].data;
        total += shared[i].bytes;
    }
    if (total > MOST_SHARED_STATIC) broken("bytes in arrays in shared memory", total, MOST_SHARED_STATIC);
    if (total + shared[0].bytes > MOST_SHARED) broken("bytes of shared memory", total, MOST_SHARED);
    if (num_shared > MOST_SHARED_ARRAYS)
        broken("arrays in shared memory", (size_t)num_shared, MOST_SHARED_ARRAYS);
    shared[num_shared] = new_shared(key, bytes);
    return shared[num_shared++].data;
}

/* ---- copies ---- */
void emulated_copy_async(void *dst, const void *src, size_t bytes) {
    thread *p = &threads[running];
    if (p->num_copies == MOST_COPIES) broken("copies by cp.async at a time", MOST_COPIES + 1, MOST_COPIES);
    p->copies[p->num_copies++] = copy{dst, src, bytes, p->group};
}

void emulated_copy_commit(void) {
    threads[running].group++;
}

void emulated_copy_wait(int groups_left) {
    thread *p = &threads[running];
    int kept = 0;
    for (int i = 0; i < p->num_copies; i++) {
        const copy c = p->copies[i];
        if (c.group >= p->group - groups_left) {
            p->copies[kept++] = c;
        } else if (c.src) {
            memcpy(c.dst, c.src, c.bytes);
        } else {
            memset(c.dst, 0, c.bytes);
        }
    }
    p->num_copies = kept;
}

void emulated_launch(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void *),
                     void *context) {
    size_t threads_in_block = (size_t)block.x * block.y * block.z;
    kernel_name = kernel, kernel_body = body, kernel_context = context;
    if (!threads_in_block || threads_in_block > MOST_THREADS)
        broken("threads of a block", threads_in_block, MOST_THREADS);
    if (!grid.x || !grid.y || !grid.z) broken("an empty grid", 0, 1);
    if (grid.x > 0x7FFFFFFFu) broken("blocks in x", grid.x, 0x7FFFFFFF);
    if (grid.y > 65535 || grid.z > 65535)
        broken("blocks in y or z", grid.y > grid.z ? grid.y : grid.z, 65535);
    if (shared_bytes > MOST_SHARED) broken("bytes of dynamic shared memory", shared_bytes, MOST_SHARED);
    emulated_now.grid_dim = grid, emulated_now.block_dim = block;
    num_threads = (int)threads_in_block;
    shared[0] = new_shared(nullptr, shared_bytes);
    num_shared = 1;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                emulated_now.block = dim3(x, y, z);
                run_block();
            }
    for (int i = 0; i < num_shared; i++) free(shared[i].data);
}
