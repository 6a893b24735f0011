"""Looking at data sets: is every sample usable, what is in them, and how do samples look to the model?

targets     what the command line names: data set folders, or bare shards of other makers
samples     one sample decoded as training does it
processes   one function over many shards, in parallel
lint        every sample of every shard, and the folder as a whole
statistics  sizes, lengths, classes, words, colours
gallery     samples picked at random, raw or as a task makes them; page writes them as one HTML file
"""
