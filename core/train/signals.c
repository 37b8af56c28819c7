#include "core/train/signals.h"
#include <errno.h>
#include <signal.h>
#include <string.h>

static const struct {
    const char *name;
    int number;
} known[] = {
    {"SIGHUP", SIGHUP},       {"SIGINT", SIGINT},   {"SIGQUIT", SIGQUIT},   {"SIGILL", SIGILL},
    {"SIGTRAP", SIGTRAP},     {"SIGABRT", SIGABRT}, {"SIGBUS", SIGBUS},     {"SIGFPE", SIGFPE},
    {"SIGKILL", SIGKILL},     {"SIGUSR1", SIGUSR1}, {"SIGSEGV", SIGSEGV},   {"SIGUSR2", SIGUSR2},
    {"SIGPIPE", SIGPIPE},     {"SIGALRM", SIGALRM}, {"SIGTERM", SIGTERM},   {"SIGCHLD", SIGCHLD},
    {"SIGCONT", SIGCONT},     {"SIGSTOP", SIGSTOP}, {"SIGTSTP", SIGTSTP},   {"SIGTTIN", SIGTTIN},
    {"SIGTTOU", SIGTTOU},     {"SIGURG", SIGURG},   {"SIGXCPU", SIGXCPU},   {"SIGXFSZ", SIGXFSZ},
    {"SIGVTALRM", SIGVTALRM}, {"SIGPROF", SIGPROF}, {"SIGWINCH", SIGWINCH}, {"SIGIO", SIGIO},
    {"SIGPOLL", SIGPOLL},     {"SIGPWR", SIGPWR},   {"SIGSYS", SIGSYS},     {"SIGSTKFLT", SIGSTKFLT},
    {"SIGCLD", SIGCHLD},
};

enum { MAX_INSTALLED = 8 };

static volatile sig_atomic_t received; /* all that a handler may touch */
static struct {
    int number;
    struct sigaction before;
} installed[MAX_INSTALLED];
static int num_installed;

static void note_signal(int number) {
    received = number;
}

int signals_number(const char *name) {
    for (size_t i = 0; i < ARRAY_COUNT(known); i++)
        if (!strcmp(known[i].name, name)) return known[i].number;
    return -1;
}

const char *signals_name(int number) {
    for (size_t i = 0; i < ARRAY_COUNT(known); i++)
        if (known[i].number == number) return known[i].name;
    return "signal";
}

int signals_install(int number, struct err *err) {
    struct sigaction action = {.sa_handler = note_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    CHECK(num_installed < MAX_INSTALLED, "%d signal handlers at once", num_installed + 1);
    if (sigaction(number, &action, &installed[num_installed].before))
        return err_set(err, "--exit-signal %s: cannot be handled (%s): choose another, for example SIGTERM",
                       signals_name(number), strerror(errno));
    installed[num_installed++].number = number;
    return 0;
}

int signals_received(void) {
    return received;
}

void signals_remove(void) {
    while (num_installed) {
        num_installed--;
        sigaction(installed[num_installed].number, &installed[num_installed].before, NULL);
    }
    received = 0;
}
