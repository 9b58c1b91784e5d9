"""Records in and out, public sets by name, the packaged pairs and the generator of verifiable ones."""
import gzip, json, os, pickle, subprocess, sys, tracemalloc
from collections import Counter
import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st
from rubriclab.core.types import AnswerPair, Criterion, Message, PreferencePair, Rubric
from rubriclab.data.records import RecordError, as_pair, prompt_key, read_pairs, read_rows, row_of, write_rows
from rubriclab.data.sets import length_baselines, load
from rubriclab.data.verifiable import KINDS, MOVES, checker, constraints_of, topics, verifiable_pairs

FORMATS = [".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet", ""]
PUBLIC = os.environ.get("RUBRICLAB_DATA_DIR")
public = pytest.mark.skipif(not PUBLIC, reason="RUBRICLAB_DATA_DIR is not set: the public sets are not here")

# ------------------------------------------------------------------ round trips
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalar = st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats(allow_nan=False, allow_infinity=False) | text
value = st.recursive(scalar, lambda v: st.lists(v, max_size=2) | st.dictionaries(text, v, max_size=2), max_leaves=4)
name = st.sampled_from(["family", "score", "label", "winner", "question", "chosen", "prompt_id", "rubric", "meta", "a:json", "subset"])
turns = st.lists(st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=text), min_size=1, max_size=3).map(tuple)
criterion = st.builds(Criterion, text=st.sampled_from(["The response is short.", "Cites [1]", "Ends so [Principle]"]), kind=st.sampled_from([None, "hard_rule"]), weight=st.sampled_from([1.0, -3.0]))
rubric = st.none() | st.builds(Rubric, criteria=st.lists(criterion, min_size=1, max_size=2).map(tuple), source=st.none() | st.just("human"), seed=st.none() | st.integers(0, 9))
common = dict(prompt=text.filter(bool) | turns, source=st.none() | text, rubric=rubric, meta=st.dictionaries(name, value, max_size=3))

@st.composite
def pairs(draw):
    kinds = [st.builds(PreferencePair, id=st.just("x"), chosen=text, rejected=text, **common),
             st.builds(AnswerPair, id=st.just("x"), response_a=text, response_b=text, label=st.sampled_from([None, "A", "B", "tie"]), **common)]
    return [p.replace(id=f"id-{i}") for i, p in enumerate(draw(st.lists(st.one_of(kinds), min_size=1, max_size=3)))]

@pytest.mark.parametrize("suffix", FORMATS[:-1])
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(found=pairs())
def test_round_trip(tmp_path, suffix, found):
    path = tmp_path / f"pairs{suffix}"
    assert write_rows(path, found) == len(found)
    assert list(read_pairs(path)) == found

def test_round_trip_through_a_saved_dataset(tmp_path):
    pytest.importorskip("datasets")
    pair = PreferencePair(id="1", prompt=(Message(role="user", content="Hi"), Message(role="assistant", content="Yes?"), Message(role="user", content="A moon?")),
                          chosen="Titan", rejected="", rubric=Rubric.parse("1. Is right. [Hard Rule]"), meta={"scores": [1, None], "n": 3})
    write_rows(tmp_path / "saved", [pair])
    assert list(read_pairs(tmp_path / "saved")) == [pair]
    with pytest.raises(FileExistsError, match="remove it or name another"): write_rows(tmp_path / "saved", [pair])

def test_foreign_parquet_with_nested_conversations(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    talk = lambda a: [{"role": "user", "content": "A moon?"}, {"role": "assistant", "content": a}]
    pq.write_table(pa.Table.from_pylist([{"prompt": "A moon?", "chosen": talk("Io"), "rejected": talk("Mars"), "score": 1.5}, {"prompt": "A sun?", "chosen": talk("Sol"), "rejected": talk("Io"), "score": None}]), tmp_path / "p.parquet")
    first, second = read_pairs(tmp_path / "p.parquet")
    assert (first.prompt, first.chosen, first.rejected, dict(first.meta), dict(second.meta)) == ("A moon?", "Io", "Mars", {"score": 1.5}, {})

# ------------------------------------------------------------------ layouts
def test_output_of_a_judge_is_no_gold():
    "A judge's `winner` in the lab's own layout must not become the label of the next step."
    row = {"id": "1", "prompt": "A moon?", "response_a": "Io", "response_b": "Mars", "winner": "B", "margin": -1.5, "verdicts": [{"winner": "B"}]}
    pair = as_pair(row)
    assert pair.label is None and row_of(pair) == row
    assert as_pair({"instruction": "A moon?", "response_a": "Io", "response_b": "Mars", "winner": "A"}).label == "A"

def test_ids():
    row = {"prompt": "A moon?", "chosen": "Io", "rejected": "Mars"}
    assert as_pair(row).id == as_pair(dict(row, score=3)).id != as_pair(dict(row, chosen="Titan")).id
    assert as_pair(dict(row, pair_id=7)).id == "7"
    shared = as_pair(dict(row, prompt_id="p1"))
    assert (shared.id, shared.meta["prompt_id"]) == ("p1", "p1")

@pytest.mark.parametrize("row, field, fix", [
    ({"prompt": "Q", "chosen": "a"}, "rejected", "add the other answer"),
    ({"prompt": "Q"}, "chosen", "give `chosen` and `rejected`"),
    ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt", "write the request"),
    ({"prompt": 5, "chosen": "a", "rejected": "b"}, "prompt", "write the request as text"),
    ({"prompt": "Q", "chosen": 5, "rejected": "b"}, "chosen", "write the answer as text"),
    ({"prompt": "Q", "chosen": ["a"], "rejected": "b"}, "chosen", '"role": "user"'),
    ({"chosen": [{"role": "user", "content": "Q"}], "rejected": "b"}, "chosen", "assistant's answer"),
    ({"prompt": "Q", "response_a": "a", "response_b": "b", "label": 0}, "label", "write A, B or tie"),
    ({"prompt": "Q", "chosen": "a", "rejected": "b", "rubric": "no list here"}, "rubric", "write a numbered list"),
    ({"prompt": "Q", "chosen": "a", "rejected": "b", "rubric": [{"kind": "hard_rule"}]}, "rubric", "name the field `text`"),
    ({"prompt": "Q", "chosen": "a", "rejected": "b", "rubric_file": "/etc/hostname"}, "rubric_file", "from the data's folder"),
    ({"prompt": "Q", "chosen": "a", "rejected": "b", "source": 3}, "source", "write a text"),
    ({"prompt": "Q", "chosen": "a", "rejected": "b", "id": [1]}, "id", "write a text or a number"),
])
def test_a_bad_row_names_file_line_field_and_fix(tmp_path, row, field, fix):
    path = tmp_path / "pairs.jsonl"
    good = {"id": "good", "prompt": "A moon?", "chosen": "Io", "rejected": "Mars"}
    path.write_text("\n".join(map(json.dumps, [good, row, good | {"id": "last"}])) + "\n")
    with pytest.raises(RecordError) as e: read_pairs(path)
    message = str(e.value)
    assert "\n" not in message and f"{path}, line 2, field {field!r}: " in message and fix in message
    assert str(pickle.loads(pickle.dumps(e.value))) == message
    kept = read_pairs(path, keep_going=True)
    assert kept.counts == {"kept": 2, "skipped": 1} and kept.skipped[0].field == field

@pytest.mark.parametrize("line, problem", [(b"{nope}", "not JSON"), (b'{"a": NaN}', "NaN is not JSON"), (b"[1]", "a list, not an object"), (b'{"a": "\xff"}', "not UTF-8")])
def test_bad_lines_keep_their_number(tmp_path, line, problem):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "1", "prompt": "Q", "chosen": "a", "rejected": "b"}\n\n' + line + b'\n{"id": "2", "prompt": "Q", "chosen": "a", "rejected": "b"}')
    with pytest.raises(RecordError, match=problem) as e: list(read_rows(path))
    assert e.value.where.number == 3
    assert read_pairs(path, keep_going=True).counts == {"kept": 2, "skipped": 1}

def test_duplicate_ids_and_repeated_rows(tmp_path):
    row = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    write_rows(tmp_path / "same.jsonl", [row, row])
    with pytest.raises(RecordError, match="line 2, field 'id': .* stands at line 1 too; give every record an id"): read_pairs(tmp_path / "same.jsonl")
    assert len(read_pairs(tmp_path / "same.jsonl", keep_going=True)) == 1

def test_bad_tables_and_lists(tmp_path):
    (tmp_path / "a.csv").write_text("id,prompt,chosen,rejected\n1,Q,a,b\n2,Q,a,b,c\n3,Q,\"a\nb\",c\n4,Q,,b\n")
    read = read_pairs(tmp_path / "a.csv", keep_going=True)
    assert [p.id for p in read] == ["1", "3"] and [e.where.number for e in read.skipped] == [3, 6]
    (tmp_path / "a.json").write_text('[\n{"id": 1, "prompt": "Q", "chosen": "a", "rejected": "b"},\n3,\n{"id": 2, "prompt": ')
    read = read_pairs(tmp_path / "a.json", keep_going=True)
    assert len(read) == 1 and [e.where.number for e in read.skipped] == [3, 4]
    with pytest.raises(ValueError, match="unknown format"): write_rows(tmp_path / "a.xlsx", [])
    with pytest.raises(FileNotFoundError, match="no such file"): list(read_rows(tmp_path / "none.jsonl"))
    whole = gzip.compress(b'{"a": 1}\n' * 5000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(RecordError, match="ends early; copy it again"): list(read_rows(tmp_path / "cut.jsonl.gz"))

def test_a_rubric_beside_the_data(tmp_path):
    (tmp_path / "short.txt").write_text("1. The response is short. [Hard Rule]\n")
    write_rows(tmp_path / "p.jsonl", [{"id": "1", "prompt": "Q", "chosen": "a", "rejected": "b", "rubric_file": "short.txt", "rubric_source": "human"}])
    assert read_pairs(tmp_path / "p.jsonl")[0].rubric == Rubric.parse("1. The response is short. [Hard Rule]", source="human")

def test_files_appear_whole_or_not_at_all(tmp_path):
    def rows():
        yield {"id": "1"}
        raise RuntimeError("power cut")
    write_rows(tmp_path / "p.jsonl", [{"id": "old"}])
    for path in ("p.jsonl", "q.jsonl"):
        with pytest.raises(RuntimeError): write_rows(tmp_path / path, rows())
    assert [r for _, r in read_rows(tmp_path / "p.jsonl")] == [{"id": "old"}] and sorted(os.listdir(tmp_path)) == ["p.jsonl"]
    with pytest.raises(RecordError, match="row 2, field 'score'"): write_rows(tmp_path / "q.csv", [{"id": "1"}, {"id": "2", "score": float("inf")}])

@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_reading_is_streamed(tmp_path, suffix):
    path = tmp_path / f"big{suffix}"
    write_rows(path, ({"id": str(i), "prompt": "Q" * 200, "chosen": "a" * 500, "rejected": "b" * 500} for i in range(20_000))) # 25 MB
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 and peak < 2e6

def test_prompt_key_folds_case_space_and_punctuation():
    pair = lambda prompt: PreferencePair(id="1", prompt=prompt, chosen="a", rejected="b")
    assert prompt_key(pair("Why  is the sky blue?")) == prompt_key(pair("why is the sky BLUE")) != prompt_key(pair("Why is the sky red?"))
    assert prompt_key(pair("?!")) != prompt_key(pair("..."))

def test_imports_stay_light():
    heavy = "numpy pandas pyarrow datasets torch transformers"
    code = f"import sys, rubriclab.data.records, rubriclab.data.sets, rubriclab.data.verifiable; print([m for m in {heavy.split()} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

# ------------------------------------------------------------------ public sets
@public
@pytest.mark.parametrize("name, subset, count", [
    ("llmbar", None, 419), ("llmbar", "natural", 100), ("llmbar", "adversarial", 319), ("llmbar", "neighbor", 134), ("llmbar", "processed", 400),
    ("reward_bench", None, 2985), ("reward_bench", "chat", 358), ("reward_bench", "chat-hard", 456), ("reward_bench", "safety", 740),
    ("reward_bench", "math-prm", 447), ("rm_bench", None, 798 * 9), ("rm_bench", "chat", 129 * 9), ("rm_bench", "safety", (284 + 157) * 9),
    ("judgebench", None, 350), ("judgebench", "knowledge", 154), ("judgebench", "coding", 42), ("evalbiasbench", None, 80),
    ("evalbiasbench", "length bias", 17), ("hh_rlhf", None, 2312)])
def test_public_counts(name, subset, count, capsys):
    found = load(name, data_dir=PUBLIC, subset=subset)
    assert len(found) == count and not found.skipped and len({p.id for p in found}) == count
    assert f"{name}: {count:,} pairs" in capsys.readouterr().out

@public
def test_public_length_baselines():
    "Length alone: the ranges that are known of these sets."
    short = lambda **k: length_baselines(load(verbose=False, data_dir=PUBLIC, **k))
    assert 0.55 < short(name="reward_bench")["shorter"] < 0.65
    for part in ("neighbor", "gptinst", "gptout", "manual"): assert 0.1 < short(name="llmbar", subset=part)["longer"] < 0.46
    hard = [p for p in load("rm_bench", data_dir=PUBLIC, verbose=False) if p.meta["difficulty"] == "hard"]
    assert 0.02 < length_baselines(hard)["longer"] < 0.25

@public
def test_public_sets_are_drawn_by_prompt(tmp_path):
    ten, hundred = (load("rm_bench", data_dir=PUBLIC, limit=n, seed=4, verbose=False) for n in (10, 100))
    assert len(ten) == 90 and {p.id for p in ten} <= {p.id for p in hundred}
    hh = load("hh_rlhf", data_dir=PUBLIC, verbose=False)
    assert sum("rejected_prompt" in p.meta for p in hh) == 5
    write_rows(tmp_path / "hh.jsonl", hh)
    assert list(read_pairs(tmp_path / "hh.jsonl")) == list(hh)

ULTRA = {"source": "evol_instruct", "instruction": "Name a moon.", "models": ["a", "b", "c"], "completions": [
    {"model": "a", "response": "Mars", "overall_score": 3.0, "fine-grained_score": 2.5, "annotations": {}},
    {"model": "b", "response": "Titan", "overall_score": 8.5, "fine-grained_score": 4.5, "annotations": {}},
    {"model": "c", "response": "Io?", "overall_score": 6.0, "fine-grained_score": 4.0, "annotations": {}}]}
TALK = lambda answer: [{"role": "user", "content": "Name a moon."}, {"role": "assistant", "content": answer}]

def test_openrubric_layout(tmp_path):
    rubric_text = "1. The response names a moon. [Hard Rule]\n2. The response is clear. [Principle]"
    rows = [{"instruction": "Name a moon.", "response_a": "Mars", "response_b": "Titan", "winner": w, "rubric": rubric_text, "judge": "...Winner: B", "source": "magpie"} for w in ("B", "Response A", "?")]
    write_rows(tmp_path / "openrubric_v2" / "data" / "train-00000-of-00001.parquet", rows)
    found = load("openrubric_v2", data_dir=str(tmp_path), verbose=False)
    assert [p.label for p in found] == ["B", "A"] and found.skipped[0].field == "winner"
    assert found[0].rubric.criteria[0].kind == "hard_rule" and found[0].rubric.source == "openrubrics"
    assert (found[0].meta["subset"], found[0].meta["judge"], found[0].source) == ("magpie", "...Winner: B", "openrubric_v2")

def test_ultrafeedback_layouts(tmp_path):
    write_rows(tmp_path / "ultrafeedback" / "evol_instruct.jsonl", [ULTRA, ULTRA | {"completions": ULTRA["completions"][:1]}])
    raw = load("ultrafeedback", data_dir=str(tmp_path), verbose=False)
    assert [(p.chosen, p.rejected, p.meta["score_chosen"]) for p in raw] == [("Titan", "Mars", 8.5)] and raw.skipped[0].field == "completions"
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row = {"prompt": "Name a moon.", "prompt_id": "f0", "chosen": TALK("Titan"), "rejected": TALK("Mars"), "messages": TALK("Titan"), "score_chosen": 8.5, "score_rejected": 3.0}
    folder = tmp_path / "ultrafeedback_binarized" / "data"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row, row]), folder / "train_prefs-00000-of-00001.parquet")
    binarized = load("ultrafeedback_binarized", data_dir=str(tmp_path), verbose=False)
    assert [p.id for p in binarized] == ["ultrafeedback_binarized/f0", "ultrafeedback_binarized/f0#2"]
    assert (binarized[0].prompt, binarized[0].chosen, "messages" in binarized[0].meta) == ("Name a moon.", "Titan", False)

def test_the_hub_is_the_second_place(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []
    def fake(path, config=None, **options):
        asked.append((path, config, options))
        return [ULTRA]
    monkeypatch.setattr(datasets, "load_dataset", fake)
    found = load("ultrafeedback", data_dir=str(tmp_path), verbose=False)
    assert found[0].chosen == "Titan" and asked[0][0] == "openbmb/UltraFeedback"
    assert asked[0][2] == {"split": "train", "revision": "40b436560ca83a8dba36114c22ab3c66e43f6d5e", "streaming": True}
    def offline(*a, **k): raise ConnectionError("no network")
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(FileNotFoundError) as e: load("ultrafeedback", data_dir=str(tmp_path))
    for part in (str(tmp_path / "ultrafeedback"), "no network", "hf download openbmb/UltraFeedback", "RUBRICLAB_DATA_DIR"): assert part in str(e.value)
    with pytest.raises(ValueError, match="did you mean 'judgebench'"): load("judgebnch")

# ------------------------------------------------------------------ data/mini
def test_mini_is_what_its_readme_says():
    mini = load("mini", verbose=False)
    assert len(mini) == 192 and set(Counter(p.meta["family"] for p in mini).values()) == {24} and len({p.meta["family"] for p in mini}) == 8
    assert len({p.meta["prompt_id"] for p in mini}) == len({prompt_key(p) for p in mini}) == 96
    assert len({p.meta["prompt_id"] for p in mini if p.meta["verifiable"]}) >= 64
    assert all(p.rubric.source == "reference" for p in mini) and max(len(a.split()) for p in mini for a in p.answers) < 60
    for first, second in zip(mini[::2], mini[1::2]):
        assert first.prompt == second.prompt and first.rubric == second.rubric and not {first.rejected} & {second.rejected}
    for letter in "ab":
        half = [p for p in mini if p.id.endswith(letter)]
        assert abs(length_baselines(half)["longer"] - 0.5) < 0.05
        assert abs(sum(len(p.chosen) - len(p.rejected) for p in half)) / len(half) < 2

def test_mini_is_right_by_its_checkers():
    for pair in load("mini", verbose=False):
        if not pair.meta["verifiable"]: continue
        ok = checker(pair.meta)
        assert ok(pair.chosen), (pair.id, pair.chosen)
        assert not ok(pair.rejected), (pair.id, pair.rejected)
        assert [c.text for c in pair.rubric.criteria if c.kind == "hard_rule"][:len(constraints_of(pair.meta))] == [c.criterion for c in constraints_of(pair.meta)]

# ------------------------------------------------------------------ the generator
@pytest.mark.parametrize("seed", [0, 1])
def test_verifiable_pairs(seed):
    found = verifiable_pairs(250, seed)
    assert len(found) == 500 and len({p.prompt for p in found}) == 250 and len({p.id for p in found}) == 500
    for pair in found:
        broken = [c for c in constraints_of(pair.meta) if not c.check(pair.rejected)]
        assert checker(pair.meta)(pair.chosen) and len(broken) == 1
    for first, second in zip(found[::2], found[1::2]): assert len({*first.answers, *second.answers}) == 4
    difference = [len(p.chosen) - len(p.rejected) for p in found]
    assert abs(length_baselines(found)["longer"] - 0.5) <= 0.02 and abs(sum(difference)) / 500 < 1
    assert len({c.kind for p in found for c in constraints_of(p.meta)}) >= 20
    assert verifiable_pairs(20, seed) == found[:40]

def test_generated_pairs_are_records(tmp_path):
    found = verifiable_pairs(20, 5)
    write_rows(tmp_path / "v.csv", found)
    again = read_pairs(tmp_path / "v.csv")
    assert list(again) == list(found) and all(checker(p.meta)(p.chosen) for p in again)

def test_topics_and_kinds():
    assert set(MOVES) <= set(KINDS) and len(KINDS) >= 20
    for topic in topics():
        assert len(topic.sentences) == 12 and len(set(topic.nouns)) == 8
        assert not any(c in s for s in topic.sentences for c in ',!?()"*0123456789')

@hypothesis_settings(deadline=None)
@given(answer=st.text(max_size=80))
def test_checks_never_raise(answer):
    args = {"n": 2, "low": 1, "high": 3, "keys": ["a", "b"], "word": "moon", "phrase": "moon", "letter": "e", "options": ["yes"], "text": "yes", "value": 3.0}
    import inspect
    for kind in KINDS.values():
        needed = [p for p in inspect.signature(kind.holds).parameters if p != "answer"]
        assert kind.holds(answer, **{p: args[p] for p in needed}) in (True, False)
