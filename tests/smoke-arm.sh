#!/bin/sh
# The main job of a release binary under qemu-user: start, poll simulated plugs, commit, kill -9, reopen, answer, stop.
#
#   tests/smoke-arm.sh armv6|armv7|aarch64     (after make cross and make build)
#
# The plugs run natively, and the agent's own verbs are the clients, so each of them is tried on ARM as well.
set -eu
cd "$(dirname "$0")/.."
pi=$1
port=$((20000 + $$ % 20000))
dir=$(mktemp -d "${TMPDIR:-/tmp}/wattd-arm.XXXXXX")
sim= agent=
end() {
    trap - EXIT INT TERM
    for program in $agent $sim; do kill -9 "$program" 2>/dev/null || :; done
    wait
    rm -rf "$dir"
}
trap end EXIT
trap 'exit 1' INT TERM
: >"$dir/wattd.toml"
qemu=$(bash cross/build.sh qemu "$pi")
wattd() { # with the settings of this test; replaces the shell that calls it
    exec $qemu "dist/wattd-$pi" "$@" --config "$dir/wattd.toml" --data-dir "$dir/store" --listen "127.0.0.1:$port" \
        --discovery-targets 127.83.255.255 --poll-interval 1s --poll-min-interval 1s --poll-strip-interval 1s
}
fail() { echo "$pi: $1" >&2; cat "$dir/log" >&2; exit 1; }
said() { # said TIMES TEXT SECONDS: the log says it at last
    tries=0
    until [ "$(grep -c -- "$2" "$dir/log")" -ge "$1" ]; do
        tries=$((tries + 1))
        [ $tries -lt $(($3 * 5)) ] || fail "no line with: $2"
        sleep 0.2
    done
}
rows() { (wattd export --what readings) | wc -l; }

"$BIN_PLUGSIM" --plugs 4 --base 127.83.0.1 --seed 1 </dev/null >/dev/null &
sim=$!
start() {
    (wattd run --commit-interval 1s -v) 2>>"$dir/log" &
    agent=$!
}
start
said 1 ' ready: ' 60
said 3 'committed ' 60
kill -9 $agent
wait $agent 2>/dev/null || :
[ "$( (wattd check) | grep -c ': ok')" -eq 1 ] || fail "the store is not sound after kill -9"
before=$(rows)
[ "$before" -gt 4 ] || fail "only $before rows were kept"
start
said 2 ' ready: ' 60
after=$(rows)
[ "$after" -ge "$before" ] || fail "of $before rows $after were left after kill -9"
(wattd read fridge --json) | grep -q '"power_w"' || fail "the agent does not answer"
kill -TERM $agent
code=0
wait $agent || code=$?
[ "$code" -eq 0 ] || fail "it stopped with code $code"
agent=
[ "$(rows)" -ge "$after" ] || fail "readings were lost when it stopped"
echo "$pi: started, polled, committed, killed, reopened, answered, stopped: $after rows"
