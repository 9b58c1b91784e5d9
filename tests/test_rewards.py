"""Rewards: the same values everywhere, abstention where the judge fails, and TRL's trainer paying them."""
import asyncio, pickle
from concurrent.futures import ThreadPoolExecutor
import pytest
from rubriclab.core.types import Failure, Rubric
from rubriclab.data.verifiable import verifiable_pairs
from rubriclab.engines.fake import World, answers, other
from rubriclab.training.rewards import (AgainstReference, AsyncReward, ByRewardModel, ByRubric, Checked, Distinct, Ensemble, Layout, LengthPenalty, LikeHuman, Longer, MakesRight, Mixed, PointLines, Ranked, Reward, Saturated, Veto,
                                        VerifierTargets, WithinLength, best_of_n, groups_of, rejection_sample, reply_text, score_candidates, spread)

WORLD = World(seed=5)
FAKE = "fake:world?seed=5&p=1&think=0&sigma=0&order_bias=0&length_bias=0"
PROMPTS = [WORLD.request(i) for i in range(8) for _ in range(2)]
TEXTS = [WORLD.answer(i, 0, x) for i in range(8) for b in [WORLD.lengths(i, 0)[0]] for x in (b, other(b))]
COLUMNS = {"rubric": [[{"text": c.text, "weight": c.weight} for c in WORLD.rubric(i).criteria] for i in range(8) for _ in range(2)], "reference": [t for i in range(0, 16, 2) for t in (TEXTS[i + 1], TEXTS[i])]}
COLUMNS |= {"constraints": [p.meta["constraints"] for p in verifiable_pairs(16, seed=3)[:16]], "answer": ["A", "B"] * 8, "rubric_label": ["helpful", "misleading", None, None] * 4, "request": PROMPTS, "better": TEXTS[::2] * 2, "worse": TEXTS[1::2] * 2}
RUBRICS = [str(WORLD.rubric(i)) for i in range(8) for _ in range(2)]
VERDICTS = [f"<analyze>Both were weighed.</analyze><rubric>helpful</rubric><answer>{x}</answer>" for x in "AABB" * 4]
SCORERS = [(ByRubric(FAKE), TEXTS), (AgainstReference(FAKE), TEXTS), (AgainstReference(FAKE, rubric=None), TEXTS), (MakesRight(FAKE), RUBRICS), (Ranked(ByRubric(FAKE)), TEXTS), (VerifierTargets(), VERDICTS), (Checked(), TEXTS), (Layout(r"Answer.*"), TEXTS),
           (PointLines(), RUBRICS), (Distinct(), TEXTS), (WithinLength(12), TEXTS), (Longer(12), TEXTS), (LikeHuman(unpointed=1.0), TEXTS), (Mixed([(ByRubric(FAKE), 0.7), (WithinLength(12), 0.3)]), TEXTS),
           (Ensemble([ByRubric(FAKE), ByRubric(FAKE + "&reader=1")]), TEXTS), (LengthPenalty(ByRubric(FAKE), 10, 0.01), TEXTS), (Veto(ByRubric(FAKE), WithinLength(12), 0.5), TEXTS), (Saturated(ByRubric(FAKE), 0.8), TEXTS)]


def the_same_everywhere(scorer, texts):
    alone = scorer(PROMPTS, texts, COLUMNS)
    assert len(alone) == 16 and all(isinstance(v, float) for v in alone)
    reward = Reward(scorer, "it")
    turns = [[{"role": "assistant", "content": t}] for t in texts]
    assert reward(prompts=PROMPTS, completions=turns, completion_ids=[[1]] * 16, trainer_state=None, log_extra=None, log_metric=lambda name, v: None, **COLUMNS) == alone
    again = pickle.loads(pickle.dumps(reward))
    assert again.__name__ == "it" and again(PROMPTS, texts, **COLUMNS) == alone
    with ThreadPoolExecutor(4) as pool: assert all(v == alone for v in pool.map(lambda _: reward(PROMPTS, texts, **COLUMNS), range(4)))
    async def running(): return [reward(PROMPTS, texts, **COLUMNS), *await asyncio.gather(*(AsyncReward(scorer, "it")(PROMPTS, texts, **COLUMNS) for _ in range(2)))]
    assert asyncio.run(running()) == [alone] * 3
    if isinstance(scorer, Ranked): return # it looks at all completions of a prompt at once
    paired = score_candidates(PROMPTS, [[t] for t in texts], scorer, COLUMNS)
    assert [v for v, in paired] == alone and best_of_n(PROMPTS, [[t] for t in texts], scorer, COLUMNS) == [0] * 16


@pytest.mark.parametrize("scorer, texts", SCORERS, ids=lambda x: type(x).__name__ if callable(x) else "")
def test_the_same_values_alone_in_trls_form_pickled_in_threads_and_in_a_running_loop(scorer, texts): the_same_everywhere(scorer, texts)


def test_an_engine_travels_by_its_name(tmp_path):
    from rubriclab.core.store import Store
    from rubriclab.engines.engine import Engine, engine
    judge = engine(FAKE, Store(tmp_path / "store.sqlite"))
    the_same_everywhere(ByRubric(judge), TEXTS)
    again = pickle.loads(pickle.dumps(judge))
    assert again.id == judge.id and again.store.path == tmp_path / "store.sqlite" and again.backend is judge.backend
    with pytest.raises(pickle.PicklingError, match="was made by hand; open it by a name"): pickle.dumps(Engine(judge.backend))


def test_a_repeating_writer_is_paid_nothing():
    hopeless = ["[" * 5000, '{"rubric": ' * 3000, '{"criteria": [' + "[" * 4000]
    assert MakesRight(FAKE)(PROMPTS[:3], hopeless, {k: v[:3] for k, v in COLUMNS.items()}) == [0.0] * 3


def test_the_same_values_of_a_reward_model(tmp_path):
    pytest.importorskip("transformers", reason="needs the extra: pip install 'rubriclab[hf]'")
    from transformers import AutoModelForSequenceClassification
    from rubriclab.training.recipe import open_base
    net, tokenizer = open_base("tiny")
    net.save_pretrained(tmp_path); tokenizer.save_pretrained(tmp_path)
    head = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    head.config.pad_token_id = tokenizer.pad_token_id
    head.save_pretrained(tmp_path)
    the_same_everywhere(ByRewardModel(str(tmp_path), device="cpu"), TEXTS)


def test_a_served_judge_pays_through_the_store(tmp_path):
    web = pytest.importorskip("aiohttp.web", reason='the api engine needs pip install "rubriclab[api]"')
    from rubriclab.core.store import Store
    from rubriclab.engines.api import open_backend
    from rubriclab.engines.engine import Engine
    from rubriclab.engines.flow import as_they_come
    asked = []
    async def answer(request):
        asked.append(text := str((await request.json())["messages"]))
        if "deaf" in text: return web.json_response({"error": {"message": "no"}}, status=400)
        return web.json_response({"choices": [{"message": {"content": f"It was read.\n\nLabel: {'yes' if 'Titan' in text else 'no'}"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
    async def serve(hand_out):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        await (runner := web.AppRunner(app)).setup()
        await (site := web.TCPSite(runner, "127.0.0.1", 0)).start()
        hand_out(site._server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()
    server = as_they_come(serve)
    judge = Engine(open_backend(f"toy@http://127.0.0.1:{next(server)}"), Store(tmp_path / "store.sqlite"), progress=False)
    reward = Reward(ByRubric(judge, expected=False, how={"readout": "generate"}))
    pay = lambda: reward(["Name a moon."] * 3, ["Titan.", "Mars.", "deaf"], rubric=["1. Names a moon."] * 3)
    assert pay() == [1.0, 0.0, None]
    before = len(asked)
    assert pay()[:2] == [1.0, 0.0] and not [x for x in asked[before:] if "deaf" not in x] # read once
    judge.close(); server.close()


def test_a_long_reply_that_was_cut_off_is_read_in_no_time():
    "A pattern for all of it took minutes: it tried every way to cut the criteria apart."
    cut = "\n".join(f"{n}. Names moon {n} and says how far away it is. [+{n % 9 + 1}]" for n in range(1, 200))
    assert PointLines()([""] * 2, [cut, cut + "\n200. Names the"], {}) == [1.0, 0.0]
    assert [round(v, 6) for v in VerifierTargets()(["p"], ["<analyze>" + "word " * 20_000], {"answer": ["A"], "rubric_label": [None]})] == [-0.7]


def test_rubrics_and_references_tell_better_from_worse():
    for scorer in (ByRubric(FAKE), AgainstReference(FAKE)):
        v = scorer(PROMPTS, TEXTS, COLUMNS)
        assert all(a > b for a, b in zip(v[::2], v[1::2]))
    assert AgainstReference(FAKE)(PROMPTS[:1], [" "], {k: v[:1] for k, v in COLUMNS.items()}) == [0.0]
    turns = [{"role": "user", "content": PROMPTS[0]}]
    assert ByRubric(FAKE)([turns], TEXTS[:1], {"rubric": [Rubric.parse(COLUMNS["rubric"][0])]}) == ByRubric(FAKE)(PROMPTS[:1], TEXTS[:1], {"rubric": COLUMNS["rubric"][:1]})


def test_a_failed_judge_abstains_and_is_never_low():
    deaf = lambda n: answers([Failure(reason="timeout", detail="no reply")] * n)
    written = {"expected": False, "how": {"readout": "generate"}}
    rows = {"rubric": ["1. Names one."] * 3, "reference": ["Rhea."] * 3}
    assert ByRubric(deaf(3), **written)(["Name a moon."] * 3, ["Titan.", "Io.", ""], rows) == [None] * 3
    assert AgainstReference(deaf(6), how={"readout": "generate"})(["Name a moon."] * 3, ["Titan.", "Io.", "Mimas."], rows) == [None] * 3
    none = lambda p, c, k: [None] * len(p)
    for outer in (Mixed([(none, 1.0), (Distinct(), 1.0)]), Ensemble([none]), Ensemble([none, Distinct()], quorum=2), LengthPenalty(none, 0, 1.0), Veto(none, Distinct(), 0.5), Veto(Distinct(), none, 0.5), Saturated(none), Ranked(none)):
        assert outer(["a", "b"], ["x", "y"], {}) == [None, None], outer


def test_c2_pays_its_verifier_as_written():
    good = "<analyze>Both were weighed.</analyze><rubric>misleading</rubric><answer>B</answer>"
    alone = "<analyze>Both were weighed.</analyze><answer>B</answer>"
    pay = lambda text, answer, label: VerifierTargets()(["p"], [text], {"answer": [answer], "rubric_label": [label]})[0]
    assert [round(pay(*x), 6) for x in ((good, "B", "misleading"), (good, "A", "misleading"), (good, "B", "helpful"), (good + "!", "B", "misleading"), ("nonsense", "B", "misleading"), (alone, "B", None), (alone, "A", None), ("B", "B", None), (good, "B", None))] == [
        1.0, -0.2, 0.4, 0.8, -1.0, 0.7, -0.5, 0.5, 0.5]


def test_the_checker_is_exact():
    pairs = verifiable_pairs(20, seed=3)
    rows = {"constraints": [p.meta["constraints"] for p in pairs]}
    good, bad = (Checked()([p.prompt for p in pairs], [getattr(p, side) for p in pairs], rows) for side in ("chosen", "rejected"))
    assert all(v == 1.0 for v in good) and all(v < 1.0 for v in bad)
    with pytest.raises(ValueError, match="row 0 has no constraint"): Checked()(["a"], ["b"], {"constraints": [[]]})


def test_ranks_share_equal_values_and_leave_gaps_out():
    values = [0.2, 0.9, 0.9, None, 0.5]
    assert Ranked(lambda p, c, k: values)(["a"] * 4 + ["b"], ["x"] * 5, {}) == [0.0, 0.75, 0.75, None, 0.5]
    assert groups_of(["a", "b", "a"]) == [[0, 2], [1]] and spread(["a", "a", "b"], [0.0, 1.0, 5.0]) == 0.5 and spread(["a"], [1.0]) is None


def test_best_of_n_and_rejection():
    candidates = [[TEXTS[2 * i + 1], TEXTS[2 * i]] for i in range(8)]
    rows = {"rubric": COLUMNS["rubric"][::2]}
    assert best_of_n(PROMPTS[::2], candidates, ByRubric(FAKE), rows) == [1] * 8
    assert rejection_sample(PROMPTS[::2], candidates, Ranked(ByRubric(FAKE)), 1.0, rows) == [[c[1]] for c in candidates]
    assert best_of_n(["a", "b"], [["x", "y"], []], lambda p, c, k: [None] * len(p)) == [None, None]


def test_metrics_say_what_was_paid():
    logged = {}
    half = lambda p, c, k: [None if n % 4 == 0 else float(n) for n in range(len(p))]
    Reward(half, "r", held_out=WithinLength(1000))(PROMPTS, TEXTS, log_metric=logged.__setitem__, **COLUMNS)
    assert logged["r/abstained"] == 0.25 and logged["r/held_out"] == 1.0 and logged["r/words"] > 5 and logged["r/spread"] > 0
    assert reply_text([{"role": "assistant", "content": "a"}, {"role": "tool", "content": "x"}, {"role": "assistant", "content": "b"}]) == "a\nb"
    assert [reply_text(x) for x in ("<think>\n1. no\n</think>\n\n1. yes", "<think>\n1. cut off", "1. yes", "it says </think> and 2. more")] == ["1. yes", "", "1. yes", "and 2. more"]


def test_a_reward_without_spread_warns():
    with pytest.warns(UserWarning, match="flat pays every completion of a group alike"): Reward(lambda p, c, k: [1.0] * len(p), "flat")(["a", "a"], ["x", "y"], log_metric=lambda n, v: None)


def test_a_missing_column_is_one_clear_error():
    with pytest.raises(ValueError, match="needs the column 'rubric'; the data has reference"): ByRubric(FAKE)(["a"], ["b"], {"reference": ["c"]})
    with pytest.raises(ValueError, match="2 values for 1"): Reward(lambda p, c, k: [1.0, 2.0], "odd")(["a"], ["b"])


def test_repetition_is_told_in_every_script_and_not_by_a_line_s_number():
    lines = ["1. 说出月亮\n2. 提到土星\n3. 简短 [+3]", "1. Names 5 items [+3]\n2. Names 7 items [+3]", "1. Names it. [+3]\n2. names IT [-2]", " \n"]
    assert Distinct()([""] * 4, lines, {}) == [1.0, 1.0, 0.5, 0.0]
