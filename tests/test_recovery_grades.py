"""Recovery of grading: intervals cover the planted accuracy, and scores follow the planted ones. Seeds 0 to 99 here; `python tests/test_recovery_grades.py 1000` runs all."""
import sys
import numpy as np
import pytest
from rubriclab.core.types import Label, Rubric
from rubriclab.engines.engine import Engine
from rubriclab.engines.fake import FakeBackend, Skills, World
from rubriclab.judges.pointwise import Grading, grade, score_labels
from rubriclab.lab.grades import grade_rows, accuracy_of
from worlds import each

PROMPTS = 300
COMPETENCES = (0.9, 0.7, 0.5)


def flipped(rubric):
    "The same rubric with the sign of its first criterion changed."
    first, *rest = rubric.criteria
    return Rubric(criteria=(first.replace(weight=-first.weight), *rest))


def true_score(item):
    labels = [Label(criterion=k, label="yes" if met else "no", value=float(met)) for k, met in enumerate(item.gold_labels)]
    return score_labels(item, labels, Grading())["score"]


def slope(x, y):
    "Slope of y on x by least squares, and its standard error with unequal variances allowed (White 1980)."
    x, y = np.array(x) - np.mean(x), np.array(y) - np.mean(y)
    b = (x @ y) / (x @ x)
    return b, np.sqrt(((x * (y - b * x)) ** 2).sum()) / (x @ x)


def world_of(job):
    "Whether one world's interval covers the accuracy, whether the slope's covers 2p - 1, and the slope."
    seed, p, flip = job
    world = World(seed=seed)
    items = world.items(PROMPTS)
    graded = grade([i.replace(rubric=flipped(i.rubric)) for i in items] if flip else items, Engine(FakeBackend(world, Skills(p=p)), progress=False))
    ci = accuracy_of(grade_rows(items, graded), seed=seed)
    b, se = slope([true_score(i) for i in items], [g.score for g in graded])
    return ci.low <= p <= ci.high, abs(b - (2 * p - 1)) <= 1.96 * se, b


def worlds(n, p, flip=False):
    return each(world_of, [(s, p, flip) for s in range(n)])


@pytest.mark.parametrize("p", COMPETENCES)
def test_intervals_cover_and_scores_follow(p):
    found = worlds(100, p)
    covered, slopes = sum(f[0] for f in found), sum(f[1] for f in found)
    print(f"competence {p}: accuracy covered in {covered} of 100 worlds, slope 2p - 1 in {slopes}, mean slope {np.mean([f[2] for f in found]):.3f}")
    assert 88 <= covered <= 99 and 88 <= slopes <= 99 and min(i.weight for i in World(seed=0).items(9)[0].rubric.criteria) < 0


def test_a_flipped_sign_is_noticed():
    found = worlds(10, 0.9, flip=True)
    assert sum(f[1] for f in found) == 0, [f[2] for f in found]


if __name__ == "__main__":
    n = int(sys.argv[1])
    for p in COMPETENCES:
        found = worlds(n, p)
        print(f"competence {p}: accuracy covered in {sum(f[0] for f in found) / n:.3f} of {n} worlds of {PROMPTS} prompts, slope in {sum(f[1] for f in found) / n:.3f}, "
              f"mean slope {np.mean([f[2] for f in found]):.4f} (2p - 1 = {2 * p - 1:.1f})", flush=True)
    found = worlds(min(n, 100), 0.9, flip=True)
    print(f"one sign flipped: slope 0.8 covered in {sum(f[1] for f in found)} of {len(found)} worlds, mean slope {np.mean([f[2] for f in found]):.3f}")
