# From here on the file is the same for every run.

# Of an array this task alone: one of its tasks has the number of the array, by which Slurm would take all of them.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"

say() { printf '%(%T)T job %s: %s\n' -1 "$job" "$*"; }

# Line by line what the run says of itself; "stop" is written after a save that was asked for.
last_event() { tail -n 1 -- "$run_folder/events.jsonl" 2>/dev/null; }

job_state() {
    scontrol show job --oneliner "$job" 2>/dev/null | grep -oE '\b(JobState|Reason)=[^ ]+' | head -n 2 | tr '\n' ' '
}

step='' signalled=''

# shellcheck disable=SC2317 # called by the traps below
# srun hands SIGUSR1 on to all ranks. SIGTERM it does not: it kills them at once, and what was learned since the last checkpoint is lost.
ask_to_save() {
    signalled=yes
    # A second signal would end the ranks before they have saved.
    trap '' USR1
    say "asked to stop ahead of time: the ranks save"
    [ -z "$step" ] || kill -USR1 "$step"
}
# shellcheck disable=SC2317
# Slurm sends SIGTERM to the ranks as well as to this shell, which has to outlive them.
outlive() {
    signalled=yes
    say "Slurm ends the job: waiting for the ranks, which save"
}
trap ask_to_save USR1
trap outlive TERM

next_link=''
if [ "$links_left" -gt 1 ] && [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ]; then
    next_link=$(
        sbatch --parsable --chdir="$SLURM_SUBMIT_DIR" --dependency="afterok:$SLURM_JOB_ID" --kill-on-invalid-dep=yes \
            -- "$0" "$((links_left - 1))"
    )
    say "the next of the chain is job ${next_link:-"missing: sbatch is refused on this machine"}"
fi

before=$(last_event)
"${launch[@]}" &
step=$!
code=0
while signalled=''; do
    wait "$step"
    code=$?
    # A signal to this shell ends its waiting, not the ranks.
    [ -n "$signalled" ] || break
done

# A launcher, or a rank that was still closing its files, may have ended otherwise though the run was saved: its own last word counts.
now=$(last_event)
if [ "$code" -ne 0 ] && [ "$now" != "$before" ] && [[ $now == *'"kind": "stop"'* ]]; then
    code=85
fi
say "the ranks ended with $code"

# What Slurm sends to a job that it puts back into the queue.
trap '' TERM

case $code in
0)
    [ -z "$next_link" ] || scancel "$next_link"
    ;;
2)
    say "the error above needs you: nothing is started again"
    ;;
85)
    state=$(job_state)
    if [[ $state != *JobState=RUNNING* && $state != *Reason=TimeLimit* ]]; then
        say "saved; the job was cancelled, or Slurm has requeued it itself (${state:-unknown})"
    elif [ "$links_left" -gt 1 ] && { [ -n "$next_link" ] || [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; }; then
        say "saved; the next of the chain goes on"
        exit 0
    elif [ "$links_left" -gt 1 ]; then
        say "saved; nothing goes on, as the next of the chain could not be submitted: sbatch the same file to go on"
    elif [ "$links_left" -eq 1 ]; then
        say "saved; the chain ends here: sbatch the same file to go on"
    elif scontrol requeue "$job"; then
        say "saved; requeued"
    else
        say "saved; not requeued: sbatch the same file to go on"
    fi
    ;;
esac
exit "$code"
