"""What trials are ranked by: scores for the search, the trainer's own numbers for people."""

import pytest

from lrsweep.config.objective import Objective


@pytest.mark.parametrize(
    ("objective", "metrics", "score", "text", "best"),
    [
        (Objective(), {"loss": 2.0, "eval_loss": 1.5}, 1.5, "1.5000", "lowest loss"),
        (Objective("eval_accuracy", True), {"eval_accuracy": 0.75}, -0.75, "0.7500", "highest eval_accuracy"),
        (Objective("reward", True), {"reward": 9.0, "smoothed_reward": 0.5}, -0.5, "0.5000", "highest smoothed_reward"),
        (Objective("loss"), {"loss": 3.0, "smoothed_loss": 2.0}, 2.0, "2.0000", "lowest smoothed_loss"),
        (Objective("loss"), {"loss": 3.0}, None, "-", "lowest smoothed_loss"),
    ],
)
def test_scores(objective: Objective, metrics: dict[str, float], score: float | None, text: str, best: str) -> None:
    assert objective.score(metrics) == score
    assert objective.text(score) == text
    assert objective.best == best
