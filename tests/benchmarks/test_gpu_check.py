"""gpu-check without a GPU: what it runs, in what order, and that nothing stops it. A dry run's figures mean nothing."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu.frame import summary
from benchmarks.gpu.frame.report import COLUMNS, Report, read_rows, write_row
from benchmarks.gpu.frame.sections import DEFAULT, FIRST, LABORATORY, SECTIONS, TOTAL, Section, chosen
from benchmarks.gpu.frame.targets import TARGETS, verdict
from benchmarks.gpu.sections import captured, company
from benchmarks.gpu.sections.attention import shapes
from engines.cuda import gpu

ROOT = Path(__file__).parent.parent.parent


def row(section: str, what: str, case: str, mode: str, **values: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | {"section": section, "what": what, "case": case, "mode": mode} | values


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.delenv("SECTIONS", raising=False)
    return tmp_path


def test_sections_are_chosen_by_name() -> None:
    assert [section.name for section in chosen("")] == list(DEFAULT)
    assert [section.name for section in chosen("profile, unet")] == ["unet", "profile"], "in our order"
    assert len(chosen("all")) == len(SECTIONS)
    with pytest.raises(ValueError, match=r"SECTIONS has 'unets'; it takes captured, "):
        chosen("unets")


def test_the_default_sections_are_meant_to_fit_into_eight_minutes() -> None:
    assert sum(SECTIONS[name].guess for name in DEFAULT) <= TOTAL < 480 - 15, "the last case of a section may run on"


def test_what_a_first_card_must_tell_comes_first(tmp_path: Path) -> None:
    assert DEFAULT[:7] == ("captured", "unet", "profile", "attention", "budget", "kernels", "vae")
    report = Report("captured", torch.device("cuda"), torch.float16, [tmp_path / "x.csv"], {"device": "x"}, until=0.0)
    names = [
        [case.name for case in importlib.import_module(f"benchmarks.gpu.sections.{name}").cases(report)]
        for name in DEFAULT
    ]
    captured, unet, profile, attention, *_ = names
    steps = [f"SD 1.5 step {n}" for n in (1, 4, 16)]
    assert captured[:5] == ["compile ahead", *steps, "SD 1.5 gap"]
    assert [name for name in unet if "rows" in name][:2] == ["SD 1.5 ours 2 rows", "SD 1.5 ours 32 rows"]
    assert profile[1] == "SD 1.5 ours 2 rows"
    gates = {target.rows[2] for target in TARGETS if target.rows[0] == "attention"}
    first = [shape.case for shape in shapes()[:6]]
    assert gates <= set(first)
    assert attention[1:13] == [f"{case} {who}" for case in first for who in ("ours", "libraries")]


def test_what_makes_a_laboratory_has_a_limit_of_its_own(tmp_path: Path) -> None:
    report = Report("captured", torch.device("cuda"), torch.float16, [tmp_path / "x.csv"], {"device": "x"}, until=0.0)
    found = {case.name: case.seconds for section in (captured, company) for case in section.cases(report)}
    assert all(found[name] == LABORATORY for name in found if "step" in name or "company" in name or "small" in name)
    assert found["SD 1.5 memory"] is None


def test_every_section_has_a_file_and_no_other_file_claims_to_be_one() -> None:
    files = {
        path.stem for path in (ROOT / "benchmarks/gpu/sections").glob("*.py") if "\ndef cases(" in path.read_text()
    }
    assert files - {"pixels"} == set(SECTIONS) | {stage.name for stage in FIRST}, "a part of kernels"


def test_a_dry_run_writes_rows_and_pages_where_it_is_told(out: Path) -> None:
    assert gpu_check.main(["--dry-run", "--sections", "environment,ceilings"]) == 0
    (table,) = out.glob("*.csv")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["section"] for row in rows} == {"environment", "ceilings"} and tuple(rows[0]) == COLUMNS
    held = [row for row in rows if row["mode"] == "held"]
    assert len(held) == 2 and all(float(row["p50"]) > 0 for row in held)
    page = table.with_suffix(".md").read_text()
    assert "## Targets" in page and "SD 1.5 UNet, 2 rows, graph | not measured" in page and "## Wrong: 0" in page
    assert len(json.loads(table.with_suffix(".json").read_text())["rows"]) == len(rows)
    assert "held" in table.with_suffix(".log").read_text()
    assert len(list(out.iterdir())) == 4, "a device machine hands back eight files"


def test_without_torch_it_says_so_in_one_sentence() -> None:
    code = "import runpy, sys; sys.modules['torch'] = None; "
    code += "runpy.run_module('benchmarks.gpu_check', run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (2, "gpu-check needs torch, which this Python does not have\n")


def test_no_gpu_no_measurement(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "why_not", lambda: "the NVIDIA driver is too old")
    with pytest.raises(SystemExit) as ended:
        gpu_check.main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "gpu-check measures nothing but an NVIDIA GPU: the NVIDIA driver is too old\n"
    assert gpu_check.main(["--sections", "nothing"]) == 2


# What a child does, instead of measuring: argv as benchmarks.gpu.frame.child has it.
CHILD = """
import json, os, signal, sys, time
from pathlib import Path
from benchmarks.gpu.frame.child import *
import benchmarks.gpu.sections.vae as section
def hang(): time.sleep(600)
def die(): os.kill(os.getpid(), signal.SIGSEGV)
def poison(): raise RuntimeError("CUDA error: an illegal memory access")
def tell(): made.row("told", "good", "", "us", [1.0])
def bare(): raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable or set ..")
def wrong(): made.expect(False, "found", "bad", "", 2.0)
def cases(report):
    global made
    made = report
    yield from [Case(run.__name__, run) for run in (tell, poison, die, bare)]
    yield from [Case("hang", hang, seconds=1), Case("wrong", wrong)]
    yield Case("last", tell)
def settle(report):
    if "illegal" in str(sys.exc_info()[1]): raise RuntimeError("CUDA error: poisoned")
from benchmarks.gpu.frame import child
from benchmarks.gpu.frame.report import Case
section.cases, child._settle = cases, settle
sys.exit(child.main(sys.argv[1:]))
"""


def test_a_case_that_poisons_dies_or_hangs_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    popen = subprocess.Popen

    def started(command: list[str], **options):
        at = command.index("benchmarks.gpu.frame.child")
        environment = options.pop("env") | {"PYTHONPATH": str(ROOT)}
        return popen([sys.executable, "-u", str(script), *command[at + 1 :]], env=environment, **options)

    monkeypatch.setattr(subprocess, "Popen", started)
    stamp = dict.fromkeys(COLUMNS[-5:], "x")
    run = gpu_check.Run(stamp, [tmp_path / "rows.csv"], True, tmp_path, None)
    run.section(Section("vae", 100, 0, case_seconds=90), until=10**10)
    rows = [(row["what"], row["case"], row["status"]) for row in read_rows(tmp_path / "rows.csv")]
    assert rows == [
        ("told", "good", ""),
        ("case", "poison", "failed"),
        ("case", "die", "failed"),
        ("case", "bare", "failed"),
        ("case", "hang", "failed"),
        ("found", "bad", "wrong"),
        ("told", "good", ""),
    ]
    notes = [row["note"] for row in read_rows(tmp_path / "rows.csv")]
    assert "cuda failed: an illegal memory access; `dmesg" in notes[1] and "(at child.py:" in notes[1]
    assert notes[2] == "exit code -11" and notes[4] == "ended: 1 s in one case"
    assert notes[3].startswith("Triton compiles its launcher with a C compiler, and there is none: apt-get install gcc")
    said = capfd.readouterr().out
    assert said.count("Traceback") == 1, "what a machine lacks is said in its row alone"
    assert "Fatal Python error: Segmentation fault" in said and "in die" in said, "a crash says where"
    assert "in hang" in said, "so does what hangs"


def test_time_that_is_up_is_told_of_every_case(tmp_path: Path) -> None:
    from benchmarks.gpu.frame import child

    report = Report("vae", torch.device("cpu"), torch.float32, [tmp_path / "rows.csv"], {"date": "x"}, until=0.0)
    assert child.run(report, tmp_path / "state") == 0
    rows = read_rows(tmp_path / "rows.csv")
    assert len(rows) == 4 and {(row["status"], row["note"]) for row in rows} == {("skipped", "skipped: time")}


@pytest.mark.parametrize(
    ("rows", "gate", "stretch"),
    [
        ([row("unet", "SD 1.5", "2 rows", "ours", p50="4500")], "reached (+22.2%)", "NOT reached (-11.1%)"),
        ([row("unet", "SD 1.5", "2 rows", "ours", p50="6875")], "NOT reached (-20.0%)", "NOT reached (-41.8%)"),
        ([row("unet", "SD 1.5", "2 rows", "eager", p50="1")], "", ""),
    ],
)
def test_a_target_says_by_how_much(rows, gate: str, stretch: str) -> None:
    (target,) = [target for target in TARGETS if target.name == "SD 1.5 UNet, 2 rows, graph"]
    assert verdict(target, rows)[1:] == (gate, stretch)


def test_of_several_rows_the_worst_counts() -> None:
    (target,) = [target for target in TARGETS if target.name.startswith("layer_norm")]
    rows = [row("kernels", "layer_norm", f"32 rows 4096x{i}", "ours", of_floor=x) for i, x in enumerate(("0.9", "0.8"))]
    rows.append(row("kernels", "layer_norm", "32 rows 256x1280", "ours", of_floor="0.5"))  # too small to reach it
    assert target.figure(rows) == 0.8 and not target.reached(0.8, target.gate)


def test_every_target_is_about_rows_that_a_section_writes() -> None:
    """Its section exists, and what and mode are words of that section's file."""
    for target in TARGETS:
        section, what, case, mode = target.rows
        source = "".join(
            (ROOT / f"benchmarks/gpu/{name}.py").read_text() for name in (f"sections/{section}", "subjects/networks")
        )
        for word in (what.removesuffix(" step").removesuffix(" picture"), mode.removesuffix("*")):
            assert word in source, f"{target.name}: {word!r}"
        assert case


def test_a_page_tells_of_each_section_its_last_run(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    for date, section, status in (("1", "unet", "failed"), ("1", "vae", ""), ("2", "unet", "ok")):
        line = [section, "what", "case", "mode", "us", 1, 2, 3, 4, "", "", "", "", status, "a|b", *"dttc", date]
        write_row([table], line)
    summary.write(table)
    page = table.with_suffix(".md").read_text()
    assert "## Wrong: 0" in page and "## unet (2)" in page and "## vae (1)" in page and "a/b" in page
