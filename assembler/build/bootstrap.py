"""A root file system from distribution packages alone: no registry, no daemon, no root.

The host's apt says which packages (`resolve`); the lock keeps them. mmdebstrap then installs exactly these from a
local archive that holds nothing else (`assemble`), so neither the network nor the day has a say in it, and the
result is read as entries of a layer (`entries`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from assembler.build.apt_query import ask, known_names, plain_name, update
from assembler.build.debs import Package
from assembler.build.host_apt import isolated_apt, keyring_path
from assembler.build.namespace import identity
from assembler.build.normalise import normalise
from assembler.build.owners import Recorded
from assembler.build.recorder import ATTRIBUTE
from assembler.build.runs import unmount_below
from assembler.errors import ManifestError, NodeError, StepError, UntrustedInputError, VerifyError
from assembler.oci.platform import Platform
from assembler.process import run, which
from assembler.tree.builder import arrange, fault_of
from assembler.tree.entry import Entry, Slice

if TYPE_CHECKING:
    from assembler.manifest.models import Bootstrap

_ARCHITECTURES: Final = {
    "386": "i386",
    "amd64": "amd64",
    "arm": "armhf",
    "arm64": "arm64",
    "ppc64le": "ppc64el",
    "riscv64": "riscv64",
    "s390x": "s390x",
}
_REQUIRED: Final = ("?essential", "apt", "?priority(required)")
_VARIANTS: Final[Mapping[str, tuple[str, ...]]] = {
    "essential": ("?essential",),
    "apt": ("?essential", "apt"),
    "required": _REQUIRED,
    "minbase": _REQUIRED,
    "buildd": (*_REQUIRED, "build-essential"),
    "important": (*_REQUIRED, "?priority(important)"),
    "standard": (*_REQUIRED, "?priority(important)", "?priority(standard)"),
}
"""What mmdebstrap's variants of these names choose, as apt patterns."""

_MERGED: Final = "usr-is-merged"
"""The small package that says what we arrange beforehand; without it apt would choose `usrmerge` and Perl."""
_LIB64: Final = frozenset({"amd64", "ppc64el"})
_SOURCES: Final = "etc/apt/sources.list"
_STATUS: Final = "var/lib/dpkg/status"
_DEVICES: Final = "null zero full random urandom tty"
_BIND: Final = (
    f'mkdir -p "$1/dev" "$1/proc"; for name in {_DEVICES}; do : >> "$1/dev/$name"; '
    'mount --bind "/dev/$name" "$1/dev/$name"; done; mount --rbind /proc "$1/proc"'
)
_UNBIND: Final = (
    f'umount --lazy "$1/proc"; for name in {_DEVICES}; do umount "$1/dev/$name"; rm "$1/dev/$name"; done'
)
_XATTR: Final = "SCHILY.xattr."


def debian_architecture(platform: Platform) -> str:
    """Debian's name of the platform's architecture; ManifestError when it has none."""
    try:
        return _ARCHITECTURES[platform.architecture]
    except KeyError:
        raise ManifestError(f"distribution packages are not made for `{platform}`") from None


def resolve(bootstrap: Bootstrap, platform: Platform) -> tuple[Package, ...]:
    """Which packages the root file system has, as its archives answer now. Needs the network and the host's apt.

    LockError for a package that is not there, NodeError when the host has no apt or keyring, StepError when the
    archives cannot be reached or the packages do not go together.
    """
    architecture = debian_architecture(platform)
    lines = bootstrap.apt_sources(architecture)
    with isolated_apt(lines, bootstrap.distribution, architecture) as (host_apt, lists):
        update(host_apt)
        known = known_names(host_apt)
        names = [*_variant(bootstrap), *bootstrap.packages]
        if _MERGED in known:
            names.append(_MERGED)
        return ask(host_apt, names, lists, known)


def _variant(bootstrap: Bootstrap) -> tuple[str, ...]:
    try:
        return _VARIANTS[bootstrap.variant]
    except KeyError:
        raise ManifestError(
            f"expected a variant {', '.join(f'`{name}`' for name in _VARIANTS)}, got `{bootstrap.variant}`",
            place="bootstrap",
        ) from None


def assemble(
    bootstrap: Bootstrap,
    packages: Sequence[Package],
    paths: Mapping[Package, Path],
    directory: Path,
    *,
    platform: Platform | None = None,
    epoch: int = 0,
    log: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Path:
    """Install exactly `packages` into a new root and return its tar, which is in `directory`; without network.

    `paths` are the .debs, as `debs.fetch` gives them. NodeError when mmdebstrap is missing, StepError when it
    fails, UntrustedInputError when a .deb is not the package that its name in the lock says.
    """
    _require_tools()
    architecture = debian_architecture(platform or Platform.host())
    names = {package.name for package in packages}
    # Plain names of the variant too: versions of mmdebstrap differ in what theirs hold besides the essential set.
    wished = [*_variant(bootstrap), *map(plain_name, bootstrap.packages), _MERGED]
    include = [name for name in dict.fromkeys(wished) if name in names]
    result = directory / "root.tar"
    with _work_directory(directory) as work:
        archive = work / "archive"
        archive.mkdir()
        archive.chmod(0o755)
        _fill_archive(archive, packages, paths)
        output = work / "root.tar"
        argv = [
            # Our umask, which may be strict, would be that of every maintainer script.
            *("sh", "-c", 'umask 022; exec "$@"', "sh"),
            "mmdebstrap",
            f"--variant={bootstrap.variant}",
            f"--architectures={architecture}",
            f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
            "--format=tar",
            f"--setup-hook={_merge_hook(architecture)}",
            *([f"--include={','.join(include)}"] if include else []),
            "",  # any suite: the archive has no Release file that would name one
            str(output),
            f"deb [trusted=yes] copy://{archive} ./",
        ]
        environment = {
            "SOURCE_DATE_EPOCH": str(epoch),
            "TMPDIR": str(work),
            "LC_ALL": "C.UTF-8",
        }
        _run(argv, environment, work, log, on_line)
        shutil.move(output, result)
    return result


def _run(
    argv: list[str],
    environment: Mapping[str, str],
    work: Path,
    log: Path | None,
    on_line: Callable[[str], None] | None,
) -> None:
    recorded = Recorded(work / "owners.json") if os.geteuid() == 0 and identity() == "one" else None
    if recorded:
        argv = _with_one_id(argv, recorded)
    try:
        run(argv, env=environment, log=log, on_line=on_line or (lambda _line: None))
    except StepError as error:
        errors = [line for line in error.detail if line.startswith("E:")]
        raise StepError(
            "mmdebstrap failed", detail=error.detail, hint=_hint(errors), place=str(log) if log else None
        ) from error
    if recorded:
        recorded.check()


def _with_one_id(argv: list[str], recorded: Recorded) -> list[str]:
    """The command in a namespace of one id, whose root may neither mount new devices nor a new /proc."""
    options = ("--skip=chroot/mount", f"--extract-hook={_BIND}", f"--customize-hook={_UNBIND}")
    index = argv.index("mmdebstrap") + 1
    return [*recorded.everywhere, which("sh") or "sh", *argv[1:index], *options, *argv[index:]]


def _require_tools() -> None:
    for program, package in (("mmdebstrap", "mmdebstrap"), ("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if which(program) is None:
            raise NodeError(
                f"`{program}` is not installed, and a base from packages needs it",
                hint=f"install `{package}`, or name a base image by reference",
            )


def _hint(errors: Sequence[str]) -> str | None:
    text = "\n".join(errors)
    if re.search(r"newuidmap|subuid|unshare", text):
        return "an ordinary user needs `newuidmap` and a range in /etc/subuid; or name a base image by reference"
    if re.search(r"qemu|binfmt|cannot be executed", text):
        return "packages of another architecture need qemu-user-static with binfmt; or build on such a machine"
    return None


@contextlib.contextmanager
def _work_directory(directory: Path) -> Iterator[Path]:
    """Room for mmdebstrap's root and the archive.

    In a user namespace mmdebstrap is neither we nor root of the host, and cannot enter a private home: an
    ordinary user's room is in the system's temporary directory, and open to read.
    """
    parent = directory if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="assemble-root-", dir=parent, ignore_cleanup_errors=True) as name:
        work = Path(name)
        work.chmod(0o755)
        try:
            yield work
        finally:
            unmount_below(work.resolve())  # nothing is to be deleted through a mount that was left


def _merge_hook(architecture: str) -> str:
    """Directories and links of a merged /usr, made before the first package, as debootstrap does."""
    names = ["bin", "sbin", "lib", *(["lib64"] if architecture in _LIB64 else [])]
    return "; ".join(f'mkdir -p "$1/usr/{name}" && ln -s usr/{name} "$1/{name}"' for name in names)


def _fill_archive(archive: Path, packages: Sequence[Package], paths: Mapping[Package, Path]) -> None:
    """A flat archive with these packages: the files, and the index that apt reads."""

    def stanza(package: Package) -> str:
        link_or_copy(paths[package], archive / package.filename)
        text = run(["dpkg-deb", "--field", str(paths[package])], env={"LC_ALL": "C.UTF-8"}).stdout
        fields = dict(re.findall(r"^(Package|Version|Architecture):\s*(\S+)\s*$", text, re.MULTILINE))
        found = (fields.get("Package"), fields.get("Version"), fields.get("Architecture"))
        if found != (package.name, package.version, package.architecture):
            raise UntrustedInputError(
                f"expected `{package.name}` {package.version} {package.architecture} in the .deb, "
                f"got {' '.join(str(value) for value in found)}",
                place=package.url,
            )
        lines = [line for line in text.splitlines() if line.strip()]
        return "\n".join(
            [*lines, f"Filename: ./{package.filename}", f"Size: {package.size}", f"SHA256: {package.sha256}", ""]
        )

    with ThreadPoolExecutor(4, "deb") as pool:
        stanzas = list(pool.map(stanza, sorted(packages)))
    index = archive / "Packages"
    index.write_text("\n".join(stanzas))
    index.chmod(0o644)  # whatever our umask: see `_work_directory`


def link_or_copy(source: Path, target: Path) -> None:
    """Another name for a file of the store; a copy where the file system, or the kernel, gives none."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
        target.chmod(0o644)


@contextlib.contextmanager
def assembled(
    bootstrap: Bootstrap,
    packages: Sequence[Package],
    paths: Mapping[Package, Path],
    directory: Path,
    *,
    platform: Platform | None = None,
    epoch: int = 0,
    log: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Iterator[tuple[Entry, ...]]:
    """The entries of a root with exactly `packages`, valid inside the block; see `assemble` and `entries`.

    Its apt is set up for the distribution's own archives, whatever mirrors it was made from: the root depends on
    nothing but the packages. VerifyError when dpkg in the root does not say what the lock says.
    """
    directory.mkdir(parents=True, exist_ok=True)
    where = platform or Platform.host()
    tar = assemble(bootstrap, packages, paths, directory, platform=where, epoch=epoch, log=log, on_line=on_line)
    try:
        public = bootstrap.model_copy(update={"mirrors": ()})
        found = entries(
            tar,
            epoch=epoch,
            sources=public.apt_sources(debian_architecture(where)),
            keyring=keyring_path(bootstrap.distribution),
        )
        _verify(found, packages)
        yield found
    finally:
        tar.unlink(missing_ok=True)


def entries(
    tar: Path, *, epoch: int = 0, sources: Sequence[str] | None = None, keyring: str | None = None
) -> tuple[Entry, ...]:
    """The entries of an uncompressed tar of a root, normalised; contents are slices of it.

    Owners, modes with setuid and the like, and extended attributes are kept; times and device nodes are not.
    With `sources`, these lines replace apt's list, signed by `keyring` where the root has that file.
    """
    found: list[Entry] = []
    with tarfile.open(tar, "r:") as archive:
        for member in archive:
            path = _relative(member.name)
            if path and (entry := _entry(tar, member, path)):
                if fault := fault_of(entry):
                    raise UntrustedInputError(fault, place=str(tar))
                found.append(entry)
    if sources is not None:
        paths = {entry.path for entry in found}
        signed = f"[signed-by={keyring}] " if keyring and keyring.lstrip("/") in paths else ""
        text = "".join(f"deb {signed}{line.removeprefix('deb ')}\n" for line in sources).encode()
        found = [
            replace(entry, size=len(text), content=text) if entry.path == _SOURCES else entry for entry in found
        ]
    return arrange(normalise(found, epoch=epoch), tar.name)


def _relative(name: str) -> str:
    return "" if name in {".", "./"} else name.removeprefix("./").rstrip("/")


def _entry(tar: Path, member: tarfile.TarInfo, path: str) -> Entry | None:
    """A member as an entry; None for devices and pipes, which a layer does not hold."""
    xattrs = {
        key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
        for key, value in member.pax_headers.items()
        if key.startswith((f"{_XATTR}user.", f"{_XATTR}security.capability")) and key != _XATTR + ATTRIBUTE
    }
    entry = Entry(
        path=path, kind="directory", mode=member.mode & 0o7777, uid=member.uid, gid=member.gid, xattrs=xattrs
    )
    if member.isdir():
        return entry
    if member.issym():
        return replace(entry, kind="symlink", mode=0o777, link=member.linkname)
    if member.islnk():
        return replace(entry, kind="hardlink", link=_relative(member.linkname))
    if member.isreg() and not member.issparse():
        content = Slice(tar, member.offset_data, member.size)
        return replace(entry, kind="file", size=member.size, content=content)
    return None


def _verify(found: Sequence[Entry], packages: Sequence[Package]) -> None:
    """Does the root's dpkg say that exactly these packages are installed?"""
    status = next((entry for entry in found if entry.path == _STATUS), None)
    if status is None or not isinstance(status.content, Slice):
        raise VerifyError("the root file system has no dpkg status", place="bootstrap")
    with status.content.path.open("rb") as file:
        file.seek(status.content.offset)
        text = file.read(status.size).decode(errors="replace")
    installed = installed_packages(text)
    locked = {(package.name, package.version, package.architecture) for package in packages}
    if installed != locked:
        surplus = [f"not in the lock: {' '.join(item)}" for item in sorted(installed - locked)]
        lacking = [f"not installed: {' '.join(item)}" for item in sorted(locked - installed)]
        raise VerifyError(
            "the installed packages are not the locked ones", place="bootstrap", detail=[*surplus, *lacking]
        )


def installed_packages(status: str) -> set[tuple[str, str, str]]:
    """Name, version and architecture of every package that a dpkg status file says is installed."""
    installed = set()
    for stanza in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version|Architecture):\s*(.*?)\s*$", stanza, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            installed.add((fields.get("Package", ""), fields.get("Version", ""), fields.get("Architecture", "")))
    return installed
