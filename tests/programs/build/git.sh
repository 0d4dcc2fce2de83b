# A repository of 50 commits from its making to its packing, cloned, rebased and pushed.
set -e
export GIT_CONFIG_NOSYSTEM=1 GIT_PAGER=cat GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=C GIT_COMMITTER_EMAIL=c@d
n=1000000000
tick() { n=$((n + 60)); export GIT_AUTHOR_DATE="$n +0000" GIT_COMMITTER_DATE="$n +0000"; }

git init -q -b main r
cd r
for i in $(seq 50); do
    tick
    mkdir -p d$((i % 5))
    seq $i $((i * 20)) > d$((i % 5))/f$((i % 9))
    echo $i >> log
    git add .
    git commit -q -m "commit $i"
done
git log | sha256sum
git log --stat -n 1
git checkout -q -b side HEAD~10
tick
echo side > side
git add side
git commit -q -m side
git merge -q -m merged main
git log --graph --oneline -n 4
git gc -q
git fsck --full --strict
git count-objects -v | grep -E 'in-pack|packs|garbage'
cd ..

git clone -q r c
cd c
git status --short --branch
git log -n 1 --format=%H
git checkout -q -b work origin/main
tick
# The last six commits but the log, which would conflict: squashed, dropped, reworded.
edit='sed -i -e 2s/pick/squash/ -e 4s/pick/drop/ -e 5s/pick/reword/ -e "6i exec git rev-parse HEAD"'
GIT_SEQUENCE_EDITOR=$edit GIT_EDITOR='sed -i 1s/^/edited:/' git rebase -q -i -X theirs HEAD~6
git log --format='%h %s %an %cn' -n 5
git diff --stat HEAD~2
git blame -s log | tail -n 3
git grep -c 777
git tag -a -m tag v1
git describe --always
git archive HEAD | sha256sum
cd ..
git clone -q --bare --no-local r bare
git -C c push -q ../bare work:new 2>&1
git -C bare fsck
git -C bare branch --list --format='%(refname) %(objectname)'
# Indexes and logs hold times and inode numbers.
rm -rf r/.git c/.git bare
