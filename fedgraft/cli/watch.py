"""`fedgraft watch`: a live page of a run, a comparison, a server or a fleet."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from fedgraft.core.ports import WATCH


def watch(
    run: Annotated[Path, typer.Argument(help="The directory of a run or a comparison; a server's or fleet's folder.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="The page's port; 0 for any that is free.")] = WATCH,
    host: Annotated[
        str, typer.Option(help="The address to serve on; one that others can reach asks them for a token.")
    ] = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address and open no browser.")] = False,
) -> None:
    """Show a run live in the browser, from what is on disk; it may be waiting, at work, stopped or finished."""
    from fedgraft.watch.found import open_source
    from fedgraft.watch.serving import serve

    def ready(address: str) -> None:
        typer.echo(f"Watching {run} at {address} (Ctrl-C ends it)")
        if not no_browser:
            webbrowser.open(address)

    serve(open_source(run), host, port, ready)
