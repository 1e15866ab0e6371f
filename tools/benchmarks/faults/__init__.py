"""Finds faults of a run: failing file calls, killed processes, power cuts, lost messages, and unlucky timing.

calls         passes every file call below a folder to a hook, which may fail it or end the process there
scenarios     the commands that are disturbed, on tiny runs without models
sweep         fails each file call of a scenario once, or kills the process there
power         cuts the power after each file call: what was not synced may be lost
requests      fails each request of a scenario to object storage
s3_service    an S3 service of this machine, and a proxy that disturbs what is asked of it
kills         real ranks that are killed at random instants
republishing  readers of shards that are published again meanwhile
simulation    ranks, launches and readers of one run under a simulated clock, scheduler, store and network disk
report        the long versions, for ``tools/bench.py faults``
"""
