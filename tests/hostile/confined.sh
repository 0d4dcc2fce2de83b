#!/bin/sh
# confined.sh DIRECTORY SKEIN HOSTILE SEED SECONDS
#
# In namespaces of its own: makes everything read-only but DIRECTORY, which it empties, and attacks a node there.
# What a program in a node does to files and processes it does at home, as whoever runs it. Says what it has come
# to, and goes on when it reads a line.
set -eu
directory=$1 skein=$2 hostile=$3 seed=$4 seconds=$5
mount -t tmpfs -o size=256m tmpfs "$directory"
while read -r _ _ _ _ point options _; do
    case $point in "$directory" | /proc | /proc/*) continue ;; esac
    # Device files go on working; what cannot be changed by this user is left.
    mount -o "remount,bind,ro,${options#r[wo],}" "$point" 2> /dev/null || true
done < /proc/self/mountinfo
if touch /tmp/skein-confined 2> /dev/null; then
    rm -f /tmp/skein-confined
    echo "not confined"
    exit 1
fi
umask 077
cd "$directory"
mkdir state bin work
ln -s "$skein" bin/skein
ln -s "$skein" bin/mosrun
export SKEIN_DIR=$directory/state
bin/skein host start > /dev/null
bin/skein node launch --name target --memory 512M > /dev/null
cd work
../bin/mosrun "$hostile" watch > ../watch.out 2>&1 &
watcher=$!
tries=0
until grep -q watching ../watch.out; do
    sleep 0.1
    tries=$((tries + 1))
    if [ "$tries" -gt 600 ]; then
        echo "no watcher: $(cat ../watch.out)"
        exit 1
    fi
done
echo started
for half in 1 2; do
    read -r _
    status=0
    timeout -s KILL $((seconds + 120)) ../bin/mosrun "$hostile" $((seed + half)) "$seconds" > ../attack.out 2>&1 || status=$?
    echo "attacked $status: $(tail -n 1 ../attack.out)"
done
read -r _
kill -TERM "$watcher"
status=0
wait "$watcher" || status=$?
echo "watched $status: $(tail -n 1 ../watch.out)"
echo "alive: $(timeout -s KILL 60 ../bin/mosrun /bin/echo yes 2>&1)"
grep -E "panicked|cannot go on|could not be edited|RUST_BACKTRACE" ../state/nodes/target.log ../state/*.log | head -n 20 | sed 's/^/log: /'
echo "log bytes: $(cat ../state/nodes/target.log | wc -c)"
../bin/skein host stop --force > /dev/null
echo stopped
