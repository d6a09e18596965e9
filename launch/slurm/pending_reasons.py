"""Reasons that squeue gives for a pending job, in words. The codes are SLURM's job_reason_codes."""

EXPLAINED = {
    "Priority": "other jobs go first",
    "Resources": "no free nodes yet",
    "BeginTime": "SLURM lets a requeued job wait for two minutes",
    "Dependency": "the job that it depends on has not ended",
    "DependencyNeverSatisfied": "the job that it depends on failed; it never starts: scancel it",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows; it never starts: lower cluster.nodes",
    "PartitionTimeLimit": "cluster.time exceeds the limit of the partition; it never starts: lower it",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition takes no jobs",
    "ReqNodeNotAvail": "its nodes are down, drained or reserved",
    "JobHeldUser": "held by its owner: scontrol release JOB",
    "JobHeldAdmin": "held by an administrator",
    "Reservation": "its reservation has not begun",
    "AssocGrpGRES": "the account uses all GPUs that it may",
    "QOSMaxJobsPerUserLimit": "as many jobs of this user run as its QOS allows",
    "QOSMaxWallDurationPerJobLimit": "cluster.time exceeds the limit of its QOS; it never starts: lower it",
    "BadConstraints": "no node has what it asks for; it never starts: see cluster.constraint",
    "JobArrayTaskLimit": "as many tasks of the array run as allowed",
    "launch_failed_requeued_held": "its node could not start it: scontrol release JOB tries again",
}


def explain_reason(reason: str) -> str:
    """The code, followed by its meaning if it is known. `None` is what squeue shows for a job that it has not looked at."""
    code = reason.strip("()").split(",")[0]
    if code in ("None", ""):
        return "SLURM has not looked at it yet"
    return f"{reason} ({EXPLAINED[code]})" if code in EXPLAINED else reason
