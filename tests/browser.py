"""A real browser for the tests: headless Chromium, driven over its own protocol through a pipe."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

#: Longest time for one answer of the browser, seconds.
PATIENCE_SECONDS = 60.0

#: Names under which distributions install it.
NAMES = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """One page in a browser of its own; a context manager.

    Attributes:
        events: all that the browser said unasked since the last `open`, in order.
    """

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            raise FileNotFoundError("no Chromium here: apt-get install chromium")
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [
            *(program, "--headless=new", "--remote-debugging-pipe", "--no-sandbox"),
            *("--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"),
            *("--disable-background-networking", f"--user-data-dir={self._folder.name}"),
        ]

        def pipes() -> None:
            # Chromium reads commands from descriptor 3 and writes answers to 4.
            kept_in, kept_out = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(kept_in, 3)
            os.dup2(kept_out, 4)

        self._process = subprocess.Popen(
            command,
            preexec_fn=pipes,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        os.set_blocking(self._in, False)
        self._unread = b""
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()

    @property
    def complaints(self) -> list[str]:
        """Errors of the page's scripts, and what the browser logged as errors."""
        return [
            str(event["params"])
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or (
                event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error"
            )
        ]

    def open(self, url: str) -> None:
        """Go to an address and wait until all of the page is there."""
        self.events.clear()
        self._ask("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """Show the page on a screen of so many CSS pixels."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    def prefer(self, scheme: str) -> None:
        """Have the page think that its reader prefers `dark` or `light` colours."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._ask("Emulation.setEmulatedMedia", features=[feature])

    def evaluate(self, script: str) -> Any:
        """The value of an expression on the page."""
        answer = self._ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def text(self) -> str:
        """What a person reads on the page."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def wait_for(self, script: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until an expression is true on the page."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            # While the page loads there is not yet anything to look at.
            if self.evaluate(f"(() => {{ try {{ return !!({script}) }} catch {{}} }})()"):
                return
            time.sleep(0.1)
        raise TimeoutError(f"not within {seconds:g} s: {script}; the page says: {self.text()}")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        answer = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\0" not in self._unread:
            try:
                chunk = os.read(self._in, 1 << 20)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("the browser does not answer") from None
                time.sleep(0.005)
                continue
            if not chunk:
                raise RuntimeError("the browser has ended")
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer
