# shellcheck shell=bash
# What every script in this folder uses: messages, --help, quoting, running or only printing.

# shellcheck disable=SC2034 # used where this is sourced
resumable=75 # EX_TEMPFAIL: what `mcr train` exits with when SIGTERM stopped it at a checkpoint
dry=0        # 1: print the commands, execute nothing

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() { say "$@" && exit 1; }
wrong() { say "$@" && exit 2; }
unknown() {
  local shown
  shown=$(printf %q "$1")
  [[ $1 == -* ]] || wrong "no flag $shown: a command comes last, after --, as in: ${0##*/} FLAG... -- $shown ..."
  wrong "no flag $shown: flags look like --name=value, --help lists them; a command comes last, after --"
}

# The comment at the top of the script.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# Its arguments on one line that any POSIX shell reads back as the same arguments.
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

# In a dry run, a comment between the commands.
note() { if ((dry)); then echo "# $*"; fi; }

need() {
  ((dry)) || command -v "$1" >/dev/null || fail "$1 is not installed or not on PATH: $2"
}

# FLAG VALUE: refuses what no tool could take for a name.
check_name() {
  [[ -n $2 ]] || wrong "$1=... is missing; --help tells the rest"
  [[ $2 != -* && $2 != *[[:cntrl:]]* ]] || wrong "$1=$(printf %q "$2") is not a name"
}

# FLAG VALUE LEAST
check_number() {
  if ! [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3)); then
    wrong "$1=$(printf %q "$2") is not a number from $3 up"
  fi
}
