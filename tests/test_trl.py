"""Rewards inside TRL's own GRPO trainer, on a random model of 32 dimensions."""
import math
import pytest

pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from rubriclab.data.verifiable import verifiable_pairs
from rubriclab.engines.fake import World
from rubriclab.training.recipe import open_base
from rubriclab.training.rewards import AsyncReward, ByRubric, Checked, Mixed, Reward, WithinLength

PAIRS = verifiable_pairs(6, seed=3)[::2]


class Recording:
    "A scorer that keeps what it was asked and what it said."
    def __init__(self, inner): self.inner, self.seen = inner, []
    def __call__(self, prompts, completions, columns):
        values = self.inner(prompts, completions, columns)
        self.seen.append((list(prompts), list(completions), {k: list(v) for k, v in columns.items()}, values))
        return values


def trained(tmp_path, rows, *rewards, **args):
    net, tokenizer = open_base("tiny")
    config = GRPOConfig(output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=4, max_completion_length=8, use_cpu=True, report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True, bf16=False, seed=0, **args)
    trainer = GRPOTrainer(model=net, reward_funcs=list(rewards), args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    return [x for x in trainer.state.log_history if "reward" in x]


@pytest.mark.parametrize("form", [Reward, AsyncReward])
def test_the_trainer_pays_what_the_scorer_says_alone(form, tmp_path):
    scorer = Recording(Mixed([(Checked(), 0.7), (WithinLength(4), 0.3)]))
    rows = [{"prompt": [{"role": "user", "content": p.prompt}], "constraints": [{"kind": c["kind"], "args": dict(c["args"])} for c in p.meta["constraints"]]} for p in PAIRS]
    log = trained(tmp_path, rows, form(scorer, "paid"))
    assert len(scorer.seen) == 2 and len(log) == 2
    for (prompts, completions, columns, values), step in zip(scorer.seen, log):
        assert len(set(map(str, prompts))) == 1 and len(completions) == 4 and all(isinstance(c, str) for c in completions)
        assert scorer.inner(prompts, completions, columns) == values
        assert step["rewards/paid/mean"] == pytest.approx(sum(values) / 4, abs=1e-6) and step["paid/words"] == pytest.approx(sum(len(c.split()) for c in completions) / 4)
        assert step["paid/abstained"] == 0.0 and "paid/spread" in step


def test_an_abstention_is_left_out_and_not_low(tmp_path):
    "TRL 1.16 counts a None beside another function's value as 0 under its default; one function that returns None is left out."
    odd = lambda prompts, completions, columns: [None if n % 2 else 1.0 for n in range(len(prompts))]
    log = trained(tmp_path, [{"prompt": p.prompt} for p in PAIRS], Reward(Mixed([(odd, 1.0), (WithinLength(100), 1.0)]), "paid"))
    assert all(step["rewards/paid/mean"] == pytest.approx(2.0) and step["paid/abstained"] == 0.5 and math.isfinite(step["loss"]) for step in log)
    apart = trained(tmp_path, [{"prompt": p.prompt} for p in PAIRS], Reward(odd, "odd"), Reward(WithinLength(100), "length"))
    assert all(step["reward"] == pytest.approx(1.5) for step in apart) # why parts that belong together are one function


def test_a_judge_in_the_loop(tmp_path):
    world = World(seed=5)
    rows = [{"prompt": world.request(i), "rubric": str(world.rubric(i))} for i in range(3)]
    judge = Recording(ByRubric("fake:world?seed=5"))
    try: log = trained(tmp_path, rows, Reward(judge, "rubric"))
    except (ValueError, RuntimeError) as e: pytest.fail(f"a completion that the judge cannot grade must not stop training: {e}")
    assert all(v is None for _, _, _, values in judge.seen for v in values) # the fake grader knows no answer in a random text: it abstains
    assert all(step["rubric/abstained"] == 1.0 for step in log)
