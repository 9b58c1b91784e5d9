"Statistics: properties, checks against scipy, scikit-learn and statsmodels, and calibration on worlds with a known answer."
import math, subprocess, sys, time, warnings
from statistics import NormalDist
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from rubriclab.core import stats
from rubriclab.core.stats import (Comparison, Interval, accuracy, auroc, brier, calibration_curve, cluster_bootstrap, clustered, compare, consistency,
                                  counted, detectable_gap, ece, holm, kappa, kendall, macro_f1, mcnemar, order_gap, orderings, paired_permutation, pearson,
                                  power, sample_size, spearman)

verdict = st.sampled_from([True, False, 0.5, None])
paired = st.lists(st.tuples(verdict, verdict, st.integers(0, 5)), min_size=1, max_size=40)
few = settings(max_examples=60, deadline=None)


def no_nan(value: object) -> None:
    "Strict JSON holds neither NaN nor infinity."
    text = value.model_dump_json()
    assert "NaN" not in text and "Infinity" not in text


# ---- measures

@given(st.lists(verdict, min_size=1))
def test_accuracy_bounds_and_counts(correct):
    wrong, half, skip = (accuracy(correct, way) for way in ("wrong", "half", "skip"))
    assert 0 <= wrong.value <= half.value <= 1 and half.value - wrong.value == pytest.approx(half.failed / len(correct) / 2)
    assert wrong.n == half.n == len(correct) == skip.n + skip.failed and (skip.value is None) == (skip.n == 0)
    assert accuracy(correct[::-1]).value == pytest.approx(wrong.value)
    assert sum(v is None for v in counted(correct, "skip")) == wrong.failed


@few
@given(st.lists(st.tuples(*[st.sampled_from(["A", "B", "tie", None])] * 2), min_size=1))
def test_agreement_is_symmetric_and_bounded(pairs):
    a, b = zip(*pairs)
    both = [(x, y) for x, y in pairs if x and y]
    assert consistency(a, b) == consistency(b, a)
    assert consistency(a, b).n == len(both) and consistency(a, b).failed == len(pairs) - len(both)
    k = kappa(a, b)
    assert k.value == kappa(b, a).value or k.value == pytest.approx(kappa(b, a).value)
    assert k.value is None or -1 <= k.value <= 1
    no_nan(k)


@few
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from("ABC")), min_size=2))
def test_agreement_is_scikit_learns(pairs):
    from sklearn.metrics import cohen_kappa_score, f1_score
    gold, predicted = map(list, zip(*pairs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = cohen_kappa_score(gold, predicted)
    found = kappa(gold, predicted).value
    assert (found is None and math.isnan(expected)) or found == pytest.approx(expected)
    assert macro_f1(gold, predicted).value == pytest.approx(f1_score(gold, predicted, average="macro", zero_division=0))


def test_macro_f1_counts_a_failure_as_a_miss():
    gold, predicted = ["A", "A", "B", "B"], ["A", None, "B", "B"]
    assert macro_f1(gold, predicted).value == pytest.approx((2 / 3 + 1) / 2) and macro_f1(gold, predicted).failed == 1
    assert macro_f1(gold, predicted, "skip").value == 1
    assert macro_f1(["A", "B"], [None, None]).value == 0 and macro_f1(["A"], [None], "skip").value is None


@few
@given(st.lists(st.tuples(*[st.none() | st.integers(-5, 5)] * 2), min_size=1))
def test_spearman(pairs):
    from scipy.stats import spearmanr
    a, b = zip(*pairs)
    r = spearman(a, b)
    assert r.value is None or -1 <= round(r.value, 9) <= 1
    assert r.value == spearman(b, a).value or r.value == pytest.approx(spearman(b, a).value)
    no_nan(r)
    if r.value is not None:
        x, y = zip(*[p for p in pairs if None not in p])
        assert r.value == pytest.approx(spearmanr(x, y).statistic) and spearman(x, [-v for v in y]).value == pytest.approx(-r.value)


@few
@given(st.lists(st.tuples(*[st.none() | st.integers(-5, 5)] * 2), min_size=1))
def test_other_correlations_are_scipys(pairs):
    from scipy.stats import kendalltau, pearsonr
    a, b = zip(*pairs)
    both = [p for p in pairs if None not in p]
    for ours, theirs in ((pearson, pearsonr), (kendall, kendalltau)):
        r = ours(a, b)
        no_nan(r)
        assert (r.n, r.failed) == (len(both), len(pairs) - len(both))
        assert (r.value is None) == any(len(set(x)) < 2 for x in (zip(*both) if both else [()]))
        if r.value is not None: assert r.value == pytest.approx(theirs(*zip(*both)).statistic)


def test_kappa_within_scales_is_the_pooled_one():
    "Chance agreement is that of each scale, weighted by its items; pooled labels of two scales make kappa look larger."
    rng = np.random.default_rng(0)
    gold = [*rng.choice(["no", "yes"], 300), *rng.choice(["hard", "easy"], 100)]
    said = [g if u < 0.7 else {"no": "yes", "yes": "no", "hard": "easy", "easy": "hard"}[g] for g, u in zip(gold, rng.random(400))]
    within = ["binary"] * 300 + ["tiers"] * 100
    chance = sum(sum((np.array(gold[s]) == x).mean() * (np.array(said[s]) == x).mean() for x in set(gold[s])) * len(gold[s]) for s in (slice(300), slice(300, 400))) / 400
    observed = np.mean([g == s for g, s in zip(gold, said)])
    assert kappa(gold, said, within).value == pytest.approx((observed - chance) / (1 - chance))
    assert kappa(gold, said, within).value < kappa(gold, said).value - 0.1
    assert kappa(gold, said, ["one"] * 400).value == pytest.approx(kappa(gold, said).value)


probability = st.integers(0, 20).map(lambda n: n / 20)

@few
@given(st.lists(st.tuples(st.none() | probability, st.none() | st.booleans()), min_size=1, max_size=60))
def test_probabilities_are_scikit_learns(pairs):
    from sklearn.metrics import brier_score_loss, roc_auc_score
    probs, met = zip(*pairs)
    both = [(p, m) for p, m in pairs if p is not None and m is not None]
    for measure in (auroc, brier, ece):
        found = measure(probs, met)
        no_nan(found)
        assert (found.n, found.failed) == (len(both), len(pairs) - len(both))
    p, m = map(list, zip(*both)) if both else ([], [])
    if len(set(m)) == 2:
        assert auroc(probs, met).value == pytest.approx(roc_auc_score(m, p)) and brier(probs, met).value == pytest.approx(brier_score_loss(m, p))
        assert auroc([None if x is None else -x for x in probs], met).value == pytest.approx(1 - auroc(probs, met).value)
    else: assert auroc(probs, met).value is None


@few
@given(st.lists(st.tuples(probability, st.booleans()), min_size=1, max_size=80), st.sampled_from(["mass", "width"]), st.integers(1, 12))
def test_bins_hold_every_item_once(pairs, how, bins):
    from statsmodels.stats.proportion import proportion_confint
    p, met = map(np.array, zip(*pairs))
    curve = calibration_curve(p, met, bins, how)
    assert sum(b.n for b in curve) == len(p) and len(curve) <= bins
    assert all(a.largest < b.smallest for a, b in zip(curve, curve[1:])) and all(b.low - 1e-9 <= b.met <= b.high + 1e-9 for b in curve)
    for b in curve:
        inside = (p >= b.smallest) & (p <= b.largest)
        assert (inside.sum(), b.p, b.met) == (b.n, pytest.approx(p[inside].mean()), pytest.approx(met[inside].mean()))
        assert (b.low, b.high) == pytest.approx(proportion_confint(met[inside].sum(), b.n, method="wilson"), abs=1e-9)
        if how == "width": assert int(b.smallest * bins) == min(int(b.largest * bins), bins - 1) or b.largest == 1
    assert ece(p, met, bins, how).value == pytest.approx(sum(b.n * abs(b.p - b.met) for b in curve) / len(p))


def test_bins_of_equal_mass_are_about_equal():
    p = np.random.default_rng(0).beta(0.3, 0.3, 1000)
    assert {b.n for b in calibration_curve(p, p > 0.5)} == {100}


# ---- intervals

@few
@given(paired, st.randoms())
def test_bootstrap_bounds_and_order_of_items(rows, random):
    values, _, clusters = zip(*rows)
    found = cluster_bootstrap(values, clusters, n=100)
    no_nan(found)
    present = [v for v in values if v is not None]
    assert found.n == len(present) and found.failed == len(values) - len(present)
    assert found.clusters == len({c for v, c in zip(values, clusters) if v is not None})
    least, most = (0, 1) if present and min(present) >= 0 and max(present) <= 1 else (min(present, default=0), max(present, default=0))
    if found.low is not None: assert least - 1e-9 <= found.low <= found.estimate + 1e-9 and found.estimate - 1e-9 <= found.high <= most + 1e-9
    assert (found.low is None) == (found.clusters < 2)
    random.shuffle(rows)
    again = cluster_bootstrap([r[0] for r in rows], [r[2] for r in rows], n=100)
    assert [again.low, again.high, again.estimate] == pytest.approx([found.low, found.high, found.estimate])


@pytest.mark.parametrize("prompts", [2, 10, 300])
def test_a_perfect_score_is_not_a_point(prompts):
    from scipy.stats import binomtest
    two_each = list(range(prompts)) * 2
    right, wrong = (cluster_bootstrap([x] * 2 * prompts, two_each) for x in (True, False))
    assert (right.low, right.high) == pytest.approx(tuple(binomtest(prompts, prompts).proportion_ci(method="exact")))
    assert (wrong.low, wrong.high) == pytest.approx((1 - right.high, 1 - right.low))
    gap, none = (compare([0.0] * 2 * prompts, [x] * 2 * prompts, two_each) for x in (1.0, 0.0))
    assert gap.gap.low == pytest.approx(2 * right.low - 1) and gap.gap.high == 1 # the others could have been worse, not only as bad
    assert (none.gap.low, none.gap.high) == pytest.approx((right.low - 1, 1 - right.low)) and none.detectable is None
    assert not orderings([("a", "b")], {"a": [1] * prompts, "b": [1] * prompts})[0].claimed


@pytest.mark.parametrize("measure, best, worst", [("consistency", 1, 0), ("kappa", 1, -1), ("macro_f1", 1, 0), ("spearman", 1, -1), ("pearson", 1, -1), ("kendall", 1, -1), ("ece", 0, 1)])
def test_a_perfect_measure_is_not_a_point(measure, best, worst):
    a, prompts = [0, 1] * 20, [i // 2 for i in range(40)] # each label in every prompt, and half of all
    found = clustered(getattr(stats, measure), a, a, clusters=prompts, n=50)
    unseen = 0.5 * 0.05 # of 20 prompts that agree
    assert found.estimate == pytest.approx(best)
    assert sorted([found.low, found.high]) == pytest.approx(sorted([best, best + (1 - unseen ** (1 / 20)) * (worst - best)]))


def test_a_rare_label_leaves_more_open():
    from scipy.stats import binomtest
    met, unseen = [True] * 3 + [False] * 37, 1 - 0.025 ** (1 / 40)
    found = {m: clustered(m, met, met, n=200) for m in (kappa, macro_f1)}
    assert found[kappa].low == pytest.approx(1 - unseen / (1 - (3 * 3 + 37 * 37) / 1600)) and found[kappa].high == 1
    assert (found[macro_f1].low, found[macro_f1].high) == pytest.approx(tuple(binomtest(3, 3).proportion_ci(method="exact")))
    one_side = order_gap([1] * 19 + [0], [True] * 19 + [False]) # one order a prompt
    assert one_side.low == pytest.approx(1 - 2 * 0.975)


def test_a_judge_that_only_sees_places_has_no_point_for_an_order_gap():
    found = order_gap([1, 0] * 12, [True, False] * 12, [i // 2 for i in range(24)])
    assert found.estimate == 1 and (found.low, found.high) == (pytest.approx(1 - 2 * (1 - 0.025 ** (1 / 12))), 1)


def test_a_perfect_auroc_leaves_open_what_pairs_of_items_leave_open():
    from scipy.stats import binomtest
    exact = lambda k: pytest.approx(tuple(binomtest(k, k).proportion_ci(method="exact")))
    of = lambda met, clusters=None: (lambda i: (i.low, i.high))(clustered(stats.auroc, [float(m) for m in met], met, clusters=clusters, n=50))
    assert of([True] * 7 + [False] * 90) == exact(7) # no more pairs than the rarer side has items
    assert of([True, False] * 10, [i // 2 for i in range(20)]) == exact(10) # every prompt has both
    low, high = of([True] * 9 + [False] * 9)
    rng, shift = np.random.default_rng(0), 2 ** 0.5 * NormalDist().inv_cdf(low)
    perfect = [rng.normal(shift, 1, 9).min() > rng.normal(0, 1, 9).max() for _ in range(4000)] # in a world of the lower limit
    assert high == 1 and np.mean(perfect) <= 0.025


def test_bootstrap_mean_is_the_statistic_mean():
    rng = np.random.default_rng(3)
    values, clusters = rng.normal(size=90), rng.integers(0, 20, 90)
    fast, slow = cluster_bootstrap(values, clusters, n=400), cluster_bootstrap(values, clusters, np.mean, n=400)
    assert [fast.low, fast.high] == pytest.approx([slow.low, slow.high])


def test_bootstrap_is_scipys_without_clusters():
    from scipy.stats import bootstrap
    x = np.random.default_rng(5).exponential(size=60)
    ours = cluster_bootstrap(x, n=20_000)
    theirs = bootstrap((x,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=0.02)


def test_blocks_change_nothing(monkeypatch):
    x = np.random.default_rng(0).normal(size=50)
    whole = cluster_bootstrap(x), paired_permutation(0 * x, x)
    monkeypatch.setattr(stats, "_BLOCK", 7_000)
    parts = cluster_bootstrap(x), paired_permutation(0 * x, x)
    assert parts[0].low == pytest.approx(whole[0].low, abs=0.03) and parts[1].p == pytest.approx(whole[1].p, abs=0.02)
    assert sum(stats._blocks(1001, 50)) == 1001 and max(stats._blocks(1001, 50)) == 140


def graded(items=120, prompts=25, seed=7):
    "Probabilities, labels and gold labels of items in prompts of unequal size, some of them failed."
    rng = np.random.default_rng(seed)
    clusters, met = rng.integers(0, prompts, items), rng.random(items) < 0.4
    p = np.round(np.clip(0.3 + 0.4 * met + rng.normal(0, 0.25, items) + rng.normal(0, 0.1, prompts)[clusters], 0, 1), 2)
    failed = rng.random(items) < 0.1
    return [None if f else x for f, x in zip(failed, p.tolist())], met.tolist(), clusters.tolist()


@pytest.mark.parametrize("measure", [accuracy, brier, auroc, ece, pearson, spearman, kappa, macro_f1])
def test_short_ways_are_the_long_way(measure):
    "Sums by prompt and weights of items give the interval that drawing the items gives, to the last resample."
    p, met, clusters = graded()
    said = [None if x is None else x > 0.5 for x in p]
    columns = {accuracy: [[None if s is None else s == m for s, m in zip(said, met)]], kappa: [met, said], macro_f1: [met, said]}.get(measure, [p, met])
    kept = [True] * len(met) if measure in (accuracy, macro_f1) else [x is not None for x in p]
    rows = [[c[i] for c in columns] for i in range(len(met)) if kept[i]]
    options = dict(how="width") if measure is ece else {}  # bins of equal mass are those of the whole sample
    statistic = lambda at: measure(*zip(*[rows[i] for i in at.astype(int)]), **options).value
    fast = clustered(measure, *columns, clusters=clusters, n=150, seed=3, **options)
    slow = cluster_bootstrap(np.arange(len(rows)), [c for c, k in zip(clusters, kept) if k], statistic, n=150, seed=3)
    low, high = (slow.low, slow.high) if measure is not ece else (max(0, 2 * slow.estimate - slow.high), max(0, 2 * slow.estimate - slow.low))
    assert [fast.estimate, fast.low, fast.high] == pytest.approx([slow.estimate, low, high])
    assert (fast.n, fast.failed, fast.clusters) == (measure(*columns).n, measure(*columns).failed, len(set(clusters)))
    assert clustered(measure, *columns, clusters=np.array(clusters), n=150, seed=3, **options) == fast  # whole numbers are the same names


def test_any_measure_has_an_interval():
    p, met, clusters = graded()
    for measure, columns in ((kendall, [p, met]), (consistency, [["yes" if m else "no" for m in met], [None if x is None else "yes" if x > 0.5 else "no" for x in p]])):
        found = clustered(measure, *columns, clusters=clusters, n=100)
        assert found.estimate == measure(*columns).value and found.low < found.estimate < found.high and found.failed == p.count(None)


@few
@given(st.lists(st.tuples(st.none() | probability, st.none() | st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_clustered_never_gives_nan(rows):
    p, met, clusters = map(list, zip(*rows))
    gold = [m or False for m in met]
    for measure, columns in [(m, [p, met]) for m in (auroc, brier, ece, pearson, spearman, kendall, kappa, consistency)] + [(macro_f1, [gold, met]), (accuracy, [met])]:
        found = clustered(measure, *columns, clusters=clusters, n=20)
        no_nan(found)
        assert found.estimate == measure(*columns).value or found.estimate == pytest.approx(measure(*columns).value)
        if found.clusters < 2: assert found.low is None


def test_calibration_error_of_a_calibrated_grader_comes_down_to_zero():
    "Not always, but percentiles never would: chance keeps every resample above 0."
    rng, held, percentiles = np.random.default_rng(0), 0, 0
    for i in range(100):
        p = rng.random(300)
        found = clustered(ece, p, rng.random(300) < p, n=200, seed=i)
        held += found.low < 0.01
        percentiles += 2 * found.estimate - found.high < 0.01
    assert held >= 65 and percentiles == 0  # 74 with these seeds
    p = rng.random(4000)
    assert clustered(ece, p, rng.random(4000) < 0.5, n=200).low > 0.2 > ece(p, rng.random(4000) < p).value


def test_clustered_is_fast():
    rng = np.random.default_rng(0)
    met, clusters = rng.random(20_000) < 0.5, np.repeat(np.arange(2000), 10)
    p = np.clip(np.where(met, 0.7, 0.3) + rng.normal(0, 0.2, 20_000), 0, 1)
    start = time.perf_counter()
    for measure, columns in [(accuracy, [(p > 0.5) == met]), (kappa, [met, p > 0.5]), (macro_f1, [met, p > 0.5])] + [(m, [p, met]) for m in (auroc, brier, ece, spearman, pearson)]:
        assert clustered(measure, *columns, clusters=clusters, n=2000).low is not None
    assert time.perf_counter() - start < 15  # some 2 s on two cores


def test_undefined_statistics_have_no_interval():
    constant = cluster_bootstrap([(1, 2), (1, 3)], statistic=lambda r: spearman(r[:, 0], r[:, 1]).value, n=20)
    assert constant.estimate is None and constant.low is None and repr(constant) == "undefined, n=2"
    assert cluster_bootstrap([None, None], ["a", "b"]) == Interval(estimate=None, n=0, clusters=0, failed=2)


@few
@given(st.lists(st.tuples(verdict, st.booleans(), st.integers(0, 5)), min_size=1, max_size=40))
def test_order_gap_is_signed(rows):
    correct, first, clusters = map(list, zip(*rows))
    gap, other = order_gap(correct, first, clusters, n=50), order_gap(correct, [not f for f in first], clusters, n=50)
    no_nan(gap)
    assert (gap.estimate is None) == (other.estimate is None)
    if gap.estimate is None: return
    part = lambda way: accuracy([c for c, f in zip(correct, first) if f is way], "skip").value
    assert gap.estimate == pytest.approx(part(True) - part(False)) and gap.estimate == pytest.approx(-other.estimate)
    if gap.low is not None: assert [-1 - 1e-9 <= gap.low, gap.high <= 1 + 1e-9, gap.low] == [True, True, pytest.approx(-other.high)]


# ---- tests

@few
@given(paired)
def test_permutation_is_symmetric(rows):
    a, b, clusters = zip(*rows)
    found, mirrored = paired_permutation(a, b, clusters, n=200), paired_permutation(b, a, clusters, n=200)
    no_nan(found)
    assert found.p == mirrored.p and 0 < found.p <= 1
    assert found.gap == mirrored.gap or found.gap == pytest.approx(-mirrored.gap)
    assert paired_permutation(a, a, clusters, n=200).p == 1


def scipys(d, n):
    from scipy.stats import permutation_test
    mean = lambda x, axis: x.mean(axis=axis)
    rng = np.random.default_rng(2)
    return permutation_test((d,), mean, permutation_type="samples", n_resamples=n, vectorized=True, batch=500, rng=rng).pvalue


@few
@given(st.lists(st.sampled_from([-1, -0.5, 0, 0.5, 1, 0.25]), min_size=2, max_size=10))
def test_exact_permutation_is_scipys(d):
    found = paired_permutation(np.zeros(len(d)), d)
    assert found.exact and found.p == pytest.approx(scipys(np.array(d), 2000))


def test_random_permutation_is_scipys():
    rng = np.random.default_rng(11)
    for shift in (0.0, 0.05, 0.1, 0.15):
        d = rng.choice([-1, -0.5, 0, 0.5, 1], 150) + shift
        found = paired_permutation(np.zeros(150), d)
        p = scipys(d, 9999)
        assert not found.exact and found.p == pytest.approx(p, abs=4 * math.sqrt(2 * p * (1 - p) / 9999) + 3e-4)


def test_many_clusters():
    a, b = np.random.default_rng(0).random((2, 5000))
    found = compare(a, b, n=199)
    assert 0 < found.p <= 1 and not found.exact and found.gap.low < found.gap.estimate < found.gap.high


def test_permutation_is_fast():
    a, b = np.random.default_rng(0).random((2, 400))
    took = []
    for _ in range(5):
        start = time.perf_counter()
        paired_permutation(a, b, n=4999)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.1


@few
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_mcnemar_is_statsmodels(pairs):
    from statsmodels.stats.contingency_tables import mcnemar as theirs
    a, b = map(np.array, zip(*pairs))
    table = [[sum(a & b), sum(a & ~b)], [sum(~a & b), sum(~a & ~b)]]
    found = mcnemar(a, b)
    assert found.p == pytest.approx(min(1, theirs(table, exact=True).pvalue)) and found.gap == pytest.approx(b.mean() - a.mean())


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_the_step_down_rule(p):
    found = holm(p)
    by_hand, worst = {}, 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        by_hand[i] = worst
    assert found == pytest.approx([by_hand[i] for i in range(len(p))])
    assert all(f >= q - 1e-12 for f, q in zip(found, p))
    order = sorted(range(len(p)), key=p.__getitem__)
    assert [found[i] for i in order] == sorted(found)


def test_holm_is_statsmodels():
    from statsmodels.stats.multitest import multipletests
    rng = np.random.default_rng(6)
    for size in (1, 2, 5, 12):
        p = rng.random(size) ** 3
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == [] and holm([0.0, 1.0]) == [0, 1]


# ---- power

@given(st.floats(0.01, 1), st.floats(0.05, 2), st.floats(0.5, 0.99), st.floats(0.001, 0.2))
def test_size_power_and_gap_are_one_formula(gap, sd, wanted, alpha):
    n = sample_size(gap, sd, wanted, alpha)
    assert power(n, gap, sd, alpha) >= wanted - 1e-9 and (n == 1 or power(n - 1, gap, sd, alpha) < wanted + 1e-9)
    assert detectable_gap(n, sd, wanted, alpha) <= gap * (1 + 1e-9)


@pytest.mark.parametrize("gap,sd,wanted,alpha", [(0.05, 0.4, 0.8, 0.05), (0.1, 0.5, 0.97, 0.0125), (0.02, 0.3, 0.9, 0.01)])
def test_power_is_statsmodels(gap, sd, wanted, alpha):
    from statsmodels.stats.power import NormalIndPower, TTestPower
    normal = NormalIndPower(ddof=0).solve_power(effect_size=gap / sd, alpha=alpha, power=wanted, ratio=0)  # ratio 0: one sample
    assert sample_size(gap, sd, wanted, alpha) == math.ceil(normal)
    assert power(200, gap, sd, alpha) == pytest.approx(NormalIndPower(ddof=0).power(gap / sd, 200, alpha, ratio=0), abs=1e-3)
    assert sample_size(gap, sd, wanted, alpha) == pytest.approx(TTestPower().solve_power(gap / sd, alpha=alpha, power=wanted), abs=6)


def test_promised_power_is_found():
    "At the size the formula gives, the whole comparison finds the gap about as often as promised."
    rng, worlds = np.random.default_rng(0), 400
    n = sample_size(0.1, 0.35, 0.8)
    found = sum(paired_permutation(np.zeros(n), rng.normal(0.1, 0.35, n), n=999).p <= 0.05 for _ in range(worlds))
    assert found / worlds == pytest.approx(0.8, abs=3.5 * math.sqrt(0.16 / worlds))


# ---- calibration: worlds of 40 prompts with two pairs each that share their prompt's difficulty

def world(rng, prompts=40):
    "Whether each of two equally good arms is right; clusters; the true accuracy is 0.6."
    easy = rng.beta(1.2, 0.8, (prompts, 1))
    a, b = rng.random((2, prompts, 2)) < easy
    return a.ravel().astype(float), b.ravel().astype(float), np.repeat(np.arange(prompts), 2)


def false_positives(draw, worlds=2000, alpha=0.05):
    rng, clusters = np.random.default_rng(1), np.repeat(np.arange(40), 2)
    return sum(paired_permutation(*draw(rng), clusters, n=999).p <= alpha for _ in range(worlds)) / worlds


def test_permutation_false_positives_are_near_alpha():
    tolerance = 3.5 * math.sqrt(0.05 * 0.95 / 2000)
    margins = false_positives(lambda rng: rng.normal(size=(2, 40, 2)).reshape(2, 80) + np.repeat(rng.normal(size=40), 2))
    assert margins == pytest.approx(0.05, abs=tolerance)
    verdicts = false_positives(lambda rng: world(rng)[:2])
    assert 0.015 <= verdicts <= 0.05 + tolerance  # ties make the test conservative


def test_bootstrap_coverage_is_near_its_level():
    "Percentile intervals of 40 clusters cover a little less than they say; counting pairs as independent covers much less."
    rng, worlds = np.random.default_rng(2), 1000
    by_prompt = by_pair = 0
    for i in range(worlds):
        a, _, clusters = world(rng)
        inside = lambda c: c.low <= 0.6 <= c.high
        by_prompt += inside(cluster_bootstrap(a, clusters, n=500, seed=i))
        by_pair += inside(cluster_bootstrap(a, n=500, seed=i))
    assert 0.92 <= by_prompt / worlds <= 0.97  # 0.949 and 0.918 with these seeds
    assert by_pair < by_prompt - 0.02 * worlds


# ---- comparisons

def test_orderings_claim_what_is_there():
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(300), 2)
    arms = {name: list(rng.random(600) < p) for name, p in [("direct", 0.5), ("prompt-only", 0.7), ("contrastive", 0.7), ("worse", 0.3)]}
    found = orderings([("direct", "prompt-only"), ("prompt-only", "contrastive"), ("direct", "worse")], arms, clusters)
    assert [c.claimed for c in found] == [True, False, False]
    assert found[2].p_adjusted < 0.05 and found[2].gap.high < 0  # a real gap, the wrong way: never claimed
    assert [c.p_adjusted for c in found] == holm([c.p for c in found])
    one = compare(arms["direct"], arms["prompt-only"], clusters)
    d = (np.array(arms["prompt-only"], float) - np.array(arms["direct"], float)).reshape(300, 2).mean(1)
    assert (one.gap.estimate, one.sd) == pytest.approx((d.mean(), d.std(ddof=1))) and one.gap.clusters == 300 and one.gap.n == 600
    assert one.detectable == pytest.approx(detectable_gap(300, one.sd))
    assert Comparison.from_json(found[0].to_json()) == found[0]


def test_no_family_claims_much_under_the_null():
    rng, worlds, chain = np.random.default_rng(9), 300, [("a", "b"), ("b", "c"), ("a", "c")]
    claims = 0
    for _ in range(worlds):
        a, b, clusters = world(rng)
        arms = {"a": a, "b": b, "c": rng.permutation(a.reshape(-1, 2), axis=1).ravel()}
        claims += any(c.claimed for c in orderings(chain, arms, clusters, n=499))
    assert claims / worlds <= 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / worlds)


@few
@given(paired)
def test_compare_never_gives_nan(rows):
    a, b, clusters = zip(*rows)
    found = compare(a, b, clusters, n=100)
    no_nan(found)
    both = [(x, y) for x, y, _ in rows if x is not None and y is not None]
    assert found.gap.n == len(both) and found.gap.failed == len(rows) - len(both)
    if not both: assert (found.p, found.gap.estimate, found.sd, found.detectable) == (1, None, None, None)


# ---- bad input and import

@pytest.mark.parametrize("call,says", [
    (lambda: accuracy([]), "empty"),
    (lambda: accuracy([2]), "correct holds 2"),
    (lambda: accuracy([True], "ignore"), "use wrong, half or skip"),
    (lambda: consistency(["A"], []), "first has 1, second has 0"),
    (lambda: kappa([], []), "empty"),
    (lambda: macro_f1([None], ["A"]), "gold label is None"),
    (lambda: spearman([1, 2], [1]), "one length"),
    (lambda: kappa(["A"], ["A"], ["binary", "tiers"]), "within has 2"),
    (lambda: kendall([], []), "empty"),
    (lambda: auroc([0.5], [0.5]), "neither True nor False"),
    (lambda: brier([1.5], [True]), "outside 0 to 1"),
    (lambda: ece([0.5], [True], bins=0), "at least one bin"),
    (lambda: calibration_curve([0.5], [True], how="equal"), "use mass"),
    (lambda: clustered(kappa, ["A"], ["A"], n=0), "at least one resample"),
    (lambda: clustered(kappa, ["A", "B"], ["A", "B"], clusters=["mini-00"]), "2 items but 1 clusters"),
    (lambda: cluster_bootstrap([]), "empty"),
    (lambda: cluster_bootstrap([1, 0], ["mini-00"]), "2 items but 1 clusters"),
    (lambda: cluster_bootstrap([1, 0], ["mini-00", None]), "cluster is None"),
    (lambda: cluster_bootstrap([1, math.inf]), "use None"),
    (lambda: cluster_bootstrap(["A", "B"]), "not numbers"),
    (lambda: cluster_bootstrap([1, 0], n=0), "at least one resample"),
    (lambda: cluster_bootstrap([1, 0], level=95), "level"),
    (lambda: order_gap([1, 0], [True]), "one length"),
    (lambda: order_gap([1, 0], [True, None]), "better_first holds None"),
    (lambda: paired_permutation([1, math.nan], [1, 0]), "a[1] is nan"),
    (lambda: paired_permutation([], []), "empty"),
    (lambda: mcnemar([0.5], [1]), "paired_permutation"),
    (lambda: holm([0.1, math.nan]), "no p-value"),
    (lambda: sample_size(0, 0.4), "gap=0"),
    (lambda: sample_size(0.1, 0.4, power=1), "power must lie"),
    (lambda: power(0, 0.1, 0.4), "n=0"),
    (lambda: orderings([("direct", "voting")], {"direct": [1]}), "no values for arm 'voting'"),
])
def test_bad_input_is_one_clear_error(call, says):
    with pytest.raises(ValueError) as caught: call()
    assert says in str(caught.value)


def test_import_is_light():
    code = "import sys, rubriclab.core.stats; print([m for m in ('scipy', 'sklearn', 'statsmodels', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
