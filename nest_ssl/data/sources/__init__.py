"""Where utterances come from when not from one file each: archives, mixtures, Lhotse's cuts; each as NeMo 3.0.0 has it.

    shards.py     names of shards: brace and `_OP_..CL_` patterns, and which of them a process reads
    tarred.py     `is_tarred`: audio in tar files, read by webdataset, described by a manifest
    mixed.py      several data sets as one: `is_concat` (by turns, or drawn), and the buckets of a tarred set
    seeding.py    generators that NeMo seeds from the clock, seeded from the run instead; for both trainers
    cuts.py       `use_lhotse`: Lhotse's cuts of manifests, tar files, shar and mixtures of them
    sampling.py   Lhotse's samplers over cuts, and batches with noise
    making.py     a manifest written again as tar files or as Lhotse's shar

webdataset and lhotse do the reading; nothing of them is written again here, and each is imported by what uses it alone.
"""
