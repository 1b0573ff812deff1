"""A small network and five photographs for jobs, and a server that speaks as S3 does."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs
from torch import nn

from fastviz import jobs
from fastviz.jobs.s3 import S3Path
from tests.jobs.common import photograph, tiny


@pytest.fixture
def network() -> nn.Module:
    return tiny()


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch, request):
    """Pictures for people take time to write; where a test does not look at them they are small."""
    if "size_for_people" not in request.node.name:
        monkeypatch.setattr(jobs.explainer, "SHOWN_SIZE", 16)


@pytest.fixture
def photos(tmp_path) -> Path:
    for number in range(5):
        photograph(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A server of this machine that speaks as S3 does; its address."""
    server_of = pytest.importorskip("moto.server").ThreadedMotoServer
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_of(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch) -> S3Path:
    """An empty bucket, found as AWS tools find theirs."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in (("ACCESS_KEY_ID", "me"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    patience = {"connect_timeout": 600, "request_timeout": 600}
    fs.S3FileSystem(endpoint_override=s3_server, allow_bucket_creation=True, **patience).create_dir(name)
    return S3Path(f"s3://{name}")
