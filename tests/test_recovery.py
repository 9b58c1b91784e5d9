"""Recovery: planted orderings are found, and nothing is found where nothing is planted. Seeds 0 to 99 here; `python tests/test_recovery.py 1000` runs all."""
import sys
from concurrent.futures import ProcessPoolExecutor
from rubriclab.lab.openrubrics import CHAIN, planted_rows
from rubriclab.lab.report import by_arm, compare_arms

PROMPTS = 400 # the power formula promises .97 at alpha = .0125 from some 300 on: benchmarks/recovery.py


def claimed(job):
    "Which orderings of the chain one world claims."
    seed, competence = job
    rows = planted_rows(PROMPTS, seed, competence)
    return [o["claimed"] for o in compare_arms(by_arm(rows, "planted"), CHAIN, seed)]


def worlds(n, competence):
    with ProcessPoolExecutor(2) as pool: return list(pool.map(claimed, [(s, competence) for s in range(n)], chunksize=5))


def test_each_planted_ordering_is_found():
    found = worlds(100, 0.97)
    counts = {f"{w} < {b}": sum(f[i] for f in found) for i, (w, b) in enumerate(CHAIN)}
    print("found in 100 worlds:", counts)
    assert all(c >= 90 for c in counts.values()), counts


def test_nothing_is_found_in_noise():
    count = sum(any(f) for f in worlds(100, 0.5))
    print("worlds of 100 in which anything was claimed of a judge that cannot read:", count)
    assert count <= 11


if __name__ == "__main__":
    n = int(sys.argv[1])
    found, noise = worlds(n, 0.97), worlds(n, 0.5)
    for i, (w, b) in enumerate(CHAIN): print(f"{w} < {b}: found in {sum(f[i] for f in found) / n:.3f} of {n} worlds")
    print(f"competence 0.5: any ordering claimed in {sum(map(any, noise)) / n:.3f} of {n} worlds")
