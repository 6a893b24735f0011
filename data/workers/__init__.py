"""Processes that work for a rank, and the way of what they make.

processes      that end with their parent, and keep memory that was freed
loader         workers of the training stream; pool: one function over many items
packing        a batch as one buffer; shared_memory: lent to the trainer; to_device: copied ahead
"""
