"""Git repositories as sources: a ref to a commit, a commit to a tar archive of its files.

Every repository is taken for hostile and every prompt for a hang: git gets no terminal, no protocols but the
usual ones, no hooks, and no attribute of the repository changes a byte (no line endings, no `export-subst`, no
filters), so that a commit always gives the same files. The user's own settings (credential helpers, proxies,
`insteadOf`) hold for the network. Protocols: git-ls-remote(1), git-fetch(1), git-archive(1).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import posixpath
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assembler import process
from assembler.build.download import without_credentials
from assembler.errors import LockError, ManifestError, RegistryError, StepError, UntrustedInputError

PROTOCOLS: Final = "https:http:ssh:git:file"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REF: Final = re.compile(r"(?!-)(?!.*(?:\.\.|//|@\{))[^\x00-\x20\x7f~^:?*\[\\]+")
_ENVIRONMENT: Final = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": PROTOCOLS,
    "SSH_ASKPASS": "",
    "SSH_ASKPASS_REQUIRE": "never",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",
}
_QUIET_CONFIG: Final = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
_OPTIONS: Final = ("core.hooksPath=/dev/null", "gc.auto=0", "maintenance.auto=false", "advice.detachedHead=false")
_ATTRIBUTES: Final = "* -export-ignore -export-subst -text -eol -crlf -ident -filter -working-tree-encoding\n"
# set while a git hook runs; they would turn our commands to the user's repository
_LEAKING: Final = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_QUARANTINE_PATH",
    "GIT_CONFIG_PARAMETERS",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submodule:
    """A submodule as a commit names it: where, from which URL, at which commit."""

    path: str
    url: str
    commit: str


def is_commit(ref: str) -> bool:
    """Is this a whole object name, which needs no looking up?"""
    return _COMMIT.fullmatch(ref) is not None


def is_local(url: str) -> bool:
    """Does the URL stay on this host?"""
    return url.startswith(("file:", "/"))


def repository_url(url: str, directory: Path) -> str:
    """The URL for git; a path is taken from `directory`. ManifestError for what could be an option or a helper."""
    if url.startswith("-") or "::" in url or any(ord(character) < 32 for character in url):
        raise ManifestError(f"expected the URL of a git repository, got `{url}`")
    scheme, separator, _ = url.partition("://")
    if separator:
        if scheme not in PROTOCOLS.split(":"):
            raise ManifestError(f"expected a git URL with {PROTOCOLS.replace(':', ', ')}, got `{scheme}`")
        return url
    path = directory / url
    if path.exists() or url.startswith(("/", ".")):
        return f"file://{os.path.abspath(path)}"  # noqa: PTH100  (links of the path stay)
    if re.match(r"[^/:]+:", url):  # host:path, the short form of ssh
        return url
    raise ManifestError(f"expected the URL of a git repository, got `{url}`", hint="there is no such directory")


def resolve(url: str, ref: str) -> str:
    """The commit that a tag, branch or full ref means now; tags win, and annotated ones are peeled."""
    if is_commit(ref):
        return ref
    if not _REF.fullmatch(ref) or ref.endswith(("/", ".lock", ".")):
        raise ManifestError(f"expected a tag, a branch or a whole commit, got `{ref}`")
    names = [ref] if ref == "HEAD" or ref.startswith("refs/") else [f"refs/tags/{ref}", f"refs/heads/{ref}"]
    patterns = [pattern for name in names for pattern in (name, name + "^{}")]
    listed = _network(["ls-remote", "--", url, *patterns], url)
    found = {name: commit for commit, _, name in (line.partition("\t") for line in listed.splitlines())}
    for name in names:
        commit = found.get(name + "^{}") or found.get(name)
        if commit and is_commit(commit):
            return commit
    hint = (
        "a shortened commit cannot be looked up; write all of its digits"
        if re.fullmatch(r"[0-9a-f]{7,39}", ref)
        else None
    )
    raise ManifestError(f"expected a tag or branch `{ref}`, found none", place=without_credentials(url), hint=hint)


class Repository:
    """A bare cache of one remote repository, shared by processes and locked while it is used."""

    def __init__(self, cache: Path, url: str) -> None:
        self.url = url
        self.path = cache / "git" / (hashlib.sha256(url.encode()).hexdigest()[:32] + ".git")

    @contextlib.contextmanager
    def opened(self) -> Iterator[Repository]:
        """Hold the cache, made if it is not there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            made = self.path / "made"
            if not made.exists():  # or `git init` was killed half way
                shutil.rmtree(self.path, ignore_errors=True)
                _git(["init", "--quiet", "--bare", "--template=", "--", str(self.path)], env=_QUIET_CONFIG)
            made.touch()  # its time says when the repository was last used
            for stale in self.path.glob("*.lock"):  # of a git that was killed; nobody else is in here
                stale.unlink(missing_ok=True)
            (self.path / "info").mkdir(exist_ok=True)
            (self.path / "info" / "attributes").write_text(_ATTRIBUTES)
            yield self

    def has(self, commit: str) -> bool:
        """Are the commit and all its files here?"""
        argv = ["rev-list", "--objects", "--no-walk", "--quiet", commit]
        return self._local(argv, check=False).returncode == 0

    def fetch(self, commit: str, ref: str = "") -> None:
        """Bring the commit here, alone if the server gives it so. LockError when the repository has it no more.

        `ref` is where it was once found: a server that gives no bare commits gives what its refs point to.
        """
        if self.has(commit):
            return
        attempts = [["--depth=1", commit]]
        if ref and not is_commit(ref):
            attempts.append(["--depth=1", f"refs/tags/{ref}"])
            attempts.append(["--depth=1", f"refs/heads/{ref}"])
        for depth, wanted in attempts:
            with contextlib.suppress(RegistryError):
                self._fetch(depth, wanted)
                if self.has(commit):
                    return
        whole = "--unshallow" if (self.path / "shallow").exists() else "--update-shallow"
        self._fetch(whole, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        if not self.has(commit):
            raise LockError(
                f"commit `{commit}` is gone from the repository",
                place=without_credentials(self.url),
                hint="its branch or tag was rewritten; `assemble lock --update` takes what is there now",
            )

    def _fetch(self, option: str, *wanted: str) -> None:
        argv = ["--git-dir", str(self.path), "fetch", "--quiet", "--no-tags", "--force", option]
        _network([*argv, "--no-recurse-submodules", "--no-write-fetch-head", "--", self.url, *wanted], self.url)

    def export(self, commit: str, target: Path) -> None:
        """Write the files of a commit as a tar archive."""
        self._local(["archive", "--format=tar", f"--output={target}", commit])

    def submodules(self, commit: str) -> tuple[Submodule, ...]:
        """The submodules of a commit, with whole URLs. UntrustedInputError when one has no usable URL."""
        listed = self._local(["ls-tree", "-r", "-z", "--full-tree", commit]).stdout.split("\0")
        links = {}
        for line in listed:
            facts, _, path = line.partition("\t")
            if facts.startswith("160000 "):
                links[path] = facts.split()[2]
        if not links:
            return ()
        settings = self._local(["config", "--blob", f"{commit}:.gitmodules", "-z", "--list"], check=False).stdout
        paths: dict[str, str] = {}
        urls: dict[str, str] = {}
        for line in settings.split("\0"):
            key, _, value = line.partition("\n")
            name, _, field = key.removeprefix("submodule.").rpartition(".")
            if field in {"path", "url"}:
                (paths if field == "path" else urls)[name] = value
        by_path = {path: urls.get(name, "") for name, path in paths.items()}
        return tuple(
            Submodule(path=path, url=self._submodule_url(path, by_path.get(path, "")), commit=links[path])
            for path in sorted(links)
        )

    def _submodule_url(self, path: str, url: str) -> str:
        """The whole URL; a relative one (`../x.git`) is taken from ours. One that leaves the web is refused."""
        place = without_credentials(self.url)
        if {"..", ""} & set(path.split("/")):  # git itself makes no such tree
            raise UntrustedInputError(f"`{path}` is no path for a submodule", place=place)
        if url.startswith(("./", "../")):
            url = _joined(self.url, url)
        if not url or url.startswith("-") or "::" in url or any(ord(character) < 32 for character in url):
            raise UntrustedInputError(f"expected a URL for the submodule `{path}`, found `{url}`", place=place)
        scheme, separator, _ = url.partition("://")
        if (separator and scheme not in PROTOCOLS.split(":")) or (is_local(url) and not is_local(self.url)):
            raise UntrustedInputError(f"the submodule `{path}` wants to be read from `{url}`", place=place)
        if not separator and not re.match(r"[^/:]+:", url):
            raise UntrustedInputError(f"expected a URL for the submodule `{path}`, found `{url}`", place=place)
        return url

    def _local(self, argv: Sequence[str], *, check: bool = True) -> process.Completed:
        return _git(["--git-dir", str(self.path), *argv], env=_QUIET_CONFIG, check=check)


def _joined(base: str, relative: str) -> str:
    """git-submodule(1): each `../` takes one component from the URL of the repository."""
    head, separator, path = base.partition("://")
    if separator:
        host, slash, path = path.partition("/")
        return f"{head}://{host}{slash}" + posixpath.normpath("/" + posixpath.join(path, relative)).lstrip("/")
    host, colon, path = base.partition(":")
    return f"{host}{colon}" + posixpath.normpath(posixpath.join(path, relative))


def _network(argv: Sequence[str], url: str) -> str:
    """Run a git command that talks to `url`; RegistryError, with what git said, when it fails."""
    try:
        return _git(argv).stdout
    except StepError as error:
        place = without_credentials(url)
        detail = [line.replace(url, place) for line in error.detail]
        raise RegistryError(
            "git cannot read the repository",
            place=place,
            detail=detail,
            hint="check the URL, the network and your git credentials; git may not ask for a password here",
        ) from error


def apply(patch: Path, tree: Path) -> tuple[str, ...] | None:
    """Apply a patch to a directory that is no repository. None when it did, else what git said.

    git refuses paths that lead out of the directory or through a symbolic link.
    """
    # A repository around the directory would make git skip what is outside of its index.
    env = {**_QUIET_CONFIG, "GIT_CEILING_DIRECTORIES": str(tree.resolve().parent)}
    ended = _git(["apply", "--whitespace=nowarn", "--", str(patch)], env=env, check=False, cwd=tree)
    return ended.tail if ended.returncode else None


def _ssh() -> dict[str, str]:
    """Where ssh finds the user's own files in a user namespace, where it takes us for root by the number."""
    if not os.environ.get("_CONTAINERS_ROOTLESS_UID") or {"GIT_SSH", "GIT_SSH_COMMAND"} & os.environ.keys():
        return {}
    home = Path.home() / ".ssh"
    words = ["ssh", *(["-F", str(home / "config")] if (home / "config").is_file() else [])]
    words += ["-o", f"UserKnownHostsFile={home / 'known_hosts'}"]
    for name in ("id_ed25519", "id_ecdsa", "id_rsa"):
        if (home / name).is_file():
            words += ["-o", f"IdentityFile={home / name}"]
    return {"GIT_SSH_COMMAND": shlex.join(words)}


def _git(
    argv: Sequence[str], *, env: dict[str, str] | None = None, check: bool = True, cwd: Path | None = None
) -> process.Completed:
    options = [part for option in _OPTIONS for part in ("-c", option)]
    leaking = [part for name in _LEAKING if name in os.environ for part in ("-u", name)]
    prefix = ["env", *leaking] if leaking else []
    variables = {**_ENVIRONMENT, **_ssh(), **(env or {})}
    return process.run([*prefix, "git", *options, *argv], env=variables, check=check, cwd=cwd)
