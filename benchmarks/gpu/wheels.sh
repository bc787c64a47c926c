#!/bin/sh
# Fetches what a bare image with torch, transformers and peft lacks, as wheels for a machine without a network:
#
#     sh benchmarks/gpu/wheels.sh            # where there is a network: writes .wheels/
#     sh benchmarks/gpu/wheels.sh install    # on the machine: installs them into .wheels/site; the image stays as it is
#
# PYTHON_VERSION=3.11 fetches for another Python than 3.12. HAVE="pyarrow scipy" leaves out what the image has already.
# WITH_MLFLOW=1 fetches MLflow too; `make gpu` does without (tracking=none). The versions are those of constraints.txt.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}

if [ "${1:-}" = install ]; then
    exec "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target .wheels/site .wheels/*.whl
fi

pinned() {
    for name in "$@"; do
        case " ${HAVE:-} " in *" $name "*) continue ;; esac
        grep -i "^$name==" constraints.txt || { echo "$name: not in constraints.txt" >&2; exit 1; }
    done
}
core="alembic annotated-types colorlog contourpy cycler datasets dill filelock fonttools greenlet hydra-core iniconfig
    joblib kiwisolver Mako markdown-it-py matplotlib mdurl multiprocess omegaconf optuna orjson pandas pillow platformdirs
    pluggy pyarrow pydantic pydantic_core Pygments pyparsing pytest python-dateutil rich scikit-learn scipy six
    SQLAlchemy threadpoolctl typing-inspection xxhash"
mlflow="cachetools cffi cryptography databricks-sdk fastapi google-auth importlib_metadata mlflow mlflow-skinny
    mlflow-tracing opentelemetry-api opentelemetry-proto opentelemetry-sdk opentelemetry-semantic-conventions sqlparse
    starlette"
# shellcheck disable=SC2086
wanted=$(pinned $core ${WITH_MLFLOW:+$mlflow})
mkdir -p .wheels
# shellcheck disable=SC2086
"$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version "${PYTHON_VERSION:-3.12}" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
    --dest .wheels $wanted
# It is published as source only.
"$python" -m pip wheel --quiet --no-deps --wheel-dir .wheels "$(pinned antlr4-python3-runtime)"
du -sh .wheels
