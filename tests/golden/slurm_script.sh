#!/bin/bash
#SBATCH --job-name="demo-7f3a-train-abc123"
#SBATCH --comment="demo-7f3a-train-abc123"
#SBATCH --nodes="4"
#SBATCH --ntasks-per-node="1"
#SBATCH --cpus-per-task="48"
#SBATCH --chdir="/home/me/project"
#SBATCH --output="/shared/state/scratch/demo-7f3a-train-abc123/slurm-%j.out"
#SBATCH --open-mode="append"
#SBATCH --export="PATH,HOME,USER,LOGNAME,SHELL,LANG,LANGUAGE,TZ,TMPDIR,VIRTUAL_ENV,LD_LIBRARY_PATH,LD_PRELOAD,CC,CXX,MAX_JOBS,TORCH_EXTENSIONS_DIR,TORCHINDUCTOR_CACHE_DIR,TRITON_CACHE_DIR,XDG_CACHE_HOME,HF_HOME,HF_ENDPOINT,HF_HUB_OFFLINE,DS_ACCELERATOR,DS_SKIP_CUDA_CHECK,MODULEPATH,LOADEDMODULES"
#SBATCH --signal="TERM@60"
#SBATCH --partition="gpu"
#SBATCH --time="1440"
#SBATCH --mem="900G"
#SBATCH --gpus-per-node="8"
#SBATCH --no-requeue
#SBATCH --account=research
#SBATCH --exclusive

# `module` is a shell function, which only login shells have; what defines it may read variables that are not set.
for file in /etc/profile.d/*module*.sh /etc/profile.d/*lmod*.sh; do
  if ! type module >/dev/null 2>&1 && [ -r "$file" ]; then . "$file"; fi
done
module load cuda

# What fails here is answered by Headrace's own policy, with a new job: Slurm does not start this one again.
set -u
export PYTHONPATH=/opt/headrace
srun --ntasks 4 --ntasks-per-node 1 --cpus-per-task 48 --export=ALL --cpu-bind=none --kill-on-bad-exit=0 --wait=0 --mpi=none bash -c 'd=/shared/state/scratch/demo-7f3a-train-abc123/n$(printf %04d "$SLURM_NODEID"); mkdir -p "$d"; exec /opt/venv/bin/python -P -m cluster.agent.agent --storage /shared/data --attempt train/demo-0123456789ab/attempts/job-0003 --key demo-7f3a-train-abc123 --node-rank "$SLURM_NODEID" --advertise "$SLURMD_NODENAME" --submission "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" >>"$d/agent.log" 2>&1 </dev/null' &

# Signals are for the agents, which hear them too; this shell only waits for them.
trap : TERM USR1 INT HUP
until wait $!; code=$?; ! kill -0 $! 2>/dev/null; do :; done
exit $code
