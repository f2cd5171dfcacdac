"""Owners in a namespace of one id: every file is root's, and remembers whose it would be.

The supervisor of processes under the filter of `system_calls.py`. It answers for two kinds of calls, so that a
program in a container sees what it would see as real root, and leaves what it would leave:

- chown and its kin: the kernel gives the file to root (so that it does all else that goes with a change of owner:
  setuid bits and capabilities go), and the owner is written down;
- stat and its kin: files that somebody else owns are said to be theirs. So `cp -a`, `chown --reference` and
  whatever else carries owners from file to file, does.

What is written down is an extended attribute of the file itself, `user.assemble.owner`: it goes where the file
goes, through renames, hard links and an overlay's copies, and goes with it. Links cannot have one, they are in a
journal by inode and time of birth. Root's ownership is written down too: a file without the attribute was never
given to anybody, which matters in a directory that hands its group on (`RecordedOwners`).

Nobody can become another user here. Who tries is told that it went well, and written into the journal: the step is
refused, since files made from then on would have been that user's.

The supervisor enters the root directory of who it answers, so paths mean to it what they mean to them. Between
looking and answering a program can change what is at a path; it can only deceive itself.

The standard library only, and none of our modules: `launcher.py` loads this file by its path.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import stat
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from assembler.build.system_calls import Machine

ATTRIBUTE: Final = "user.assemble.owner"

_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # ioctls of seccomp_unotify(2)
_REQUEST = struct.Struct("QIIiIQ6Q")  # id, pid, flags, number, architecture, instruction, arguments
_REPLY = struct.Struct("QqiI")  # id, value, error, flags
_CONTINUE = 1
_AT_FDCWD = 0xFFFFFF9C
_NOFOLLOW, _EMPTY_PATH = 0x100, 0x1000
_STATX_SIZE, _STATX_UID, _STATX_BTIME = 256, 20, 80
_STATX_WANT_BTIME = 0x800
_UNCHANGED = 0xFFFFFFFF
_PATH_MAX = 4096
_OWN_NAMES: Final = {
    b"/proc/self/": b"",
    b"/proc/thread-self/": b"",
    b"/dev/fd/": b"fd/",
    b"/dev/stdin": b"fd/0",
    b"/dev/stdout": b"fd/1",
    b"/dev/stderr": b"fd/2",
}
"""Beginnings of paths that mean another file to each process, and where below its directory in /proc that is."""


class _FailedError(Exception):
    """The call fails with this error number."""


class Status:
    """statx(2) and stat(2) by number, for what Python does not tell."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._libc = ctypes.CDLL(None, use_errno=True)

    def call(self, name: str, path: str, flags: int, mask: int, size: int) -> bytearray:
        """What the kernel writes about a path, as it writes it; OSError when it refuses."""
        buffer = ctypes.create_string_buffer(size)
        number = ctypes.c_long(self.machine.numbers[name])
        name_bytes = os.fsencode(path)
        if name == "statx":
            result = self._libc.syscall(number, -100, name_bytes, flags, mask, buffer)
        else:
            result = self._libc.syscall(number, -100, name_bytes, buffer, flags)
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
        return bytearray(buffer.raw)

    def birth(self, path: str) -> str:
        """Inode and time of birth of a link: what tells it from one that gets its inode later."""
        found = self.call("statx", path, _NOFOLLOW, _STATX_WANT_BTIME, _STATX_SIZE)
        inode = struct.unpack_from("Q", found, 32)[0]
        seconds, nanoseconds = struct.unpack_from("qI", found, _STATX_BTIME)
        return f"{inode}.{seconds}.{nanoseconds}"


class Journal:
    """Owners of links, and who tried to become somebody else: lines of JSON, appended."""

    def __init__(self, path: str) -> None:
        self.links: dict[str, tuple[int, int]] = {}
        self.identities: set[str] = set()
        # It is kept open: paths mean something else in the root that a supervisor enters.
        self._file = open(path, "a+", buffering=1)  # noqa: PTH123, SIM115
        self._file.seek(0)
        for line in self._file:
            self._take(json.loads(line))

    def close(self) -> None:
        """Nothing more is written."""
        self._file.close()

    def _take(self, fact: dict[str, Any]) -> None:
        if "link" in fact:
            self.links[fact["link"]] = (fact["uid"], fact["gid"])
        else:
            self.identities.add(fact["identity"])

    def write(self, **fact: Any) -> None:
        """Append a fact, at once."""
        self._take(fact)
        self._file.write(json.dumps(fact) + "\n")


def owner_text(uid: int, gid: int) -> bytes:
    """The value of the attribute."""
    return b"%d:%d" % (uid, gid)


def owner_of(value: bytes) -> tuple[int, int]:
    """The owner that the attribute says; ValueError when somebody else has written it."""
    uid, gid = value.split(b":")
    return int(uid), int(gid)


def read_owner(path: str, *, follow: bool) -> tuple[int, int] | None:
    """What is written down on a file or directory; None when nothing is."""
    try:
        return owner_of(os.getxattr(path, ATTRIBUTE, follow_symlinks=follow))
    except (OSError, ValueError):
        return None


def give(path: str, uid: int, gid: int, *, follow: bool, status: Status, journal: Journal) -> None:
    """Give a file of this process' own view to somebody, the way that `RecordedOwners` reads; OSError."""
    os.chown(path, 0, 0, follow_symlinks=follow)
    if not follow and stat.S_ISLNK(os.lstat(path).st_mode):
        journal.write(link=status.birth(path), uid=uid, gid=gid)
    else:
        os.setxattr(path, ATTRIBUTE, owner_text(uid, gid), follow_symlinks=follow)


class Supervisor:
    """Answers calls until nobody is left who could make one.

    Without `everywhere`, those who have the root directory of this process itself (buildah) are not recorded.
    """

    def __init__(self, machine: Machine, journal: Journal, *, everywhere: bool) -> None:
        self.status = Status(machine)
        self.machine = machine
        self.journal = journal
        self.everywhere = everywhere
        self._names = {number: name for name, number in machine.numbers.items()}
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        root = os.lstat("/")
        self._own = self._root = (root.st_dev, root.st_ino)

    def serve(self, listener: int) -> None:
        """Answer one call after the other."""
        waiting = select.poll()
        waiting.register(listener, select.POLLIN | select.POLLHUP)
        while True:
            events = waiting.poll()
            if not any(event & select.POLLIN for _, event in events):
                return
            request = bytearray(_REQUEST.size)
            try:
                fcntl.ioctl(listener, _RECEIVE, request, True)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # the caller was ended meanwhile
                    continue
                raise
            identifier, pid, _, number, _, _, *arguments = _REQUEST.unpack(request)
            flags, result = 0, 0
            try:
                flags = self._answer(pid, self._names[number], arguments)
            except _FailedError as failed:
                result = -failed.args[0]
            except OSError as error:
                result = -(error.errno or errno.EIO)
            try:
                fcntl.ioctl(listener, _SEND, _REPLY.pack(identifier, 0, result, flags))
            except OSError as error:
                # Else we end, and so does what waits for us: a kernel before 5.5 lets no call go on.
                if error.errno != errno.ENOENT:  # the caller was ended meanwhile
                    raise

    def _answer(self, pid: int, name: str, arguments: list[int]) -> int:
        here = os.stat(f"{pid}/root", dir_fd=self._proc)
        root = (here.st_dev, here.st_ino)
        if name.startswith("set"):
            if root != self._own:  # this host's tools drop rights, and make nothing that lasts
                self._identity(pid, name, arguments)
            return 0
        asks = "stat" in name
        if root == self._own and not self.everywhere:
            return _CONTINUE if asks else 0
        if root != self._root:
            self._enter(pid, root)
        return self._tell(pid, name, arguments) if asks else self._give(pid, name, arguments)

    def _enter(self, pid: int, root: tuple[int, int]) -> None:
        descriptor = os.open(f"{pid}/root", os.O_PATH | os.O_DIRECTORY, dir_fd=self._proc)
        try:
            os.fchdir(descriptor)
            os.chroot(".")
            self._root = root
        finally:
            os.close(descriptor)

    # identities

    def _identity(self, pid: int, name: str, arguments: list[int]) -> None:
        count = {"setre": 2, "setres": 3}.get(name[:-3], 1)
        if all(value & _UNCHANGED in (0, _UNCHANGED) for value in arguments[:count]):
            return
        with contextlib.suppress(OSError):
            descriptor = os.open(f"{pid}/comm", os.O_RDONLY, dir_fd=self._proc)
            try:
                program = os.read(descriptor, 64).decode(errors="replace").strip()
            finally:
                os.close(descriptor)
            kind = "group" if name.endswith("gid") else "user"
            number = next(v & _UNCHANGED for v in arguments if v & _UNCHANGED not in (0, _UNCHANGED))
            text = f"`{program}` becomes {kind} {number}"
            if text not in self.journal.identities:
                self.journal.write(identity=text)

    # files

    def _file(self, pid: int, name: str, arguments: list[int]) -> tuple[str, bool, list[int]]:
        """The path of the file that a call is about, in this process' view; whether links are followed; the rest.

        The working directory is changed so that the path is right.
        """
        if name in ("fstat", "fchown"):
            os.fchdir(self._proc)
            return f"{pid}/fd/{arguments[0]}", True, arguments[1:]
        directory, follow = _AT_FDCWD, name not in ("lstat", "lchown")
        if name in ("newfstatat", "statx", "fchownat"):
            directory, *arguments = arguments
            flags = arguments[{"newfstatat": 2, "statx": 1, "fchownat": 3}[name]]
            follow = not flags & _NOFOLLOW
            path = self._text(pid, arguments[0]) if arguments[0] else ""
            if not path:
                if not flags & _EMPTY_PATH:
                    raise _FailedError(errno.ENOENT if arguments[0] else errno.EFAULT)
                os.fchdir(self._proc)
                if directory & _UNCHANGED == _AT_FDCWD:
                    return f"{pid}/cwd", True, arguments[1:]
                return f"{pid}/fd/{directory & _UNCHANGED}", True, arguments[1:]
        else:
            path = self._text(pid, arguments[0])
            if not path:
                raise _FailedError(errno.ENOENT)
        if not path.startswith("/"):
            place = "cwd" if directory & _UNCHANGED == _AT_FDCWD else f"fd/{directory & _UNCHANGED}"
            try:
                start = os.open(f"{pid}/{place}", os.O_PATH | os.O_DIRECTORY, dir_fd=self._proc)
            except FileNotFoundError:
                raise _FailedError(errno.EBADF) from None
            try:
                os.fchdir(start)
            finally:
                os.close(start)
        return path, follow, arguments[1:]

    @contextlib.contextmanager
    def _memory(self, pid: int) -> Iterator[int]:
        descriptor = os.open(f"{pid}/mem", os.O_RDWR, dir_fd=self._proc)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _text(self, pid: int, address: int) -> str:
        with self._memory(pid) as memory:
            try:
                data = os.pread(memory, _PATH_MAX, address)
            except OSError:
                raise _FailedError(errno.EFAULT) from None
        text, end, _ = data.partition(b"\0")
        if not end:
            raise _FailedError(errno.ENAMETOOLONG)
        for name, place in _OWN_NAMES.items():  # not ours but theirs
            if text.startswith(name):
                text = b"/proc/%d/" % pid + place + text.removeprefix(name)
        return os.fsdecode(text)

    def _owner(self, path: str, *, follow: bool) -> tuple[int, int] | None:
        owner = read_owner(path, follow=follow)
        if owner is None and self.journal.links and not follow and stat.S_ISLNK(os.lstat(path).st_mode):
            return self.journal.links.get(self.status.birth(path))
        return owner

    def _tell(self, pid: int, name: str, arguments: list[int]) -> int:
        """Say who owns a file; the kernel says it itself where that is root."""
        try:
            path, follow, rest = self._file(pid, name, arguments)
            owner = self._owner(path, follow=follow)
        except (OSError, _FailedError):
            return _CONTINUE  # the kernel knows best what is wrong
        if owner in (None, (0, 0)):
            return _CONTINUE
        flags = 0 if follow else _NOFOLLOW
        if name == "statx":
            found = self.status.call("statx", path, flags, rest[1] & _UNCHANGED, _STATX_SIZE)
            address, offset = rest[2], _STATX_UID
        else:
            found = self.status.call("newfstatat", path, flags, 0, self.machine.stat_size)
            address, offset = rest[0], self.machine.stat_uid
        struct.pack_into("II", found, offset, *owner)
        with self._memory(pid) as memory:
            try:
                os.pwrite(memory, found, address)
            except OSError:
                raise _FailedError(errno.EFAULT) from None
        return 0

    def _give(self, pid: int, name: str, arguments: list[int]) -> int:
        path, follow, rest = self._file(pid, name, arguments)
        wished = [value & _UNCHANGED for value in rest[:2]]
        try:
            before = self._owner(path, follow=follow) or (0, 0)
            uid, gid = (old if new == _UNCHANGED else new for old, new in zip(before, wished, strict=True))
            give(path, uid, gid, follow=follow, status=self.status, journal=self.journal)
        except OSError as error:
            # What is bound into the container may not be ours at all; it is in no layer either.
            if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EROFS) and self._is_foreign(path, follow=follow):
                return 0
            raise
        return 0

    def _is_foreign(self, path: str, *, follow: bool) -> bool:
        found = os.stat(path, follow_symlinks=follow)  # noqa: PTH116  (relative to where we are)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            return True  # neither pipes nor devices are in a layer
        return found.st_dev != self._root[0]


class RecordedOwners:
    """Whose the files of a root would be, read when the container's commands are through.

    `journal` is that of the container.
    """

    def __init__(self, journal: Journal, machine: Machine) -> None:
        self._journal = journal
        self._status = Status(machine)

    def __call__(self, path: str, status: os.stat_result) -> tuple[int, int] | None:
        """The owner of what is at a path, links not followed; None when it was never given to anybody."""
        if stat.S_ISLNK(status.st_mode):
            return self._journal.links.get(self._status.birth(path)) if self._journal.links else None
        return read_owner(path, follow=False)
