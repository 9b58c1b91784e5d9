"""Training: every field is known, what is prepared is what is trained on, and a run that broke goes on as if it had not."""
import copy, json, os, random, re, shutil, signal, subprocess, sys, time, tracemalloc
from itertools import islice
from pathlib import Path
import numpy as np
import pytest
from conftest import command

pytest.importorskip("transformers", reason="needs the extra: pip install 'rubriclab[hf]'")
import torch
from rubriclab.core.types import Item
from rubriclab.data.records import prompt_key
from rubriclab.data.verifiable import verifiable_pairs
from rubriclab.engines.engine import engine
from rubriclab.judges.pointwise import Grading, grade
from rubriclab.training.judge_head import HeadData, HeadEvaluation, LabelLoss, LeftPadded, head_data, head_run
from rubriclab.training.labels import labeled_items, prepare_labels
from rubriclab.training.recipe import TrainRecipe, last_checkpoint, open_base, read_train_recipe, train_recipes, typed_fields
from rubriclab.training.run import plan_training, train, trained_prompts
from rubriclab.training.rows import ROWS, TextData, kept_out, split_rows
from rubriclab.training.text import PaidBy, check_mask, paid_by, reward_of, text_args, text_data

SMOKE = "judge-head-smoke"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head") / "run"
    return train(SMOKE, folder), folder


def weights(folder): return {k: v for k, v in torch.load(folder / "optimizer.pt", weights_only=True)["state"].items()}


@pytest.mark.parametrize("name", sorted(train_recipes()))
def test_packaged_recipes_are_whole(name):
    r = read_train_recipe(name)
    if r.kind == "judge-head": typed_fields(HeadData, r.data, "data"), typed_fields(HeadEvaluation, r.evaluation, "evaluation")
    else: paid_by(r, text_data(r))
    assert name.startswith(r.kind)


def test_every_kind_has_a_recipe_of_every_size():
    kinds, sizes = {"judge-head", *ROWS}, ("smoke", "laptop", "gpu")
    have = {(read_train_recipe(n).kind, n.removeprefix(read_train_recipe(n).kind + "-").split("-")[0]) for n in train_recipes()}
    assert {(k, s) for k in kinds for s in sizes} <= have


@pytest.mark.parametrize("name", [n for n in sorted(train_recipes()) if "-gpu" in n])
def test_recipes_for_gpus_are_planned_where_nothing_is_at_hand(name, monkeypatch):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("RUBRICLAB_DATA_DIR", "")
    r = read_train_recipe(name, {"data.prompts": 200})
    p = plan_training(r, "h100")
    assert p.weights >= 7e9 and p.gpus == r.gpus and p.steps >= 1 and p.hours > 0 and any("not on this machine" in g for g in p.guessed) and "GPU hours" in str(p)
    with pytest.raises(ValueError, match="has no field 'learning_rat'"): plan_training(read_train_recipe(name, {"data.prompts": 200, "args.learning_rat": 1}), "h100")


@pytest.mark.parametrize("name", [n for n in sorted(train_recipes()) if "grpo-gpu" in n])
def test_vllm_makes_room_for_what_is_written_and_no_more(name, tmp_path):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    r = read_train_recipe(name, {"args.use_cpu": True, "args.bf16": False, "args.generation_batch_size": 192})
    args = text_args(r, text_data(r), tmp_path)
    assert args.use_vllm and text_data(r).tokens + args.max_completion_length <= args.vllm_max_model_length < 11_000


@pytest.mark.parametrize("given, says", [
    ({"arg.max_steps": 3}, "no field 'arg'; did you mean 'args'"), ({"args.learning_rat": 1}, "args of TrainingArguments has no field 'learning_rat'; did you mean 'learning_rate'"), ({"args.seed": 1}, "no field 'seed'"),
    ({"data.prompt": 3}, "data has no field 'prompt'; did you mean 'prompts'"), ({"data.prompts": 0}, "data, field prompts"), ({"evaluation.item": 1}, "evaluation has no field 'item'"), ({"kind": "judge"}, "field kind"),
    ({"lora.rank": 4}, "lora has no field 'rank'"), ({"args.learning_rate": "fast"}, "field learning_rate: Input should be a valid number"), ({"args.max_steps": 2.5}, "field max_steps: Input should be a valid integer"),
    ({"args.max_steps": "[1"}, "field args.max_steps, line 1: no YAML here"), ({"args.do_predict": True}, "field do_predict: nothing reads it"), ({"args.hub_model_id": "a/b"}, "field hub_model_id: nothing reads it"),
    ({"args.save_only_model": True}, "field save_only_model: a run that was stopped could not go on"), ({"args.ignore_data_skip": True}, "field ignore_data_skip"),
    ({"dtype": "bfloat16"}, "recipe judge-head-smoke: dtype bfloat16 is for weights")])
def test_no_field_is_ignored(given, says):
    with pytest.raises(ValueError, match="(?s)" + says.replace("(", r"\(")): plan_training(read_train_recipe(SMOKE, given))


@pytest.mark.parametrize("name, given, says", [
    ("judge-head-smoke", {"reward.by": "checker"}, "reward: judge-head pays for nothing"), ("policy-sft-smoke", {"evaluation.items": 9}, "evaluation: policy-sft is tested on"), ("policy-sft-smoke", {"data.labels": "judge"}, "field labels: policy-sft"),
    ("policy-sft-smoke", {"data.writes": "rules"}, "field writes: policy-sft"), ("reward-model-smoke", {"data.answers": "both"}, "field answers: reward-model"), ("policy-dpo-smoke", {"data.target": "trace"}, "field target: policy-dpo"),
    ("generator-sft-smoke", {"data.longest": 100}, "field longest: generator-sft with this source"), ("policy-dpo-smoke", {"data.source": "judged.jsonl", "data.kinds": ["bold"]}, "field kinds: policy-dpo with this source"),
    ("generator-dpo-smoke", {"reward.by": "checker"}, "pays for nothing"), ("policy-grpo-smoke", {"reward.judge": "smollm2"}, "field judge: a reward by checker"), ("policy-grpo-smoke", {"reward.per_word": 0.1}, "field per_word: a reward by checker"),
    ("policy-grpo-smoke", {"reward.aggregate": "healthbench"}, "field aggregate: a reward by checker"), ("policy-grpo-smoke", {"reward.by": "rubric", "reward.aggregate": "mean"}, "field aggregate: Input should be 'weighted_mean', 'healthbench'"),
    ("policy-grpo-smoke", {"reward.free_words": 0}, "field free_words: Input should be greater than or equal to 1"), ("generator-grpo-smoke", {"reward.readout": "generate"}, "field readout: a reward by likeness"),
    ("generator-grpo-smoke", {"reward.by": "use", "reward.max_tokens": 9}, "field max_tokens: a reward by use"),
    ("verifier-grpo-smoke", {"reward.words": 9}, "field words: a reward by targets"), ("generator-grpo-smoke", {"reward.expected": False}, "field expected: a reward by likeness"),
    ("generator-sft-smoke", {"lora": {"r": "four"}}, "lora, field r: "), ("generator-sft-smoke", {"lora": {"task_type": "CAUSAL_LM"}}, "lora has no field 'task_type'")])
def test_no_field_of_another_kind_is_ignored(name, given, says):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    with pytest.raises(ValueError, match=says): plan_training(read_train_recipe(name, given))


def test_training_sees_nothing_of_the_evaluation():
    train_items, texts, kinds = head_data(HeadData(prompts=300), HeadEvaluation(prompts=200, other_kinds=("ends_question", "bold")))
    assert {i.meta["kind"] for i in kinds} == {"ends_question", "bold"} and not {i.meta["kind"] for i in train_items + texts} & {"ends_question", "bold"}
    _, tokenizer = open_base("tiny")
    ready = prepare_labels(train_items, tokenizer, longest=256, unseen=[*texts, *kinds])
    by_id = {i.id: i for i in train_items}
    used = [by_id[e["item"]] for e in ready.examples]
    assert not {prompt_key(i) for i in used} & {prompt_key(i) for i in texts + kinds} and not {i.response for i in used} & {i.response for i in texts + kinds}
    assert ready.report["examples"] + sum(ready.report["left out"].values()) == len(train_items)
    for items in (texts, kinds): assert sum(i.gold_labels[0] for i in items) * 2 == len(items)


def test_labels_are_true():
    for i in labeled_items(verifiable_pairs(60, seed=9)): assert len(i.rubric) == 1 and i.gold_labels[0] == i.id.endswith("-met")


def test_the_loss_is_that_of_the_two_labels_at_the_last_place():
    net, tokenizer = open_base("tiny")
    items = labeled_items(verifiable_pairs(10, seed=4))
    ready = prepare_labels(items, tokenizer)
    batch = LeftPadded(tokenizer.pad_token_id)(ready.examples[:5])
    labels = batch.pop("labels")
    with torch.no_grad():
        together = LabelLoss(ready.labels)(net(**batch), labels)
        alone = []
        for e in ready.examples[:5]:
            z = net(torch.tensor([e["ids"]])).logits[0, -1, list(ready.labels)]
            alone.append(float(torch.logsumexp(z, 0) - z[e["label"]]))
    assert float(together) == pytest.approx(sum(alone) / 5, abs=1e-5)
    with torch.no_grad(): assert float(LabelLoss(ready.labels)(net(**batch), labels, num_items_in_batch=10)) == pytest.approx(sum(alone) / 10, abs=1e-5)


@pytest.mark.parametrize("batch, times", [(8, 1), (1, 8), (2, 4)])
def test_the_trainer_divides_the_loss_by_the_examples(batch, times, tmp_path):
    recipe = read_train_recipe(SMOKE, {"args.per_device_train_batch_size": batch, "args.gradient_accumulation_steps": times, "args.max_steps": 1, "args.logging_steps": 1, "data.prompts": 60})
    run = head_run(recipe, tmp_path)
    run.trainer.train_dataset = examples = [run.ready.examples[n] for n in range(8)]
    loss, whole = LabelLoss(run.ready.labels), LeftPadded(run.tokenizer.pad_token_id)(examples)
    labels = whole.pop("labels")
    with torch.no_grad(): mean = float(loss(run.trainer.model(**whole), labels))
    run.trainer.train()
    assert run.trainer.state.log_history[0]["loss"] == pytest.approx(mean, rel=1e-3)


def test_a_process_that_sees_several_gpus_is_refused(tmp_path, monkeypatch):
    from transformers import TrainingArguments
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    with pytest.raises(ValueError, match="sees 4 GPUs.*CUDA_VISIBLE_DEVICES=0.*gpus: 4"): head_run(read_train_recipe(SMOKE), tmp_path)


def test_what_a_run_was_trained_on_is_known(tmp_path):
    recipe = read_train_recipe("generator-sft-laptop")
    for name, r in (("first", recipe), ("second", read_train_recipe("generator-grpo-laptop", {"base": "run:first", "data.seed": 9}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(r.to_json())
    first, both = (trained_prompts(f"hf:{tmp_path / name}/model?dtype=float32") for name in ("first", "second"))
    every = [key for key, _ in ROWS["generator-sft"](text_data(recipe))]
    assert trained_prompts(f"smollm2?adapter={tmp_path}/first/adapter") == first and trained_prompts("smollm2") == frozenset()
    assert first == {k for k in every if not kept_out(k, text_data(recipe))} and 0 < len(first) < len(every) and first < both


def test_judge_head_prompts_are_known_too(finished):
    result, folder = finished
    trained = trained_prompts(result.engine)
    assert trained and trained <= {prompt_key(i) for i in head_data(HeadData(**read_train_recipe(SMOKE).data), HeadEvaluation(prompts=2))[0]}


def test_the_trained_model_is_an_engine(finished):
    result, folder = finished
    items = labeled_items(verifiable_pairs(6, seed=5))
    e = engine(f"hf:{result.folder}?dtype=float32", store=False)
    grades = grade(items, e, prompt="grade/brief")
    assert all(g.labels[0].prob is not None for g in grades) and result.steps == 12 and len(result.curve) == 4
    net, tokenizer = open_base(str(result.folder))
    ready = prepare_labels(items[:1], tokenizer, Grading(prompt="grade/brief"))
    with torch.no_grad(): z = net(torch.tensor([ready.examples[0]["ids"]])).logits[0, -1, list(ready.labels)]
    assert float(torch.softmax(z, 0)[1]) == pytest.approx(grades[0].labels[0].prob, abs=1e-4) # trained and graded by the same prompt


def test_a_run_that_broke_goes_on_as_if_it_had_not(finished, tmp_path, monkeypatch):
    whole, folder = finished
    calls = {"n": 0}
    plain = LabelLoss.__call__
    def breaks(self, *args, **kwargs):
        calls["n"] += 1
        if calls["n"] == 9: raise KeyboardInterrupt
        return plain(self, *args, **kwargs)
    monkeypatch.setattr(LabelLoss, "__call__", breaks)
    with pytest.raises(KeyboardInterrupt): train(SMOKE, tmp_path / "broken")
    monkeypatch.setattr(LabelLoss, "__call__", plain)
    assert last_checkpoint(tmp_path / "broken").name == "checkpoint-6" and not (tmp_path / "broken" / "model").exists()
    shutil.copytree(tmp_path / "broken" / "checkpoint-6", tmp_path / "broken" / "checkpoint-9")
    (tmp_path / "broken" / "checkpoint-9" / "trainer_state.json").write_text('{"global_st') # killed while writing
    again = train(SMOKE, tmp_path / "broken")
    assert again.steps == 12 and [c["loss"] for c in again.curve] == pytest.approx([c["loss"] for c in whole.curve], abs=1e-3)
    a, b = (torch.load(f / "checkpoint-12" / "optimizer.pt", weights_only=True)["state"] for f in (folder, tmp_path / "broken"))
    assert all(torch.allclose(a[k]["exp_avg"], b[k]["exp_avg"], atol=1e-6) for k in a)
    mine, theirs = (open_base(str(f / "model"))[0].state_dict() for f in (folder, tmp_path / "broken"))
    assert all(torch.allclose(mine[k], theirs[k], atol=1e-5) for k in mine)


def test_another_recipe_does_not_go_on_in_its_folder(finished):
    with pytest.raises(ValueError, match="holds a run with seed=0, now it is 1"): train(SMOKE, finished[1], {"seed": 1})


def test_adapters_are_engines_at_once(tmp_path):
    pytest.importorskip("peft", reason="needs the extra: pip install 'rubriclab[hf]'")
    lora = {"lora": {"r": 4, "target_modules": "all-linear"}, "args.max_steps": 4}
    r = train(SMOKE, tmp_path / "lora", lora)
    assert r.after["held-out texts"]["n"] > 8 and (r.folder / "adapter_config.json").is_file() and r.engine == f"hf:{tmp_path / 'lora' / 'start'}?adapter={r.folder}"
    items = labeled_items(verifiable_pairs(6, seed=5))
    plain, trained = (engine(name + "&dtype=float32" if "?" in name else name + "?dtype=float32", store=False) for name in (f"hf:{r.base}", r.engine))
    assert [g.labels[0].prob for g in grade(items, plain, prompt="grade/brief")] != [g.labels[0].prob for g in grade(items, trained, prompt="grade/brief")]
    p = plan_training(read_train_recipe(SMOKE, {"lora": {"r": 4, "target_modules": "all-linear"}}))
    assert p.trained < p.weights / 10
    again = train(SMOKE, tmp_path / "lora", lora)
    assert again == r # a finished run is read, not repeated


def test_a_plan_counts(tmp_path):
    p = plan_training(read_train_recipe(SMOKE))
    assert p.steps == 12 and p.trained == p.weights and p.fits and p.tokens == pytest.approx(12 * 8 * 140, rel=0.2)
    done = command("train", SMOKE, "--plan", "-p", "args.max_steps", "7")
    assert done.returncode == 0 and "7 steps" in done.stdout
    assert "no figures for GPU 'abacus'" in command("train", SMOKE, "--plan", "--gpu", "abacus").stderr


def test_a_plan_for_gpus_needs_none(tmp_path):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    net, tokenizer = open_base("scratch")
    net.save_pretrained(tmp_path / "base"); tokenizer.save_pretrained(tmp_path / "base")
    given = {"base": str(tmp_path / "base"), "gpus": 8, "args.use_cpu": False, "args.bf16": True, "args.use_vllm": True, "args.vllm_mode": "colocate", "args.num_generations": 8, "args.per_device_train_batch_size": 1, "args.per_device_eval_batch_size": 1, "args.num_iterations": 2, "args.max_steps": -1, "args.num_train_epochs": 1, "data.prompts": 40, "data.tokens": 256}
    p = plan_training(read_train_recipe("policy-grpo-smoke", given), "h100") # a whole group is one completion on each of eight
    assert not p.guessed and p.weights == sum(x.numel() for x in net.parameters()) and p.steps == p.examples * 2
    with pytest.raises(ValueError, match="do not fit the 1024 places"): plan_training(read_train_recipe("policy-grpo-smoke", {**given, "data.tokens": 1024}), "h100")
    assert plan_training(read_train_recipe("policy-grpo-smoke", {**given, "args.generation_batch_size": 8}), "h100").steps == p.steps # vLLM is not asked for here either
    unused = {k: v for k, v in given.items() if k != "args.use_vllm"}
    with pytest.raises(ValueError, match="field vllm_mode: it is read only with use_vllm: true"): plan_training(read_train_recipe("policy-grpo-smoke", unused), "h100")


def test_a_plan_counts_what_each_gpu_holds_and_what_vllm_takes():
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    plan = lambda gpu, **given: plan_training(read_train_recipe("policy-grpo-gpu", {"data.prompts": 100, **given}), gpu)
    shared, cramped, small = plan("h100"), plan("h100", **{"args.vllm_gpu_memory_utilization": 0.05}), plan("rtx4090")
    assert shared.fits and not shared.alone and "8 h100 that share it (ZeRO-3 or FSDP)" in str(shared)
    assert not cramped.fits and "does NOT fit 8 h100" in str(cramped) # seven billion weights in a twentieth of the card
    assert not small.fits and small.memory_gb == shared.memory_gb
    assert plan_training(read_train_recipe("policy-sft-smoke", {"gpus": 2})).alone and "fits each of 2 a100" in str(plan_training(read_train_recipe("policy-sft-smoke", {"gpus": 2})))


def test_a_run_starts_from_what_another_left(tmp_path):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    given = {"base": "run:start", "args.max_steps": 2, "args.save_steps": 2}
    with pytest.raises(FileNotFoundError, match=f"train them first: rubriclab train start --out {tmp_path / 'start'}"): train("policy-sft-smoke", tmp_path / "next", given)
    first = train("policy-sft-smoke", tmp_path / "start", {"args.max_steps": 2, "args.save_steps": 2})
    done = train("policy-sft-smoke", tmp_path / "next", given)
    assert done.before["held out"]["loss"] == pytest.approx(first.after["held out"]["loss"], abs=1e-3) # it is that model
    assert json.loads((tmp_path / "next" / "recipe.json").read_text())["base"] == "run:start" # so that the folder can move
    p = plan_training(read_train_recipe("policy-grpo-laptop", {"data.prompts": 12}))
    assert p.guessed == ("policy-sft-laptop is not trained yet: this counts with its own base, smollm2",) and p.weights > 1e8


def test_a_judges_rows_must_fit_the_model(tmp_path):
    from rubriclab.training.recipe import random_llama, save_model
    save_model(*random_llama(open_base("tiny")[1], 32, 1, 64), tmp_path / "base")
    with pytest.raises(ValueError, match="of a row do not fit the 64 places"): plan_training(read_train_recipe(SMOKE, {"base": str(tmp_path / "base")}))


def test_an_adapter_of_a_reward_model_scores_batches(tmp_path):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    from rubriclab.training.rewards import ByRewardModel
    done = train("reward-model-smoke", tmp_path / "run", {"lora": {"r": 4, "target_modules": "all-linear"}})
    config = json.loads((tmp_path / "run" / "start" / "config.json").read_text())
    (tmp_path / "run" / "start" / "config.json").write_text(json.dumps(config | {"pad_token_id": None})) # as many a base has it
    found = ByRewardModel(str(done.folder), device="cpu")(["Say it.", "Say it."], ["Here it is, and longer.", "No."], {})
    assert len(found) == 2 and found[0] != found[1]


def test_the_command_trains_and_says_what_it_was_worth(tmp_path):
    done = command("train", SMOKE, "--out", tmp_path / "run", "-p", "args.max_steps", "4")
    assert done.returncode == 0 and "before" in done.stdout and "longer is better" in done.stdout and "4 steps" in done.stdout, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 4
    assert "no training recipe 'judge-hat'" in command("train", "judge-hat").stderr
    TrainRecipe.model_validate_json((tmp_path / "run" / "recipe.json").read_text())


TEXT = ("generator-sft", "judge-sft", "reward-model", "generator-dpo", "policy-sft", "policy-dpo")


@pytest.mark.parametrize("kind", TEXT)
def test_a_text_run_that_broke_goes_on_as_if_it_had_not(kind, tmp_path, monkeypatch):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    from transformers import Trainer
    whole = train(f"{kind}-smoke", tmp_path / "whole")
    plain, calls = Trainer.training_step, {"n": 0}
    def breaks(self, *args, **kwargs):
        calls["n"] += 1
        if calls["n"] == 4: raise KeyboardInterrupt
        return plain(self, *args, **kwargs)
    with monkeypatch.context() as m:
        m.setattr(Trainer, "training_step", breaks)
        with pytest.raises(KeyboardInterrupt): train(f"{kind}-smoke", tmp_path / "broken")
    assert last_checkpoint(tmp_path / "broken").name == "checkpoint-2"
    again = train(f"{kind}-smoke", tmp_path / "broken")
    assert again.steps == 4 and again.after["held out"]["loss"] == pytest.approx(whole.after["held out"]["loss"], abs=1e-3) and again.before == whole.before
    assert again.curve[-1]["loss"] == pytest.approx(whole.curve[-1]["loss"], abs=1e-3)


def watched(monkeypatch):
    "What a run holds when each of its steps begins, by step."
    from transformers import Trainer, TrainerCallback
    seen, plain = {}, Trainer.train
    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, optimizer=None, lr_scheduler=None, **kwargs):
            seen[state.global_step] = {"weights": {k: v.clone() for k, v in model.state_dict().items()}, "optimizer": copy.deepcopy(optimizer.state_dict()), "schedule": dict(lr_scheduler.state_dict()),
                                       "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2])}
    def train_watched(self, *args, **kwargs):
        self.add_callback(Watch())
        return plain(self, *args, **kwargs)
    monkeypatch.setattr(Trainer, "train", train_watched)
    return seen


@pytest.mark.parametrize("kind", ["judge-head", "generator-sft", "reward-model", "policy-dpo", "policy-grpo"])
def test_what_goes_on_is_what_was_kept(kind, tmp_path, monkeypatch):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    from safetensors.torch import load_file
    seen = watched(monkeypatch)
    done = train(f"{kind}-smoke", tmp_path)
    whole, kept = dict(seen), sorted(tmp_path.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    shutil.rmtree(tmp_path / "model"); (tmp_path / "result.json").unlink()
    for later in kept[1:]: shutil.rmtree(later)
    weights, optimizer, schedule = load_file(kept[0] / "model.safetensors"), *(torch.load(kept[0] / f, weights_only=True) for f in ("optimizer.pt", "scheduler.pt"))
    seen.clear()
    assert train(f"{kind}-smoke", tmp_path).steps == done.steps and min(seen) == int(kept[0].name.rpartition("-")[2]) < done.steps
    mine = seen[min(seen)]
    assert weights and all(torch.equal(mine["weights"][k], v) for k, v in weights.items())
    assert mine["optimizer"]["state"].keys() == optimizer["state"].keys() and len(optimizer["state"]) > 3
    assert all(torch.equal(mine["optimizer"]["state"][k][m], x[m]) for k, x in optimizer["state"].items() for m in ("exp_avg", "exp_avg_sq", "step"))
    assert [g["lr"] for g in mine["optimizer"]["param_groups"]] == [g["lr"] for g in optimizer["param_groups"]] and all(mine["schedule"][k] == schedule[k] for k in ("last_epoch", "_last_lr", "base_lrs"))
    assert mine["random"] == whole[min(seen)]["random"] # at the same step of the run that was not broken


@pytest.mark.parametrize("kind, given", [("reward-model", {}), ("policy-sft", {"lora": {"r": 4, "target_modules": "all-linear"}})])
def test_new_weights_follow_the_seed(kind, given, tmp_path, monkeypatch):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    seen = watched(monkeypatch)
    def start(n, seed):
        torch.manual_seed(n) # what went before in this process is nothing to a run
        seen.clear()
        train(f"{kind}-smoke", tmp_path / str(n), {"seed": seed, "args.max_steps": 1, **given})
        return {k: v for k, v in seen[0]["weights"].items() if k.endswith("score.weight") or "lora_A" in k}
    first, again, other = start(1, 0), start(2, 0), start(3, 5)
    assert first and all(torch.equal(first[k], again[k]) and not torch.equal(first[k], other[k]) for k in first)


def test_nothing_is_evaluated_outside_of_training_before_it(tmp_path, monkeypatch):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    from transformers import Trainer
    when, plain = [], Trainer.evaluate
    def evaluate(self, *args, **kwargs):
        when.append((self.is_in_train, self.state.global_step))
        return plain(self, *args, **kwargs)
    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    done = train("policy-dpo-smoke", tmp_path)
    assert when == [(True, 0), (False, 4)] and done.before["held out"]["loss"] == pytest.approx(0.6931, abs=1e-3) and all(c["step"] for c in done.curve) # DeepSpeed below ZeRO-3 refuses it


def test_rows_of_one_prompt_stay_together_also_in_files_of_c2(tmp_path):
    from rubriclab.data.records import write_rows
    from rubriclab.lab.batch import c2_file
    from rubriclab.lab.c2 import planted_c2
    world, planted = planted_c2(0.5, 4, 2.0)
    pairs = world.pairs(40, per_prompt=2)
    write_rows(tmp_path / "pairs.jsonl", pairs)
    c2_file(tmp_path / "pairs.jsonl", tmp_path / "c2", planted, planted)
    keys = {prompt_key(p) for p in pairs}
    _, tokenizer = open_base("tiny")
    for kind, name in (("generator-dpo", "dpo.jsonl"), ("verifier-grpo", "verifier.jsonl")):
        d = TextData(source=str(tmp_path / "c2" / name), prompts=500, held_out=0.4, tokens=4000)
        found = [k for k, _ in ROWS[kind](d)]
        assert set(found) <= keys and len(set(found)) < len(found)
        with pytest.raises(ValueError, match="in .*pairs.jsonl"): split_rows(ROWS[kind](d), d.replace(unseen=(str(tmp_path / "pairs.jsonl"),)), tokenizer, tmp_path / kind) # all of them are known there
    old = [{k: v for k, v in json.loads(x).items() if k != "request"} for x in open(tmp_path / "c2" / "dpo.jsonl")]
    write_rows(tmp_path / "old.jsonl", old)
    with pytest.raises(ValueError, match="line 1, field 'request'"): list(ROWS["generator-dpo"](TextData(source=str(tmp_path / "old.jsonl"))))


def test_prompts_of_sets_with_rubrics_can_be_kept_out(tmp_path, monkeypatch):
    from rubriclab.training import rows
    sample = list(rows.rubric_records(str(rows.shipped("data/clusters") / "records.jsonl")))[:5]
    monkeypatch.setattr(rows, "rubric_records", lambda name: iter(sample))
    assert rows._unseen(TextData(unseen=("healthbench",))) == {prompt_key(i): "healthbench" for i in sample}


@pytest.mark.parametrize("kind, given", [("policy-grpo", {"reward.by": "rubric", "reward.held_out": "checker"}), ("generator-grpo", {"data.source": "verifiable", "data.writes": "rules", "reward.by": "use"})])
def test_a_judge_pays_in_the_trainer(kind, given, tmp_path):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    net, tokenizer = open_base("tiny")
    net.save_pretrained(tmp_path / "judge"); tokenizer.save_pretrained(tmp_path / "judge")
    done = train(f"{kind}-smoke", tmp_path / "run", {**given, "reward.judge": f"hf:{tmp_path / 'judge'}?dtype=float32", "data.prompts": 12, "data.held_out": 0.3})
    steps = [c for c in done.curve if "reward" in c]
    assert len(steps) == 2 and all(c["abstained"] == 0 and 0 <= c["reward"] <= 1 for c in steps) and 0 <= done.after["held out"]["reward"] <= 1
    if kind == "policy-grpo": assert all(c["judge_tokens"] > 0 and 0 <= c["held_out"] <= 1 for c in steps)


def test_contrasts_train_a_generator(tmp_path):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    from rubriclab.data.records import write_rows
    from rubriclab.lab.batch import c2_file
    from rubriclab.lab.c2 import planted_c2
    world, planted = planted_c2(0.5, 4, 2.0)
    write_rows(tmp_path / "pairs.jsonl", world.pairs(40, per_prompt=1))
    c2_file(tmp_path / "pairs.jsonl", tmp_path / "c2", planted, planted)
    done = train("policy-dpo-smoke", tmp_path / "run", {"kind": "generator-dpo", "data.source": str(tmp_path / "c2" / "dpo.jsonl"), "data.prompts": 10, "data.held_out": 0.4, "data.tokens": 1000})
    assert done.steps == 4 and done.data["train"] + done.data["test"] == 10
    with pytest.raises(ValueError, match="no list of messages"): train("policy-dpo-smoke", tmp_path / "bad", {"kind": "generator-dpo", "data.source": str(tmp_path / "pairs.jsonl")})


def test_reasons_that_were_right_train_a_judge(tmp_path):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    from rubriclab.data.records import write_rows
    from rubriclab.engines.engine import Engine
    from rubriclab.engines.fake import FakeBackend, Skills, World
    from rubriclab.lab.batch import judge_file
    world = World(seed=4)
    write_rows(tmp_path / "pairs.jsonl", world.pairs(20, per_prompt=1))
    judge_file(tmp_path / "pairs.jsonl", tmp_path / "judged.jsonl", Engine(FakeBackend(world, Skills(p=0.8))), {"method": "direct", "readout": "generate"})
    rows = list(ROWS["judge-sft"](TextData(source=str(tmp_path / "judged.jsonl"), target="trace")))
    judged = [json.loads(x) for x in open(tmp_path / "judged.jsonl")]
    right = sum(v["winner"] == "chosen" for r in judged for v in r["verdicts"])
    wrong, rows = [r for _, r in rows if "left out" in r], [r for _, r in rows if "left out" not in r]
    assert 0 < len(rows) == right < 40 and all("Winner: Response" in r["completion"][0]["content"] for r in rows)
    assert wrong == [{"left out": "wrong verdict"}] * (sum(len(r["verdicts"]) for r in judged) - right)
    alone = [r for _, r in ROWS["judge-sft"](TextData(source=str(tmp_path / "judged.jsonl"), target="verdict")) if "left out" not in r]
    asked = lambda rs: [r["prompt"][-1]["content"].split("Response A")[-1][:80] for r in rs]
    assert len(alone) == right and asked(alone) == asked(rows) # the control has the same pairs in the same orders, and no reasons
    assert [r["completion"][0]["content"] for r in alone] == [re.findall("Winner: Response [AB]", r["completion"][0]["content"])[-1] for r in rows]
    with pytest.raises(ValueError, match="judge the file first"): list(ROWS["judge-sft"](TextData(source=str(tmp_path / "pairs.jsonl"), target="trace")))


def test_what_does_not_fit_is_left_out_and_counted(tmp_path):
    from rubriclab.data.records import write_rows
    answers = lambda n, label: {"id": f"p{n}", "prompt": f"Ask {n}.", "response_a": f"One {n}.", "response_b": f"Two {n}." + "!" * (n == 3) * 99, "label": label}
    rows = [answers(n, label) for n, label in enumerate(["A", "B", "tie", "A", None])]
    write_rows(tmp_path / "pairs.jsonl", rows)
    d = TextData(source=str(tmp_path / "pairs.jsonl"), longest=90)
    found = [r for _, r in ROWS["reward-model"](d)]
    assert [r.get("left out") or r["chosen"][0]["content"] for r in found] == ["One 0.", "Two 1.", "no better answer is known", "answer over longest", "no better answer is known"]
    write_rows(tmp_path / "judged.jsonl", [r | {"verdicts": [{"shown_first": s, "winner": w, "rationale": "Because."} for s, w in (("first", "B"), ("second", None))]} for r in rows])
    told = [r for _, r in ROWS["judge-sft"](TextData(source=str(tmp_path / "judged.jsonl"), target="trace"))]
    assert [r.get("left out") or r["completion"][0]["content"] for r in told] == ["wrong verdict", "no verdict", "Because.", "no verdict", "no better answer is known", "wrong verdict", "no verdict", "no better answer is known"]
    alone = [r["completion"][0]["content"] for _, r in ROWS["judge-sft"](TextData(source=str(tmp_path / "judged.jsonl"), target="verdict")) if "left out" not in r]
    assert alone == ["Winner: Response B"] # the record's first answer was shown first, and its second is better
    made = TextData(prompts=30, kinds=("no_commas",), longest=200)
    why = [r.get("left out") for _, r in ROWS["policy-sft"](made)]
    assert len(why) == 60 and {*why} == {None, "other kinds", "answer over longest"}


def test_sources_are_not_held_in_memory(tmp_path, monkeypatch):
    from rubriclab.data.sets import load
    from rubriclab.training.rows import pairs_of
    (tmp_path / "openrubric_v2").mkdir()
    with open(tmp_path / "openrubric_v2" / "train.jsonl", "w") as f:
        for n in range(500): f.write(json.dumps({"instruction": f"Ask {n}.", "response_a": f"One {n}. " * 60, "response_b": f"Two {n}. " * 60, "winner": "A" if n != 7 else "nobody", "rubric": "1. It is short. [Hard Rule]"}) + "\n")
    monkeypatch.setenv("RUBRICLAB_DATA_DIR", str(tmp_path))
    def peak(make): # bytes
        tracemalloc.start()
        n = make()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return n, found
    for one_by_one, whole in ((lambda: sum(1 for _ in pairs_of("openrubric_v2")), lambda: len(load("openrubric_v2", verbose=False))), (lambda: sum(1 for _ in pairs_of("verifiable", 250)), lambda: len(verifiable_pairs(250, seed=1)))):
        one_by_one(), whole() # what is read once stays
        (n, streamed), (m, held) = peak(one_by_one), peak(whole)
        assert n == m >= 499 and streamed < held / 4


def test_examples_of_a_judges_head_are_not_held_in_memory(tmp_path):
    _, tokenizer = open_base("tiny")
    items = lambda: (Item(id=str(n), prompt=f"Ask {n}.", response=f"Say {n}. " + "It is so. " * 20, rubric=["It is so."], gold_labels=(True,)) for n in range(1500))
    def peak(folder): # bytes
        tracemalloc.start()
        found = len(prepare_labels(items(), tokenizer, folder=folder).examples), tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found
    prepare_labels(islice(items(), 3), tokenizer, folder=tmp_path / "rows") # what it imports stays
    (n, filed), (m, held) = peak(tmp_path / "rows"), peak(None)
    assert n == m == 1500 and filed < held / 2 # some hundred rows wait for the file


def test_prompts_stay_on_one_side_and_nothing_is_cut(tmp_path):
    _, tokenizer = open_base("tiny")
    rows = [(f"p{n // 2}", {"prompt": [{"role": "user", "content": f"ask {n // 2}"}], "completion": [{"role": "assistant", "content": f"say {n} " + "more " * (400 if n == 7 else 1)}]}) for n in range(40)]
    s = split_rows(iter([*rows, rows[0], ("p0", {"left out": "orders disagree"})]), TextData(held_out=0.3, tokens=200), tokenizer, tmp_path / "rows")
    sides = [{r["prompt"][0]["content"] for r in part} for part in (s.train, s.test)]
    assert not sides[0] & sides[1] and s.report["left out"] == {"repeated": 1, "too long": 1, "orders disagree": 1} and len(s.train) + len(s.test) == 39
    with pytest.raises(ValueError, match="rows to train on"): split_rows(iter(rows[:2]), TextData(), tokenizer, tmp_path / "rows")
    with pytest.raises(ValueError, match="completion alone"): check_mask({"labels": [1, 2, 3]})
    check_mask({"labels": [-100, 2, 3]})


@pytest.mark.parametrize("kind", TEXT)
def test_text_recipes_are_planned_and_know_their_fields(kind, tmp_path):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    p = plan_training(read_train_recipe(f"{kind}-smoke"))
    assert p.steps == 4 and p.examples > 5 and p.tokens > 4 * 2 * 50
    with pytest.raises(ValueError, match="has no field"): plan_training(read_train_recipe(f"{kind}-smoke", {"args.learning_rat": 1}))
    with pytest.raises(ValueError, match="has no field 'max_length'"): plan_training(read_train_recipe(f"{kind}-smoke", {"args.max_length": 9})) # the data says how long


@pytest.mark.parametrize("kind", ["verifier-grpo", "generator-grpo", "policy-grpo"])
def test_a_policy_is_paid_and_goes_on(kind, tmp_path):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    done = train(f"{kind}-smoke", tmp_path / "run")
    assert done.steps == 2 and -1 <= done.after["held out"]["reward"] <= 10 and done.after["held out"]["n"] > 1
    shutil.rmtree(tmp_path / "run" / "model"); shutil.rmtree(tmp_path / "run" / "checkpoint-2"); (tmp_path / "run" / "result.json").unlink()
    again = train(f"{kind}-smoke", tmp_path / "run")
    assert again.steps == 2 and again.before == done.before # its buffer is written anew: the state goes on, the loss need not be the same
    p = plan_training(read_train_recipe(f"{kind}-smoke"))
    assert p.steps == 2 and p.tokens > 2 * 2 * 8
    assert {"reward", "spread", "words", "abstained", "judge_tokens"} <= set(done.curve[0])


def test_a_verifier_is_paid_as_c2_pays(tmp_path):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    from rubriclab.data.records import write_rows
    from rubriclab.lab.batch import c2_file
    from rubriclab.lab.c2 import planted_c2
    world, planted = planted_c2(0.5, 4, 2.0)
    write_rows(tmp_path / "pairs.jsonl", world.pairs(12, per_prompt=1))
    c2_file(tmp_path / "pairs.jsonl", tmp_path / "c2", planted, planted)
    done = train("policy-grpo-smoke", tmp_path / "run", {"kind": "verifier-grpo", "data.source": str(tmp_path / "c2" / "verifier.jsonl"), "data.tokens": 2000})
    assert done.steps == 2 and -1 <= done.after["held out"]["reward"] < 0 # a random model writes no verdict: -1 with a rubric, -0.7 without


def test_rewards_of_recipes_know_their_fields():
    recipe = lambda **given: plan_training(read_train_recipe("policy-grpo-smoke", given))
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    for given, says in (({"reward.judg": "x"}, "did you mean 'judge'"), ({"reward.by": "taste"}, "reward, field by"), ({"reward.veto": 0.5}, "needs free_words"), ({"args.num_generation": 4}, "did you mean 'num_generations'")):
        with pytest.raises(ValueError, match=says): recipe(**given)
    r = reward_of("policy-grpo", PaidBy(by="rubric", judge="fake:world?seed=5", held_out="checker", free_words=5, veto=0.5))
    assert r.__name__ == "rubric" and type(r.held_out).__name__ == "Checked" and type(r.scorer).__name__ == "Veto"



def test_a_judge_labels_only_what_it_sees_alike_in_both_orders(tmp_path):
    from rubriclab.data.records import write_rows
    from rubriclab.engines.engine import Engine
    from rubriclab.engines.fake import FakeBackend, Skills, World
    from rubriclab.lab.batch import judge_file
    world = World(seed=4)
    write_rows(tmp_path / "pairs.jsonl", world.pairs(40, per_prompt=1))
    judge_file(tmp_path / "pairs.jsonl", tmp_path / "judged.jsonl", Engine(FakeBackend(world, Skills(p=0.7, order_bias=1.0))), {"method": "direct", "orders": "both"})
    rows = [r for _, r in ROWS["policy-dpo"](TextData(source=str(tmp_path / "judged.jsonl"), labels="judge"))]
    judged = [json.loads(x) for x in open(tmp_path / "judged.jsonl")]
    agreed = [r for r in judged if len({v["winner"] for v in r["verdicts"]}) == 1]
    kept = [r for r in rows if "left out" not in r]
    assert 0 < len(kept) == len(agreed) < 40 and len(rows) == 40
    assert [r["chosen"][0]["content"] for r in kept] == [r[r["verdicts"][0]["winner"]] for r in agreed] # also where the judge is wrong
    assert any(r["verdicts"][0]["winner"] == "rejected" for r in agreed)
    judge_file(tmp_path / "pairs.jsonl", tmp_path / "once.jsonl", Engine(FakeBackend(world, Skills())), {"method": "direct", "orders": "first"})
    with pytest.raises(ValueError, match="judged in one order"): list(ROWS["policy-dpo"](TextData(source=str(tmp_path / "once.jsonl"), labels="judge")))


def test_prompts_of_evaluation_sets_are_not_trained_on(tmp_path):
    from rubriclab.data.records import write_rows
    _, tokenizer = open_base("tiny")
    pairs = verifiable_pairs(30, seed=1)
    write_rows(tmp_path / "test.jsonl", pairs[:20])
    d = TextData(prompts=30, held_out=0.3, unseen=(str(tmp_path / "test.jsonl"),))
    s = split_rows(ROWS["reward-model"](d), d, tokenizer, tmp_path / "rows")
    forbidden = {p.prompt for p in pairs[:20]}
    assert s.report["left out"] == {f"in {tmp_path / 'test.jsonl'}": 20} and not {r["prompt"][0]["content"] for part in (s.train, s.test) for r in part} & forbidden


def test_what_would_fail_later_is_refused_now():
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    for name, given, says in (("generator-sft-smoke", {"data.tokens": 4096}, "do not fit the 1024 places"), ("policy-grpo-smoke", {"data.tokens": 2040, "args.max_completion_length": 64}, "max_completion_length=64 do not fit"),
                              ("policy-grpo-smoke", {"args.num_generations": 3}, "num_generations|divisible"), ("policy-grpo-smoke", {"args.per_device_eval_batch_size": 3}, "3 on 1 GPU are no whole groups of num_generations=2"), ("reward-model-smoke", {"reward.by": "length"}, "pays for nothing"), ("generator-sft-smoke", {"data.source": "verifiable"}, "writes: rules"),
                              ("policy-grpo-smoke", {"data.source": "clusters", "reward.by": "checker"}, "needs the column .constraints"), ("generator-grpo-smoke", {"reward.by": "use"}, "does not fit data with writes")):
        with pytest.raises(ValueError, match=says): plan_training(read_train_recipe(name, given))


def test_a_run_that_was_killed_goes_on(tmp_path):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    given = ["-p", "args.max_steps", "24", "-p", "args.logging_steps", "2", "-p", "args.save_steps", "4"]
    start = lambda folder: [sys.executable, "-m", "rubriclab", "train", "policy-sft-smoke", "--out", str(folder), *given]
    whole = subprocess.run(start(tmp_path / "whole"), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    broken = subprocess.Popen(start(tmp_path / "broken"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while last_checkpoint(tmp_path / "broken") is None and broken.poll() is None and time.monotonic() < end: time.sleep(0.02)
    broken.send_signal(signal.SIGKILL); broken.wait()
    kept = last_checkpoint(tmp_path / "broken")
    assert kept is not None and not (tmp_path / "broken" / "result.json").exists() # killed in the middle
    again = subprocess.run(start(tmp_path / "broken"), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    a, b = (json.loads((tmp_path / f / "result.json").read_text()) for f in ("whole", "broken"))
    assert a["steps"] == b["steps"] == 24 and a["after"]["held out"]["loss"] == pytest.approx(b["after"]["held out"]["loss"], abs=1e-3)
    assert [c["loss"] for c in a["curve"]] == pytest.approx([c["loss"] for c in b["curve"]], abs=1e-3)
    x, y = (torch.load(tmp_path / f / "checkpoint-24" / "optimizer.pt", weights_only=True)["state"] for f in ("whole", "broken"))
    assert all(torch.allclose(x[k]["exp_avg"], y[k]["exp_avg"], atol=1e-6) for k in x)


def test_two_processes_share_a_batch(tmp_path):
    pytest.importorskip("trl", reason="needs the extra: pip install 'rubriclab[train]'")
    launch = lambda *more: subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1", "--nproc_per_node", "2", "-m", "rubriclab", "train", "generator-sft-smoke", "--out", str(tmp_path / "two"), *more],
                                          capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    done = launch("-p", "gpus", "2", "-p", "args.per_device_train_batch_size", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    one = train("generator-sft-smoke", tmp_path / "one")
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["steps"] == one.steps and (tmp_path / "two" / "model" / "config.json").is_file() and two["after"]["held out"]["loss"] == pytest.approx(one.after["held out"]["loss"], abs=0.05)
    shutil.rmtree(tmp_path / "two")
    assert "made for 1 GPU and 2 processes started" in launch().stderr
    with pytest.raises(ValueError, match="made for 8 GPUs and 1 process"): train("generator-sft-smoke", tmp_path / "eight", {"gpus": 8})


def test_launch_files_are_what_accelerate_reads():
    pytest.importorskip("accelerate", reason="needs the extra: pip install 'rubriclab[train]'")
    from accelerate.commands.config.config_args import load_config_from_file
    files = sorted((Path(__file__).resolve().parents[1] / "recipes" / "train" / "launch").glob("*.yaml"))
    assert [f.stem for f in files] == ["fsdp", "zero2", "zero3"]
    for f in files:
        c = load_config_from_file(str(f)) # unknown keys are errors
        assert c.num_processes == 8 and c.mixed_precision == "bf16" and (c.fsdp_config or c.deepspeed_config)
