"""What the recovery tests share: worlds judged on two cores, and how often something may happen in a correct program."""
from concurrent.futures import ProcessPoolExecutor
from scipy.stats import binom

FEW = 24 # worlds in a test; the files run as programs take as many as they are told


def each(f, jobs):
    "The results of `f`, in order."
    with ProcessPoolExecutor(2) as pool: return list(pool.map(f, jobs, chunksize=2))


def usual(n, p):
    "The least and the most of `n` that a correct program shows, where each happens with probability `p`: it shows fewer, or more, five times in a thousand each."
    return int(binom.ppf(0.005, n, p)), int(binom.ppf(0.995, n, p))
