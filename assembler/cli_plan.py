"""The plan as text."""

from __future__ import annotations

from itertools import groupby

from assembler.cli_text import size_text, table
from assembler.plan.plan import Plan, Transfer


def plan_text(plan: Plan) -> str:
    """A table of the steps, and one line that says what there is to do."""
    rows = [
        [
            step.kind,
            step.name.removeprefix(f"{step.kind} "),
            step.key[:12] if step.key else "-",
            step.state + (f" ({step.where})" if step.where else ""),
            size_text(step.bytes_download) if step.bytes_download else "",
            step.detail,
        ]
        for step in plan.steps
    ]
    work = len(plan.work)
    summary = f"{work} step{'s' if work != 1 else ''} to do" if work else "nothing to do"
    title = f"{plan.manifest} for {plan.platform}"
    body = table(rows, ["STEP", "NAME", "KEY", "STATE", "FETCH", "DETAIL"])
    moves = [
        _transfers_text(target, list(some)) for target, some in groupby(plan.transfers, lambda one: one.target)
    ]
    return "\n\n".join([title, body, *moves, summary])


_DONE = {"present": "there", "mount": "mounted", "stream": "streamed", "push": "pushed"}


def _transfers_text(target: str, found: list[Transfer]) -> str:
    """The layers that are known, on their way to a target, and the sum of each way."""
    rows = [
        [
            "base" if one.base else "layer",
            one.digest.removeprefix("sha256:")[:12],
            size_text(one.size),
            _DONE[one.way],
            f"from {one.source}" if one.way in ("mount", "stream") else "",
        ]
        for one in found
    ]
    sums = {way: sum(one.size for one in found if one.way == way) for way in _DONE}
    total = ", ".join(f"{size_text(size)} {_DONE[way]}" for way, size in sums.items() if size) or "nothing"
    return f"to {target}: {total}\n\n{table(rows, ['LAYER', 'DIGEST', 'SIZE', 'WAY', ''])}"
