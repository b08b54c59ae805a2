"""Secrets are resolved at use, and errors about them hold none."""

from pathlib import Path

import pytest

from schemas.errors import ConfigError
from schemas.reference import has_secret, plain_password, resolve_secrets


def test_environment_and_files_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TEST_A", "alpha")
    (tmp_path / "secret").write_text("beta\n")
    assert resolve_secrets(f"http://${{env:HEADRACE_TEST_A}}:${{file:{tmp_path}/secret}}@host") == "http://alpha:beta@host"
    assert resolve_secrets("plain ${HOME} $x") == "plain ${HOME} $x"


def test_a_value_is_not_resolved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TEST_A", "${env:HOME}")
    assert resolve_secrets("${env:HEADRACE_TEST_A}") == "${env:HOME}"


def test_all_missing_ones_are_named_and_no_secret_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TEST_A", "geheim")
    with pytest.raises(ConfigError) as caught:
        resolve_secrets("${env:HEADRACE_TEST_A} ${env:HEADRACE_NO_SUCH} ${file:/no/such}")
    assert [problem.key for problem in caught.value.problems] == ["${env:HEADRACE_NO_SUCH}", "${file:/no/such}"]
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(("text", "secret"), [("${env:X}", True), ("a ${file:b} c", True), ("${python:stdlib}", False), ("$env", False)])
def test_has_secret(text: str, secret: bool) -> None:
    assert has_secret(text) is secret


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("http://me:pw@host:50/x", "http://me:${env:PASSWORD}@host:50/x"),
        ("http://me:${env:PW}@host", ""),
        ("http://host/x", ""),
        ("/a:b@c", ""),
        ("http://[broken", ""),
    ],
)
def test_passwords_in_urls(url: str, masked: str) -> None:
    assert plain_password(url) == masked
