#!/usr/bin/env bash
# Runs two daemons on Debian's stock Linux 6.1, in a virtual machine: scripts/old-kernel.sh [PROFILE]
#
# The machine holds the static daemon, busybox, ip, ethtool, and of the kernel's modules tun and veth
# only. What it does and prints is in tests/support/old_kernel/init. Files and downloads are kept in
# target/old-kernel. The profile is release if not given. It ends with 77 if the machine's kernel or
# tools are not here and Debian's mirror does not have them or cannot be reached.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

profile=${1:-release}
folder=$ROOT/target/old-kernel
# Seconds until it is stopped if it hangs; a minute is enough on a machine that is idle.
patience=900

unavailable() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 77
}

[[ $(uname -m) == x86_64 ]] || die "knows no kernel for $(uname -m): run it on x86-64"
(install_missing qemu-system-x86_64:qemu-system-x86 busybox:busybox-static ip:iproute2 ethtool:ethtool) ||
    unavailable "tools are missing"
mkdir -p "$folder"
cd "$folder"

# The kernel for clouds is the same with fewer drivers.
kernel() { compgen -G "$folder/kernel/boot/vmlinuz-6.1.*" || true; }
if [[ -z $(kernel) ]]; then
    pattern='^linux-image-6\.1\.[0-9]+-[0-9]+-cloud-amd64$'
    find_package() { apt-cache pkgnames linux-image-6.1 | grep -E "$pattern" | sort -V | tail -n 1 || true; }
    package=$(find_package)
    if [[ -z $package ]]; then
        apt-get update -qq </dev/null || unavailable "apt-get update failed: is the network up?"
        package=$(find_package)
    fi
    # What apt-get cannot reach it may pass over in silence.
    [[ -n $package ]] ||
        unavailable "no linux-image-6.1.…-cloud-amd64 is offered: run it on Debian 12 with a network"
    step "Getting $package"
    apt-get download -qq -o APT::Sandbox::User=root "$package" </dev/null ||
        unavailable "apt-get download $package failed: is the network up?"
    dpkg -x "$package"_*.deb kernel
    rm "$package"_*.deb
fi

"$ROOT/scripts/static.sh" "$profile"
step "Packing the machine's files"
rm -rf root
mkdir -p root/{bin,tools,modules,proc,sys,dev,tmp,run}
cp "$(command -v busybox)" "$ROOT/target/static/flanneld" root/bin/
for module in tun veth; do
    cp kernel/lib/modules/*/kernel/drivers/net/$module.ko root/modules/
done
# busybox has less of these. They are not static: with their libraries.
for tool in ip ethtool; do
    path=$(command -v $tool)
    cp "$path" root/tools/
    ldd "$path" | grep -o '/[^ ]*' | xargs -I{} cp -L --parents {} root/
done
install "$ROOT/tests/support/old_kernel/init" root/init
(cd root && find . | busybox cpio -o -H newc) | gzip -1 >initramfs.gz

step "Starting $(basename "$(kernel)")"
# Emulated, not by KVM: machines that are virtual themselves have it in many states of disrepair.
timeout "$patience" qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 768 -nic none -nographic -no-reboot \
    -kernel "$(kernel)" -initrd initramfs.gz -append 'console=ttyS0 quiet panic=-1' </dev/null
