"""Probes: what is planted is found, what is only length is said to be, and a file is numbers."""
import json, zlib
import numpy as np
import pytest
from rubriclab.core.types import AnswerPair, Failure, Item, PreferencePair
from rubriclab.engines.engine import Engine
from rubriclab.judges.pointwise import grade
from rubriclab.judges.probe import Data, fit_data, fit_pair_probe, fit_probe, load_probe, probe_margins, probe_report, save_probe

RNG = np.random.default_rng(3)


class Knows:
    "A model whose state holds the truth about a text in one direction, and the length of the response in another."
    name, identity, depth = "knows", {"model": "knows"}, 9
    def hidden(self, requests):
        for i, r in enumerate(requests):
            text = r.chat.text
            noise = np.random.default_rng(zlib.crc32(text.encode())).normal(size=(len(r.layers), 8))
            noise[:, 0] += 2.0 if "truly" in text else -2.0
            noise[:, 1] += len(text.split("<response>")[1].split()) / 10
            if "broken" in text: yield i, Failure(reason="too_long")
            else: yield i, noise.astype(np.float32)


def items(n=120, lengths=lambda good: 10):
    out = []
    for i in range(n):
        good = bool(RNG.random() < 0.5)
        out.append(Item(id=str(i), prompt=f"Question {i // 2}?", response=("truly " if good else "hardly ") + "so " * lengths(good), rubric=["It is so."], gold_labels=(good,)))
    return out


def test_a_planted_direction_is_found_and_used():
    train, test = items(), items()
    e = Engine(Knows(), progress=False)
    probe = fit_probe(train, e)
    assert probe.report["probe_accuracy"] > 0.9 and probe.report["beats_length"] and probe.report["prompts"] == 60
    found = grade(test, e, probe=probe)
    assert np.mean([g.labels[0].label == ("yes" if i.gold_labels[0] else "no") for i, g in zip(test, found)]) > 0.9
    assert {g.readout for g in found} == {"probe"} and found[0].engine == f"knows+{probe.name}"


def test_a_probe_that_only_reads_length_says_so():
    n = 200
    y = RNG.integers(0, 2, n)
    words = y + RNG.normal(size=n) * 0.8 # longer answers are better, and the state knows nothing else
    x = RNG.normal(size=(n, 1, 6))
    x[:, 0, 0] = words
    probe = fit_data(Data(x, y.astype(float), np.arange(n)), words, [5], "knows", "grade/criterion")
    assert probe.report["probe_accuracy"] > 0.6 and not probe.report["beats_length"] and probe.report["length_correlation"] > 0.8
    assert "no better than length" in probe_report(probe)[0]["note"]


def test_noise_is_reported_as_chance():
    n = 200
    probe = fit_data(Data(RNG.normal(size=(n, 2, 6)), RNG.integers(0, 2, n).astype(float), np.arange(n) // 2), RNG.normal(size=n), [1, 2], "knows", "grade/criterion")
    assert probe.report["probe_low"] < 0.5 < probe.report["probe_high"] + 0.05 and not probe.report["beats_length"]


def test_pairs_have_no_order():
    e = Engine(Knows(), progress=False)
    pairs = [PreferencePair(id=str(i), prompt=f"Question {i}?", chosen=f"truly {i}", rejected=f"hardly {i}") for i in range(40)]
    probe = fit_pair_probe(pairs, e)
    first = probe_margins(pairs, e, probe)
    swapped = probe_margins([AnswerPair(id=p.id, prompt=p.prompt, response_a=p.rejected, response_b=p.chosen) for p in pairs], e, probe)
    assert np.allclose([j.margin for j in first], [-j.margin for j in swapped]) and np.mean([j.winner == "chosen" for j in first]) > 0.9


def test_failures_stay_failures():
    e = Engine(Knows(), progress=False)
    probe = fit_probe([*items(60), Item(id="b", prompt="Question b?", response="broken truly", rubric=["It is so."], gold_labels=(True,))], e)
    g = grade([Item(id="b", prompt="Question b?", response="broken", rubric=["It is so."])], e, probe=probe)[0]
    assert g.score is None and g.labels[0].failure.reason == "too_long" and probe.report["n"] == 60


def test_a_probe_reads_only_what_it_was_fitted_on():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(40, 1, 8))
    fitted = lambda engine, prompt="grade/criterion": fit_data(Data(x, (x[:, 0, 0] > 0).astype(float), np.arange(40)), rng.normal(size=40), [5], engine, prompt)
    item, e = Item(id="b", prompt="Question b?", response="It is.", rubric=["It is so."]), Engine(Knows(), progress=False)
    for probe, how, said in ((fitted("other"), {}, "engine 'other'"), (fitted(e.name, "grade/brief"), {}, "prompt 'grade/brief'"), (fitted(e.name).replace(kind="pairs"), {}, "kind 'pairs'"),
                             (fitted(e.name), {"readout": "logprob"}, "a probe no other readout"), (None, {"readout": "probe"}, "needs a fitted probe")):
        with pytest.raises(ValueError, match=said): grade([item], e, probe=probe, **how)


def test_files(tmp_path):
    probe = fit_probe(items(60), Engine(Knows(), progress=False))
    save_probe(probe, tmp_path / "probe.json")
    assert load_probe(tmp_path / "probe.json") == probe and json.loads((tmp_path / "probe.json").read_text())["engine"] == "knows"
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="other.json is no probe"): load_probe(tmp_path / "other.json")
    with pytest.raises(ValueError, match="576|8 dimensions"): probe.predict(np.zeros((1, 4)))


def test_too_few_labels():
    e = Engine(Knows(), progress=False)
    with pytest.raises(ValueError, match="no item has gold_labels"): fit_probe([i.replace(gold_labels=()) for i in items(4)], e)
    with pytest.raises(ValueError, match="two or more prompts"): fit_probe(items(2), e)
