#!/bin/sh
# Installs the release that this file is in, or puts it in the place of an older one:
#
#   sudo mmproxy-<version>/deploy/install.sh [--prefix /opt] [--bin /usr/local/bin]
#
# The release becomes /opt/mmproxy by a rename. What was there becomes /opt/mmproxy-<its version>: a program
# that runs keeps the files that it was started from, and it is there to go back to. No file is written over.
set -eu

prefix=/opt
bin=/usr/local/bin

fail() {
  printf 'install.sh: %s\n' "$1" >&2
  exit 1
}

while [ $# -gt 0 ]; do
  case $1 in
    --prefix) prefix=${2:?a directory} && shift 2 ;;
    --bin) bin=${2:?a directory} && shift 2 ;;
    *) fail "unknown argument $1; the arguments are --prefix <directory> and --bin <directory>" ;;
  esac
done

release=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
[ -d "$release/node_modules" ] || fail "$release is not a release; unpack one, or run deno task release"

version_of() {
  sed -n 's/^ *"version": "\([0-9A-Za-z.+-]*\)",$/\1/p' "$1/deno.json"
}

version=$(version_of "$release")
[ -n "$version" ] || fail "$release/deno.json names no version"
mkdir -p "$prefix" "$bin"
prefix=$(CDPATH='' cd -- "$prefix" && pwd)
bin=$(CDPATH='' cd -- "$bin" && pwd)
installed=$prefix/mmproxy

# In one step, whatever was there.
link_program() {
  ln -s "$installed/bin/mmproxy" "$bin/mmproxy.$$"
  mv -fT "$bin/mmproxy.$$" "$bin/mmproxy"
}

if [ -e "$installed" ] && diff -rq --no-dereference "$release" "$installed" >/dev/null; then
  link_program
  printf '%s is this release already\n' "$installed"
  exit 0
fi

copy=$(mktemp -d "$prefix/.mmproxy.XXXXXX")
trap 'rm -rf "$copy"' EXIT
cp -R "$release/." "$copy/"
chmod 755 "$copy"

old=
if [ -e "$installed" ] || [ -L "$installed" ]; then
  old=$installed-$(version_of "$installed")
  number=1
  while [ -e "$old" ]; do
    number=$((number + 1))
    old=$installed-$(version_of "$installed").$number
  done
  # In one step where mv can (coreutils 9.5), else in two: between them a start would find nothing.
  if mv --exchange -T "$copy" "$installed" 2>/dev/null; then
    mv -T "$copy" "$old"
  else
    mv -T "$installed" "$old"
    mv -T "$copy" "$installed" || { mv -T "$old" "$installed"; fail "cannot rename $copy"; }
  fi
else
  mv -T "$copy" "$installed"
fi
trap - EXIT
link_program

printf 'Installed mmproxy %s in %s\n' "$version" "$installed"
if [ -n "$old" ]; then
  printf 'The release before it is in %s. A running program uses that until it is restarted or upgraded.\n' "$old"
  printf 'To go back: %s/deploy/install.sh\n' "$old"
fi
