"""Prompts: goldens of every shipped file, and no way out of a section."""
import re
from pathlib import Path
import pytest
from hypothesis import given, strategies as st
import rubriclab
from rubriclab.core.prompts import fill, parse_template, read_verdict, template
from rubriclab.core.types import Message, Rubric

GOLDENS = Path(__file__).parent / "goldens"
FOLDER = Path(rubriclab.__file__).parent / "prompts"
NAMES = sorted(str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.rglob("*.md"))
VALUES = {"request": "Name Saturn's largest moon in one word.", "chosen": "Titan", "rejected": "It may be {Rhea}.", "responses": "Rank 1:\nTitan\n\nRank 2:\nRhea",
          "rubric": Rubric.parse("1. The response is one word. [Hard Rule]\n2. The response is right. [Principle]"), "response_a": "Titan", "response_b": "It may be {Rhea}.",
          "response": "It may be {Rhea}.", "context": "Saturn has many moons.", "reference": "Titan", "criterion": "The response names Titan.", "labels": "no | yes",
          "examples": "Response: Titan!\nLabel: yes", "criteria": "1. The response names Titan. (labels: no | yes)", "number": 1, "worst": "1", "best": "5",
          "first": "The response names Titan.", "second": "It says that the moon is Titan.", "exemplars": "<similar_request>\nName a moon.\n</similar_request>", "most": "12",
          "length_neutral": True, "lines": True, "json": True}


def rendered(name):
    t = template(name)
    chat = fill(t, {k: v for k, v in VALUES.items() if k in (*t.slots, *t.optional)}, t.verdict_prefill)
    return "\n".join(f"## {m.role}\n{m.content}" for m in chat.messages) + f"\n## prefill\n{chat.prefill}\n"


@pytest.mark.parametrize("name", NAMES)
def test_golden(name):
    golden = GOLDENS / f"{name.replace('/', '.')}.txt"
    assert golden.is_file(), f"no golden for {name}; look at the prompt, then write it with: python tests/test_prompts.py"
    assert rendered(name) == golden.read_text(encoding="utf-8"), f"prompt {name} changed; look at it, then: python tests/test_prompts.py"


@given(st.text(alphabet="</>response_ab{}rubict \n\u200bRA{{request}}", max_size=120))
def test_no_text_leaves_its_section(text):
    t = template("judge/with_rubric")
    chat = fill(t, {**{k: VALUES[k] for k in t.slots}, "response_a": text, "request": text})
    for tag in ("request", "rubric", "response_a", "response_b"):
        assert len(re.findall(rf"<\s*{tag}\b[^<>]*>", chat.text, re.I)) == 1 and len(re.findall(rf"<\s*/\s*{tag}\b[^<>]*>", chat.text, re.I)) == 1


@pytest.mark.parametrize("reply, want", [("Winner: Response A", "A"), ("**Winner:** Response **B**", "B"), ("winner: a", "a"), ("Winner: A\nno, Winner: Response B", "B"), ("Winner: Both", None), ("Winner: a tie", None), ("Winner: A draw", None),
    ("exactly `Winner: Response A` or `Winner: Response B`.", None), ("", None)])
def test_verdicts(reply, want): assert read_verdict(template("judge/direct"), reply) == want


@pytest.mark.parametrize("reply, want", [("It does.\nLabel: yes", "yes"), ("**Label:** `no`.", "no"), ("Label: no\nOn reflection:\nLabel: not applicable", "not applicable"),
    ("The label is yes", None), ("`Label:` and the label", None), ("Label:", None)])
def test_labels(reply, want): assert read_verdict(template("grade/criterion"), reply) == want


def test_blocks_go_without_a_trace():
    t = template("grade/criterion")
    values = {k: VALUES[k] for k in ("request", "response", "criterion", "labels")}
    bare = fill(t, {**values, "reference": None, "context": "", "examples": None, "length_neutral": False}).text
    assert bare == fill(t, values).text and "reference" not in bare and "{{" not in bare and "\n\n\n" not in bare
    assert fill(t, values | {"length_neutral": True}).text.count("How long the response is") == 1


def test_conversations_and_user_folders(tmp_path, monkeypatch):
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "direct.md").write_text("---\nverdict: '([12])$'\nchoices: ['1', '2']\n---\n# user\nQ {{request}}\n1: {{response_a}}\n2: {{response_b}}\n")
    monkeypatch.setenv("RUBRICLAB_PROMPTS_DIR", str(tmp_path))
    t = template("judge/direct")
    talk = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello"), Message(role="user", content="Bye"))
    assert t.choices == ("1", "2") and read_verdict(t, "so 2") == "2"
    assert "User: Hi\n\nAssistant: Hello\n\nUser: Bye" in fill(t, {"request": talk, "response_a": "", "response_b": ""}).text
    assert template("judge/with_rubric").slots # the others are still ours


def test_bad_files():
    with pytest.raises(ValueError, match="prompt mine: begin the text with a line `# user`"): parse_template("mine", "Judge {{this}}")
    with pytest.raises(FileNotFoundError, match="no prompt 'judge/none'"): template("judge/none")


if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    for n in NAMES: (GOLDENS / f"{n.replace('/', '.')}.txt").write_text(rendered(n), encoding="utf-8")
