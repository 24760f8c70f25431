"""Serve a folder on this machine alone, with the media types that modules and WebAssembly need.

python examples/web/serve.py --folder .demo/web
"""

from __future__ import annotations

import argparse
import functools
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, never from a browser's cache: the next build is seen at once."""

    # What the machine's own tables say may be older than these.
    extensions_map: ClassVar = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".json": "application/json",
        ".wasm": "application/wasm",
        ".onnx": "application/octet-stream",
    }

    def end_headers(self) -> None:
        """Add a header to every answer."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing about single requests."""


def open_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Listen on loopback; port 0 takes any that is free."""
    return ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Handler, directory=str(folder)))


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve a folder on loopback.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8000, help="0 takes any that is free.")
    arguments = parser.parse_args()
    try:
        server = open_server(arguments.folder, arguments.port)
    except OSError as error:
        sys.exit(f"port {arguments.port}: {error.strerror}; choose another with --port (make web PORT=8001)")
    print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
