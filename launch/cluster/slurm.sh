#!/bin/bash
# Train on several nodes of a Slurm cluster, a process a GPU:
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/cluster/slurm.sh \
#     --config=hierarchy/musicgen_large --workdir=/shared/musicgen --config.data.dataset=/shared/tokens
#
# The workdir is on a file system that all nodes see. Slurm sends SIGTERM five minutes before the
# time limit: the run saves, and the job goes back into the queue and on from there.
#SBATCH --job-name=mgen
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: sbatch slurm.sh --config=CONFIG --workdir=DIR [--config.FIELD=VALUE ...]" >&2
  exit 1
fi
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/mgen/jax}"
report="$(mktemp)"
# One GPU a process; JAX reads the rest of SLURM_*. The program expands what is in single quotes.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c \
  'CUDA_VISIBLE_DEVICES=$SLURM_LOCALID exec mgen train "$@"' mgen "$@" | tee "$report"
# A run that a signal stopped ends well before its last step: back into the queue.
read -r steps _ total _ < <(grep -o '[0-9]* of [0-9]* steps done' "$report" | tail -n 1)
if [[ -n "${SLURM_JOB_ID:-}" && "$steps" != "$total" ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
