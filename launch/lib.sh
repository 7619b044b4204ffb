# shellcheck shell=bash
# Functions of every script in this folder: messages, --help, quoting, running or printing commands.

# shellcheck disable=SC2034 # used where this is sourced
resumable=75 # EX_TEMPFAIL: exit status of `mcr train` after SIGTERM stopped it at a checkpoint
dry=0        # 1: prints the commands, executes nothing

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() { say "$@" && exit 1; }
wrong() { say "$@" && exit 2; }
unknown() {
  local shown
  shown=$(printf %q "$1")
  [[ $1 == -* ]] || wrong "no flag $shown: a command comes last, after --, as in: ${0##*/} FLAG... -- $shown ..."
  wrong "no flag $shown: flags look like --name=value, --help lists them; a command comes last, after --"
}

# Prints the comment at the top of the script.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# Quotes its arguments for any POSIX shell, on one line.
quote() {
  local word line='' one="'" four="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//"$one"/"$four"}'"
    line+=" $word"
  done
  printf '%s' "${line:1}"
}

run() {
  if ((dry)); then
    quote "$@" && echo
  else
    "$@"
  fi
}

# Prints a comment in a dry run.
note() { if ((dry)); then echo "# $*"; fi; }

need() {
  ((dry)) || command -v "$1" >/dev/null || fail "$1 is not installed or not on PATH: $2"
}

# FLAG VALUE: refuses an empty value, one that looks like a flag, and control characters.
check_name() {
  [[ -n $2 ]] || wrong "$1=... is missing; --help lists all flags"
  [[ $2 != -* && $2 != *[[:cntrl:]]* ]] || wrong "$1=$(printf %q "$2") is not a name"
}

# FLAG VALUE MINIMUM
check_number() {
  if ! [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3)); then
    wrong "$1=$(printf %q "$2") is not a number from $3 up"
  fi
}
