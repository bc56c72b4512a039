# Runs one machine of a test as the first process of a process namespace: when it ends, however that is,
# the kernel ends whatever is left of the machine before anything else happens. Its standard input is the
# line to the machine and at the same time its power: when that closes, however the test ended, the power
# is gone.
#
# usage: guard.sh FOLDER KERNEL ARGUMENTS...
set -eu
folder=$1
shift
export LC_ALL=C
# One per power-on: what an earlier one had not read must not reach this one.
rm -f "$folder/line"
mkfifo "$folder/line"
exec 3<&0
"$@" <"$folder/line" &
kernel=$!
{
    cat <&3 >"$folder/line"
    kill -KILL "$kernel"
} &
exec 3<&- </dev/null
status=0
wait "$kernel" || status=$?
exit "$status"
