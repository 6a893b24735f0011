"""The fault campaign: a small training is disturbed at a random place, and the same command has to finish it with the same losses.

faults     what is drawn: kind, place, rank; the table of kinds
kinds      signals, limits and clocks     machine  disks, the store of data, the network
target     train.py that tells where it is
launching  the commands, and what runs of them
trial      one fault from start to verdict
checks     losses, resumed step, processes and shared memory that are left
report     the table of results
"""
