#!/bin/sh
# Installs Tidegate's packages on this host, or upgrades them.
#
#   install.sh --from DIR [WHAT…]                packages and SHA256SUMS in a folder
#   install.sh --base-url URL [WHAT…]            the same under an address
#
#   WHAT        coordinator, agent, cli; default: agent and cli
#   --version   which version, if there are several; default: the only one
#   --root DIR  install into this folder, which will become a host's root
#   --dry-run   only say what would be installed
#
# Every package is checked against SHA256SUMS before anything is installed. It can be repeated: a package
# that is there in that version is left alone. An upgrade restarts coordinator and agent; applications and
# open connections go on. Needs dpkg (Debian, Ubuntu); on other systems copy the programs to
# /usr/local/bin and run `tidegate-agent install` or `tidegate-coordinator install`.
set -eu

say() { echo "install.sh: $*"; }
fail() {
    echo "install.sh: error: $*" >&2
    exit 1
}

from='' base='' version='' root='' dry_run=false what=''
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help)
            sed -n '2,16s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        --from | --base-url | --version | --root)
            [ $# -ge 2 ] || fail "$1 wants a value; see --help"
            case "$1" in
                --from) from=$2 ;;
                --base-url) base=${2%/} ;;
                --version) version=$2 ;;
                --root) root=$2 ;;
            esac
            shift 2
            ;;
        --dry-run)
            dry_run=true
            shift
            ;;
        coordinator | agent) what="$what tidegate-$1" && shift ;;
        cli) what="$what tidegate" && shift ;;
        *) fail "unknown argument \"$1\"; see --help" ;;
    esac
done
[ -n "$what" ] || what='tidegate-agent tidegate'

if [ -n "$from" ] && [ -n "$base" ]; then
    fail "--from and --base-url exclude each other"
elif [ -z "$from$base" ]; then
    fail "where are the packages? give --from DIR or --base-url URL"
fi
command -v dpkg >/dev/null 2>&1 ||
    fail "dpkg is missing: copy the programs to /usr/local/bin and run their \`install\` (see docs/guides/install.md)"
command -v sha256sum >/dev/null 2>&1 || fail "sha256sum is missing; it comes with coreutils"
architecture=$(dpkg --print-architecture)
if [ "$dry_run" = false ] && [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
    fail "only root can install on this host: use sudo, or --dry-run to see what would be done"
fi
[ -z "$root" ] || [ -d "$root" ] || fail "--root: $root is not a folder"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# fetch NAME: brings a file of the source into $work.
fetch() {
    if [ -n "$from" ]; then
        [ -f "$from/$1" ] || fail "$from/$1 is missing"
        cp "$from/$1" "$work/$1"
    elif command -v curl >/dev/null 2>&1; then
        curl -fsSL --retry 3 -o "$work/$1" "$base/$1" || fail "$base/$1 cannot be fetched"
    elif command -v wget >/dev/null 2>&1; then
        wget -q -O "$work/$1" "$base/$1" || fail "$base/$1 cannot be fetched"
    else
        fail "curl or wget is needed to fetch from $base"
    fi
}

fetch SHA256SUMS
files=''
for name in $what; do
    # A version has no slash and no underscore, so that the lines of other packages do not fit.
    pattern="${name}_${version:-[^_/]*}_${architecture}\\.deb"
    found=$(sed -n "s/^[0-9a-f]\\{64\\} [ *]\\($pattern\\)\$/\\1/p" "$work/SHA256SUMS")
    case $(printf '%s\n' "$found" | grep -c .) in
        1) ;;
        0)
            others=$(sed -n "s/^[0-9a-f]\\{64\\} [ *]${name}_[^_]*_\\([a-z0-9]*\\)\\.deb\$/\\1/p" "$work/SHA256SUMS" | sort -u | tr '\n' ' ')
            fail "no package $name${version:+ $version} for $architecture in SHA256SUMS${others:+ (there is one for: $others)}"
            ;;
        *) fail "several versions of $name are there; choose one with --version" ;;
    esac
    wanted=${found#"${name}_"}
    wanted=${wanted%"_$architecture.deb"}
    present=$(dpkg-query ${root:+--admindir="$root/var/lib/dpkg"} -W -f='${db:Status-Status} ${Version}' "$name" 2>/dev/null || true)
    if [ "$present" = "installed $wanted" ]; then
        say "$name $wanted is installed already"
        continue
    fi
    case "$present" in
        installed\ *) say "$name ${present#installed } will become $wanted" ;;
        *) say "$name $wanted will be installed" ;;
    esac
    [ "$dry_run" = true ] || fetch "$found"
    files="$files $found"
done
[ -n "$files" ] && [ "$dry_run" = false ] || exit 0

cd "$work"
for file in $files; do
    grep " [ *]\\{0,1\\}$file\$" SHA256SUMS >one
    sha256sum -c --status one ||
        fail "$file does not have the digest of SHA256SUMS: it is damaged or not the right one; nothing was installed"
done
# Of ours, each is listed by name; word splitting is what is wanted.
# shellcheck disable=SC2086
dpkg ${root:+--root="$root"} --install $files
case " $files" in
    *tidegate-coordinator_*) say "next: tidegate-coordinator init or join, then systemctl start tidegate-coordinator" ;;
esac
case " $files" in
    *tidegate-agent_*) say "next, on a new host: tidegate-agent join --token … --server …, then systemctl start tidegate-agent" ;;
esac
