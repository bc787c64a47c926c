"""A sweep in MLflow: one experiment, one parent run, one child run a trial. The only package that imports mlflow.

Training never waits for MLflow: what is logged waits in memory until a thread of the tracker's own has sent it.
"""

from pathlib import Path

from lrsweep.config.schema import TrackingConfig
from lrsweep.tracking.experiment import check_experiment
from lrsweep.tracking.history import run_history
from lrsweep.tracking.mlflow_tracker import MlflowTracker
from lrsweep.tracking.store import Store, default_uri
from lrsweep.tracking.tracker import DatasetInfo, NoTracker, Tracker
from lrsweep.tracking.ui import compare_url, serve_ui

__all__ = [
    "DatasetInfo",
    "NoTracker",
    "Tracker",
    "compare_url",
    "default_uri",
    "open_tracker",
    "run_history",
    "serve_ui",
]


def open_tracker(config: TrackingConfig, folder: Path, sweep: str | None = None) -> Tracker:
    """The tracker that the config asks for, its store reached and, if new, created; `folder` is the working folder.

    An experiment that the config does not name has the name of the sweep. Raises InputError for a uri that is no store and
    an experiment that was deleted, StorageError when the store does not answer.
    """
    if config.name == "none":
        return NoTracker()
    store = Store(config.uri or default_uri(folder), folder)
    artifacts = None if store.is_server else folder.resolve() / "mlruns"
    client, experiment = store.connect(), config.experiment or sweep
    if experiment is not None:
        with store.session(), store.faults():
            check_experiment(client, experiment)
    return MlflowTracker(store, client, config, artifacts)
