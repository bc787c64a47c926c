"""The command that a sweep's report gives to go on with."""

import dataclasses
from pathlib import Path

import pytest

from lrsweep.analysis.priors import Prior
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.report.next_sweep import next_command
from lrsweep.report.page import page
from lrsweep.report.summary import Links, Summary
from lrsweep.tracking import view_url
from tests.analysis.recorded import Trained, summary_of

NO_PRIOR: Prior | None = None
COMMAND = "lrsweep +sweep=lora_lr 'data.path=my rows.jsonl'"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def swept(finals: dict[float, float], *overrides: str) -> Summary:
    trials = [Trained(lr, [(0, 3.0), (10, (3 + loss) / 2), (20, loss)]) for lr, loss in finals.items()]
    summary = summary_of(trials, 20, NO_PRIOR, *overrides)
    return dataclasses.replace(summary, about=dataclasses.replace(summary.about, command=COMMAND))


FALLING = {1e-5: 2.9, 1e-4: 2.5, 1e-3: 2.0}


def test_a_grid_that_may_grow_grows() -> None:
    assert next_command(swept(FALLING, "search=grid")) == f"{COMMAND} search.extend=true"


def test_a_grid_whose_growth_ran_out_is_swept_anew_beyond_its_edge() -> None:
    command = next_command(swept(FALLING, "search=grid", "search.extend=true"))
    assert command == f"{COMMAND} name=recorded-wider 'space.optimizer.lr=[0.001,0.01,0.1,1]'"
    config = sweep_config(["+sweep=lora_lr", *command.replace("'", "").split()[-2:]])
    assert (config.name, config.space["optimizer"]["lr"]) == ("recorded-wider", [1e-3, 1e-2, 1e-1, 1])


def test_a_lowest_rate_is_swept_downward() -> None:
    rising = {1e-5: 2.0, 1e-4: 2.5, 1e-3: 2.9}
    command = next_command(swept(rising, "search=grid", "search.extend=true"))
    assert command.endswith("'space.optimizer.lr=[1e-08,1e-07,1e-06,1e-05]'")


def test_noise_that_was_not_measured_is() -> None:
    inside = {1e-5: 2.9, 1e-4: 2.5, 1e-3: 2.0, 1e-2: 2.6}
    assert next_command(swept(inside, "search=grid", "search.replicates=1")) == f"{COMMAND} search.replicates=auto"


def test_a_clear_answer_or_an_unknown_command_needs_nothing() -> None:
    inside = {1e-5: 2.9, 1e-4: 2.5, 1e-3: 2.0, 1e-2: 2.6}
    assert next_command(swept(inside, "search=grid")) == ""
    unknown = swept(FALLING)
    assert next_command(dataclasses.replace(unknown, about=dataclasses.replace(unknown.about, command=""))) == ""


def test_the_report_has_the_command_the_machine_the_date_and_each_trials_run() -> None:
    summary = swept(FALLING, "search=grid")
    links = Links("mlflow ui", view_url("http://127.0.0.1:5000", "7", "abc"))
    about = dataclasses.replace(
        summary.about, links=links, hardware="AMD EPYC, 2 cores, AVX2", ended="2026-05-31T18:02"
    )
    shown = page(dataclasses.replace(summary, about=about), {}, "")
    assert "search.extend=true" in shown
    assert "AMD EPYC, 2 cores, AVX2" in shown
    assert "2026-05-31 18:02" in shown
    assert "tags.trial%20%3D%20%271%27%20AND%20tags.%60lrsweep.sweep_id%60%20%3D%20%27abc%27" in shown
