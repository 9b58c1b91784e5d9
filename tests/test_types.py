"""Types: round trips, immutability, and that a failure never carries a number."""
import pickle
import pytest
from hypothesis import example, given, settings, strategies as st
from pydantic import ValidationError
from rubriclab.core.types import KINDS, AnswerPair, Criterion, Failure, Frozen, Grade, Judgment, Label, PreferencePair, Rubric, Scale, Table, Verdict, markdown_table

TEXT = st.text(min_size=1, max_size=80).filter(lambda s: s.split())
KIND = st.sampled_from([None, *KINDS])
CRITERION = st.builds(Criterion, text=TEXT, kind=KIND, weight=st.floats(-20, 20, allow_nan=False), tags=st.lists(st.text(max_size=12), max_size=2).map(tuple))
RUBRIC = st.builds(Rubric, criteria=st.lists(CRITERION, min_size=1, max_size=6).map(tuple), source=st.none() | st.text(max_size=8), seed=st.none() | st.integers(0, 9))


@given(RUBRIC)
@example(Rubric(criteria=(Criterion(text="The response cites [Principle]"),)))
@example(Rubric(criteria=(Criterion(text="1. 2) - [Untagged]"), Criterion(text="ends so [Hard Rule]", kind="principle"))))
@example(Rubric(criteria=(Criterion(text='[{"text": "x"}]'),)))
@settings(max_examples=300)
def test_text_and_kind_survive_the_round_trip(rubric):
    back = Rubric.parse(str(rubric))
    assert [(c.text, c.kind) for c in back.criteria] == [(c.text, c.kind) for c in rubric.criteria]


@given(RUBRIC)
def test_json_is_lossless(rubric): assert Rubric.from_json(rubric.to_json()) == rubric


@given(st.text(max_size=300))
def test_parse_gives_a_rubric_or_one_clear_error(text):
    try: rubric = Rubric.parse(text)
    except ValueError as e: assert str(e)
    else: assert all(c.text.strip() for c in rubric.criteria) and 0 <= rubric.untagged <= len(rubric)


@pytest.mark.parametrize("text, kinds", [
    ("1. The response is short. [Hard Rule]\n2) The response is kind. [Principle]", ["hard_rule", "principle"]),
    ("- one\n* two\n• three", [None] * 3),
    ('```json\n["The response is short. [Hard Rule]"]\n```', ["hard_rule"]),
    ('{"rubric": [{"criterion": "Says hello.", "points": 3}]}', [None]),
    ("10. The response is short. (Hard Rule).", ["hard_rule"]),
])
def test_parse_reads_the_common_forms(text, kinds): assert [c.kind for c in Rubric.parse(text).criteria] == kinds


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match="no criterion found; write a numbered list"): Rubric.parse("Sure!")
    with pytest.raises(ValueError, match="has no text; name the field `text`"): Rubric.parse([{"points": 3}])
    with pytest.raises(ValidationError, match="2 labels but 3 values"): Scale(name="met", labels=("no", "yes"), values=(0, 1, 2))


def test_nothing_can_change():
    pair = PreferencePair(id="a", prompt="p", chosen="c", rejected="r", meta={"family": "format"})
    with pytest.raises(ValidationError): pair.chosen = "x"
    with pytest.raises(TypeError): pair.meta["family"] = "x"
    assert pickle.loads(pickle.dumps(pair)) == pair and hash(pair) == hash(PreferencePair.from_json(pair.to_json()))
    assert isinstance(pair.meta, Frozen)


@pytest.mark.parametrize("make", [
    lambda f: Verdict(pair_id="a", shown_first="first", winner="chosen", failure=f),
    lambda f: Verdict(pair_id="a", shown_first="first", margin=0.1, failure=f),
    lambda f: Label(criterion=0, label="met", failure=f),
    lambda f: Grade(item_id="a", score=0.0, failure=f),
])
def test_a_failure_is_never_a_score(make):
    with pytest.raises(ValidationError): make(Failure(reason="no_parse"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_nan(bad):
    with pytest.raises(ValidationError): Verdict(pair_id="a", shown_first="first", winner="chosen", margin=bad)


def test_a_margin_never_depends_on_position():
    v = lambda shown, m: Verdict(pair_id="a", shown_first=shown, winner="A" if m > 0 else "B", margin=m)
    one, two = Judgment(pair_id="a", verdicts=(v("first", 1.0), v("second", -0.25))), Judgment(pair_id="a", verdicts=(v("second", -0.25), v("first", 1.0)))
    assert one.margin == two.margin == 0.375 and one.winner == two.winner == "A" and one.consistent is False


@given(st.text(max_size=200))
def test_cells_cannot_break_a_table(text):
    table = markdown_table(["answer"], [[text]])
    assert len(table.splitlines()) == 3 and "<script" not in table.lower()


def test_tables_count_failures():
    rows = Table([Failure(reason="timeout"), AnswerPair(id="x", prompt="p", response_a="a", response_b="b")])
    assert "2 rows, 1 failed" in rows._repr_markdown_()
