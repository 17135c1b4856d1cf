"""Chromium over the pipe of its DevTools protocol, with nothing but the standard library."""
import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ("--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --disable-extensions --hide-scrollbars "
         "--remote-debugging-pipe").split()


class Browser:
    """One tab. Whatever the page logs, throws or asks the network for is kept in `events`."""

    def __init__(self, folder):
        to_child, self.out = os.pipe()
        self.into, from_child = os.pipe()
        command = 'exec "$0" "$@" 3<&%d 4>&%d' % (to_child, from_child)
        self.process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(to_child, from_child), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_child)
        os.close(from_child)
        self.buffer, self.count, self.events, self.session = b"", 0, [], None
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1,
                  uploadThroughput=-1)

    def call(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def read(self):
        while b"\0" not in self.buffer:
            assert select.select([self.into], [], [], 60)[0], "the browser does not answer"
            piece = os.read(self.into, 2**20)
            assert piece, "the browser is gone"
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(message)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path, width=1280, height=900):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=False)
        self.js("if (window.save) { removeEventListener('pagehide', save); sessionStorage.clear(); }")
        self.call("Page.navigate", url="about:blank")
        self.events = []
        self.call("Page.navigate", url=Path(path).absolute().as_uri())
        self.wait("document.readyState === 'complete'")

    def js(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression, limit=30):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            try:
                if self.js(expression):
                    return
            except AssertionError as e:                          # a page that is going away
                assert "navigated" in str(e)
            time.sleep(0.02)
        raise AssertionError(f"never: {expression}")

    def mouse(self, kind, x, y, **more):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def point(self, selector, dx=0.5, dy=0.5):
        """Move the mouse to a place in an element -> (x, y)."""
        box = self.js(f"""(() => {{
            const e = {selector};
            e.scrollIntoView({{block: "center"}});
            const r = e.getClientRects()[0];
            return [r.left + {dx} * r.width, r.top + {dy} * r.height];
        }})()""")
        self.mouse("mouseMoved", *box)
        return box

    def click(self, selector):
        x, y = self.point(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def key(self, key):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def set(self, id, value):
        """What a reader does to a slider or a menu."""
        self.js(f"""(() => {{
            const e = $({id!r});
            e.value = {json.dumps(value)};
            e.dispatchEvent(new Event(e.tagName === "SELECT" ? "change" : "input", {{bubbles: true}}));
        }})()""")

    def complaints(self):
        """What went to the console, was thrown, or left for the network."""
        self.js("1")                                             # events so far have come
        found = []
        for event in self.events:
            method, params = event["method"], event["params"]
            if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                found.append(params)
            if method == "Network.requestWillBeSent":
                if not params["request"]["url"].startswith(("file:", "data:")):
                    found.append(params["request"]["url"])
        return found

    def shot(self, path):
        """The whole page as a picture, to look at."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self.session = None
        self.call("Browser.close")
        self.process.wait(30)
