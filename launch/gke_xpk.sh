#!/usr/bin/env bash
# Submits a command as a workload to a GKE cluster, with xpk.
#
#   launch/gke_xpk.sh --name=NAME --cluster=CLUSTER --image=IMAGE --tpu-type=v6e-16 [FLAG...] -- COMMAND...
#   launch/gke_xpk.sh --name=q7b --cluster=tpus --image=gcr.io/p/mcr-jax --tpu-type=v6e-16 -- \
#     mcr train --config=configs/sft_qwen2_5_7b.py --config.model.folder=/mnt/qwen \
#       --config.data.data_dir=/mnt/tfds --workdir=runs/q7b --config.train.checkpoints=gs://bucket/q7b
#
#   --device-type=TYPE    instead of --tpu-type, for GPUs: h100-80gb-8
#   --num-slices=N        number of slices of that TPU type (1)
#   --num-nodes=N         number of machines of that GPU type (1)
#   --project=P --zone=Z  project and zone of the cluster, if not gcloud's defaults
#   --max-restarts=N      most restarts after preemptions (10)
#   --xpk-flag=FLAG       a further flag of `xpk workload create`, as --xpk-flag=--env=A=1; may be repeated
#   --dry-run             prints the command, executes nothing
#
# The image has mcr-jax installed, with gcsfs. Each machine runs the command in a fresh container: data
# and weights are in the image, mounted, or downloaded by the command; checkpoints are in a bucket.
# Exit status 75 (SIGTERM stopped the training, resumable) is also restarted; this needs an xpk with
# --restart-on-exit-codes, unless --max-restarts=0.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name='' cluster='' image='' tpu='' device='' project='' zone='' slices=1 nodes=1 restarts=10
flags=() command=()
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --cluster=*) cluster=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --tpu-type=*) tpu=${1#*=} ;;
    --device-type=*) device=${1#*=} ;;
    --num-slices=*) slices=${1#*=} ;;
    --num-nodes=*) nodes=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --max-restarts=*) restarts=${1#*=} ;;
    --xpk-flag=*) flags+=("${1#*=}") ;;
    --dry-run) dry=1 ;;
    --help | -h) usage && exit ;;
    --) command=("${@:2}") && break ;;
    *) unknown "$1" ;;
  esac
  shift
done
check_name --name "$name"
check_name --cluster "$cluster"
check_name --image "$image"
[[ -z $tpu || -z $device ]] || wrong "--tpu-type or --device-type, not both"
check_name "--tpu-type=... or --device-type" "$tpu$device"
check_number --num-slices "$slices" 1
check_number --num-nodes "$nodes" 1
check_number --max-restarts "$restarts" 0
((${#command[@]})) || wrong "no command to run: it comes last, after --"
need xpk "pip install xpk"

# xpk pastes the command into a YAML block, which allows no line break. Kubernetes expands $(NAME) and
# $$ in it; an empty pair of quotes after each $ prevents this and does not change the shell command.
line=$(quote "${command[@]}")
[[ $line != *[[:cntrl:]]* ]] || wrong "the command has a line break or control character, which xpk cannot carry"
line=${line//'$'/"\$''"}
# xpk sends SIGTERM to the shell around a command; exec replaces that shell by the command.
line="exec $line"
if [[ -n $device ]]; then
  # For GPUs the command is inside double quotes, and JAX needs its own names of xpk's variables.
  [[ $line != *[\"\\]* ]] || wrong "the command has a quote or backslash, which xpk cannot carry to GPUs"
  # shellcheck disable=SC2016
  line='export JAX_COORDINATOR_ADDRESS=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT; '$line
  # shellcheck disable=SC2016
  line='export JAX_NUM_PROCESSES=$NNODES JAX_PROCESS_ID=$NODE_RANK; '$line
fi

((10#$restarts == 0)) || flags+=("--max-restarts=$restarts" "--restart-on-exit-codes=$resumable")
run xpk workload create "--workload=$name" "--cluster=$cluster" "--docker-image=$image" \
  ${tpu:+"--tpu-type=$tpu" "--num-slices=$slices"} ${device:+"--device-type=$device" "--num-nodes=$nodes"} \
  ${project:+"--project=$project"} ${zone:+"--zone=$zone"} \
  --termination-grace-period-seconds=120 "${flags[@]}" "--command=$line"
