"""An index of a million records: memory while it is built, time to open and to search, recall against exact search, and what a killed build leaves.

    python benchmarks/index.py             1,000,000 records, 100,000 of them with texts composed from real rubrics where RUBRICLAB_DATA_DIR has them
    python benchmarks/index.py --quick     30,000 records, 10,000 with texts

Bars: at most 2.5 GB resident in the process that builds; opened in half a second; search by vector p50 at most 10 ms; recall@10 at least .95; a killed build leaves the old index as it was.
Vectors lie in 2,000 clusters of 384 dimensions; queries are new points of the same clusters. Encoding a query is timed apart, with the bundled encoder.
"""
import json, random, resource, shutil, signal, statistics, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
from rubriclab.core.settings import shipped
from rubriclab.core.types import Criterion, Item, Rubric
from rubriclab.data.rubric_records import rubric_records
from rubriclab.retrieval.index import Index, build_index

DIM, CLUSTERS, BLOCK = 384, 2_000, 10_000


class Given:
    "Names the vectors; nothing is encoded here."
    name, fingerprint, dim = "given", "given-384", DIM
    def encode(self, texts): raise ValueError("vectors are given")


def centers(): return np.random.default_rng(0).standard_normal((CLUSTERS, DIM)).astype(np.float32)


def block_of(seed, n, middle):
    rng = np.random.default_rng(seed)
    x = middle[rng.integers(0, CLUSTERS, n)] + rng.standard_normal((n, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def vectors(n):
    middle = centers()
    for b in range(0, n, BLOCK): yield from block_of(1 + b // BLOCK, min(BLOCK, n - b), middle)


def sources():
    "Real prompts and criteria, the written set where there are no others."
    found = []
    for name in ("healthbench", "researchqa", "scholarqa_cs", "biggen_bench"):
        try: found += rubric_records(name)
        except FileNotFoundError: pass
    return found or list(rubric_records(str(shipped("data/clusters") / "records.jsonl")))


def records(n, with_text):
    known, rng = sources(), random.Random(0)
    words = [i.prompt.split()[:60] for i in known if isinstance(i.prompt, str)]
    criteria = [c for i in known for c in i.rubric.criteria]
    plain = Rubric(criteria=(Criterion(text="Answers the request."),))
    for i in range(n):
        if i % (n // with_text): yield Item(id=f"r{i}", prompt=f"matter {i % 5000}", rubric=plain)
        else: yield Item(id=f"r{i}", prompt=" ".join(rng.choice(words)[:30] + rng.choice(words)[-30:]), rubric=Rubric(criteria=tuple(rng.sample(criteria, 6))))


def build(folder, n, with_text):
    "In a process of its own, so that its memory is its own."
    start = time.perf_counter()
    build_index(records(n, with_text), folder, Given(), vectors(n), progress=False)
    print(json.dumps({"seconds": time.perf_counter() - start, "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}), flush=True)


def child(folder, n, with_text): return [sys.executable, __file__, "--build", str(folder), str(n), str(with_text)]


def exact(queries, n, k):
    "The true neighbors, block by block."
    best = [(np.full(k, -2.0), np.zeros(k, int))] * len(queries)
    middle = centers()
    for b in range(0, n, BLOCK):
        sims = queries @ block_of(1 + b // BLOCK, min(BLOCK, n - b), middle).T
        for q in range(len(queries)):
            top = np.argpartition(-sims[q], k)[:k]
            s, p = np.concatenate([best[q][0], sims[q][top]]), np.concatenate([best[q][1], top + b])
            order = np.argsort(-s)[:k]
            best[q] = s[order], p[order]
    return [set(map(int, p)) for _, p in best]


def killed(folder, n, with_text, index):
    "Kill a second build into the same folder."
    before = index.manifest
    p = subprocess.Popen(child(folder, n, with_text), stdout=subprocess.DEVNULL)
    time.sleep(15)
    p.send_signal(signal.SIGKILL); p.wait()
    again = Index(folder, Given())
    query = block_of(999_999, 1, centers())
    return again.manifest == before and (again.nearest(query, 10)[0] == index.nearest(query, 10)[0]).all()


def main(n, with_text, queries=300):
    folder = Path(tempfile.mkdtemp())
    try:
        done = json.loads(subprocess.run(child(folder / "i", n, with_text), check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(f"{n:,} records, {with_text:,} with texts: built in {done['seconds'] / 60:.1f} min, at most {done['gb']:.2f} GB resident (bar 2.5), {sum(f.stat().st_size for f in (folder / 'i').rglob('*') if f.is_file()) / 1e9:.2f} GB on disk", flush=True)
        opened = []
        for _ in range(3):
            start = time.perf_counter(); index = Index(folder / "i", Given()); index.nearest(block_of(7_777_777, 1, centers()), 10); opened.append(time.perf_counter() - start)
        q = block_of(8_888_888, queries, centers())
        took, found = [], []
        for v in q:
            start = time.perf_counter(); places, _ = index.nearest(v[None], 10); took.append(time.perf_counter() - start); found.append(set(map(int, places[0])))
        start = time.perf_counter(); index.by_words("matter of a fever in a child", 10); first = time.perf_counter() - start
        lexical = []
        for w in ("research on language models", "treat a burn", "matter 77"): start = time.perf_counter(); index.by_words(w, 10); lexical.append(time.perf_counter() - start)
        recall = [len(a & b) / 10 for a, b in zip(found, exact(q, n, 10))]
        print(f"opened with a first search in {statistics.median(opened):.3f} s, the first time {opened[0]:.3f} s (bar 0.5); by vector p50 {1e3 * statistics.median(took):.2f} ms, p99 {1e3 * float(np.quantile(took, 0.99)):.2f} ms (bar 10); "
              f"recall@10 {np.mean(recall):.3f} of {queries} queries (bar .95); by words {1e3 * statistics.median(lexical):.0f} ms, the first time {1e3 * first:.0f} ms", flush=True)
        print(f"killed while building: the old index {'answers as before' if killed(folder / 'i', n, with_text, index) else 'IS DAMAGED'}", flush=True)
        from rubriclab.engines.encoder import encoder
        e = encoder("minilm"); e.encode(["warm"])
        times = []
        for i in range(20): start = time.perf_counter(); e.encode([f"How do I treat burn number {i}?"]); times.append(time.perf_counter() - start)
        print(f"encoding one query, apart: p50 {1e3 * statistics.median(times):.0f} ms", flush=True)
    finally: shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if "--build" in sys.argv: build(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else: main(*((30_000, 10_000) if "--quick" in sys.argv else (1_000_000, 100_000)))
