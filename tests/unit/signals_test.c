#include "core/base/version.h"
#include "core/train/signals.h"
#include "tests/test.h"
#include <signal.h>
#include <unistd.h>

TEST(a_signal_becomes_a_flag_and_the_program_goes_on) {
    struct err err;
    EXPECT_EQ(signals_received(), 0);
    EXPECT_EQ(signals_install(SIGTERM, &err), 0);
    EXPECT_EQ(signals_install(SIGUSR1, &err), 0);
    EXPECT_EQ(signals_received(), 0);
    kill(getpid(), SIGTERM);
    EXPECT_EQ(signals_received(), SIGTERM);
    kill(getpid(), SIGUSR1);
    EXPECT_EQ(signals_received(), SIGUSR1);
    signals_remove();
    EXPECT_EQ(signals_received(), 0);
}

static int old_handler_ran;
static void old_handler(int number) {
    old_handler_ran = number;
}

TEST(removing_restores_what_was_there_before) {
    struct err err;
    signal(SIGUSR2, old_handler);
    EXPECT_EQ(signals_install(SIGUSR2, &err), 0);
    kill(getpid(), SIGUSR2);
    EXPECT_EQ(old_handler_ran, 0);
    signals_remove();
    kill(getpid(), SIGUSR2);
    EXPECT_EQ(old_handler_ran, SIGUSR2);
}

TEST(a_signal_that_cannot_be_handled_is_refused) {
    struct err err = {""};
    EXPECT_EQ(signals_install(SIGKILL, &err), -1);
    EXPECT_CONTAINS(err.text, "SIGKILL");
    EXPECT_EQ(signals_install(signals_number("SIGSTOP"), &err), -1);
}

TEST(signals_are_known_by_name) {
    EXPECT_EQ(signals_number("SIGTERM"), SIGTERM);
    EXPECT_EQ(signals_number("SIGUSR2"), SIGUSR2);
    EXPECT_EQ(signals_number("TERM"), -1);
    EXPECT_STR(signals_name(SIGINT), "SIGINT");
    EXPECT_STR(signals_name(-5), "signal");
}

TEST(the_version_names_number_settings_and_compiler) {
    EXPECT_CONTAINS(version_string(), version_number());
    EXPECT_CONTAINS(version_string(), version_settings());
    EXPECT_CONTAINS(version_string(), version_compiler());
    EXPECT(!strchr(version_string(), '\n'), "more than one line");
}

RUN_TESTS(CASE(a_signal_becomes_a_flag_and_the_program_goes_on),
          CASE(removing_restores_what_was_there_before), CASE(a_signal_that_cannot_be_handled_is_refused),
          CASE(signals_are_known_by_name), CASE(the_version_names_number_settings_and_compiler))
