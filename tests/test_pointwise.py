"""Grading: modes, readouts, scales, failures, orders, ensembles and thresholds, on engines whose truth is known."""
import json
import pytest
from hypothesis import given, strategies as st
from rubriclab.core.types import SCALES, Completion, Failure, Item, Label, Scores, Usage, tiers
from rubriclab.engines.engine import Engine
from rubriclab.engines.fake import FakeBackend, Skills, World, answers
from rubriclab.judges.pointwise import (Grading, apply_thresholds, criterion_tasks, fit_thresholds, grade, grade_ensemble, json_entries, label_schema, listing, rescore, sort_entries,
                                        vote)

world = World(seed=5)
ITEMS = world.items(12)
MOON = Item(id="moon", prompt="Name a moon.", response="Titan.", rubric=["It names Titan.", "It hedges."])


def fake(p=1.0, **skills): return Engine(FakeBackend(world, Skills(p=p, **skills)), progress=False)
def names(grades): return [[x.label for x in g.labels] for g in grades]
GOLD = [["yes" if y else "no" for y in i.gold_labels] for i in ITEMS]


class Fixed:
    "Gives the same answer to everything."
    name, identity = "fixed", {"model": "fixed"}
    def __init__(self, reply=None, scores=None): self.reply, self.given, self.asked = reply, scores, []
    def complete(self, requests):
        for i, r in enumerate(requests):
            self.asked.append(r)
            yield i, self.reply if isinstance(self.reply, Failure) else Completion(text=self.reply, usage=Usage(prompt_tokens=10, completion_tokens=3, calls=1))
    def logprobs(self, requests):
        for i, r in enumerate(requests):
            self.asked.append(r)
            yield i, self.given if isinstance(self.given, Failure) else Scores(logprobs=self.given[:len(r.choices)], usage=Usage(prompt_tokens=10, calls=1))


@pytest.mark.parametrize("mode", ["per_criterion", "per_item"])
@pytest.mark.parametrize("readout", ["logprob", "generate"])
@pytest.mark.parametrize("scale", ["binary", "met3", "support3", "cover5", "likert5", "sign", tiers("poor", "fair", "good")])
def test_a_grader_that_errs_never_finds_the_truth(mode, readout, scale):
    found = grade(ITEMS, fake(), mode=mode, readout=readout, scale=scale)
    s = Grading(scale=scale).scale
    assert names(found) == [[s.best if y else s.worst for y in i.gold_labels] for i in ITEMS]
    assert all(g.scales == (s,) and g.failure is None and 0 <= g.score <= 1 for g in found)


@pytest.mark.parametrize("order", ["reversed", "random"])
def test_orders_change_the_prompt_and_not_what_it_means(order):
    e = fake()
    found = grade(ITEMS, e, mode="per_item", readout="generate", criteria_order=order, labels_order=order, seed=3)
    assert names(found) == GOLD
    assert found[0].order and any(x.shown for g in found for x in g.labels)
    alone = grade(ITEMS[4:5], e, mode="per_item", readout="generate", criteria_order=order, labels_order=order, seed=3)
    assert alone[0] == found[4] # the order belongs to the item, not to the batch
    other = grade(ITEMS, e, mode="per_item", readout="generate", criteria_order="random", seed=4)
    assert order == "reversed" or [g.order for g in other] != [g.order for g in found]


@pytest.mark.parametrize("mode, prompt, asks", [("per_item", None, True), ("per_item", "grade/item", True), ("per_criterion", None, True), ("per_criterion", "grade/criterion_first", True), ("per_criterion", "grade/brief", False)])
def test_json_where_the_engine_can_and_the_prompt_asks_for_it(mode, prompt, asks):
    e, held = fake(), []
    e.backend.json_schema, reply = True, e.backend.reply
    e.backend.reply = lambda r: held.append(r.response_schema) or reply(r)
    found = grade(ITEMS, e, mode=mode, prompt=prompt, readout="generate")
    assert names(found) == GOLD and held and all((x is not None) == asks for x in held)
    if mode == "per_criterion" and asks: assert not any("{" in x.rationale for g in found for x in g.labels)


def test_lines_where_a_server_was_asked_for_json_and_wrote_lines():
    e = Engine(Fixed("1. It does. Label: yes\n2. It does not. Label: no"))
    e.backend.json_schema = True
    assert names(grade([MOON], e, mode="per_item", readout="generate")) == [["yes", "no"]]


def test_a_label_under_a_schema_has_room_before_the_limit():
    for tokens, length in ((96, 192), (1000, 400), (4, 20)): assert label_schema(["yes", "no"], tokens)["properties"]["reason"]["maxLength"] == length


@pytest.mark.parametrize("reply, label", [('{"reason": "It does.", "label": "yes"}', "yes"), ('Sure: {"label": "No"} So it is.', "no"), ('{"reason": "cut', None), ('{"label": "perhaps"}', None),
                                          ('{"label": true}', None), ("It does.\nLabel: yes", "yes"), ('{"labels": []}', None)])
def test_replies_of_servers_that_hold_to_a_schema_or_not(reply, label):
    e = Engine(Fixed(reply))
    e.backend.json_schema = True
    x = grade([MOON], e, readout="generate")[0].labels[0]
    assert x.label == label and (label or x.failure.reason == "no_parse")
    assert '"reason"' in e.backend.asked[0].chat.text and "`Label:`" not in e.backend.asked[0].chat.text


def test_the_prompt_of_engines_that_write_freely_asks_for_lines():
    chat = criterion_tasks([MOON], Grading())[0].chat
    assert "`Label:`" in chat.text and "JSON" not in chat.text


def test_negative_criteria_mean_what_they_say():
    def score(**by): return grade([MOON.replace(rubric=[{"text": "a", "weight": 2}, {"text": "b", "weight": -1}])], answers(lambda c: f"Label: {by['a' if chr(10) + 'a' + chr(10) in c.text else 'b']}"), readout="generate")[0].score
    assert score(a="yes", b="no") > score(a="yes", b="yes") > score(a="no", b="yes")


def test_one_reply_missing_doubled_and_unknown():
    reply = "1. good Label: yes\n3. twice Label: no\n3. twice Label: no\n4. odd. Label: perhaps\n9. none Label: yes"
    item = MOON.replace(rubric=["a", "b", "c", "d"])
    g = grade([item], Engine(Fixed(reply)), mode="per_item", readout="generate")[0]
    assert [x.label for x in g.labels] == ["yes", None, None, None] and g.parts["unknown_criteria"] == [9] and g.score is None
    assert [x.failure.reason for x in g.labels[1:]] == ["missing", "no_parse", "no_parse"] and "2 labels" in g.labels[2].failure.detail
    assert rescore([item], [g], policy="exclude")[0].score == 1
    cut = grade([item], Engine(Fixed("I would say")), mode="per_item", readout="generate")[0]
    assert {x.failure.reason for x in cut.labels} == {"no_parse"} and cut.failure


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["yes", "no", "maybe", ""])), max_size=8))
def test_every_criterion_is_labeled_once_or_fails(entries):
    out, unknown = sort_entries(entries, (2, 0, 1), [SCALES["binary"]] * 3)
    numbers = [n for n, _ in entries]
    for n, k in enumerate((2, 0, 1), 1):
        ok = numbers.count(n) == 1 and dict(entries)[n] in ("yes", "no")
        assert (out[k] == dict(entries)[n]) if ok else isinstance(out[k], Failure)
    assert unknown == sorted({n for n in numbers if n not in (1, 2, 3)})


@given(st.text(max_size=60))
def test_no_reply_breaks_the_reader(text):
    json_entries(text), json_entries('{"labels": ' + text)
    grade([MOON], Engine(Fixed(text)), mode="per_item", readout="generate")
    grade([MOON], Engine(Fixed(text)), readout="generate")


def test_a_failed_call_is_a_failed_criterion():
    f = Failure(reason="timeout", detail="60 s")
    for how in (dict(), dict(readout="generate"), dict(mode="per_item", readout="generate"), dict(calibrate="N/A")):
        g = grade([MOON], Engine(Fixed(f, f)), **how)[0]
        assert g.score is None and g.expected_score is None and [x.failure.reason for x in g.labels] == ["timeout"] * 2 and g.failure.reason == "timeout"
    assert grade([MOON], Engine(Fixed(f, f)), mode="holistic")[0].failure.reason == "timeout"


def test_probabilities_and_ties():
    g = grade([MOON], Engine(Fixed(scores=(-1.0, -1.0))))[0]
    assert [x.label for x in g.labels] == ["no", "no"] and g.labels[0].prob == 0.5 and g.expected_score == 0.5 # a tie goes to the worse label
    na = grade([MOON], Engine(Fixed(scores=(-3.0, -2.0, -0.1))), scale="met3")[0]
    assert na.labels[0].label == "not applicable" and na.labels[0].value is None and 0.7 < na.labels[0].prob < 0.75 and na.score is None


def test_calibration_divides_the_taste_for_a_word_out():
    biased = Fixed(scores=(-2.0, -0.2))
    assert [x.prob for x in grade([MOON], Engine(biased), calibrate="N/A")[0].labels] == [0.5, 0.5]
    assert sum("\nN/A\n" in r.chat.text for r in biased.asked) == 2


def test_votes():
    e = Engine(Replies(["Label: yes", "Label: no", "Label: no", "hm"]))
    g = grade([MOON.replace(rubric=["a"])], e, readout="generate", votes=4, temperature=0.7)[0]
    assert g.labels[0].votes == ("yes", "no", "no", None) and g.labels[0].label == "no"
    assert g.labels[0].prob == pytest.approx(1 / 3) and g.labels[0].disagreement == pytest.approx(2 / 3)


class Replies:
    name, identity = "replies", {"model": "replies"}
    def __init__(self, replies): self.replies = replies
    def complete(self, requests): return ((i, Completion(text=self.replies[r.index])) for i, r in enumerate(requests))


def test_holistic():
    assert grade([MOON], Engine(Fixed("Fine.\nScore: 4/5")), mode="holistic", readout="generate")[0].score == 4
    assert grade([MOON], Engine(Fixed("Score: 9")), mode="holistic", readout="generate")[0].failure.reason == "no_parse"
    assert grade([MOON], Engine(Fixed("Score: 83.5")), mode="holistic", holistic="0-100", readout="generate")[0].score == 83.5
    g = grade([MOON], Engine(Fixed(scores=(-9.0, -9.0, -1.0, -1.0, -9.0))), mode="holistic")[0]
    assert g.score == 3 and g.expected_score == pytest.approx(3.5, abs=0.01)
    hundred = Fixed(scores=tuple(float(-k) for k in range(11)))
    grade([MOON.replace(rubric=None)], Engine(hundred), mode="holistic", holistic="0-100")
    assert hundred.asked[0].choices[1] == " 10/100" and "<rubric>" not in hundred.asked[0].chat.text
    share = grade(ITEMS, fake(), mode="holistic", holistic="0-100", readout="generate")
    assert [g.score for g in share] == [round(100 * sum(i.gold_labels) / 5) for i in ITEMS]


def test_examples_reference_context_and_length():
    c = {"text": "It names Titan.", "examples": [{"response": "Titan!", "label": "yes"}]}
    text = criterion_tasks([MOON.replace(rubric=[c], reference="Titan", context="Saturn has moons.")], Grading(length_neutral=True))[0].chat.text
    assert all(x in text for x in ("Titan!", "<reference_response>\nTitan\n", "<context>\nSaturn has moons.", "How long the response is"))
    assert text.index("Saturn has moons.") < text.index("<reference_response>") < text.index("<response>") < text.index("<criterion>")
    first = criterion_tasks([MOON], Grading(prompt="grade/criterion_first"))[0].chat.text
    assert first.index("<criterion>") < first.index("<response>")


@given(st.text(alphabet="</>criteriaonsp \n{}#", max_size=80))
def test_an_answer_stays_in_its_section(text):
    chat = criterion_tasks([MOON.replace(response=text)], Grading())[0].chat
    assert chat.text.count("<criterion>") == 1 and chat.text.count("</response>") == 1 and chat.text.count("<response>") == 1


@pytest.mark.parametrize("change, says", [(dict(response=None), "moon, response: is missing; write the answer"), (dict(rubric=None, gold_labels=()), "moon, rubric: is missing; write the criteria"),
    (dict(rubric=[{"text": "a", "examples": [{"response": "b", "label": "maybe"}]}]), "rubric: criterion 1, example: 'maybe'"), (dict(gold_labels=("maybe", None)), "gold_labels: criterion 1: 'maybe'")])
def test_bad_items(change, says):
    with pytest.raises(ValueError, match=says): grade([MOON.replace(**change)], fake())


@pytest.mark.parametrize("how, says", [(dict(aggregate="mode"), "unknown aggregate 'mode'"), (dict(votes=3), "votes=3 needs"), (dict(scale="stars"), "unknown scale 'stars'"),
    (dict(readout="probe"), "needs a fitted probe"), (dict(calibrate="N/A", readout="generate"), "use readout='logprob'"), (dict(temprature=1), "no setting 'temprature'"),
    (dict(policy="zero"), "setting policy='zero'")])
def test_bad_settings(how, says):
    with pytest.raises(ValueError, match=says): grade([MOON], fake(), **how)


def test_a_second_look_asks_nobody():
    e = fake(0.8)
    graded = grade(ITEMS, e)
    asked = e.tally.asked
    again = rescore(ITEMS, graded, aggregate="healthbench")
    assert e.tally.asked == asked and [g.labels for g in again] == [g.labels for g in graded] and again[0].parts["aggregate"] == "healthbench"


def test_thresholds_are_fitted_on_labels_and_move_only_them():
    say_yes = [(0.7, True), (0.65, True), (0.6, False), (0.55, False)] * 5
    items = [MOON.replace(id=f"m{i}", rubric=["a"], gold_labels=(y,)) for i, (_, y) in enumerate(say_yes)]
    graded = [grade([i], Engine(Fixed(scores=(0.0, 0.0))))[0].replace(labels=(Label(criterion=0, label="yes", value=1, prob=p),)) for i, (p, _) in zip(items, say_yes)]
    cuts = fit_thresholds(items, graded)
    assert cuts.cut == pytest.approx(0.625)
    assert [g.labels[0].label == "yes" for g in apply_thresholds(items, graded, cuts)] == [y for _, y in say_yes]
    assert fit_thresholds(items, graded, each=True).by_criterion == {"a": pytest.approx(0.625)}
    with pytest.raises(ValueError, match="of both classes"): fit_thresholds(items[:1], graded[:1])


def test_ensembles():
    good, bad, broken = fake(), fake(0.0), Engine(Fixed(Failure(reason="timeout"), Failure(reason="timeout")))
    three = grade_ensemble(ITEMS, [good, bad, good])
    assert names(three) == GOLD and all(x.disagreement == pytest.approx(2 / 3) for g in three for x in g.labels) and three[0].parts["disagreement"] == pytest.approx(2 / 3)
    assert names(grade_ensemble(ITEMS, [good, bad], rule="weighted", weights=[2, 1])) == GOLD
    assert all(x == "no" for row in names(grade_ensemble(ITEMS, [good, bad], rule="unanimous")) for x in row)
    assert names(grade_ensemble(ITEMS, [broken, good])) == GOLD # who failed has no vote
    lost = grade_ensemble(ITEMS[:1], [broken, good], rule="unanimous")[0]
    assert lost.score is None and lost.labels[0].failure.reason == "timeout" and lost.labels[0].votes[0] is None
    assert {g.engine for g in three} == {"majority(fake, fake, fake)"}
    two = grade_ensemble(ITEMS, [fake(0.9)], prompts=["grade/criterion", "grade/criterion_first"], rule="mean")
    assert len(two[0].labels[0].votes) == 2
    with pytest.raises(ValueError, match="needs `weights`"): grade_ensemble(ITEMS, [good, bad], rule="weighted")
    with pytest.raises(ValueError, match="3 weights for 2 members"): grade_ensemble(ITEMS, [good, bad], weights=[1, 1, 1])


@given(st.lists(st.sampled_from(SCALES["cover5"].labels), min_size=1, max_size=5), st.randoms())
def test_a_vote_does_not_depend_on_the_order_of_the_members(labels, random):
    s = SCALES["cover5"]
    members = [Label(criterion=0, scale=s.name, label=x, value=s.value(x)) for x in labels]
    mixed = random.sample(members, len(members))
    for rule in ("majority", "mean", "unanimous"): assert vote(members, s, rule).label == vote(mixed, s, rule).label
    assert s.value(vote(members, s, "unanimous").label) == min(x.value for x in members)


@given(st.integers(2, 7), st.text(max_size=8))
def test_listings_are_permutations(n, key):
    for how in ("given", "reversed", "random"): assert sorted(listing(range(n), how, key)) == list(range(n))
    assert listing(range(n), "random", key) == listing(range(n), "random", key)


def test_usage_is_the_sum_of_the_calls():
    assert grade([MOON], Engine(Fixed(scores=(-1.0, -2.0))))[0].usage == Usage(prompt_tokens=20, calls=2)
    assert grade([MOON], Engine(Fixed(scores=(-1.0, -2.0))), calibrate="N/A")[0].usage == Usage(prompt_tokens=40, calls=4)
    assert json.loads(grade([MOON], Engine(Fixed(scores=(-1.0, -2.0))))[0].to_json())["parts"]["policy"] == "propagate"
