"""Audio in, batches out: NeMo's loader stack in own code, the same bytes and the same random draws.

    manifest.py     lines of JSON -> entries: paths resolved, durations filtered
    audio.py        a file -> samples: decoded, one channel, resampled, trimmed
    noise.py        a clip of noise for an utterance, drawn from NumPy's global generator
    augment.py      noise and other speakers mixed into a batch, drawn from Python's `random`
    batch.py        what a batch is, and how utterances are collated into one
    dataset.py      the four above as a torch dataset
    epoch.py        an epoch's batches counted, and taken up again where they were left
    skipping.py     going on without the files that cannot be used, if asked
    settings.py     the keys of NeMo's `train_ds` and `validation_ds` sections: known, refused, their defaults
    loader.py       a section of the config -> a DataLoader: the page to land on
    check.py        the same section checked before anything trains
    fingerprint.py  which bytes a run was trained on
    synth.py        speech-like sounds in integer arithmetic
    corpus.py       `data/dummy_ssl`, made of those sounds

This file imports nothing, so that making the practice corpus needs no more than Python.
"""
