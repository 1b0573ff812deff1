"""``fastviz serve``: a job's report while it runs, and a panel to look inside a network."""

from __future__ import annotations

import sys
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import typer

from fastviz.cli.common import NETWORK, Device, app, check_weights
from fastviz.cli.told import tells_of_the_network

__all__ = ["serve"]

_HERE = ("127.0.0.1", "::1", "localhost")


@app.command()
@tells_of_the_network
def serve(
    out: Annotated[Path | None, typer.Argument(help="The folder of a job; without one, only the panel.")] = None,
    model: Annotated[list[str] | None, typer.Option(help=f"{NETWORK} Default: the job's; may be repeated.")] = None,
    weights: Annotated[list[str] | None, typer.Option(help="The weights of each --model, in their order.")] = None,
    photos: Annotated[
        list[str] | None,
        typer.Option(help="Photographs to choose from and to find patches in: files, folders, globs; repeatable."),
    ] = None,
    device: Device = "auto",
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; if it is taken, any free one.")] = 8765,
    token: Annotated[str | None, typer.Option(help="Token that browsers must know; random if not given.")] = None,
) -> None:
    """Show a job's report while it runs, and look inside a network with your own photographs, in a browser."""
    from fastviz.jobs.serve import server

    server.need_server()
    names, files = list(model or []), list(weights or [])
    if len(files) > len(names):
        raise ValueError(f"--weights should be one per --model, got {len(files)} for {len(names)}")
    models = list(zip_longest(names, files))
    for name, file in models:
        check_weights(name, file)
    if host not in _HERE:
        print(
            f"fastviz: warning: whoever reaches {host} and has the token can use the server, and it is not encrypted",
            file=sys.stderr,
        )
    server.serve(
        out, models=models, photos=list(photos or []), device=device, host=host, port=port, token=token, tell=_tell
    )


def _tell(address: str) -> None:
    print(f"open {address}\nCtrl-C ends it", flush=True)
