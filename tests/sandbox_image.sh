#!/usr/bin/env bash
# Makes a small container image out of this machine's own files, for the tests of the sandbox's level "container":
# Python with its standard library, bash and the commonest of the small programs, node where there is one, the libraries they need, and nothing else. It takes
# seconds and asks no registry.
#
#   tests/sandbox_image.sh [NAME]        NAME: gateway-sandbox-test:latest when not given
#
# SANDBOX_RUNTIME   the container command with its arguments ("podman --runtime runc"); without
#                   it docker, else podman
# PYTHON            the interpreter to put in; without it the system's, else the one in PATH
set -euo pipefail

NAME=${1:-gateway-sandbox-test:latest}
TREE=$(mktemp -d)
trap 'rm -rf "$TREE"' EXIT

runtime() {
    if [ -n "${SANDBOX_RUNTIME:-}" ]; then
        # shellcheck disable=SC2086  # a command with its arguments
        $SANDBOX_RUNTIME "$@"
    elif command -v docker >/dev/null; then
        docker "$@"
    else
        podman "$@"
    fi
}

put() { # files; each at the same place, behind all links
    local file
    for file in "$@"; do
        mkdir -p "$TREE$(dirname "$file")"
        [ -e "$TREE$file" ] || cp -L --preserve=mode,timestamps "$file" "$TREE$file"
    done
}

put_libraries() { # programs and shared objects
    local library
    # A path is a word of its own; some objects are no dynamic ones.
    for library in $(ldd "$@" 2>/dev/null | grep -oE '(=> |^\s+)/[^ ]+' | grep -oE '/.*' | sort -u); do
        put "$library"
    done
}

put_program() { # name, path
    put_libraries "$2"
    put "$2"
    [ -e "$TREE/usr/bin/$1" ] || ln -s "$2" "$TREE/usr/bin/$1"
}

# The root of a merged /usr, as Debian has it, so that a library is found at both of its paths.
mkdir -p "$TREE"/usr/{bin,lib,lib64} "$TREE"/{etc,tmp,proc,dev,sys,run}
ln -s usr/bin usr/lib usr/lib64 "$TREE"
chmod 755 "$TREE"  # the root of the image
chmod 1777 "$TREE/tmp"
echo "nobody:x:65534:65534:nobody:/:/bin/sh" >"$TREE/etc/passwd"
echo "nogroup:x:65534:" >"$TREE/etc/group"

PYTHON=${PYTHON:-$(PATH=/usr/bin:/usr/local/bin:$PATH command -v python3)}
PYTHON=$("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.executable))')
STANDARD_LIBRARY=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
put_program python3 "$PYTHON"
mkdir -p "$TREE$STANDARD_LIBRARY"
tar -C "$STANDARD_LIBRARY" --exclude=./test --exclude=./site-packages --exclude=./dist-packages --exclude=./idlelib \
    --exclude=./tkinter --exclude=./lib2to3 --exclude=./ensurepip --exclude=./pydoc_data --exclude=./turtledemo \
    --exclude='./config-*' --exclude='*.a' -cf - . | tar -C "$TREE$STANDARD_LIBRARY" -xf -
find "$STANDARD_LIBRARY/lib-dynload" -name '*.so' -print0 2>/dev/null >"$TREE.objects"
mapfile -d '' OBJECTS <"$TREE.objects"
rm -f "$TREE.objects"
[ ${#OBJECTS[@]} = 0 ] || put_libraries "${OBJECTS[@]}"
put_program bash "$(realpath "$(command -v bash)")"
ln -sf bash "$TREE/usr/bin/sh"
for name in cat chmod cp env head ls mkdir mv rm sleep sort tail touch tr uniq wc; do
    put_program "$name" "$(realpath "$(command -v "$name")")"
done
NODE=$(command -v node || true)
[ -z "$NODE" ] || put_program node "$(realpath "$NODE")"

du -sh "$TREE" | sed 's/\t.*//; s/^/files: /'
tar -C "$TREE" --owner=0 --group=0 --numeric-owner -cf - . | runtime import - "$NAME" >/dev/null
echo "image: $NAME"
