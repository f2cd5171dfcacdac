"""`assemble doctor`: a table with what to do, JSON, and an exit code, from findings of all kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli import Program
from support.needs import need, need_root

from assembler import cli
from assembler.build.namespace import Setting, WayIn
from assembler.steps import doctor
from assembler.steps.doctor import Finding

FINDINGS = [
    Finding(area="images", name="cache", state="works", fact="/cache (ext4, 40 GiB free)"),
    Finding(
        area="containers",
        name="storage",
        state="degraded",
        fact="vfs",
        fix="a new kernel",
        way_round="another disk",
    ),
]
BLOCKED = Finding(area="sif", name="squashfs", state="blocked", fact="is not there", fix="install it")


def test_each_finding_that_is_not_well_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("assembler.cli_doctor.diagnose", lambda _cache: FINDINGS)
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["images", "works", "cache"],
        ["containers", "degraded", "storage"],
    ]
    advice = ["storage is degraded", "    administrator: a new kernel", "    way round: another disk"]
    assert lines[4:] == advice


def test_something_blocked_is_exit_code_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("assembler.cli_doctor.diagnose", lambda _cache: [*FINDINGS, BLOCKED])
    assert cli.main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["state"] for one in found] == ["works", "degraded", "blocked"]
    assert set(found[0]) == {"area", "name", "state", "fact", "fix", "way_round"}


def test_the_setting_that_blocks_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_way", lambda: WayIn(identity=None, trouble="a user namespace is refused"))
    setting = Setting("kernel.apparmor_restrict_unprivileged_userns", "1", "0")
    monkeypatch.setattr(doctor, "blocking_settings", lambda: (setting,))
    (finding,) = [one for one in doctor.diagnose(tmp_path) if one.name == "user namespace"]
    assert finding.state == "blocked"
    assert finding.fact.endswith("(kernel.apparmor_restrict_unprivileged_userns = 1)")
    assert finding.fix == "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    assert "--cache-from" in finding.way_round


def test_a_short_range_is_as_none_and_the_fix_is_a_free_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trouble = "the range has 1000 ids, expected 65536"
    monkeypatch.setattr(doctor, "_way", lambda: WayIn(identity="one", before=(), trouble=trouble))
    monkeypatch.setattr(doctor, "_inside", lambda _way, _cache: [])
    monkeypatch.setattr(doctor, "_end_of_ranges", lambda _file: 231072)
    (finding,) = [one for one in doctor.diagnose(tmp_path) if one.name == "user namespace"]
    assert (finding.state, trouble in finding.fact) == ("degraded", True)
    assert "--add-subuids 231072-296607 --add-subgids 231072-296607" in finding.fix


def test_a_cache_that_cannot_be_written_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_way", lambda: WayIn(identity=None))
    monkeypatch.setattr("os.access", lambda *_: False)
    finding = doctor.diagnose(tmp_path)[0]
    assert (finding.name, finding.state) == ("cache", "blocked")


@pytest.mark.tools
def test_root_with_all_tools_is_well_and_nothing_is_left(tmp_path: Path) -> None:
    need_root()
    need("buildah", "mmdebstrap", "mksquashfs")
    absent = {"REGISTRY_AUTH_FILE": str(tmp_path / "none.json"), "XDG_RUNTIME_DIR": str(tmp_path / "none")}
    ended = Program(tmp_path / "cache")("doctor", "--json", env=absent)
    assert ended.code == 0, ended.stdout
    states = {one["name"]: one["state"] for one in ended.json()}
    assert states["rights"] == states["storage"] == states["squashfs"] == "works"
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
