"""The verb `doctor`: what this host can and cannot do, and what to do about it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from assembler.cli_text import table
from assembler.steps.doctor import Finding, diagnose


def doctor_command(cache: Path, *, json_output: bool) -> int:
    """Print what was found; 1 when something is blocked."""
    findings = diagnose(cache)
    if json_output:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        print("\n\n".join([_table(findings), *(_advice(one) for one in findings if one.state != "works")]))
    return int(any(finding.state == "blocked" for finding in findings))


def _table(findings: list[Finding]) -> str:
    cells = [[one.area, one.state, one.name, one.fact] for one in findings]
    return table(cells, ["FOR", "STATE", "WHAT", "FOUND"])


def _advice(finding: Finding) -> str:
    lines = [f"{finding.name} is {finding.state}"]
    if finding.fix:
        lines.append(f"    administrator: {finding.fix}")
    if finding.way_round:
        lines.append(f"    way round: {finding.way_round}")
    return "\n".join(lines)
