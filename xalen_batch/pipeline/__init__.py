"""The steps that commit, a module each: validate, claim, record, finalize, recover.

`fairness` keeps the virtual times of accounts level, `poison` decides what follows a worker crash,
and `sweeps` is the housekeeping. `execute`, the step between claim and record, is in `worker/`.
"""
