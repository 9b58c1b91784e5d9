#!/usr/bin/env bash
#SBATCH --job-name=rubriclab
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --requeue
# A batch command on SLURM: Ray on all nodes of the job, one worker a GPU. A job that is put back into the queue goes on from the store.
#   sbatch deploy/slurm-ray.sh judge pairs.jsonl judged.jsonl --engine vllm:Qwen/Qwen3-8B
set -euo pipefail
if [ $# -eq 0 ]; then echo "usage: sbatch $0 COMMAND IN OUT [options of rubriclab]" >&2; exit 2; fi

export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # since Slurm 22.05 srun does not take it from the job; without it Ray sees one core
export RUBRICLAB_CACHE_DIR="${RUBRICLAB_CACHE_DIR:-$HOME/.cache/rubriclab/job-$SLURM_JOB_ID}" # a store belongs to one machine at a time: two jobs that shared one on a network drive would break it. A requeued job keeps its number
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')"
export RAY_AUTH_TOKEN                  # of this job: other users of the nodes are kept out
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head="${nodes[0]}"
address="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):6379"

srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --node-ip-address="${address%:*}" --port=6379 --num-gpus="$SLURM_GPUS_ON_NODE" --disable-usage-stats --block &
sleep 15
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" ray start --address="$address" --num-gpus="$SLURM_GPUS_ON_NODE" --disable-usage-stats --block &
  sleep 15
fi

workers=$((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE))
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" rubriclab "$@" --ray "$address" --workers "$workers" --gpus 1
