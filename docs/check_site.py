"""Opens every page of a built site in a headless Chromium and says what is broken; `nox -s site` does it all.

The browser is one that is on the machine: `L2O_CHROMIUM`, or Chromium or Chrome in the `PATH`. The site is
served on loopback, and nothing else is asked for: a page that wants something from elsewhere is broken, too.
"""

import os
import pathlib
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

from playwright.sync_api import Browser, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# No lookups of the browser's own.
FLAGS = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
FLAGS += ["--disable-quic", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
# Of a page: its links, the places that links can lead to, and pictures that do not show.
LOOK = """async () => {
    const all = (what) => [...document.querySelectorAll(what)];
    const pictures = all("img");
    pictures.forEach((picture) => { picture.loading = "eager"; });
    await Promise.all(pictures.map((picture) => picture.decode().catch(() => {})));
    return {
        links: all("a[href]").map((link) => link.href),
        anchors: all("[id], a[name]").flatMap((place) => [place.id, place.name]).filter(Boolean),
        pictures: pictures.length,
        broken: pictures.filter((picture) => !picture.naturalWidth).map((picture) => picture.src),
    };
}"""


def find_browser() -> str:
    """The path of a Chromium."""
    given = os.environ.get("L2O_CHROMIUM")
    names = (given,) if given else BROWSERS
    for path in filter(None, map(shutil.which, names)):
        return path
    sys.exit(
        f"There is no browser to look at the site with; looked for {', '.join(names)}. "
        "Install one, such as Debian's package `chromium`, or name it in L2O_CHROMIUM."
    )


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def file_of(site: pathlib.Path, path: str) -> pathlib.Path:
    """The file that is served under a path."""
    file = site / unquote(path).lstrip("/")
    return file / "index.html" if file.is_dir() else file


def open_page(browser: Browser, host: str, path: str) -> tuple[dict[str, Any], list[str]]:
    """What there is on a page, and what is broken there."""
    broken: list[str] = []
    page = browser.new_page(service_workers="block")

    def pass_own(route: Any) -> None:
        if route.request.url.startswith(host):
            route.continue_()
        else:
            broken.append(f"asks another host: {route.request.url}")
            route.abort()

    page.route("**/*", pass_own)
    page.on("console", lambda said: broken.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: broken.append(f"script: {error}"))
    page.on("requestfailed", lambda request: broken.append(f"failed: {request.url} ({request.failure})"))
    page.on("response", lambda got: broken.append(f"{got.status}: {got.url}") if got.status >= 400 else None)
    response = page.goto(host + path)
    if response is None or response.status != 200:
        broken.append(f"answers {response and response.status}")
    found = page.evaluate(LOOK)
    page.close()
    return found, broken + [f"picture without content: {source}" for source in found["broken"]]


def check(site: pathlib.Path) -> int:
    """Prints what is broken, page by page, and how much was looked at; returns how much is broken."""
    program, files = find_browser(), sorted(site.rglob("*.html"))
    if not files:
        sys.exit(f"There is no page in {site}: build it first, `mkdocs build`.")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_address[1]}"
    pages: dict[pathlib.Path, dict[str, Any]] = {}
    broken: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        for file in files:
            path = "/" + file.relative_to(site).as_posix().removesuffix("index.html")
            pages[file], errors = open_page(browser, host, path)
            broken += [f"{path}: {error}" for error in dict.fromkeys(errors)]
        browser.close()
    server.shutdown()
    for source, page in pages.items():
        for url in sorted({link for link in page["links"] if link.startswith(host)}):
            address, anchor = urldefrag(url)
            target = file_of(site, urlsplit(address).path)
            if not target.is_file():
                broken.append(f"{source.relative_to(site)}: leads nowhere: {url.removeprefix(host)}")
            elif anchor and target in pages and unquote(anchor) not in pages[target]["anchors"]:
                broken.append(f"{source.relative_to(site)}: no such place: {url.removeprefix(host)}")
    links = sum(len(page["links"]) for page in pages.values())
    pictures = sum(page["pictures"] for page in pages.values())
    print(*broken, f"{len(pages)} pages, {links} links, {pictures} pictures: {len(broken)} broken", sep="\n")
    return len(broken)


if __name__ == "__main__":
    sys.exit(min(check(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "site").resolve()), 1))
