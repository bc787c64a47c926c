"""Imports are architecture: who may know whom, and what stays out until it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lrsweep

PACKAGE = Path(lrsweep.__file__).parent
# Library -> the only modules, or packages with all their modules, that may import it.
ALLOWED = {
    "optuna": {"claims", "space", "study", "studies", "trials", "samplers", "storage"},
    "mlflow": {"tracking"},
    "hydra": {"compose"},
    "omegaconf": {"compose"},
    "rich": {"__main__", "machine", "report.screen", "report.text"},
    "ray": {"executors.ray"},
    "submitit": {"executors.slurm", "executors.slurm_job"},
}
ENGINE_SIDE = ("engines", "finetune", "packing", "embedded")


def imported(path: Path) -> Iterator[str]:
    """The names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        for name in imported(path):
            library = name.split(".")[0]
            if library in ALLOWED and not any(f"{module}.".startswith(f"{room}.") for room in ALLOWED[library]):
                found.append(f"{module} imports {library}")
            if module.split(".")[0] in ENGINE_SIDE and name.startswith(
                ("lrsweep.config.search_space", "lrsweep.stud", "lrsweep.search.worker_study", "lrsweep.tracking")
            ):
                found.append(f"{module} imports {name}")
    return found


def test_libraries_stay_in_their_rooms() -> None:
    assert violations(PACKAGE) == []


def test_a_leak_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "bad.py").write_text("def f():\n    import optuna\nfrom lrsweep.study import Study\n")
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "good.py").write_text("import mlflow\n")
    (tmp_path / "tracking_too.py").write_text("from mlflow import MlflowClient\n")
    assert violations(tmp_path) == [
        "engines.bad imports lrsweep.study.Study",
        "engines.bad imports optuna",
        "tracking_too imports mlflow",
    ]


@pytest.mark.parametrize(
    ("module", "kept_out"),
    [
        ("lrsweep.__main__", ("torch", "transformers", "mlflow", "optuna", "datasets", "matplotlib", "hydra")),
        ("lrsweep.config.hydra_compose", ("torch", "transformers", "mlflow", "optuna", "datasets", "matplotlib")),
        ("lrsweep.sweep", ("torch", "transformers", "mlflow", "datasets")),
        ("lrsweep.orchestration.executors.worker_main", ("torch", "mlflow", "matplotlib")),
        ("lrsweep.tracking", ("torch", "transformers", "mlflow", "datasets", "matplotlib")),
        ("lrsweep.training.data.loading", ("torch", "transformers", "datasets", "mlflow", "optuna", "hydra")),
        ("lrsweep.training.engines.trainer", ("optuna", "hydra", "mlflow", "omegaconf")),
    ],
)
def test_heavy_libraries_wait_until_needed(module: str, kept_out: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print([name for name in {kept_out!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
