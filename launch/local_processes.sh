#!/usr/bin/env bash
# Runs a command as several processes on this machine that form one JAX job, on CPU.
#
#   launch/local_processes.sh --processes=2 [FLAG...] -- COMMAND...
#   launch/local_processes.sh --processes=2 --devices-per-process=2 -- \
#     mcr train --config=configs/demo.py --workdir=runs/two
#
#   --processes=N             number of processes
#   --devices-per-process=M   CPU devices of each process (1)
#   --port=PORT               port of the coordinator (a free one)
#   --grace=SECONDS           between SIGTERM and SIGKILL after one process failed (10)
#   --dry-run                 prints the commands, executes nothing
#
# Each process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; its lines begin with
# [its number]. The script forwards SIGINT, SIGTERM and SIGHUP; a second signal kills. If one process
# fails, the others are stopped. Exit status: that of the first process that failed, else 0.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

processes='' devices=1 port='' grace=10 command=()
while (($#)); do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices-per-process=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --dry-run) dry=1 ;;
    --help | -h) usage && exit ;;
    --) command=("${@:2}") && break ;;
    *) unknown "$1" ;;
  esac
  shift
done
[[ -n $processes ]] || wrong "--processes=... is missing; --help lists all flags"
check_number --processes "$processes" 1
check_number --devices-per-process "$devices" 1
check_number --grace "$grace" 0
[[ -z $port ]] || check_number --port "$port" 1
((${#command[@]})) || wrong "no command to run: it comes last, after --"
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || fail "bash 5.1 or newer is needed, this is $BASH_VERSION"

# Prints a port without a listener, below the range of ephemeral ports.
free_port() {
  local port
  while port=$((RANDOM % 20000 + 10000)) && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

lines_of() {
  local line
  trap '' INT TERM HUP # ends with its input
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

# SIGNAL: sends it to every running process and its children.
signal() {
  local pid
  for pid in "${!number_of[@]}"; do kill -s "$1" -- "-$pid" 2>/dev/null || true; done
}

received=0 first=''
# shellcheck disable=SC2329 # called by the traps
pass_on() {
  if ((++received == 1)); then
    first=$1
    say "SIG$1: passed on to ${#number_of[@]} processes"
    signal "$1"
  else
    say "SIG$1 again: killing ${#number_of[@]} processes"
    signal KILL
  fi
}

[[ -n $port ]] || port=$(free_port)
declare -A number_of=() # of each process that is still running
writers=() status=0 watchdog=''
tie=() # lets processes die with this script, even if it is killed, where the kernel supports it
((dry)) || ! setpriv --pdeathsig KILL true 2>/dev/null || tie=(setpriv --pdeathsig KILL)

set -m # every background job is its own process group, to signal it as a whole
for sig in INT TERM HUP; do
  # shellcheck disable=SC2064
  trap "pass_on $sig" "$sig"
done
for ((i = 0; i < 10#$processes; i++)); do
  step=(env "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$i"
    "JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}" JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
    "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices" "${command[@]}")
  if ((dry)); then
    printf '%s &\n' "$(quote "${step[@]}")"
    continue
  fi
  exec {pipe}> >(lines_of "$i")
  writers+=($!)
  "${tie[@]}" "${step[@]}" >&"$pipe" 2>&1 {pipe}>&- </dev/null &
  number_of[$!]=$i
  exec {pipe}>&-
done
((!dry)) || { echo wait && exit; }
[[ -z $first ]] || signal "$first" # it came during the start

# PID STATUS: handles the end of this process.
over() {
  local number=${number_of[$1]}
  unset "number_of[$1]"
  if (($2 == 0 || status)); then return; fi
  status=$2
  if ((${#number_of[@]} && !received)); then
    say "process $number ended with exit status $status: ending the others"
    signal TERM
    { sleep "$grace" && signal KILL; } 2>/dev/null &
    watchdog=$!
    disown "$watchdog" # else bash would print how it ended
  fi
}

groups=("${!number_of[@]}")
while ((${#number_of[@]})); do
  pid='' ended=0
  wait -n -p pid "${!number_of[@]}" 2>/dev/null || ended=$?
  if [[ -n ${pid-} ]]; then
    over "$pid" "$ended"
    continue
  fi
  # After a signal `wait -n` misses processes that ended while its trap ran.
  for pid in "${!number_of[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then continue; fi
    ended=0
    wait "$pid" 2>/dev/null || ended=$?
    over "$pid" "$ended"
  done
done
[[ -z $watchdog ]] || kill -s KILL -- "-$watchdog" 2>/dev/null || true
for pid in "${groups[@]}"; do kill -s KILL -- "-$pid" 2>/dev/null || true; done # their remaining children
for pid in "${writers[@]}"; do wait "$pid" || true; done
exit "$status"
