"""The same as edge_worker.py in a headless chromium with onnxruntime-web, WebAssembly on one thread.

    python edge_browser.py MODEL USERS NODE_MODULES

load_ms begins where the file's bytes are in the page's memory; memory is left out, for a browser is many processes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"]
QUIET += ["--disable-component-update", "--disable-sync", "--disable-quic"]
PAGE = """<!doctype html><script type="module">
import * as ort from "/ort/ort.wasm.min.mjs";
import { openRecommender } from "/edge_recommend.mjs";
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = "/ort/";
const bytes = new Uint8Array(await (await fetch("/model")).arrayBuffer());
const histories = await (await fetch("/users")).json();
// The runtime is there before the clock runs, as Python's and Node's are: a file that it refuses loads it.
await ort.InferenceSession.create(new Uint8Array(1)).catch(() => {});
const started = performance.now();
const recommend = await openRecommender(ort, bytes);
const opened = { load_ms: performance.now() - started };
await recommend(histories[0]);
globalThis.answer = (what, first, count) => recommend.answer(what, histories.slice(first, first + count));
globalThis.opened = opened;
</script>"""


def chromium() -> str | None:
    """Path of the browser; None where there is none."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


def main() -> None:
    """Serve the files on loopback, open the page, then answer lines until there are no more."""
    model, users, modules = map(Path, sys.argv[1:])
    server = serve(model, users, modules)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(),
            args=QUIET,
            chromium_sandbox=os.geteuid() != 0,  # root has none
        )
        page = browser.new_page()
        page.on("pageerror", lambda error: print(error, file=sys.stderr))
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_function("globalThis.opened", timeout=300_000)
        say(page.evaluate("globalThis.opened"))
        for line in sys.stdin:
            what, first, count = line.split()
            say(page.evaluate("([what, first, count]) => answer(what, first, count)", [what, int(first), int(count)]))
        browser.close()
    server.shutdown()


def serve(model: Path, users: Path, modules: Path) -> ThreadingHTTPServer:
    """The page and what it loads, in a thread."""

    class Files(SimpleHTTPRequestHandler):
        def guess_type(self, path: Any) -> str:
            return "text/javascript" if str(path).endswith(".mjs") else super().guess_type(path)

        def do_GET(self) -> None:
            if self.path == "/":
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(PAGE.encode())
            else:
                super().do_GET()

        def translate_path(self, path: str) -> str:
            if path in ("/model", "/users"):
                return str(model if path == "/model" else users)
            folder = modules / "onnxruntime-web" / "dist" if path.startswith("/ort/") else HERE
            return str(folder / Path(path).name)

        def end_headers(self) -> None:
            # A page of its own may read a clock of 5 microseconds; another one's has 100.
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def say(answer: dict[str, Any]) -> None:
    """One line of JSON, at once."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
