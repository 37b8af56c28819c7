#include "tests/cuda_emulation/fiber.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifndef WITH_ASAN
#define WITH_ASAN 0
#endif
#if WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum { STACK = 256 * 1024, PAGE = 4096 };

struct fiber {
    char *stack;
    void *asan; /* its fake stack while it does not run */
    void (*body)(void *);
    void *context;
    bool in_body;
#if defined(__x86_64__)
    void *sp;
#else
    ucontext_t state;
#endif
};

static fiber *current;
static void *outer_asan;
static const void *outer_stack;
static size_t outer_bytes;

#if defined(__x86_64__)
static void *outer_sp;
extern "C" void fiber_switch(void **save, void *load);
__asm__(".text\n.globl fiber_switch\n.type fiber_switch, @function\nfiber_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
        ".size fiber_switch, .-fiber_switch\n");
static void to_fiber(fiber *f) {
    fiber_switch(&outer_sp, f->sp);
}
static void to_outer(fiber *f) {
    fiber_switch(&f->sp, outer_sp);
}
#else
static ucontext_t outer_state;
static void to_fiber(fiber *f) {
    swapcontext(&outer_state, &f->state);
}
static void to_outer(fiber *f) {
    swapcontext(&f->state, &outer_state);
}
#endif

static void begin_switch(void **save, const void *stack, size_t bytes) {
#if WITH_ASAN
    __sanitizer_start_switch_fiber(save, stack, bytes);
#else
    (void)save, (void)stack, (void)bytes;
#endif
}

static void end_switch(void *saved, const void **stack, size_t *bytes) {
#if WITH_ASAN
    __sanitizer_finish_switch_fiber(saved, stack, bytes);
#else
    (void)saved, (void)stack, (void)bytes;
#endif
}

void fiber_poison(void *p, size_t bytes, bool poison) {
#if WITH_ASAN
    if (poison)
        __asan_poison_memory_region(p, bytes);
    else
        __asan_unpoison_memory_region(p, bytes);
#else
    (void)p, (void)bytes, (void)poison;
#endif
}

static void leave(fiber *self) {
    begin_switch(&self->asan, outer_stack, outer_bytes);
    to_outer(self);
    end_switch(self->asan, &outer_stack, &outer_bytes);
}

void fiber_leave() {
    leave(current);
}

static void fiber_main() {
    end_switch(nullptr, &outer_stack, &outer_bytes);
    for (;;) {
        fiber *self = current;
        self->body(self->context);
        self->in_body = false;
        leave(self);
    }
}

fiber *fiber_open() {
    fiber *f = static_cast<fiber *>(calloc(1, sizeof(fiber)));
    void *p = mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (!f || p == MAP_FAILED || mprotect(p, PAGE, PROT_NONE)) { /* running over the end of the stack traps */
        fprintf(stderr, "no memory for the stacks of the emulation\n");
        abort();
    }
    f->stack = static_cast<char *>(p) + PAGE;
#if defined(__x86_64__)
    void **top = reinterpret_cast<void **>(f->stack + STACK);
    *--top = nullptr; /* where a return address would be: the stack is aligned as after a call */
    *--top = reinterpret_cast<void *>(fiber_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    f->sp = top;
#else
    getcontext(&f->state);
    f->state.uc_stack.ss_sp = f->stack;
    f->state.uc_stack.ss_size = STACK;
    f->state.uc_link = nullptr;
    makecontext(&f->state, fiber_main, 0);
#endif
    return f;
}

bool fiber_enter(fiber *f, void (*body)(void *), void *context) {
    if (!f->in_body) f->body = body, f->context = context, f->in_body = true;
    current = f;
    begin_switch(&outer_asan, f->stack, STACK);
    to_fiber(f);
    end_switch(outer_asan, nullptr, nullptr);
    return !f->in_body;
}
