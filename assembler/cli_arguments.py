"""The grammar of the command line. An option takes one value and repeats; none swallows a manifest.

A first word that is no verb is a manifest. What is wrong becomes a RequestError, as everywhere.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from assembler import __version__
from assembler.cli_help import DETAILS, EXAMPLES, LATER, USAGE, VERBS
from assembler.cli_values import days, host, number, one_of
from assembler.errors import RequestError


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line; RequestError says what is wrong with it."""
    words = list(words) or ["--help"]
    if words[0] == "help":
        words = [*(word for word in words[1:2] if word in VERBS), "--help"]
    first = words[0]
    if first in LATER:
        raise RequestError(f"`assemble {first}` is not there yet", hint=LATER[first])
    if first in VERBS or first in ("-h", "--help", "--version"):
        return _checked(parser().parse_args(words))
    if not first.startswith("-"):
        _refuse_misspelt(first)
    options = _checked(parser().parse_args(["build", *words]))
    for word in options.manifests:
        if word in {*VERBS, *LATER} and not Path(word).is_file():
            raise RequestError(f"expected the verb `{word}` first", hint=f"`assemble {word} …`")
    return options


def _refuse_misspelt(word: str) -> None:
    """RequestError for a word that is nearly a verb, and no manifest."""
    if "/" in word or "." in word or Path(word).exists() or Path(f"{word}.yaml").exists():
        return
    from assembler.manifest.problems import nearest
    from assembler.manifest.search import manifest_names

    near = nearest(word, [*VERBS, *LATER])
    if near and word not in manifest_names():
        raise RequestError(f"`{word}` is neither a verb nor a manifest", hint=f"did you mean `{near}`?")


def _checked(options: argparse.Namespace) -> argparse.Namespace:
    """What argparse cannot say: `lock --update NAME` may stand before the manifest or be all there is."""
    if options.verb == "lock" and not options.manifests:
        if not options.update:
            raise RequestError(
                "expected MANIFEST", place="assemble lock", hint="`assemble list` shows the library's"
            )
        options.manifests = [options.update.pop()]
    return options


def parser() -> argparse.ArgumentParser:
    """The whole grammar."""
    top = _Parser(
        prog="assemble",
        usage="assemble MANIFEST… [options]\n       assemble VERB …",
        description="Assemble OCI images for GPU and LLM stacks from YAML manifests.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"assemble {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs", prog="assemble")
    fillers: dict[str, Callable[[argparse.ArgumentParser], None]] = {
        "build": _build,
        "plan": _plan,
        "lock": _lock,
        "sif": _sif,
        "inspect": _inspect,
        "run": _run,
        "list": _list,
        "doctor": _doctor,
        "gc": _gc,
        "schema": _schema,
    }
    for name, fill in fillers.items():
        fill(
            verbs.add_parser(
                name,
                help=VERBS[name],
                usage=USAGE.get(name),
                description=DETAILS[name],
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
        )
    return top


class _Parser(argparse.ArgumentParser):
    """Errors in our own words, with the place first."""

    def error(self, message: str) -> NoReturn:
        hint = f"`{self.prog} --help` shows what there is"
        about = re.match(r"argument ([^\s:/]+)[^\s:]*: (.*)", message, re.DOTALL)
        if about:
            place, fact = about.groups()
            if fact.startswith("expected one argument"):
                fact = "expected a value"
            raise RequestError(fact, place=place, hint=hint)
        kind, _, rest = message.partition(": ")
        if kind.startswith("the following arguments are required"):
            raise RequestError(f"expected {rest}", place=self.prog, hint=hint)
        if kind == "unrecognized arguments":
            word = rest.split()[0]
            fact = (
                f"there is no option `{word}` here" if word.startswith("-") else f"`{word}` is one word too many"
            )
            raise RequestError(fact, hint="`assemble VERB --help` shows what there is")
        raise RequestError(message, place=self.prog, hint=hint)


def _many(group: argparse._ActionsContainer, name: str, metavar: str, text: str, **more: object) -> None:
    """An option that may be given several times."""
    group.add_argument(name, action="append", default=[], metavar=metavar, help=text, **more)  # type: ignore[arg-type]


def _build(verb: argparse.ArgumentParser) -> None:
    _manifests(verb)
    result = verb.add_argument_group("where it goes (each may be repeated)")
    _many(result, "--push", "REF", "push to a registry under this tag")
    result.add_argument(
        "--output",
        "-o",
        action="append",
        default=[],
        metavar="KIND:PATH",
        help="write a directory (oci:DIR) or one file (oci-archive:FILE, sif:FILE, sqsh:FILE for enroot)",
    )
    _many(result, "--attach", "[TYPE=]FILE", "push this file too, as a referrer of the image: an SBOM, a report")
    _overrides(verb)
    _shared(verb, writes=True)
    locking = _locking(verb)
    _many(locking, "--update", "NAME", "resolve this entry of the lock again; may be repeated")
    running = _running(verb)
    running.add_argument(
        "--jobs", "-j", type=number, metavar="N", help="parallel compile jobs; default: from cores and memory"
    )
    _many(running, "--secret", "NAME=FILE", "a file for compile steps that ask for this secret; may be repeated")
    running.add_argument("--keep", action="store_true", help="keep the container of a failed step, to look into")


def _plan(verb: argparse.ArgumentParser) -> None:
    _manifests(verb)
    result = verb.add_argument_group("where it would go")
    _many(result, "--push", "REF", "also show how layers would come there, and how many bytes that is")
    _overrides(verb)
    _shared(verb)
    _locking(verb)
    _running(verb)


def _lock(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("manifests", nargs="*", metavar="MANIFEST", help="a YAML file, or a name of the library")
    verb.add_argument(
        "--update",
        nargs="?",
        action=_Update,
        const=None,
        metavar="NAME",
        help="resolve again: this entry (may be repeated), or without NAME all of them",
    )
    _overrides(verb, image=False)
    _network(verb.add_argument_group("network"))
    _running(verb, json=False)


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


def _sif(verb: argparse.ArgumentParser) -> None:
    from assembler.sif.settings import COMPRESSORS

    names = f"{{{','.join(COMPRESSORS)}}}"
    verb.add_argument("image", metavar="IMAGE", help="what to make it of")
    verb.add_argument("target", metavar="FILE.sif", type=Path, help="the file; one that is there is replaced")
    verb.add_argument(
        "--compression", type=one_of(*COMPRESSORS), default="gzip", metavar=names, help="gzip works everywhere"
    )
    verb.add_argument("--fix-perms", action="store_true", help="let owners read and write everything")
    verb.add_argument(
        "--arch", metavar="ARCH", help="of an image with several, such as arm64; default: this machine's"
    )
    verb.add_argument(
        "--with", dest="with_", type=one_of("apptainer"), metavar="apptainer", help="have it do the work"
    )
    _many(verb, "--push", "oras://REF", "push the SIF under this tag; may be repeated")
    _many(verb, "--set", "ARG=VALUE", "of a manifest: the value of an argument; may be repeated")
    _network(verb.add_argument_group("network"))
    _running(verb)


def _inspect(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("image", metavar="IMAGE", help="a name in the store, oci:DIR[:TAG], or a registry reference")
    verb.add_argument("--files", action="store_true", help="also list the files of our own layers")
    verb.add_argument("--platform", metavar="OS/ARCH", help="of an image with several; default: this machine's")
    _json(verb)
    _insecure(verb)
    _cache(verb)


def _run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("target", metavar="TARGET", help="a manifest, a registry reference, oci:DIR, or FILE.sif")
    verb.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="instead of the image's own")
    engines = ("podman", "docker", "apptainer")
    verb.add_argument(
        "--with",
        dest="engine",
        type=one_of(*engines),
        metavar="{podman,docker,apptainer}",
        help="what runs it; default: the first of these that is installed",
    )
    verb.add_argument("--print", action="store_true", help="only print the command")
    group = verb.add_argument_group("what it gets (the first three may be repeated)")
    _many(group, "--env", "NAME[=VALUE]", "a variable; without VALUE that of this shell, which no `ps` shows")
    _many(group, "--volume", "HOST:CONTAINER", "a directory of this host")
    _many(group, "--publish", "PORT", "a port to publish; default: those that the manifest names")
    group.add_argument("--gpus", metavar="all|none|N|LIST", help="instead of what the image wants")
    group.add_argument("--user", metavar="USER", help="instead of the image's")
    group.add_argument("--image", metavar="REF", help="where a manifest's image was pushed: it is not assembled")
    _many(verb, "--set", "ARG=VALUE", "the value of an argument of the manifest; may be repeated")
    _insecure(verb)
    _cache(verb)


def _list(verb: argparse.ArgumentParser) -> None:
    _json(verb)


def _doctor(verb: argparse.ArgumentParser) -> None:
    _json(verb)
    _cache(verb)


def _gc(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--keep-days", type=days, default=14.0, metavar="DAYS", help="keep what was used within DAYS (14)"
    )
    verb.add_argument(
        "--all", action="store_true", help="keep nothing but the images that have a name in the store"
    )
    _many(
        verb,
        "--shared",
        "REPOSITORY",
        "free this shared cache instead of the host's: results that nobody has written anew for so long",
    )
    verb.add_argument("--dry-run", action="store_true", help="only say what would be freed")
    _json(verb)
    _insecure(verb)
    _cache(verb)


def _schema(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "document",
        nargs="?",
        type=one_of("manifest", "recipe"),
        metavar="{manifest,recipe}",
        default="manifest",
        help="of which (manifest)",
    )


def _manifests(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("manifests", nargs="+", metavar="MANIFEST", help="a YAML file, or a name of the library")


def _overrides(verb: argparse.ArgumentParser, *, image: bool = True) -> None:
    group = verb.add_argument_group("instead of what the manifest says (the first four may be repeated)")
    _many(group, "--set", "ARG=VALUE", "the value of an argument")
    _many(group, "--source", "NAME=PATH", "a local directory or archive for a source")
    _many(
        group,
        "--base",
        "ROLE=BASE",
        "another `devel` or `runtime` base: a reference, oci:DIR, a manifest's file, scratch",
    )
    _many(group, "--platform", "OS/ARCH", "the platforms to assemble for")
    if image:
        group.add_argument(
            "--compression",
            type=one_of("zstd", "gzip", "both"),
            metavar="{zstd,gzip,both}",
            help="of our layers; `both` makes an index of a gzip image and its zstd twin",
        )


def _shared(verb: argparse.ArgumentParser, *, writes: bool = False) -> None:
    group = verb.add_argument_group("shared cache: results of steps, by key, in a registry (each may be repeated)")
    text = "take from there what other nodes have made; default: $ASSEMBLE_CACHE_FROM"
    _many(group, "--cache-from", "REPOSITORY", text)
    if writes:
        text = "keep there what this one makes; default: $ASSEMBLE_CACHE_TO"
        _many(group, "--cache-to", "REPOSITORY", text)


def _locking(verb: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = verb.add_argument_group("lock and network")
    group.add_argument("--locked", action="store_true", help="fail when the lock does not answer everything")
    _network(group)
    return group


def _network(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--offline", action="store_true", help="use the network for nothing but pushing")
    _insecure(group)


def _insecure(group: argparse._ActionsContainer) -> None:
    _many(group, "--insecure", "HOST", "speak plain HTTP to this registry, as to localhost", type=host)


def _running(verb: argparse.ArgumentParser, *, json: bool = True) -> argparse._ArgumentGroup:
    group = verb.add_argument_group("running")
    group.add_argument(
        "--progress",
        type=one_of("auto", "live", "plain", "json", "quiet"),
        metavar="{auto,live,plain,json,quiet}",
        default="auto",
        help="how to tell of progress on stderr; auto: live on a terminal, else plain",
    )
    group.add_argument("--verbose", "-v", action="store_true", help="show what compilers and other tools print")
    if json:
        _json(group)
    _cache(group)
    return group


def _json(group: argparse._ActionsContainer) -> None:
    group.add_argument("--json", action="store_true", help="print the result as JSON")


def _cache(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--cache", type=Path, metavar="DIR", help="instead of $ASSEMBLE_CACHE, else ~/.cache/assemble"
    )
