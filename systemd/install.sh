#!/bin/sh
# Puts wattd where it belongs, as root: ./install.sh BINARY. With the systemd unit, and settings where there are none.
# Environment: DESTDIR, PREFIX (/usr/local).
set -eu
here=$(dirname "$0") binary=${1:?usage: install.sh BINARY} prefix=${PREFIX:-/usr/local} dest=${DESTDIR:-}
install -Dm755 "$binary" "$dest$prefix/bin/wattd"
unit=$dest/etc/systemd/system/wattd.service
install -Dm644 "$here/wattd.service" "$unit"
sed -i "s|^ExecStart=[^ ]*|ExecStart=$prefix/bin/wattd|" "$unit"
[ -e "$dest/etc/wattd/wattd.toml" ] || install -Dm644 "$here/wattd.toml" "$dest/etc/wattd/wattd.toml"
if [ -e "$here/wattd.1" ]; then
    install -Dm644 "$here/wattd.1" "$dest$prefix/share/man/man1/wattd.1"
    install -Dm644 "$here/wattd.bash" "$dest$prefix/share/bash-completion/completions/wattd"
fi
[ -n "$dest" ] || echo "now: systemctl daemon-reload; systemctl enable --now wattd; wattd doctor"
