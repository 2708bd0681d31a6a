"""A headless Chromium that is spoken to through pipes, in the DevTools protocol; the standard library is enough.

https://chromedevtools.github.io/devtools-protocol/
"""

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --mute-audio --hide-scrollbars "
    "--autoplay-policy=no-user-gesture-required --remote-debugging-pipe"
).split()
PATIENCE = 120.0  # seconds; a busy machine is slow, and a dead browser is noticed at once


def find_browser() -> Optional[str]:
    """Program to run (``CHROMIUM`` in the environment, or one of the usual names), if there is one."""
    given = os.environ.get("CHROMIUM")
    return given or next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One page in a browser with a profile of its own.

    Args:
        program: what to run.
        profile: empty folder.
    """

    def __init__(self, program: str, profile: Path):
        command_out, self._commands = os.pipe()
        self._answers, answer_in = os.pipe()
        # Chromium reads its commands from descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{command_out} 4>&{answer_in}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", program, *OPTIONS, f"--user-data-dir={profile}"],
            pass_fds=(command_out, answer_in), start_new_session=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(command_out)
        os.close(answer_in)
        self.events: List[Dict[str, Any]] = []
        self._received: queue.Queue[Optional[Dict[str, Any]]] = queue.Queue()
        self._number = 0
        self._session: Optional[str] = None
        threading.Thread(target=self._receive, daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _receive(self) -> None:
        with os.fdopen(self._answers, "rb") as stream:
            rest = b""
            while chunk := stream.read1(1 << 16):  # type: ignore[attr-defined]
                *messages, rest = (rest + chunk).split(b"\0")
                for message in messages:
                    self._received.put(json.loads(message))
        self._received.put(None)

    def _next(self, until: float) -> Dict[str, Any]:
        try:
            message = self._received.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(f"no answer from the browser within {PATIENCE:g} s") from None
        if message is None:
            raise RuntimeError("the browser has ended")
        return message

    def call(self, method: str, **parameters: Any) -> Dict[str, Any]:
        """Send a command and wait for its result; events that come in between are kept."""
        self._number += 1
        message: Dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            answer = self._next(until)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, address: str) -> None:
        """Load a page and wait until everything in it has loaded."""
        self.call("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(address)}")

    def run(self, script: str) -> Any:
        """Value of an expression in the page, promises awaited."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression in the page is true."""
        until = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > until:
                raise TimeoutError(f"not true within {PATIENCE:g} s: {condition}")
            time.sleep(0.05)

    def screenshot(self, path: Path, width: int, height: int, dark: bool = False, scale: float = 1.0) -> None:
        """Picture of the visible part of the page, as a window of this size shows it."""
        import base64

        self.resize(width, height, scale)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """Show the page in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    def close(self) -> None:
        """End the browser and the processes that it has started."""
        try:
            self._session = None
            self.call("Browser.close")
        except (RuntimeError, TimeoutError, OSError):
            pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._commands)
