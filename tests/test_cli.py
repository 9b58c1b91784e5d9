"""The command line as a newcomer meets it."""
import json, re
import pytest
from conftest import command
from rubriclab.data.records import write_rows
from rubriclab.engines.fake import World


@pytest.fixture
def files(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", World(seed=2).pairs(20, per_prompt=1))
    return tmp_path, {"RUBRICLAB_CACHE_DIR": str(tmp_path / "cache"), "RUBRICLAB_ENGINE": "fake:world?seed=2"}


def rows(path): return [json.loads(line) for line in open(path)]


def test_help_and_list():
    assert {"crg", "doctor", "judge", "list", "run"} <= set(re.findall(r"^  (\w+)", command("--help").stdout, re.M))
    assert re.search(r"openrubrics +recipes: gpu-8b, laptop-trained, laptop, smoke", command("list").stdout)
    doctor = command("doctor")
    assert doctor.returncode == 0 and "hf     installed" in doctor.stdout and re.search(r"ray +(installed|missing ray: pip install \"rubriclab\[ray\]\")", doctor.stdout)


def test_crg_feeds_judge(files):
    d, env = files
    assert command("crg", d / "pairs.jsonl", d / "rubrics.jsonl", **env).returncode == 0
    assert command("judge", d / "rubrics.jsonl", d / "judged.jsonl", **env).returncode == 0
    written, judged = rows(d / "rubrics.jsonl"), rows(d / "judged.jsonl")
    assert [r["id"] for r in written] == [r["id"] for r in judged] == [r["id"] for r in rows(d / "pairs.jsonl")]
    for w, j in zip(written, judged):
        assert (w["rubric"] is None) == ("failure" in w) and j["judged_with_rubric"] == (w["rubric"] is not None)
        assert {"winner", "margin", "consistent", "verdicts", "correct"} <= j.keys() and [v["shown_first"] for v in j["verdicts"]] == ["first", "second"]
        assert j["margin"] == pytest.approx(sum(v["margin"] for v in j["verdicts"]) / 2)
    again = command("judge", d / "rubrics.jsonl", d / "again.jsonl", **env)
    assert "0 computed" in again.stdout and rows(d / "again.jsonl") == judged


def test_every_failure_keeps_its_line(files):
    d, env = files
    env["RUBRICLAB_ENGINE"] = "fake:world?seed=2&invalid=1"
    done = command("judge", d / "pairs.jsonl", d / "out.jsonl", "--method", "direct", "--readout", "generate", **env)
    assert done.returncode == 0 and "20 failed (20 no_parse)" in done.stdout
    for r in rows(d / "out.jsonl"): assert r["failure"]["reason"] == "no_parse" and r["winner"] is None and r["margin"] is None


def test_unlabeled_pairs_are_judged_and_not_scored(files):
    d, env = files
    plain = [{"id": r["id"], "prompt": r["prompt"], "response_a": r["rejected"], "response_b": r["chosen"]} for r in rows(d / "pairs.jsonl")]
    write_rows(d / "plain.jsonl", plain)
    assert command("judge", d / "plain.jsonl", d / "out.jsonl", "--method", "direct", **env).returncode == 0
    for r in rows(d / "out.jsonl"): assert r["winner"] in ("A", "B", "tie") and r["correct"] is None
    # read again, what a judge found is no label
    assert command("judge", d / "out.jsonl", d / "twice.jsonl", "--method", "direct", **env).returncode == 0
    assert all(r["correct"] is None for r in rows(d / "twice.jsonl"))
    done = command("crg", d / "plain.jsonl", d / "rubrics.jsonl", **env)
    assert "20 failed (20 missing)" in done.stdout


def test_bad_input_is_one_line_before_anything_runs(files):
    d, env = files
    with open(d / "pairs.jsonl", "a") as f: f.write('{"id": "last", "prompt": "Name a moon.", "chosen": "Titan"}\n')
    done = command("judge", d / "pairs.jsonl", d / "out.jsonl", **env)
    assert done.returncode == 2 and "line 21" in done.stderr and "rejected" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (d / "out.jsonl").exists()
    done = command("judge", d / "pairs.jsonl", d / "out.jsonl", "--keep-going", "--method", "direct", **env)
    assert done.returncode == 0 and "20 records, 0 failed, 1 bad ones left out" in done.stdout


def test_old_results_are_not_overwritten_by_other_settings(files):
    d, env = files
    assert command("judge", d / "pairs.jsonl", d / "out.jsonl", "--method", "direct", **env).returncode == 0
    done = command("judge", d / "pairs.jsonl", d / "out.jsonl", "--method", "direct", "--seed", "3", **env)
    assert done.returncode == 2 and "was made with seed=0, now it is 3" in done.stderr


def test_plans_cost_nothing(files):
    d, env = files
    env["RUBRICLAB_ENGINE"] = "smollm2"
    for args in (["crg", "--attempts", "3", "--temperature", "1"], ["judge", "--method", "direct"]):
        done = command(args[0], d / "pairs.jsonl", d / "out.jsonl", *args[1:], "--plan", **env)
        assert done.returncode == 0 and "smollm2" in done.stdout, done.stderr
        assert re.search(r" 60 " if args[0] == "crg" else r" 40 ", done.stdout), done.stdout
    assert not (d / "out.jsonl").exists() and not (d / "cache").exists()


def test_rankings(files):
    d, env = files
    a, b = rows(d / "pairs.jsonl")[:2]
    write_rows(d / "ranked.jsonl", [{"id": "r", "prompt": a["prompt"], "responses": [a["chosen"], a["rejected"], a["rejected"] + " again"]}])
    assert command("crg", d / "ranked.jsonl", d / "out.jsonl", "--no-filter", **env).returncode == 0
    row, = rows(d / "out.jsonl")
    assert row["responses"][0] == a["chosen"] and row["rubric"]
