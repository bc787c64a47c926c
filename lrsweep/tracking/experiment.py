"""A sweep's experiment and runs in an MLflow store. Everything here calls the store."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrsweep.errors import InputError
from lrsweep.tracking.pending import PendingRun, now
from lrsweep.tracking.tracker import DatasetInfo

_LONGEST_TAG = 6000
# The trials' colors, in turn: matplotlib's default ten. MLflow picks colors at random, and similar ones are common.
_COLORS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
)


class Experiment:
    """An experiment and a sweep's runs in it.

    Args:
        client: MLflow's client for the store.
        name: The experiment's name. It is created if it does not exist.
        artifacts: Where a new experiment keeps its files; None is where the server keeps them.
        sweep_id: Identifies the sweep, whose runs carry it as a tag.

    Attributes:
        id: The experiment's id in MLflow.
        sweep_id: The sweep's id.

    Raises:
        InputError: The experiment was deleted.
    """

    def __init__(self, client: Any, name: str, artifacts: Path | None, sweep_id: str) -> None:
        self._client = client
        self.sweep_id = sweep_id
        self._parent_id = ""
        self.id = self._find_or_create(name, artifacts)

    def _find_or_create(self, name: str, artifacts: Path | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            # Without a location, MLflow uses mlruns in the current folder.
            location = artifacts and str(artifacts / re.sub(r"[^\w-]+", "-", name))
            try:
                return str(self._client.create_experiment(name, location))
            except MlflowException:
                # Another process may have created it just now.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(_undeleted(found).experiment_id)

    def parent(self, title: str) -> Any:
        """Returns MLflow's parent run of the sweep, new or set to running again.

        Args:
            title: The title of a new run.
        """
        mine = f"tags.`lrsweep.sweep_id` = '{self.sweep_id}' AND tags.`lrsweep.run` = 'sweep'"
        found = self._client.search_runs([self.id], mine, max_results=1, order_by=["start_time ASC"])
        if found:
            run = found[0]
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self._client.create_run(self.id, now(), {**self._identity(), "lrsweep.run": "sweep"}, title)
        self._parent_id = str(run.info.run_id)
        return run

    def set_tag(self, name: str, value: str) -> None:
        """Sets a tag of the experiment."""
        self._client.set_experiment_tag(self.id, name, value)

    def send(self, run: PendingRun) -> None:
        """Sends what MLflow does not have yet of a run.

        Each part is dropped from `run` as soon as it is sent. Sending a part twice does no harm.
        """
        from mlflow.entities import Metric, Param, RunTag

        if run.run_id is None:
            run.run_id = self._create_trial(run)
        while batch := run.batch():
            self._client.log_batch(
                run.run_id,
                metrics=[Metric(*point) for point in batch.points],
                params=[Param(*param) for param in batch.params.items()],
                tags=[RunTag(*tag) for tag in batch.tags.items()],
            )
            run.sent(batch)
        if run.dataset:
            self._client.log_inputs(run.run_id, datasets=_dataset_inputs(run.dataset))
            run.dataset = None
        if end := run.ending():
            self.end(run, end)
        while run.artifacts:
            path = run.artifacts[0]
            if path.is_dir():
                self._client.log_artifacts(run.run_id, str(path), path.name)
            else:
                self._client.log_artifact(run.run_id, str(path))
            del run.artifacts[0]

    def end(self, run: PendingRun, end: tuple[str, int]) -> None:
        """Ends MLflow's run, even if it is incomplete.

        Args:
            run: The run. Nothing happens if MLflow does not have it yet.
            end: MLflow's status, and the time in milliseconds since the epoch.
        """
        if run.run_id:
            self._client.set_terminated(run.run_id, *end)
            run.ended(end)

    def ended_trials(self) -> set[int]:
        """Returns the numbers of the trials whose runs have ended and were not interrupted."""
        mine = (
            f"tags.`lrsweep.sweep_id` = '{self.sweep_id}' AND tags.mlflow.parentRunId = '{self._parent_id}' "
            "AND attributes.status != 'RUNNING' AND tags.status != 'interrupted'"
        )
        return {int(run.data.tags["trial"]) for run in self._client.search_runs([self.id], mine, max_results=50_000)}

    def label_trials(self, tags: Mapping[int, Mapping[str, str]]) -> None:
        """Sets tags of the sweep's trials, where they differ.

        Args:
            tags: Tags by trial number.
        """
        from mlflow.entities import RunTag

        mine = f"tags.`lrsweep.sweep_id` = '{self.sweep_id}' AND tags.mlflow.parentRunId = '{self._parent_id}'"
        for run in self._client.search_runs([self.id], mine, max_results=50_000):
            wanted = tags.get(int(run.data.tags["trial"]), {})
            changed = [RunTag(key, value) for key, value in wanted.items() if run.data.tags.get(key) != value]
            if changed:
                self._client.log_batch(run.info.run_id, tags=changed)

    def end_stale_trials(self) -> None:
        """Ends runs that a killed process left running. The sweep has ended, so nothing works on them."""
        stale = (
            f"tags.`lrsweep.sweep_id` = '{self.sweep_id}' AND tags.mlflow.parentRunId = '{self._parent_id}' "
            "AND attributes.status = 'RUNNING'"
        )
        for run in self._client.search_runs([self.id], stale):
            self._client.set_tag(run.info.run_id, "status", "interrupted")
            self._client.set_terminated(run.info.run_id, "KILLED")

    def _create_trial(self, run: PendingRun) -> str:
        """Creates a child run; deletes those of earlier attempts, also of a request whose response was lost."""
        mine = f"tags.`lrsweep.sweep_id` = '{self.sweep_id}' AND tags.trial = '{run.trial}'"
        for earlier in self._client.search_runs([self.id], mine):
            self._client.delete_run(earlier.info.run_id)
        assert run.trial is not None
        tags = {
            **self._identity(),
            "mlflow.parentRunId": self._parent_id,
            "mlflow.runColor": _COLORS[run.trial % len(_COLORS)],
            "trial": str(run.trial),
        }
        return str(self._client.create_run(self.id, run.started, tags, run.title).info.run_id)

    def _identity(self) -> dict[str, str]:
        return {"lrsweep.sweep_id": self.sweep_id, "mlflow.source.name": "lrsweep", "mlflow.source.type": "LOCAL"}


def mlflow_tags(tags: Mapping[str, str], run_id: str) -> dict[str, str]:
    """The tags as MLflow has them: a description is a tag of its own, and links to a run's files by their address.

    Args:
        tags: Tags by name.
        run_id: The run that has the linked files.
    """
    named = {"mlflow.note.content" if key == "description" else key: value for key, value in tags.items()}
    files = f"](get-artifact?run_uuid={run_id}&path="
    return {key: value.replace("](artifact:", files)[:_LONGEST_TAG] for key, value in named.items()}


def check_experiment(client: Any, name: str) -> None:
    """Checks that an experiment was not deleted; one that does not exist yet is fine.

    Raises:
        InputError: The experiment was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        _undeleted(found)


def _undeleted(found: Any) -> Any:
    if found.lifecycle_stage != "active":
        raise InputError(
            f"tracking.experiment={found.name}: deleted in MLflow; set another name, or restore it with "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found


def _dataset_inputs(dataset: DatasetInfo) -> list[Any]:
    """The data as MLflow's dataset inputs. MLflow identifies a dataset by name and digest, so each part has a name."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    def part(name: str, context: str, rows: int) -> Any:
        entity = Dataset(
            name=f"{dataset.name[:400]} ({name})",
            digest=dataset.fingerprint[:12],
            source_type="local" if Path(dataset.source).exists() else "external",
            source=json.dumps({"uri": dataset.source}),
            profile=json.dumps({"num_rows": rows}),
        )
        return DatasetInput(entity, [InputTag("mlflow.data.context", context)])

    return [part("train", "training", dataset.train_rows), part("eval", "eval", dataset.eval_rows)]
