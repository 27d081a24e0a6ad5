# Each target is a line or two over scripts/; without make, run the lines themselves.

# Tests and the demonstration start hundreds of processes, each of which would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo serve test check soak bench lock clean

demo: ## the main job, on the embedded store; PROVIDER=openai and the like for a real model
	@scripts/setup
	@.venv/bin/cloister demo $(if $(PROVIDER),--provider $(PROVIDER))

serve: ## the HTTP APIs on this machine, with the offline model; ARGS="--port 9000" for more
	@scripts/setup
	@exec .venv/bin/cloister serve --provider $(or $(PROVIDER),offline) $(ARGS)

test: ## all tests but the long ones; ARGS="-k window" for some
	@scripts/setup dev
	@.venv/bin/pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

check: ## format, lint, types, layers, snippets of the documents
	@scripts/check $(ARGS)

soak: ## the long tests, and many more examples for the others
	@scripts/setup dev
	@HYPOTHESIS_PROFILE=soak .venv/bin/pytest -m "soak or not soak" -o faulthandler_timeout=1800 $(ARGS)

bench: ## the tables of docs/performance.md that need no server
	@scripts/setup dev
	@set -e; for name in turns masking lengths memory tokens http_client imports sinks; do echo "--- $$name"; .venv/bin/python -m bench.$$name; done

lock: ## write the lock files anew; ARGS=--upgrade for the newest versions
	@scripts/setup dev
	@scripts/lock $(ARGS)

clean:
	rm -rf .venv .cache build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
