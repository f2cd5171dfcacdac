"""Users of this host who are not root, made for a test run and gone after it: with subordinate ids, or one id.

Their names are unique, so runs can go on beside each other.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic
from support.cli import ROOT, Ended
from support.needs import lacking, need, need_root

_WITHOUT_NAMESPACES = Path(__file__).with_name("without_namespaces.py")


@dataclass(frozen=True)
class Person:
    """A user with a home directory, in which `project` is where they work."""

    name: str
    home: Path
    python: str

    @property
    def project(self) -> Path:
        """Where their manifests are."""
        return self.home / "project"

    @property
    def cache(self) -> Path:
        """Where assemble keeps everything of theirs."""
        return self.home / ".cache/assemble"

    def command(self, *arguments: str, environment: Mapping[str, str] | None = None) -> list[str]:
        """The words that run `assemble` as this user, with the environment of a job and nothing of ours."""
        variables = {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": f"{ROOT}:{_site_packages()}",
            "PYTHONDONTWRITEBYTECODE": "1",
            **(environment or {}),
        }
        return self.words([f"{name}={value}" for name, value in variables.items()], arguments)

    def words(self, environment: Sequence[str], arguments: Sequence[str]) -> list[str]:
        """The words that run a module of Python, `assembler`, as this user."""
        become = ["setpriv", "--reuid", self.name, "--regid", self.name, "--init-groups"]
        return [*become, "env", "-i", *environment, self.python, "-m", "assembler", *arguments]

    def __call__(
        self, *arguments: str, environment: Mapping[str, str] | None = None, namespaces: bool = True
    ) -> Ended:
        """Run `assemble` to its end, in the project; without `namespaces`, where this user can make none."""
        command = self.command(*arguments, environment=environment)
        if not namespaces:
            command = [sys.executable, str(_WITHOUT_NAMESPACES), *command]
        done = subprocess.run(command, cwd=self.project, capture_output=True, text=True, check=False)
        return Ended(done.returncode, done.stdout, done.stderr)

    def own(self) -> None:
        """Give everything below the project to this user."""
        subprocess.run(["chown", "-R", f"{self.name}:", str(self.project)], check=True)

    def processes(self) -> list[int]:
        """What runs as this user."""
        uid, found = pwd.getpwnam(self.name).pw_uid, []
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                with contextlib.suppress(OSError):
                    if path.stat().st_uid == uid:
                        found.append(int(path.name))
        return found


@contextlib.contextmanager
def person(*, ranges: bool) -> Iterator[Person]:
    """A new user, with subordinate ids or with one id; removed at the end with all that is theirs."""
    need_root()
    need("useradd", "setpriv", "newuidmap", "buildah")
    name = f"assemble-{secrets.token_hex(4)}"
    # A system account gets no subordinate ids.
    subprocess.run(["useradd", "--create-home", *([] if ranges else ["--system"]), name], check=True)
    entry = pwd.getpwnam(name)
    one = Person(name, Path(entry.pw_dir), _python(name))
    try:
        one.project.mkdir()
        one.own()
        yield one
    finally:
        until = time.monotonic() + 10
        while (left := one.processes()) and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        subprocess.run(["userdel", "--remove", name], check=False, capture_output=True)
        for place in (one.home, Path(f"/tmp/assemble-{entry.pw_uid}"), Path(f"/var/tmp/assemble-{entry.pw_uid}")):
            shutil.rmtree(place, ignore_errors=True)


def _site_packages() -> Path:
    return Path(pydantic.__file__).parents[1]


def _python(name: str) -> str:
    """A Python of our version that this user can start, with our packages."""
    test = f"import sys, pydantic, assembler.cli; assert sys.version_info[:2] == {sys.version_info[:2]}"

    def suits(python: str) -> bool:
        words = ["setpriv", "--reuid", name, "--regid", name, "--clear-groups", "env", "-i"]
        words += [f"PYTHONPATH={ROOT}:{_site_packages()}", "PYTHONDONTWRITEBYTECODE=1", python, "-c", test]
        return subprocess.run(words, capture_output=True, check=False, cwd="/").returncode == 0

    found = next((python for python in (sys.executable, "/usr/bin/python3") if suits(python)), None)
    if found is None:
        lacking("no Python that other users can start has the packages of this one")
    return found
