# make demo   installs, builds the demo models, runs a search end to end
# make test   installs and runs the tests (offline, under 10 minutes on 2 cores)

.PHONY: install demo demo-models test test-all lint format clean

BIN := .venv/bin

install:
	@scripts/install.sh

demo-models: install
	@$(BIN)/python scripts/demo_models.py

demo: demo-models
	@$(BIN)/evolve run search_spaces/demo.yaml

test: install
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: install
	@$(BIN)/python -m pytest --run-slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv models build dist
