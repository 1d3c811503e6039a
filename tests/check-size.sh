#!/bin/sh
# The release binary stays small: it is copied over Wi-Fi to a card. The target is 3.5 MB for a static ARM binary; the same
# program is 11 % larger for x86-64 (measured with a probe of all crates), where this is run.
#
# The target is not met: logins, the page, live events and the log on the card brought the binary to 5.4 MB. What costs
# most (nm by crate, size -A): unwinding 0.6 MB of tables beside its code, redb compiled for nine kinds of tables 0.7 MB,
# RSA 0.2 MB. Until it is met, this says by how much it is missed and refuses any growth.
set -eu
binary=$1 target=${2:-3900000} ceiling=${3:-5410000}
size=$(wc -c <"$binary")
echo "$binary: $size bytes, target $target"
[ "$size" -le "$target" ] || echo "NOT MET: $((size - target)) bytes over the target; see what costs what with cargo bloat" >&2
[ "$size" -le "$ceiling" ] || { echo "$binary has grown beyond $ceiling bytes" >&2; exit 1; }
if grep -q plugsim "$binary"; then echo "$binary holds parts of the simulator" >&2; exit 1; fi
