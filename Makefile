# Needs nothing but a Rust toolchain, unless a target says otherwise. `make help` lists the targets.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
export BIN_WATTD ?= $(TARGET)/debug/wattd
export BIN_PLUGSIM ?= $(TARGET)/debug/plugsim

.PHONY: help build demo run test check lint unit size interop hostile load instructions page bench release install cross texts deb deb-amd64 test-systemd test-arm smoke-arm test-clock

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: ## Both programs, quickly built
	$(CARGO) build --locked --bins

demo: build ## Ten simulated plugs of every protocol and an agent that reads them; Ctrl-C ends both
	@sh tests/demo.sh

run: ## The agent on this network, small and fast
	$(CARGO) run --locked --release --bin wattd -- run

test: ## All tests
	$(CARGO) test --locked

check: lint unit size ## Format, lints, unit file, size of the binary

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --locked --no-deps --document-private-items --quiet

unit:
	sh tests/check-unit.sh

release: ## The small binary
	$(CARGO) build --locked --release --bin wattd

size: release
	sh tests/check-size.sh $(TARGET)/release/wattd

cross: ## Static binaries for every Raspberry Pi, in dist/ (rustup or apt, and pip, as needed)
	for pi in armv6 armv7 aarch64; do bash cross/build.sh dist $$pi || exit 1; done

texts:
	$(CARGO) run --quiet --locked --example texts -- dist/texts

deb-amd64: texts release
	sh systemd/deb/build.sh deb amd64 $(TARGET)/release/wattd dist/texts

deb: cross deb-amd64 ## Packages for Debian and Raspberry Pi OS, and a tarball for ARMv7, in dist/
	sh systemd/deb/build.sh deb armhf dist/wattd-armv6 dist/texts
	sh systemd/deb/build.sh deb arm64 dist/wattd-aarch64 dist/texts
	sh systemd/deb/build.sh tar armv7 dist/wattd-armv7 dist/texts

test-arm: smoke-arm ## Unit tests for ARM, and the release binaries' main job, under qemu-user (after make cross)
	for pi in armv6 armv7; do bash cross/build.sh test $$pi --locked --lib || exit 1; done

smoke-arm: build
	for pi in armv6 armv7 aarch64; do tests/smoke-arm.sh $$pi || exit 1; done

test-clock: build ## A start in 1970, before the clock is set (faketime; says so where there is none)
	tests/clock-at-boot.sh

test-systemd: deb-amd64 build ## The package under a real systemd, in a container (as root; apt)
	tests/systemd/run dist/wattd_$$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)-1_amd64.deb $(BIN_PLUGSIM)

page: build ## The page in headless Chromium; screenshots in tests/page/out (node, npm, chromium)
	tests/page/run

interop: build ## Against programs that we did not write (npm, pip)
	tests/interop/run
	tests/interop/contract

hostile: build ## Clients that mean harm against an agent with simulated plugs (Python 3)
	tests/interop/hostile

load: release build ## Requests per second and CPU per request (wrk; Debian: apt install wrk)
	BIN_WATTD=$(TARGET)/release/wattd tests/bench/load

instructions: release build ## Instructions per request (valgrind; Debian: apt install valgrind)
	BIN_WATTD=$(TARGET)/release/wattd tests/bench/instructions

bench: ## What store and agent cost: bytes, memory, CPU, latency; in target/bench.json too (30 minutes)
	$(CARGO) bench --locked --bench store
	$(CARGO) bench --locked --bench agent
	$(CARGO) bench --locked --bench agent -- writes

install: ## Into /usr/local, with the systemd unit (as root, after make release)
	@test -x $(TARGET)/release/wattd || { echo 'run make release first, as yourself' >&2; exit 1; }
	sh systemd/install.sh $(TARGET)/release/wattd
