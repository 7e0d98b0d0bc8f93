#!/bin/sh
# Before the files go: dpkg runs it as `remove` or `upgrade <new version>`, rpm as `0` or, for an upgrade, `1`.
set -eu

case ${1:-} in
  remove | 0) ;;
  *) exit 0 ;;
esac
[ -d /run/systemd/system ] || exit 0
systemctl --quiet disable --now mmproxy.service
