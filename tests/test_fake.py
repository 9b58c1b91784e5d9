"""The planted engine does what its page specifies: each term by itself, each rate in binomial tolerance, whatever the wording around it."""
import math, os, re, statistics, subprocess, sys
from collections import Counter
import pytest
from hypothesis import given, settings, strategies as st
from rubriclab.core.prompts import fill, template
from rubriclab.core.types import Chat, Failure, Message, Rubric
from rubriclab.engines.engine import Engine, Request, ScoreRequest
from rubriclab.engines.fake import FakeBackend, Skills, World, answers, open_backend

WORLD = World(seed=3)
NOTHING = dict(base=0.0, scale=0.0, order_bias=0.0, length_bias=0.0, sigma=0.0)
PAIRS = WORLD.pairs(400)


def near(count, n, p):
    "Whether a count agrees with a probability: four and a half standard deviations."
    assert abs(count - n * p) <= 4.5 * math.sqrt(n * p * (1 - p)) + 1e-9, f"{count} of {n}, {p * n:.1f} expected"


def mind(world=WORLD, **skills): return FakeBackend(world, Skills(**{**NOTHING, **skills}))


def chat(pair, rubric=None, better_first=True, prefill="Winner: Response"):
    a, b = (pair.chosen, pair.rejected) if better_first else (pair.rejected, pair.chosen)
    values = {"request": pair.prompt, "response_a": a, "response_b": b}
    t = template("judge/with_rubric" if rubric else "judge/direct")
    return fill(t, {**values, "rubric": rubric} if rubric else values, prefill)


def score(backend, chats, choices=(" A", " B")):
    "Log-odds of the first choice over the second."
    out = dict(backend.logprobs([ScoreRequest(chat=c, choices=choices) for c in chats]))
    for r in out.values(): assert abs(sum(map(math.exp, r.logprobs)) - 1) < 1e-9
    return [out[i].logprobs[0] - out[i].logprobs[1] for i in range(len(chats))]


def better(backend, pairs, rubrics=None, better_first=True, **kw):
    "Margins for the better answer."
    sign = 1 if better_first else -1
    return [sign * m for m in score(backend, [chat(p, r, better_first, **kw) for p, r in zip(pairs, rubrics or [None] * len(pairs))])]


def write(backend, chats, **kw): return [r.text for _, r in backend.complete([Request(chat=c, **kw) for c in chats])]
def ids(pair): return tuple(int(x) for x in pair.id.split("-")[1:])
def truth(pair): return {n: WORLD.needs(ids(pair)[0])[n].weight * s for n, s in WORLD.sides(*ids(pair)).items()}
def line(name, verb="meets"): return Rubric.parse(f"1. The response {verb} need {name} [Principle]")


# the judge: all terms but one are zero

@pytest.mark.parametrize("better_first", [True, False])
def test_base_and_order(better_first):
    assert better(mind(base=0.4), PAIRS[:20], better_first=better_first) == pytest.approx([0.4] * 20)
    assert better(mind(order_bias=0.7), PAIRS[:20], better_first=better_first) == pytest.approx([0.7 if better_first else -0.7] * 20)


def test_length_bias_is_of_the_words_that_stand_there():
    ratios = [math.log((len(p.chosen.split()) - 2) / (len(p.rejected.split()) - 2)) for p in PAIRS]
    assert better(mind(length_bias=0.5), PAIRS) == pytest.approx([0.5 * r for r in ratios])
    near(sum(r > 0 for r in ratios), sum(r != 0 for r in ratios), 0.5)


def test_base_of_its_own():
    all_of_them = [sum(truth(p).values()) for p in PAIRS]
    assert min(all_of_them) > 0
    kw = dict(base=None, scale=0.8, think=1)
    assert better(mind(own_p=1, **kw), PAIRS) == pytest.approx([0.8 * t for t in all_of_them])
    assert better(mind(own_p=0, **kw), PAIRS) == pytest.approx([-0.8 * t for t in all_of_them])
    assert better(mind(base=None, scale=0.8, think=0), PAIRS) == pytest.approx([0] * len(PAIRS))
    assert better(mind(p=1, **kw), PAIRS) == better(mind(own_p=1, **kw), PAIRS)


def test_own_criteria_come_to_mind_by_prompt_and_are_read_by_pair():
    world = World(seed=4, criteria=1, agree=1)
    margins = better(mind(world, base=None, scale=1.0, think=0.6, own_p=0.7), world.pairs(800))
    minded = [m for m in margins if m]
    near(len(minded) / 2, 800, 0.6)
    near(sum(m > 0 for m in minded), len(minded), 0.7)
    near(sum(a * b > 0 for a, b in zip(minded[::2], minded[1::2])), len(minded) / 2, 0.7**2 + 0.3**2)


def test_base_spread_is_fixed_for_the_pair():
    first, second = (better(mind(base=0.4, base_sd=2.0), PAIRS, better_first=o) for o in (True, False))
    assert first == pytest.approx(second)
    assert statistics.fmean(first) == pytest.approx(0.4, abs=0.35) and statistics.stdev(first) == pytest.approx(2.0, rel=0.12)


@given(st.integers(0, 799), st.lists(st.tuples(st.integers(0, 4), st.booleans()), unique=True, max_size=8), st.floats(-3, 3))
@settings(max_examples=60, deadline=None)
def test_a_rubric_adds_weight_times_side(at, named, scale):
    p, names = PAIRS[at], list(truth(PAIRS[at]))
    text = "\n".join(f"- The response {'meets' if meets else 'avoids'} need {names[j]} [Principle]" for j, meets in named)
    wanted = sum(truth(p)[names[j]] * (1 if meets else -1) for j, meets in named)
    rubrics = [Rubric.parse(text)] if named else None
    assert better(mind(p=1, scale=scale), [p], rubrics) == pytest.approx([scale * wanted], abs=1e-9)
    assert better(mind(p=0, scale=scale), [p], rubrics) == pytest.approx([-scale * wanted], abs=1e-9)


def test_spurious_statements_take_a_random_side():
    margins = better(mind(p=1, scale=1.0), PAIRS, [line(f"s{ids(p)[0]}.1") for p in PAIRS])
    assert list(map(abs, margins)) == pytest.approx([1.0] * len(margins))
    near(sum(m > 0 for m in margins), len(PAIRS), 0.5)
    strange = better(mind(p=1, scale=1.0), PAIRS, [line(f"k{(WORLD.cluster(ids(p)[0]) + 1) % 8}.0", "avoids") for p in PAIRS])
    near(sum(m > 0 for m in strange), len(PAIRS), 0.5)


def test_a_misreading_is_fixed_for_pair_criterion_and_engine():
    rubrics = [WORLD.rubric(ids(p)[0]) for p in PAIRS]
    one = better(mind(p=0.7, scale=1.0), PAIRS, rubrics)
    for kw in (dict(better_first=False), dict(prefill="A is longer.\nWinner: Response"), dict(prefill="Both are fine.\nWinner: Response")):
        assert better(mind(p=0.7, scale=1.0), PAIRS, rubrics, **kw) == pytest.approx(one)
    assert better(mind(p=0.7, scale=1.0, reader=1), PAIRS, rubrics) != pytest.approx(one)
    pairs, names = zip(*[(p, n) for p in PAIRS for n in truth(p)])
    alone, inverted = (better(mind(p=0.7, scale=1.0), pairs, [line(n, verb) for n in names]) for verb in ("meets", "avoids"))
    assert alone == pytest.approx([-m for m in inverted])
    assert [sum(m for m, q in zip(alone, pairs) if q is p) for p in PAIRS] == pytest.approx(one)
    near(sum(m * truth(p)[n] > 0 for m, p, n in zip(alone, pairs, names)), len(pairs), 0.7)


def test_noise_is_new_for_every_view_and_of_the_given_size():
    backend, rubric = mind(sigma=1.5), [line("all.0")] * len(PAIRS)
    views = [better(backend, PAIRS), better(backend, PAIRS, better_first=False), better(backend, PAIRS, rubric),
             better(backend, PAIRS, prefill="Hm.\nWinner: Response"), better(backend, PAIRS, prefill="Well.\nWinner: Response"),
             better(mind(sigma=1.5, reader=1), PAIRS),
             score(backend, [Chat.user(f"Who is the winner?\n{p.prompt}\n{p.chosen}\n{p.rejected}") for p in PAIRS])]
    assert views[0] == better(backend, PAIRS)
    for v in views:
        assert abs(statistics.fmean(v)) < 4.5 * 1.5 / math.sqrt(len(v))
        assert statistics.stdev(v) == pytest.approx(1.5, rel=4.5 / math.sqrt(2 * len(v)))
    for i, v in enumerate(views):
        for w in views[:i]: assert abs(statistics.correlation(v, w)) < 4.5 / math.sqrt(len(v))


def test_a_judge_that_cannot_read_learns_nothing_from_a_rubric():
    margins = better(mind(p=0.5, scale=1.0), PAIRS, [WORLD.rubric(ids(p)[0]) for p in PAIRS])
    near(sum(m > 0 for m in margins), len(margins), 0.5)
    assert min(better(mind(p=1, scale=1.0), PAIRS, [WORLD.rubric(ids(p)[0]) for p in PAIRS])) > 0


# written verdicts

def test_a_written_verdict_has_its_reasons_first_and_the_log_odds_of_its_margin():
    chats = [chat(p, prefill="") for p in PAIRS]
    for base, t, rate in ((0.6, 1.0, 1 / (1 + math.exp(-0.6))), (0.6, 0.5, 1 / (1 + math.exp(-1.2))), (-0.6, 0.0, 0.0), (0.6, 0.0, 1.0)):
        texts = write(mind(base=base), chats, temperature=t)
        assert all(re.fullmatch(r"Compliance check: .+\nAnalysis: .+\nFinal judgment: .+\nWinner: Response [AB]", x) for x in texts)
        near(sum(x.endswith("A") for x in texts), len(texts), rate)
    near(sum("Winner" not in x for x in write(mind(base=9, invalid=0.2), chats, temperature=1.0)), len(chats), 0.2)
    sampled = [write(mind(sigma=1.0), chats, temperature=0.01, index=i) for i in (0, 1)]
    near(sum(x == y for x, y in zip(*sampled)), len(chats), 0.5)


def test_what_has_begun_is_ended():
    p = PAIRS[0]
    assert write(mind(base=9), [chat(p), chat(p, prefill="Winner:"), chat(p, better_first=False)]) == [" A", " Response A", " B"]
    tagged = Chat.user(f"{p.prompt} {p.chosen} {p.rejected} Close with <answer>A</answer> or <answer>B</answer>.")
    assert write(mind(base=9), [tagged])[0].endswith("<answer>A</answer>")


def test_stops_and_token_limit():
    cut, = (r for _, r in mind(base=9).complete([Request(chat=chat(PAIRS[0], prefill=""), max_tokens=3)]))
    assert (cut.text, cut.finish, cut.usage.completion_tokens) == ("Compliance check: both", "length", 3)
    assert write(mind(base=9), [chat(PAIRS[0], prefill="")], stop=("\nAnalysis",))[0].endswith("to the end.")


# the generator

def rubric_chats(name, per=1):
    t = template(name)
    known = {"request": lambda p: p.prompt, "chosen": lambda p: p.chosen, "rejected": lambda p: p.rejected}
    return [fill(t, {s: known[s](p) for s in t.slots}) for p in PAIRS[::2] for _ in range(per)]


def statements(text): return [(v, n) for v, n in re.findall(r"(meets|avoids) need (\S+)", text)]


@pytest.mark.parametrize("prompt, g, inverted", [("crg/pairwise", 0.7, 0.2), ("crg/prompt_only", 0.3, 0.4)])
def test_generator_rates(prompt, g, inverted):
    world = World(seed=3, flipped=0.5)
    backend = FakeBackend(world, Skills(g_contrast=0.7, inverted_contrast=0.2, g_prompt=0.3, inverted_prompt=0.4, spurious=1.2))
    named, wrong, made_up, n = 0, 0, 0, 0
    for p, text in zip(PAIRS[::2], write(backend, rubric_chats(prompt), temperature=1.0)):
        needs, rubric = world.needs(ids(p)[0]), Rubric.parse(text)
        assert rubric.untagged == 0 and all(c.text.startswith("The response ") for c in rubric.criteria)
        said = statements(text)
        true = [(v, n) for v, n in said if n in needs]
        n, named, made_up = n + len(needs), named + len(true), made_up + len(said) - len(true)
        wrong += sum((v == "meets") != (needs[name].polarity > 0) for v, name in true)
    near(named, n, g)
    near(wrong, named, inverted)
    near(made_up, 4 * len(PAIRS[::2]), 0.3)


def test_samples_differ_and_greedy_does_not():
    backend, c = FakeBackend(WORLD, Skills()), rubric_chats("crg/pairwise")[:1]
    assert len({write(backend, c, temperature=1.0, index=i)[0] for i in range(16)}) > 12
    assert len({write(backend, c, index=i)[0] for i in range(4)}) == 1


def exemplar_chat(target, sources, world=WORLD, target_first=False):
    shown = "\n\n".join(f"{world.request(i)}\nRubric:\n{world.rubric(i)}" for i in sources)
    asked = f"Now write one for this request: {world.request(target)}"
    closing = "Write a numbered list, items end with [Hard Rule] or [Principle]."
    return Chat.user(f"{asked}\n{shown}\n" if target_first else f"{shown}\n\n{asked}\n{closing}")


@pytest.mark.parametrize("target_first", [False, True])
def test_copying(target_first):
    u, h, c = 0.4, 0.3, 0.7
    world = World(seed=5, common=u, flipped=h, clusters=4)
    backend = FakeBackend(world, Skills(g_prompt=0, spurious=0, copy_skill=c))
    cluster = [world.cluster(i) for i in range(3000)]
    jobs = [(i, i + 1) for i in range(0, 3000, 2)]
    texts = write(backend, [exemplar_chat(i, [j], world, target_first) for i, j in jobs], temperature=1.0)
    fits, copied, wrong, shared, criteria = 0, 0, 0, 0, 0
    for (i, j), text in zip(jobs, texts):
        mine, theirs, said = world.needs(i), world.needs(j), {n: v for v, n in statements(text)}
        common = set(mine) & set(theirs)
        if cluster[i] != cluster[j]: assert all(n.startswith("all.") for n in common)
        assert set(said) <= common
        fits, copied = fits + len(common), copied + len(said)
        wrong += sum((v == "meets") != (mine[n].polarity > 0) for n, v in said.items())
        shared, criteria = shared + sum(n.startswith("all.") for n in mine), criteria + len(mine)
    near(copied, fits, c)
    near(wrong, copied, h)
    near(shared, criteria, u)


# the verifier and the grader

def test_verifier_rates():
    backend = FakeBackend(WORLD, Skills(v=0.75, verifier_scale=1.5))
    ask = "Is the rubric helpful or misleading? Write <analyze></analyze><rubric></rubric><answer></answer>."
    jobs = [(p, line(n, verb)) for p in PAIRS for n in list(truth(p))[:2] for verb in ("meets", "avoids")]
    chats = [Chat.user(f"{p.prompt}\n{r}\n{p.rejected}\n{p.chosen}\n{ask}") for p, r in jobs]
    helps = [truth(p)[(v := statements(str(r))[0])[1]] * (1 if v[0] == "meets" else -1) > 0 for p, r in jobs]
    texts = write(backend, chats, temperature=1.0)
    assert all(re.fullmatch(r"<analyze>.+</analyze><rubric>(helpful|misleading)</rubric><answer>[AB]</answer>", x) for x in texts)
    near(sum(("helpful" in x) == h for x, h in zip(texts, helps)), len(jobs), 0.75)
    margins = score(backend, chats, ("helpful", "misleading"))
    assert list(map(abs, margins)) == pytest.approx([1.5] * len(margins))
    near(sum((m > 0) == h for m, h in zip(margins, helps)), len(jobs), 0.75)
    assert score(backend, chats, ("misleading", "helpful")) == pytest.approx([-m for m in margins])


def test_grader_rates():
    backend = FakeBackend(WORLD, Skills(p=0.85, grader_scale=2.5))
    jobs = [(p, a, n) for p in PAIRS for a in (p.chosen, p.rejected) for n in truth(p)]
    met = [(truth(p)[n] > 0) == (a == p.chosen) for p, a, n in jobs]
    chats = [Chat.user(f"{p.prompt}\n{a}\nCriterion: {line(n)}\nIs it met? Answer yes or no.") for p, a, n in jobs]
    margins = score(backend, chats, ("yes", "no"))
    assert list(map(abs, margins)) == pytest.approx([2.5] * len(margins))
    near(sum((m > 0) == t for m, t in zip(margins, met)), len(jobs), 0.85)
    assert score(backend, chats, ("not met", "met")) == pytest.approx([-m for m in margins])
    inverted = [Chat.user(f"{a}\n{p.prompt}\nCriterion: {line(n, 'avoids')}") for p, a, n in jobs]
    assert score(backend, inverted, ("yes", "no")) == pytest.approx([-m for m in margins])
    whole = Chat.user(f"{PAIRS[0].prompt}\n{PAIRS[0].chosen}\nSay met or not met of each.\n{WORLD.rubric(0)}")
    labels = re.findall(r"(?m): (met|not met)$", write(backend, [whole])[0])
    assert labels == ["met" if m > 0 else "not met" for m in margins[:5]]


# text in, text out

def test_hostile_wording_changes_nothing_but_the_noise():
    p, r = PAIRS[0], WORLD.rubric(0)
    neighbor = f"{PAIRS[2].prompt}\n{PAIRS[2].chosen}\n{PAIRS[2].rejected}\nWinner: Response A"
    wordings = [Chat.user(f"WHO IS THE WINNER? {{{{x}}}} {p.chosen}\n\n***{p.rejected}*** </request> rubric: {r}"),
                Chat.user(f'{{"rubric": {[c.text for c in r.criteria]}, "a": "{p.chosen}", "b": "{p.rejected}", "prompt": "{p.prompt}"}}'),
                Chat.user(f"{r}\n{p.chosen}\n{p.rejected}\nKeep in mind:\n{r}"), # repeated: counts once
                Chat(messages=(Message(role="system", content=str(r)), Message(role="user", content=p.chosen + "\n" + p.rejected))),
                Chat(messages=(Message(role="user", content=neighbor), Message(role="assistant", content="Winner: Response A"),
                               Message(role="user", content=f"{p.prompt} {r} {p.chosen} {p.rejected}"))),
                chat(p, r, prefill="Response B meets need all.9 and avoids need k1.1.\nWinner: Response")]
    margins = score(mind(p=1, scale=1.0), wordings)
    assert margins == pytest.approx([sum(truth(p).values())] * len(wordings))
    assert score(mind(p=1, scale=1.0), wordings, ("B", "A")) == pytest.approx([-m for m in margins])


@given(st.text(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_text_gets_an_answer_or_a_failure(text):
    p = PAIRS[0]
    for content in (text or " ", f"{text}\n{p.prompt}\n{text}\n{p.chosen}{text}\n{p.rejected}"):
        c = Chat.user(content)
        for _, r in [*mind().complete([Request(chat=c)]), *mind().logprobs([ScoreRequest(chat=c, choices=("A", "B"))])]:
            assert not isinstance(r, Failure) or r.reason == "bad_request" and r.detail


@pytest.mark.parametrize("text, missing", [
    ("Which is Saturn's largest moon?", "no `Request N of world 3`"), (World(seed=9).request(1) + " Write a rubric.", "of world 9"),
    (PAIRS[0].chosen + " Winner?", "not both answers of a pair"), (PAIRS[0].chosen + PAIRS[1].rejected + " Winner?", "not both answers"),
    (PAIRS[0].prompt, "no question that it knows"), (PAIRS[0].chosen + PAIRS[0].rejected + " Write a rubric.", "no `Request N of world")])
def test_failures_name_what_is_missing(text, missing):
    (_, r), = mind().complete([Request(chat=Chat.user(text))])
    assert r.reason == "bad_request" and missing in r.detail


@pytest.mark.parametrize("choices", [("yes", "no"), ("helpful", "no"), ("met",), ("helpful", "misleading", "both")])
def test_scores_that_cannot_be_given(choices):
    (_, r), = mind().logprobs([ScoreRequest(chat=Chat.user(PAIRS[0].chosen + PAIRS[0].rejected), choices=choices)])
    assert isinstance(r, Failure) if len(choices) < 3 else len(r.logprobs) == 3


def test_schema_and_hidden_states_are_refused():
    (_, r), = mind().complete([Request(chat=chat(PAIRS[0]), response_schema={"type": "object"})])
    assert r.reason == "unsupported" and "JSON" in r.detail
    assert Engine(mind()).features([chat(PAIRS[0])])[0].reason == "unsupported"


def test_same_request_same_answer_in_any_batch_and_process():
    backend = FakeBackend(WORLD, Skills())
    both = [(p, *how) for p in PAIRS[:30] for how in ((None, 0.7), (WORLD.rubric(ids(p)[0]), 0.0))]
    requests = [Request(chat=chat(p, r, prefill=""), temperature=t) for p, r, t in both]
    alone = [r.text for q in requests for _, r in FakeBackend(WORLD, Skills()).complete([q])]
    assert [r.text for _, r in backend.complete(requests)] == alone
    assert [r.text for _, r in backend.complete(requests[::-1])] == alone[::-1]
    code = ("import sys; from rubriclab.engines.fake import FakeBackend; from rubriclab.engines.engine import Request\n"
            "for _, r in FakeBackend().complete([Request.from_json(line) for line in sys.stdin]): print(r.to_json())")
    lines = "\n".join(Request(chat=Chat.user(p.prompt + " Write a rubric."), temperature=1.0).to_json() for p in World().pairs(20, 1))
    run = lambda seed: subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True, check=True,
                                      env={**os.environ, "PYTHONHASHSEED": seed}).stdout
    here = [r.to_json() for _, r in FakeBackend().complete([Request.from_json(x) for x in lines.splitlines()])]
    assert run("1").splitlines() == run("2").splitlines() == here


# worlds

def test_planted_shifts_of_one_nat():
    world = World(seed=8, criteria=1, agree=1, spread=0)
    backend = FakeBackend(world, Skills(**{**NOTHING, "scale": 1.0, "p": 1, "g_contrast": 0.5, "inverted_contrast": 0.5, "spurious": 0}))
    pairs = world.pairs(400, per_prompt=1)
    rubrics = write(backend, [Chat.user(f"{p.prompt}\n{p.chosen}\n{p.rejected}\nWrite a rubric.") for p in pairs], temperature=1.0)
    shifts = Counter(round(m, 6) for m in better(backend, pairs, [Rubric.parse(r) for r in rubrics]))
    for shift, share in ((-1.0, 0.25), (0.0, 0.5), (1.0, 0.25)): near(shifts[shift], 400, share)


@given(st.builds(World, seed=st.integers(0, 10**6), criteria=st.integers(1, 8), agree=st.sampled_from([0, 0.5, 0.75, 1]),
                 spread=st.sampled_from([0, 0.5]), common=st.sampled_from([0, 0.3, 1]), flipped=st.sampled_from([0, 0.3, 0.5])))
@settings(max_examples=60, deadline=None)
def test_in_every_world_the_criteria_favor_the_better_answer(world):
    for i in range(5):
        needs = world.needs(i)
        assert len(needs) == world.criteria and all(0.5 <= n.weight <= 1.5 for n in needs.values())
        for q in range(3): assert sum(needs[n].weight * s for n, s in world.sides(i, q).items()) > 0
    assert len({p.id for p in world.pairs(3, 2)}) == 6 and world.pairs(2, 2) == world.pairs(4, 2)[:4]


def test_better_answers_are_not_told_by_their_letter():
    near(sum(".x:" in p.chosen for p in PAIRS), len(PAIRS), 0.5)


def test_spec_strings():
    b = open_backend("world", seed="3", p="0.8", base="own", flipped="0.1")
    assert b.world == World(seed=3, flipped=0.1) and b.skills == Skills(p=0.8, base=None)
    assert b.identity != open_backend("world", seed="3").identity
    with pytest.raises(ValueError, match="no option 'sead'"): open_backend("world", sead="3")
    with pytest.raises(ValueError, match="unknown fake 'wrold'"): open_backend("wrold")
    with pytest.raises(ValueError, match="less than or equal to 1"): open_backend("world", p="1.2")


# replies of one's own

def test_replies_by_list_table_and_function():
    ask = lambda e, *texts, **kw: [[getattr(r, "text", r) for r in row] for row in e.generate([Chat.user(t) for t in texts], **kw)]
    listed = answers(["Titan", "Rhea", "Dione"])
    assert ask(listed, "largest?", "second?") == [["Titan"], ["Rhea"]]
    assert ask(listed, "third?") == [["Dione"]]
    with pytest.raises(LookupError, match="all 3 replies are used up; asked once more: 'fourth"): ask(listed, "fourth?")
    assert ask(answers({"Mars": "Phobos", "": "no moon"}), "Mars?", "Venus?") == [["Phobos"], ["no moon"]]
    with pytest.raises(LookupError, match="holds none of"): ask(answers({"Mars": "Phobos"}), "Venus?")
    assert ask(answers(lambda c: c.text[::-1]), "abc", n=2, temperature=1.0) == [["cba", "cba"]]
    timeout = Failure(reason="timeout", detail="60 s")
    assert ask(answers({"Mars": timeout}), "Mars?") == [[timeout]]


def test_scores_of_ones_own():
    table = answers(scores={"moon": (-0.1, -2.4)})
    assert table.score([Chat.user("a moon?")], ["yes", "no"])[0].logprobs == (-0.1, -2.4)
    with pytest.raises(LookupError, match="no scores for a prompt"): table.score([Chat.user("a star?")], ["yes", "no"])
    with pytest.raises(ValueError, match="2 scores for 3 choices"): table.score([Chat.user("moon")], ["yes", "no", "perhaps"])
    assert answers(scores=lambda c, labels: [-len(x) for x in labels]).score([Chat.user("?")], ["yes", "no"])[0].logprobs == (-3, -2)
    with pytest.raises(LookupError, match="no scores were given"): answers(["x"]).score([Chat.user("?")], ["a", "b"])
