"""argv in, exit code out; with its siblings `cli_*`, the only place that prints.

stdout carries only the result, everything else goes to stderr. Exit 0 done (for `plan`: nothing to do), 1 the
work failed, 2 the request is wrong, 10 `plan` found work to do, 130 interrupted.

Imports are inside the functions that need them: a rebuild with nothing to do answers before the manifest models
or the registry client would be loaded.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any, NoReturn

from assembler.cli_arguments import parse
from assembler.cli_namespace import Entering, enter, start_again
from assembler.errors import AssembleError, RequestError, refused

if TYPE_CHECKING:
    from assembler.pipeline import Request
    from assembler.steps.session import Options

EXIT_INTERRUPTED = 130
EXIT_WORK_TO_DO = 10
_DEBUG = "ASSEMBLE_DEBUG"
_LATEST_EPOCH = 253402300799  # the end of the year 9999, the last that RFC 3339 can write


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    # The files of a tree are very many small objects that live long: looking for cycles among them finds none.
    gc.set_threshold(100_000, 20, 20)
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        options.may_start_again = argv is None
        code: int = _COMMANDS[options.verb](options)
    except AssembleError as error:
        _fail(error.render())
        return error.exit_code
    except Entering as entering:
        start_again(entering)
    except KeyboardInterrupt:
        _fail("interrupted; what was finished is in the cache")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return 1
    except OSError as error:
        _fail(_of_system(error).render())
        return 1
    except (
        Exception
    ) as error:  # not meant to happen: told like any other error, the rest goes where it can be found
        _fail(_defect(error).render())
        return 1
    return code


def _of_system(error: OSError) -> AssembleError:
    """What the operating system refused, where nothing nearer to it said more."""
    hints = {
        errno.ENOSPC: "free some disk: `assemble gc`; `--cache DIR` puts the cache elsewhere",
        errno.EDQUOT: "your quota is used up: `assemble gc`; `--cache DIR` puts the cache elsewhere",
        errno.EROFS: "`--cache DIR` puts the cache elsewhere",
    }
    place = str(error.filename) if error.filename else None
    return AssembleError(refused(error), place=place, hint=hints.get(error.errno or 0))


def _defect(error: Exception) -> AssembleError:
    import traceback

    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    return AssembleError(
        f"this is a defect of assemble: {type(error).__name__}: {error}",
        hint="please report it, with the lines below" if _wants_traceback() else f"{_DEBUG}=1 shows where it is",
        detail=lines if _wants_traceback() else (),
    )


def _wants_traceback() -> bool:
    return bool(os.environ.get(_DEBUG))


def _terminated(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(text: str) -> None:
    print(text, file=sys.stderr)


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """`NAME=VALUE` arguments as a mapping."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise RequestError(f"expected NAME=VALUE, got `{text}`", place=option)
        pairs[name] = value
    return pairs


def _bases(arguments: Namespace) -> dict[str, str]:
    """`--base` with images under their full names: what a name without a registry means on this host."""
    return {role: _base_here(text) for role, text in pairs(arguments.base, "--base").items()}


def _base_here(text: str) -> str:
    if text == "scratch" or text.startswith("oci:") or text.endswith((".yaml", ".yml")):
        return text
    from assembler.registry.short_names import full_name

    try:
        return full_name(text)
    except ValueError:  # told where the base is looked at, with its place
        return text


def _epoch() -> int | None:
    """The time that images of manifests without `epoch` are of, by the convention of reproducible-builds.org."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and int(text) <= _LATEST_EPOCH):
        fact = f"expected seconds since 1970, got `{text}`"
        raise RequestError(fact, place="SOURCE_DATE_EPOCH", hint="`git log -1 --format=%ct` prints some")
    return int(text)


def _request(arguments: Namespace) -> Request:
    from assembler.pipeline import Request

    return Request(
        manifests=tuple(arguments.manifests),
        sets=pairs(arguments.set, "--set"),
        sources=pairs(arguments.source, "--source"),
        bases=_bases(arguments),
        platforms=tuple(arguments.platform),
        push=tuple(getattr(arguments, "push", ())),
        outputs=tuple(getattr(arguments, "output", ())),
        compression=getattr(arguments, "compression", None),
        attach=tuple(getattr(arguments, "attach", ())),
        epoch=_epoch(),
    )


def _options(arguments: Namespace) -> Options:
    from pathlib import Path

    from assembler.steps.session import Options

    update = getattr(arguments, "update", None)
    return Options(
        cache=_cache(arguments),
        offline=arguments.offline,
        locked=getattr(arguments, "locked", False),
        update=frozenset(update if update is not None else ()),
        jobs=getattr(arguments, "jobs", None),
        keep=getattr(arguments, "keep", False),
        secrets={name: Path(path) for name, path in pairs(getattr(arguments, "secret", []), "--secret").items()},
        insecure=tuple(arguments.insecure),
        cache_from=_repositories(arguments, "cache_from"),
        cache_to=_repositories(arguments, "cache_to"),
        enter=enter if arguments.may_start_again else None,
    )


def _repositories(arguments: Namespace, name: str) -> tuple[str, ...]:
    """Shared caches that an option names; without it those of `ASSEMBLE_CACHE_FROM` and `ASSEMBLE_CACHE_TO`."""
    if not hasattr(arguments, name):
        return ()
    return tuple(getattr(arguments, name) or os.environ.get(f"ASSEMBLE_{name.upper()}", "").split())


def _cache(arguments: Namespace) -> Any:
    from assembler.oci.cache import default_cache

    return default_cache() if arguments.cache is None else arguments.cache.absolute()


def _build(arguments: Namespace) -> int:
    results = _recalled(arguments)
    if results is None:
        from assembler.cli_progress import choose_renderer
        from assembler.pipeline import build

        with choose_renderer(arguments.progress, verbose=arguments.verbose, stream=sys.stderr) as emit:
            results = [result.to_json() for result in build(_request(arguments), _options(arguments), emit)]
    if arguments.json:
        print(json.dumps(results, indent=2))
        return 0
    for result in results:
        places = [*result["references"], *result["outputs"]]
        for place in places or [f"{result['name']}@{result['digest']}"]:
            print(place)
    return 0


def _recalled(arguments: Namespace) -> list[dict[str, Any]] | None:
    """The results of a request that has nothing to do; None when it must be looked at properly."""
    from pathlib import Path

    from assembler.steps import unchanged

    if len(arguments.manifests) != 1 or arguments.update or arguments.attach:
        return None
    if not Path(arguments.manifests[0]).is_file():
        return None
    facts = unchanged.request_key(
        manifest=str(Path(arguments.manifests[0]).absolute()),
        sets=pairs(arguments.set, "--set"),
        sources=pairs(arguments.source, "--source"),
        bases=_bases(arguments),
        platforms=arguments.platform,
        push=arguments.push,
        outputs=arguments.output,
        compression=arguments.compression,
        cache_to=_repositories(arguments, "cache_to"),
        epoch=_epoch(),
    )
    result = unchanged.recall(_cache(arguments), facts, tuple(arguments.insecure))
    if result is None:
        return None
    if arguments.progress != "quiet":
        _announce(arguments, result)
    return [result]


def _announce(arguments: Namespace, result: dict[str, Any]) -> None:
    if arguments.progress == "json":
        print(
            json.dumps({"event": "unchanged", "name": result["name"], "digest": result["digest"]}), file=sys.stderr
        )
    else:
        where = f", {', '.join(result['references'])} is there" if result["references"] else ""
        print(f"{result['name']}: nothing to do{where}", file=sys.stderr)


def _plan(arguments: Namespace) -> int:
    from assembler.cli_plan import plan_text
    from assembler.cli_progress import choose_renderer
    from assembler.pipeline import plan

    with choose_renderer(arguments.progress, verbose=arguments.verbose, stream=sys.stderr) as emit:
        plans = plan(_request(arguments), _options(arguments), emit)
    if arguments.json:
        print(json.dumps([found.to_json() for found in plans], indent=2))
    else:
        print("\n\n".join(plan_text(found) for found in plans))
    return EXIT_WORK_TO_DO if any(found.work for found in plans) else 0


def _lock(arguments: Namespace) -> int:
    from dataclasses import replace

    from assembler.cli_progress import choose_renderer
    from assembler.pipeline import lock

    options = _options(arguments)
    if arguments.update is not None and not arguments.update:
        options = replace(options, update=frozenset({"*"}))
    with choose_renderer(arguments.progress, verbose=arguments.verbose, stream=sys.stderr) as emit:
        for path in lock(_request(arguments), options, emit):
            print(path)
    return 0


def _sif(arguments: Namespace) -> int:
    from assembler.cli_sif import sif_command

    return sif_command(arguments, _options(arguments), pairs(arguments.set, "--set"), _epoch())


def _inspect(arguments: Namespace) -> int:
    from assembler.cli_image import inspect_command

    return inspect_command(arguments, _cache(arguments))


def _run(arguments: Namespace) -> int:
    from assembler.cli_run import run_verb

    return run_verb(arguments, _cache(arguments))


def _gc(arguments: Namespace) -> int:
    from assembler.cli_gc import gc_command

    return gc_command(arguments, _cache(arguments))


def _doctor(arguments: Namespace) -> int:
    from assembler.cli_doctor import doctor_command

    return doctor_command(_cache(arguments), json_output=arguments.json)


def _list(arguments: Namespace) -> int:
    from assembler.cli_list import list_command

    return list_command(json_output=arguments.json)


def _schema(arguments: Namespace) -> int:
    from assembler.manifest.schema import json_schema

    print(json.dumps(json_schema(arguments.document), indent=2))
    return 0


_COMMANDS = {
    "build": _build,
    "plan": _plan,
    "lock": _lock,
    "sif": _sif,
    "inspect": _inspect,
    "run": _run,
    "gc": _gc,
    "list": _list,
    "doctor": _doctor,
    "schema": _schema,
}
