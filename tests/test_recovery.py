"""Recovery: planted orderings are found, and nothing is found where nothing is planted. Few worlds here; `python tests/test_recovery.py 1000` runs all."""
import sys
from rubriclab.lab.openrubrics import CHAIN, planted_rows
from rubriclab.lab.report import by_arm, compare_arms
from worlds import FEW, each, usual

PROMPTS = 400 # the power formula promises .97 at alpha = .0125 from some 300 on: benchmarks/recovery.py


def claimed(job):
    "Which orderings of the chain one world claims."
    seed, competence = job
    rows = planted_rows(PROMPTS, seed, competence)
    return [o["claimed"] for o in compare_arms(by_arm(rows, "planted"), CHAIN, seed)]


def worlds(n, competence):
    return each(claimed, [(s, competence) for s in range(n)])


def test_each_planted_ordering_is_found():
    found = worlds(FEW, 0.97)
    counts = {f"{w} < {b}": sum(f[i] for f in found) for i, (w, b) in enumerate(CHAIN)}
    print(f"found in {FEW} worlds:", counts)
    assert all(c >= usual(FEW, 0.97)[0] for c in counts.values()), counts


def test_nothing_is_found_in_noise():
    count = sum(any(f) for f in worlds(FEW, 0.5))
    print(f"worlds of {FEW} in which anything was claimed of a judge that cannot read:", count)
    assert count <= usual(FEW, 0.05)[1]


if __name__ == "__main__":
    n = int(sys.argv[1])
    found, noise = worlds(n, 0.97), worlds(n, 0.5)
    for i, (w, b) in enumerate(CHAIN): print(f"{w} < {b}: found in {sum(f[i] for f in found) / n:.3f} of {n} worlds")
    print(f"competence 0.5: any ordering claimed in {sum(map(any, noise)) / n:.3f} of {n} worlds")
