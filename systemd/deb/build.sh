#!/bin/sh
# Makes dist/wattd_VERSION_ARCH.deb of a binary, or dist/wattd-VERSION-NAME.tar.gz for machines without packages:
#
#   build.sh deb ARCH BINARY TEXTS      ARCH: armhf, arm64, amd64
#   build.sh tar NAME BINARY TEXTS
#
# TEXTS is the directory with the manual page and the completions (cargo run --example texts). Needs dpkg-deb for packages.
# Owners and times are fixed, so that the same binary makes the same package.
set -eu
cd "$(dirname "$0")/../.."
kind=$1 name=$2 binary=$3 texts=$4
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
umask 022
chmod 755 "$root"
mkdir -p dist
put() { install -Dm"$1" "$2" "$root/$3"; }

if [ "$kind" = tar ]; then
    dir=wattd-$version-$name
    put 755 "$binary" "$dir/wattd"
    put 755 systemd/install.sh "$dir/install.sh"
    for file in systemd/wattd.service systemd/wattd.toml "$texts/wattd.1" "$texts/wattd.bash" README.md CHANGELOG.md LICENSE \
        systemd/deb/prometheus.yml; do
        put 644 "$file" "$dir/${file##*/}"
    done
    tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -c "$dir" | gzip -9n >"dist/$dir.tar.gz"
    echo "dist/$dir.tar.gz"
    exit
fi

doc=usr/share/doc/wattd
put 755 "$binary" usr/bin/wattd
put 644 systemd/wattd.service lib/systemd/system/wattd.service
sed -i 's|^ExecStart=[^ ]*|ExecStart=/usr/bin/wattd|' "$root/lib/systemd/system/wattd.service"
put 644 systemd/wattd.toml etc/wattd/wattd.toml
put 644 "$texts/wattd.1" usr/share/man/man1/wattd.1
put 644 "$texts/wattd.bash" usr/share/bash-completion/completions/wattd
put 644 "$texts/_wattd" usr/share/zsh/vendor-completions/_wattd
put 644 "$texts/wattd.fish" usr/share/fish/vendor_completions.d/wattd.fish
put 644 systemd/deb/prometheus.yml $doc/examples/prometheus.yml
put 644 CHANGELOG.md $doc/changelog
put 644 systemd/deb/lintian-overrides usr/share/lintian/overrides/wattd
if [ "$name" = amd64 ]; then sed -i '/statically/d; /^# One static/d' "$root/usr/share/lintian/overrides/wattd"; fi
{
    printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\n'
    sed -n 's/^Copyright (c) \(.*\)/Copyright: \1/p' LICENSE
    printf 'License: Expat\n'
    sed '1,/^Copyright/d; /./!d; s/^/ /' LICENSE
} >"$root/$doc/copyright"
{
    printf 'wattd (%s-1) stable; urgency=medium\n\n  * See changelog.gz.\n\n' "$version"
    printf ' -- the wattd developers <wattd@localhost.localdomain>  %s\n' "$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")"
} >"$root/$doc/changelog.Debian"
gzip -9n "$root/$doc/changelog" "$root/$doc/changelog.Debian" "$root/usr/share/man/man1/wattd.1"

# A static program needs nothing but the zones.
depends=tzdata
if [ "$name" = amd64 ]; then depends="libc6 (>= $(objdump -T "$binary" | grep -o 'GLIBC_2[0-9.]*' | sort -uV | tail -n 1 | sed 's/GLIBC_//')), libgcc-s1, tzdata"; fi
mkdir "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<END
Package: wattd
Version: $version-1
Architecture: $name
Maintainer: the wattd developers <wattd@localhost.localdomain>
Installed-Size: $(du -sk --apparent-size "$root" | cut -f 1)
Depends: $depends
Section: utils
Priority: optional
Description: energy monitor for TP-Link Kasa and Tapo plugs
 Finds the plugs on the network, asks each for its power every ten
 seconds, keeps every reading in one crash-safe file, and answers curl,
 Prometheus and a phone over HTTP. No cloud, no database server, no
 other process.
END
echo /etc/wattd/wattd.toml >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do put 755 systemd/deb/$script DEBIAN/$script; done
(cd "$root" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
find "$root" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz --build "$root" "dist/wattd_$version-1_$name.deb" >&2
echo "dist/wattd_$version-1_$name.deb"
