"""A run's curves, read back from MLflow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrsweep.errors import InputError
from lrsweep.tracking.store import Store, default_uri

_NAMES = ("loss", "eval_loss", "learning_rate", "grad_norm")


def run_history(run_id: str, uri: str | None = None) -> list[Mapping[str, Any]]:
    """The points of a run, a row each; of a store that is not the working folder's, name its `uri`.

    Raises InputError if there is no such store or run.
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
