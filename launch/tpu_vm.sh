#!/usr/bin/env bash
# Runs a command on a TPU VM, which it creates if needed.
#
#   launch/tpu_vm.sh --name=NAME --zone=ZONE --type=v5litepod-8 [FLAG...] -- COMMAND...
#   launch/tpu_vm.sh --name=tpu --zone=us-west4-a --type=v5litepod-8 --spot --delete -- bash -c '
#     gcloud storage cp -r gs://bucket/qwen gs://bucket/MedCaseReasoning . &&
#     mcr build --source=MedCaseReasoning &&
#     exec mcr train --config=configs/sft_qwen2_5_7b.py:lora --config.model.folder=qwen \
#       --workdir=runs/q7b --config.train.checkpoints=gs://bucket/q7b'
#
#   --project=P           project, if not gcloud's default
#   --version=RUNTIME     runtime of the TPU, if not the default of its type
#   --spot                a spot VM: cheaper, may be preempted
#   --repo=git+https://HOST/REPO[@REF]   installs this instead of the working tree
#   --create-flag=FLAG    another flag of `gcloud compute tpus tpu-vm create`; may be repeated
#   --delete              deletes the VM when the command has ended
#   --poll=SECONDS        between two checks of a state (30)
#   --dry-run             prints the commands, executes nothing
#
# The command runs in ~/mcr-jax on the VM (`-- env KEY=VALUE mcr ...` sets variables), detached: it
# continues when the connection or this script ends, and the same call finds it again. A new VM is empty:
# the command downloads data and weights, and checkpoints are in a bucket. Exit status: the command's; 75
# if the VM was preempted or SIGTERM stopped the command (the same call resumes from the newest
# checkpoint; tpu_pod.sh resumes after preemption by itself); 1 or 2 as for every command.
set -euo pipefail
# shellcheck source=tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

own_flag() { return 1; }
vm_state() { state_of tpu-vm state; }
gone() { [[ ! $(vm_state) =~ ^(READY|UNKNOWN)$ ]]; }
remove() { tpus tpu-vm delete --quiet; }
create() {
  say "$name: creating"
  tpus tpu-vm create "--accelerator-type=$type" "--version=$version" "${create_flags[@]}" ||
    fail "$name: could not be created"
}

bring_up() {
  if ((dry)); then
    note "unless it is there:" && create
    return
  fi
  local state before=''
  state=$(vm_state)
  case $state in
    UNKNOWN) cannot_tell ;;
    ABSENT) create ;;
    PREEMPTED | TERMINATED) say "$name: $state, deleting" && remove && create ;;
    READY) say "$name: is there already" ;;
  esac
  while state=$(vm_state) && [[ $state != READY ]]; do
    case $state in
      CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING) ;;
      UNKNOWN) cannot_tell ;;
      *) fail "$name: is $state; start or delete it, and call again" ;;
    esac
    [[ $state == "$before" ]] || say "$name: $state"
    before=$state && pause
  done
}

parse "$@"
pack
bring_up
job
if ((dry)); then
  ((!delete)) || remove
  exit
fi
if [[ $result != [0-9]* ]]; then
  gone || fail "$name: $result failed, and the VM is still there"
  say "$name: preempted or gone ($result failed); the same call resumes"
  result=$resumable
elif ((result == resumable)); then
  say "$name: the command was stopped; the same call resumes"
elif ((result)); then
  say "$name: the command failed with exit status $result"
fi
((!delete)) || remove || say "$name: could not be deleted and may cost money"
exit "$result"
