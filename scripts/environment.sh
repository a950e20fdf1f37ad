# Sourced by every other script: stops at the first error, stands in the repository's root, and makes .venv from the requirements if it
# is not there or older than they are. An environment that is active already (conda, module, container) is used as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# (conda's own `base` is no environment for this)
if [ -z "${VIRTUAL_ENV:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" = base ]; then
  if [ ! -f .venv/ready ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    echo "make .venv before the job: bash scripts/environment.sh" >&2 && exit 2 # tasks of an array would each make it
  fi
  if [ ! -f .venv/ready ] || [ requirements.txt -nt .venv/ready ] || [ requirements-dev.txt -nt .venv/ready ]; then
    echo "making .venv from requirements-dev.txt (about 2 minutes, 7 GB)"
    if [ ! -f .venv/ready ]; then
      rm -rf .venv
      "${PYTHON:-python3}" -m venv .venv
      .venv/bin/python -m pip install --quiet --upgrade pip
    fi
    .venv/bin/python -m pip install --quiet --editable . -r requirements-dev.txt
    touch .venv/ready
  fi
  # shellcheck disable=SC1091
  source .venv/bin/activate
fi
export LOWSHOT_CHAIN=1 # the next stage is run, not proposed
