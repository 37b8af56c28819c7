/* Looks at checkpoints, checks them, and takes them to and from Hugging Face folders. */
#include "core/base/log.h"
#include "core/checkpoint/tool.h"

int main(int argc, char **argv) {
    struct err err = {""};
    int status = checkpoint_tool_run(argc - 1, argv + 1, stdout, &err);
    if (status) log_error("%s", err.text);
    if (fflush(stdout) && !status) {
        log_error("cannot write the report to stdout");
        status = STATUS_FAILED;
    }
    return status;
}
