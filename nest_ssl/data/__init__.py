"""Audio in, batches out: NeMo's loader stack in own code, the same bytes and the same random draws.

A section of the configuration (`nest_ssl.config.data.Dataset`) goes through it in this order:

    manifest.py         lines of JSON -> entries: paths resolved, what no line may say refused
    corpus.py           the manifests of a section, each read once in a run; durations filtered
    audio.py            a file -> samples: decoded, resampled, trimmed
    header.py           what its header promises, and whether that can be true
    channels.py         which channel of it is left
    perturb.py          the samples changed at random, as each is read
    vocoder.py          what of it makes audio slower or faster at its own pitch
    problems.py         what can be wrong with a file, and how far that goes: a table
    noise.py            a clip of noise for an utterance, drawn from NumPy's global generator
    draws.py            the draws of the augmentation, from Python's `random` or NumPy's
    augment.py          noise and other speakers mixed into a batch
    batch.py            what a batch is, and how utterances are collated into one
    dataset.py          all of these as a torch dataset
    skipping.py         going on without the files that cannot be used, if asked
    epoch.py            an epoch's batches counted, and taken up again where they were left
    loader.py           a section of the config -> a DataLoader: the page to land on

and before and after training:

    check.py            the same section checked before anything trains
    fingerprint.py      which bytes a run was trained on, and which of them changed meanwhile
    files.py            states and hashes of files
    torch_internals.py  what we use of torch that torch keeps to itself
"""
