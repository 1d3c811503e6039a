#!/usr/bin/env bash
# build.sh - static binaries of wattd for the Raspberry Pi, and the same under qemu-user.
#
#   build.sh dist  armv6|armv7|aarch64        the release binary, checked, as dist/wattd-NAME
#   build.sh build armv6|armv7|aarch64 [cargo args...]    static (musl) release binaries; prints their paths
#   build.sh test  armv6|...           [cargo args...]    cargo test, executed under qemu-user
#   build.sh run   armv6|... BINARY    [args...]          run a built binary under qemu-user
#   build.sh qemu  armv6|...                              say how such a binary is run
#   build.sh verify armv6|... BINARY                      static? hard float? right CPU level? 16 KiB pages?
#   build.sh plan  armv6|...                              say which way would be used, build nothing
#
# armv6 is for the Pi Zero and 1, armv7 for 2 to 4 with a 32-bit system, aarch64 for 3 to 5 with a 64-bit one.
#
# Where the standard library for the target comes from, first that works (per target, not per machine):
#   prebuilt  rustup's own rust-std for the target (installed, or `rustup target add` succeeds)
#   src       rustup's rust-src, std compiled once with -Zbuild-std into a private sysroot
#   debian    rustc + rust source from the packages of this machine's own apt sources
#             (rustc-web/rust-web-src on stable, rustc/rust-src on testing), unpacked privately
# Linker: rust-lld for prebuilt musl targets (nothing to download), else zig through cargo-zigbuild (PyPI).
# Nothing is installed system-wide; everything lands in $CROSS_DIR.
#
# Environment: CROSS_DIR   (default ~/.cache/wattd-cross)
#              CROSS_STD   auto|prebuilt|src|debian           CROSS_LINK auto|lld|zig
#              CROSS_ADD   1: may call `rustup target/component add` (default 1)
#              CROSS_JOBS  cargo -j (default: cargo's own)
#
# Traps, each met:
# - Debian's gcc-arm-linux-gnueabihf has crt, libc and libgcc for ARMv7: what it links for ARMv6 dies of SIGILL on a Pi
#   Zero. `verify` looks for it. Nor does qemu-arm show it unless it is given -cpu arm1176.
# - A std built into a sysroot has no crt1.o: musl targets then need -C link-self-contained=no, and zig's own.
# - In such a std the crate panic_abort must be compiled with panic=abort, and all of it with bitcode, or there is no LTO.
# - The std source must be of the compiler's very release: another one does not compile.
# - ARMv6 code on a 64-bit kernel has its barriers emulated, slowly: there take aarch64.
# - 32-bit musl has a 32-bit time_t: File::set_modified ends in 2038. wattd does not use it.
# - Do not list these targets in a rust-toolchain.toml: where rustup has one of them not, nothing starts any more.
set -euo pipefail

D=${CROSS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/wattd-cross}
STD=${CROSS_STD:-auto} LINK=${CROSS_LINK:-auto} ADD=${CROSS_ADD:-1} JOBS=${CROSS_JOBS:+-j$CROSS_JOBS}
ZIG_REQ='ziglang==0.17.1 --hash=sha256:ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54 --hash=sha256:b7c5f02fccd40f89b999ee16a1f5ddced56e6182370f8affe494bcf8a28cf07e
cargo-zigbuild==0.24.0 --hash=sha256:484412e39e4c6039474535ce97ee75a22bab22d58233056f8ec8a8f9034bb957 --hash=sha256:6942e4320f7b05d8fb29e0a8ce5670bcbb3d254275100b85b5b7c86552f9a744'

say() { printf 'cross: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
need() { command -v "$1" >/dev/null || die "needs $1"; }

target() { # short name -> T (triple), CPU (rustc -C target-cpu), QEMU, QCPU
  case $1 in
    armv6)   T=arm-unknown-linux-musleabihf ;;
    armv7)   T=armv7-unknown-linux-musleabihf ;;
    aarch64) T=aarch64-unknown-linux-musl ;;
    *-*-*)   T=$1 ;;
    *) die "unknown target $1 (armv6, armv7, aarch64 or a triple)" ;;
  esac
  CPU= NAME=$1
  case $T in
    arm-*)     QEMU=arm     QCPU=arm1176    CPU=arm1176jzf-s ;;  # v6K: 64-bit atomics inline
    armv7-*)   QEMU=arm     QCPU=cortex-a7 ;;
    aarch64-*) QEMU=aarch64 QCPU=cortex-a53 ;;
    *) die "no Raspberry Pi target: $T" ;;
  esac
  V=$(printf %s "$T" | tr 'a-z-' 'A-Z_')      # the form cargo uses in CARGO_TARGET_<V>_*
}

# ---- apt, with a private state directory and the machine's own sources and keys ---------------
apt_() { # apt_ get|cache args...
  local t=$1; shift; mkdir -p "$D/apt/state/lists/partial" "$D/apt/cache/archives/partial"
  LC_ALL=C "apt-$t" -qq -oDir::State="$D/apt/state" -oDir::Cache="$D/apt/cache" -oAPT::Sandbox::User="$(id -un)" \
    -oAcquire::Languages=none -oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -oAcquire::Retries=3 "$@"
}
apt_fresh() { # the private package lists, at most a day old
  [ -n "$(find "$D/apt/stamp" -mmin -1440 2>/dev/null)" ] && return
  apt_ get update || die "apt-get update failed"; touch "$D/apt/stamp"
}
apt_unpack() { # apt_unpack DIR SRCFILTER pkg...   (rust sources: only library/, it is all std needs)
  local dir=$1; shift; local tmp; tmp=$(mktemp -d "$D/debs.XXXXXX")
  (cd "$tmp" && apt_ get download "$@") || die "download failed: $*"
  local f; for f in "$tmp"/*.deb; do
    mkdir -p "$dir"
    case ${f##*/} in
      rust-src_*|rust-web-src_*) dpkg-deb --fsys-tarfile "$f" | tar -x -C "$dir" --wildcards './usr/src/*/library' './usr/lib/rustlib/src*' ;;
      *) dpkg-deb -x "$f" "$dir" ;;
    esac
  done
  rm -rf "$tmp"
}

# ---- the std providers -----------------------------------------------------------------------
rustup_() { RUST_BACKTRACE=0 timeout 600 rustup "$@" >"$D/rustup.log" 2>&1; }
have_prebuilt() { ls "$(rustc --print sysroot)/lib/rustlib/$T/lib/"libstd-*.rlib >/dev/null 2>&1; }
have_src()      { [ -f "$(rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ]; }
may_add()       { [ "$ADD" = 1 ] && command -v rustup >/dev/null; }
try_prebuilt()  { have_prebuilt || { may_add && rustup_ target add "$T" && have_prebuilt; }; }
try_src()       { have_src || { may_add && rustup_ component add rust-src && have_src; }; }

deb_pick() { # newest packaged compiler -> RPKG (rustc|rustc-web), RVER
  need apt-get; need dpkg-deb; apt_fresh; RPKG= RVER=
  local p v; while read -r p v; do
    if [ -z "$RVER" ] || dpkg --compare-versions "$v" gt "$RVER"; then RPKG=$p RVER=$v; fi
  done < <(apt_ cache madison rustc rustc-web 2>/dev/null | awk -F'|' '{gsub(/ /,""); print $1, $2}')
  [ -n "$RVER" ] || die "no rustc package in this machine's apt sources"
}
try_debian() { # sets RUSTC to a private wrapper
  deb_pick; local src=${RPKG/rustc/rust}-src r="$D/deb/$RPKG-$RVER" list; r=${r//[+~:]/_}
  if [ ! -x "$r/rustc" ]; then
    say "unpacking Debian $RPKG $RVER"
    list=$(apt_ get -s install --no-install-recommends "$RPKG=$RVER" "$src=$RVER" | awk '/^Inst/{print $2}')
    rm -rf "$r.tmp"; apt_unpack "$r.tmp" $(printf '%s\n' $list "$RPKG=$RVER" "$src=$RVER" | sort -t= -k1,1 -u)
    printf '#!/bin/sh\nd=$(dirname "$(readlink -f "$0")")/usr\nLD_LIBRARY_PATH=$(echo "$d"/lib/*-linux-gnu)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$d/bin/rustc" "$@"\n' >"$r.tmp/rustc"
    chmod +x "$r.tmp/rustc"; rm -rf "$r"; mv "$r.tmp" "$r"
  fi
  export RUSTC="$r/rustc"; "$RUSTC" -V >/dev/null || die "the unpacked rustc does not start"
  rustc() { "$RUSTC" "$@"; }
}

choose() { # -> HOW
  mkdir -p "$D"; need cargo
  case $STD in
    prebuilt) try_prebuilt || die "no prebuilt std for $T" ; HOW=prebuilt ;;
    src)      try_src || die "no rust-src in this toolchain"; HOW=src ;;
    debian)   try_debian; HOW=debian ;;
    auto) if command -v rustc >/dev/null && try_prebuilt; then HOW=prebuilt
          elif command -v rustc >/dev/null && try_src; then HOW=src
          else try_debian; HOW=debian; fi ;;
    *) die "CROSS_STD=$STD?" ;;
  esac
  if [ "$LINK" = auto ]; then case $HOW-$T in prebuilt-*musl*) LINK=lld ;; *) LINK=zig ;; esac; fi
}

build_std() { # -> SYS, a sysroot that holds std for T only, compiled once per compiler
  local id; id=$(rustc -vV | sed -n 's/^commit-hash: //p' | cut -c1-12)-$HOW${CPU:+-$CPU}-s
  SYS="$D/std/$id"; [ -f "$SYS/lib/rustlib/$T/ok" ] && return
  say "compiling std for $T ($HOW, $(rustc -V))"
  local w; w=$(mktemp -d "$D/std-build.XXXXXX"); mkdir -p "$w/src"; echo '#![no_std]' >"$w/src/lib.rs"
  printf '[package]\nname="stdstub"\nversion="0.0.0"\nedition="2021"\n[workspace]\n[profile.release]\nopt-level="s"\ncodegen-units=1\n' >"$w/Cargo.toml"
  # Small, and without the reader of debug information: the binary is stripped, so a backtrace would say nothing.
  # As in rustc's own build: the panic_abort crate alone is compiled with panic=abort
  printf '#!/bin/sh\ncase " $* " in *" --crate-name panic_abort "*) exec "$@" -C panic=abort;; esac\nexec "$@"\n' >"$w/wrap"; chmod +x "$w/wrap"
  (cd "$w" && env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_TARGET RUSTC_BOOTSTRAP=1 RUSTC_WRAPPER="$w/wrap" CARGO_INCREMENTAL=0 CARGO_TARGET_DIR="$w/t" \
    "CARGO_TARGET_${V}_RUSTFLAGS=${CPU:+-C target-cpu=$CPU }-C embed-bitcode=yes -Zforce-unstable-if-unmarked -Aunexpected_cfgs" \
    cargo build -q $JOBS --release -Zbuild-std=std,panic_abort,test -Zbuild-std-features=panic-unwind --target "$T") || die "std did not build"
  rm -rf "$SYS/lib/rustlib/$T"; mkdir -p "$SYS/lib/rustlib/$T/lib"
  find "$w/t/$T/release/deps" -name '*.rlib' ! -name 'libstdstub*' -exec cp {} "$SYS/lib/rustlib/$T/lib/" \;
  touch "$SYS/lib/rustlib/$T/ok"; rm -rf "$w"
}

get_zig() {
  export CARGO_ZIGBUILD_CACHE_DIR="$D/zigbuild" ZIG_GLOBAL_CACHE_DIR="$D/zig-cache" ZIG_LOCAL_CACHE_DIR="$D/zig-cache"
  if [ ! -f "$D/zig/ok" ]; then
    need python3; say "fetching zig and cargo-zigbuild with pip"
    rm -rf "$D/zig"; printf '%s\n' "$ZIG_REQ" >"$D/zig.txt"
    python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary :all: --require-hashes --target "$D/zig" -r "$D/zig.txt" || die "pip failed"
    touch "$D/zig/ok"
  fi
  export CARGO_ZIGBUILD_ZIG_PATH="$D/zig/ziglang/zig" PATH="$D/zig/bin:$PATH"
}

prepare() { # the environment for cargo; sets CMD
  choose; local flags=${CPU:+-C target-cpu=$CPU}
  if [ "$HOW" != prebuilt ]; then
    build_std; flags="$flags --sysroot=$SYS"
    case $T in *musl*) flags="$flags -C link-self-contained=no" ;; esac
  fi
  # one target directory per provider: their compilers differ, and would evict each other's work
  export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/cross-$HOW" CARGO_INCREMENTAL=0
  if [ "$LINK" = lld ]; then export "CARGO_TARGET_${V}_LINKER=rust-lld"; else get_zig; fi
  export "CARGO_TARGET_${V}_RUSTFLAGS=${flags# }"
  say "$T: std=$HOW link=$LINK $(rustc -V)"
}

get_qemu() { # -> Q
  local n; for n in "qemu-$QEMU-static" "qemu-$QEMU" "$D/qemu/usr/bin/qemu-$QEMU-static" "$D/qemu/usr/bin/qemu-$QEMU"; do
    if Q=$(command -v "$n"); then return; fi
  done
  apt_fresh; say "unpacking qemu-user"
  apt_unpack "$D/qemu" qemu-user-static
  [ -e "$D/qemu/usr/bin/qemu-$QEMU-static" ] || apt_unpack "$D/qemu" qemu-user   # newer suites: static ones live here
  for n in "qemu-$QEMU-static" "qemu-$QEMU"; do Q="$D/qemu/usr/bin/$n"; [ -f "$Q" ] && [ ! -L "$Q" ] && return; done
  die "no qemu-$QEMU"
}

verify() { # verify BINARY
  need readelf; local h a; h=$(readelf -hlW "$1")
  case $T in
    arm*)    grep -q 'Machine: *ARM' <<<"$h" || die "$1: not ARM"
             grep -q 'hard-float ABI' <<<"$h" || die "$1: not hard-float"
             a=$(readelf -A "$1" | sed -n 's/.*Tag_CPU_arch: //p')
             case $T-$a in arm-*-v6|arm-*-v6K|arm-*-v6KZ|armv7-*-v7|armv7-*-v6*) ;; *) die "$1: compiled for ARM $a, not for $T" ;; esac ;;
    aarch64*) grep -q 'Machine: *AArch64' <<<"$h" || die "$1: not AArch64"
             for a in $(awk '/LOAD/{print $NF}' <<<"$h"); do [ $((a)) -ge 16384 ] || die "$1: segments not aligned for 16k pages (Pi 5)"; done; a= ;;
  esac
  if grep -q INTERP <<<"$h"; then case $T in *musl*) die "$1: not static" ;; esac; fi
  say "$1: ok, $(stat -c %s "$1") bytes${a:+, ARM $a}"
}

compile() { # compile CARGO_ARGS...
  if [ "$LINK" = lld ]; then cargo build --release $JOBS --target "$T" "$@"
  else cargo-zigbuild zigbuild --release $JOBS --target "$T" "$@"; fi
}

[ $# -ge 2 ] || { sed -n '2,11p' "$0" | sed 's/^# \{0,1\}//'; exit 2; }
cmd=$1; target "$2"; shift 2
case $cmd in
  plan)   choose; say "$T: std=$HOW link=$LINK compiler=$(rustc -V)" ;;
  build)  prepare; compile "$@"
          find "$CARGO_TARGET_DIR/$T/release" -maxdepth 1 -type f -perm -u+x ! -name '*.so' | while read -r b; do verify "$b"; echo "$b"; done ;;
  dist)   prepare; compile --locked --bin wattd; verify "$CARGO_TARGET_DIR/$T/release/wattd"
          mkdir -p dist; install -m 755 "$CARGO_TARGET_DIR/$T/release/wattd" "dist/wattd-$NAME"
          size=$(stat -c %s "dist/wattd-$NAME"); [ "$size" -le 3500000 ] || say "dist/wattd-$NAME is over the goal of 3,500,000 bytes" ;;
  test)   prepare; get_qemu; export "CARGO_TARGET_${V}_RUNNER=$Q -cpu $QCPU"
          if [ "$LINK" = lld ]; then cargo test $JOBS --target "$T" "$@"
          else cargo-zigbuild test $JOBS --target "$T" "$@"; fi ;;
  qemu)   mkdir -p "$D"; get_qemu; echo "$Q -cpu $QCPU" ;;
  run)    get_qemu; exec "$Q" -cpu "$QCPU" "$@" ;;
  verify) verify "$1" ;;
  *) die "unknown command $cmd" ;;
esac
