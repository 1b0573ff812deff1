# `make demo` and `make test` set everything up and run; the other targets are parts of them or for developers.

VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
# One architecture makes a quick build; `make wheels` takes them all.
TORCH_CUDA_ARCH_LIST ?= 9.0
THREADS ?= 0
OUT ?= build/gpu-check
# What runs again as on a lesser processor, in one thread: tests of numbers, from each part.
NUMERIC = tests/ops tests/execution/fast_conv tests/engine/gradients/test_input_gradients.py \
    tests/methods/attribution/test_against_captum.py tests/methods/attribution/test_gradients.py \
    tests/repository/test_devices.py
# A process a core, one thread each; a file stays in one process. The slowest are named: all should take under 8 minutes.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile --durations 25 --durations-min 3

PY := $(VENV)/bin/python
NATIVE := $(wildcard csrc/kernels/*.h csrc/kernels/*/*.h csrc/kernels/*/*.c* csrc/ops/*) setup.py pyproject.toml fastviz/ops/_build.py
# Compiled for the checkout's own use.
ARCHITECTURE = TORCH_CUDA_ARCH_LIST="$(TORCH_CUDA_ARCH_LIST)"

# A wheel takes all architectures by default; its name says for which CUDA its library is.
RELEASED = $(if $(filter command line environment,$(origin TORCH_CUDA_ARCH_LIST)),$(ARCHITECTURE))
CUDA_MAJOR = $$($(PY) -c 'import torch; print(torch.version.cuda.split(".")[0])')
MANYLINUX = manylinux_2_28_$$(uname -m)
NOT_BUNDLED = --exclude 'libtorch*.so' --exclude 'libc10*.so' --exclude 'libcudart.so.*'
SETUP = PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -W "ignore:setup.py install is deprecated" setup.py -q
PYTHONS ?= $(PYTHON)
TORCHES ?= torch==2.13.0

# All three that compute: the kernels, torch and oneDNN.
AS_AVX2 := FASTVIZ_CPU=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
AS_BASELINE := FASTVIZ_CPU=baseline ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41

.PHONY: demo test test-lesser build lint format types native-test sanitize bench bench-quick readme docs gallery api wheels \
    wheel-check aarch64-check gpu-check clean

demo: build
	$(PY) -m fastviz demo --out fastviz-demo

test: lint types native-test test-lesser
	$(PYTEST)

# With AVX-512 as with AVX2, with that as the baseline.
test-lesser: build
	@case "$$($(PY) -c 'from fastviz import ops; print(ops.instructions()[1])')" in \
	avx512) set -x; $(AS_AVX2) $(PYTEST) -q $(NUMERIC);; \
	avx2) set -x; $(AS_BASELINE) $(PYTEST) -q $(NUMERIC);; \
	*) echo "test-lesser: this processor has no more than the baseline";; \
	esac

build: fastviz/ops/_build.json $(VENV)/.installed

$(VENV)/.ready: tools/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q $(TORCH)
	$(PY) -m pip install -q -r tools/requirements.txt
	# They ask for older libraries than they need for what the tests compare.
	$(PY) -m pip install -q --no-deps pystiche==1.0.1 torch-lucent==0.1.8
	touch $@

fastviz/ops/_build.json: $(VENV)/.ready $(NATIVE)
	$(ARCHITECTURE) $(SETUP) build_ext --inplace
	touch $@

# The checkout itself, for scripts elsewhere; the libraries are those of the line above.
$(VENV)/.installed: $(VENV)/.ready pyproject.toml
	FASTVIZ_PREBUILT=1 $(PY) -m pip install -q --no-build-isolation --no-deps --editable .
	touch $@

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

format: $(VENV)/.ready
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

types: build
	$(VENV)/bin/mypy

# The kernels without torch: their C++ test, plain and under AddressSanitizer and UndefinedBehaviorSanitizer.
native-test: $(VENV)/.ready
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -S . -B build/native -G Ninja -DFASTVIZ_CUDA=OFF
	$(VENV)/bin/ninja -C build/native
	ctest --test-dir build/native --output-on-failure

sanitize: $(VENV)/.ready
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -S . -B build/sanitize -G Ninja -DFASTVIZ_CUDA=OFF -DFASTVIZ_SANITIZE=ON
	$(VENV)/bin/ninja -C build/sanitize
	ctest --test-dir build/sanitize --output-on-failure

# On a quiet machine: every row is a ratio of two timings.
bench: build
	$(PY) -m benchmarks.ops.operators --threads $(THREADS)
	$(MAKE) readme

# A row of every table, in ten minutes, against the committed results of the same kind of processor.
bench-quick: build
	$(PY) -m benchmarks.quick

readme: $(VENV)/.ready
	$(PY) -m benchmarks.readme

# The site, in build/site: every warning is an error, the notebooks run, links are followed, nothing comes from another host.
docs: build
	PYTHONPATH=. OMP_NUM_THREADS=1 $(PY) -m mkdocs build -q -f tools/site/mkdocs.yml
	$(PY) tools/site/check.py build/site
	@echo open build/site/index.html

# Redraws the pictures of the gallery, to be looked at.
gallery: build
	$(PY) tools/gallery.py

# The public names and their signatures, which a test compares.
api: build
	PYTHONPATH=. $(PY) tools/api.py > tests/repository/api.txt

# For other machines, into dist/: the source distribution, a wheel without CUDA and one with it (all architectures,
# unless TORCH_CUDA_ARCH_LIST is given; FASTVIZ_CUDA=0 leaves it out). torch brings its own libraries, and a symbol that
# is newer than torch's oldest glibc is an error.
wheels: $(VENV)/.ready
	rm -rf dist build/wheels build/lib*
	$(SETUP) sdist --dist-dir dist
	FASTVIZ_CUDA=0 $(SETUP) bdist_wheel --dist-dir build/wheels
ifneq ($(FASTVIZ_CUDA),0)
	FASTVIZ_CUDA=1 $(RELEASED) $(SETUP) egg_info --tag-build=+cu$(CUDA_MAJOR) bdist_wheel --dist-dir build/wheels
endif
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m auditwheel -v repair --only-plat --plat $(MANYLINUX) $(NOT_BUNDLED) \
	    --wheel-dir dist build/wheels/*.whl 2> build/wheels/repair.log || { cat build/wheels/repair.log; exit 1; }
	@ls dist

# The wheels made here, in empty environments: beside a CPU-only torch of another version, the operator tests and the demo.
# PYTHONS="python3.10 python3.13" TORCHES="torch==2.10.0 torch==2.14.1" try others.
wheel-check: wheels
	$(PY) tools/wheel_check.py $(addprefix --python ,$(PYTHONS)) $(addprefix --torch ,$(TORCHES)) dist/*.whl

# The kernels and their C++ tests for another processor, in an emulator: needs Debian's g++-aarch64-linux-gnu and qemu-user.
aarch64-check: $(VENV)/.ready
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -S . -B build/aarch64 -G Ninja -DFASTVIZ_CUDA=OFF \
	    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	    "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu"
	$(VENV)/bin/ninja -C build/aarch64 kernels_test
	ctest --test-dir build/aarch64 --output-on-failure -R '^kernels_test$$'

# For a machine with a GPU and no network: uses that machine's own python and its torch.
gpu-check:
	$(PYTHON) tools/gpu_check.py --out $(OUT)

clean:
	rm -rf build dist *.egg-info fastviz/ops/_cpu.so fastviz/ops/_cuda.so fastviz/ops/_build.json
