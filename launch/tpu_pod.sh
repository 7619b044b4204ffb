#!/usr/bin/env bash
# Runs a command on every worker of a queued TPU slice, again after each preemption.
#
#   launch/tpu_pod.sh --name=NAME --zone=ZONE --type=v5litepod-64 [FLAG...] -- COMMAND...
#   launch/tpu_pod.sh --name=pod --zone=us-west4-a --type=v5litepod-64 --spot --delete -- bash -c '
#     gcloud storage cp -r gs://bucket/qwen gs://bucket/MedCaseReasoning . &&
#     mcr build --source=MedCaseReasoning &&
#     exec mcr train --config=configs/sft_qwen2_5_7b.py --config.model.folder=qwen --workdir=runs/q7b \
#       --config.mesh.tensor=4 --config.train.checkpoints=gs://bucket/q7b'
#
#   --project=P           project, if not gcloud's default
#   --version=RUNTIME     runtime of the TPU, if not the default of its type
#   --spot                spot capacity: cheaper, may be preempted
#   --attempts=N          most starts of the command (10)
#   --repo=git+https://HOST/REPO[@REF]   installs this instead of the working tree
#   --create-flag=FLAG    another flag of `gcloud compute tpus queued-resources create`; may be repeated
#   --delete              deletes the slice when the command has ended
#   --poll=SECONDS        between two checks of a state (30)
#   --dry-run             prints the commands, executes nothing
#
# gcloud reaches several workers only through an ssh agent: `ssh-add ~/.ssh/google_compute_engine` first.
# The command runs in ~/mcr-jax on every worker (`-- env KEY=VALUE mcr ...` sets variables), detached: it
# continues when the connection or this script ends, and the same call finds it again. It must resume
# when started again, as `mcr train` does from its newest checkpoint. Replaced workers are empty: the
# command downloads data and weights, and checkpoints are in a bucket that all workers can read. A
# command that fails is not started again. Exit status: the command's; 75 if all attempts ended in
# preemption (the same call resumes); 1 or 2 as for every command.
set -euo pipefail
# shellcheck source=tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

attempts=10
own_flag() {
  [[ $1 == --attempts=* ]] && attempts=${1#*=}
}

# Prints the state of the queued resource; if ACTIVE that of the slice, which is preempted first.
pod_state() {
  local state node
  state=$(state_of queued-resources state.state)
  if [[ $state == ACTIVE ]]; then
    node=$(state_of tpu-vm state)
    case $node in
      READY) ;;
      PREEMPTED | TERMINATED | STOPPED | ABSENT) state=PREEMPTED ;;
      *) state=$node ;;
    esac
  fi
  echo "$state"
}
gone() { [[ ! $(pod_state) =~ ^(ACTIVE|UNKNOWN)$ ]]; }
remove() { tpus queued-resources delete --force --quiet; }
create() {
  tpus queued-resources create "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=$version" "${create_flags[@]}" || fail "$name: could not be requested"
}

# PATTERN: waits while `state` matches it, and prints its changes.
wait_while() {
  local before='' misses=0 looks=0 since=$SECONDS
  while state=$(pod_state) && [[ $state =~ ^($1|UNKNOWN)$ ]]; do
    if [[ $state == UNKNOWN ]]; then
      ((++misses < patience)) || cannot_tell
    else
      misses=0
      if [[ $state != "$before" ]] || ((++looks % 20 == 0)); then
        say "$name: $state ($(((SECONDS - since) / 60)) min)"
      fi
      before=$state
    fi
    pause
  done
}

# Returns 1 if the request failed, so that another attempt may succeed.
bring_up() {
  if ((dry)); then
    note "unless it is there:" && create
    note "until it says ACTIVE:" && tpus queued-resources describe "--format=value(state.state)"
    return
  fi
  state=$(pod_state)
  [[ $state != UNKNOWN ]] || cannot_tell
  wait_while 'SUSPENDING|DELETING'
  case $state in
    SUSPENDED | FAILED | PREEMPTED)
      say "$name: $state: deleting it and asking again"
      remove || fail "$name: could not be deleted"
      create
      ;;
    ABSENT) say "$name: asking for $type" && create ;;
    *) say "$name: is there already, $state" ;;
  esac
  wait_while 'CREATING|ACCEPTED|WAITING_FOR_RESOURCES|PROVISIONING|STARTING|RESTARTING|REIMAGING|REPAIRING'
  [[ $state == ACTIVE ]]
}

end() {
  ((!delete)) || remove || say "$name: could not be deleted and may cost money"
  exit "$1"
}

parse "$@"
check_number --attempts "$attempts" 1
pack
if ((dry)); then
  bring_up
  job
  note "if it is preempted, and then again from the top, $attempts times in all:"
  ((delete)) || printf '# '
  remove
  exit
fi
for ((attempt = 1; attempt <= 10#$attempts; attempt++)); do
  say "$name: attempt $attempt of $attempts"
  if bring_up; then
    job
    if [[ $result == 0 ]]; then
      say "$name: done"
      end 0
    elif [[ $result != "$resumable" ]] && pause && ! gone; then # a preemption may show late
      [[ $result == [0-9]* ]] || fail "$name: $result failed, and the slice is still there"
      say "$name: the command failed with exit status $result; it is not started again"
      end "$result"
    fi
    say "$name: the command was cut short, $(pod_state)"
  else
    say "$name: $state before it could be used"
  fi
  pause
done
say "$name: gave up after $attempts attempts; the same call resumes"
end "$resumable"
