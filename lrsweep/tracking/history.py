"""Reads a run's curves from MLflow."""

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrsweep.analysis.diagnosis.curve import MEASURE
from lrsweep.analysis.log_readers.rows import name
from lrsweep.errors import InputError
from lrsweep.libraries import environment
from lrsweep.tracking.store import ENVIRONMENT, Store, default_uri, one_line

_NAMES = ("loss", "eval_loss", "learning_rate", "grad_norm", "epoch")


def tag_active_run(tags: Mapping[str, str]) -> None:
    """Sets tags of the MLflow run that the calling program has open. Does nothing if it has none."""
    if "mlflow" not in sys.modules:
        return
    import mlflow

    if mlflow.active_run() is not None:
        mlflow.set_tags(dict(tags))


def run_history(run_id: str, uri: str | None = None) -> list[Mapping[str, Any]]:
    """Returns the points of a run's losses, learning rate and gradient norm, and of what tells the kind of training.

    Args:
        run_id: MLflow's run id.
        uri: The store's URI; None is that in MLFLOW_TRACKING_URI, or else the working folder's store.

    Returns:
        One row per point, in the order of logging, with `step` and the value under the metric's name. Programs name
        their metrics in several ways; `log_readers.rows` knows them.

    Raises:
        InputError: There is no such store or run.
        StorageError: The store does not respond.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri()
    if Path(uri.removeprefix("file://")).is_dir():
        return _folder_history(run_id, uri)
    store = Store(uri, Path())
    if store.file is not None and not store.file.is_file():
        raise InputError(f"{run_id}: no such file, and no MLflow store {store.file} to look for a run in")
    client = store.connect()
    with store.session():
        from mlflow.exceptions import MlflowException

        try:
            return _rows(client, run_id)
        except MlflowException:
            raise InputError(f"{run_id}: no such run in {store.shown}") from None


def _folder_history(run_id: str, uri: str) -> list[Mapping[str, Any]]:
    """Reads a run from a folder of files (mlruns), where MLflow itself kept runs by default for long."""
    with warnings.catch_warnings(), environment(ENVIRONMENT):
        # MLflow warns that it will drop such stores.
        warnings.simplefilter("ignore")
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        try:
            return _rows(MlflowClient(tracking_uri=uri), run_id)
        except MlflowException as fault:
            raise InputError(f"{run_id}: not in {uri}: {one_line(fault)}") from None


def _rows(client: Any, run_id: str) -> list[Mapping[str, Any]]:
    names = [key for key in client.get_run(run_id).data.metrics if _is_of_a_curve(name(key))]
    points = [(key, point) for key in names for point in client.get_metric_history(run_id, key)]
    points.sort(key=lambda one: (one[1].timestamp, one[1].step))
    return [{"step": point.step, key: point.value} for key, point in points]


def _is_of_a_curve(key: str) -> bool:
    """Whether a metric shows how the training went: a loss, or what tells which kind of training it is."""
    return key in _NAMES or (key.startswith("eval_") and key.endswith("loss")) or MEASURE.match(key) is not None
