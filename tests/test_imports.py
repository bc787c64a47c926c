"""Imports are architecture: who may know whom, and what stays out until it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import lrsweep

PACKAGE = Path(lrsweep.__file__).parent
# Library -> the only modules, or packages with all their modules, that may import it.
ALLOWED = {
    "optuna": {"search"},
    "mlflow": {"tracking"},
    "hydra": {"config"},
    "omegaconf": {"config"},
    "rich": {"cli", "report.screen", "report.terminal", "report.text"},
    "ray": {"orchestration.executors.ray"},
    "submitit": {"orchestration.executors.slurm", "orchestration.executors.slurm_job"},
}
# Training knows nothing of these.
KEPT_FROM_TRAINING = ("lrsweep.search", "lrsweep.tracking", "lrsweep.orchestration", "lrsweep.report", "lrsweep.cli")


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
            if module.split(".")[0] in ("training", "embedded") and name.startswith(KEPT_FROM_TRAINING):
                found.append(f"{module} imports {name}")
    return found


def folder_imports(package: Path) -> dict[str, set[str]]:
    """For each folder (and each module at the root), the others that it imports, also within functions."""
    found: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        own = path.relative_to(package).with_suffix("").parts[0]
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "lrsweep" and len(parts) > 1 and parts[1] != own:
                found.setdefault(own, set()).add(parts[1])
    return found


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """A cycle of a graph; empty where there is none."""

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := search(other, [*path, node]):
                return found
        done.add(node)
        return []

    done: set[str] = set()
    return next((found for node in sorted(graph) if (found := search(node, []))), [])


def test_libraries_stay_in_their_rooms() -> None:
    assert violations(PACKAGE) == []


def test_no_cycle_between_folders() -> None:
    assert cycle(folder_imports(PACKAGE)) == []


def test_few_modules_at_the_root() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_every_folder_has_a_purpose_of_one_line() -> None:
    for folder in sorted({path.parent for path in PACKAGE.rglob("*.py")}):
        purpose = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert purpose, folder
        assert purpose.splitlines()[0].endswith((".", ":")), folder


def test_a_leak_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "bad.py").write_text(
        "def f():\n    import optuna\nfrom lrsweep.search.records import Record\n"
    )
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "good.py").write_text("import mlflow\n")
    (tmp_path / "tracking_too.py").write_text("from mlflow import MlflowClient\n")
    assert violations(tmp_path) == [
        "tracking_too imports mlflow",
        "training.bad imports lrsweep.search.records.Record",
        "training.bad imports optuna",
    ]


def test_a_cycle_would_be_seen(tmp_path: Path) -> None:
    for folder, text in (("a", "from lrsweep.b import x"), ("b", "def f():\n    import lrsweep.c.d"), ("c", "")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.py").write_text(text + "\n")
    assert cycle(folder_imports(tmp_path)) == []
    (tmp_path / "c" / "d.py").write_text("from lrsweep import a\n")
    assert cycle(folder_imports(tmp_path)) == ["a", "b", "c", "a"]


@pytest.mark.parametrize(
    ("module", "kept_out"),
    [
        ("lrsweep.cli.main", ("torch", "transformers", "mlflow", "optuna", "datasets", "matplotlib", "hydra")),
        ("lrsweep.config.hydra_compose", ("torch", "transformers", "mlflow", "optuna", "datasets", "matplotlib")),
        ("lrsweep.cli.diagnose", ("torch", "transformers", "mlflow", "datasets", "hydra")),
        ("lrsweep.orchestration.run_sweep", ("torch", "transformers", "mlflow", "datasets")),
        ("lrsweep.orchestration.executors.worker_main", ("torch", "mlflow", "matplotlib")),
        ("lrsweep.tracking", ("torch", "transformers", "mlflow", "datasets", "matplotlib")),
        ("lrsweep.training.data.loading", ("torch", "transformers", "datasets", "mlflow", "optuna", "hydra")),
        ("lrsweep.training.engines.factory", ("torch", "transformers", "optuna", "hydra", "mlflow")),
        ("lrsweep.training.engines.trainer", ("optuna", "hydra", "mlflow", "omegaconf")),
    ],
)
def test_heavy_libraries_wait_until_needed(module: str, kept_out: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print([name for name in {kept_out!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
