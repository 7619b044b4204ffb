# shellcheck shell=bash
# Functions of tpu_vm.sh and tpu_pod.sh: flags, states, and a command run on every worker.
# The script that sources this defines own_flag (its own flags) and gone (true if the TPU was lost).
# shellcheck disable=SC2034 # used where this is sourced

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$here/lib.sh"
tree=${here%/*}/build/launch/mcr-tree.tar.gz
[[ ! -e ${here%/*}/__main__.py ]] || tree=${XDG_CACHE_HOME:-$HOME/.cache}/mcr-jax/mcr-tree.tar.gz # installed

name='' zone='' type='' project='' version='' repo='' spot=0 delete=0 poll=30
create_flags=() command=() where=()
patience=10 # failed attempts in a row to reach an existing TPU by gcloud

parse() {
  while (($#)); do
    case $1 in
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --version=*) version=${1#*=} ;;
      --repo=*) repo=${1#*=} ;;
      --create-flag=*) create_flags+=("${1#*=}") ;;
      --poll=*) poll=${1#*=} ;;
      --spot) spot=1 ;;
      --delete) delete=1 ;;
      --dry-run) dry=1 ;;
      --help | -h) usage && exit ;;
      --) command=("${@:2}") && break ;;
      *) own_flag "$1" || unknown "$1" ;;
    esac
    shift
  done
  check_name --name "$name"
  check_name --zone "$zone"
  check_name --type "$type"
  [[ -z $project ]] || check_name --project "$project"
  [[ -z $repo || $repo == git+https://* ]] || wrong "--repo=$(printf %q "$repo") is not git+https://..."
  check_number --poll "$poll" 0
  [[ -n $version ]] || version=$(runtime_of "$type")
  check_name --version "$version"
  ((${#command[@]})) || wrong "no command to run: it comes last, after --"
  need gcloud "https://cloud.google.com/sdk/docs/install"
  where=("$name" "--zone=$zone" ${project:+"--project=$project"})
  ((!spot)) || create_flags+=(--spot)
  message=$(mktemp)
  trap 'rm -f "$message"' EXIT
}

# Prints the runtime for JAX of each TPU generation, by Google's documentation.
runtime_of() {
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) wrong "--type=$(printf %q "$1") is of no generation known here: name its runtime with --version=..." ;;
  esac
}

# KIND VERB [FLAG...]
tpus() { run gcloud compute tpus "$1" "$2" "${where[@]}" "${@:3}"; }

# KIND FIELD -> the state, ABSENT, or UNKNOWN if gcloud failed (its message is in $message).
state_of() {
  local answer
  if answer=$(tpus "$1" describe "--format=value($2)" 2>"$message"); then
    echo "${answer:-UNKNOWN}"
  elif grep -q NOT_FOUND "$message"; then
    echo ABSENT
  else
    echo UNKNOWN
  fi
}

cannot_tell() { fail "$name: gcloud cannot tell its state: $(tail -n 1 "$message")"; }

pause() { ((poll == 0)) || sleep "$poll"; }

on_workers() {
  tpus tpu-vm ssh --worker=all "--command=$(quote bash on_vm.sh "$@")" --quiet </dev/null
}

# Packs before creating anything that costs money.
pack() { [[ -n $repo ]] || run "$here/pack.sh" "$tree"; }

copy() {
  local files=("$here/on_vm.sh")
  [[ -n $repo ]] || files+=("$tree")
  run gcloud compute tpus tpu-vm scp "${files[@]}" "$name:" "${where[@]:1}" --worker=all --quiet </dev/null
}

# Installs, starts the command on every worker, and follows it. Sets `result` to its exit status (75:
# resumable), or to the step that failed without one: copy, install, start, follow.
job() {
  local misses=0 report
  result=copy && copy || return 0
  result=install && on_workers install ${repo:+"$repo"} || return 0
  result=start && on_workers start "${command[@]}" || return 0
  result=follow
  if ((dry)); then
    on_workers follow
    on_workers status
    return 0
  fi
  trap 'say "$name: no longer watching; the command goes on there, the same call finds it again"; exit 130' INT
  while ((misses < patience)); do
    on_workers follow || true # ends with the command, or with the connection
    if report=$(on_workers status) && grep -qE '^(running|exited [0-9]+|lost|nothing)$' <<<"$report"; then
      misses=0
      grep -qx running <<<"$report" || break
      say "$name: connection lost, the command is running: connecting again"
    else
      ((misses += 1))
      if gone; then return 0; fi
    fi
    pause
  done
  trap - INT
  ((misses)) || result=$(verdict "$report")
}

# One line per worker, `exited N` or `lost` -> one status. A stopped or lost worker makes the others
# fail, so `resumable` takes precedence over their statuses.
verdict() {
  awk -v resumable="$resumable" '
    /^lost/ || /^nothing/ { status = resumable }
    /^exited / && $2 && status != resumable && (!status || $2 == resumable) { status = $2 }
    END { print status + 0 }' <<<"$1"
}
