#!/bin/sh
# The hand of a test in the machine: runs the scripts whose numbers come over the serial line and sends
# back how they ended and what they wrote. The test's folder is mounted where it lies outside.
set -u
line=/dev/ttyS0
dir=$(sed -n 's/.*tidegate_dir=\([^ ]*\).*/\1/p' /proc/cmdline)
mkdir -p "$dir" /run/hand
mount -r -t hostfs -o "$dir" none "$dir"
exec <"$line" >"$line"
stty raw -echo
echo ready
while read -r number; do
    status=0
    sh "$dir/hand/$number" </dev/null >/run/hand/out 2>/run/hand/err || status=$?
    echo "$number $status $(stat -c %s /run/hand/out) $(stat -c %s /run/hand/err)"
    cat /run/hand/out /run/hand/err
done
