#!/bin/sh
# Makes this process the systemd of a machine of its own: `boot.sh CONTROL-GROUP DIRECTORY NAME`, as root, in a network
# namespace and a mount namespace that nobody else is in. What is mounted goes with the last process of the machine.
set -eu
group=$1 dir=$2 name=$3

# First the control group: the namespace that is then made has it as its root.
if [ "${4-}" != inside ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir "/sys/fs/cgroup/$group"
    echo 0 >"/sys/fs/cgroup/$group/cgroup.procs"
    exec unshare --mount --uts --ipc --cgroup --pid --fork --kill-child sh "$0" "$group" "$dir" "$name" inside
fi

# This very system, with all that is written kept in memory and apart.
mount -t tmpfs tmpfs "$dir"
mkdir "$dir/upper" "$dir/work" "$dir/root"
root=$dir/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$root"
# What its administrator had systemd start is not to be tested, nor is what an installed pln has left.
rm -rf "$root"/etc/systemd/system/* "$root/etc/fstab" "$root/var/lib/pln" "$root/var/log/journal"
for users in passwd group shadow gshadow; do
    sed -i '/^pln:/d' "$root/etc/$users"
done
echo "$name" >"$root/etc/hostname"

# As systemd asks of containers: what belongs to the kernel as a whole can be read, no more.
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"

mkdir "$root/run/outside"
cd "$root"
pivot_root . run/outside
umount -l /run/outside
exec env -i container=pln-lab PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=basic.target
