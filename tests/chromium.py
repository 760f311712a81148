"""A headless Chromium as tests use it: real clicks, drags, keys and screenshots.

It is spoken to by the DevTools protocol through two pipes, as Chromium itself offers it
(--remote-debugging-pipe: JSON messages that end in a zero byte), which needs no client library:
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATH = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_PATIENCE_S = 60.0


@dataclass
class Browser:
    """One browser with one tab."""

    to_browser: int
    from_browser: int
    events: list[dict[str, Any]] = field(default_factory=list)
    _session: str | None = None
    _buffer: bytes = b""
    _last: int = 0

    def send(self, method: str, /, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its answer; what fails is an AssertionError."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self.from_browser], [], [], _PATIENCE_S)
            assert ready, "the browser says nothing"
            read = os.read(self.from_browser, 1 << 20)
            assert read, "the browser is gone"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def attach(self) -> None:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def look(
        self, *, width_px: int, height_px: int, dark: bool = False, phone: bool = False
    ) -> None:
        """The size of the window in CSS pixels, and the system's theme."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width_px,
            height=height_px,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path, *, ready: str) -> None:
        """Load a file, and wait until the expression `ready` is true."""
        self.send("Page.navigate", url=path.as_uri())
        self.wait(ready)

    def wait(self, expression: str) -> None:
        end = time.monotonic() + _PATIENCE_S
        while self.value(f"Boolean({expression})") is not True:
            assert time.monotonic() < end, f"never came true: {expression}; {self.complaints()}"
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """What JavaScript makes of it; a promise is awaited. A script's error is an error here."""
        done = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in done:
            # Of a page that is being loaded, nothing is there yet.
            return None
        return done["result"].get("value")

    def settled(self) -> None:
        """Wait until what was asked for is drawn."""
        frames = "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(1))))"
        assert self.value(frames) == 1

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, selector: str) -> None:
        x, y = self.middle_of(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)
        self.settled()

    def drag(self, start: tuple[float, float], by: tuple[float, float]) -> None:
        (x, y), (dx, dy) = start, by
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        for part in (0.5, 1.0):
            self.mouse("mouseMoved", x + dx * part, y + dy * part, button="left", buttons=1)
        self.mouse("mouseReleased", x + dx, y + dy, button="left", clickCount=1)
        self.settled()

    def key(self, key: str, *, code: str = "", shift: bool = False) -> None:
        event = {"key": key, "code": code, "modifiers": 8 if shift else 0}
        self.send("Input.dispatchKeyEvent", type="keyDown", **event)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)
        self.settled()

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(points)]
        self.send("Input.dispatchTouchEvent", type=kind, touchPoints=places)

    def middle_of(self, selector: str) -> tuple[float, float]:
        box = self.value(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        assert box is not None, f"there is no {selector}"
        return box[0], box[1]

    def screenshot(self, *, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page."""
        done = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(done["data"])

    def complaints(self) -> list[str]:
        """Errors of scripts, violations of the policy, and requests for anything but the page."""
        self.value("1")  # whatever was said before this has arrived after it
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(params["entry"]["text"])
            elif event.get("method") == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("data:", "file:", "about:")):
                    found.append(f"asks for {url}")
        return found


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser of its own, ended whatever happens."""
    assert PATH is not None
    commands_out, commands_in = os.pipe()
    answers_out, answers_in = os.pipe()

    def wire() -> None:
        # Chromium reads commands from 3 and answers on 4; either may be one of the pipes' own.
        os.dup2(commands_out, 30)
        os.dup2(answers_in, 31)
        os.dup2(30, 3)
        os.dup2(31, 4)

    process = subprocess.Popen(
        [
            *(PATH, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
            *("--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}"),
            "about:blank",
        ],
        preexec_fn=wire,
        close_fds=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands_out)
    os.close(answers_in)
    try:
        found = Browser(to_browser=commands_in, from_browser=answers_out)
        found.attach()
        yield found
        found._session = None
        with suppress(AssertionError):
            found.send("Browser.close")
        process.wait(10)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(commands_in)
        os.close(answers_out)
