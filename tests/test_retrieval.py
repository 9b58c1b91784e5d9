"""The index: neighbors as brute force finds them, filters, one step from old to new, and errors that say what to do."""
import signal, subprocess, sys, textwrap, zlib
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from rubriclab.core.types import Item, Rubric
from rubriclab.retrieval.index import Index, build_index

pytest.importorskip("bm25s", reason="needs the retrieval extra: pip install 'rubriclab[rag]'")
WORDS = "tide moon harbor letter window garden engine winter copper valley signal paper river candle market bridge meadow thunder violet anchor".split()


class Vectors:
    "Texts to vectors by a table; what is not in it is drawn from the text."
    name, dim = "table", 24
    def __init__(self, fingerprint="table-1"): self.fingerprint = fingerprint
    def encode(self, texts):
        x = np.stack([np.random.default_rng(zlib.crc32(t.encode("utf-8", "surrogatepass"))).normal(size=self.dim) for t in texts]).astype(np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)


def records(n, seed=0):
    rng = np.random.default_rng(seed)
    return [Item(id=f"r{i}", prompt=" ".join(rng.choice(WORDS, 6)) + f" {i}", rubric=Rubric.parse([f"Does thing {i}."]), meta={"domain": "ab"[i % 2]}) for i in range(n)]


def test_words_rank_as_bm25s_alone_does(tmp_path):
    import bm25s
    items = records(300)
    index = build_index(items, tmp_path / "i")
    model = bm25s.BM25()
    model.index(bm25s.tokenize([i.prompt for i in items], stopwords="en", show_progress=False), show_progress=False)
    for q in ("winter garden moon", "copper valley bridge thunder", "nothing shared at all"):
        tokens = [t for t in bm25s.tokenize([q], stopwords="en", show_progress=False, return_ids=False)[0] if t in model.vocab_dict]
        scores = model.get_scores(tokens) if tokens else np.zeros(300)
        hits = index.search([q], k=10)[0]
        assert [h.score for h in hits] == pytest.approx(sorted(scores[scores > 0], reverse=True)[:10]) and all(scores[h.place] == pytest.approx(h.score) for h in hits)


@pytest.mark.parametrize("exact_below", [10_000, 100]) # exact, approximate
def test_vectors_are_those_that_brute_force_finds(tmp_path, exact_below):
    items, e = records(800), Vectors()
    index = build_index(items, tmp_path / "i", e, exact_below=exact_below)
    assert index.manifest["approximate"] == (exact_below == 100)
    x, q = e.encode([i.prompt for i in items]), e.encode(["moon", "paper engine", "x"])
    want = np.argsort(-(q @ x.T), axis=1)[:, :10]
    places, sims = index.nearest(q, 10)
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(places, want)]) >= (1.0 if exact_below == 10_000 else 0.95)
    assert sims == pytest.approx(np.take_along_axis(q @ x.T, places, 1), abs=5e-3)


def test_hybrid_is_the_fusion_of_both_ranks(tmp_path):
    items, e = records(200), Vectors()
    index = build_index(items, tmp_path / "i", e)
    h = index.search(["winter garden"], k=5)[0]
    assert all(x.score == pytest.approx(sum(1 / (60 + r) for r in (x.bm25_rank, x.dense_rank) if r)) for x in h) and [x.score for x in h] == sorted((x.score for x in h), reverse=True)


def test_filters_leave_one_out_near_and_diversity(tmp_path):
    items, e = records(120), Vectors()
    index = build_index(items, tmp_path / "i", e)
    q = items[7].prompt
    assert index.search([q], k=1, method="bm25")[0][0].item == items[7] # with rubric and meta, as it was given
    for method in ("bm25", "dense", "hybrid"):
        assert "r7" not in [h.item.id for h in index.search([q], 20, method, without=["r7"])[0]] and "r7" not in [h.item.id for h in index.search([q], 20, method, near=0.95)[0]]
        assert {h.item.meta["domain"] for h in index.search([q], 20, method, where=lambda i: i.meta["domain"] == "b")[0]} == {"b"}
    only = index.search([q], 3, "dense", where=lambda i: i.id in ("r3", "r99"))[0]
    assert {h.item.id for h in only} == {"r3", "r99"} # however deep they lie
    plain, wide = (index.search([q], 5, "dense", diversity=d)[0] for d in (0.0, 0.9))
    spread = lambda hs: np.mean([float(index.vector(a.place) @ index.vector(b.place)) for a in hs for b in hs if a is not b])
    assert plain[0] == wide[0] and spread(wide) < spread(plain)
    turned = index.search([q], 3, rerank=lambda query, texts: [-len(t) for t in texts], pool=10)[0]
    assert [len(h.item.prompt) for h in turned] == sorted(len(h.item.prompt) for h in turned)


def test_another_encoder_is_refused_and_errors_name_the_fix(tmp_path):
    build_index(records(5), tmp_path / "i", Vectors())
    with pytest.raises(ValueError, match="was made with encoder table .*; use the same, or build the index again"): Index(tmp_path / "i", Vectors("table-2"))
    with pytest.raises(ValueError, match="needs vectors and their encoder"): Index(tmp_path / "i").search(["x"], method="dense")
    with pytest.raises(FileNotFoundError, match="rubriclab index build"): Index(tmp_path / "none")
    with pytest.raises(ValueError, match="record 6 has the id of record 1"): build_index([*records(5), records(1)[0]], tmp_path / "j")
    assert not list((tmp_path / "j").glob("v-*"))


def test_records_are_added_and_removed(tmp_path):
    items, e = records(150), Vectors()
    for below in (10_000, 50):
        index = build_index(items[:100], tmp_path / f"i{below}", e, exact_below=below).change(add=items[100:], remove=["r3"])
        assert len(index) == 149 and index.place_of("r3") is None and index.search([items[120].prompt], 1)[0][0].item.id == "r120" and index.search([items[3].prompt], 1, "bm25")[0][0].item.id != "r3"
        assert len(list((tmp_path / f"i{below}").glob("v-*"))) == 1
    with pytest.raises(KeyError, match="no record 'r3'"): index.change(remove=["r3"])


def test_a_killed_build_leaves_the_old_index(tmp_path):
    build_index(records(50), tmp_path / "i")
    slow = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_retrieval import records
        from rubriclab.retrieval.index import build_index
        def stream():
            for n, r in enumerate(records(100_000, seed=1)):
                if n == 5000: print("half", flush=True); time.sleep(60)
                yield r
        build_index(stream(), {str(tmp_path / 'i')!r})
    """)
    p = subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "half\n"
    p.send_signal(signal.SIGKILL); p.wait()
    index = Index(tmp_path / "i")
    assert len(index) == 50 and index.search([records(50)[9].prompt], 1)[0][0].item.id == "r9"
    build_index(records(60), tmp_path / "i")
    assert len(Index(tmp_path / "i")) == 60 and len(list((tmp_path / "i").glob("v-*"))) == 1 # what the dead left is cleared


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=12, unique=True))
def test_any_text_can_be_indexed_and_searched(tmp_path_factory, texts):
    index = build_index([Item(id=str(i), prompt=t) for i, t in enumerate(texts)], tmp_path_factory.mktemp("ix") / "i", Vectors())
    for hits in index.search(texts, k=3): assert len(hits) == min(3, len(texts)) and all(h.item.prompt in texts for h in hits)
