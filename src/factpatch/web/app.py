"""The page: its panels put together, and the server that serves it, and nothing else."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from importlib import resources

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported, which asks for versions then
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, Response
from starlette.requests import Request

from factpatch.web.gate import Entry, Gate
from factpatch.web.panels.ask import ask_panel
from factpatch.web.panels.base import ALONE, Page, html
from factpatch.web.panels.effects import effects_panel
from factpatch.web.panels.facts import facts_panel
from factpatch.web.panels.history import history_panel
from factpatch.web.panels.method import method_panel
from factpatch.web.panels.results import results_panel
from factpatch.web.panels.take import take_panel
from factpatch.web.room import Room

TITLE = "factpatch: teach a language model facts"
_INTRODUCTION = "# factpatch\nType a fact, watch the model learn it, ask it anything, take it back."


def make_page(room: Room) -> gr.Blocks:
    """Return the page about a room's models."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        page = Page(room)
        gr.Markdown(_INTRODUCTION)
        page.status = html("status")
        with gr.Tabs():
            with gr.Tab("Teach"):
                facts_panel(page)
                with gr.Accordion("Model and method", open=False):
                    method_panel(page)
                results_panel(page)
            for title, panel in (
                ("Ask", ask_panel),
                ("History", history_panel),
                ("Side effects", effects_panel),
                ("Take away", take_panel),
            ):
                with gr.Tab(title):
                    panel(page)
        loaded = blocks.load(page.refresh, None, page.outputs, show_progress="hidden", **ALONE)
        followed = loaded.then(page.follow, None, [page.status], show_progress="hidden", **ALONE)
        followed.then(page.refresh, None, page.outputs, show_progress="hidden", **ALONE)
        # Browsers keep a connection open, by which the gate knows who is there, only if somebody listens to its end.
        blocks.unload(lambda: None)
    return blocks


def make_app(room: Room, entry: Entry, port: int, hosts: frozenset[str] | None) -> FastAPI:
    """Return the application of ASGI: the page, what may be downloaded, and the gate before both."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/download/{name}")
    def download(name: str, request: Request) -> Response:
        # A name alone, of the folder of whoever asks: the gate lets no slash through.
        file = room.exported(str(request.scope.get("desk", "")), name)
        if file is None:
            return PlainTextResponse("There is no such file.", 404)
        return FileResponse(file, filename=name, media_type="application/octet-stream")

    os.environ["GRADIO_TEMP_DIR"] = str(room.uploads)
    styles = resources.files("factpatch.web").joinpath("page.css").read_text("utf-8")
    gr.mount_gradio_app(
        app,
        make_page(room),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=room.limits.upload,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=styles,
    )
    app.add_middleware(Gate, room=room, entry=entry, port=port, hosts=hosts)
    return app


def serve(room: Room, host: str, port: int, entry: Entry, ready: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted.

    Args:
        host: The address to listen on.
        port: The port; 0 for any that is free.
        ready: Called with the page's address once it is served.

    Raises:
        OSError: The address cannot be used.
    """
    listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listening.getsockname()[1]
    loopback = host in LOOPBACK
    app = make_app(room, entry, port, LOOPBACK if loopback else None)
    room.warm_up()
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    name = f"[{host}]" if ":" in host else host
    query = "" if entry.token is None else f"?token={entry.token}"
    ready(f"http://{name}:{port}/{query}")
    server.run(sockets=[listening])


LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names of this machine for itself."""
