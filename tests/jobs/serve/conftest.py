"""A server with a small network, and a client that has its token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi")

from fastapi import FastAPI
from starlette.testclient import TestClient

from fastviz import jobs
from fastviz.jobs.serve.application import application
from fastviz.jobs.serve.known_photographs import KnownPhotographs
from fastviz.jobs.serve.live_report import LiveReport
from fastviz.jobs.serve.networks import ServedNetwork, network_of
from tests.jobs.common import photograph, tiny

TOKEN = "a-token"

Ran = Callable[[], object]


@pytest.fixture(scope="session")
def shown() -> ServedNetwork:
    """The small network as the panel takes it; to find its layers takes a while."""
    return network_of("tiny", tiny(), torch.device("cpu"))


def folder(home: Path, network: ServedNetwork) -> tuple[Path, Path, Ran]:
    """Five photographs, the folder of a job over them, and what runs the job again."""
    for number in range(5):
        photograph(home / "photos" / f"{number}.png", number)

    def run() -> object:
        options = {"methods": ["saliency", "grad_cam"], "thumbnails": True}
        return jobs.run([home / "photos"], home / "out", model=network.model, **options)

    run()
    return home / "photos", home / "out", run


def made(photos: Path, out: Path, network: ServedNetwork) -> FastAPI:
    files = {path.name: path for path in sorted(photos.glob("*.png"))}
    return application(TOKEN, live=LiveReport(out), networks=[network], known=KnownPhotographs(files))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, shown) -> tuple[Path, Path]:
    """Photographs and a job's folder that no test changes."""
    photos, out, _ = folder(tmp_path_factory.mktemp("finished"), shown)
    return photos, out


@pytest.fixture
def app(finished, shown) -> FastAPI:
    return made(*finished, shown)


@pytest.fixture
def client(app):
    with as_known(app) as client:
        yield client


@pytest.fixture
def growing(tmp_path, shown):
    """A job of a test's own: photographs, what runs it again, and its server."""
    photos, out, run = folder(tmp_path, shown)
    return photos, run, made(photos, out, shown)


def as_known(app: FastAPI) -> TestClient:
    """A client with the token."""
    return TestClient(app, base_url="http://localhost", headers={"authorization": f"Bearer {TOKEN}"})
