# Sourced by every other script: stops at the first error, changes to the repository's root, and makes .venv from the requirements if it
# is not there or older than they are. An environment that is active already (conda, module, container) is used as it is.
set -euo pipefail
# Paths that are relative to where the user stands. (A function, so that it leaves no variables behind.)
make_absolute() {
  local variable given
  for variable in DATA_ROOT YFCC_ROOT WEIGHTS; do
    given=${!variable:-}
    if [ -n "$given" ] && [ ! -e "$given" ] && [ $variable != WEIGHTS ]; then
      echo "$variable=$given: no such file or folder" >&2 && exit 2
    fi
    case $given in "" | /*) ;; *) export "$variable=$PWD/$given" ;; esac
  done
}
make_absolute
# Lists of names, and single values. They become words of commands, so other characters would change the command.
check_words() {
  local variable
  for variable in BASE_MIN DEVICES JUDGE KINDS MAX_PER_CLASS MAX_SHOTS METHODS NETWORK N_BACKGROUND PRECISION REPRESENTATION REPRESENTATIONS SEEDS SETUP SHOTS START TIMM TRIALS; do
    case ${!variable:-} in
      *[!A-Za-z0-9_.:/\ -]*) echo "$variable=${!variable}: only names and numbers are expected" >&2 && exit 2 ;;
    esac
    case $variable-${!variable:-} in
      KINDS-* | METHODS-* | REPRESENTATIONS-* | SEEDS-* | SHOTS-* | TRIALS-*) ;;
      *\ *) echo "$variable=${!variable}: one value is expected" >&2 && exit 2 ;;
    esac
  done
}
check_words
# The extractor of a representation (DATASET NAME). NAME_released is kept in the repository, and not trained.
extractor_of() {
  case $2 in *_released) echo "examples/extractors/$1-${2%_released}" ;; *) echo "outputs/$1/$2/extractor" ;; esac
}
# The settings of shrink_hallucinate for a representation (DATASET STAGE NAME [VARIANT]). airbench_sgm_seed1 and airbench_sgm_released have those
# of airbench_sgm.
settings_of() {
  local name=${3%_seed[0-9]}
  echo "configs/shrink_hallucinate/$2-$1-${name%_released}${4:-}.yaml"
}
# What a representation (DATASET NAME CONFIG) is made from: its released extractor or its config.
source_of() {
  case $2 in *_released) extractor_of "$1" "$2" ;; *) echo "$3" ;; esac
}
# What the user's representation is made from must be there.
check_representation() {
  [ -e "$1" ] || { echo "no such representation: $1 does not exist" >&2 && exit 2; }
}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# (conda's own `base` is no environment for this)
if [ -z "${VIRTUAL_ENV:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" = base ]; then
  if [ ! -f .venv/ready ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    echo "make .venv before the job: bash scripts/environment.sh" >&2 && exit 2 # tasks of an array would each make it
  fi
  if [ ! -f .venv/ready ] || [ requirements.txt -nt .venv/ready ] || [ requirements-dev.txt -nt .venv/ready ]; then
    python=${PYTHON:-python3}
    command -v "$python" > /dev/null || { echo "$python: not found; PYTHON=/path/to/python3 names another" >&2 && exit 2; }
    if ! "$python" -c "import sys; sys.exit(sys.version_info < (3, 11))"; then
      echo "$("$python" --version): Python 3.11 or newer is needed; PYTHON=/path/to/python3 names another" >&2 && exit 2
    fi
    echo "making .venv from requirements-dev.txt (about 2 minutes, 8 GB): packages are downloaded, then installed"
    if [ ! -f .venv/ready ]; then
      rm -rf .venv
      "$python" -m venv .venv
      .venv/bin/python -m pip install --quiet --upgrade pip
    fi
    # A line for each package; without it, two silent minutes.
    .venv/bin/python -m pip install --progress-bar off --editable . -r requirements-dev.txt |
      { grep --line-buffered -E '^(Collecting|Installing|Successfully)' || true; } | cut -c 1-120
    touch .venv/ready
  fi
  source .venv/bin/activate
fi
export LOWSHOT_CHAIN=1 # the next stage is run, not proposed
