#!/usr/bin/env bash
# Runs one command at a time, detached, on a TPU worker; tpu_vm.sh and tpu_pod.sh copy it there.
#
#   on_vm.sh install [git+https://HOST/REPO[@REF]]   ~/mcr-jax and ~/mcr-venv, from ~/mcr-tree.tar.gz or git;
#                                                    other files in ~/mcr-jax, such as runs/, stay
#   on_vm.sh start COMMAND...                        in ~/mcr-jax; does nothing if the same command runs
#   on_vm.sh follow                                  prints its log until it ends
#   on_vm.sh status                                  running | exited N | lost | nothing
#
# Each call can be repeated; gcloud repeats it when a connection drops. ~/mcr-job has the command, its
# log, its exit status, and a file lock that is held while the command runs and that a reboot releases.
set -euo pipefail

job=$HOME/mcr-job tree=$HOME/mcr-jax venv=$HOME/mcr-venv

say() { printf 'on_vm.sh on %s: %s\n' "${HOSTNAME:-worker}" "$*" >&2; }
fail() { say "$@" && exit 1; }

running() { [[ -e $job/lock ]] && ! flock -sn "$job/lock" true; }

install() {
  if running; then
    say "a command is running: the installation stays as it is"
    return
  fi
  rm -rf "$tree.new" && mkdir "$tree.new"
  if (($#)); then
    local url=${1#git+} ref=
    [[ ${url##*/} != *@* ]] || { ref=${url##*@} && url=${url%@*}; }
    git clone -q "$url" "$tree.new"
    [[ -z $ref ]] || git -C "$tree.new" checkout -q "$ref" --
  else
    tar -xzf "$HOME/mcr-tree.tar.gz" -C "$tree.new"
  fi
  mkdir -p "$tree"
  rm -f "$tree"/mcr_jax-*.whl
  (
    shopt -s dotglob
    cd "$tree.new" && entries=(*)
    cd "$tree" && rm -rf -- "${entries[@]}"
    cd "$tree.new" && mv -- "${entries[@]}" "$tree/"
  )
  [[ -x $venv/bin/python ]] || make_venv
  cd "$tree"
  # gcsfs reads checkpoints in a bucket, gs://, without TensorFlow.
  local what=(-c constraints.txt -e '.[tpu]') wheels=(mcr_jax-*.whl)
  [[ ! -e ${wheels[0]} ]] || what=("./${wheels[0]}[tpu]") # launched without a checkout
  "$venv/bin/python" -m pip install -q --disable-pip-version-check "${what[@]}" gcsfs
}

# Finds a Python for mcr-jax; if the TPU image has only an older one, uv installs it.
make_venv() {
  local python
  for python in python3.11 python3.12 python3.13; do
    if "$python" -m venv "$venv" 2>/dev/null; then return; fi
    rm -rf "$venv"
  done
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  PATH=$HOME/.local/bin:$PATH uv venv -q --seed --python 3.11 "$venv"
}

start() {
  local line
  line=$(printf '%q ' "$@")
  mkdir -p "$job" "$tree"
  exec 9>>"$job/lock"
  if ! flock -n 9; then
    [[ $line == "$(<"$job/command")" ]] || fail "another command is running here: $(<"$job/command")"
    say "already running: $line"
    return
  fi
  rm -f "$job/status" "$job/followed"
  [[ ! -e $job/log ]] || mv "$job/log" "$job/log.old"
  : >"$job/log"
  printf '%s\n' "$line" >"$job/command"
  cd "$tree"
  # The outer shell holds the lock and survives the connection; the command does not inherit the lock.
  # shellcheck disable=SC2016
  PATH=$venv/bin:$PATH setsid bash -c '
    job=$1 && shift
    "$@" 9>&- && status=0 || status=$?
    echo "$status" >"$job/status.new" && mv "$job/status.new" "$job/status"
  ' bash "$job" "$@" >>"$job/log" 2>&1 </dev/null &
}

follow() {
  [[ -e $job/command ]] || fail "nothing was started here"
  local lines=+1
  if [[ -e $job/followed ]]; then
    lines=100 && say "connected again; the last $lines lines:"
  fi
  : >"$job/followed"
  flock -s "$job/lock" true >/dev/null 2>&1 &
  tail -n "$lines" -s 0.1 -f --pid=$! "$job/log"
}

status() {
  if running; then
    echo running
  elif [[ -e $job/status ]]; then
    echo "exited $(<"$job/status")"
  elif [[ -e $job/command ]]; then
    echo lost
  else
    echo nothing
  fi
}

case ${1-} in
  install) install "${@:2}" ;;
  start) start "${@:2}" ;;
  follow) follow ;;
  status) status ;;
  *) say "install, start, follow or status?" && exit 2 ;;
esac
exit # bash reads up to here before the file can be replaced
