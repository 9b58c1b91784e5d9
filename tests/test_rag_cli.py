"""`rubriclab index`, `rubricrag` and `compare-rubrics` as a newcomer meets them."""
import json, re
import pytest
from conftest import command
from rubriclab.core.types import Item
from rubriclab.data.items import item_row
from rubriclab.data.records import write_rows
from rubriclab.engines.fake import World, other
from rubriclab.lab.rubricrag import compare_sources, gathered, partings, rag_orderings, summarize_rag

pytest.importorskip("bm25s", reason="needs the retrieval extra: pip install 'rubriclab[rag]'")
WORLD = World(seed=2, common=0.4)


def prompt(i):
    better, _ = WORLD.lengths(i, 0)
    return Item(id=f"p{i}", prompt=WORLD.request(i), rubric=WORLD.rubric(i), meta={"good": WORLD.answer(i, 0, better), "bad": WORLD.answer(i, 0, other(better)), "domain": f"d{i % 2}"})


PROMPTS = [prompt(i) for i in range(40)]


def rows(path): return [json.loads(line) for line in open(path)]


@pytest.fixture
def files(tmp_path):
    write_rows(tmp_path / "prompts.jsonl", [item_row(i) for i in PROMPTS])
    env = {"RUBRICLAB_CACHE_DIR": str(tmp_path / "cache"), "RUBRICLAB_ENGINE": "fake:world?seed=2&common=0.4", "RUBRICLAB_EMBEDDER": "hashed"}
    done = command("index", "build", tmp_path / "prompts.jsonl", tmp_path / "ix", **env)
    assert done.returncode == 0 and "40 records, words and hashed" in done.stdout, done.stderr
    return tmp_path, env


def test_neighbors_are_shown_with_their_rubrics(files):
    d, env = files
    done = command("index", "search", d / "ix", PROMPTS[7].prompt, "-k", "2", "--where", "domain=d1", **env)
    assert done.returncode == 0 and done.stdout.startswith("1. p7  score "), done.stderr
    assert PROMPTS[7].rubric.criteria[0].text in done.stdout and re.findall(r"^\d\. p(\d+)", done.stdout, re.M)[0] == "7" and all(int(n) % 2 for n in re.findall(r"^\d\. p(\d+)", done.stdout, re.M))
    assert "p7 " not in command("index", "search", d / "ix", PROMPTS[7].prompt, "--near", "0.95", **env).stdout
    assert "nothing was found" in command("index", "search", d / "ix", "x", "--source", "no such", **env).stdout


@pytest.mark.parametrize("arguments, says", [
    (("index", "search", "none", "q"), "no index in 'none'; build one"), (("index", "build", "helthbench", "x"), "did you mean 'healthbench'"), (("index", "build", "no/such.jsonl", "x"), "neither a file nor a folder"),
    (("index", "search", "none", "q", "--where", "domain"), "write KEY=VALUE"), (("rubricrag", "a.jsonl", "b.jsonl"), "needs --index DIR")])
def test_what_is_wrong_is_one_line(arguments, says):
    done = command(*arguments)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_another_encoder_is_refused(files):
    d, env = files
    manifest = json.loads((d / "ix" / "manifest.json").read_text())
    (d / "ix" / "manifest.json").write_text(json.dumps(manifest | {"encoder": manifest["encoder"] | {"fingerprint": "another"}}))
    done = command("index", "search", d / "ix", "q", **env)
    assert done.returncode == 2 and "was made with encoder hashed (another)" in done.stderr and "build the index again" in done.stderr
    assert command("index", "search", d / "ix", "Request", "--method", "bm25", **env).returncode == 0 # words need no encoder


def test_rubrics_are_written_measured_and_resumed(files):
    d, env = files
    done = command("rubricrag", d / "prompts.jsonl", d / "out.jsonl", "--index", d / "ix", "-k", "2", **env)
    assert done.returncode == 0 and "good over bad" in done.stdout and "40 prompts with a human rubric" in done.stdout, done.stderr
    out = rows(d / "out.jsonl")
    assert [r["id"] for r in out] == [i.id for i in PROMPTS] and all(r["rubric"] and r["human_rubric"] and len(r["neighbors"]) == 2 and r["id"] not in r["neighbors"] for r in out)
    assert all(len(r["measures"]["scores"]) == 2 and 0 < r["measures"]["f1"] <= 1 for r in out) and all(isinstance(c["weight"], float) for r in out for c in r["rubric"])
    again = command("rubricrag", d / "prompts.jsonl", d / "again.jsonl", "--index", d / "ix", "-k", "2", **env)
    assert "0 computed" in again.stdout and rows(d / "again.jsonl") == out
    changed = command("rubricrag", d / "prompts.jsonl", d / "out.jsonl", "--index", d / "ix", "-k", "3", **env)
    assert changed.returncode == 2 and "name another OUT" in changed.stderr


def test_without_model_or_answers_or_human_rubrics(files):
    d, env = files
    write_rows(d / "bare.jsonl", [{"id": i.id, "prompt": i.prompt} for i in PROMPTS[:5]])
    done = command("rubricrag", d / "bare.jsonl", d / "bare_out.jsonl", "--index", d / "ix", "--strategy", "copy", "--judge", "none", **env)
    out = rows(d / "bare_out.jsonl")
    assert done.returncode == 0 and "F1" not in done.stdout and all(r["rubric"] and "measures" not in r and "human_rubric" not in r for r in out)
    assert command("index", "build", d / "prompts.jsonl", d / "criteria", "--criteria", **env).returncode == 0
    single = command("rubricrag", d / "prompts.jsonl", d / "single.jsonl", "--index", d / "criteria", "--strategy", "criteria", "--most", "4", "--judge", "none", **env)
    assert single.returncode == 0, single.stderr
    assert all(len(r["rubric"]) == 4 and r["id"] not in [n.partition("#")[0] for n in r["neighbors"]] for r in rows(d / "single.jsonl"))


def test_a_plan_counts_and_writes_nothing(files):
    d, env = files
    done = command("rubricrag", d / "prompts.jsonl", d / "planned.jsonl", "--index", d / "ix", "--plan", **env)
    assert done.returncode == 0 and re.search(r"generator +fake:\S+ +40 ", done.stdout) and re.search(r"judge +fake:\S+ +1,0\d\d ", done.stdout) and not (d / "planned.jsonl").exists(), done.stdout # 40 x 2 answers x (8 stand-ins + 5)


def test_two_files_of_rubrics(files):
    d, env = files
    assert command("rubricrag", d / "prompts.jsonl", d / "out.jsonl", "--index", d / "ix", "--judge", "none", **env).returncode == 0
    done = command("compare-rubrics", d / "out.jsonl", d / "prompts.jsonl", **env)
    assert done.returncode == 0 and done.stdout.startswith("40 prompts; criteria a rubric") and len(re.findall(r"^(words|meaning) ", done.stdout, re.M)) == 16, done.stderr
    same = command("compare-rubrics", d / "prompts.jsonl", d / "prompts.jsonl", "--encoder", "none", **env)
    assert same.stdout.count(" 1.000 ") >= 16
    write_rows(d / "other.jsonl", [{"id": "x", "prompt": "Another.", "rubric": "1. Is so."}])
    assert "no id and no prompt" in command("compare-rubrics", d / "other.jsonl", d / "prompts.jsonl", **env).stderr


def test_records_belong_together_by_id_or_by_prompt():
    renamed = [i.replace(id=f"other-{i.id}") for i in PROMPTS[:6]]
    rows_, n, left = compare_sources(renamed, PROMPTS)
    assert n == 6 and left == 34 and all(abs(r["f1"] - 1) < 1e-9 for r in rows_)


def test_answers_of_a_prompt_are_gathered():
    items = [PROMPTS[0].replace(id=f"a{k}", response=f"answer {k}", meta={}) for k in range(3)] + [PROMPTS[1].replace(response="one", meta={})]
    found = gathered(items)
    assert [list(i.meta["answers"]) for i in found] == [["answer 0", "answer 1", "answer 2"], ["one"]] and all(i.response is None for i in found)


def test_a_failure_is_left_out_or_wrong_and_counted():
    row = lambda item, arm, f1, scores, **more: {"arm": arm, "item": item, "prompt": item, "f1": f1, "scores": scores, "human_scores": [0.9, 0.1], "good": 0, "bad": 1, "neighbors": [], "criteria": 1, "characters": 9, "human_criteria": 2, "verbatim": 0.0,
                                                  **dict.fromkeys(("precision", "recall", "f1 one to one", "f1 equal numbers", "f1 weighted"), f1), **more}
    found = [row(f"p{i}", "zero-shot", 0.2 + i / 100, [0.6, 0.2]) for i in range(12)] + [row(f"p{i}", "retrieved", 0.5 + i / 100 if i else 0.0, [0.1, 0.7] if i else [None, None], **({} if i else {"failure": {"reason": "no_parse", "detail": ""}})) for i in range(12)]
    s = {x["arm"]: x for x in summarize_rag(found)}
    assert s["retrieved"]["failed"] == 1 and s["retrieved"]["use"]["good over bad"] == {"value": 0.0, "low": 0.0, "high": pytest.approx(1 - 0.025 ** (1 / 12)), "n": 12, "failed": 0} and s["retrieved"]["use"]["agreement"]["n"] == 11
    by = {o["measure"]: o for o in rag_orderings(found, (("zero-shot", "retrieved"),))}
    assert by["f1"]["claimed"] and not by["good over bad"]["claimed"] and by["good over bad"]["gap"] == -1 and by["agreement"]["prompts"] == 11
    p, = partings(found, (("retrieved", "zero-shot"),))
    assert p["claimed"] and (p["more like"], p["than"]) == ("retrieved", "zero-shot")
