#!/bin/sh
# After the files are there: dpkg runs it as `configure <old version>`, rpm as `1` or, for an upgrade, `2`.
set -eu

if command -v systemd-sysusers >/dev/null; then
  systemd-sysusers mmproxy.conf
elif ! id mmproxy >/dev/null 2>&1; then
  useradd --system --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin mmproxy
fi

# Without a running systemd there is nothing to reload.
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload

# A start is the administrator's: the installed configuration is an example. What runs continues, and hands
# over to the new version where it can.
if systemctl --quiet is-active mmproxy.service; then
  if ! /usr/bin/mmproxy upgrade --control /run/mmproxy/control; then
    echo "mmproxy: the old version goes on running; systemctl restart mmproxy runs the new one"
  fi
fi
