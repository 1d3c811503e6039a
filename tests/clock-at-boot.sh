#!/bin/sh
# A machine without a clock of its own starts in 1970, and learns the time when the network is there: the readings taken
# before get the times at which they were taken. With the real program and plugs; needs faketime (apt), and says so.
set -eu
lib=$(ls /usr/lib/*/faketime/libfaketime.so.1 2>/dev/null || :)
[ -n "$lib" ] || { echo "no libfaketime here: the clock at boot is not tried"; exit 0; }
[ ! -e /run/systemd/timesync/synchronized ] || { echo "this machine's clock is marked as set: the clock at boot cannot be tried"; exit 0; }
port=$((20000 + $$ % 20000))
dir=$(mktemp -d "${TMPDIR:-/tmp}/wattd-clock.XXXXXX")
sim= agent=
end() {
    trap - EXIT INT TERM
    for program in $agent $sim; do kill -9 "$program" 2>/dev/null || :; done
    wait
    rm -rf "$dir"
}
trap end EXIT
trap 'exit 1' INT TERM
fail() { echo "$1" >&2; cat "$dir/log" >&2; exit 1; }
said() { # said TEXT SECONDS
    tries=0
    until grep -q -- "$1" "$dir/log"; do
        tries=$((tries + 1))
        [ $tries -lt $(($2 * 5)) ] || fail "no line with: $1"
        sleep 0.2
    done
}
: >"$dir/wattd.toml"
"$BIN_PLUGSIM" --plugs 2 --base 127.84.0.1 --seed 1 </dev/null >/dev/null &
sim=$!
echo '@1970-01-01 00:00:04' >"$dir/time"
start=$(date -u +%Y-%m-%dT%H:%M:%S)
LD_PRELOAD=$lib FAKETIME_TIMESTAMP_FILE=$dir/time FAKETIME_NO_CACHE=1 DONT_FAKE_MONOTONIC=1 TZ=UTC \
    "$BIN_WATTD" run --config "$dir/wattd.toml" --data-dir "$dir/store" --listen "127.0.0.1:$port" --discovery-targets 127.84.255.255 \
    --poll-interval 1s --poll-min-interval 1s --commit-interval 1s 2>"$dir/log" &
agent=$!
said ' ready: ' 60
grep -q '^1970-01-01' "$dir/log" || fail 'the agent did not start in 1970'
sleep 5
"$BIN_WATTD" export --config "$dir/wattd.toml" --listen "127.0.0.1:$port" >"$dir/before"
[ "$(wc -l <"$dir/before")" -le 1 ] || fail 'readings with a wrong time were stored'
echo '+0' >"$dir/time"
said 'the clock is set' 30
sleep 3
"$BIN_WATTD" export --config "$dir/wattd.toml" --listen "127.0.0.1:$port" --fields time,device,power_w >"$dir/after"
end=$(date -u -d "+1 second" +%Y-%m-%dT%H:%M:%S)
rows=$(($(wc -l <"$dir/after") - 1))
[ "$rows" -ge 10 ] || fail "only $rows readings are there"
early=$(tail -n +2 "$dir/after" | awk -F, -v start="$start" -v end="$end" '$1 < start || $1 > end' | wc -l)
[ "$early" -eq 0 ] || { head -5 "$dir/after"; fail "$early of $rows readings lie outside of $start to $end"; }
echo "clock at boot: $rows readings, the first from before the clock was set, all between $start and $end"
