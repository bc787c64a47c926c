"""The range test: what it reads from curves whose truth is known, its range for the embedded model, and bad input."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrsweep.analysis.range_test import Floats, RangeTest, analyse, blown_up, rates, smoothed
from lrsweep.cli.find_lr import find
from lrsweep.cli.main import run
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.errors import InputError
from lrsweep.report.range_test import as_text, command, format_rate
from tests.conftest import lrsweep_here
from tests.recorder import tiny

LR = rates(1e-7, 10, 100)
BASE = 4.4


def curve(falls_at: float, blows_up_at: float, noise: float = 0.0, seed: int = 0) -> Floats:
    """A loss that falls by 0.6 around one rate and leaves at another, in factors of ten."""
    x = np.log10(LR)
    fall = 0.6 / (1 + np.exp(-(x - np.log10(falls_at)) / 0.2))
    past = x - np.log10(blows_up_at)
    loss = BASE - fall + np.where(past > 0, 10 ** np.maximum(past, 0) - 1, 0)
    found: Floats = np.minimum(loss, 8.0) + np.random.default_rng(seed).normal(0, noise, len(LR))
    return found


def rate(lr: float | None) -> float:
    """A rate that the test has found."""
    assert lr is not None
    return lr


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("base", [BASE, None])
@pytest.mark.parametrize(("falls_at", "blows_up_at"), [(1e-3, 3e-2), (3e-5, 1e-3), (1e-2, 0.3)])
def test_the_range_spans_fall_and_blow_up(
    falls_at: float, blows_up_at: float, base: float | None, noise: float
) -> None:
    test = analyse(LR, curve(falls_at, blows_up_at, noise), base)
    begun, steepest, minimum, blow_up = map(rate, (test.begun_lr, test.steepest_lr, test.minimum_lr, test.blow_up_lr))
    assert falls_at / 2 < steepest < 2 * falls_at
    assert begun <= steepest < minimum < blow_up
    assert falls_at < minimum < 2 * blows_up_at
    assert blows_up_at / 1.5 < blow_up < 1.5 * blows_up_at
    assert test.lrs[0] <= falls_at / 2
    assert blows_up_at / 3 < test.lrs[-1] <= 1.1 * blow_up
    assert all(2.9 < b / a < 3.4 for a, b in zip(test.lrs, test.lrs[1:], strict=False))
    assert {format_rate(lr)[0] for lr in test.lrs} == {"1", "3"}


def test_the_slope_is_taken_over_the_log_of_the_rate() -> None:
    """Of a small fall at a low lr and a large one at a high lr, the first is steeper by lr, the second by its log."""
    loss = curve(1e-3, 3e-2) + 0.25 * (curve(1e-5, 1e9) - BASE)
    test = analyse(LR, loss, BASE)
    assert rate(test.begun_lr) < 3e-5
    assert test.steepest_lr == pytest.approx(1e-3, rel=0.5)


def test_the_average_does_not_lag() -> None:
    """A straight line stays where it is: rates are averaged as losses are."""
    x = np.log10(LR)
    test = analyse(LR, BASE - 0.1 * (x + 7), BASE)
    assert test.smooth == pytest.approx(BASE - 0.1 * (np.log10(test.smooth_lr) + 7))
    assert smoothed(np.full(5, 3.0)) == pytest.approx(3.0)  # no pull to zero


@pytest.mark.parametrize("base", [BASE, None])
def test_noise_alone_is_no_range(base: float | None) -> None:
    found = 0
    for seed in range(100):
        loss = BASE + np.random.default_rng(seed).normal(0, 0.25, len(LR))
        found += bool(analyse(LR, loss, base).lrs)
    assert found <= 3


def test_no_range_says_why() -> None:
    flat = analyse(LR, np.full(len(LR), BASE), BASE)
    assert flat.lrs == ()
    assert flat.blow_up_lr is None
    assert "may be noise" in flat.reason

    x = np.log10(LR)
    rising = analyse(LR, BASE + np.maximum(x + 3, 0), BASE)
    assert rising.lrs == ()
    assert rising.blow_up_lr == pytest.approx(1.5e-3, rel=0.5)
    assert "blows up at lr" in rising.reason

    nothing = analyse(LR, np.full(len(LR), np.nan), BASE)
    assert nothing.lrs == ()
    assert "lower --from" in nothing.reason
    late = analyse(rates(1, 10, 20), np.array([4.4, 9, 20, np.inf] + [np.nan] * 16), BASE)
    assert "it blows up within 4 steps of lr 1; lower --from" in late.reason


def test_what_is_past_the_minimum_moves_nothing_before_it() -> None:
    loss = curve(1e-3, 3e-2)
    whole = analyse(LR, loss, BASE)
    end = int(np.argmax(loss > BASE + 1)) + 1
    cut, nan = loss[:end], loss.copy()
    nan[end:] = np.nan
    back = loss.copy()
    back[end:] = np.linspace(loss[end], BASE, len(loss) - end)
    for other in (analyse(LR[:end], cut, BASE), analyse(LR, nan, BASE), analyse(LR, back, BASE)):
        assert (other.lrs, other.steepest_lr, other.minimum_lr, other.blow_up_lr) == (
            whole.lrs,
            whole.steepest_lr,
            whole.minimum_lr,
            whole.blow_up_lr,
        )


def test_a_loss_that_ends_in_nan_blows_up_there() -> None:
    loss = curve(1e-3, 1e3)
    loss[80:] = np.nan
    test = analyse(LR, loss, BASE)
    assert test.blow_up_lr == LR[80]
    assert test.lrs[-1] <= 1.1 * LR[80]


def test_a_ramp_that_ends_too_soon_says_so() -> None:
    test = analyse(LR[:55], curve(1e-3, 3e-2)[:55], BASE)  # up to 2.3e-3
    assert test.blow_up_lr is None
    assert "raise --to" in test.reason


def test_the_ramp_stops_when_all_is_lost() -> None:
    loss = curve(1e-3, 3e-2)
    ends = next(n for n in range(1, len(loss)) if blown_up(loss[:n], BASE))
    assert loss[: ends - 1].min() < BASE - 0.5
    assert 3e-2 < LR[ends] < 0.5
    assert blown_up(np.array([4.4, np.nan]), BASE)
    assert blown_up(np.array([0.1] * 20 + [2.0]), 10.0)  # four times the best
    assert not blown_up(np.full(50, BASE), BASE)


@pytest.mark.parametrize(
    ("low", "high", "steps", "said"),
    [
        (1, 1, 100, "--from 1 --to 1: "),
        (0, 1, 100, "--from 0 --to 1: "),
        (-1, 1, 100, "0 < from < to"),
        (1e-7, float("nan"), 100, "0 < from < to"),
        (1e-7, float("inf"), 100, "0 < from < to"),
        (1e-7, 1, 5, "--steps 5: at least 20"),
    ],
)
def test_ramps_that_are_none_are_refused(low: float, high: float, steps: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        rates(low, high, steps)


RANGE = (1e-5, 3e-5, 1e-4, 1.0)


@pytest.mark.parametrize(
    ("overrides", "ready"),
    [
        ([], "lrsweep +sweep=lora_lr 'space.optimizer.lr=[1e-5,3e-5,1e-4,1]'"),
        (["finetune=full"], "lrsweep +sweep=full_lr 'space.optimizer.lr=[1e-5,3e-5,1e-4,1]' finetune=full"),
        (["finetune=freeze"], "lrsweep name=freeze_lr 'space.optimizer.lr=[1e-5,3e-5,1e-4,1]' finetune=freeze"),
        (
            ["optimizer.betas=[0.8,0.95]", "sweep=betas", "space.optimizer.lr=[1]"],
            "lrsweep +sweep=betas 'space.optimizer.lr=[1e-5,3e-5,1e-4,1]' 'optimizer.betas=[0.8,0.95]'",
        ),
    ],
)
def test_the_ready_command_is_a_sweep_of_the_range(overrides: list[str], ready: str) -> None:
    config = sweep_config(overrides)
    test = RangeTest(LR, LR, LR, LR, BASE, 0.0, "", lrs=RANGE)
    assert command(config, test, overrides) == ready
    composed = sweep_config(shlex.split(ready)[1:])
    assert composed.space["optimizer"]["lr"] == list(RANGE)
    assert composed.finetune == config.finetune
    assert composed.optimizer == config.optimizer


def test_the_text_tells_a_range_from_a_recommendation() -> None:
    said = as_text(analyse(LR, curve(1e-3, 3e-2), BASE), "lrsweep +sweep=lora_lr")
    assert "This range is where to sweep, not a recommendation" in said
    assert "    lrsweep +sweep=lora_lr\n" in said
    assert "blows up" in said


# The embedded model. Its best rates are known: benchmarks/results/embedded.json.


def embedded(*overrides: str) -> RangeTest:
    return find(sweep_config(overrides), rates(1e-6, 0.1, 50))


def test_the_embedded_models_full_fine_tuning_range_holds_its_best() -> None:
    test = embedded("finetune=full")
    assert test.lrs[0] < 3e-4 < test.lrs[-1]
    assert 3e-4 in test.lrs
    assert rate(test.minimum_lr) > 3e-4


def test_the_config_is_heard() -> None:
    """Batch, accumulation, seed, clipping and optimizer change the ramp; the schedule and the space do not."""
    from lrsweep.training.lr_ramp import ramp

    def losses(*overrides: str) -> list[float]:
        return [point.loss for point in ramp(tiny("finetune=full", *overrides), [1e-4, 1e-3, 1e-3])]

    plain = losses()
    assert losses("scheduler=linear", "space.optimizer.lr=[1,2]", "optimizer.lr=1") == plain
    for override in (
        "training.batch_size=4",
        "training.gradient_accumulation_steps=2",
        "training.seed=1",
        "training.max_grad_norm=1e-9",
        "optimizer.betas=[0.1,0.999]",
        "optimizer.weight_decay=10.0",
        "optimizer=sgd",
        "finetune=lora",
        "data.packing=true",
    ):
        assert losses(override) != plain, override


def test_a_ramp_of_one_rate_is_the_trainers_run(tmp_path: Path) -> None:
    """At a constant rate the loop takes the steps that the trainer engine takes."""
    from lrsweep.training.engines.trainer import TrainerEngine
    from lrsweep.training.lr_ramp import ramp
    from tests.recorder import train

    config = tiny(
        "model.dtype=float64",
        "scheduler=constant",
        "finetune.dropout=0",
        "optimizer.weight_decay=0.1",
        "training.gradient_accumulation_steps=2",
    )
    points = list(ramp(config, [1e-3] * 5))
    host = train(TrainerEngine(), tmp_path, config)
    trained = [loss for step, loss in host.curve("loss").items() if step > 1]
    assert [point.loss for point in points] == pytest.approx(trained, abs=1e-6)  # Trainer logs in float32
    # The first row of a ramp that hardly moves is the untouched model's.
    still = list(ramp(config, [1e-12] * 2))
    assert [point.loss for point in still] == pytest.approx([point.base for point in still], abs=1e-6)


def test_find_lr_on_the_command_line(tmp_path: Path) -> None:
    """The default config: LoRA, whose best is 3e-3. Nothing is left behind but the picture."""
    process = lrsweep_here(
        "find-lr", "--steps=50", "--json", "--from", "1e-5", "--to=1", "--plot", "p.png", cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    answer: dict[str, Any] = json.loads(process.stdout)
    assert answer["found"]
    assert 3e-3 in answer["lrs"]
    assert answer["lrs"][0] < 3e-3 < answer["lrs"][-1] <= 0.1
    assert answer["steepest_lr"] < answer["minimum_lr"] < answer["blow_up_lr"] < 0.3
    assert answer["command"].startswith("lrsweep +sweep=lora_lr 'space.optimizer.lr=[")
    assert len(answer["points"]) <= 50
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "3"], "--steps 3: at least 20"),
        (["--from", "fast"], "find-lr: argument --from: invalid float value"),
        (["--from", "1", "--to", "0.1"], "0 < from < to"),
        (["--plot", "p.txt"], "--plot p.txt: the file's ending"),
        (["--plot", "none/p.png"], "--plot none/p.png: no such folder"),
        (["optimizer.lrr=1", "--json"], "optimizer.lrr: no such key; did you mean optimizer.lr?"),
        (["--cfg", "job"], "find-lr: "),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        run(["find-lr", *arguments])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_models_and_data_that_are_not_there_are_one_line_and_exit_2(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl"):
        find(sweep_config(["data=local", "data.format=alpaca", "data.path=none.jsonl"]), LR)
    process = lrsweep_here("find-lr", "model=local", "model.path=./nowhere", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr == "lrsweep: model.path='./nowhere': no such folder\n"
    assert list(tmp_path.iterdir()) == []


def test_no_range_is_exit_code_3(tmp_path: Path) -> None:
    small = ("training.batch_size=2", "data.max_train_rows=100", "data.max_eval_rows=8")
    process = lrsweep_here("find-lr", "--from=1e-12", "--to=1e-10", "--steps=20", *small, cwd=tmp_path)
    assert process.returncode == 3
    assert process.stderr.startswith("lrsweep: no range found: the loss falls from")
    assert process.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
