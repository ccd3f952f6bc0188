"""How a split is divided into files, its shards: the text in data/raw, and the tokens in data/tokens.

A split of usual size is one file, such as train.txt or train.bin. A larger one is several, train-00000.txt and so on,
which several workers process at the same time. Every shard ends where a document ends, so the files in their order hold
the same bytes as a single one.
"""

SPLITS = ("train", "val")

SHARD_BYTES = 256_000_000  # of text; a shard ends with the document that reaches it


def shard_names(split: str, count: int, suffix: str) -> list[str]:
    """The names of the files of a split that has `count` shards.

    >>> shard_names("val", 1, ".txt"), shard_names("train", 2, ".bin")
    (['val.txt'], ['train-00000.bin', 'train-00001.bin'])
    """
    if count == 1:
        return [f"{split}{suffix}"]
    return [f"{split}-{index:05d}{suffix}" for index in range(count)]
