"""Containers run by runc."""

import contextlib
import json
import signal
import subprocess
import time
from pathlib import Path

from tests.pods.oci import ContainerSpec, make_config
from tests.waiting import wait_until

_KILL_S = 30


class Container:
    """One container from its start to its removal; what it prints goes to folder/log.

    folder: of its own; identity: its name among all containers of this machine
    """

    def __init__(self, spec: ContainerSpec, folder: Path, identity: str) -> None:
        folder.mkdir(parents=True)
        self.folder, self.identity = folder, identity
        (folder / "config.json").write_text(json.dumps(make_config(spec)))
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["runc", *self._root, "run", "--bundle", folder, identity],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def _root(self) -> list[str]:
        return ["--root", str(self.folder.parent.parent / "runc")]

    @property
    def log(self) -> str:
        """Everything it has printed."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def state(self) -> str:
        """runc's word: creating, created, running or stopped; empty if it is not there."""
        result = self._runc("state", self.identity)
        return str(json.loads(result.stdout)["status"]) if result.returncode == 0 else ""

    def wait(self, timeout_s: float) -> int:
        """Its exit code. Fails with its log if it still runs after `timeout_s`."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.identity} runs after {timeout_s} s:\n{self.log}") from None

    def execute(
        self, *command: str, timeout_s: float = 600, environment: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """A command inside, as its user and with its environment. Exit code 124 after its time."""
        variables = [f"--env={name}={value}" for name, value in (environment or {}).items()]
        try:
            return self._runc("exec", *variables, self.identity, *command, timeout_s=timeout_s)
        except subprocess.TimeoutExpired as error:
            out = (error.stdout or b"").decode(errors="replace")
            return subprocess.CompletedProcess(command, 124, out, f"not done in {timeout_s} s")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its first process."""
        self._runc("kill", self.identity, str(number.value))

    def kill(self) -> None:
        """End every process in it at once."""
        deadline = time.monotonic() + _KILL_S
        while self.exit_code is None and time.monotonic() < deadline:
            self.signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.2)
        self._runc("delete", "--force", self.identity)

    def wait_for_start(self, timeout_s: float = 60) -> None:
        """Wait until it runs or has ended."""
        wait_until(lambda: self.state == "running" or self.exit_code is not None, timeout_s)

    def _runc(self, *arguments: str, timeout_s: float = 60) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["runc", *self._root, *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
