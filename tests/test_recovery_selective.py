"""The selective rule on planted judges: intervals cover the closed form, and the curves cross where it says. Seeds 0 to 99 here.

    python tests/test_recovery_selective.py 1000
"""
import sys
from rubriclab.judges.verifier import closed_form, needed_accuracy
from rubriclab.lab.c2 import SHARES, crossings, planted_known, planted_mix
from worlds import each

ACCURACIES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0) # of the verifier, by seed in turn


def world_of(seed):
    v = ACCURACIES[seed % len(ACCURACIES)]
    return v, planted_mix(seed, v)


def coverage(runs):
    "By share and policy, the share of worlds whose interval holds the closed form."
    held = {}
    for v, rows in runs:
        k = planted_known(v)
        for r in rows: held.setdefault((r["share"], r["policy"]), []).append(r["low"] <= closed_form(r["share"], v, k["helpful"], k["none"], k["misleading"])[r["policy"]] <= r["high"])
    return {key: sum(x) / len(x) for key, x in held.items()}


def check(n, least, most, near):
    runs = each(world_of, range(n))
    found, met, k = coverage(runs), crossings(runs), planted_known(1.0)
    for g in SHARES:
        closed = needed_accuracy(g, k["helpful"], k["none"], k["misleading"])
        print(f"{n} worlds, {g:.0%} helpful: closed form covered " + ", ".join(f"{p} {found[g, p]:.3f}" for p in ("always", "never", "selective")) + f"; needed accuracy {closed:.3f}, crossing measured at {met[g]:.3f}", flush=True)
    assert all(least <= x <= most for x in found.values()), found
    assert all(abs(met[g] - needed_accuracy(g, k["helpful"], k["none"], k["misleading"])) < near for g in SHARES), met


def test_the_closed_form_is_what_happens(): check(100, 0.88, 0.99, near=0.06)


if __name__ == "__main__": check(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, 0.93, 0.97, near=0.02)
