# One word per chore; continuous integration runs the same words.
#   make demo    pictures from the embedded model, on any laptop
#   make test    everything, as continuous integration runs it
#   make help    the rest

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Variables given on make's command line become flags; those of the environment (LATENTD_<NAME>) are read by the
# programs themselves.
given = $(if $($(1)),--$(2) '$($(1))')

.DEFAULT_GOAL := help
.PHONY: need-model help demo test setup serve onnx engines clean-cache check proto lint format bench gpu-check clean

help:
	@echo "make demo                            draw eight prompts with the embedded model"
	@echo "make test                            install what the tests need and run them all"
	@echo "make serve [MODEL=dir|file.safetensors] [BACKEND=auto] [DEVICE=auto]"
	@echo "                                     serve over gRPC until SIGTERM"
	@echo "make onnx MODEL=dir [OUT=dir]        checkpoint to checked ONNX artifact"
	@echo "make onnx MODEL=file.safetensors OUT=dir [PREDICTION=epsilon|v_prediction]"
	@echo "                                     the same of a single-file checkpoint"
	@echo "make engines MODEL=dir [BACKEND=openvino|onnxruntime|tensorrt_rtx|tensorrt] [ARCH=sm_89] [ROWS=2,4,8]"
	@echo "    [SIZES=512x512] [PRECISION=auto] build what serving needs ahead of it; skips what is built and valid"
	@echo "make clean-cache                     empty LATENTD_CACHE of what no live process uses"
	@echo "make check MODEL=dir [BACKEND=auto] [SIZE=256x256] [SAMPLERS=all] [STEPS=20]"
	@echo "                                     errors of this machine's engines against torch"
	@echo "make bench                           start-up, memory and throughput as rows"
	@echo "make gpu-check                       the step of SD 1.5 on an NVIDIA GPU (needs torch there)"
	@echo "make setup [TORCH_INDEX=url]         everything a developer needs, into $(VENV)"
	@echo "make lint | format | proto | clean   as they say"

demo: $(VENV)/.cpu
	@$(BIN)/python -m demo

serve: $(VENV)/.cpu
	@$(BIN)/python -m server $(call given,MODEL,model) $(call given,BACKEND,backend) $(call given,DEVICE,device) \
	    $(call given,PREDICTION,prediction)

onnx: need-model $(VENV)/.export
	@$(BIN)/python -W ignore -m export '$(MODEL)' $(call given,OUT,out) $(call given,PREDICTION,prediction)

need-model:
	@test -n '$(MODEL)' || { echo 'give MODEL=, the checkpoint: a folder, or a .safetensors file' >&2; exit 2; }

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.dev

# MODEL and the others may also come as LATENTD_<NAME>; the program says what is missing. TensorRT for RTX has an extra.
engines: $(if $(filter tensorrt%,$(or $(BACKEND),$(LATENTD_BACKEND))),$(VENV)/.rtx,$(VENV)/.export)
	@$(BIN)/python -W ignore -m engines build $(if $(MODEL),'$(MODEL)') $(call given,BACKEND,backend) \
	    $(call given,ARCH,arch) $(call given,ROWS,rows) $(call given,SIZES,sizes) $(call given,PRECISION,precision)

clean-cache: $(VENV)/.cpu
	@$(BIN)/python -m engines clean

check: need-model $(VENV)/.export
	@$(BIN)/python -m engines check '$(MODEL)' $(call given,BACKEND,backend) $(call given,PRECISION,precision) \
	    $(call given,SIZE,size) $(call given,SAMPLERS,samplers) $(call given,STEPS,steps)

bench: $(VENV)/.cpu
	@$(BIN)/python -m benchmarks.serving

# On the machine's own Python: a GPU machine may have torch and triton, and no network to install anything.
gpu-check:
	@$(PYTHON) -m benchmarks.gpu_check

# With an older generator than the server's grpcio, so that the client's stubs run on all that its ranges admit.
proto:
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/python -m pip install --quiet grpcio-tools==1.76.0
	.venv-proto/bin/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. \
	    protos/latentd/v1/images.proto

clean:
	rm -rf $(VENV) .venv-proto demo/out

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "latentd needs Python 3.11 or later; this is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo 'python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@touch $@

$(VENV)/.cpu: pyproject.toml | $(VENV)/.venv
	@echo 'installing the cpu extra into $(VENV) (no torch)'
	@$(PIP) --editable '.[cpu]'
	@touch $@

# PyTorch from its CPU index, when a user names it, spares gigabytes of CUDA on Linux.
$(VENV)/.export: pyproject.toml | $(VENV)/.venv
	@echo 'installing the export extra into $(VENV) (torch, onnx)'
	@$(if $(TORCH_INDEX),$(PIP) torch==2.13.0 --index-url '$(TORCH_INDEX)')
	@$(PIP) --editable '.[cpu,export]'
	@touch $@

$(VENV)/.rtx: pyproject.toml | $(VENV)/.venv
	@echo 'installing the rtx extra into $(VENV) (TensorRT for RTX, with torch and onnx for the export)'
	@$(if $(TORCH_INDEX),$(PIP) torch==2.13.0 --index-url '$(TORCH_INDEX)')
	@$(PIP) --editable '.[cpu,export,kernels,rtx]'
	@touch $@ $(VENV)/.cpu $(VENV)/.export

$(VENV)/.dev: pyproject.toml | $(VENV)/.venv
	@echo 'installing what developers and tests need into $(VENV)'
	@$(if $(TORCH_INDEX),$(PIP) torch==2.13.0 --index-url '$(TORCH_INDEX)')
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.cpu $(VENV)/.export $(VENV)/.rtx
