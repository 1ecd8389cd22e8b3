#!/usr/bin/env bash
# A real SLURM on this machine alone, and everything docs/cluster.md promises run on it. By hand, not in CI:
#
#   apt-get install slurm-wlm munge      # Debian's packages; 22.05 was what this was written on
#   scripts/try_slurm.sh [LOG]           # as root, in a container without systemd or cgroups; some 15 minutes
#
# Every check prints "ok" or "FAILED"; the exit status is the number of failures. The daemons it starts it ends.
set -u
cd "$(dirname "$0")/.."
repository=$PWD
log=${1:-/dev/stdout}
python=${PYTHON:-$(command -v python)}
state=$(mktemp -d)
host=$(hostname -s)
genlab="$python -m genlab"
export SLURM_CONF=$state/slurm.conf PYTHONPATH=$repository OMP_NUM_THREADS=1
small="trainer.accelerator=cpu model.net.width=8 model.net.depth=1 data.limit=32 train.sample_every=0"
fast="trainer=smoke trainer.max_steps=4 $small"
long="trainer.max_steps=1000000 train.valid_every=1000000 train.checkpoint_every=1000000 $small"
failures=0

start() {
  mkdir -p "$state/ctld" "$state/d" /run/munge
  chown munge: /run/munge /etc/munge/munge.key
  pgrep -x munged > /dev/null || su -s /bin/sh munge -c /usr/sbin/munged
  cat > "$SLURM_CONF" << CONF
ClusterName=try
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=0
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/ctld.pid
SlurmdPidFile=$state/d.pid
SlurmctldLogFile=$state/ctld.log
SlurmdLogFile=$state/d.log
SlurmctldPort=16827
SlurmdPort=16828
ReturnToService=2
KillWait=30
MinJobAge=3600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(env -u OMP_NUM_THREADS nproc) State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
  slurmctld && slurmd && sleep 3 && sinfo
}

end() {
  kill "$(cat "$state/d.pid")" "$(cat "$state/ctld.pid")" 2> /dev/null
}

# Host name and folders are nobody's business; progress is drawn over itself.
clean() { tr '\r' '\n' | grep -v "left$\|sacct\|accounting storage" | sed -e "s#$work#WORK#g; s#$repository#.#g; s#$state#STATE#g; s#$python -m genlab#genlab#g; s#$python#python#g; s#\b$host\b#node1#g"; }

say() { echo; echo "== $*"; }

# check WHAT CONDITION…: the condition is a command
check() {
  local what=$1
  shift
  if "$@"; then echo "ok      $what"; else echo "FAILED  $what"; failures=$((failures + 1)); fi
}

batch() {  # OPTIONS -- SCRIPT LINES: submit, wait, show what it printed; its state in $ended
  local options=()
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  printf '#!/bin/bash\ncd %s\n' "$work" > "$work/job.sh"
  printf '%s\n' "$@" >> "$work/job.sh"
  echo "\$ sbatch ${options[*]}"
  printf '    %s\n' "$@"
  local id
  id=$(sbatch --parsable --output="$work/out" "${options[@]}" "$work/job.sh")
  wait_for "$id"
  cat "$work/out"
}

wait_for() {  # until a job is over; its state in $ended
  for _ in $(seq 600); do
    ended=$(state_of "$1")
    case $ended in PENDING | RUNNING | COMPLETING | REQUEUED) sleep 1 ;; *) break ;; esac
  done
  echo "job $1: $ended $(scontrol show job "$1" | grep -o 'ExitCode=[0-9:]*' | head -1)"
}

state_of() { scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p' | head -1; }
holds() { grep -q "$1" "$2"; }
lines() { [ "$(grep -c "$1" "$2")" = "$3" ]; }

everything() {
  cd "$work" || exit 1
  sinfo --version

  say "srun -n 2: two tasks of a step are two ranks"
  srun -n 2 $genlab train $fast trainer.devices=2 trainer.strategy=ddp hydra.run.dir=srun 2>&1 | tee out
  check "one result, from two processes" holds '"processes": 2' srun/results.json
  check "one line about the test" lines "^test bits/dim" out 1
  srun -n 2 $genlab eval ckpt=srun 2>&1 | tee out
  check "eval is shared by two" lines "^test bits/dim" out 1

  say "a batch script is one process, whatever it has asked for, and starts its own ranks"
  batch --ntasks=2 -- "$genlab train $fast trainer.devices=2 trainer.strategy=ddp hydra.run.dir=ntasks"
  check "--ntasks=2" test "$ended" = COMPLETED -a -f ntasks/results.json
  batch --ntasks-per-node=2 -- "$genlab train $fast trainer.devices=2 trainer.strategy=ddp hydra.run.dir=pernode" \
    "$genlab eval ckpt=pernode trainer=ddp_cpu"
  check "--ntasks-per-node=2, train and eval" lines "^test bits/dim" out 2

  say "two steps at once in one job"
  batch --ntasks=4 --overcommit -- \
    "srun -n 2 --overlap --overcommit $genlab train $fast hydra.run.dir=a &" \
    "srun -n 2 --overlap --overcommit $genlab train $fast hydra.run.dir=b &" wait
  check "both have finished" test -f a/results.json -a -f b/results.json

  say "a rank that is killed ends all, with one sentence"
  (for _ in $(seq 300); do sleep 1; [ -s killed/metrics.csv ] && break; done
    sleep 3; kill -9 "$(pgrep -f 'genlab train.*dir=killed' | while read -r p; do
      tr '\0' '\n' < "/proc/$p/environ" | grep -qx SLURM_PROCID=1 && grep -q '^Name:.*python' "/proc/$p/status" && echo "$p"; done | head -1)") &
  timeout 400 srun -n 2 $genlab train $long train.log_every=5 trainer.devices=2 trainer.strategy=ddp hydra.run.dir=killed > out 2>&1
  status=$?
  wait
  cat out
  check "ended, with a status that is not 0 ($status)" test "$status" != 0 -a "$status" != 124
  check "one sentence" lines "^genlab: rank 1 of 2 is gone" out 1

  say "more ranks than cores are refused"
  $genlab train $small trainer.devices=$(($(env -u OMP_NUM_THREADS nproc) + 1)) trainer.strategy=ddp hydra.run.dir=many 2>&1 | tee out
  check "one sentence, nothing written" test "$(wc -l < out)" = 1 -a ! -e many

  say "sweep=slurm: a job that fails is FAILED, the other one COMPLETED"
  $genlab train -m sweep=slurm hydra.launcher.timeout_min=10 $fast model.net.kernel=3,4 hydra.sweep.dir=sweep 2>&1 | tee out
  id=$(ls sweep/.submitit | grep -o '^[0-9]*' | head -1)
  scontrol show job "$id" | grep -E "ArrayTaskId|JobState|ExitCode"
  check "kernel=3 is done" test -f sweep/0/results.json
  check "kernel=4 is FAILED" test "$(state_of "${id}_1")" = FAILED
  $genlab train -m sweep=slurm hydra.launcher.timeout_min=10 $fast model.net.kernel=3,5 hydra.sweep.dir=sweep 2>&1 | tee out
  check "the command with 5 in place of 4 goes on: one is finished already, the other succeeds" test -f sweep/1/results.json -a ! -e sweep/1/error.txt

  say "sweep=slurm: a job that is requeued goes on in its folder"
  $genlab train -m sweep=slurm hydra.launcher.timeout_min=10 $long train.log_every=5 trainer.max_steps=20000 \
    train.checkpoint_every=100 seed=0 hydra.sweep.dir=requeued > out 2>&1 &
  sweep=$!
  for _ in $(seq 300); do sleep 1; [ -f requeued/0/checkpoints/last.ckpt ] && break; done
  id=$(ls requeued/.submitit | head -1)
  echo "\$ scontrol requeue ${id}"
  scontrol requeue "$id"
  for _ in $(seq 300); do sleep 1; [ "$(wc -l < requeued/0/command.txt)" -gt 1 ] && break; done
  check "it has resumed" test "$(wc -l < requeued/0/command.txt)" = 2
  check "and has not failed" test ! -e requeued/0/error.txt
  scancel "${id%%_*}"
  kill "$sweep"  # without accounting submitit cannot see that the job is gone
  wait
  check "the sweep says what goes on without it" holds "the jobs go on in SLURM (scancel [0-9]" out
  cat requeued/.submitit/*/*_log.out

  say "sweep=slurm: a job that runs out of time saves, is queued again and goes on"
  $genlab train -m sweep=slurm hydra.launcher.timeout_min=2 hydra.launcher.signal_delay_s=20 $long train.log_every=5 \
    seed=0 hydra.sweep.dir=late > out 2>&1 &
  sweep=$!
  for _ in $(seq 300); do sleep 1; [ -f late/0/command.txt ] && [ "$(wc -l < late/0/command.txt)" -gt 1 ] && break; done
  cat late/.submitit/*/*_log.out late/.submitit/*/*_log.err | grep -v "left$"
  check "it had saved" test -f late/0/checkpoints/last.ckpt
  check "it has resumed" test "$(wc -l < late/0/command.txt)" -gt 1
  check "and has not failed" test ! -e late/0/error.txt
  scancel "$(ls late/.submitit | grep -o '^[0-9]*' | head -1)"
  kill "$sweep"
  wait

  say "the batch script of docs/cluster.md"
  sed -n '/^#!\/bin\/bash/,/^```/p' "$repository/docs/cluster.md" | sed '$d' | sed "s#srun genlab#srun $genlab#; s#trainer=ddp #trainer.devices=2 trainer.strategy=ddp $long train.log_every=5 #" > script.sh
  cat script.sh
  id=$(sbatch --parsable --output="$work/out" --time=3 --signal=USR1@60 script.sh)
  wait_for "$id"
  cat out
  check "the signal has saved it" holds "stopped by SIGUSR1 .* everything is saved" out
  check "one sentence" lines "^genlab:" out 1
  id=$(sbatch --parsable --output="$work/out" --time=3 --signal=USR1@60 script.sh)
  for _ in $(seq 200); do sleep 1; [ "$(wc -l < runs/first/command.txt)" -gt 1 ] && break; done
  check "submitted again it goes on" test "$(wc -l < runs/first/command.txt)" = 2
  scancel "$id"
  wait_for "$id"
  cat out

  say "$failures failed"
}

trap end EXIT
work=$(mktemp -d)
start || exit 1
everything > "$state/log" 2>&1
failures=$(grep -c "^FAILED" "$state/log")
clean < "$state/log" > "$log"
exit "$failures"
