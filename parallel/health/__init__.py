"""What is looked at so that a run of many ranks starts right and ends well.

preflight, same_inputs    before the first step
replicas                  copies stay copies
watchdog, notes           where each rank is
failures, stop_signal     how a run ends
"""
