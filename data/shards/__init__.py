"""Data set folders: tar shards in webdataset's layout, an index beside each shard, and dataset.json.

    folder/dataset.json                 kind, class names, token ids, splits; written last, marks it complete
    folder/train.shards.json            name, samples and bytes of every shard of the split: all that opening reads
    folder/train-000000.tar             members KEY.EXTENSION; neighbours with one key are one sample
    folder/train-000000.tar.index.json  byte range of every sample, so that any sample is one seek away

Training needs sample i of shard s at once, in an order that is a function of the seed; so a sample is read by
its byte range and only then handed to webdataset's own tar parser. Shards of other makers have neither list nor index: their
headers are scanned when the set is opened for the first time; `python -m data.shards FOLDER` does it beforehand. Folders may
be URLs, and shards anything that data/transport can fetch.
"""

from data.shards.errors import BadSample, BadShard, DatasetError
from data.shards.files import clear_dataset
from data.shards.info import DatasetInfo, SplitInfo, is_complete, is_trained_on, read_info, write_info
from data.shards.lists import ShardList, write_shard_list
from data.shards.reading import ShardSet
from data.shards.writing import write_shard, write_shards

__all__ = [
    "BadSample",
    "BadShard",
    "DatasetError",
    "DatasetInfo",
    "ShardList",
    "ShardSet",
    "SplitInfo",
    "clear_dataset",
    "is_complete",
    "is_trained_on",
    "read_info",
    "write_info",
    "write_shard",
    "write_shard_list",
    "write_shards",
]
