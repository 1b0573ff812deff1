"""Who is let in: with the token, under a name of its own, from a page of its own."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from tests.jobs.serve.conftest import TOKEN

PLACES = ["/", "/panel", "/lines", "/report_files/report.js", "/report_files/photos-000000.jpg", "/known/0.jpg"]


@pytest.fixture
def stranger(app):
    with TestClient(app, base_url="http://localhost", follow_redirects=False) as client:
        yield client


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_shown_without_the_token(stranger, place):
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"cookie": "fastviz-80=wrong"},
        {"authorization": "Bearer é"},
    ):
        answer = stranger.get(place, headers={name: value.encode() for name, value in headers.items()})
        assert answer.status_code == 401
        assert "has the token" in answer.text
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("place", ["/photo", "/photo/known/0", "/photo/line/0", "/see"])
def test_nothing_is_taken_without_the_token(stranger, place):
    assert stranger.post(place, content=b"{}").status_code == 401
    assert stranger.post(f"{place}?token={TOKEN}", content=b"{}").status_code == 401  # in the address, for pages alone


def test_the_address_with_the_token_gives_a_cookie(stranger):
    answer = stranger.get(f"/panel?token={TOKEN}&line=3")
    assert (answer.status_code, answer.headers["location"]) == (303, "/panel?line=3")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert cookie.startswith(f"fastviz-80={TOKEN};")
    assert stranger.get("/panel").status_code == 200
    assert stranger.get("/panel?token=wrong").status_code == 200  # the cookie holds


def test_the_welcome_leads_to_no_other_server(stranger):
    answer = stranger.get(f"//evil.example/x?token={TOKEN}")
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/")
    assert not answer.headers["location"].startswith("//")


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("localhost:8765", 200), ("127.0.0.1:1", 200), ("[::1]:8765", 200), ("evil.example", 421),
     ("localhost.evil.example", 421), ("", 421), ("[", 421)],
)  # fmt: skip
def test_the_name_that_it_is_called_by(client, host, status):
    assert client.get("/panel", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
     {"sec-fetch-site": "same-site"}, {"origin": "http://localhost:1"}],
)  # fmt: skip
def test_pages_of_others_may_not_ask(client, headers):
    assert client.post("/photo/known/0", headers=headers).status_code == 403
    assert client.get("/lines", headers=headers).status_code == 403
    assert client.get("/lines").status_code == 200


def test_a_link_from_elsewhere_opens_the_page(client):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/panel", headers=headers).status_code == 200


def test_headers_of_every_answer(client, stranger):
    for answer in (client.get("/"), client.get("/nothing"), stranger.get("/")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_web_sockets_are_refused(client):
    with pytest.raises(Exception, match=r"1008|") as refused, client.websocket_connect("/"):
        pass
    assert getattr(refused.value, "code", None) == 1008
