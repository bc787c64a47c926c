"""What others print is text on the terminal: no markup, no emoji codes, no escape sequences."""

import io
import sys

import pytest
from rich.console import Console

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.report.screen import LiveScreen, PlainScreen, Screen
from lrsweep.report.terminal import Terminal

# A chat template's tag ended whole sweeps, and a prompt vanished.
HOSTILE = "[/INST] [prompt] [red]x[/red] :warning: \x1b]0;title\x07 \x1b[2J \u202e end"
SHOWN = r"[/INST] [prompt] [red]x[/red] :warning: \x1b]0;title\x07 \x1b[2J \u202e end"


@pytest.mark.parametrize("kind", [LiveScreen, PlainScreen])
def test_a_trainers_error_is_shown_as_it_is(
    kind: type[LiveScreen] | type[PlainScreen], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen: Screen = kind(Terminal())
    with screen.running(trials=1, done=0, steps=10):
        screen.note(HOSTILE)
        screen.trial_started(0, {"model.path": HOSTILE}, sweep_config(["+sweep=lora_lr"]))
        screen.trial_finished(0, "failed", HOSTILE)
    said = out.getvalue()
    assert said.count(SHOWN) >= (2 if kind is LiveScreen else 3)
    assert not any(sign in said for sign in ("\x1b]", "\x1b[2J", "\u202e", "\x07"))


def test_the_same_text_breaks_a_plain_console() -> None:
    with pytest.raises(Exception, match="closing tag"):
        Console(file=io.StringIO()).print(HOSTILE)
