#!/usr/bin/env bash
# Format, lint and the tests, with --slow also those that take minutes; further arguments go to pytest.
# Tests on real images need LOWSHOT_DATA (default ../shared/data) and skip with a reason without it.
source "$(dirname "$0")/environment.sh"
chosen="not slow"
if [ "${1:-}" = --slow ]; then chosen="" && shift; fi
ruff format --check .
ruff check .
shellcheck scripts/*.sh scripts/*/*.sh scripts/slurm/*.sbatch benchmarks/*.sh .ci/run
lint-imports --no-logo --no-cache
python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m "$chosen" "$@"
