"""``fastviz serve``: builds the application from the arguments and runs the server."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastviz._util import checks
from fastviz.images.paths import find_named

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["PORT", "built", "need_server", "serve"]

PORT = 8765

_PHOTOS = Path(__file__).parents[2] / "models" / "data" / "photos"


def need_server() -> None:
    """Raise if FastAPI or uvicorn is not installed.

    Raises:
        ImportError: one of them is not installed; the message says how to install it.
    """
    for name in ("fastapi", "uvicorn"):
        if find_spec(name) is None:
            raise ImportError(f'serve needs {name}: pip install "fastviz[serve]"')


def built(
    out: str | os.PathLike[str] | None = None,
    *,
    token: str,
    models: Sequence[tuple[str, str | None]] = (),
    photos: Sequence[str] = (),
    device: str = "auto",
    name: str = "",
) -> FastAPI:
    """The application that :func:`serve` runs. Loads the networks.

    Args:
        out: the folder of a job, which may still be running; None serves only the panel.
        token: the token that requests need.
        models: names and weights of the networks that the panel offers. If empty, the network of the job is used, or
            the built-in network.
        photos: files, folders and patterns of the panel's known photographs. If empty, the first images of the job are
            used, or three that come with the package.
        device: where networks run.
        name: a host name of the server, besides its IP addresses and localhost.

    Returns:
        An ASGI application.

    Raises:
        ImportError: FastAPI or uvicorn is not installed, or, with a job, pyarrow.
        ValueError: there is no job in ``out``, or a network cannot be loaded or shown.
    """
    need_server()
    from fastviz import models as all_models
    from fastviz.jobs.serve.application import application
    from fastviz.jobs.serve.known_photographs import KnownPhotographs
    from fastviz.jobs.serve.live_report import LiveReport
    from fastviz.jobs.serve.networks import network_of, of_job

    live = None if out is None else LiveReport(out)
    place = checks.device(device)
    networks, without = [], ""
    if not models and live is not None:
        try:
            networks = [of_job(live.job, place)]
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            without = (
                f"The network of the job cannot be loaded; choose one with --model. {' '.join(str(error).split())}"
            )
    else:
        for one, weights in models or [("demo", None)]:
            networks.append(network_of(one, all_models.load_model(one, weights).to(place), place))
    files = {}
    if photos or live is None:
        paths, names = find_named(list(photos) or [str(_PHOTOS)])
        files = dict(zip(names, paths, strict=True))
    return application(
        token, live=live, networks=networks, known=KnownPhotographs(files, live), name=name, without=without
    )


def serve(
    out: str | os.PathLike[str] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str | None = None,
    tell: Callable[[str], object] = print,
    **options: Any,
) -> None:
    """Serve the live report of a job, and the panel, until Ctrl-C.

    Args:
        out: see :func:`built`.
        host: the address to listen on; by default only this machine can connect.
        port: the port; if another program uses it, any free one.
        token: the access token; None makes a random one.
        tell: called with the URL to open, which contains the token.
        options: the other arguments of :func:`built`.

    Raises:
        ImportError, ValueError: see :func:`built`.
        OSError: the server cannot listen on the address.
    """
    token = secrets.token_urlsafe(24) if token is None else token
    if not token:
        raise ValueError("token should not be empty, because then anyone who can connect could use the server")
    app = built(out, token=token, name=host, **options)
    import uvicorn

    with _socket(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        tell(f"http://{shown}:{listening.getsockname()[1]}/?token={token}")
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
        )
        uvicorn.Server(settings).run([listening])


def _socket(host: str, port: int) -> socket.socket:
    """A socket that listens on the address, on any free port if this one is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError:
        if port == 0:
            raise
        return socket.create_server((host, 0), family=family)
