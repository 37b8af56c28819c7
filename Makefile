# make                 builds everything that this machine can build; build/pretrain_gpt is the program
# make test            unit and kernel tests (scripts/test.sh runs all tests); make help lists targets and settings
# Settings, on the command line or in config.mk (see config.mk.example):
#   CUDA=auto|0|1 NCCL=auto|0|1 MPI=auto|0|1 PCRE2=auto|0|1 YAML=auto|0|1  DEBUG=0|1 SAN=|address,undefined|thread
#   WERROR=0|1 V=0|1 CC=gcc|clang BUILD=build  CUDA_HOME=/usr/local/cuda NVCC=nvcc CUDA_ARCHS="80 90a"
-include config.mk
CUDA   ?= 0
NCCL   ?= 0
MPI    ?= auto
PCRE2  ?= auto
YAML   ?= auto
DEBUG  ?= 0
SAN    ?=
WERROR ?= 0
V      ?= 0
BUILD  ?= build

# ---- what this machine has (no need to change below) ----
has = $(shell echo '\#include <$(1)>' | $(CC) -E -x c $(2) - >/dev/null 2>&1 && echo 1 || echo 0)
find = $(if $(filter auto,$($(1))),$(call has,$(2),$(3)),$($(1)))
override PCRE2 := $(call find,PCRE2,pcre2.h,-DPCRE2_CODE_UNIT_WIDTH=8)
override YAML  := $(call find,YAML,yaml.h)
# MPI: Open MPI's or MPICH's compiler wrapper says how to compile and link; mpi.h is a system header to us
MPICC ?= mpicc
ifneq ($(MPI),0)
MPI_CPPFLAGS := $(patsubst -I%,-isystem %,$(filter -I% -D%,$(shell $(MPICC) --showme:compile 2>/dev/null || pkg-config --cflags ompi-c 2>/dev/null || pkg-config --cflags mpich 2>/dev/null)))
MPI_LDLIBS   := $(shell $(MPICC) --showme:link 2>/dev/null || pkg-config --libs ompi-c 2>/dev/null || pkg-config --libs mpich 2>/dev/null)
endif
override MPI := $(call find,MPI,mpi.h,$(MPI_CPPFLAGS))
$(if $(filter 1,$(MPI)),$(if $(filter 0,$(call has,mpi.h,$(MPI_CPPFLAGS))),$(error MPI=1, but mpi.h is not found: install an MPI (Debian: libopenmpi-dev openmpi-bin) or set MPICC, or build with MPI=0)))
$(foreach bad,$(filter-out 0 1,$(PCRE2) $(YAML) $(MPI)),$(error a setting is '$(bad)': use auto, 0 or 1))

# one build tree per setting, so that settings never mix
CCNAME := $(notdir $(firstword $(CC)))
comma := ,
B := $(BUILD)/$(if $(filter 1,$(DEBUG)),debug,release)$(if $(SAN),-$(subst $(comma),-,$(SAN)))-$(CCNAME)$(if $(filter 0,$(PCRE2)),-nopcre2)$(if $(filter 0,$(YAML)),-noyaml)$(if $(filter 0,$(MPI)),-nompi)

WARN     := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wvla $(if $(findstring clang,$(CCNAME)),-Wno-pass-failed) $(if $(filter 1,$(WERROR)),-Werror)
OPT      := $(if $(filter 1,$(DEBUG)),-O1,-O3) -g -fno-omit-frame-pointer
CPPFLAGS += -I. -MMD -MP $(if $(filter 1,$(PCRE2)),-DWITH_PCRE2 -DPCRE2_CODE_UNIT_WIDTH=8) $(if $(filter 1,$(YAML)),-DWITH_YAML) $(if $(filter 1,$(MPI)),-DWITH_MPI)
CFLAGS   += -std=c11 -D_GNU_SOURCE $(OPT) -fno-math-errno -fno-trapping-math -fopenmp-simd -pthread $(WARN) \
            $(if $(filter 1,$(DEBUG)),-DPOISON) $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all)
LDFLAGS  += -pthread $(if $(SAN),-fsanitize=$(SAN))
LDLIBS   += $(if $(filter 1,$(PCRE2)),-lpcre2-8) $(if $(filter 1,$(YAML)),-lyaml) $(if $(filter 1,$(MPI)),$(MPI_LDLIBS)) -lm

# kernels/cpu/*.c is compiled once for each instruction set; CPU_ISA names the set inside the source
ARCH := $(shell $(CC) -dumpmachine)
ISAS := generic $(if $(filter x86_64%,$(ARCH)),avx2 avx512 amx)
ISA_generic :=
ISA_avx2    := -mavx2 -mfma -mf16c -mbmi -mbmi2
ISA_avx512  := $(ISA_avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512
ISA_amx     := $(ISA_avx512) -mavx512bf16 -mamx-tile -mamx-bf16

SRC  := $(sort $(shell find core kernels parallel recompute -name '*.c' -not -path 'kernels/cpu/*' -not -path 'kernels/cuda/*'$(if $(filter 0,$(MPI)), -not -path 'parallel/comm/mpi_*')))
CPU  := $(sort $(wildcard kernels/cpu/*.c))
LIB  := $(SRC:%.c=$B/%.o) $(foreach isa,$(ISAS),$(CPU:%.c=$B/%.$(isa).o))
BIN  := $(patsubst cmd/%.c,$B/%,$(sort $(wildcard cmd/*.c)))
TEST := $(patsubst tests/%.c,$B/tests/%,$(sort $(wildcard tests/unit/*.c tests/kernels/*.c tests/invariants/*.c tests/parallel/*.c)))
FUZZ := $(patsubst tests/%.c,$B/tests/%,$(sort $(wildcard tests/fuzz/*.c)))
BENCH := $(patsubst tests/%.c,$B/tests/%,$(sort $(wildcard tests/bench/*.c)))

# kernels/cuda twice: by nvcc (make cuda), and by the host's C++ compiler for the emulation of tests/cuda_emulation,
# which the conformance tests of tests/kernels run on a second time (docs/cuda.md)
ifeq ($(origin CXX),default)
CXX := $(if $(findstring clang,$(CCNAME)),clang++,g++)
endif
CXXFLAGS += -std=c++17 -O2 -g -fno-omit-frame-pointer -fno-exceptions -fno-rtti -fno-threadsafe-statics -fno-strict-aliasing -Wall -Wextra -Wno-unknown-pragmas \
            $(if $(findstring clang,$(CCNAME)),-Wno-pass-failed) $(if $(filter 1,$(WERROR)),-Werror) $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all)
CU        := $(sort $(wildcard kernels/cuda/*.cu))
EMULATION := $(sort $(wildcard tests/cuda_emulation/*.cc))
CU_TEST   := $(patsubst tests/%.c,$B/cuda/tests/%,$(sort $(wildcard tests/kernels/*.c)))
CU_OWN_TEST := $B/cuda/tests/cuda_emulation/emulation_test
CUDA_HOME ?= /usr/local/cuda
NVCC      ?= $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc) nvcc)
# machine code for these, and PTX of the last for whatever comes later (90a has instructions of its own that do not)
CUDA_ARCHS ?= 80 90a
CUDA_PTX   ?= 90
NVCCFLAGS += -std=c++17 -O3 -lineinfo -I. $(foreach a,$(CUDA_ARCHS),-gencode=arch=compute_$a,code=sm_$a) \
             -gencode=arch=compute_$(CUDA_PTX),code=compute_$(CUDA_PTX) -Xptxas -v -Xcompiler -Wall,-Wextra \
             $(if $(filter 1,$(WERROR)),-Werror all-warnings)
NVCC_OBJ  := $(CU:%.cu=$B/nvcc/%.o)
EMULATED  := $(CU:%.cu=$B/emulated/%.o) $(EMULATION:%.cc=$B/%.o)

# all of it: the kernel tables find their kernels by weak names, which pull nothing out of an archive
WHOLE_LIB = -Wl,--whole-archive $B/libpretrain.a -Wl,--no-whole-archive

Q := $(if $(filter 1,$(V)),,@)
say = $(if $(Q),@printf '  %-5s %s\n' $(1) $(2))

all: $(BIN)
	$(Q)for b in $(notdir $(BIN)); do ln -sfn $(patsubst $(BUILD)/%,%,$B)/$$b $(BUILD)/$$b; done
tests: $(TEST)
cuda_tests: $(CU_TEST) $(CU_OWN_TEST)
cuda: $(NVCC_OBJ)
	$(Q)scripts/cuda_resources.sh kernels/cuda/spills.txt $(NVCC_OBJ:%=%.log)
test: all $(TEST)
	$(Q)scripts/run_tests.sh $B $(TEST)
fuzzers: $(FUZZ)
benches: $(BENCH)
format: ; $(Q)git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cc' | xargs clang-format -i
clean: ; rm -rf $(BUILD)
help:
	@sed -n '1,6s/^# //p' Makefile
	@echo "targets: all tests test cuda_tests cuda fuzzers benches format clean help"
	@echo "this build: $B; PCRE2=$(PCRE2) YAML=$(YAML) CUDA=$(CUDA) NCCL=$(NCCL) MPI=$(MPI); cpu kernels for: $(ISAS)"

$B/libpretrain.a: $(LIB)
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $^
$(BIN): $B/%: $B/cmd/%.o $B/libpretrain.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $< $(WHOLE_LIB) $(LDLIBS)
$(TEST) $(BENCH): $B/tests/%: $B/tests/%.o $B/libpretrain.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $< $(WHOLE_LIB) $(LDLIBS)
$(FUZZ): $B/tests/%: $B/tests/%.o $B/libpretrain.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $< $(WHOLE_LIB) $(LDLIBS)
$B/tests/fuzz/%.o: CFLAGS += -fsanitize=fuzzer-no-link
$B/emulated/%.o: %.cu
	@mkdir -p $(@D)
	$(call say,CXX,$<)
	$(Q)$(CXX) $(CPPFLAGS) $(CXXFLAGS) -x c++ -include tests/cuda_emulation/emulation.h -c -o $@ $<
$B/nvcc/%.o: %.cu
	@mkdir -p $(@D)
	$(call say,NVCC,$<)
	$(Q)$(NVCC) $(NVCCFLAGS) -MMD -MF $(@:.o=.d) -c -o $@ $< >$@.log 2>&1 || { cat $@.log; exit 1; }
$B/%.o: %.cc
	@mkdir -p $(@D)
	$(call say,CXX,$<)
	$(Q)$(CXX) $(CPPFLAGS) $(CXXFLAGS) -c -o $@ $<
$B/cuda/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,"$< cuda")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -DTEST_CUDA -c -o $@ $<
$(CU_TEST): $B/cuda/%: $B/cuda/%.o $(EMULATED) $B/libpretrain.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $< $(EMULATED) $(WHOLE_LIB) $(LDLIBS)
$(CU_OWN_TEST): $B/cuda/%: $B/emulated/%.o $(EMULATED) $B/libpretrain.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $< $(EMULATED) $(WHOLE_LIB) $(LDLIBS)
define isa_rule
$B/%.$(1).o: %.c
	@mkdir -p $$(@D)
	$$(call say,CC,"$$< $(1)")
	$$(Q)$$(CC) $$(CPPFLAGS) $$(CFLAGS) $$(ISA_$(1)) -DCPU_ISA=$(1) -DCPU_ISA_$(1)=1 -c -o $$@ $$<
endef
$(foreach isa,$(ISAS),$(eval $(call isa_rule,$(isa))))
$B/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<
# the page of --memory-timeline as a C string
$B/core/plan_timeline_page.inc: core/plan_timeline.html
	@mkdir -p $(@D)
	$(Q)sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/.*/"&\\n"/' $< >$@
$B/core/train/memory_timeline.o: $B/core/plan_timeline_page.inc
$B/core/train/memory_timeline.o: CPPFLAGS += -DTIMELINE_PAGE='"$B/core/plan_timeline_page.inc"'
$B/parallel/comm/mpi_%.o: CPPFLAGS += $(MPI_CPPFLAGS)
$B/core/base/version.o: CPPFLAGS += -DBUILD_SETTINGS='"$(CCNAME) pcre2=$(PCRE2) yaml=$(YAML) cuda=$(CUDA) nccl=$(NCCL) mpi=$(MPI) cpu=[$(ISAS)]$(if $(SAN), san=$(SAN))"'
-include $(shell find $B -name '*.d' 2>/dev/null)
.PHONY: all tests cuda cuda_tests test fuzzers benches format clean help
.SECONDARY:
.DELETE_ON_ERROR:
