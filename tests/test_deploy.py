"""What lies in deploy/ starts what it says: commands that exist, resources that fit each other, and a script that runs, with stand-ins for the cluster's own commands."""
import os, subprocess
from pathlib import Path
import click
import pytest
import yaml
from rubriclab.lab.cli import main

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


def parsed(line):
    "The parameters of a command line; click refuses options that do not exist."
    name, *args = line.split()[1:]
    return main.commands[name].make_context(name, args)


def test_the_job_for_kubernetes():
    job = yaml.safe_load((DEPLOY / "kuberay-job.yaml").read_text())
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and cluster["enableInTreeAutoscaling"]
    ctx, (group,) = parsed(spec["entrypoint"]), cluster["workerGroupSpecs"]
    assert ctx.meta["ray"] == "auto" and ctx.meta["workers"] == (group["minReplicas"], group["maxReplicas"])
    def pod(template): return template["template"]["spec"]
    for p in (pod(cluster["headGroupSpec"]), pod(group)): # every mount has its volume
        assert {m["name"] for c in p["containers"] for m in c.get("volumeMounts", [])} == {v["name"] for v in p["volumes"]}
    worker, = pod(group)["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == ctx.meta["gpus"] == 1
    cache, = (e["value"] for e in pod(cluster["headGroupSpec"])["containers"][0]["env"] if e["name"] == "RUBRICLAB_CACHE_DIR")
    assert any(cache.startswith(m["mountPath"]) for m in pod(cluster["headGroupSpec"])["containers"][0]["volumeMounts"]) # the store outlives the pod
    with pytest.raises(click.NoSuchOption): parsed(spec["entrypoint"] + " --worker 2")


STUBS = {"scontrol": "echo node1; echo node2", "sleep": ":", "hostname": "echo 10.0.0.1 10.0.0.2", "ray": 'echo "ray $*" >> "$LOG"', "rubriclab": 'echo "rubriclab $*" >> "$LOG"',
         "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"'} # runs here what it is given


def test_the_script_for_slurm(tmp_path):
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    run = lambda *args: subprocess.run(["bash", DEPLOY / "slurm-ray.sh", *args], env=env, capture_output=True, text=True, timeout=60)
    assert run().returncode == 2 and "usage" in run().stderr
    done = run("judge", "pairs.jsonl", "judged.jsonl", "--engine", "vllm:Qwen/Qwen3-8B")
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "log").read_text().splitlines()
    head, = (line for line in log if "--head" in line)
    assert "--node-ip-address=10.0.0.1" in head and "--num-gpus=4" in head and any("--address=10.0.0.1:6379" in line for line in log)
    command, = (line for line in log if line.startswith("rubriclab"))
    ctx = parsed(command)
    assert (ctx.meta["ray"], ctx.meta["workers"], ctx.meta["gpus"]) == ("10.0.0.1:6379", (8, 8), 1)
