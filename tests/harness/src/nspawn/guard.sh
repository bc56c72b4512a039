# Keeps one host of a test alive: run by sh in a mount namespace of its own, so that the mount goes when
# it does. Its standard input is a pipe that the test holds: when that closes, however the test ended, the
# host is switched off.
#
# usage: guard.sh LOWER FOLDER MACHINE NAME BRIDGE CGROUP2 [CGROUP1]
set -eu
lower=$1 folder=$2 machine=$3 name=$4 bridge=$5 unified=$6 legacy=${7:-}
export LC_ALL=C
# Named after this process: the next one of the same host has its own.
off=$folder/off.$$

mount -t overlay overlay -o "lowerdir=$lower,upperdir=$folder/up,workdir=$folder/work" "$folder/root"

exec 3<&0
(
    cat <&3 >/dev/null
    : >"$off"
    # Its first process, which systemd-nspawn sees and ends well; then whatever is left, more than once in
    # case it was just starting again.
    if read -r first <"$unified/payload/init.scope/cgroup.procs"; then
        kill -KILL "$first"
        sleep 1
    fi
    while kill -0 $$; do
        echo 1 >"$unified/cgroup.kill"
        sleep 0.2
    done
) >/dev/null 2>&1 &
exec 3<&- </dev/null

# 133 is how systemd-nspawn ends when the system in it rebooted.
status=133
while [ "$status" = 133 ] && [ ! -e "$off" ]; do
    status=0
    sh -c '
        unified=$1 legacy=$2
        shift 2
        if [ -n "$legacy" ]; then echo $$ >"$legacy/cgroup.procs"; fi
        echo $$ >"$unified/cgroup.procs"
        SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn "$@"
    ' sh "$unified" "$legacy" --quiet --register=no --keep-unit --boot --directory="$folder/root" \
        --machine="$machine" --hostname="$name" --network-bridge="$bridge" \
        --resolv-conf=off --timezone=off --console=pipe || status=$?
done
# The test does so too; this is for tests that were killed.
find "$unified" ${legacy:+"$legacy"} -depth -type d -exec rmdir {} \; 2>/dev/null || true
rmdir "/run/systemd/nspawn/propagate/$machine" 2>/dev/null || true
exit "$status"
