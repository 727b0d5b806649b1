#!/usr/bin/env bash
#SBATCH --job-name=nest-ssl
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=2
#SBATCH --time=01:00:00
# Both trainers on the GPUs of one node, and then their comparison, as a job of SLURM, in the images of `make images`:
#   enroot import -o nemo.sqsh dockerd://nest-ssl/nemo:RELEASE-cuda      for enroot and pyxis, or for Apptainer
#   apptainer build nemo.sif docker-daemon:nest-ssl/nemo:RELEASE-cuda    (as in docker/.env; nest alike, from nest-ssl/nest:cuda)
#   NEMO_IMAGE=nemo.sif NEST_IMAGE=nest.sif sbatch --gpus-per-node=8 docker/slurm.sh size=tiny save_steps=0-2 batches=3
# Its one task starts the ranks. Arguments are settings of both trainers; it ends with the comparer's exit code.
# Settings, from the environment: NEMO_IMAGE NEST_IMAGE OUT DATA RANKS (the node's GPUs); DRY_RUN=1 prints and runs nothing.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" # SLURM runs a copy of this file from elsewhere
fail() { echo "error: $*" >&2; exit 3; }
[ -e docker/slurm.sh ] || fail "not the repository: $PWD. Call sbatch from its folder"

out=${OUT:-outputs} ranks=${RANKS:-${SLURM_GPUS_ON_NODE:-1}}
case $ranks in '' | *[!0-9]* | 0*) fail "RANKS=$ranks is no number of ranks. Use 1 or more" ;; esac
[ -n "${DRY_RUN:-}" ] || mkdir -p "$out"
case $out in /*) ;; *) out=$PWD/$out ;; esac
mounts=$PWD/data:/app/data:ro,$out:/app/outputs
IFS=: read -r -a folders <<< "${DATA:-}"
for folder in ${folders[@]+"${folders[@]}"}; do
    [ -d "$folder" ] || fail "no such folder: DATA=$folder"
    mounts+=,$folder:$folder:ro
done
case $mounts in *' '*) fail "a folder's name with a space cannot be mounted: $mounts" ;; esac

in_image() { # IMAGE COMMAND...: one step of the job
    local image=$1 step=(srun --nodes=1 --ntasks=1)
    shift
    case $image in
        '') fail "no image: set NEMO_IMAGE and NEST_IMAGE" ;;
        *.sif) step+=(apptainer exec --containall --nv --pwd /app --bind "$mounts" --env "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}" "$image") ;;
        *) step+=(--container-image="$image" --container-mounts="$mounts" --container-workdir=/app --no-container-mount-home) ;;
    esac
    if [ -n "${DRY_RUN:-}" ]; then echo "${step[*]}" "$*"; else "${step[@]}" "$@"; fi
}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
devices=(trainer.accelerator=gpu "trainer.devices=$ranks")
if [ "$ranks" != 1 ]; then devices+=(trainer.strategy=ddp_find_unused_parameters_true); fi
for side in nemo nest; do
    if [ $side = nemo ]; then image=${NEMO_IMAGE:-}; else image=${NEST_IMAGE:-}; fi
    in_image "$image" python "scripts/train_$side.py" "${devices[@]}" overwrite=true "$@" "output_dir=outputs/$side"
done
in_image "${NEST_IMAGE:-}" python scripts/compare_outputs.py
