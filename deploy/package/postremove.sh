#!/bin/sh
# After the files are gone: dpkg runs it as `remove`, `purge` or `upgrade …`, rpm as `0` or, for an upgrade, `1`.
set -eu

case ${1:-} in
  remove | purge | 0) ;;
  *) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

# dpkg keeps the configuration until a purge; rpm has no purge.
[ "$1" != remove ] || exit 0
rm -rf /var/cache/mmproxy
if id mmproxy >/dev/null 2>&1; then userdel mmproxy; fi
# Only if nothing of the administrator's is in it.
rmdir --ignore-fail-on-non-empty /etc/mmproxy 2>/dev/null || true
