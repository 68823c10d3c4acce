# make demo    see it work              make check   formatter, linter, types, import rules
# make test    run every test           make lock    renew requirements.lock
# make docs    write generated pages    make mutate  test the tests of the domain
# make long    thousands of lives of the ledger (LIVES=5000), and what they met
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
LIVES ?= 5000

.PHONY: demo test long check format docs mutate lock clean

$(STAMP): pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	@$(BIN)/order-ledger demo

test: $(STAMP)
	@$(BIN)/python -m pytest

long: $(STAMP)
	@LIVES=$(LIVES) $(BIN)/python -m pytest -q tests/stateful
	@FUZZ_S=600 $(BIN)/python -m pytest -q tests/simulation/test_fuzz.py
	@TRADES=10000 $(BIN)/python -m pytest -q tests/integration/test_trading_tables.py
	@MANUAL_STEPS=5000 $(BIN)/python -m pytest -q tests/simulation/test_manual_trading.py

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_tidy.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)
	@$(BIN)/python -m tests.make_docs
	@$(BIN)/python -m tests.make_retcodes_page
	@$(BIN)/python -m tests.make_settings_page
	@$(BIN)/python -m tests.make_schema_page
	@$(BIN)/python -m tests.make_asyncapi

mutate: $(STAMP)
	@$(BIN)/python -m tests.mutate

lock:
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --extra dev \
	  --python-version 3.11 --output-file requirements.lock pyproject.toml
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
	  --extra embedded --extra mt5linux --extra otel --extra parquet --extra postgres --constraint requirements.lock \
	  --output-file deploy/requirements.lock pyproject.toml

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .order-ledger mutants
