"""RubricRAG on planted worlds: retrieved > random > zero-shot is found, and that similarity and use part is found where it is planted and only there. Fifteen worlds here.

    python tests/test_recovery_rubricrag.py 1000

Prompts by the power rule, from one large world (seed 10,000, 3,000 prompts; power .97 at alpha .025): F1 of random over zero-shot .092 (sd .282) needs 160, of retrieved over random .101 (sd .233) 91; agreement of zero-shot over
retrieved, flipped, .059 (sd .251) needs 310. That is for the mean world; the gap of the last differs from world to world (360 prompts found it in 948 of 1,000), so it gets half as many prompts again.
"""
import sys, tempfile
import pytest
from rubriclab.lab.rubricrag import Arm, partings, planted_arms, planted_rag, rag_orderings, study_rag
from worlds import each, usual

ORDER, PARTING = 200, 540 # prompts
CHAIN = (("zero-shot", "random"), ("random", "retrieved"))


def rows_of(seed, prompts, arms, flipped=0.0):
    with tempfile.TemporaryDirectory() as d:
        items, bench = planted_rag(seed, prompts, d, flipped)
        return study_rag("planted", items, arms, bench)


def world_of(seed):
    zero, random, retrieved, _ = planted_arms()
    twin = Arm("twin", "random", random.how.replace(seed=1)) # other exemplars, drawn in the same way: no better and no worse
    ordered = rows_of(seed, ORDER, [zero, random, retrieved, twin])
    found = {f"{o['worse']} < {o['better']}": o["claimed"] for o in rag_orderings(ordered, CHAIN, ("f1",), seed)}
    found["twins"] = any(o["claimed"] for o in rag_orderings(ordered, (("random", "twin"), ("twin", "random")), ("f1",), seed))
    for name, flipped in (("parts where planted", 0.5), ("parts where not", 0.0)):
        p, = partings(rows_of(seed, PARTING, [zero, retrieved], flipped), (("zero-shot", "retrieved"),), "agreement", seed)
        found[name] = p["claimed"] and p["more like"] == "retrieved"
    return found


def check(n, least, most):
    worlds = each(world_of, range(n))
    count = {k: sum(w[k] for w in worlds) for k in worlds[0]}
    print(f"{n} worlds: " + ", ".join(f"{k} {v}" for k, v in count.items()), flush=True)
    assert all(count[k] >= least for k in ("zero-shot < random", "random < retrieved", "parts where planted")), count
    assert all(count[k] <= most for k in ("twins", "parts where not")), count


def test_retrieval_is_found_to_help_and_partings_only_where_they_are():
    pytest.importorskip("bm25s", reason="needs the retrieval extra: pip install 'rubriclab[rag]'")
    check(15, usual(15, 0.95)[0], usual(15, 0.05)[1])


if __name__ == "__main__": check(n := int(sys.argv[1]) if len(sys.argv) > 1 else 1000, 0.95 * n, 0.065 * n)
