"""Tracking of a sweep in MLflow: an experiment, a parent run, and a child run for each trial.

No other package imports mlflow. Training never waits for MLflow: logged values are kept in memory until the tracker's
own thread has sent them.
"""

from pathlib import Path

from lrsweep.config.schema import TrackingConfig
from lrsweep.tracking.experiment import check_experiment
from lrsweep.tracking.history import run_history, tag_active_run
from lrsweep.tracking.mlflow_tracker import MlflowTracker
from lrsweep.tracking.store import Store, default_uri
from lrsweep.tracking.tracker import DatasetInfo, NoTracker, Tracker
from lrsweep.tracking.ui import compare_url, runs_filter, serve_ui, trial_url, view_url

__all__ = [
    "DatasetInfo",
    "NoTracker",
    "Tracker",
    "check_uri",
    "compare_url",
    "default_uri",
    "import_client",
    "open_tracker",
    "run_history",
    "runs_filter",
    "serve_ui",
    "tag_active_run",
    "trial_url",
    "view_url",
]


def check_uri(config: TrackingConfig) -> None:
    """Raises InputError for a tracking URI that is not one. Does not connect."""
    if config.name != "none" and config.uri is not None:
        Store(config.uri, Path())


def import_client(config: TrackingConfig) -> None:
    """Imports MLflow, which takes seconds: `open_tracker` is quick after that. Does not connect."""
    if config.name != "none":
        Store(config.uri or default_uri(), Path()).import_client()


def open_tracker(config: TrackingConfig, folder: Path, sweep: str | None = None) -> Tracker:
    """Returns the tracker that the config selects. Connects to its store, which is created if it is new.

    Args:
        config: The tracking config.
        folder: The working folder, which holds the default store.
        sweep: The sweep's name, the default name of the experiment; None skips the check of an unnamed experiment.

    Raises:
        InputError: The URI is not valid, or the experiment was deleted.
        StorageError: The store does not respond.
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
