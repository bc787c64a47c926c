"""What is a secret, what is not, and who knows a password."""

import pytest

from lrsweep.files.redaction import HIDDEN, Redactor, mask, masked


@pytest.mark.parametrize(
    "name", ["max_token", "min_token", "num_token", "n-token", "new_token", "total_token", "pad_token", "stop_token"]
)
def test_a_number_of_tokens_is_no_secret(name: str) -> None:
    for text in (f"{name}: 128", f"{name}=128", f"--{name} 128", f"'{name}': '128'"):
        assert mask(text) == text
    assert masked({name: 128}) == {name: 128}


@pytest.mark.parametrize("name", ["token", "hub_token", "api_key", "my_max_password", "HF_TOKEN"])
def test_a_secret_is_masked_whatever_comes_before_its_name(name: str) -> None:
    assert mask(f"{name}=abc123def456") == f"{name}={HIDDEN}"
    assert masked({name: "abc123def456"}) == {name: HIDDEN}


def test_a_password_is_known_to_the_one_that_was_given_its_url() -> None:
    redactor = Redactor.of_urls("postgresql://me:correct-horse@host/db", None)
    assert redactor.mask("the password correct-horse is wrong") == f"the password {HIDDEN} is wrong"
    assert mask("a correct-horse, by name") == "a correct-horse, by name", "another sweep's password is a word here"
