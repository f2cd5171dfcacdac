"""YAML as a plain tree that remembers where everything stands.

Nothing is constructed: a scalar is the text that the user wrote, so `version: 3.10` stays `3.10` and `on` stays
`on`; only `null`, `~` and nothing at all give None. What a field means is decided by its type, in `models`.

The tree is built from the parser's events, not from composed nodes, because the C composer recurses on the C
stack and a file of brackets would end the process. Aliases, tags and merge keys are refused: without them a
manifest cannot grow beyond its own size. Whatever the bytes are, the answer is a `Document` or a ManifestError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from assembler.errors import ManifestError

if TYPE_CHECKING:
    import yaml

Tree: TypeAlias = "dict[str, Tree] | list[Tree] | str | None"
"""A YAML value: mapping, sequence, the text of a scalar, or nothing."""

Steps: TypeAlias = "tuple[str | int, ...]"
"""The way from the root of a document to a value: keys and indices."""

SIZE_LIMIT_BYTES = 1 << 20
DEPTH_LIMIT = 40
_NOTHING = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A position in a file; both count from 1, columns count characters."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One YAML file: its tree, and where each key and value of it stands."""

    name: str
    tree: dict[str, Tree]
    values: Mapping[Steps, Mark]
    keys: Mapping[Steps, Mark]
    quoted: frozenset[Steps]

    def locate(self, steps: Iterable[str | int]) -> Steps:
        """The longest beginning of `steps` that the file really has.

        A key that is spelt with underscores where `steps` has dashes is found too: both spellings are legal.
        """
        found: Steps = ()
        for step in steps:
            spellings = (
                (step, step.replace("-", "_"), step.replace("_", "-")) if isinstance(step, str) else (step,)
            )
            longer = next(((*found, each) for each in spellings if (*found, each) in self.values), None)
            if longer is None:
                break
            found = longer
        return found

    def mark(self, steps: Iterable[str | int], *, of_key: bool = False) -> Mark:
        """Where the value (or its key) stands; for a value that is not there, its nearest ancestor."""
        found = self.locate(steps)
        return self.keys.get(found, self.values[found]) if of_key else self.values[found]

    def position(self, steps: Iterable[str | int] = ()) -> str:
        """`file:line:column` of a value."""
        mark = self.mark(steps)
        return f"{self.name}:{mark.line}:{mark.column}"

    def place(self, steps: Iterable[str | int] = (), *, of_key: bool = False) -> str:
        """`file:line:column: path.in.document`; the path is left out at the root."""
        steps = tuple(steps)
        mark = self.mark(steps, of_key=of_key)
        path = show_steps(self.locate(steps))
        return f"{self.name}:{mark.line}:{mark.column}" + (f": {path}" if path else "")

    def show(self, steps: Iterable[str | int], value: object) -> str:
        """`value`, found at `steps`, as a message shows it: as it was written, or what kind of thing it is."""
        return show_value(value, quoted=tuple(steps) in self.quoted)


def show_steps(steps: Iterable[str | int]) -> str:
    """The path in a document as people write it: `layers[0].with.verbs`."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def show_value(value: object, *, quoted: bool = False) -> str:
    """A value of a tree for a message; long texts are cut, containers only named."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    text = str(value).replace("\n", "\\n")
    text = text if len(text) <= 60 else text[:57] + "…"
    return f'`"{text}"`' if quoted or not text else f"`{text}`"


def read_document(path: Path, name: str | None = None) -> Document:
    """Read a YAML file; ManifestError when it cannot be read or is no mapping."""
    shown = name or str(path)
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT_BYTES + 1)
    except OSError as error:
        raise ManifestError((error.strerror or str(error)).lower(), place=shown) from error
    return parse_document(data, shown)


def parse_document(data: bytes, name: str, *, limit_bytes: int = SIZE_LIMIT_BYTES) -> Document:
    """The document in `data`; ManifestError, with its place, for anything that is not one mapping."""
    if len(data) > limit_bytes:
        raise ManifestError(f"expected at most {limit_bytes} bytes, got more", place=name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The bytes before the bad one are text, so a position can be given.
        before = data[: error.start].decode("utf-8-sig")
        place = f"{name}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        raise ManifestError(f"expected UTF-8, got the byte `0x{data[error.start]:02x}`", place=place) from error

    import yaml

    try:
        return _Builder(name).build(yaml.parse(text, Loader=yaml.CSafeLoader))
    except yaml.YAMLError as error:
        raise _syntax_error(name, error, text) from error


class _Builder:
    """Events in, document out. Iterative, so that depth costs nothing but memory, and bounded anyway."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[Steps, Mark] = {}
        self.keys: dict[Steps, Mark] = {}
        self.quoted: set[Steps] = set()
        self.containers: list[tuple[Steps, dict[str, Tree] | list[Tree]]] = []
        self.key: list[str | None] = []  # of each open container: the key whose value comes next
        self.root: Tree = None
        self.documents = 0

    def build(self, events: Iterator[yaml.Event]) -> Document:
        import yaml

        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                self.documents += 1
                if self.documents > 1:
                    raise self.error("expected one YAML document, got a second one", event)
            elif isinstance(event, yaml.AliasEvent):
                raise self.error(f"aliases are not supported, got `*{event.anchor}`", event)
            elif isinstance(event, yaml.NodeEvent):
                self.node(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self.containers.pop()
                self.key.pop()
        if not isinstance(self.root, dict):
            place = f"{self.name}:1:1" if () not in self.values else self.place(self.values[()])
            raise ManifestError(f"expected a mapping, got {show_value(self.root)}", place=place)
        return Document(
            name=self.name,
            tree=self.root,
            values=self.values,
            keys=self.keys,
            quoted=frozenset(self.quoted),
        )

    def node(self, event: yaml.NodeEvent) -> None:
        """Take a scalar, or the beginning of a mapping or sequence."""
        import yaml

        if event.anchor is not None:
            raise self.error(f"anchors are not supported, got `&{event.anchor}`", event)
        tag = getattr(event, "tag", None)  # an alias has none, and was refused before
        if tag is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            raise self.error(f"tags are not supported, got `{shown}`", event)
        if self.expects_key():
            self.take_key(event)
            return
        steps = self.next_steps()
        value: Tree
        if isinstance(event, yaml.ScalarEvent):
            is_plain = not event.style
            value = None if is_plain and event.value in _NOTHING else event.value
            if event.style in {"'", '"'}:
                self.quoted.add(steps)
        else:
            value = {} if isinstance(event, yaml.MappingStartEvent) else []
        self.values[steps] = self.mark(event)
        self.put(value)
        if isinstance(value, dict | list):
            if len(self.containers) >= DEPTH_LIMIT:
                raise self.error(f"expected at most {DEPTH_LIMIT} levels, got more", event)
            self.containers.append((steps, value))
            self.key.append(None)

    def expects_key(self) -> bool:
        return bool(self.containers) and isinstance(self.containers[-1][1], dict) and self.key[-1] is None

    def take_key(self, event: yaml.NodeEvent) -> None:
        import yaml

        if not isinstance(event, yaml.ScalarEvent):
            raise self.error("expected a text as key, got a mapping or a list", event)
        if not event.style and event.value in _NOTHING:
            raise self.error("expected a text as key, got nothing", event)
        if not event.style and event.value == "<<":
            raise self.error("merge keys are not supported, got `<<`", event)
        steps, container = self.containers[-1]
        path = (*steps, event.value)
        if isinstance(container, dict) and event.value in container:
            first = self.keys[path]
            place = f"{self.place(self.mark(event))}: {show_steps(path)}"
            raise ManifestError(f"this key stands in line {first.line} already", place=place)
        self.keys[path] = self.mark(event)
        self.key[-1] = event.value

    def next_steps(self) -> Steps:
        """Where the value that comes next will stand."""
        if not self.containers:
            return ()
        steps, container = self.containers[-1]
        return (*steps, len(container) if isinstance(container, list) else str(self.key[-1]))

    def put(self, value: Tree) -> None:
        if not self.containers:
            self.root = value
            return
        container = self.containers[-1][1]
        if isinstance(container, list):
            container.append(value)
        else:
            container[str(self.key[-1])] = value
            self.key[-1] = None

    def mark(self, event: yaml.Event) -> Mark:
        mark = event.start_mark
        return Mark(mark.line + 1, mark.column + 1) if mark else Mark(1, 1)

    def place(self, mark: Mark) -> str:
        return f"{self.name}:{mark.line}:{mark.column}"

    def error(self, fact: str, event: yaml.Event) -> ManifestError:
        return ManifestError(fact, place=self.place(self.mark(event)))


def _syntax_error(name: str, error: yaml.YAMLError, text: str) -> ManifestError:
    """What libyaml complains about, in our words where the usual mistakes are concerned."""
    import yaml

    if not isinstance(error, yaml.MarkedYAMLError):
        position = getattr(error, "position", None)
        if not isinstance(position, int):
            return ManifestError("expected printable text, got a control character", place=name)
        before = text.encode()[:position].decode(errors="replace")
        place = f"{name}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        return ManifestError("expected printable text, got a control character", place=place)
    mark = error.problem_mark or error.context_mark
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    problem = error.problem or "unreadable"
    lines = text.split("\n")
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    column = mark.column if mark else 0
    if "\t" in line[: column + 1] and not line[:column].strip():
        return ManifestError("expected spaces, got a tab", place=place, hint="YAML indents with spaces only")
    facts = {
        "mapping values are not allowed in this context": "a `: ` is not allowed here",
        "block sequence entries are not allowed in this context": "a list item `- ` is not allowed here",
        "found unexpected ':'": "a `:` is not allowed here",
        "could not find expected ':'": "expected `:` after a key",
        "did not find expected key": "expected a key at the indentation of its neighbours",
        "did not find expected node content": "expected a value",
        "did not find expected '-' indicator": "expected `- `, the next item of the list",
        "did not find expected ',' or ']'": "expected `,` or `]`",
        "did not find expected ',' or '}'": "expected `,` or `}`",
        "found unexpected end of stream": "a quoted text is not closed",
        "found unexpected document indicator": "a quoted text is not closed",
        "found character that cannot start any token": "a text cannot begin with this character; quote it",
    }
    hints = {
        "mapping values are not allowed in this context": "quote a text that contains `: `",
        "could not find expected ':'": "is a colon, a quote or a bracket missing on the line above?",
    }
    return ManifestError(facts.get(problem, f"not YAML: {problem}"), place=place, hint=hints.get(problem))
