#pragma once
/* Fibers: functions with a stack of their own, entered and left by hand. The stack is left in the registers
 * that the calling convention keeps (x86-64; ucontext elsewhere), and AddressSanitizer is told of every
 * change of stack.
 *
 *     fiber *f = fiber_open();
 *     while (!fiber_enter(f, body, context)) ...     // true when body has returned; f can then serve another
 *     in body: fiber_leave();                        // back to the one who entered
 */
#include <cstddef>

struct fiber;
fiber *fiber_open();
bool fiber_enter(fiber *f, void (*body)(void *), void *context);
void fiber_leave();
void fiber_poison(void *p, size_t bytes, bool poison); /* nothing without AddressSanitizer */
