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
export RAY_process_group_cleanup_enabled=1 # what a killed worker had started, such as vLLM's process with its memory, ends with it
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head="${nodes[0]}"
address="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):6379"

why="$(mktemp)"
COUNT='import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR"); print(sum(n["Alive"] for n in ray.nodes()))'
await() { # until so many nodes have joined; a job with fewer would be slow all its time
  local there
  for _ in $(seq 60); do
    there="$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" python -c "$COUNT" "$address" 2>"$why" | tail -n 1)" || there=0
    if [ "${there:-0}" -ge "$1" ]; then return; fi
    sleep 5
  done
  echo "${there:-0} of $1 nodes joined Ray within some minutes; what kept the others away is in the output of their \`ray start\`, and who counts them last said: $(tail -n 1 "$why")" >&2
  exit 1
}

srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --node-ip-address="${address%:*}" --port=6379 --num-gpus="$SLURM_GPUS_ON_NODE" --disable-usage-stats --block &
await 1
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" ray start --address="$address" --num-gpus="$SLURM_GPUS_ON_NODE" --disable-usage-stats --block &
  await "$SLURM_JOB_NUM_NODES"
fi

workers=$((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE))
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" rubriclab "$@" --ray "$address" --workers "$workers" --gpus 1
