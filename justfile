# `just RECIPE`; CONTRIBUTING.md says how .venv is made, and `just ci` makes it anew.

test:
    .venv/bin/pytest
# trains nothing
quick:
    .venv/bin/pytest -n 0 tests/cli/test_cli.py tests/config/test_config.py tests/objectives/test_soft_targets.py
lint:
    .venv/bin/ruff check . && .venv/bin/ruff format --check .
types:
    .venv/bin/mypy
# on an idle machine
bench:
    .venv/bin/python benchmarks/startup.py
# writes the tables of keys and objectives, then the site into build/site; needs pip install -e '.[docs]' -c constraints.txt
docs:
    .venv/bin/python docs/tables.py
    .venv/bin/sphinx-build -W --keep-going -q docs build/site
    .venv/bin/python docs/links.py build/site
ci:
    .ci/run
