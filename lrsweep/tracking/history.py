"""Reads a run's curves from MLflow."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrsweep.errors import InputError
from lrsweep.tracking.store import Store, default_uri

_NAMES = ("loss", "eval_loss", "learning_rate", "grad_norm")


def tag_active_run(tags: Mapping[str, str]) -> None:
    """Sets tags of the MLflow run that the calling program has open. Does nothing if it has none."""
    if "mlflow" not in sys.modules:
        return
    import mlflow

    if mlflow.active_run() is not None:
        mlflow.set_tags(dict(tags))


def run_history(run_id: str, uri: str | None = None) -> list[Mapping[str, Any]]:
    """Returns the points of a run's loss, eval loss, learning rate and gradient norm.

    Args:
        run_id: MLflow's run id.
        uri: The store's URI; None is the working folder's store.

    Returns:
        One row per point, with `step` and the value under the metric's name.

    Raises:
        InputError: There is no such store or run.
        StorageError: The store does not respond.
    """
    store = Store(uri or default_uri(), Path())
    if store.file is not None and not store.file.is_file():
        raise InputError(f"{run_id}: no such file, and no MLflow store {store.file} to look for a run in")
    client = store.connect()
    with store.session():
        from mlflow.exceptions import MlflowException

        try:
            return [
                {"step": point.step, name: point.value}
                for name in _NAMES
                for point in client.get_metric_history(run_id, name)
            ]
        except MlflowException:
            raise InputError(f"{run_id}: no such run in {store.shown}") from None
