#!/bin/bash
# Runs inside the container, as a service of its systemd. Prints a line for each thing that is as it should be.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
cd /test || exit 1
passed=0 failed=0
toml=/etc/wattd/wattd.toml

check() { # check WHAT COMMAND...: the command has to succeed
    local what=$1
    shift
    if "$@" >/tmp/said 2>&1; then
        passed=$((passed + 1))
        echo "ok      $what"
    else
        failed=$((failed + 1))
        echo "FAILED  $what: $*"
        sed 's/^/        /' /tmp/said
        systemctl status wattd --no-pager -n 15 2>&1 | sed 's/^/        /'
    fi
}
show() { systemctl show wattd -p "$1" --value; }
within() { # within SECONDS COMMAND...: it succeeds at last
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.5
    done
}
is() { [ "$(show "$1")" = "$2" ]; }
status_has() { [[ "$(show StatusText)" == *"$1"* ]]; }
works() { is ActiveState active && status_has '4 of 4 plugs answer'; }
timeouts() { [ "$(journalctl -u wattd --no-pager -o cat | grep -c 'Watchdog timeout')" -ge "$1" ]; }
logged() { journalctl -u wattd --no-pager -o cat | grep -q -- "$1"; }
not() { ! "$@"; }
fetch() { # fetch HOST PATH [HEADER]
    exec 3<>"/dev/tcp/$1/8650" || return 1
    printf 'GET %s HTTP/1.0\r\nHost: %s:8650\r\n%s\r\n' "$2" "$1" "${3:+$3$'\r\n'}" >&3
    cat <&3
    exec 3>&-
}
answers() { fetch "$1" "$2" "${4:-}" 2>/dev/null | head -n 1 | grep -q " $3 "; }
readings() { fetch 127.0.0.1 /health | grep -o '"readings_committed":[0-9]*' | cut -d : -f 2; }
has_readings() { [ "$(readings)" -ge "$1" ] 2>/dev/null; }
settings() { cat >$toml; }

ip link set lo up 2>/dev/null
./plugsim --plugs 4 --base 127.80.0.1 --seed 1 </dev/null >/tmp/plugsim.log 2>&1 &

# ---- install
dpkg -i wattd.deb >/tmp/install 2>&1
check 'the package installs' dpkg -s wattd
check 'the install prints the address' grep -q 'http://127.0.0.1:8650/' /tmp/install
check 'the install says how to open it' grep -q '0.0.0.0:8650' /tmp/install
check 'it starts by itself, with no secrets there' within 60 is ActiveState active
check 'it starts with the machine' systemctl -q is-enabled wattd
check 'it answers' within 20 answers 127.0.0.1 /health 200
pid=$(show MainPID)
check 'it runs as a user of its own' test "$(stat -c %u /proc/"$pid")" -ge 61184
check 'which is not there for good' not grep -q ^wattd /etc/passwd
check 'its readings are its own' test "$(stat -c %a /var/lib/private/wattd)" = 750
check 'it tells systemd how it is' status_has 'plugs answer'
check 'the manual page and the completions are there' test -s /usr/share/bash-completion/completions/wattd

# ---- reload
settings <<END
commit_interval = "2s"
[discovery]
targets = ["127.80.255.255"]
every = "5s"
END
check 'it takes new settings' systemctl reload wattd
check 'and says so' within 20 logged 'the new settings are in force'
check 'it is still the same process' is MainPID "$pid"
check 'it finds plugs and records' within 100 works
check 'readings reach the disk' within 30 has_readings 1
echo 'pol = 1' | settings
systemctl reload wattd
check 'wrong settings are refused, with the reason' within 20 status_has 'new settings refused, the old ones are in force'
check 'and it goes on as before' is MainPID "$pid"
wattd doctor >/tmp/doctor 2>&1
check 'doctor finds the wrong line' grep -q '^problem.*wattd.toml:1' /tmp/doctor

# ---- kill -9: nothing is lost, not even what was not committed
settings <<END
commit_interval = "1h"
[discovery]
targets = ["127.80.255.255"]
every = "5s"
END
systemctl reload wattd
before=$(readings)
sleep 12
kill -9 "$pid"
check 'killed, it is started anew' within 40 is NRestarts 1
check 'and works' within 60 is ActiveState active
check 'what no commit had covered comes back from memory' logged 'come back from the journal'
check 'nothing that was on disk is gone' within 20 has_readings "$before"

# ---- a token, which only root can read
settings <<END
listen = "0.0.0.0:8650"
commit_interval = "2s"
[discovery]
targets = ["127.80.255.255"]
every = "5s"
END
(umask 077; echo correct-horse >/etc/wattd/token)
check 'open to the network, it starts with the token alone' systemctl restart wattd
check 'it refuses who has none' within 20 answers 127.0.0.1 /api/v1/devices 401
check 'it lets in who has it' answers 127.0.0.1 /api/v1/devices 200 'Authorization: Bearer correct-horse'
check 'the secret stands in no log' not logged correct-horse
check 'nor in its environment' not grep -q correct-horse "/proc/$(show MainPID)/environ"
check 'verbs find the token as well' wattd export --what readings --from -1h
within 100 works
wattd doctor >/tmp/doctor 2>&1
check 'doctor sees the plugs, the secret and the unit' test "$(grep -c '^ok *\(plug\|secret\|unit\)' /tmp/doctor)" -ge 4

# ---- upgrade
check 'it records on' within 30 has_readings 10
before=$(readings)
check 'it is upgraded' dpkg -i --force-confold next.deb
check 'and started anew' within 100 works
check 'the readings are still there' has_readings "$before"
check 'the settings as well' grep -q '0.0.0.0' $toml

# ---- watchdog
mkdir -p /etc/systemd/system/wattd.service.d
printf '[Service]\nWatchdogSec=8s\nTimeoutAbortSec=5s\nRestartSec=1s\n' >/etc/systemd/system/wattd.service.d/quick.conf
systemctl daemon-reload
printf '[discovery]\nenabled = false\n' | settings
rm /etc/wattd/token
systemctl restart wattd
sleep 25
check 'a quiet house does not stop the watchdog' is NRestarts 0
settings <<END
commit_interval = "1s"
[discovery]
targets = ["127.80.255.255"]
every = "5s"
END
systemctl restart wattd
within 100 works
pid=$(show MainPID)
strace -qq -o /dev/null -p "$pid" -e trace=sendto -e inject=sendto:delay_enter=120000000 &
tracer=$!
check 'a stuck poll loop stops the watchdog' within 60 timeouts 1
kill -9 $tracer 2>/dev/null # what it traces cannot end before
check 'and it is started anew' within 60 is NRestarts 1
check 'and it works again' within 100 works
pid=$(show MainPID)
for task in /proc/"$pid"/task/*; do
    if grep -q wattd-commit "$task/comm"; then thread=${task##*/}; fi
done
strace -qq -o /dev/null -p "$thread" -e trace=fdatasync,fsync -e inject=fdatasync,fsync:delay_enter=300000000 &
tracer=$!
sleep 15
check 'while a commit is stuck, it still answers' answers 127.0.0.1 /health 200
check 'and systemd still waits: a card may be slow' is NRestarts 1
check 'a commit that stays stuck stops the watchdog' within 150 timeouts 2
check 'with the reason in the journal' logged 'the commits are stuck'
kill -9 $tracer 2>/dev/null
check 'and it is started anew' within 60 is NRestarts 2
check 'and it works again after that' within 100 works
check 'it logs little: priorities, no debug' test "$(journalctl -u wattd -p 7..7 -o cat | wc -l)" -eq 0
check 'errors have their priority' test "$(journalctl -u wattd -p 3 -o cat | grep -c stuck)" -ge 1

# ---- remove, purge
check 'it is removed' dpkg -r wattd
check 'and stopped' not systemctl -q is-active wattd
check 'the readings stay' test -s /var/lib/private/wattd/wattd.redb
check 'it is purged' dpkg -P wattd
check 'with its readings' not test -e /var/lib/private/wattd
check 'and its settings' not test -e $toml
echo
cat /tmp/doctor
echo
echo "$passed passed, $failed failed"
sync
