#!/usr/bin/env bash
#SBATCH --job-name=dreambooth
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
# Ray across the nodes of one allocation, then one run on it:
#   sbatch cluster/launch/slurm.sh my-dog.yaml cluster.workers=2 storage.uri=/shared/runs
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):6379
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
srun --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --port=6379 --num-cpus="$SLURM_CPUS_PER_TASK" &
sleep 15
if [ "$SLURM_NNODES" -gt 1 ]; then
  srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
    ray start --block --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" &
fi
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  dreambooth train "$@" cluster.address="$address"
