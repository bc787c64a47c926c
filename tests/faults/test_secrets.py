"""No secret is found in anything that a sweep leaves behind or says."""

import json
import os
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import replace
from lrsweep.errors import InputError
from lrsweep.files import redaction
from lrsweep.files.logs import _RedactingFormatter
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.search.storage import Storage
from tests.conftest import SMALL, lrsweep, lrsweep_here

ROOT = Path(__file__).parents[2]
# Each in its own place, so that a finding says which one leaked.
IN_ENVIRONMENT = {
    "HF_TOKEN": "hf_" + "Qw3rTy" * 6,
    "MLFLOW_TRACKING_PASSWORD": "environment-of-mlflow-9d1c",
    "WANDB_API_KEY": "environment-of-wandb-77aa",
    "AWS_SECRET_ACCESS_KEY": "environment/of+aws/52be",
    "DB_PASSWORD": "environment-of-db-3c4d",
}
IN_COMMAND = ("command-of-token-1a2b", "command-of-api-key-5e6f", "hf_" + "aB3dE" * 7)

# A trainer that writes the least: a loss that falls, and nothing it was told.
TRAINER = """\
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
rows = [{"current_steps": step, "loss": 4 - step / 16, "eval_loss": 4 - step / 16} for step in (4, 8, 12, 16)]
(folder / "trainer_log.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""
# Its last words hold what it was told, as a traceback's might.
FAILING = "import sys; sys.exit('cannot log in with ' + ' '.join(sys.argv[4:]))\n"


def found_in(folder: Path, *secrets: str) -> list[str]:
    """Where any of the secrets stands, in whatever file."""
    places = []
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            places += [f"{secret} in {path.relative_to(folder)}" for secret in secrets if secret.encode() in content]
    return places


def test_of_the_environment_nothing_stays(tmp_path: Path) -> None:
    run = lrsweep(*SMALL, "space.optimizer.lr=[1e-3,3e-3]", cwd=tmp_path, env=IN_ENVIRONMENT)
    assert run.returncode == 0, run.stderr
    assert found_in(tmp_path, *IN_ENVIRONMENT.values()) == []
    assert [secret for secret in IN_ENVIRONMENT.values() if secret in run.stdout + run.stderr] == []


@pytest.mark.parametrize(
    ("script", "code"), [(TRAINER, 0), pytest.param(FAILING, 3, marks=pytest.mark.thorough)], ids=["trains", "fails"]
)
def test_of_a_trainers_command_nothing_stays(tmp_path: Path, script: str, code: int) -> None:
    token, key, known = IN_COMMAND
    (tmp_path / "work").mkdir()
    (tmp_path / "trainer.py").write_text(script)
    command = (
        f"{sys.executable} {tmp_path / 'trainer.py'} {{config}} --output {{output}} --token={token} --api-key {key} "
        f"{known} " + IN_ENVIRONMENT["DB_PASSWORD"]
    )
    tracking = f"tracking.uri=sqlite:///{tmp_path / 'work' / 'mlflow.db'}"
    run = lrsweep(
        *SMALL,
        "space.optimizer.lr=[1e-3,3e-3]",
        "engine=external",
        "engine.dialect=transformers",
        tracking,
        f"engine.command='{command}'",
        cwd=tmp_path / "work",
        env=IN_ENVIRONMENT,
    )
    assert run.returncode == code, run.stderr
    secrets = [*IN_COMMAND, *IN_ENVIRONMENT.values()]
    # What the trainer itself has printed is its own, and stays as it is.
    leaks = [leak for leak in found_in(tmp_path / "work", *secrets) if not leak.endswith("output.log")]
    assert leaks == []
    assert [secret for secret in secrets if secret in run.stdout + run.stderr] == []
    summary = json.loads((tmp_path / "work" / "outputs" / "lora_lr" / "summary.json").read_text())
    assert f"--token={redaction.HIDDEN}" in summary["config"]["engine"]["command"]
    if code == 0:
        again = lrsweep(
            *SMALL,
            "space.optimizer.lr=[1e-3,3e-3]",
            "engine=external",
            "engine.dialect=transformers",
            tracking,
            f"engine.command='{command}'",
            cwd=tmp_path / "work",
            env=IN_ENVIRONMENT,
        )
        assert "is already complete: 2 trials" in again.stdout, again.stderr
        for dialect in ("hydra", "transformers"):
            said = lrsweep_here("export", "lora_lr", "--to", dialect, cwd=tmp_path / "work").stdout
            assert [secret for secret in secrets if secret in said] == []


URLS = [
    ("tracking.uri='http://me:hunter2@127.0.0.1:9'", "hunter2"),
    ("search.storage='postgresql://me:p@ss/hunter2@127.0.0.1:9/x'", "hunter2"),
    ("search.storage='mysql+pymysql://me:hunter2@127.0.0.1:9/x?password=hunter3'", "hunter"),
]


@pytest.mark.parametrize(("override", "secret"), URLS, ids=[override for override, _ in URLS])
def test_of_a_url_nothing_is_said(tmp_path: Path, override: str, secret: str) -> None:
    """None of these answers."""
    run = lrsweep_here("+sweep=lora_lr", override, "search.preflight=false", cwd=tmp_path)
    assert run.returncode in (2, 4), run.stderr
    assert "Traceback" not in run.stderr
    assert secret not in run.stdout + run.stderr
    assert found_in(tmp_path, secret) == []


def test_a_config_that_is_printed_is_masked(tmp_path: Path) -> None:
    overrides = [override for override, _ in URLS[:2]]
    shown = lrsweep_here("+sweep=lora_lr", *overrides, "--cfg", "job", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "hunter" not in shown.stdout + shown.stderr
    assert shown.stdout.count(":***@127.0.0.1") == 2


@pytest.mark.parametrize(
    "override",
    [
        "model.path='https://me:hunter2@host/model'",
        "data.path='https://host/rows.jsonl?token=hunter2'",
        "data.path='s3://bucket/rows.jsonl?X-Amz-Signature=hunter2'",
        "data.eval_path='https://me:hunter2@host/rows.jsonl'",
        "model.revision=" + "hf_" + "hunter2" * 5,
        "space.model.path=[embedded,'https://me:hunter2@host/model']",
        "++origin={dialect: trl, file: a.yaml, rest: 'hub_token: hunter2'}",
    ],
)
def test_where_it_would_have_to_be_written_it_is_refused(override: str) -> None:
    with pytest.raises(InputError) as refusal:
        sweep_config(["+sweep=lora_lr", override])
    assert "holds a secret" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


SECRET = "S3cr3t-Value"
HIDING = [
    f"postgresql://me:{SECRET}@db/x",
    f"postgresql://me:{SECRET}@with/@more@db:5432/x",
    f"http://{SECRET}abcdefghijkl@host/x",
    f"https://host/x?a=1&token={SECRET}&b=2",
    f"https://host/x?X-Amz-Signature={SECRET}&X-Amz-Date=5",
    f"train --token={SECRET} --lr 1",
    f"train --api-key {SECRET}",
    f"train --hf_token '{SECRET}'",
    f"HF_TOKEN={SECRET} train",
    f"password={SECRET}, user=me",
    f'{{"api_key": "{SECRET}"}}',
    f"a: 1\nhub_token: {SECRET}\nb: 2",
    f"Authorization: Bearer {SECRET}",
]
PLAIN = [
    "http://127.0.0.1:5000/#/experiments/1/runs?orderByKey=metrics.%60eval_loss%60",
    "http://host:5000/user@host",
    "postgresql://me@db/x",
    "sqlite:///mlflow.db",
    "Qwen/Qwen2.5-0.5B",
    "pad_token: <pad>",
    "special_tokens:\n  eos_token: </s>",
    "its tokenizer gives token 2048 and the model has embeddings for 1024 only",
    "the loss per token: 3.5",
    "train --token $HF_TOKEN --max_tokens=5",
    "HF_TOKEN=$HF_TOKEN train",
    "hub_token: null",
    "tokens=5 tokenizer=x",
]


@pytest.mark.parametrize("text", HIDING)
def test_secrets_are_masked(text: str) -> None:
    hidden = redaction.mask(text)
    assert SECRET not in hidden
    assert redaction.HIDDEN in hidden
    assert redaction.mask(hidden) == hidden


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redaction.mask(text) == text


@pytest.mark.parametrize("password", ["pa'ssword", "12/abcdefgh", "p%40ss%2Fword", "postgres"])
def test_a_databases_password_is_masked_whatever_it_is_made_of(password: str, tmp_path: Path) -> None:
    url = f"postgresql://me:{password}@host/db"
    config = replace(sweep_config(["+sweep=lora_lr"]), {"search.storage": url})
    assert Storage(config, tmp_path).shown == "postgresql://me:***@host/db"
    redactor = config.redactor
    for mask in (redactor.mask, redaction.mask):
        assert mask(f"no connection to {url}") == "no connection to postgresql://me:***@host/db"
    assert redactor.mask(f"the password {unquote(password)} is wrong") == "the password *** is wrong"


def test_what_the_environment_keeps_is_masked_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.setenv("OTHER_TOKEN", "short")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    tree = {"a": [f"x {SECRET} y", {"b": (SECRET, 1, None)}], "password": "p", "short": "false"}
    assert redaction.masked(tree) == {
        "a": ["x *** y", {"b": ("***", 1, None)}],
        "password": "***",
        "short": "false",
    }


def test_a_config_is_masked_in_its_lists_too() -> None:
    config = sweep_config(["+sweep=lora_lr", f"search.storage='postgresql://me:{SECRET}@db/x'"])
    assert SECRET not in to_yaml(config.masked())
    assert config.search.storage is not None
    assert SECRET in config.search.storage, "what works with it needs it"


def test_a_log_is_masked(tmp_path: Path) -> None:
    import logging

    handler = logging.FileHandler(tmp_path / "log")
    handler.setFormatter(_RedactingFormatter(redaction.Redactor()))
    logger = logging.Logger("mine")
    logger.addHandler(handler)
    try:
        raise ValueError(f"cannot reach http://me:{SECRET}@host")
    except ValueError:
        logger.exception("tried %s", f"--token={SECRET}")
    handler.close()
    text = (tmp_path / "log").read_text()
    assert SECRET not in text
    assert "ERROR mine: tried --token=***\nTraceback" in text
    assert os.linesep in text
