"""What the server is built of: the networks of a job, or those that are named."""

from __future__ import annotations

import socket

from starlette.testclient import TestClient

from fastviz import jobs
from fastviz.jobs.serve import server


def panel(app) -> str:
    with TestClient(app, base_url="http://localhost", headers={"authorization": "Bearer t"}) as client:
        return client.get("/panel").text


def test_the_panel_has_the_network_of_the_job(photos, tmp_path):
    jobs.run([photos], tmp_path / "out", methods="saliency", limit=1)
    page = panel(server.built(tmp_path / "out", token="t", device="cpu"))
    assert '"name": "demo"' in page
    assert '"goldfish"' in page
    assert '"known": ["0.png"]' in page
    assert 'role="alert"' not in page


def test_a_network_that_was_a_module_in_python_is_not_loaded(network, photos, tmp_path):
    jobs.run([photos], tmp_path / "out", model=network, methods="saliency", limit=1)
    page = panel(server.built(tmp_path / "out", token="t", device="cpu"))
    assert '"networks": []' in page
    assert "The network of the job cannot be loaded; choose one with --model." in page


def test_a_port_that_is_taken_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with server._socket("127.0.0.1", number) as other:
            assert other.getsockname()[1] not in (0, number)
