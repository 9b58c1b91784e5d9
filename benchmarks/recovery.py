"""The planted gaps of the recovery bar and what the power formula promises for them.

    python benchmarks/recovery.py [worlds]      (default 40; seeds from 10000, which no test uses)

Prints, for each ordering of the chain, the mean gap, the standard deviation of the per-prompt differences, and the number of prompts at which
n = ((z_{alpha/2} + z_beta) * sd / gap)^2 promises power .97 at alpha = .0125.
"""
import sys
from concurrent.futures import ProcessPoolExecutor
from rubriclab.core.stats import power, sample_size
from rubriclab.lab.openrubrics import CHAIN, planted_rows
from rubriclab.lab.report import by_arm, compare_arms

PROMPTS = 400


def one(seed): return [(o["gap"], o["sd"]) for o in compare_arms(by_arm(planted_rows(PROMPTS, seed), "planted"), CHAIN, seed)]


if __name__ == "__main__":
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with ProcessPoolExecutor(2) as pool: found = list(pool.map(one, range(10000, 10000 + n)))
    print(f"{n} worlds of {PROMPTS} prompts\nordering                                    gap     sd   prompts for .97   power at {PROMPTS}")
    for i, (worse, better) in enumerate(CHAIN):
        gap, sd = sum(f[i][0] for f in found) / n, sum(f[i][1] for f in found) / n
        print(f"{worse + ' < ' + better:<40} {gap:+.3f}  {sd:.3f}  {sample_size(gap, sd, power=0.97, alpha=0.0125):>10}  {power(PROMPTS, gap, sd, alpha=0.0125):>16.3f}")
