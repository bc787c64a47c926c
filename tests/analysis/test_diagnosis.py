"""Diagnosis: real curves of the embedded model where there are any, drawn ones for what no short run shows."""

import json
import math
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.analysis import diagnosis, log_readers
from lrsweep.analysis.diagnosis import Curve, curve, diagnose, rung
from lrsweep.errors import InputError
from lrsweep.files.metrics_log import read_metrics
from tests.conftest import FinishedSweep, lrsweep_here


def drawn(
    losses: Any,
    evals: Any = (),
    lr: float | None = 1e-4,
    noise: float = 0.05,
    seed: int = 0,
    weight_decay: float | None = None,
) -> Curve:
    """A curve from losses at steps 1, 2, ...; evaluations evenly among them, from step 0."""
    losses = np.asarray(losses, dtype=float) + noise * np.random.default_rng(seed).normal(size=len(losses))
    rows: list[dict[str, float]] = [{"step": i + 1, "loss": float(value)} for i, value in enumerate(losses)]
    if lr is not None:
        rows = [row | {"learning_rate": lr} for row in rows]
    every = len(losses) / max(len(evals) - 1, 1)
    rows += [{"step": round(i * every), "eval_loss": float(value)} for i, value in enumerate(evals)]
    return curve(rows, weight_decay)


def falling(n: int, start: float = 4.0, end: float = 2.0) -> Any:
    return end + (start - end) * np.exp(-4 * np.arange(n) / n)


@pytest.mark.parametrize("n", [20, 200, 20_000])
@pytest.mark.parametrize("seed", range(5))
def test_labels_hold_for_short_and_long_curves_alike(n: int, seed: int) -> None:
    t = np.arange(n) / n
    wanted = {
        "healthy": drawn(falling(n), seed=seed),
        "too_low": drawn(4.0 - 0.02 * t, seed=seed),
        "too_high": drawn(4.0 + 3.0 * t, seed=seed),
        "overfitting": drawn(falling(n, end=0.5), 3.0 - 1.5 * t[:: n // 20] + 2.0 * t[:: n // 20] ** 2, seed=seed),
        "oscillating": drawn(
            np.full(n, 2.5),
            3.0 + np.where(np.arange(20) % 4 < 2, 0.3, -0.3) - 0.02 * np.arange(20),
            seed=seed,
        ),
    }
    assert {name: diagnose(found).label for name, found in wanted.items()} == {name: name for name in wanted}


def test_an_eval_loss_alone_that_swings_is_mentioned() -> None:
    """In published logs, the eval set was small, or far from the training set: nothing was wrong with the rate."""
    swings = 3.0 + np.where(np.arange(20) % 4 < 2, 0.3, -0.3) - 0.02 * np.arange(20)
    found = diagnose(drawn(falling(200), swings))
    assert (found.label, "not clear enough for oscillating" in str(found.evidence["reason"])) == ("healthy", True)


def test_noise_alone_is_no_finding() -> None:
    """A noisy healthy curve, as small batches draw it, is healthy whatever the seed."""
    labels = [diagnose(drawn(falling(300), noise=0.4, seed=seed)).label for seed in range(200)]
    assert labels.count("healthy") >= 198, {label: labels.count(label) for label in set(labels)}


def test_spikes_and_bursts_are_seen() -> None:
    losses = falling(200)
    losses[[60, 120, 150]] += 8
    found = diagnose(drawn(losses))
    assert found.label == "oscillating"
    assert found.evidence["spikes"] == 3


def test_beside_a_better_run_at_a_lower_rate_bursts_of_the_gradient_count() -> None:
    rows = [
        {"step": i + 1, "loss": float(v), "grad_norm": 50.0 if i in (80, 90) else 1.0, "learning_rate": 1e-3}
        for i, v in enumerate(falling(200))
    ]
    bursts, better = curve(rows), drawn(falling(200, end=1.5), lr=3e-4)
    found = diagnose(bursts, [better])
    assert (found.label, found.evidence["bursts"], found.evidence["step"]) == ("oscillating", 2, 81.0)
    assert diagnose(bursts).label == "healthy"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_has_diverged_from_there_on(value: float) -> None:
    losses = falling(50)
    losses[30:] = value
    found = diagnose(drawn(losses, lr=3e-4))
    assert (found.label, found.evidence["step"]) == ("diverged", 31.0)
    assert found.advice[0].overrides == {"optimizer.lr": 1e-4}


def test_a_loss_scaler_at_work_is_no_divergence() -> None:
    rows = [
        {"step": i + 1, "loss": float(v), "grad_norm": math.inf if i < 2 else 1.0} for i, v in enumerate(falling(50))
    ]
    assert diagnose(curve(rows)).label == "healthy"


def test_inert_runs() -> None:
    same_evals = drawn(falling(30) * 0 + 4, [4.0] * 5, noise=0.3)
    no_gradients = curve([{"step": i, "loss": 4 + 0.1 * (i % 3), "grad_norm": 0.0} for i in range(1, 30)])
    assert [diagnose(found).label for found in (same_evals, no_gradients)] == ["inert", "inert"]


def test_other_runs_show_what_is_too_low_and_over_regularised() -> None:
    slow, fast = drawn(falling(100, end=3.6), lr=1e-5), drawn(falling(100, end=2.0), lr=1e-3)
    assert (diagnose(slow).label, diagnose(slow, [fast]).label) == ("healthy", "too_low")
    assert diagnose(fast, [slow]).label == "healthy"
    evals = np.linspace(4, 3, 6)
    held_back = drawn(falling(100, end=3.0), evals, weight_decay=1.0)
    free = drawn(falling(100, end=2.5), evals - 0.3 * np.arange(6) / 5, weight_decay=0.0)
    assert diagnose(held_back, [free]).label == "over_regularised"
    assert diagnose(free, [held_back]).label == "healthy"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["step", "loss", "eval_loss", "learning_rate", "grad_norm"]),
            st.one_of(st.floats(), st.integers(-5, 50), st.none(), st.text(max_size=2), st.booleans()),
        ),
        max_size=40,
    )
)
def test_odd_curves_never_raise(rows: list[dict[str, Any]]) -> None:
    found = curve(rows)
    label = diagnose(found, [found]).label
    assert label in diagnosis.Label.__args__  # type: ignore[attr-defined]


def test_the_ladder_of_rates() -> None:
    assert [rung(1e-5, 1), rung(3e-4, -1), rung(1e-4, 2), rung(2e-5, 1)] == [3e-5, 1e-4, 1e-3, 3e-5]
    assert rung(5000.0, 1) > 5000.0


@pytest.mark.xdist_group("finished_sweep")
def test_a_real_sweeps_trials(finished_sweep: FinishedSweep) -> None:
    """Rates 1e-5, 1e-3, 3e-3, 1e-1 on the embedded model."""
    found = [curve(read_metrics(finished_sweep.outputs / "trials" / f"{number:04d}")) for number in range(4)]
    labels = [diagnose(one, [other for other in found if other is not one]).label for one in found]
    # In so few steps 1e-3 falls about half as far as 3e-3: on the border of too_low, to either side by machine.
    assert (labels[0], *labels[2:]) == ("too_low", "healthy", "too_high")


# The command


def written(folder: Path) -> dict[str, Path]:
    """The same healthy run, in every form that is read."""
    losses = [float(value) for value in falling(30)]
    ours = [{"step": i + 1, "loss": v, "grad_norm": 1.0, "learning_rate": 1e-4} for i, v in enumerate(losses)]
    old = [
        {"current_steps": i + 1, "total_steps": 30, "loss": v, "lr": 1e-4, "epoch": 0.1} for i, v in enumerate(losses)
    ]
    new = [{**row, "epoch": 0.1, "total_steps": 30} for row in ours]
    state = {"log_history": [*ours, {"step": 30, "eval_val_loss": 2.0}], "global_step": 30}
    texts = {
        "trainer_state.json": json.dumps(state, indent=2),
        "one_line.json": json.dumps(state),
        "trainer_log.jsonl": "\n".join(map(json.dumps, old)),
        "trainer_log_v1.jsonl": "\n".join(map(json.dumps, new)) + "\n",
        "metrics.jsonl": "\n".join(map(json.dumps, ours)) + '\n{"step": 31, "lo',
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in texts}


@pytest.mark.parametrize("whole", [False, True])
def test_of_a_long_log_a_part_is_read_and_nothing_rare_is_missed(tmp_path: Path, whole: bool) -> None:
    lines = [f'{{"step": {i}, "loss": {4 - 1e-5 * i}}}' for i in range(1, 100_001)]
    lines[54_321] = '{"step": 54322, "loss": NaN}'
    lines[70_000] = '{"step": 70001, "eval_loss": 3.0}'
    text = f'{{"log_history": [{", ".join(lines)}]}}' if whole else "\n".join(lines)
    (tmp_path / "long.jsonl").write_text(text)
    found = log_readers.read(str(tmp_path / "long.jsonl"), nowhere)
    assert 19_000 < len(found.loss) < 21_000
    assert found.loss.steps[-1] == 100_000
    assert found.eval_loss.steps == [70_001]
    # It goes on: one batch without labels, perhaps, but nothing to call healthy.
    assert (diagnose(found).label, diagnose(found).evidence["step"]) == ("unknown", 54_322)


def nowhere(run_id: str) -> list[Any]:
    raise AssertionError(run_id)


def test_every_form_reads_the_same(tmp_path: Path) -> None:
    for path in written(tmp_path).values():
        found = log_readers.read(str(path), nowhere)
        assert len(found.loss) == 30
        assert found.loss.values == pytest.approx(falling(30))
        assert found.peak_lr == 1e-4
        assert diagnose(found).label == "healthy"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b'{"log_history": [{"step": 1, "loss"', "not JSON, or cut off"),
        (b'{"step": 1, "loss": 2}\nrubbish\n{"step": 2, "loss": 2}\n', "line 2 is not JSON"),
        (b'{"step": 1}\n{"step": 2}\n', "holds no losses"),
        (b"\x00\xff\xfe", "is not a text file"),
        (b"[1, 2]", "has no log_history"),
        (b"[" * 100_000, "not a history"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "log.json").write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        log_readers.read(str(tmp_path / "log.json"), nowhere)
    assert "\n" not in str(caught.value)


def test_the_command_answers_in_words_and_in_json(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "flat.jsonl").write_text(
        "".join(f'{{"step": {i}, "loss": {4 - 0.0001 * i}, "learning_rate": 1e-5}}\n' for i in range(1, 40))
    )
    told = lrsweep_here("diagnose", "trainer_state.json", "flat.jsonl", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "trainer_state.json: healthy: loss falls from" in told.stdout
    assert "raise the learning rate, step by step: learning_rate=3e-05" in told.stdout
    assert "judged: 30 training losses (step 1 to 30); 1 evaluations on val (step 30)" in told.stdout
    as_json = json.loads(lrsweep_here("diagnose", "--json", "flat.jsonl", "--plot", cwd=tmp_path).stdout)
    assert [list(entry) for entry in as_json] == [
        ["file", "label", "evidence", "advice", "confidence", "judged", "same_run"]
    ]
    assert as_json[0]["advice"] == [
        {"text": "raise the learning rate, step by step", "overrides": {"learning_rate": 3e-5}}
    ]
    assert (tmp_path / "flat.jsonl.png").read_bytes().startswith(b"\x89PNG")
    missing = lrsweep_here("diagnose", "nowhere.json", cwd=tmp_path)
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)


@pytest.mark.xdist_group("finished_sweep")
def test_an_mlflow_run_is_read_by_its_id(finished_sweep: FinishedSweep) -> None:
    with sqlite3.connect(finished_sweep.folder / "mlflow.db") as database:
        (run_id,) = database.execute("select run_uuid from tags where key = 'trial' and value = '2'").fetchone()
    told = lrsweep_here("diagnose", run_id, cwd=finished_sweep.folder)
    assert told.returncode == 0, told.stderr
    assert f"{run_id}: healthy" in told.stdout
    unknown = lrsweep_here("diagnose", "0" * 32, cwd=finished_sweep.folder)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)


@pytest.mark.xdist_group("finished_sweep")
def test_an_mlflow_run_of_another_program_is_read_from_the_store_in_the_environment(
    finished_sweep: FinishedSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy of the sweep's store, as making a new one takes long."""
    shutil.copy(finished_sweep.folder / "mlflow.db", tmp_path / "other.db")
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    with sqlite3.connect(tmp_path / "other.db") as database:
        (run_id,) = database.execute("select run_uuid from tags where key = 'trial' and value = '2'").fetchone()
        database.execute("update metrics set key = 'train/loss' where key = 'loss'")
        database.execute("update metrics set key = 'val_loss' where key = 'eval_loss'")
        for old, new in (("loss", "train/loss"), ("eval_loss", "val_loss")):
            database.execute("update latest_metrics set key = ? where key = ?", (new, old))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    told = lrsweep_here("diagnose", run_id, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert f"{run_id}: healthy: eval_loss falls" in told.stdout
    assert "training losses" in told.stdout


def test_a_plot_marks_what_is_not_finite(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from lrsweep.report import curve as plots

    losses = falling(30)
    losses[20:] = np.nan
    found = drawn(losses)
    drawn_lines: list[str] = []
    kept = Figure.savefig

    def note(figure: Figure, *arguments: Any, **options: Any) -> None:
        drawn_lines.extend(str(line.get_label()) for line in figure.axes[0].lines)
        kept(figure, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", note)
        plots.plot_curve("a run", found, diagnose(found), tmp_path / "plot.png")
    assert "not finite" in drawn_lines
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_diagnosis_needs_no_torch() -> None:
    heavy = ("torch", "matplotlib", "mlflow", "pydantic")
    script = (
        "import sys, lrsweep.analysis.diagnosis, lrsweep.analysis.log_readers; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
