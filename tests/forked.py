"""Python programs in processes of their own, without the seconds that importing torch takes.

``python(code)`` is for tests of what a second process sees: caches, printed programs, exported
files. A server that has imported torch and numpy, and nothing that imports Triton, forks for each
program; what the program finds is what a new interpreter with torch imported would find. Tests of
what an import does, or loads, start interpreters.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class Program:
    """A running program; ``communicate``, ``poll`` and ``kill`` are those of ``Popen``."""

    def __init__(self, folder: Path, pid: int):
        self.folder, self.pid, self.returncode = folder, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(FileNotFoundError):
                self.returncode = int((self.folder / "status").read_text())
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise subprocess.TimeoutExpired("a forked program", timeout)
            time.sleep(0.005)
        return (self.folder / "out").read_text(), (self.folder / "err").read_text()

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


class Server:
    """Starts programs; the server itself ends when its input does."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="forked-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        self.count = 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=self.folder, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )  # fmt: skip

    def start(self, code: str, *arguments: str, env: dict | None = None, cwd=None) -> Program:
        """Runs ``code`` as ``python -c`` would, with ``env`` in place of the environment."""
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        request = {
            "code": code, "arguments": ["-c", *map(str, arguments)], "folder": str(folder),
            "env": dict(os.environ if env is None else env), "cwd": str(cwd or os.getcwd()),
        }  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Program(folder, int(self.process.stdout.readline()))


_SERVER = r"""
import json, os, signal, sys, traceback, types
import numpy, torch

assert not {"triton", "tkpy", "codegen", "llvmlite"} & set(sys.modules)
paths = sys.path[1:]


def run(request):
    out, err = (os.open(f"{request['folder']}/{n}", os.O_CREAT | os.O_WRONLY) for n in ("out", "err"))
    os.dup2(out, 1), os.dup2(err, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.clear(), os.environ.update(request["env"])
    first = [p for p in request["env"].get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = ["", *first, *paths]
    sys.argv[:] = request["arguments"]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        exec(compile(request["code"], "<string>", "exec"), vars(main))
        return 0
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a waiter ended
for line in sys.stdin:
    request = json.loads(line)
    waiter = os.fork()
    if waiter:
        print(waiter, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    runner = os.fork()
    if not runner:
        status = run(request)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    _, status = os.waitpid(runner, 0)
    folder = request["folder"]
    with open(f"{folder}/ending", "w") as f:
        f.write(str(os.waitstatus_to_exitcode(status)))
    os.replace(f"{folder}/ending", f"{folder}/status")
    os._exit(0)
"""

_server: Server | None = None


def start(code: str, *arguments: str, env: dict | None = None, cwd=None) -> Program:
    """A program that runs beside the test."""
    global _server
    if _server is None or _server.process.poll() is not None:
        _server = Server()
    return _server.start(code, *arguments, env=env, cwd=cwd)


def python(code: str, *arguments: str, env: dict | None = None, cwd=None, timeout: float = 300):
    """``subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, ...)``."""
    program = start(code, *arguments, env=env, cwd=cwd)
    out, err = program.communicate(timeout)
    return subprocess.CompletedProcess(arguments, program.returncode, out, err)
