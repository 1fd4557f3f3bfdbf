"""A real browser for tests that look at pages: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any


class BrowserUnavailable(RuntimeError):
    """There is no browser and none could be installed; says why."""


def chromium() -> str:
    """Where chromium is; it is installed from Debian where this process may. Raises BrowserUnavailable."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found:
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise BrowserUnavailable("chromium is not installed: apt-get install chromium")
    for words in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(["apt-get", "-q", *words], capture_output=True, text=True, env=env, check=False)
        if done.returncode:
            raise BrowserUnavailable(f"apt-get {words[0]} failed: {done.stderr.strip()[-200:]}")
    return str(shutil.which("chromium"))


@contextlib.contextmanager
def opened(url: str, *, asked: list[str] | None = None) -> Iterator[Any]:
    """A page of a fresh browser that has loaded `url`; what the page logs as an error is raised at the end.

    asked: takes every address that the page asks for.
    """
    from playwright.sync_api import sync_playwright

    path, errors = chromium(), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked is not None and asked.append(request.url))
        page.goto(url)
        yield page
        browser.close()
    assert not errors, errors
