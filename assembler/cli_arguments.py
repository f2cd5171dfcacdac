"""The grammar of the command line. An option takes one value and repeats; none swallows a manifest."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from assembler import __version__

VERBS = {
    "build": "lock if needed, plan, compile, pack, stack, verify, publish (the default verb)",
    "plan": "show the steps, their keys, what is cached and what must be fetched; exit 10 when there is work",
    "lock": "resolve tags, versions and packages, and write the lock beside the manifest",
    "inspect": "show an image's layers, sizes, origins and settings",
    "list": "list the manifests and recipes of the library",
    "gc": "free what no image and no recent build needs",
    "schema": "print the JSON Schema of manifests or recipes",
}

_EXAMPLES = """\
examples:
  assemble manifests/llama-cpp.yaml
  assemble manifests/llama-cpp.yaml --push registry.example.com/llama-cpp:1
  assemble plan manifests/llama-cpp.yaml --json
"""


def parser() -> argparse.ArgumentParser:
    """The whole grammar."""
    top = argparse.ArgumentParser(
        prog="assemble",
        usage="assemble MANIFEST… [options]\n       assemble VERB …",
        description="Assemble OCI images for GPU and LLM stacks from YAML manifests.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"assemble {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    fillers: dict[str, Callable[[argparse.ArgumentParser], None]] = {
        "build": _build,
        "plan": _plan,
        "lock": _lock,
        "inspect": _inspect,
        "list": _json,
        "gc": _gc,
        "schema": _schema,
    }
    for name, fill in fillers.items():
        verb = verbs.add_parser(name, help=VERBS[name], description=VERBS[name], allow_abbrev=False)
        fill(verb)
    return top


def _build(verb: argparse.ArgumentParser) -> None:
    _manifests(verb)
    verb.add_argument("--push", action="append", default=[], metavar="REF", help="push under this tag; repeatable")
    verb.add_argument(
        "--output",
        "-o",
        action="append",
        default=[],
        metavar="KIND:PATH",
        help="also write oci:DIR or oci-archive:FILE; repeatable",
    )
    _compression(verb)
    verb.add_argument("--locked", action="store_true", help="fail when the lock does not answer everything")
    verb.add_argument("--update", action="append", default=[], metavar="NAME", help="resolve this entry again")
    verb.add_argument(
        "--jobs", "-j", type=_positive, metavar="N", help="parallel jobs; default from cores and memory"
    )
    verb.add_argument("--keep", action="store_true", help="keep the container of a failed step")
    _json(verb)


def _compression(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--compression",
        choices=["zstd", "gzip", "both"],
        help="instead of the manifest's; `both` makes an index of a gzip and a zstd image",
    )


def _plan(verb: argparse.ArgumentParser) -> None:
    _manifests(verb)
    _compression(verb)
    verb.add_argument("--locked", action="store_true", help="fail when the lock does not answer everything")
    _json(verb)


def _lock(verb: argparse.ArgumentParser) -> None:
    _manifests(verb)
    verb.add_argument(
        "--update", nargs="?", action=_Update, const=None, metavar="NAME", help="resolve again: this entry, or all"
    )


class _Update(argparse.Action):
    """`--update` alone means everything (an empty list), with names it collects them."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        _option: str | None = None,
    ) -> None:
        """Collect."""
        names = list(getattr(namespace, self.dest) or [])
        setattr(namespace, self.dest, [*names, str(values)] if values else names)


def _inspect(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("image", metavar="IMAGE", help="a name in the store, oci:DIR, or a registry reference")
    verb.add_argument("--files", action="store_true", help="list the files of our own layers")
    verb.add_argument("--platform", metavar="OS/ARCH", help="of an image with several; default: this machine's")
    _json(verb)
    _places(verb)


def _gc(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--keep-days", type=float, default=14.0, metavar="DAYS", help="keep what was made within (14)"
    )
    verb.add_argument("--all", action="store_true", help="keep nothing but named images")
    verb.add_argument("--dry-run", action="store_true", help="only say what would be freed")
    _json(verb)
    _places(verb)


def _schema(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("document", nargs="?", choices=["manifest", "recipe"], default="manifest")


def _manifests(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "manifests", nargs="+", metavar="MANIFEST", help="a YAML file, or a name from `assemble list`"
    )
    for name, metavar, text in (
        ("--set", "ARG=VALUE", "set an argument of the manifest"),
        ("--source", "NAME=PATH", "take a source from a local directory"),
        ("--base", "ROLE=REF", "another devel or runtime base: a reference, oci:DIR, manifest:FILE, scratch"),
        ("--platform", "OS/ARCH", "instead of the manifest's platforms"),
    ):
        verb.add_argument(name, action="append", default=[], metavar=metavar, help=f"{text}; repeatable")
    verb.add_argument(
        "--progress", choices=["auto", "live", "plain", "json", "quiet"], default="auto", help="on stderr"
    )
    verb.add_argument("--verbose", "-v", action="store_true", help="show what the tools print")
    verb.add_argument("--offline", action="store_true", help="use the network for nothing but pushing")
    _places(verb)


def _json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print the result as JSON")


def _places(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--cache", type=Path, metavar="DIR", help="instead of $ASSEMBLE_CACHE or ~/.cache/assemble")
    verb.add_argument(
        "--insecure",
        action="append",
        default=[],
        metavar="HOST",
        help="speak plain HTTP to this registry; repeatable",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected a number from 1 upward")
    return number
