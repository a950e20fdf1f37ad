#!/usr/bin/env bash
# Format, lint and all tests. Tests on real images need LOWSHOT_DATA (default ../shared/data) and skip with a reason without it.
source "$(dirname "$0")/environment.sh"
ruff format --check .
ruff check .
python -m pytest --numprocesses auto --maxprocesses 4 "$@"
