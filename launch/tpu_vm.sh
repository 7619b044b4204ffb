#!/usr/bin/env bash
# Runs a command on a TPU VM, which is created if it is not there.
#
#   launch/tpu_vm.sh --name=NAME --zone=ZONE --type=v5litepod-8 [FLAG...] -- COMMAND...
#   launch/tpu_vm.sh --name=tpu --zone=us-west4-a --type=v5litepod-8 --spot --delete -- bash -c '
#     gcloud storage cp -r gs://bucket/qwen gs://bucket/MedCaseReasoning . &&
#     mcr build --source=MedCaseReasoning &&
#     exec mcr train --config=configs/sft_qwen2_5_7b.py:lora --config.model.folder=qwen \
#       --workdir=runs/q7b --config.train.checkpoints=gs://bucket/q7b'
#
#   --project=P           the project, if not gcloud's default
#   --version=RUNTIME     the TPU's software, if not the usual one of its type
#   --spot                a spot VM: cheaper, and taken away when others need it
#   --repo=git+https://HOST/REPO[@REF]   installs this instead of a copy of the working tree
#   --create-flag=FLAG    a further flag of `gcloud compute tpus tpu-vm create`; may be repeated
#   --delete              deletes the VM when the command has ended
#   --poll=SECONDS        between two looks at a state (30)
#   --dry-run             prints the commands, executes nothing
#
# The command runs in ~/mcr-jax on the VM (`-- env KEY=VALUE mcr ...` sets variables), detached: when
# the connection or this script ends, it goes on, and the same call finds it again. A VM that replaces
# another is empty: data and weights come with the command, checkpoints lie in a bucket. Exit status: the
# command's; 75 if the VM was preempted or SIGTERM stopped the command (the same call goes on from the
# newest checkpoint, for preemption by itself use tpu_pod.sh); 1, 2 as everywhere.
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
  say "$name: preempted or gone ($result failed); the same call goes on"
  result=$resumable
elif ((result == resumable)); then
  say "$name: the command was stopped; the same call goes on"
elif ((result)); then
  say "$name: the command failed with exit status $result"
fi
((!delete)) || remove || say "$name: could not be deleted and may cost money"
exit "$result"
