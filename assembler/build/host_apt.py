"""The host's apt on a directory of its own: another release, no installed packages, nothing of the host's state.

Only how the host reaches the network (proxies, certificates) is taken over from its configuration.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from assembler.build.apt_query import Run
from assembler.errors import NodeError, StepError
from assembler.process import Completed, run, which

_KEYRINGS: Final = Path("/usr/share/keyrings")
_KEYRING: Final = {
    "debian": ("debian-archive-keyring", "debian-archive-keyring"),
    "ubuntu": ("ubuntu-archive-keyring", "ubuntu-keyring"),
}
_LINE: Final = re.compile(r"(?P<kind>deb)\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<rest>\S.*)")
_NETWORK: Final = re.compile(r'Acquire::(?:https?::|ForceIPv)[\w:.\-]* ".*";')


@contextlib.contextmanager
def isolated_apt(lines: Sequence[str], distribution: str, architecture: str) -> Iterator[tuple[Run, Path]]:
    """A `Run` for apt commands about the archives of `lines` (one-line sources), and apt's lists directory.

    NodeError when the host has no apt, or not the keyring of the distribution.
    """
    for program in ("apt-get", "apt-cache", "apt-config", "dpkg"):
        if which(program) is None:
            raise NodeError(
                f"`{program}` is not installed, and a base from packages needs it",
                hint="install apt, or name a base image by reference",
            )
    sources = [_signed(line, distribution) for line in lines]
    with tempfile.TemporaryDirectory(prefix="assemble-apt-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        lists = root / "var/lib/apt/lists"
        for directory in (
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "etc/apt/sources.list.d",
            "etc/apt/trusted.gpg.d",
            "var/lib/apt/lists/partial",
            "var/lib/dpkg",
            "var/cache/apt/archives/partial",
            "var/log/apt",
        ):
            (root / directory).mkdir(parents=True)
        status = root / "var/lib/dpkg/status"
        status.touch()
        (root / "etc/apt/sources.list").write_text("".join(f"{line}\n" for line in sources))
        configuration = root / "apt.conf"
        configuration.write_text(
            f'Dir "{root}";\nDir::State::status "{status}";\n'
            f'APT::Architecture "{architecture}";\n#clear APT::Architectures;\n'
            f'APT::Architectures {{ "{architecture}"; }};\n{_network_settings()}'
        )

        def ask(argv: Sequence[str]) -> Completed:
            return run(argv, env={"APT_CONFIG": str(configuration), "LC_ALL": "C", "LANGUAGE": ""})

        yield ask, lists


def _network_settings() -> str:
    """The host's own settings of how to reach archives, as configuration lines."""
    try:
        settings = run(["apt-config", "dump"], env={"LC_ALL": "C"}).stdout
    except StepError:
        return ""
    return "".join(f"{line}\n" for line in settings.splitlines() if _NETWORK.fullmatch(line))


def keyring_path(distribution: str) -> str:
    """Where the distribution's keyring is, on a host that has it and in the root that is made."""
    return f"{_KEYRINGS}/{_KEYRING[distribution][0]}.gpg"


def _signed(line: str, distribution: str) -> str:
    """A source line that says by whom it must be signed, or that it need not be, as the manifest wants it."""
    match = _LINE.fullmatch(line.strip())
    if not match:
        raise NodeError(f"expected a source line `deb URL SUITE COMPONENT …`, got `{line}`")
    options = match["options"] or ""
    if "signed-by=" in options or "trusted=" in options:
        return line.strip()
    path = keyring_path(distribution)
    if not Path(path).exists():
        raise NodeError(
            f"the keyring `{path}` is not there, and nothing from {distribution} is taken unsigned",
            hint=f"install `{_KEYRING[distribution][1]}`, or name a base image by reference",
        )
    return f"deb [{f'{options} signed-by={path}'.strip()}] {match['rest']}"
