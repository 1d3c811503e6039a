"""A house of its own for scripts: simulated plugs on loopback addresses and an agent that reads them, started and ended here.

BIN_WATTD and BIN_PLUGSIM name other binaries than those in target/debug.
"""

import contextlib
import http.client
import json
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Seconds. Far more than anything takes: they end what hangs, they measure nothing.
START_TIME = 60


def binary(variable, name):
    path = Path(os.environ.get(variable, ROOT / "target" / "debug" / name)).resolve()
    if not os.access(path, os.X_OK):
        raise SystemExit(f"{path} is not there; run make build, or set {variable}")
    return path


def raise_open_files(wanted):
    """As many open files as the system allows, up to `wanted`; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


class Agent:
    """A running agent: where it listens, and what it costs."""

    def __init__(self, process, address):
        self.process, self.address = process, address
        self.host, port = address.rsplit(":", 1)
        self.port = int(port)

    def get(self, path, headers=None, timeout=30):
        """Status, headers and body of one request over a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers or {})
            reply = connection.getresponse()
            return reply.status, reply.headers, reply.read()

    def json(self, path):
        status, _, body = self.get(path)
        if status != 200:
            raise RuntimeError(f"{path}: {status} {body[:200]!r}")
        return json.loads(body)

    def memory(self, name="RssAnon"):
        """Kilobytes, from /proc."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
        raise RuntimeError(name)

    def cpu(self):
        """Seconds of CPU used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def readings(self):
        """Readings recorded so far, committed or not."""
        health = self.json("/health")
        return health["readings_committed"] + health["readings_pending"]


@contextlib.contextmanager
def house(base, plugs, settings=(), before=(), store=None):
    """Runs `plugs` simulated plugs from address `base` on, and an agent with these settings; `before` stands before its
    command line. Yields the agent once every plug was read."""
    network = base.split(".")[:2]
    children = []
    with tempfile.TemporaryDirectory(prefix="wattd-house-") as scratch:
        try:
            command = [binary("BIN_PLUGSIM", "plugsim"), "--plugs", plugs, "--base", base, "--seed", 1]
            simulator = start(children, command, stdout=subprocess.PIPE)
            wait_for(simulator.stdout, simulator, lambda line: line.strip() == "ready")
            target = ".".join([*network, "255", "255"])
            command = [*before, binary("BIN_WATTD", "wattd"), "run", "--config", "/dev/null", "--listen", "127.0.0.1:0",
                       "--data-dir", store or scratch, "--discovery-targets", target, *settings]
            process = start(children, command, stderr=subprocess.PIPE)
            line = wait_for(process.stderr, process, lambda line: "serving http://" in line)
            agent = Agent(process, line.split("serving http://")[1].strip().rstrip("/"))
            wait_for(process.stderr, process, lambda line: " ready: " in line)
            # So that the agent can go on logging.
            threading.Thread(target=lambda: [None for _ in process.stderr], daemon=True).start()
            yield agent
        finally:
            for child in children:
                if child.poll() is None:
                    child.send_signal(signal.SIGTERM)
            for child in children:
                try:
                    child.wait(15)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def start(children, command, **pipes):
    child = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, text=True, **pipes)
    children.append(child)
    return child


def wait_for(stream, child, is_it):
    # A read of a pipe has no time limit of its own: a timer ends the child, and with it the read.
    timer = threading.Timer(START_TIME, child.kill)
    timer.start()
    seen = []
    for line in stream:
        seen.append(line)
        if is_it(line):
            timer.cancel()
            return line
    timer.cancel()
    raise SystemExit("this program did not get ready: " + "".join(seen[-5:]))


def sleep_until(moment):
    time.sleep(max(0, moment - time.monotonic()))
