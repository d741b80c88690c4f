#!/usr/bin/env bash
# Trains on SLURM, one task a node with all of its GPUs; queued again when preempted, out of time, or a node is lost.
#
# Edit these lines, then, from the root of a clone that all nodes see:   sbatch experiments/launch/slurm.sh
# To check the request:   sbatch --test-only experiments/launch/slurm.sh
#SBATCH --job-name=vit_b16
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=vit_b16-%j.log
# One task a node: its process drives all GPUs of the node.
#SBATCH --ntasks-per-node=1
# Preemption and lost nodes put the job back into the queue, and its log goes on in the same file.
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time is over, SIGTERM to the tasks (to this script it would need B:): they save and end.
#SBATCH --signal=TERM@120
set -euo pipefail

train=(python -m vit_jax.main --config=configs/vit_b16.py
       --config.platform=gpu     # never silently on the CPUs
       --config.data.data_dir="$HOME/tensorflow_datasets"
       --workdir="$HOME/runs/vit_b16")   # one folder for all nodes

restarts_allowed=50

# SLURM tells vit_jax which task this is, how many there are and where the first one runs.
status=0
srun --kill-on-bad-exit=1 "${train[@]}" || status=$?

# 75: another task was lost; above 128: ended by a signal (143: asked to stop, and saved; 137: killed).
# Other errors stay errors.
if (((status == 75 || status > 128) && ${SLURM_RESTART_COUNT:-0} < restarts_allowed)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
