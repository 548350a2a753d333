"""Chromium without a window, driven over the DevTools protocol as a user drives it: keys, mouse, files.

Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
FLAGS = (
    "--headless=new", "--remote-debugging-port=0", "--no-first-run", "--no-default-browser-check", "--disable-gpu",
    "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking", "--mute-audio",
    "--no-sandbox",  # containers lack what the sandbox needs; only the test's own server is visited
)
PATIENCE = 60.0
"""Seconds until what is waited for must have come."""
CODES = {"Enter": 13, "Escape": 27, "Tab": 9, "Backspace": 8, "Delete": 46, " ": 32, "PageUp": 33, "PageDown": 34,
         "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
ALT, CONTROL, SHIFT = 1, 2, 8

FIND = """(selector, text) => [...document.querySelectorAll(selector)].find(
    (found) => found.checkVisibility() && found.textContent.includes(text)) ?? null"""
POINT = """function () {
    this.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
    const { x, y, width, height } = this.getBoundingClientRect();
    const [left, top] = [x + width / 2, y + height / 2];
    const hit = document.elementFromPoint(left, top);
    const covered = hit && (this === hit || this.contains(hit)) ? "" : `covered by ${hit?.outerHTML.slice(0, 200)}`;
    return { x: left, y: top, covered };
}"""


def program() -> str:
    """The browser to use: CHROMIUM_PATH, or the first on PATH; empty where there is none."""
    given = os.environ.get("CHROMIUM_PATH")
    return shutil.which(given) or "" if given else next(filter(None, map(shutil.which, PROGRAMS)), "")


def why_not() -> str:
    """The one plain reason why no browser can be driven here; empty where one can."""
    return "" if program() else "no Chromium or Chrome here: install one or set CHROMIUM_PATH to it"


@contextmanager
def browser(folder: Path, width: int = 1280, height: int = 800) -> Iterator[Page]:
    """An empty page in a browser whose profile and log are in `folder`."""
    from websocket import create_connection

    command = [program(), *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        port = wait_for_port(folder / "profile" / "DevToolsActivePort", process, folder / "browser.log")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE) as answer:
            (target,) = [found for found in json.load(answer) if found["type"] == "page"]
        socket = create_connection(target["webSocketDebuggerUrl"], timeout=PATIENCE, suppress_origin=True)
        try:
            page = Page(socket)
            page.size(width, height)
            yield page
            page.call("Browser.close")
            process.wait(PATIENCE)
        finally:
            socket.close()
    finally:
        process.kill()
        process.wait()


def wait_for_port(file: Path, process: subprocess.Popen, log: Path) -> int:
    """The port of DevTools, which the browser writes into its profile once it listens."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends and process.poll() is None:
        lines = file.read_text().splitlines() if file.exists() else []
        if len(lines) == 2:
            return int(lines[0])
        time.sleep(0.05)
    raise AssertionError(f"the browser did not start:\n{log.read_text(errors='replace')[-2000:]}")


class Page:
    """One page. What waits raises AssertionError after PATIENCE seconds."""

    def __init__(self, socket: Any):
        self.socket = socket
        self.number = 0
        self.events: list[dict] = []
        for domain in ("Page", "Runtime", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Page.setInterceptFileChooserDialog", enabled=True)
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> dict:
        """Answer of a command. Events that come before it are kept; a page that asks whether to leave it is left."""
        number = self.send(method, parameters)
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") == "Page.javascriptDialogOpening":
                self.send("Page.handleJavaScriptDialog", {"accept": True})
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            if "method" in message:
                self.events.append(message)

    def send(self, method: str, parameters: dict) -> int:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        return self.number

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, address: str) -> None:
        """Go to an address, anew where the page is there already."""
        before = len(self.events)
        self.call("Page.navigate", url=address)
        self.event("Page.frameNavigated", before)

    def event(self, name: str, before: int) -> dict:
        """The first event of a name beyond as many as there were before, as soon as it comes."""
        ends = time.monotonic() + PATIENCE
        while True:
            for event in self.events[before:]:
                if event["method"] == name:
                    return event["params"]
            assert time.monotonic() < ends, f"{name} has not come"
            self.call("Browser.getVersion")  # its answer brings along what has happened
            time.sleep(0.02)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return value_of(answer, expression)

    def wait(self, expression: str) -> Any:
        """The value of an expression as soon as it is true; while a page is being opened nothing is."""
        ends = time.monotonic() + PATIENCE
        found = None
        while time.monotonic() < ends:
            try:
                found = self.evaluate(expression)
            except AssertionError as error:
                found = error
            if found and not isinstance(found, AssertionError):
                return found
            time.sleep(0.05)
        raise AssertionError(f"waited in vain for {expression}; last: {found}")

    def find(self, selector: str, text: str = "") -> str:
        """Handle of the first element in sight that a selector and its text describe, as soon as there is one."""
        expression = f"({FIND})({json.dumps(selector)}, {json.dumps(text)})"
        handle = None
        while handle is None:  # a page in motion may take it away between the two looks
            self.wait(f"Boolean({expression})")
            handle = self.call("Runtime.evaluate", expression=expression)["result"].get("objectId")
        return handle

    def ask(self, element: str, function: str) -> Any:
        """What a JavaScript function returns for an element, its `this`."""
        answer = self.call("Runtime.callFunctionOn", objectId=element, functionDeclaration=function,
                           returnByValue=True)
        return value_of(answer, function)

    def point(self, selector: str, text: str = "") -> tuple[float, float]:
        """The middle of an element, once nothing covers it, it stands still and the mouse is there."""
        ends = time.monotonic() + PATIENCE
        place, before = self.ask(self.find(selector, text), POINT), None
        while place["covered"] or place != before:
            assert time.monotonic() < ends, f"{selector} {text!r} is {place['covered'] or 'moving'}"
            time.sleep(0.05)
            place, before = self.ask(self.find(selector, text), POINT), place
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=place["x"], y=place["y"])
        return place["x"], place["y"]

    def click(self, selector: str, text: str = "") -> None:
        x, y = self.point(selector, text)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, modifiers: int = 0, commands: tuple[str, ...] = ()) -> None:
        """Press and let go of a key; `commands` are what the browser's own editor does at it."""
        typed = {"Enter": "\r"}.get(key, key if len(key) == 1 else "") if not modifiers & CONTROL else ""
        code = CODES.get(key) or (ord(key.upper()) if key.isascii() and key.isalnum() else 0)
        given = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        down = given | ({"text": typed} if typed else {}) | ({"commands": commands} if commands else {})
        self.call("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def write(self, selector: str, text: str) -> None:
        """Click a text field and type over what is in it, key by key."""
        self.click(selector)
        self.press("a", CONTROL, ("selectAll",))
        self.press("Backspace")
        for character in text:
            self.press(character)

    def choose_files(self, selector: str, text: str, paths: list[Path]) -> None:
        """Click what opens the choice of files, and choose."""
        before = len(self.events)
        self.click(selector, text)
        chooser = self.event("Page.fileChooserOpened", before)["backendNodeId"]
        self.call("DOM.setFileInputFiles", files=[*map(str, paths)], backendNodeId=chooser)

    def drop(self, selector: str, paths: list[Path]) -> None:
        """Drag files and folders from outside on an element."""
        x, y = self.point(selector)
        data = {"items": [], "files": [*map(str, paths)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def errors(self) -> list[str]:
        """What scripts have thrown and nobody caught, since it was asked last."""
        thrown = [event["params"]["exceptionDetails"] for event in self.events
                  if event["method"] == "Runtime.exceptionThrown"]
        self.events.clear()
        return [error.get("exception", {}).get("description") or error["text"] for error in thrown]

    def picture(self, path: Path, clip: tuple[float, float, float, float] | None = None) -> None:
        """Save what is in sight, or the part of it with this left, top, width and height, as PNG."""
        part = {"clip": dict(zip(("x", "y", "width", "height"), clip, strict=True)) | {"scale": 1}} if clip else {}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **part)["data"]))


def value_of(answer: dict, source: str) -> Any:
    failed = answer.get("exceptionDetails")
    assert not failed, f"{source}: {failed.get('exception', {}).get('description') or failed['text']}"
    return answer["result"].get("value")
