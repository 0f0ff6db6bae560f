# The verbs of the repository. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help install demo test alerts attack fuzz chaos bench browser lint audit docs clean
SHELL := /bin/sh

UV_VERSION := 0.13.9
# The first Python of this machine that will do; nothing is downloaded for want of one.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && echo $$python && break; done)

export UV_PYTHON_DOWNLOADS := never
# Only the system's certificate store knows the certificate of a company's proxy.
export UV_SYSTEM_CERTS := 1
# Every process imports thousands of modules; whoever's Python writes no bytecode would wait seconds for each.
export UV_COMPILE_BYTECODE := 1
# An environment that the caller has active is not ours to fill.
unexport VIRTUAL_ENV UV_PROJECT_ENVIRONMENT PYTHONPATH PYTHONHOME

help: ## List the verbs
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r verb what; do printf '  make %-9s %s\n' "$$verb" "$$what"; done

install: .venv/.installed ## Set up .venv with the locked dependencies; .venv/bin/xalen-batch is there afterwards

demo: install ## Start everything, run the example batches for both models, show results and invoices
	@.venv/bin/python examples/demo.py

test: .venv/.real ## Run all tests, against real PostgreSQLs and Valkeys; a test that passes only when run again alone is named FLAKY, and fails with STRICT=1
	@.venv/bin/python -m tests $(if $(STRICT),--strict)

alerts: install ## Make the condition of every alert true in Prometheus' promtool; installs Debian's package prometheus as root
	@.venv/bin/python -m tests.alerts

attack: install ## Attack a system as greedy callers, tenants and hostile model servers; ATTACKS="estimates" for some, SMALL=1 as CI does
	@.venv/bin/python -m tests.attack $(if $(SMALL),--small) $(ATTACKS)

fuzz: install ## Fuzz the reader of input files, guided by coverage, for SECONDS=600; what it learns stays in .fuzz
	@.venv/bin/python -m tests.fuzz --seconds $(or $(SECONDS),600) --seed $(or $(SEED),1)

bench: .venv/.bench ## Measure against what users would write instead; SCENARIOS="zero-latency heavy-tail" for some, BENCH=--help for the options
	@.venv/bin/python -m benchmarks $(BENCH) $(SCENARIOS)

chaos: install ## Kill, freeze, cut off and empty everything at random, and look for a line that is lost or billed twice; SEED=17 RUNS=1 for one run
	@.venv/bin/python -m tests.chaos --seed $(or $(SEED),1) --runs $(or $(RUNS),500) $(if $(PUBLISH),--publish)

browser: .venv/.browser ## Test the console in a Chromium: every page in light and dark, wide and narrow, and without scripts
	@.venv/bin/python -m pytest -q -o python_files='check_*.py' tests/browser $(if $(ONLY),-k $(ONLY))

lint: install ## Check format, style, types and the direction of imports
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

audit: install ## Look the locked packages up among known vulnerabilities; exit code 1 if it finds one, 3 if it cannot reach the service
	@requirements=$$(mktemp) && trap 'rm -f "$$requirements"' EXIT && \
	.tools/bin/uv export --locked --quiet --all-extras --no-emit-local --format requirements.txt --output-file "$$requirements" --python .tools/bin/python >/dev/null && \
	.venv/bin/python -m tests.audit --requirement "$$requirements" --require-hashes --disable-pip --format json --progress-spinner off

docs: .docs/.installed ## Build the pages as a site that needs no network, .docs/site/index.html; a broken link or anchor fails
	@.venv/bin/python docs/site/build.py

clean: ## Remove what install, demo, test and docs have made in the checkout; data in .xalen stays
	rm -rf .venv .tools .demo .bench .chaos .docs .fuzz .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .grimp_cache .hypothesis dist tests/clients/*/.venv tests/clients/node/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml uv.lock .tools/.uv-$(UV_VERSION)
	.tools/bin/uv sync --locked --quiet --python .tools/bin/python
	@.venv/bin/python -m compileall -q -x '/(\.venv|node_modules)/' xalen_batch client migrations tests examples benchmarks
	@touch $@

.venv/.bench: .venv/.installed
	.tools/bin/uv sync --locked --quiet --inexact --group bench --python .tools/bin/python
	@touch $@

.venv/.real: .venv/.installed
	.tools/bin/uv sync --locked --quiet --inexact --group real --python .tools/bin/python
	@touch $@

.venv/.browser: .venv/.installed
	.tools/bin/uv sync --locked --quiet --inexact --group browser --python .tools/bin/python
	@touch $@

.docs/.installed: .venv/.installed
	UV_PROJECT_ENVIRONMENT=.docs/environment UV_COMPILE_BYTECODE=0 .tools/bin/uv sync --locked --quiet --only-group docs --python .tools/bin/python
	@touch $@

.tools/.uv-$(UV_VERSION):
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.14 is needed and none was found. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .tools || { echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@# pip before 24.2 has a certificate store of its own; where nothing names another, it gets the system's.
	@cert=$$(.tools/bin/python -m pip config get global.cert 2>/dev/null || \
		.tools/bin/python -c 'import ssl; paths = ssl.get_default_verify_paths(); print(paths.cafile or paths.capath or "")') && \
	PIP_CERT="$${PIP_CERT:-$${REQUESTS_CA_BUNDLE:-$$cert}}" .tools/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@
