"""``fastviz serve``: from its arguments to a server that runs."""

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
    """Refuse to begin without FastAPI and uvicorn.

    Raises:
        ImportError: one of them is not installed; says how.
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
    """The application that :func:`serve` runs; networks are loaded here.

    Args:
        out: the folder of a job, which may still run; None is the panel alone.
        token: what requests must know.
        models: names and weights of the networks that the panel offers; none at all is that of the job, else the
            built-in one.
        photos: files, folders and patterns of photographs that the panel knows; none at all are the first of the job,
            else three of the package.
        device: where networks run.
        name: a name that the server may be called by beside its addresses and localhost.

    Returns:
        An ASGI application.

    Raises:
        ImportError: FastAPI, uvicorn, or, with a job, pyarrow is not installed.
        ValueError: no job in ``out``; a network that cannot be loaded, or that the panel cannot show.
    """
    need_server()
    from fastviz import models as all_models
    from fastviz.jobs.serve.application import application
    from fastviz.jobs.serve.known import Known
    from fastviz.jobs.serve.live import Live
    from fastviz.jobs.serve.networks import network_of, of_job

    live = None if out is None else Live(out)
    place = checks.device(device)
    networks, without = [], ""
    if not models and live is not None:
        try:
            networks = [of_job(live.job, place)]
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            without = f"The network of the job cannot be loaded; --model gives another. {' '.join(str(error).split())}"
    else:
        for one, weights in models or [("demo", None)]:
            networks.append(network_of(one, all_models.load_model(one, weights).to(place), place))
    files = {}
    if photos or live is None:
        paths, names = find_named(list(photos) or [str(_PHOTOS)])
        files = dict(zip(names, paths, strict=True))
    return application(token, live=live, networks=networks, known=Known(files, live), name=name, without=without)


def serve(
    out: str | os.PathLike[str] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str | None = None,
    tell: Callable[[str], object] = print,
    **options: Any,
) -> None:
    """Show the report of a job while it goes on, and the panel, to browsers; until Ctrl-C.

    Args:
        out: see :func:`built`.
        host: the address to listen at; by default only this machine can connect.
        port: of it; where another program has it, any free one.
        token: None is one made by chance.
        tell: called with the address to open, which has the token.
        options: the others of :func:`built`.

    Raises:
        ImportError, ValueError: see :func:`built`.
        OSError: the address cannot be listened at.
    """
    token = secrets.token_urlsafe(24) if token is None else token
    if not token:
        raise ValueError("token should not be empty: whoever can connect could use the server")
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
    """A socket that listens at the address; at any free port, where another program has this one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError:
        if port == 0:
            raise
        return socket.create_server((host, 0), family=family)
