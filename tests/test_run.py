"""The runner: what it refuses, what it leaves behind, and that items are enough to compute every metric."""
import json, re
from collections import defaultdict
from pathlib import Path
import pytest
from conftest import command
from rubriclab.lab.report import by_arm, compare_arms, summarize_arm
from rubriclab.lab.run import experiments, prepare, read_parameters, recipes
from rubriclab.rubrics.consistency import acceptance


@pytest.mark.parametrize("args, hint", [
    (["openrubrics", "-p", "sead", "42"], "did you mean 'seed'?"),
    (["openrubrics", "--recipe", "labtop"], "did you mean 'laptop'?"),
    (["openrubric"], "did you mean 'openrubrics'?"),
    (["openrubrics", "-p", "seed", "many"], "wants int like 0"),
])
def test_refused_in_one_line(tmp_path, args, hint):
    done = command("run", *args, "--results-dir", tmp_path)
    assert done.returncode == 2 and hint in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir()), "a refused run left something behind"


def test_every_recipe_is_valid():
    for name in experiments():
        assert {"smoke", "laptop"} <= set(recipes(name))
        for recipe in recipes(name): prepare(name, recipe)


def test_laptop_writes_out_the_defaults():
    _, notebook, given, _ = prepare("openrubrics", "laptop")
    defaults = read_parameters(notebook)
    assert given == {k: v for k, v in defaults.items() if k in given}


def test_a_failing_run_leaves_its_folder_and_says_which_cell(tmp_path):
    done = command("run", "openrubrics", "--recipe", "smoke", "--engine", "replay:nowhere.sqlite", "--results-dir", tmp_path)
    folder, = (tmp_path / "openrubrics").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert done.returncode == 1 and manifest["state"] == "failed" and (folder / "notebook.ipynb").is_file()
    assert re.search(r"cell \d+: .*run", done.stderr) and "no store at nowhere.sqlite" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4


def test_the_folder_is_whole(smoke):
    one, two = smoke["folders"]
    assert one != two
    for folder in (one, two):
        m = json.loads((folder / "manifest.json").read_text())
        assert m["state"] == "finished" and m["exit_code"] == 0 and m["items"] == len(smoke["items"])
        assert {e["role"] for e in m["engines"]} >= {"generator", "filter judge", "judge", "planted judge"}
        assert m["parameters"]["given"]["prompts"] == 4 and m["parameters"]["defaulted"]["tau"] == 0.5
        assert m["packages"]["torch"] and m["data"][0]["fingerprint"] and m["code"].keys() == {"commit", "dirty"}
        assert len(list((folder / "figures").glob("*.png"))) >= 5
    assert "claim" in smoke["screen"] and "status" in smoke["screen"] and str(two) in smoke["screen"]


def test_a_second_run_computes_nothing_and_says_the_same(smoke):
    one, two = smoke["folders"]
    assert (one / "metrics.json").read_bytes() == (two / "metrics.json").read_bytes()
    assert (one / "items.jsonl").read_bytes() == (two / "items.jsonl").read_bytes()
    used = json.loads((two / "manifest.json").read_text())["engines"]
    assert all(e["computed"] == 0 for e in used if not e["role"].startswith("planted")), used


def test_metrics_are_strict_json(smoke):
    def refuse(name): raise AssertionError(f"{name} in metrics.json")
    json.loads((smoke["folders"][0] / "metrics.json").read_text(), parse_constant=refuse)


def plain_accuracy(rows):
    "Accuracy, consistency, order gap and failures by counting, without the library."
    right, same, places, failed, orders = [], [], defaultdict(list), 0, 0
    for r in rows:
        hits = []
        for v in r["verdicts"]:
            orders += 1
            failed += v["failure"] is not None
            hit = 0.0 if v["failure"] else 0.5 if v["winner"] == "tie" else float(v["winner"] == r["gold"])
            hits.append(hit)
            better = "second" if r["gold"] == "B" else "first"
            if not v["failure"]: places[v["shown_first"] == better].append(hit)
        right.append(sum(hits) / len(hits))
        winners = [v["winner"] for v in r["verdicts"]]
        if len(winners) == 2 and None not in winners: same.append(winners[0] == winners[1])
    mean = lambda x: sum(x) / len(x) if x else None
    margins = [r["margin"] * (-1 if r["gold"] == "B" else 1) for r in rows if r["margin"] is not None]
    lean = mean([0.5 if abs(m) <= 2e-3 else float(m > 0) for m in margins])
    gap = mean(places[True]) - mean(places[False]) if places[True] and places[False] else None
    return {"n": len(rows), "prompts": len({r["prompt"] for r in rows}), "accuracy": mean(right), "consistency": mean(same), "order_gap": gap, "failed": failed, "verdicts": orders, "accuracy_by_mean_margin": lean}


def test_every_number_comes_from_the_items(smoke):
    m, items = smoke["metrics"], smoke["items"]
    judged = [r for r in items if r["kind"] == "judgment"]
    sections = [("planted", m["planted"]["arms"]), (m["data"], m["arms"]), (m["public"]["name"], m["public"]["arms"])]
    for data, found in sections:
        arms = by_arm(items, data)
        assert [a["arm"] for a in found] == list(arms)
        for a in found:
            for key, value in plain_accuracy([r for r in judged if r["data"] == data and r["arm"] == a["arm"]]).items():
                assert a[key] == pytest.approx(value, abs=1e-12) if value is not None else a[key] is None, (data, a["arm"], key)
            assert a == summarize_arm(arms[a["arm"]], 0) # intervals and the rest, from the same rows
    for data, found in (("planted", m["planted"]["orderings"]), ("planted control", m["planted_control"]["orderings"]), (m["data"], m["orderings"])):
        assert found == compare_arms(by_arm(items, data), [(o["worse"], o["better"]) for o in found], 0)
        for o in found:
            per = {arm: {r["pair"]: plain_accuracy([r])["accuracy"] for r in by_arm(items, data)[arm]} for arm in (o["worse"], o["better"])}
            both = per[o["worse"]].keys() & per[o["better"]].keys()
            assert o["gap"] == pytest.approx(sum(per[o["better"]][k] - per[o["worse"]][k] for k in both) / len(both))
    tested = [r["history"] for r in items if r["kind"] == "rubric" and r["data"] == m["data"] and r["arm"] == "contrastive filtered"]
    assert m["acceptance"] == [a.model_dump() for a in acceptance(tested)]
    for name, rows in (("lengths", m["data"]), ("public", m["public"]["name"])):
        words = [r["words"] for r in judged if r["data"] == rows and r["arm"] == "direct"]
        longer = [0.5 if a == b else float(a > b) for a, b in words]
        found = m["lengths"] if name == "lengths" else m["public"]["lengths"]
        assert found["longer_wins"] == (pytest.approx(sum(longer) / len(longer)) if longer else None)
    for row in m["paper"]:
        if row["ours"] is not None: assert any(row["ours"] == pytest.approx(x) for x in [*(o["gap"] for o in m["orderings"]), *(a["accuracy"] for a in m["arms"]), *(a["order_gap"] for a in m["arms"])])


def test_a_plan_runs_nothing(tmp_path):
    done = command("run", "openrubrics", "--recipe", "laptop", "--plan", "--results-dir", tmp_path, RUBRICLAB_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"generator +smollm2 +[\d,]+ +[\d,]+ +[\d,]+ ", done.stdout) and "An upper bound" in done.stdout
    assert not (tmp_path / "openrubrics").exists() and not (tmp_path / "cache").exists()


def test_the_paper_notebook_holds_no_machine_paths():
    text = Path(experiments()["openrubrics"]).read_text()
    assert not re.search(r'"[^"]*/(?:home|root|tmp|Users)/', text)


def test_a_pair_to_judge_shares_no_answer_with_the_pair_that_was_written_from():
    from rubriclab.core.types import PreferencePair
    from rubriclab.lab.openrubrics import split_by_prompt
    pair = lambda prompt, n, a, b: PreferencePair(id=f"{prompt}{n}", prompt=prompt, chosen=a, rejected=b, meta={"prompt_id": prompt})
    first, second = split_by_prompt([pair("p", 0, "a", "b"), pair("p", 1, "a", "c"), pair("p", 2, "d", "c"), pair("q", 0, "a", "b"), pair("q", 1, "b", "c"), pair("r", 0, "a", "b")])
    assert [p.id for p in first] == ["p0"] and [p.id for p in second] == ["p2"]


def test_scores_of_a_judge_that_is_sure_are_no_ties():
    from types import SimpleNamespace
    from rubriclab.core.types import PreferencePair, Usage
    from rubriclab.lab.openrubrics import _decided
    score = lambda x: SimpleNamespace(failure=None, expected_score=x, usage=Usage())
    p = PreferencePair(id="p", prompt="x", chosen="a", rejected="b")
    assert [_decided(p, score(a), score(b), "e").verdicts[0].winner for a, b in ((0.9995, 0.9985), (0.9985, 0.9995), (0.9995, 0.9995))] == ["chosen", "rejected", "tie"]


def test_trained_arms_stand_beside_untrained_ones():
    from rubriclab.lab.openrubrics import Arms, by_points, judge_trained, planted_engines, split_by_prompt
    from rubriclab.lab.report import by_arm, summarize_arm
    world, able = planted_engines(0)
    blind = planted_engines(0, 0.5)[1]
    _, judged = split_by_prompt(world.pairs(120, per_prompt=2))
    for reads in ("criteria", "pairs"):
        rows = judge_trained("planted", judged, (able, able), (able, blind), Arms(rubric_max_tokens=300), reads)
        found = {a: summarize_arm(r)["accuracy"] for a, r in by_arm(rows, "planted").items()}
        assert list(found) == ["trained judge", "untrained"] and found["trained judge"] > found["untrained"] + 0.05
    names = [{r["arm"] for r in judge_trained("planted", judged[:2], writers, judges, Arms(rubric_max_tokens=300))} for writers, judges in (((able, blind), (able, blind)), ((able, blind), (able, able)))]
    assert names == [{"trained", "untrained"}, {"trained generator", "untrained"}] # the paper's comparison trains both
    right = by_points("planted", "reference", judged[:20], [world.rubric(int(p.id.split("-")[1])) for p in judged[:20]], planted_engines(0, 1.0)[1])
    assert all(r["winner"] == "chosen" and r["consistent"] for r in right) # true rubrics and a grader that reads them
    none = by_points("planted", "none", judged[:2], [None, None], able)
    assert all(v["failure"]["reason"] == "dropped" for r in none for v in r["verdicts"])


def test_c2s_rule_refuses_a_rubric_that_was_not_written():
    from rubriclab.core.types import Failure
    from rubriclab.engines.fake import answers
    from rubriclab.lab.c2 import inference, planted_c2, policy_rows
    from rubriclab.rubrics.c2 import Contrasting
    world, planted = planted_c2(0.5, 4, 2.0)
    pairs = world.pairs(30, per_prompt=1)
    seen = inference(pairs, planted, planted, Contrasting(seed=1))
    assert len(seen) == 30 and {r["policy"] for r in policy_rows(pairs, seen, ("never", "selective"))} == {"never", "selective"}
    lost = inference(pairs[:3], answers([Failure(reason="timeout", detail="no reply")] * 3), planted, Contrasting(seed=1))
    assert len(lost) == 3
