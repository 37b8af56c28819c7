#include "parallel/comm/launch.h"
#include <stdlib.h>
#include <string.h>

const char *launch_environment(void *context, const char *name) {
    (void)context;
    return getenv(name);
}

bool launch_has_mpi(void) {
#ifdef WITH_MPI
    return true;
#else
    return false;
#endif
}

struct reader {
    launch_get_fn get;
    void *context;
};

/* The variable as a number that is not negative, or -1. */
static long number(const struct reader *r, const char *name) {
    const char *text = r->get(r->context, name);
    char *end;
    if (!text || !*text) return -1;
    long value = strtol(text, &end, 10);
    return *end || value < 0 ? -1 : value;
}

/* True when this process is a task that srun started. The batch script of a job, and the shell of an
 * interactive one, are steps too, with ids from 0xfffffff0; their SLURM_NTASKS is that of the job. */
static bool in_slurm_step(const struct reader *r) {
    long id = number(r, "SLURM_STEP_ID");
    if (id < 0) id = number(r, "SLURM_STEPID");
    return id >= 0 && id < 0xfffffff0L && number(r, "SLURM_PROCID") >= 0;
}

/* Started by something that speaks PMI or PMIx, or by Open MPI's mpirun. */
static bool has_process_manager(const struct reader *r) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE",
                                        "PMIX_RANK",
                                        "PMIX_NAMESPACE",
                                        "PMI_RANK",
                                        "PMI_SIZE",
                                        "PMI_FD",
                                        "PMI2_RANK",
                                        "PMI2_SIZE",
                                        "MV2_COMM_WORLD_SIZE",
                                        "FLUX_JOB_ID"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        if (r->get(r->context, names[i])) return true;
    return false;
}

/* Without a process manager but started as torchrun starts its workers. */
static bool by_torchrun(const struct reader *r) {
    return number(r, "RANK") >= 0 && number(r, "LOCAL_RANK") >= 0 && number(r, "WORLD_SIZE") > 1;
}

static void count_tasks(const struct reader *r, struct launch *launch) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI2_SIZE",
                                        "MV2_COMM_WORLD_SIZE"};
    launch->tasks = 0, launch->source = NULL;
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        long n = number(r, names[i]);
        if (n > 0) {
            launch->tasks = (int)n, launch->source = names[i];
            return;
        }
    }
    if (!in_slurm_step(r)) return;
    launch->source = "SLURM_STEP_NUM_TASKS";
    long n = number(r, launch->source);
    if (n <= 0) n = number(r, launch->source = "SLURM_NTASKS");
    launch->tasks = n > 0 ? (int)n : 0;
}

int launch_detect(launch_get_fn get, void *context, bool has_mpi, struct launch *launch, struct err *err) {
    struct reader r = {get, context};
    bool manager = has_process_manager(&r);
    count_tasks(&r, launch);
    launch->with_mpi = manager && has_mpi;
    if (launch->with_mpi) return 0;
    if (manager) {
        bool several = launch->tasks > 1 || number(&r, "PMIX_RANK") > 0 || number(&r, "PMI_RANK") > 0;
        if (!several) return 0;
        return err_set(
            err,
            "this process is one of several (%s says %d), but this binary was built without MPI, so each "
            "would train alone: build with make MPI=1 (Debian: apt-get install libopenmpi-dev openmpi-bin)",
            launch->tasks > 1 ? launch->source : "PMI", launch->tasks);
    }
    if (launch->tasks > 1)
        return err_set(
            err,
            "srun started %d tasks (%s) without PMI, so each would train alone as rank 0 of 1: start it "
            "with srun --mpi=pmix ... (srun --mpi=list shows what this Slurm has) or with mpirun ...%s",
            launch->tasks, launch->source,
            has_mpi ? "" : ", and build with make MPI=1: this binary has no MPI");
    if (by_torchrun(&r))
        return err_set(
            err, "RANK, LOCAL_RANK and WORLD_SIZE say that torchrun started several processes, which would "
                 "each train alone: start it with mpirun -np N ... or srun --mpi=pmix ..., or unset them");
    return 0;
}

int launch_check_size(const struct launch *launch, int mpi_size, struct err *err) {
    if (mpi_size != 1 || launch->tasks <= 1) return 0;
    return err_set(
        err,
        "the launcher started %d tasks (%s) but MPI sees one, so each would train alone as rank 0 of 1: "
        "use srun --mpi=pmix ..., or the mpirun of the MPI that this binary was built with",
        launch->tasks, launch->source);
}
