"""Search by words, by meaning and by both on real relevance: SciFact (claims to abstracts) and PubMedQA (questions to contexts), one relevant text or more a query. Needs RUBRICLAB_DATA_DIR.

    python benchmarks/retrieval.py

Bars: our BM25 ranks as bm25s alone does; hybrid nDCG@10 at most .01 below the better of its two parts.
"""
import gzip, json, tempfile
from pathlib import Path
import bm25s
import numpy as np
from rubriclab.core import stats
from rubriclab.core.settings import settings
from rubriclab.core.types import Item
from rubriclab.engines.encoder import encoder
from rubriclab.retrieval.index import build_index

FILES = {"SciFact": "scifact_claims/scifact_test.jsonl", "PubMedQA": "pubmedqa_contexts/pubmed_test.jsonl.gz"}


def read(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as f: rows = [json.loads(line) for line in f]
    texts, queries = {}, []
    for r in rows:
        contexts = r["gold_ctx"] if isinstance(r["gold_ctx"], list) else [r["gold_ctx"]]
        found = [c if isinstance(c, str) else f"{c.get('title') or ''}\n{c['text']}".strip() for c in contexts]
        queries.append((r["input"], {texts.setdefault(t, f"d{len(texts)}") for t in found}))
    return texts, queries


def ndcg(ranked, relevant, k=10):
    gain = sum(1 / np.log2(n + 2) for n, d in enumerate(ranked[:k]) if d in relevant)
    return gain / sum(1 / np.log2(n + 2) for n in range(min(k, len(relevant))))


def same_as_bm25s(texts, queries, index):
    "Whether the scores of the ten best are those of the library alone, and so are the texts where no two scores are equal."
    ids = list(texts.values())
    alone = bm25s.BM25()
    alone.index(bm25s.tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False)
    ranks = scores = 0
    for q, _ in queries:
        docs, s = alone.retrieve(bm25s.tokenize([q], stopwords="en", show_progress=False), k=10, show_progress=False)
        theirs = [(ids[d], float(x)) for d, x in zip(docs[0], s[0]) if x > 0]
        places, mine = index.by_words(q, 10)
        scores += np.allclose([x for _, x in theirs], mine, atol=1e-4) if len(theirs) == len(mine) else 0
        clear = {round(x, 4) for _, x in theirs if sum(abs(x - y) < 1e-4 for _, y in theirs) == 1}
        ranks += all(ids[p] == d for p, m, (d, x) in zip(places, mine, theirs) if round(x, 4) in clear)
    return scores / len(queries), ranks / len(queries)


def main():
    data, e = Path(settings().data_dir), encoder("minilm")
    for name, file in FILES.items():
        texts, queries = read(data / file)
        with tempfile.TemporaryDirectory() as d:
            index = build_index((Item(id=i, prompt=t) for t, i in texts.items()), Path(d) / "i", e, progress=False)
            scores, ranks = same_as_bm25s(texts, queries, index)
            print(f"{name}: {len(queries)} queries, {len(texts)} texts; BM25 with the scores of bm25s alone in {scores:.1%} of queries, its order in {ranks:.1%}", flush=True)
            gains = {}
            for method in ("bm25", "dense", "hybrid"):
                hits = index.search([q for q, _ in queries], 10, method)
                ranked = [[h.item.id for h in hs] for hs in hits]
                gains[method] = [ndcg(r, rel) for r, (_, rel) in zip(ranked, queries)]
                n, r = stats.cluster_bootstrap(gains[method]), stats.cluster_bootstrap([len(set(x) & rel) / len(rel) for x, (_, rel) in zip(ranked, queries)])
                print(f"  {method:<7} nDCG@10 {n.estimate:.3f} [{n.low:.3f}, {n.high:.3f}], recall@10 {r.estimate:.3f} [{r.low:.3f}, {r.high:.3f}]", flush=True)
            better = max(("bm25", "dense"), key=lambda m: np.mean(gains[m]))
            c = stats.compare(gains[better], gains["hybrid"])
            print(f"  hybrid minus {better}: {c.gap.estimate:+.3f} [{c.gap.low:+.3f}, {c.gap.high:+.3f}] (bar -.010)", flush=True)


if __name__ == "__main__": main()
