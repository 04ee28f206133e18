"""Chromium without a window, driven over the DevTools protocol."""

import base64
import json
import re
import shutil
import subprocess
import urllib.request

import websocket

from . import system


class Browser:
    """One tab. `complaints` has errors of scripts, refusals of the content security policy, and failed loads."""

    def __init__(self, width=1280, height=960):
        program = shutil.which("chromium")
        assert program, "chromium is missing: ./test installs it, or apt-get install chromium"
        self._dir = system.fresh_dir("browser")
        self._log = open(self._dir / "log", "w+")
        self._process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={self._dir}/profile", f"--window-size={width},{height}",
             "about:blank"], stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL)
        self.complaints, self.asked = [], []
        self._number = 0
        address = system.until(self._address, 40, what="chromium is up")
        with urllib.request.urlopen(f"http://{address}/json/list", timeout=20) as answer:
            tab = next(tab for tab in json.load(answer) if tab["type"] == "page")
        self._socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=40)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def _address(self):
        self._log.seek(0)
        found = re.search(r"DevTools listening on ws://([^/]+)/", self._log.read())
        assert self._process.poll() is None, "chromium ended"
        return found and found.group(1)

    def _call(self, method, **parameters):
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._event(message.get("method"), message.get("params"))

    def _event(self, method, parameters):
        if method == "Runtime.exceptionThrown":
            self.complaints.append(parameters["exceptionDetails"])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(parameters["entry"]["text"] + " " + parameters["entry"].get("url", ""))
        elif method == "Network.requestWillBeSent":
            self.asked.append(parameters["request"]["url"])

    def open(self, url):
        self._call("Page.navigate", url=url)
        there = f"location.href === {json.dumps(url)} && document.readyState === 'complete'"
        system.until(lambda: self.evaluate(there), 30, what=f"{url} is loaded")

    def evaluate(self, expression):
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def dark(self):
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])

    def resize(self, width, height):
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self):
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def close(self):
        self._socket.close()
        self._process.terminate()
        self._process.wait(20)
        self._log.close()
        system.remove_dir(self._dir)
