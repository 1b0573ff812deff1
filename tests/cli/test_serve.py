"""``fastviz serve`` from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from typer.testing import CliRunner

from fastviz.cli import app
from fastviz.jobs.serve import server


def refused(*words: object) -> str:
    result = CliRunner().invoke(app, ["serve", *map(str, words)])
    assert result.exit_code == 2
    return result.stderr


def test_what_is_refused(tmp_path):
    pytest.importorskip("fastapi")
    assert "holds no job" in refused(tmp_path)
    assert "--weights is needed for resnet18" in refused("--model", "resnet18")
    assert "--weights should be one per --model, got 1 for 0" in refused("--weights", "x.safetensors")
    assert "token should not be empty" in refused("--token", "")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    assert 'serve needs fastapi: pip install "fastviz[serve]"' in refused()


def test_a_server_runs_until_it_is_ended(tmp_path):
    """The built-in network; the printed address opens the panel, and without its token nothing does."""
    pytest.importorskip("uvicorn")
    running = subprocess.Popen(
        [sys.executable, "-m", "fastviz", "serve", "--port", "0", "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        address = running.stdout.readline().removeprefix("open ").strip()
        assert address.startswith("http://127.0.0.1:")
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        page = opener.open(address).read().decode()
        assert "demo" in page
        assert "goldfish" in page
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address.partition("?")[0])
    finally:
        running.terminate()
        running.wait(60)
    assert not list(tmp_path.iterdir())
