#!/usr/bin/env bash
# Train on SLURM, one task per node with all of its GPUs; requeued when preempted, out of time, or if a node is lost.
#
# Edit these lines, then, from the root of a clone on a shared file system:   sbatch experiments/launch/slurm.sh
# To check the request:   sbatch --test-only experiments/launch/slurm.sh
#SBATCH --job-name=vit_b16
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=vit_b16-%j.log
# One task per node: its process uses all GPUs of the node.
#SBATCH --ntasks-per-node=1
# Preempted jobs and those that lost a node are requeued, and append to the same log.
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time limit, send SIGTERM to the tasks (for this script it would need B:): they save and exit.
#SBATCH --signal=TERM@120
set -euo pipefail

train=(python -m vit_jax.main --config=configs/vit_b16.py
       --config.platform=gpu     # never fall back to CPUs silently
       --config.data.data_dir="$HOME/tensorflow_datasets"
       --workdir="$HOME/runs/vit_b16")   # the same directory on all nodes

restarts_allowed=50

# vit_jax reads from SLURM which task this is, how many there are and where the first one runs.
status=0
srun --kill-on-bad-exit=1 "${train[@]}" || status=$?

# 75: another task was lost; above 128: ended by a signal (143: SIGTERM, saved; 137: killed).
# Other errors are not retried.
if (((status == 75 || status > 128) && ${SLURM_RESTART_COUNT:-0} < restarts_allowed)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
