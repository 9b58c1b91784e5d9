"""What lies in deploy/ starts what it says: commands that exist, resources that fit each other, and a script that runs, with stand-ins for the cluster's own commands."""
import os, subprocess
from pathlib import Path
import click
import pytest
import yaml
from rubriclab.lab.cli import main

# What KubeRay's operator 1.2 knows in a RayJob, and `sbatch` among the options of a script; the pods inside are checked by Kubernetes' own schema
KNOWN = {"job": {"activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionPolicy", "entrypoint", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "rayClusterSpec", "runtimeEnvYAML",
                 "shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"},
         "cluster": {"autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec", "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs"},
         "head": {"enableIngress", "headService", "rayStartParams", "serviceType", "template"},
         "worker": {"groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas", "scaleStrategy", "suspend", "template"},
         "sbatch": {"account", "array", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency", "error", "exclusive", "gpus", "gpus-per-node", "gpus-per-task", "gres", "job-name", "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "nodes",
                    "ntasks", "ntasks-per-node", "open-mode", "output", "partition", "qos", "requeue", "reservation", "signal", "time"}}
DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


def parsed(line):
    "The parameters of a command line; click refuses options that do not exist."
    name, *args = line.split()[1:]
    return main.commands[name].make_context(name, args)


def test_no_field_of_the_job_is_misspelt():
    validate = pytest.importorskip("kubernetes_validate", reason="needs pip install kubernetes-validate")
    job = yaml.safe_load((DEPLOY / "kuberay-job.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    groups = [("head", cluster["headGroupSpec"]), *(("worker", g) for g in cluster["workerGroupSpecs"])]
    for what, found in (("job", job["spec"]), ("cluster", cluster), *groups): assert set(found) <= KNOWN[what], set(found) - KNOWN[what]
    assert all(isinstance(v, str) for _, g in groups for v in g["rayStartParams"].values()) # numbers are refused
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": what}, "spec": g["template"]["spec"]} for what, g in groups]
    for pod in pods: validate.validate(pod, "1.31", strict=True)
    pods[0]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(validate.ValidationError, match="imagee"): validate.validate(pods[0], "1.31", strict=True)


def test_the_options_of_the_script_for_slurm():
    lines = [line.split()[1] for line in (DEPLOY / "slurm-ray.sh").read_text().splitlines() if line.startswith("#SBATCH")]
    assert len(lines) > 4 and all(line.startswith("--") and line[2:].partition("=")[0] in KNOWN["sbatch"] for line in lines), lines
    assert subprocess.run(["bash", "-n", DEPLOY / "slurm-ray.sh"]).returncode == 0


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
    assert all({"name": "RAY_process_group_cleanup_enabled", "value": "1"} in c["env"] for p in (pod(cluster["headGroupSpec"]), pod(group)) for c in p["containers"])
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == ctx.meta["gpus"] == 1
    cache, = (e["value"] for e in pod(cluster["headGroupSpec"])["containers"][0]["env"] if e["name"] == "RUBRICLAB_CACHE_DIR")
    assert any(cache.startswith(m["mountPath"]) for m in pod(cluster["headGroupSpec"])["containers"][0]["volumeMounts"]) # the store outlives the pod
    with pytest.raises(click.NoSuchOption): parsed(spec["entrypoint"] + " --worker 2")


STUBS = {"scontrol": "echo node1; echo node2", "sleep": ":", "python": 'echo "${ALIVE:-2}"', "hostname": "echo 10.0.0.1 10.0.0.2", "ray": 'echo "ray $*" >> "$LOG"', "rubriclab": 'echo "rubriclab $* with ${RAY_process_group_cleanup_enabled:?}" >> "$LOG"',
         "srun": 'echo "srun with ${SRUN_CPUS_PER_TASK:?} cores" >> "$LOG"; while [[ "$1" == --* ]]; do shift; done; exec "$@"'} # runs here what it is given


def test_the_script_for_slurm(tmp_path):
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}
    run = lambda *args: subprocess.run(["bash", DEPLOY / "slurm-ray.sh", *args], env=env, capture_output=True, text=True, timeout=60)
    assert run().returncode == 2 and "usage" in run().stderr
    done = run("judge", "pairs.jsonl", "judged.jsonl", "--engine", "vllm:Qwen/Qwen3-8B")
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "log").read_text().splitlines()
    assert {line for line in log if line.startswith("srun")} == {"srun with 32 cores"}
    head, = (line for line in log if "--head" in line)
    assert "--node-ip-address=10.0.0.1" in head and "--num-gpus=4" in head and any("--address=10.0.0.1:6379" in line for line in log)
    command, = (line for line in log if line.startswith("rubriclab"))
    ctx = parsed(command.removesuffix(" with 1"))
    assert (ctx.meta["ray"], ctx.meta["workers"], ctx.meta["gpus"]) == ("10.0.0.1:6379", (8, 8), 1)
    env |= {"ALIVE": "1", "LOG": str(tmp_path / "log of a node that is missing")}
    assert (done := run("judge", "pairs.jsonl", "judged.jsonl")).returncode == 1 and "1 of 2 nodes" in done.stderr and "rubriclab" not in Path(env["LOG"]).read_text()
