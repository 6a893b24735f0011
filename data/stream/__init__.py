"""What comes when: sources, their order, the schedule of micro-batches, a rank's share.

source      tasks bound to their shards, one vocabulary for all
order       position of a sample's stream -> (shard, index)
schedule    (seed, step, number) -> task and position
micro_batch samples read, decoded, joined; faults: what could not be used
training    an endless stream; fetching: remote shards ahead of it
evaluation  every sample once
"""
