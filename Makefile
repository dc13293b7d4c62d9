# `make help` lists the targets. A virtual environment in .venv is used where there is one.
PY ?= $(or $(wildcard .venv/bin/python),python3)
CC ?= cc
python = $(if $(findstring /,$(PY)),$(abspath $(PY)),$(PY))# for recipes that change directory
PYTEST ?= $(PY) -m pytest
TESTS ?= tests
THREADS ?= 1

# A copy of the sources for builds that must not disturb the normal one; times are kept, so that
# a second build of the copy compiles only what changed.
copy = mkdir -p $(1) && git ls-files -z -co --exclude-standard | \
	xargs -0 sh -c 'for f; do test -e "$$f" && printf "%s\0" "$$f"; done' sh | \
	tar -c --null -T - | tar -x -C $(1)

.PHONY: help dev test test-isa test-avx512 asan tsan annotate bench readme peers promises torch figures sweep thorough lint wheel clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' Makefile

dev:  ## .venv with an editable install and everything the other targets use
	python3 -m venv .venv
	.venv/bin/pip install -e ".[dev]"

test:  ## the suite
	$(PYTEST) $(TESTS)

test-isa:  ## the suite on each instruction set of this CPU, newest first, and with another BLAS kernel
	@set -e; for isa in $$($(PY) -c "from rnnfast import _kernels; print(*reversed(_kernels.isas()))"); do \
		echo "== RNNFAST_ISA=$$isa"; RNNFAST_ISA=$$isa $(PYTEST) -q $(TESTS); done
	@echo "== OPENBLAS_CORETYPE=Haswell"; OPENBLAS_CORETYPE=Haswell $(PYTEST) -q $(TESTS)

AVX512_TESTS ?= tests/test_kernels.py tests/test_invariance.py
test-avx512:  ## tests of the AVX-512 kernels on a CPU with AVX2, each vector as two (AVX512_TESTS=...)
	$(call copy,build/avx512)
	$(PY) tools/emulate_avx512.py build/avx512/csrc
	cd build/avx512 && RNNFAST_CFLAGS=-O1 $(python) setup.py -q build_ext --inplace
	cd build/avx512 && PYTHONPATH=$(CURDIR)/build/avx512 $(python) -m pytest -q -p no:cacheprovider \
		$(AVX512_TESTS)

thorough:  ## the suite with many more random cases, and the slow tests
	HYPOTHESIS_PROFILE=thorough $(PYTEST) $(TESTS)

# NumPy's own allocations come from malloc, so the tools see every read past an array's end.
# Leaks are not looked for: the interpreter itself never frees everything.
# Without the checks of object sizes, which the address sanitizer does better: compiling takes half.
SANITIZE = -fsanitize=address,undefined -fno-sanitize=object-size \
	-fno-sanitize-recover=undefined -fno-omit-frame-pointer
asan:  ## the suite under the address and undefined-behaviour sanitizers, with bounds checks (ASAN_TESTS=...)
	$(call copy,build/asan)
	cd build/asan && RNNFAST_DEBUG=1 RNNFAST_CFLAGS="$(SANITIZE)" RNNFAST_LDFLAGS="$(SANITIZE)" \
		$(python) setup.py -q build_ext --inplace
	cd build/asan && PYTHONPATH=$(CURDIR)/build/asan PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
		UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so)" \
		$(python) -m pytest -q -p no:cacheprovider $(or $(ASAN_TESTS),$(TESTS))

# The modules are built for it too, and tests of many threads run on them; Python and NumPy are not,
# so what happens inside those is not seen. A child of a fork may start threads: that is the test.
# --capture=sys: reports go past pytest, which would keep those of tests that pass.
ROUNDS ?= 10
TSAN_TESTS ?= tests/test_threads.py tests/test_invariance.py
tsan:  ## the pool's stress test, then tests of threads, under the thread sanitizer (ROUNDS=... TSAN_TESTS=...)
	mkdir -p build
	$(CC) -O1 -g -std=c11 -fsanitize=thread -Icsrc tests/pool_stress.c csrc/pool.c csrc/cpu.c -pthread \
		-o build/pool_stress
	build/pool_stress $(ROUNDS)
	$(call copy,build/tsan)
	cd build/tsan && RNNFAST_CFLAGS="-O1 -g -fsanitize=thread" RNNFAST_LDFLAGS=-fsanitize=thread \
		$(python) setup.py -q build_ext --inplace
	cd build/tsan && PYTHONPATH=$(CURDIR)/build/tsan OPENBLAS_NUM_THREADS=1 TSAN_OPTIONS=die_after_fork=0 \
		LD_PRELOAD="$$($(CC) -print-file-name=libtsan.so)" \
		$(python) -m pytest -q -p no:cacheprovider --capture=sys $(TSAN_TESTS)

annotate:  ## Cython's annotated sources in build/annotate; fails where a nogil line talks to Python
	$(call copy,build/annotate)
	cd build/annotate && RNNFAST_ANNOTATE=1 $(python) setup.py -q --name
	$(PY) tools/check_annotate.py build/annotate/rnnfast

# Threads are fixed before NumPy loads its BLAS. For steady figures pin the process:
#   taskset -c 1 make bench
bench:  ## every compiled function beside its NumPy twin; writes bench/results/bench.json (BENCH=-k...)
	mkdir -p bench/results
	OMP_NUM_THREADS=$(THREADS) OPENBLAS_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) \
		RNNFAST_NUM_THREADS=$(THREADS) $(PYTEST) -c bench/pytest.ini bench \
		--benchmark-json=bench/results/bench.json $(BENCH)

readme:  ## paste the figures in bench/results (bench, peers, promises, torch) into README.md and docs/
	$(PY) tools/readme_table.py bench/results

peers:  ## our layers beside the other libraries installed, over a grid of shapes (THREADS=2, ONLY=..., AGAIN=...)
	$(PY) bench/grid.py --threads $(THREADS) --only "$(ONLY)" --again "$(AGAIN)"

promises:  ## the other goals of speed: ragged batches, denormals, steps, threads, peak, memory (ONLY=...)
	$(PY) bench/promises.py --only "$(ONLY)"

torch:  ## what rnnfast.torch gains over PyTorch's own modules (THREADS=...)
	$(PY) bench/torch_gain.py --threads $(THREADS)

figures:  ## all of them: bench, torch, peers on one thread and on two, promises, readme; an hour
	$(MAKE) bench torch peers THREADS=1
	$(MAKE) peers THREADS=2
	$(MAKE) promises readme

sweep:  ## every float32 through exp, tanh, sigmoid and log1p on every instruction set
	mkdir -p build
	$(CC) -O3 -std=c11 -ffp-contract=off -fno-math-errno -Icsrc tools/sweep.c csrc/*.c -lm -pthread -o build/sweep
	build/sweep

WARNINGS = -Wall -Wextra -Wconversion -Werror
lint:  ## ruff, cython-lint, mypy on a client, and C without a warning
	$(PY) -m ruff check .
	PATH="$(dir $(python)):$$PATH" cython-lint rnnfast/*.pyx rnnfast/*.pxd
	$(PY) -m mypy --strict tests/test_typed_client.py
	@set -e; for f in csrc/*.c; do echo "$(CC) $(WARNINGS) $$f"; \
		$(CC) -O2 -std=c11 -ffp-contract=off $(WARNINGS) -Icsrc -c $$f -o /dev/null; done

wheel:  ## sdist and wheel in dist/
	$(PY) -m build

clean:  ## remove everything that was built
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .mypy_cache
	rm -f rnnfast/*.so rnnfast/*.pyd rnnfast/_*.c rnnfast/*.html rnnfast/_kernel_*.pxi
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
