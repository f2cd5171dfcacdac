"""The plan as text."""

from __future__ import annotations

from assembler.cli_text import size_text, table
from assembler.plan.graph import Plan


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
    return f"{title}\n\n{body}\n\n{summary}"
