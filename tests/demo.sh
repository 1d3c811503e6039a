#!/bin/sh
# The main job on simulated plugs: starts plugsim and the agent, and says how to look once every plug was read.
# Loopback only. Ctrl-C ends both. DEMO_LISTEN changes the agent's address, DEMO_SECONDS ends the demo by itself.
set -eu
listen=${DEMO_LISTEN:-127.0.0.1:8650}
dir=$(mktemp -d "${TMPDIR:-/tmp}/wattd-demo.XXXXXX")
sim= agent=
end() {
    trap - EXIT INT TERM
    for program in $agent $sim; do kill "$program" 2>/dev/null || :; done
    wait
    rm -rf "$dir"
}
trap end EXIT
trap 'end; exit 0' INT TERM

mkfifo "$dir/plugs" "$dir/log"
# The account that the simulated Tapo plugs are bound to.
echo hunter22 >"$dir/password"
"$BIN_PLUGSIM" --mix every --plugs "${DEMO_PLUGS:-10}" --base 127.80.0.1 --seed 1 </dev/null >"$dir/plugs" &
sim=$!
ready=
while read -r line; do
    if [ "$line" = ready ]; then ready=yes; break; fi
    echo "$line"
done <"$dir/plugs"
[ -n "$ready" ] || { echo "the simulated plugs did not start; is another demo running?" >&2; exit 1; }
echo

${DEMO_SECONDS:+timeout -k 5 "$DEMO_SECONDS"} "$BIN_WATTD" run --listen "$listen" --data-dir "$dir/store" \
    --discovery-targets 127.80.255.255 --poll-strip-interval 10s \
    --account-username user@example.com --account-password-file "$dir/password" 2>"$dir/log" &
agent=$!
while read -r line; do
    echo "$line"
    case $line in *' ready: '*)
        cat <<END

Open http://$listen/ or ask with curl:

  curl http://$listen/api/v1/latest
  curl http://$listen/api/v1/devices
  curl 'http://$listen/api/v1/readings?device=fridge&start=-5m&limit=3'
  curl 'http://$listen/api/v1/readings?device=kettle&format=csv&fields=time,power_w'

Ctrl-C ends the demo.

END
    esac
done <"$dir/log"
code=0
wait "$agent" || code=$?
agent=
# timeout says 124 when DEMO_SECONDS are over, as they should be.
[ "$code" -eq 124 ] && code=0
[ "$code" -eq 0 ] || echo "the agent ended with code $code; DEMO_LISTEN=127.0.0.1:PORT gives it another address" >&2
exit "$code"
