#!/usr/bin/env bash
# Packs the working tree as a tar: tracked and new files, without those that git ignores. Without git,
# everything but environments, builds and runs. Installed, without a checkout: the wheel of the package.
#
#   launch/pack.sh OUT.tar.gz
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1-} in
  --help | -h) usage && exit ;;
  -* | '') wrong "the file to write is missing; see --help" ;;
esac
mkdir -p "$(dirname "$1")"
out=$(cd "$(dirname "$1")" && pwd)/${1##*/}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Two launches may pack at once: each writes its own file, and the rename is atomic.
new=$(mktemp "$out.XXXXXX")
made=$(mktemp -d)
trap 'rm -rf "$new" "$made"' EXIT
if [[ -e __main__.py ]]; then # the package: installed
  "${MCR_PYTHON:-python3}" -P -m mcr_jax.launch.wheel "$made"
  tar -czf "$new" -C "$made" .
elif [[ $(git rev-parse --show-toplevel 2>/dev/null) -ef . ]]; then
  git ls-files -z --cached --others --exclude-standard |
    while IFS= read -rd '' file; do
      [[ ! -e $file && ! -L $file ]] || printf '%s\0' "$file" # deleted, not yet committed
    done |
    tar -czf "$new" --no-recursion --null -T -
else
  tar -czf "$new" --exclude='./.venv*' --exclude=./build --exclude=./runs --exclude=__pycache__ .
fi
mv "$new" "$out"
