#!/bin/sh
# missing_names.sh INSTALL_MISSING: where there is no apt, what is missing is named as Debian, Fedora and Arch call it.
set -u
bin=$(mktemp -d) || exit 1
trap 'rm -rf "$bin"' EXIT
for program in sh sort tr sed; do ln -s "$(command -v $program)" "$bin/$program"; done
said=$(PATH=$bin sh "$1" build pip 2>&1) && { echo "FAILED: nothing is missing?"; exit 1; }
for name in libhwy-dev highway-devel cli11-devel "pacman -S" highway python-pip; do
    echo "$said" | grep -qe "$name" || { echo "FAILED: no word of $name:"; echo "$said"; exit 1; }
done
